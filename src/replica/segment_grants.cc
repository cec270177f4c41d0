#include "replica/segment_grants.h"

namespace peplos::replica {

using runtime::Task;

SegmentGrants::Pass::Pass(Volume* volume) : volume_(volume), turn_(volume->turn) {
    ++volume_->under_newest;
}

SegmentGrants::Pass::~Pass() {
    if (volume_ == nullptr) return;
    uint64_t& count = turn_ == volume_->turn ? volume_->under_newest : volume_->under_older;
    CHECK(count > 0);
    if (--count == 0) volume_->changed.wake_all();
}

Result<SegmentGrants::Volume*> SegmentGrants::admit(VolumeId id, const Claim& claim) {
    auto found = volumes_.find(id);
    bool is_older = found != volumes_.end() && claim.epoch < found->second.newest.epoch;
    if (!claim.owner || !claim.epoch || is_older || !admits_(id, claim)) {
        return fail(Code::fenced, "volume {}: epoch {} may not change its segments any more", id,
                    claim.epoch);
    }
    Volume& volume = volumes_[id];
    if (volume.newest != claim) {
        volume.newest = claim;
        volume.under_older += std::exchange(volume.under_newest, 0);
        ++volume.turn;
    }
    return &volume;
}

Result<SegmentGrants::Pass> SegmentGrants::enter(VolumeId id, const Claim& claim) {
    TRY_ASSIGN(Volume * volume, admit(id, claim));
    return Pass(volume);
}

Result<SegmentGrants::Pass> SegmentGrants::enter(VolumeId id, const Claim& claim,
                                                 const SegmentId& segment) {
    TRY_ASSIGN(Volume * volume, admit(id, claim));
    auto found = grants_.find(segment);
    if (found == grants_.end() || found->second.volume != id || found->second.claim != claim) {
        return fail(Code::unavailable,
                    "segment {}: no grant to write it; it is sealed, or this node started anew "
                    "since it was made",
                    segment);
    }
    return Pass(volume);
}

Result<void> SegmentGrants::grant(VolumeId id, const Claim& claim, const SegmentId& segment) {
    TRY(admit(id, claim));
    grants_[segment] = {id, claim};
    return {};
}

Task<Result<void>> SegmentGrants::settle(VolumeId id, Claim claim) {
    CO_TRY_ASSIGN(Volume * volume, admit(id, claim));
    while (volume->under_older != 0)
        co_await volume->changed.wait();
    CO_TRY(admit(id, claim));
    co_return Result<void>{};
}

}  // namespace peplos::replica
