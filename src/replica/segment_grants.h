#pragma once

#include <functional>
#include <map>
#include <unordered_map>

#include "replica/protocol.h"
#include "runtime/sync.h"

namespace peplos::replica {

// Who may change the segments that this node holds (DESIGN P4): for calls from other nodes and for
// owners on this one alike. It remembers nothing over a restart.
//
// Invariants
//   1. A change begins only under a claim that `admits` lets through and that is not older than
//      the newest seen.
//   2. The bytes of a segment change only under a grant. Creating or adopting it gives one, to that
//      claim, in this life of the process; the seal ends it.
//   3. Once settle(claim) has resolved, no change of another claim is under way or begins.
// Relax 2 and a sync after a power cut vouches for writes that the cut took; relax 3 and a payload
// of the old owner lands on the index that the new one wrote.
class SegmentGrants {
  public:
    // Whether this claim may still change the volume's segments: no newer fence was seen.
    using Admits = std::function<bool(VolumeId, const Claim&)>;
    explicit SegmentGrants(Admits admits) : admits_(std::move(admits)) {}
    SegmentGrants(const SegmentGrants&) = delete;
    SegmentGrants& operator=(const SegmentGrants&) = delete;

  private:
    struct Volume {
        Claim newest;
        uint64_t under_newest = 0;  // changes under way
        uint64_t under_older = 0;
        uint64_t turn = 0;  // counts the claims
        runtime::WaitList changed;
    };

  public:
    // One change under way. It does not outlive the grants.
    class [[nodiscard]] Pass {
      public:
        Pass(Pass&& other) noexcept
            : volume_(std::exchange(other.volume_, nullptr)), turn_(other.turn_) {}
        Pass& operator=(Pass&&) = delete;
        ~Pass();

      private:
        friend class SegmentGrants;
        explicit Pass(Volume* volume);
        Volume* volume_;
        uint64_t turn_;
    };

    // Begins a change that needs no grant. Errors: fenced.
    Result<Pass> enter(VolumeId volume, const Claim& claim);
    // Begins one of the bytes of a segment. Errors: fenced, unavailable (no grant: this process
    // began after the segment did, or it is sealed).
    Result<Pass> enter(VolumeId volume, const Claim& claim, const SegmentId& id);
    // Errors: fenced.
    Result<void> grant(VolumeId volume, const Claim& claim, const SegmentId& id);
    void end(const SegmentId& id) { grants_.erase(id); }
    // Waits for the changes that older claims have under way. Errors: fenced.
    runtime::Task<Result<void>> settle(VolumeId volume, Claim claim);

    size_t grant_count() const { return grants_.size(); }

  private:
    struct Grant {
        VolumeId volume;
        Claim claim;
    };
    Result<Volume*> admit(VolumeId volume, const Claim& claim);

    const Admits admits_;
    std::map<VolumeId, Volume> volumes_;
    std::unordered_map<SegmentId, Grant> grants_;  // of segments that are not sealed
};

}  // namespace peplos::replica
