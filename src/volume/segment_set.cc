#include "volume/segment_set.h"

#include <algorithm>

namespace peplos::volume {

using runtime::Task;

Task<Result<SegmentHandle>> SegmentSet::create(format::SegmentKind kind, uint8_t lifetime_class,
                                               uint64_t bytes, media::Purpose purpose) {
    SegmentId id{volume_, static_cast<uint32_t>(epoch_.value), ++sequence_};
    std::vector<media::SegmentStore*> stores = space_.stores();
    std::ranges::sort(stores, [](const auto* a, const auto* b) {
        return a->space().free_units > b->space().free_units;
    });
    for (media::SegmentStore* store : stores) {
        auto pin = co_await store->create(id, lineage_, volume_, kind, bytes, purpose);
        if (!pin && pin.error().code() == Code::no_space) continue;
        if (!pin) co_return fail(std::move(pin).error());
        Buffer header = Buffer::allocate(kBlockBytes);
        format::encode_segment_header(header_of(id, kind, lifetime_class), header.bytes());
        std::vector<Buffer> from{std::move(header)};
        auto written = co_await store->write_vector(
            *pin, format::kSegmentHeaderOffset, std::move(from), runtime::Durability::volatile_);
        if (!written) co_return fail(std::move(written).error());
        co_return SegmentHandle{std::move(*pin), store};
    }
    co_return fail(Code::no_space,
                   "no device has room for a segment of {} bytes of volume {}: free or add space",
                   bytes, volume_);
}

bool SegmentSet::has_room(uint64_t bytes, media::Purpose purpose) const {
    return std::ranges::any_of(space_.stores(), [&](const media::SegmentStore* store) {
        return store->has_room(bytes, purpose);
    });
}

format::SegmentHeader SegmentSet::header_of(SegmentId id, format::SegmentKind kind,
                                            uint8_t lifetime_class) const {
    format::SegmentHeader header;
    header.id = id;
    header.volume = volume_;
    header.lineage = lineage_;
    header.epoch = epoch_;
    header.kind = kind;
    header.lifetime_class = lifetime_class;
    return header;
}

SegmentHandle SegmentSet::locate(const SegmentId& id) const {
    for (media::SegmentStore* store : space_.stores()) {
        if (media::SegmentPin pin = store->find(id)) return {std::move(pin), store};
    }
    return {};
}

void SegmentSet::put(uint32_t index, SegmentHandle handle) {
    if (index >= handles_.size()) handles_.resize(index + 1);
    handles_[index] = std::move(handle);
}

void SegmentSet::forget(uint32_t index, const SegmentId& id) {
    if (find(index) != nullptr && find(index)->id() == id) handles_[index] = {};
}

uint64_t SegmentSet::stored_bytes() const {
    uint64_t sum = 0;
    for (const SegmentHandle& handle : handles_) {
        if (handle) sum += handle.bytes();
    }
    return sum;
}

Task<Result<void>> SegmentSet::remove(SegmentId id) {
    for (media::SegmentStore* store : space_.stores()) {
        if (!store->find(id)) continue;
        auto removed = co_await store->remove(id);
        if (!removed && removed.error().code() != Code::not_found) {
            co_return fail(std::move(removed).error());
        }
    }
    co_return Result<void>{};
}

Task<Result<void>> SegmentSet::sync_all() {
    std::vector<media::SegmentStore*> stores = space_.stores();
    for (media::SegmentStore* store : stores)
        CO_TRY(co_await store->sync());
    co_return Result<void>{};
}

}  // namespace peplos::volume
