#include "media/segment_stores.h"

#include <algorithm>

namespace peplos::media {

using runtime::Task;

Task<Result<PlacedSegment>> create_on_emptiest(std::vector<SegmentStore*> stores,
                                               SegmentWish wish) {
    std::ranges::sort(stores, [](const auto* a, const auto* b) {
        return a->space().free_units > b->space().free_units;
    });
    for (SegmentStore* store : stores) {
        auto pin = co_await store->create(wish.id, wish.lineage, wish.volume, wish.kind, wish.bytes,
                                          wish.purpose, wish.group);
        if (!pin && pin.error().code() == Code::no_space) continue;
        if (!pin) co_return fail(std::move(pin).error());
        co_return PlacedSegment{std::move(*pin), store};
    }
    co_return fail(Code::no_space,
                   "no device has room for a segment of {} bytes of volume {}: free or add space",
                   wish.bytes, wish.volume);
}

PlacedSegment find_on(const std::vector<SegmentStore*>& stores, const SegmentId& id) {
    for (SegmentStore* store : stores) {
        if (SegmentPin pin = store->find(id)) return {std::move(pin), store};
    }
    return {};
}

}  // namespace peplos::media
