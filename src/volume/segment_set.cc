#include "volume/segment_set.h"

#include <algorithm>

#include "media/segment_stores.h"

namespace peplos::volume {

using runtime::Task;

SegmentSet::SegmentSet(SpaceBudget& space, VolumeId volume, LineageId lineage, Epoch epoch,
                       std::unique_ptr<SegmentPeers> peers)
    : space_(space), volume_(volume), lineage_(lineage), epoch_(epoch), peers_(std::move(peers)) {
    if (!peers_) return;
    peers_->on_mended([this](const SegmentId& id) { refresh(id); });
}

Task<Result<SegmentHandle>> SegmentSet::create_bare(SegmentId id, format::SegmentKind kind,
                                                    uint64_t bytes, media::Purpose purpose) {
    if (has_copies()) co_return co_await peers_->create(id, kind, bytes, purpose);
    media::SegmentWish wish{id, lineage_, volume_, {}, kind, bytes, purpose};
    CO_TRY_ASSIGN(media::PlacedSegment made,
                  co_await media::create_on_emptiest(space_.stores(), wish));
    co_return SegmentHandle(std::move(made.pin), made.store);
}

Task<Result<SegmentHandle>> SegmentSet::create(format::SegmentKind kind, uint8_t lifetime_class,
                                               uint64_t bytes, media::Purpose purpose) {
    SegmentId id{volume_, static_cast<uint32_t>(epoch_.value), ++sequence_};
    CO_TRY_ASSIGN(SegmentHandle handle, co_await create_bare(id, kind, bytes, purpose));
    Buffer header = Buffer::allocate(kBlockBytes);
    format::encode_segment_header(header_of(id, kind, lifetime_class), header.bytes());
    std::vector<Buffer> from{std::move(header)};
    auto written = co_await handle.write_vector(format::kSegmentHeaderOffset, std::move(from),
                                                runtime::Durability::volatile_);
    if (written) co_return handle;
    if (handle.copies()) std::ignore = co_await remove(id);
    co_return fail(std::move(written).error());
}

bool SegmentSet::has_room(uint64_t bytes, media::Purpose purpose) const {
    bool has_here = std::ranges::any_of(space_.stores(), [&](const media::SegmentStore* store) {
        return store->has_room(bytes, purpose);
    });
    return has_here && (!has_copies() || peers_->has_room(bytes, purpose));
}

uint64_t SegmentSet::free_units() const {
    return has_copies() ? std::min(space_.free_units(), peers_->free_units()) : space_.free_units();
}

int64_t SegmentSet::headroom_units() const {
    int64_t here = space_.headroom_units();
    if (!has_copies()) return here;
    int64_t there = peers_->headroom_units();
    if (there == INT64_MAX) return here;
    return std::min(here, there - static_cast<int64_t>(space_.promised_units()));
}

bool SegmentSet::try_promise(uint64_t units) {
    if (has_copies() && !peers_->make_headroom(space_.promised_units() + units)) return false;
    return space_.try_promise(units);
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

SegmentHandle SegmentSet::locate(const SegmentId& id, GroupId group) const {
    media::PlacedSegment here = media::find_on(space_.stores(), id);
    CopiesRef copies;
    if (peers_) copies = peers_->find(id, group, here.pin);
    return {std::move(here.pin), here.store, std::move(copies)};
}

Error SegmentSet::not_located(Code code, std::string what) const {
    if (!peers_ || peers_->unanswered().empty())
        return Error(code, what + " is on none of this node's devices");
    std::string away;
    for (NodeId node : peers_->unanswered())
        away += fmt::format("{}{}", away.empty() ? "" : ", ", node);
    return Error(Code::unavailable,
                 fmt::format("{} is on no node that answers; away: {}", what, away));
}

void SegmentSet::put(uint32_t index, SegmentHandle handle) {
    if (index >= handles_.size()) handles_.resize(index + 1);
    handles_[index] = std::move(handle);
}

void SegmentSet::forget(uint32_t index, const SegmentId& id) {
    if (find(index) != nullptr && find(index)->id() == id) handles_[index] = {};
}

void SegmentSet::clear() {
    if (peers_) peers_->close();
    handles_.clear();
}

uint64_t SegmentSet::stored_bytes() const {
    uint64_t sum = 0;
    for (const SegmentHandle& handle : handles_) {
        if (handle) sum += handle.bytes();
    }
    return sum;
}

Task<Result<void>> SegmentSet::remove(SegmentId id) {
    if (peers_) co_return co_await peers_->remove(id);
    // Copied: a device may be added meanwhile.
    const std::vector<media::SegmentStore*> stores = space_.stores();
    for (media::SegmentStore* store : stores) {
        if (!store->find(id)) continue;
        auto removed = co_await store->remove(id);
        if (!removed && removed.error().code() != Code::not_found) {
            co_return fail(std::move(removed).error());
        }
    }
    co_return Result<void>{};
}

Task<Result<void>> SegmentSet::sync(std::vector<SegmentHandle> handles) {
    bool is_here_alone =
        std::ranges::all_of(handles, [](const SegmentHandle& handle) { return !handle.copies(); });
    if (!is_here_alone) co_return co_await peers_->sync(std::move(handles));
    std::vector<media::SegmentStore*> stores = space_.stores();
    for (media::SegmentStore* store : stores)
        CO_TRY(co_await store->sync());
    co_return Result<void>{};
}

Task<Result<void>> SegmentSet::adopt(SegmentHandle handle) {
    if (!handle.copies()) co_return Result<void>{};
    co_return co_await peers_->adopt(std::move(handle));
}

Task<Result<bool>> SegmentSet::mend_here(SegmentHandle handle) {
    const SegmentId id = handle.id();
    CO_TRY_ASSIGN(bool is_mended, co_await peers_->mend_here(std::move(handle)));
    if (is_mended) refresh(id);
    co_return is_mended;
}

// Its copy on this node is another one now.
void SegmentSet::refresh(const SegmentId& id) {
    for (SegmentHandle& handle : handles_) {
        if (handle && handle.id() == id) handle = locate(id, handle.group());
    }
}

}  // namespace peplos::volume
