#include "volume/overlay.h"

#include <algorithm>

namespace peplos::volume {

void ExtentSet::add(uint64_t first, uint64_t end) {
    CHECK(first < end);
    auto it = ranges_.upper_bound(first);
    if (it != ranges_.begin() && std::prev(it)->second >= first) --it;
    while (it != ranges_.end() && it->first <= end) {
        first = std::min(first, it->first);
        end = std::max(end, it->second);
        it = ranges_.erase(it);
    }
    ranges_.emplace_hint(it, first, end);
}

uint64_t ExtentSet::end_of_range_with(uint64_t lba) const {
    auto it = ranges_.upper_bound(lba);
    if (it == ranges_.begin()) return 0;
    --it;
    return lba < it->second ? it->second : 0;
}

uint64_t Overlay::put(uint64_t lba, OverlayEntry entry) {
    bool is_data = !entry.is_reference();
    auto [it, is_new] = active_.blocks.try_emplace(lba);
    uint64_t superfluous = 0;
    if (!is_new && !it->second.is_reference()) {
        --active_.data_blocks;
        superfluous = 1;
    }
    if (!is_new) {
        // Never 0: a record holds a block once. Bounded by what fits in here.
        uint64_t lifespan = entry.lsn.value - it->second.lsn.value;
        entry.lifespan = static_cast<uint32_t>(std::min<uint64_t>(lifespan, UINT32_MAX));
    }
    it->second = std::move(entry);
    if (is_data) ++active_.data_blocks;
    return superfluous;
}

uint64_t Overlay::put_zero(uint64_t first, uint64_t block_count) {
    uint64_t end = first + block_count;
    auto& blocks = active_.blocks;
    uint64_t superfluous = 0;
    auto drop = [&](auto it) {
        if (!it->second.is_reference()) ++superfluous;
        return blocks.erase(it);
    };
    if (block_count <= blocks.size()) {
        for (uint64_t lba = first; lba < end; ++lba) {
            if (auto it = blocks.find(lba); it != blocks.end()) drop(it);
        }
    } else {
        for (auto it = blocks.begin(); it != blocks.end();) {
            if (it->first >= first && it->first < end) {
                auto victim = it++;
                drop(victim);
            } else {
                ++it;
            }
        }
    }
    active_.data_blocks -= superfluous;
    active_.zeros.add(first, end);
    return superfluous;
}

void Overlay::freeze(Lsn last_lsn) {
    CHECK(!has_frozen_);
    frozen_ = std::move(active_);
    frozen_.last_lsn = last_lsn;
    active_ = OverlayGeneration{};
    has_frozen_ = true;
}

OverlayGeneration Overlay::drop_frozen() {
    CHECK(has_frozen_);
    has_frozen_ = false;
    return std::exchange(frozen_, OverlayGeneration{});
}

uint64_t Overlay::clear() {
    uint64_t count = data_blocks();
    active_ = OverlayGeneration{};
    frozen_ = OverlayGeneration{};
    has_frozen_ = false;
    return count;
}

}  // namespace peplos::volume
