#include "media/unit_allocator.h"

#include <bit>

#include "base/check.h"

namespace peplos::media {
namespace {

uint32_t order_of(uint32_t units) {
    return static_cast<uint32_t>(std::countr_zero(units));
}

bool is_run(uint32_t first_unit, uint32_t units) {
    return std::has_single_bit(units) && units <= UnitAllocator::kSlotUnits &&
           first_unit % units == 0;
}

}  // namespace

UnitAllocator::UnitAllocator(uint32_t unit_count)
    : unit_count_(unit_count), free_units_(unit_count) {
    uint32_t unit = 0;
    while (unit < unit_count) {
        uint32_t units = kSlotUnits;
        while (unit % units != 0 || units > unit_count - unit)
            units /= 2;
        free_[order_of(units)].insert(unit);
        unit += units;
    }
}

std::optional<uint32_t> UnitAllocator::allocate(uint32_t units) {
    CHECK(is_run(0, units));
    // The smallest run that fits keeps the large ones whole.
    for (uint32_t order = order_of(units); order < kOrderCount; ++order) {
        if (free_[order].empty()) continue;
        uint32_t first = *free_[order].begin();
        CHECK(take(first, units));
        return first;
    }
    return std::nullopt;
}

bool UnitAllocator::take(uint32_t first_unit, uint32_t units) {
    CHECK(is_run(first_unit, units) && first_unit < unit_count_);
    auto run = run_of(first_unit);
    if (!run || (1u << run->second) < units) return false;
    uint32_t start = run->first;
    uint32_t order = run->second;
    free_[order].erase(start);
    // Halve until the wanted run stands alone; the other halves stay free.
    while ((1u << order) > units) {
        --order;
        uint32_t half = 1u << order;
        if (first_unit >= start + half) {
            free_[order].insert(start);
            start += half;
        } else {
            free_[order].insert(start + half);
        }
    }
    CHECK(start == first_unit);
    free_units_ -= units;
    return true;
}

void UnitAllocator::release(uint32_t first_unit, uint32_t units) {
    CHECK(is_run(first_unit, units) && units <= unit_count_ - first_unit);
    CHECK(!run_of(first_unit), "unit {} is free already", first_unit);
    free_units_ += units;
    uint32_t order = order_of(units);
    while (order + 1 < kOrderCount) {
        uint32_t buddy = first_unit ^ (1u << order);
        auto found = free_[order].find(buddy);
        if (found == free_[order].end()) break;
        free_[order].erase(found);
        first_unit = std::min(first_unit, buddy);
        ++order;
    }
    free_[order].insert(first_unit);
}

uint32_t UnitAllocator::largest_free_run() const {
    for (uint32_t order = kOrderCount; order-- > 0;) {
        if (!free_[order].empty()) return 1u << order;
    }
    return 0;
}

bool UnitAllocator::is_free(uint32_t unit) const {
    return run_of(unit).has_value();
}

std::optional<std::pair<uint32_t, uint32_t>> UnitAllocator::run_of(uint32_t unit) const {
    for (uint32_t order = 0; order < kOrderCount; ++order) {
        uint32_t start = unit & ~((1u << order) - 1);
        if (free_[order].contains(start)) return std::pair(start, order);
    }
    return std::nullopt;
}

}  // namespace peplos::media
