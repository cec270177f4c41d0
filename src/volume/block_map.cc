#include "volume/block_map.h"

#include <algorithm>
#include <utility>

#include "base/fault.h"
#include "base/log.h"
#include "volume/checkpoint.h"
#include "volume/patient_read.h"

namespace peplos::volume {

using format::PageIdentity;
using format::PageKind;
using format::PageSlot;
using runtime::Task;

namespace {

constexpr uint64_t kBlockCountMax = limits::kVolumeBytesMax / kBlockBytes;
// Steps between two turns of the executor: about 100 us of work.
constexpr size_t kStepsPerTurn = 512;

// A page that is not what it should be, or that its device does not give. Narrower than
// is_damage(): a map segment that is not found is on a device that is not here, and comes back with
// it. A change that lost its leaves would be final, where a salvage has shown it to somebody who
// accepts it.
bool is_page_damage(Code code) {
    return code == Code::corrupt || code == Code::io_error;
}

}  // namespace

// One load in flight. The pin keeps the leaf until the last waiter has seen it.
struct BlockMap::Loading {
    runtime::Event done;
    std::optional<Error> error;
    LeafPin pin;
};

// Loads that run side by side.
struct BlockMap::Window {
    std::vector<LeafPin> pins;
    std::optional<Error> error;
    size_t running = 0;
    runtime::Event done;
};

BlockMap::BlockMap(MapIdentity identity, uint64_t block_count, LeafCache& cache, PageStore& store,
                   runtime::Executor executor)
    : identity_(identity),
      block_count_(block_count),
      cache_(cache),
      store_(store),
      executor_(std::move(executor)),
      reader_(segments_, store, gate_, executor_) {
    CHECK(identity.volume && identity.lineage);
    CHECK(block_count <= kBlockCountMax);
    interiors_.resize(div_up(block_count_, kInteriorBlocks));
}

BlockMap::~BlockMap() {
    for (auto& interior : interiors_) {
        if (!interior) continue;
        for (uint32_t i = 0; i < interior->slot_count; ++i)
            destroy_leaf(interior->slots[i]);
    }
}

Task<void> BlockMap::close() {
    co_await gate_.close();
}

PageIdentity BlockMap::identity_of(PageKind kind, uint64_t key, uint64_t sequence) const {
    return {identity_.lineage, identity_.volume, kind, key, sequence};
}

BlockMap::Slot* BlockMap::slot_of(uint64_t leaf_index) {
    Interior* interior = interiors_[leaf_index / kSlotCount].get();
    return interior == nullptr ? nullptr : &interior->slots[slot_number(leaf_index)];
}

uint32_t BlockMap::slot_count_of(uint64_t interior_index) const {
    const uint64_t leaf_count = div_up(block_count_, limits::kLeafBlocks);
    return static_cast<uint32_t>(
        std::min<uint64_t>(kSlotCount, leaf_count - interior_index * kSlotCount));
}

void BlockMap::make_interior(uint64_t interior_index) {
    auto interior = std::make_unique<Interior>();
    interior->slot_count = slot_count_of(interior_index);
    interior->slots = std::make_unique<Slot[]>(interior->slot_count);
    interiors_[interior_index] = std::move(interior);
}

bool BlockMap::is_missing(uint64_t leaf_index) {
    const Slot* slot = slot_of(leaf_index);
    return slot != nullptr && slot->leaf == nullptr && slot->page;
}

// Lookup ---------------------------------------------------------------------------------------

bool BlockMap::lookup_cached(Lba first, std::span<MapEntry> out) {
    CHECK(first.value <= block_count_ && out.size() <= block_count_ - first.value);
    uint64_t lba = first.value;
    for (size_t done = 0; done < out.size();) {
        const uint32_t block = lba % limits::kLeafBlocks;
        const size_t count = std::min<size_t>(out.size() - done, limits::kLeafBlocks - block);
        const Slot* slot = slot_of(lba / limits::kLeafBlocks);
        if (slot != nullptr && slot->leaf == nullptr && slot->page) {
            std::span<MapEntry> part = out.subspan(done, count);
            if (!lookup_unread(lba / limits::kLeafBlocks, block, part)) return false;
        } else if (slot == nullptr || !is_leaf(slot->leaf)) {
            std::fill_n(out.begin() + static_cast<ptrdiff_t>(done), count, MapEntry{});
        } else {
            slot->leaf->referenced_ = true;
            if (count == 1) {
                out[done] = slot->leaf->get(block);
            } else {
                slot->leaf->copy(block, out.subspan(done, count));
            }
        }
        done += count;
        lba += count;
    }
    return true;
}

// The entries are of one moment: while one leaf is loaded, the segment that an entry of another one
// names may be removed and its index used again.
Task<Result<void>> BlockMap::lookup(Lba first, std::span<MapEntry> out) {
    CHECK(first.value <= block_count_ && out.size() <= block_count_ - first.value);
    const uint64_t end = div_up(first.value + out.size(), limits::kLeafBlocks);
    std::vector<LeafPin> pins;
    while (!lookup_cached(first, out)) {
        for (uint64_t i = first.value / limits::kLeafBlocks; i < end; ++i) {
            Result<LeafPin> pin = co_await fetch(i);
            if (pin) pins.push_back(std::move(*pin));
            // Of a leaf that cannot be read the changes since may say enough.
            if (!pin && !unread_.contains(i)) co_return fail(std::move(pin).error());
            if (pin) continue;
            const uint64_t begin = std::max(first.value, i * limits::kLeafBlocks);
            const uint64_t stop = std::min(first.value + out.size(), (i + 1) * limits::kLeafBlocks);
            auto part = out.subspan(begin - first.value, stop - begin);
            if (!lookup_unread(i, static_cast<uint32_t>(begin % limits::kLeafBlocks), part))
                co_return fail(std::move(pin).error());
        }
    }
    co_return Result<void>{};
}

// Leaves ---------------------------------------------------------------------------------------

Task<Result<LeafPin>> BlockMap::fetch(uint64_t leaf_index) {
    for (;;) {
        Slot* slot = slot_of(leaf_index);
        if (slot != nullptr && is_leaf(slot->leaf)) co_return LeafPin(cache_, *slot->leaf);
        if (!is_missing(leaf_index)) co_return LeafPin();
        if (auto at = loading_.find(leaf_index); at != loading_.end()) {
            const std::shared_ptr<Loading> loading = at->second;
            co_await loading->done.wait();
            if (loading->error) co_return fail(*loading->error);
            continue;
        }
        auto loading = std::make_shared<Loading>();
        loading_.emplace(leaf_index, loading);
        Result<void> read = co_await read_leaf(leaf_index);
        end_loading(leaf_index, *loading, read);
        if (!read) co_return fail(std::move(read).error());
    }
}

void BlockMap::end_loading(uint64_t leaf_index, Loading& loading, const Result<void>& read) {
    loading_.erase(leaf_index);
    if (read) {
        // Changes that had passed it by may have emptied it.
        Leaf* leaf = slot_of(leaf_index)->leaf;
        if (is_leaf(leaf)) loading.pin = LeafPin(cache_, *leaf);
    } else {
        loading.error = read.error();
    }
    loading.done.set();
}

Task<Result<void>> BlockMap::read_leaf(uint64_t leaf_index) {
    for (;;) {
        const PageSlot page = slot_of(leaf_index)->page;
        Result<Buffer> bytes = co_await reader_.read(page);
        // A checkpoint may have moved the page while the old place was read, and its segment may
        // be gone: then only the new place counts.
        if (slot_of(leaf_index)->page != page) {
            PROBE("block_map.page_moved_under_load");
            continue;
        }
        if (!bytes) co_return fail(std::move(bytes).error());
        co_return install_leaf(leaf_index, bytes->bytes());
    }
}

Result<void> BlockMap::install_leaf(uint64_t leaf_index, Bytes page) {
    std::array<LeafItem, format::kLeafEntryCount> items;
    Slot& slot = *slot_of(leaf_index);
    CHECK(slot.leaf == nullptr, "leaf {} was changed while it was loaded", leaf_index);
    const Result<uint32_t> decoded =
        decode_leaf(page, identity_of(PageKind::leaf, leaf_index), slot.page, items);
    if (!decoded) return fail(reader_.corrupt_at(slot.page, decoded.error()));
    const uint32_t count = *decoded;
    for (const LeafItem& item : std::span(items).first(count)) {
        const uint32_t segment = item.entry.place.segment_index();
        if (!item.entry.is_lost() && segments_.find(segment) == nullptr) {
            Error error(Code::corrupt,
                        fmt::format("map leaf {} of volume {}: block {} is said to be in segment "
                                    "index {}, which the volume does not have",
                                    leaf_index, identity_.volume, item.index, segment));
            return fail(reader_.corrupt_at(slot.page, std::move(error)));
        }
    }
    auto* leaf = new Leaf(this, leaf_index);
    leaf->assign(std::span(items).first(count));
    slot.leaf = leaf;
    cache_.charge(*leaf);
    merge_unread(leaf_index);
    return {};
}

Task<void> BlockMap::fetch_one(std::shared_ptr<Window> window, uint64_t leaf_index) {
    Result<LeafPin> pin = co_await fetch(leaf_index);
    if (pin) {
        window->pins.push_back(std::move(*pin));
    } else if (!window->error) {
        window->error = std::move(pin).error();
    }
    if (--window->running == 0) window->done.set();
}

// Loads leaves side by side and keeps them in `pins`.
Task<Result<void>> BlockMap::fetch_all(std::vector<uint64_t> leaf_indexes,
                                       std::vector<LeafPin>* pins) {
    if (gate_.is_closed()) co_return fail(Code::stopping, "the volume is closing");
    auto window = std::make_shared<Window>();
    window->running = leaf_indexes.size();
    for (size_t i = 1; i < leaf_indexes.size(); ++i) {
        gate_.spawn(executor_, fetch_one(window, leaf_indexes[i]));
    }
    co_await fetch_one(window, leaf_indexes[0]);
    co_await window->done.wait();
    if (window->error) co_return fail(std::move(*window->error));
    *pins = std::move(window->pins);
    co_return Result<void>{};
}

// The same for a change, which goes on without what is lost.
Task<Result<void>> BlockMap::fetch_to_change(std::vector<uint64_t> leaf_indexes,
                                             std::vector<LeafPin>* pins) {
    auto fetched = co_await fetch_all(leaf_indexes, pins);
    if (fetched || !is_page_damage(fetched.error().code())) co_return fetched;
    pins->clear();
    for (uint64_t leaf_index : leaf_indexes) {
        CO_TRY_ASSIGN(LeafPin pin, co_await fetch_or_lose(leaf_index));
        pins->push_back(std::move(pin));
    }
    co_return Result<void>{};
}

Task<Result<LeafPin>> BlockMap::fetch_or_lose(uint64_t leaf_index) {
    for (;;) {
        Result<LeafPin> pin = co_await fetch(leaf_index);
        if (pin || !is_page_damage(pin.error().code())) co_return pin;
        // A reader tries again: what it finds counts, and it must not meet a leaf made meanwhile.
        if (loading_.contains(leaf_index)) continue;
        auto loading = std::make_shared<Loading>();
        loading_.emplace(leaf_index, loading);
        Result<void> outcome = co_await read_or_lose(leaf_index);
        end_loading(leaf_index, *loading, outcome);
        if (!outcome && is_unread(leaf_index)) co_return LeafPin();
        if (!outcome) co_return fail(std::move(outcome).error());
    }
}

// Whether the leaf stays unreadable while its device answers otherwise: a device that answers
// nothing at all takes nothing away.
Task<Result<void>> BlockMap::read_or_lose(uint64_t leaf_index) {
    auto [read, is_proven] = co_await read_patiently([&] { return read_leaf(leaf_index); });
    if (read || !is_page_damage(read.error().code())) co_return std::move(read);
    const PageSlot page = slot_of(leaf_index)->page;
    if (const SegmentEntry* segment = segments_.find(page.place.segment_index())) {
        const SegmentId id = segment->id;
        Buffer header = Buffer::allocate(kBlockBytes);
        Result<void> probe = co_await store_.read(id, 0, header);
        if (!probe) co_return fail(std::move(read).error());
    }
    if (slot_of(leaf_index)->page != page) co_return co_await read_leaf(leaf_index);
    if (!is_proven) {
        // What a device does not give now it may give later.
        PROBE("block_map.leaf_unread");
        LOG_WARN("map leaf cannot be read now volume={} leaf={} why=\"{}\"", identity_.volume,
                 leaf_index, read.error().message());
        unread_now_.insert(leaf_index);
        co_return fail(std::move(read).error());
    }
    LOG_ERROR("map leaf lost volume={} leaf={} first_block={} why=\"{}\"", identity_.volume,
              leaf_index, leaf_index * limits::kLeafBlocks, read.error().message());
    lose_leaf(leaf_index);
    co_return Result<void>{};
}

// Every block of the leaf reads as an error from now on. Segments keep the counts of what it named:
// nothing of that is ever taken for dead unseen.
void BlockMap::lose_leaf(uint64_t leaf_index) {
    PROBE("block_map.leaf_lost");
    CHECK(is_missing(leaf_index));
    const uint64_t first = leaf_index * limits::kLeafBlocks;
    const auto count =
        static_cast<uint32_t>(std::min<uint64_t>(limits::kLeafBlocks, block_count_ - first));
    std::array<LeafItem, format::kLeafEntryCount> items;
    for (uint32_t i = 0; i < count; ++i)
        items[i] = {i, {Place::lost(), 0, 0}};
    auto* leaf = new Leaf(this, leaf_index);
    slot_of(leaf_index)->leaf = leaf;
    cache_.charge(*leaf);
    // Changed by this record, whatever else the record does to it: a relocation that finds its
    // entry lost is passed over for good, so the old page must not come back.
    leaf_for_change(leaf_index).assign(std::span(items).first(count));
    leaf_changed(leaf_index);
    lost_count_ += count;
    ++loss_changes_;
    orphan_count_max_ += limits::kLeafBlocks;
    merge_unread(leaf_index);
}

void BlockMap::evict(Leaf& leaf) {
    Slot& slot = *slot_of(leaf.index_);
    CHECK(slot.leaf == &leaf && leaf.clean_ && leaf.pins_ == 0);
    CHECK(!interior_of(leaf.index_).dirty[slot_number(leaf.index_)]);
    destroy_leaf(slot);
}

void BlockMap::destroy_leaf(Slot& slot) {
    Leaf* leaf = std::exchange(slot.leaf, nullptr);
    if (!is_leaf(leaf)) return;
    cache_.discharge(*leaf);
    delete leaf;
}

// Sets a leaf's state at the running checkpoint's cut aside.
void BlockMap::capture(Interior& interior, uint64_t leaf_index) {
    const uint32_t number = slot_number(leaf_index);
    const Leaf* leaf = interior.slots[number].leaf;
    interior.pending[number] = false;
    std::array<LeafItem, format::kLeafEntryCount> items;
    const uint32_t count = is_leaf(leaf) ? leaf->items(items) : 0;
    interior.captured.push_back({leaf_index, {items.begin(), items.begin() + count}});
}

// The leaf, in RAM, marked as changed; what a running checkpoint still needs of it is set aside.
// Requires: !is_missing(leaf_index).
Leaf& BlockMap::leaf_for_change(uint64_t leaf_index) {
    const uint64_t interior_index = leaf_index / kSlotCount;
    if (!interiors_[interior_index]) make_interior(interior_index);
    Interior& interior = *interiors_[interior_index];
    const uint32_t number = slot_number(leaf_index);
    Slot& slot = interior.slots[number];
    CHECK(!is_missing(leaf_index));
    if (interior.pending[number]) capture(interior, leaf_index);
    if (!interior.dirty[number]) ++dirty_leaf_count_;
    interior.dirty[number] = true;
    if (!is_leaf(slot.leaf)) {
        slot.leaf = new Leaf(this, leaf_index);
        cache_.charge(*slot.leaf);
    }
    cache_.mark_dirty(*slot.leaf);
    return *slot.leaf;
}

// Ends a change: accounts for memory; a leaf that maps nothing any more needs no object.
void BlockMap::leaf_changed(uint64_t leaf_index) {
    Slot& slot = *slot_of(leaf_index);
    if (slot.leaf->mapped_count() == 0 && slot.leaf->pins_ == 0) {
        destroy_leaf(slot);
        slot.leaf = emptied();
        return;
    }
    cache_.charge(*slot.leaf);
}

// An entry is replaced or freed.
void BlockMap::count_out(const MapEntry& old) {
    if (old.is_block()) segments_.count_live(old.place.segment_index(), -1);
    // Too high after a leaf was lost twice, so never below nothing.
    if (old.is_lost() && lost_count_ != 0 && --lost_count_ == 0) ++loss_changes_;
}

void BlockMap::set_entry(Leaf& leaf, uint32_t block, MapEntry entry) {
    const MapEntry old = leaf.exchange(block, entry);
    if (old.place == entry.place) return;
    count_out(old);
    if (entry.is_block()) segments_.count_live(entry.place.segment_index(), 1);
}

// Apply ----------------------------------------------------------------------------------------

Result<void> BlockMap::check_entry(Lba lba, const MapEntry& entry) const {
    if (lba.value >= block_count_) {
        return fail(Code::corrupt, "a record maps LBA {} of volume {}, which has {} blocks", lba,
                    identity_.volume, block_count_);
    }
    if (!entry) return {};
    const SegmentEntry* segment = segments_.find(entry.place.segment_index());
    if (!entry.place.is_valid_as(format::PlaceKind::block) || segment == nullptr ||
        segment->kind == static_cast<uint8_t>(format::SegmentKind::map)) {
        return fail(Code::corrupt,
                    "a record maps LBA {} of volume {} to segment index {}, which is no data "
                    "segment of it",
                    lba, identity_.volume, entry.place.segment_index());
    }
    return {};
}

Result<void> BlockMap::check(const MapChange& change) const {
    uint64_t end = 0;
    for (const ZeroExtent& zero : change.zeros) {
        if (zero.first.value < end || zero.first.value > block_count_ ||
            zero.block_count > block_count_ - zero.first.value) {
            return fail(Code::corrupt, "a record zeroes {}+{} of volume {} with {} blocks",
                        zero.first, zero.block_count, identity_.volume, block_count_);
        }
        end = zero.first.value + zero.block_count;
    }
    end = 0;
    for (const MapUpdate& update : change.updates) {
        CHECK(update.lba.value >= end, "updates are not sorted at LBA {}", update.lba);
        TRY(check_entry(update.lba, update.entry));
        end = update.lba.value + 1;
    }
    end = 0;
    for (const Relocation& move : change.relocations) {
        CHECK(move.lba.value >= end && move.entry, "relocations are not sorted at {}", move.lba);
        TRY(check_entry(move.lba, move.entry));
        end = move.lba.value + 1;
    }
    return {};
}

Task<Result<void>> BlockMap::apply(MapChange change) {
    CHECK(!applying_, "two applies at once");
    CHECK(change.lsn >= applied_lsn_, "LSN {} after {}", change.lsn, applied_lsn_);
    CHECK(!failed_lsn_ || *failed_lsn_ == change.lsn, "the apply of LSN {} has to be repeated",
          *failed_lsn_);
    CO_TRY(check(change));
    applying_ = true;
    unread_now_.clear();
    Result<void> result = co_await apply_all(change);
    applying_ = false;
    failed_lsn_ = result ? std::nullopt : std::optional(change.lsn);
    if (result) applied_lsn_ = change.lsn;
    co_return result;
}

Task<Result<void>> BlockMap::apply_all(MapChange change) {
    if (FAULT("volume.map.leaves_are_away"))
        co_return fail(Code::busy, "the map's leaves cannot be read now: as a test wishes");
    for (const ZeroExtent& loss : change.losses) {
        if (loss.block_count != 0) CO_TRY(co_await apply_loss(loss));
    }
    for (const ZeroExtent& zero : change.zeros) {
        if (zero.block_count != 0) CO_TRY(co_await apply_zero(zero));
    }
    const Steps updates{change.updates, {}};
    CO_TRY(co_await apply_steps(updates));
    const Steps moves{{}, change.relocations};
    CO_TRY(co_await apply_steps(moves));
    co_return Result<void>{};
}

// Carries out the steps from `at` on that are in one leaf; returns the first after them.
size_t BlockMap::apply_to_leaf(const Steps& steps, size_t at) {
    const uint64_t leaf_index = steps.leaf_index(at);
    Leaf* leaf = nullptr;
    for (; at < steps.size() && steps.leaf_index(at) == leaf_index; ++at) {
        const auto block = static_cast<uint32_t>(steps.lba(at) % limits::kLeafBlocks);
        if (steps.updates.empty()) {
            const Slot* slot = slot_of(leaf_index);
            if (slot == nullptr || !is_leaf(slot->leaf)) continue;
            bool is_same = slot->leaf->get(block).place == steps.relocations[at].old_place;
            if (!is_same && !PLANTED("clean.undoes_overwrites")) continue;
        } else if (block % 64 == 0 && PLANTED("map.skips_an_update")) {
            continue;
        }
        if (leaf == nullptr) leaf = &leaf_for_change(leaf_index);
        set_entry(*leaf, block, steps.entry(at));
    }
    if (leaf != nullptr) leaf_changed(leaf_index);
    return at;
}

Task<Result<void>> BlockMap::apply_steps(Steps steps) {
    std::vector<LeafPin> pins;
    size_t turn_end = kStepsPerTurn;
    for (size_t at = 0; at < steps.size();) {
        if (at >= turn_end) {
            turn_end = at + kStepsPerTurn;
            co_await runtime::yield();
        }
        if (!is_missing(steps.leaf_index(at))) {
            at = apply_to_leaf(steps, at);
            continue;
        }
        if (is_unread(steps.leaf_index(at))) {
            at = apply_to_unread(steps, at);
            continue;
        }
        // Load what is missing from here on, side by side; it stays pinned until the next window.
        pins.clear();
        std::vector<uint64_t> missing;
        for (size_t i = at; i < steps.size() && missing.size() < kApplyWindow; ++i) {
            const uint64_t leaf_index = steps.leaf_index(i);
            if (!missing.empty() && missing.back() == leaf_index) continue;
            if (is_missing(leaf_index) && !is_unread(leaf_index)) missing.push_back(leaf_index);
        }
        CO_TRY(co_await fetch_to_change(std::move(missing), &pins));
    }
    co_return Result<void>{};
}

uint64_t BlockMap::next_mapped(uint64_t leaf_index, uint64_t end) {
    while (leaf_index < end) {
        const Slot* slot = slot_of(leaf_index);
        if (slot == nullptr) {
            leaf_index = (leaf_index / kSlotCount + 1) * kSlotCount;
        } else if (is_leaf(slot->leaf) || (slot->leaf == nullptr && slot->page)) {
            return leaf_index;
        } else {
            ++leaf_index;
        }
    }
    return end;
}

void BlockMap::zero_in_leaf(uint64_t leaf_index, uint32_t first, uint32_t end) {
    std::array<LeafItem, format::kLeafEntryCount> items;
    const uint32_t count = slot_of(leaf_index)->leaf->items(items);
    Leaf* leaf = nullptr;
    for (const LeafItem& item : std::span(items).first(count)) {
        if (item.index < first || item.index >= end) continue;
        if (leaf == nullptr) leaf = &leaf_for_change(leaf_index);
        count_out(item.entry);
        if (first != 0 || end != limits::kLeafBlocks) leaf->exchange(item.index, {});
    }
    if (leaf == nullptr) return;
    if (first == 0 && end == limits::kLeafBlocks) leaf->assign({});
    leaf_changed(leaf_index);
}

Task<Result<void>> BlockMap::apply_zero(ZeroExtent extent) {
    const uint64_t begin = extent.first.value, end = begin + extent.block_count;
    const uint64_t leaf_end = div_up(end, limits::kLeafBlocks);
    std::vector<LeafPin> pins;
    size_t steps = 0;
    uint64_t leaf_index = next_mapped(begin / limits::kLeafBlocks, leaf_end);
    while (leaf_index < leaf_end) {
        if (++steps % 64 == 0) co_await runtime::yield();
        const uint64_t leaf_begin = leaf_index * limits::kLeafBlocks;
        const uint64_t first = std::max(begin, leaf_begin) - leaf_begin;
        const uint64_t last = std::min(end, leaf_begin + limits::kLeafBlocks) - leaf_begin;
        if (is_missing(leaf_index) && is_unread(leaf_index)) {
            zero_unread(leaf_index, static_cast<uint32_t>(first), static_cast<uint32_t>(last));
            leaf_index = next_mapped(leaf_index + 1, leaf_end);
            continue;
        }
        if (is_missing(leaf_index)) {
            pins.clear();
            std::vector<uint64_t> missing;
            for (uint64_t i = leaf_index; i < leaf_end && missing.size() < kApplyWindow;
                 i = next_mapped(i + 1, leaf_end)) {
                if (is_missing(i) && !is_unread(i)) missing.push_back(i);
            }
            CO_TRY(co_await fetch_to_change(std::move(missing), &pins));
            continue;
        }
        if (is_leaf(slot_of(leaf_index)->leaf)) {
            // Its own pin must not keep the emptied leaf in RAM.
            std::erase_if(
                pins, [&](const LeafPin& pin) { return pin.leaf() == slot_of(leaf_index)->leaf; });
            zero_in_leaf(leaf_index, static_cast<uint32_t>(first), static_cast<uint32_t>(last));
        }
        leaf_index = next_mapped(leaf_index + 1, leaf_end);
    }
    co_return Result<void>{};
}

Task<Result<void>> BlockMap::apply_loss(ZeroExtent extent) {
    const uint64_t begin = extent.first.value, end = begin + extent.block_count;
    CHECK(begin <= block_count_ && extent.block_count <= block_count_ - begin);
    for (uint64_t first = begin; first < end;) {
        const uint64_t leaf_index = first / limits::kLeafBlocks;
        const uint64_t leaf_end = std::min(end, (leaf_index + 1) * limits::kLeafBlocks);
        std::vector<LeafPin> pins;
        if (is_missing(leaf_index)) CO_TRY(co_await fetch_to_change({leaf_index}, &pins));
        if (is_missing(leaf_index)) lose_leaf(leaf_index);
        Leaf& leaf = leaf_for_change(leaf_index);
        for (; first < leaf_end; ++first) {
            const auto block = static_cast<uint32_t>(first % limits::kLeafBlocks);
            if (leaf.get(block).is_lost()) continue;
            set_entry(leaf, block, {Place::lost(), 0, 0});
            ++lost_count_;
        }
        pins.clear();
        leaf_changed(leaf_index);
        ++loss_changes_;
        co_await runtime::yield();
    }
    co_return Result<void>{};
}

void BlockMap::grow(Lsn lsn, uint64_t block_count) {
    CHECK(!applying_ && !failed_lsn_ && lsn >= applied_lsn_);
    CHECK(block_count >= block_count_ && block_count <= kBlockCountMax);
    applied_lsn_ = lsn;
    block_count_ = block_count;
    // The last interior page was as short as the volume.
    if (!interiors_.empty() && interiors_.back()) {
        Interior& last = *interiors_.back();
        const uint32_t slot_count = slot_count_of(interiors_.size() - 1);
        auto slots = std::make_unique<Slot[]>(slot_count);
        std::copy_n(last.slots.get(), last.slot_count, slots.get());
        last.slots = std::move(slots);
        last.slot_count = slot_count;
    }
    interiors_.resize(div_up(block_count_, kInteriorBlocks));
}

}  // namespace peplos::volume
