#include "volume/resources.h"

#include <algorithm>

namespace peplos::volume {

bool SpaceBudget::try_promise(uint64_t units) {
    if (units > available_units()) return false;
    promised_units_ += units;
    return true;
}

uint64_t SpaceBudget::free_units() const {
    uint64_t sum = 0;
    for (const media::SegmentStore* store : stores_)
        sum += store->space().free_units;
    return sum;
}

uint64_t SpaceBudget::total_units() const {
    uint64_t sum = 0;
    for (const media::SegmentStore* store : stores_)
        sum += store->space().total_units;
    return sum;
}

uint64_t SpaceBudget::reserve_units() const {
    uint64_t sum = 0;
    for (const media::SegmentStore* store : stores_)
        sum += store->space().reserve_units;
    return sum;
}

int64_t SpaceBudget::headroom_units() const {
    int64_t units = -static_cast<int64_t>(promised_units_);
    for (const media::SegmentStore* store : stores_) {
        media::SegmentSpace space = store->space();
        units += int64_t{space.free_units} - int64_t{space.reserve_units};
    }
    return units;
}

uint64_t SpaceBudget::available_units() const {
    return static_cast<uint64_t>(std::max<int64_t>(headroom_units(), 0));
}

}  // namespace peplos::volume
