#include "base/fault.h"
#include "base/log.h"
#include "volume/block_map.h"

// Leaves that a device does not give at present, and what changed in them meanwhile.
namespace peplos::volume {

using runtime::Task;

// What is known of these blocks; false: not all of it.
bool BlockMap::lookup_unread(uint64_t leaf_index, uint32_t block, std::span<MapEntry> out) const {
    auto leaf = unread_.find(leaf_index);
    if (leaf == unread_.end()) return false;
    for (size_t i = 0; i < out.size(); ++i) {
        auto at = leaf->second.find(block + static_cast<uint32_t>(i));
        if (at == leaf->second.end() || !at->second.is_known) return false;
        out[i] = at->second.entry;
    }
    return true;
}

// The block is this from now on; an entry of nothing reads as zeros.
void BlockMap::set_unread(UnreadBlock& block, MapEntry entry) {
    if (block.is_known && block.entry.is_block())
        segments_.count_live(block.entry.place.segment_index(), -1);
    for (const auto& [from, to] : std::exchange(block.moves, {}))
        segments_.count_live(to.place.segment_index(), -1);
    if (entry.is_block()) segments_.count_live(entry.place.segment_index(), 1);
    block.is_known = true;
    block.entry = entry;
}

size_t BlockMap::apply_to_unread(const Steps& steps, size_t at) {
    const uint64_t leaf_index = steps.leaf_index(at);
    UnreadLeaf& leaf = unread_[leaf_index];
    for (; at < steps.size() && steps.leaf_index(at) == leaf_index; ++at) {
        UnreadBlock& block = leaf[static_cast<uint32_t>(steps.lba(at) % limits::kLeafBlocks)];
        if (!steps.updates.empty()) {
            set_unread(block, steps.entry(at));
            continue;
        }
        const Relocation& move = steps.relocations[at];
        if (block.is_known) {
            if (block.entry.place == move.old_place) set_unread(block, move.entry);
            continue;
        }
        // A record is applied again after a failure, and counts once.
        if (!block.moves.empty() && block.moves.back().second == move.entry) continue;
        segments_.count_live(move.entry.place.segment_index(), 1);
        block.moves.emplace_back(move.old_place, move.entry);
    }
    return at;
}

void BlockMap::zero_unread(uint64_t leaf_index, uint32_t first, uint32_t end) {
    UnreadLeaf& leaf = unread_[leaf_index];
    for (uint32_t block = first; block < end; ++block)
        set_unread(leaf[block], {});
}

// The leaf is in RAM, as its page says: what has changed since is made up for.
void BlockMap::merge_unread(uint64_t leaf_index) {
    auto node = unread_.extract(leaf_index);
    if (node.empty()) return;
    PROBE("block_map.leaf_read_later");
    unread_now_.erase(leaf_index);
    Leaf& leaf = leaf_for_change(leaf_index);
    for (const auto& [number, block] : node.mapped()) {
        if (block.is_known) {
            if (block.entry.is_block()) segments_.count_live(block.entry.place.segment_index(), -1);
            set_entry(leaf, number, block.entry);
        }
        for (const auto& [from, to] : block.moves) {
            segments_.count_live(to.place.segment_index(), -1);
            if (leaf.get(number).place == from) set_entry(leaf, number, to);
        }
    }
    leaf_changed(leaf_index);
}

Task<Result<void>> BlockMap::settle_unread() {
    std::optional<Error> why;
    std::vector<uint64_t> leaves;
    leaves.reserve(unread_.size());
    for (const auto& [leaf_index, changes] : unread_)
        leaves.push_back(leaf_index);
    for (uint64_t leaf_index : leaves) {
        Result<LeafPin> pin = co_await fetch(leaf_index);
        if (!pin) why = std::move(pin).error();
    }
    if (unread_.empty()) co_return Result<void>{};
    if (!why) co_return fail(Code::unavailable, "map leaves are still being read");
    co_return fail(Code::unavailable,
                   "{} map leaves of volume {} cannot be read now; what changed in them waits in "
                   "the journal: {}",
                   unread_.size(), identity_.volume, why->message());
}

uint64_t BlockMap::lose_unread() {
    const uint64_t before = lost_count_;
    std::vector<uint64_t> leaves;
    leaves.reserve(unread_.size());
    for (const auto& [leaf_index, changes] : unread_)
        leaves.push_back(leaf_index);
    for (uint64_t leaf_index : leaves) {
        // A reader who asks at this moment finds out by himself.
        if (loading_.contains(leaf_index) || !is_missing(leaf_index)) continue;
        LOG_ERROR("map leaf given up volume={} leaf={} first_block={}", identity_.volume,
                  leaf_index, leaf_index * limits::kLeafBlocks);
        lose_leaf(leaf_index);
    }
    return lost_count_ - std::min(before, lost_count_);
}

}  // namespace peplos::volume
