#include "volume/resources.h"

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

uint64_t SpaceBudget::available_units() const {
    uint64_t free = 0, held = promised_units_;
    for (const media::SegmentStore* store : stores_) {
        media::SegmentSpace space = store->space();
        free += space.free_units;
        held += space.reserve_units;
    }
    return free > held ? free - held : 0;
}

}  // namespace peplos::volume
