#pragma once

#include <array>
#include <cstdint>
#include <optional>
#include <set>

#include "base/limits.h"

namespace peplos::media {

// Buddy allocation of units (1 MiB each) inside slots of kSlotUnits aligned units. Memory only.
//
// Invariants: a free run has a power-of-two length and is aligned to it; two free buddies are
// always joined; every unit is in exactly one free run or not free.
class UnitAllocator {
  public:
    static constexpr uint32_t kSlotUnits = limits::kSegmentBytesMax / limits::kSegmentUnitBytes;
    static constexpr uint32_t kOrderCount = 6;  // runs of 1, 2, 4, 8, 16 and 32 units
    static_assert(1u << (kOrderCount - 1) == kSlotUnits);

    // All units are free at first. The last slot may be a part of one.
    explicit UnitAllocator(uint32_t unit_count = 0);

    // Takes the lowest fitting run of `units` (a power of two <= kSlotUnits) units.
    std::optional<uint32_t> allocate(uint32_t units);
    // Takes this very run. False when part of it is taken. Requires: in range.
    bool take(uint32_t first_unit, uint32_t units);
    // Requires: the run is taken; aligned to its length, a power of two.
    void release(uint32_t first_unit, uint32_t units);

    uint32_t unit_count() const { return unit_count_; }
    uint32_t free_units() const { return free_units_; }
    uint32_t largest_free_run() const;
    bool is_free(uint32_t unit) const;

  private:
    // The free run that contains `unit`: its start and order.
    std::optional<std::pair<uint32_t, uint32_t>> run_of(uint32_t unit) const;

    uint32_t unit_count_;
    uint32_t free_units_ = 0;
    std::array<std::set<uint32_t>, kOrderCount> free_;  // starts, per order
};

}  // namespace peplos::media
