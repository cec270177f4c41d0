#pragma once

#include <deque>
#include <set>
#include <vector>

#include "media/segment_stores.h"
#include "peer/server.h"
#include "replica/placement.h"
#include "replica/segment_grants.h"
#include "runtime/env.h"
#include "runtime/gate.h"

namespace peplos::replica {

// This node's segments, for whoever owns the volumes: serves the calls of RemoteSegments, and
// repairs this node's copies from those of others.
//
// Invariants
//   1. What SegmentGrants says of changes holds.
//   2. A segment is changed only for the volume that it belongs to.
//   3. A copy is replaced only by one that was verified as a whole.
// Lives on one executor. Format: docs/formats/peer-segments.md.
class SegmentService {
  public:
    SegmentService(runtime::Env env, SegmentGrants::Admits admits)
        : env_(env), grants_(std::move(admits)) {}
    SegmentService(const SegmentService&) = delete;
    SegmentService& operator=(const SegmentService&) = delete;

    // Every device that is to serve; each outlives the service.
    void add_store(media::SegmentStore& store) { stores_.push_back(&store); }
    // Where repairs find other copies; none: nothing is repaired.
    void set_placement(Placement* placement) { placement_ = placement; }

    // Serves the calls that come in at `server`, which is not started yet.
    void bind(peer::Server& server);
    // One call. Errors: fenced, not_found, no_space, busy, ... as RemoteSegments says;
    // unsupported (no such method, or another version), corrupt (not a call).
    runtime::Task<Result<peer::Message>> handle(peer::Method method, peer::Message message);

    const SegmentGrants& grants() const { return grants_; }
    NodeSpace space() const;

    // The calls by themselves: for owners on this node, who keep to the same rules.
    runtime::Task<Result<void>> create(SegmentRequest request);
    runtime::Task<Result<void>> write(SegmentRequest request, std::vector<Buffer> payload);
    runtime::Task<Result<void>> sync(SegmentRequest request);
    runtime::Task<Result<void>> shrink(SegmentRequest request);
    runtime::Task<Result<SegmentAnswer>> remove(SegmentRequest request);
    runtime::Task<Result<SegmentAnswer>> list(SegmentRequest request);
    runtime::Task<Result<SegmentAnswer>> adopt(SegmentRequest request);

    // Checks this node's copy, or finds that there is none, and makes it anew out of another
    // node's of the group where it is bad or missing. True: it was made anew.
    // Errors: unavailable (it is not sealed, or no other node has a good copy now; says why),
    // no_space, io_error, busy.
    runtime::Task<Result<bool>> mend(VolumeId volume, LineageId lineage, SegmentCopy copy);
    uint64_t mended_count() const { return mended_count_; }

    // Refuses calls and waits for those that run.
    runtime::Task<void> stop() { co_await gate_.close(); }

  private:
    struct Mending {
        VolumeId volume;
        LineageId lineage;
        SegmentCopy copy;
    };
    runtime::Task<Result<peer::Message>> serve(SegmentMethod method, SegmentRequest request,
                                               std::vector<Buffer> payload);
    runtime::Task<Result<Buffer>> read(SegmentRequest request);
    Result<void> queue_mending(const SegmentRequest& request);
    runtime::Task<void> mend_queued();
    runtime::Task<Result<void>> mend_locked(const Mending& what, media::PlacedSegment had,
                                            media::SegmentInfo like);
    // Of that volume. Errors: not_found.
    Result<media::PlacedSegment> find(VolumeId volume, const SegmentId& id) const;
    bool is_leaving(VolumeId volume) const;

    runtime::Env env_;
    SegmentGrants grants_;
    std::vector<media::SegmentStore*> stores_;
    Placement* placement_ = nullptr;
    std::deque<Mending> mendings_;
    bool is_mending_ = false;
    uint64_t mended_count_ = 0;
    runtime::Mutex mending_;  // one copy at a time is in memory
    runtime::Gate gate_;
};

}  // namespace peplos::replica
