#pragma once

#include <functional>
#include <map>
#include <set>
#include <unordered_map>
#include <vector>

#include "media/segment_stores.h"
#include "replica/placement.h"
#include "runtime/env.h"
#include "runtime/gate.h"
#include "volume/resources.h"
#include "volume/segment_handle.h"

namespace peplos::volume {

// The copies of one volume's segments on several nodes, while one owner holds the volume.
//
// Invariants
//   1. A segment is sealed only when each of its copies is.
//   2. This node's copy is written under the same grants as others'.
//   3. A segment that was removed keeps its copies as long as a handle of it lives.
//   4. What another node could not be told to remove is told later, or found by the next open.
// Relax 1 and a map names a block that fewer nodes have than was promised. Relax 3 and a read meets
// the bytes of another segment.
class SegmentPeers {
  public:
    SegmentPeers(runtime::Env env, SpaceBudget& space, replica::Placement& placement,
                 replica::SegmentActor actor, uint32_t copies, runtime::Gate& background)
        : env_(env),
          space_(space),
          placement_(placement),
          actor_(actor),
          copies_(copies),
          background_(background) {}
    SegmentPeers(const SegmentPeers&) = delete;
    ~SegmentPeers();

    // Called with the segment whose copy on this node was made anew.
    void on_mended(std::function<void(const SegmentId&)> tell) { tell_mended_ = std::move(tell); }
    // New segments get copies on other nodes.
    bool is_wanted() const { return copies_ > 1; }

    // ---- what is where ----

    // Fences this volume's earlier owners on every other node and asks what it has of the volume.
    // A node that does not answer now is left out. Errors: fenced.
    runtime::Task<Result<void>> survey();
    // Nodes that did not answer; empty: all did.
    const std::vector<NodeId>& unanswered() const { return unanswered_; }
    // What other nodes have of the volume, by the survey.
    std::vector<SegmentId> surveyed() const;
    // Of the segment in that group (0: as this node's copy or the survey says): null where it has
    // none but this node's own.
    CopiesRef find(const SegmentId& id, GroupId group, const media::SegmentPin& pin);
    // Asks the nodes that lack their copy of a sealed segment to make it.
    runtime::Task<void> mend_missing(std::vector<std::pair<SegmentId, GroupId>> sealed);

    // ---- segments ----

    // In a group that can be had now, the header not written. Errors: no_space, unavailable,
    // fenced; io_error (of this node's device).
    runtime::Task<Result<SegmentHandle>> create(SegmentId id, format::SegmentKind kind,
                                                uint64_t bytes, media::Purpose purpose);
    // Errors of the following: see SegmentHandle.
    runtime::Task<Result<void>> write(SegmentHandle handle, uint64_t offset,
                                      std::vector<Buffer> from, runtime::Durability durability);
    // What was written to these segments is durable in every copy.
    runtime::Task<Result<void>> sync(std::vector<SegmentHandle> handles);
    runtime::Task<Result<void>> shrink(SegmentHandle handle, uint64_t bytes);
    // This owner may go on writing a segment that is not sealed; all its copies are there.
    runtime::Task<Result<void>> adopt(SegmentHandle handle);
    // This node's copy; those of others follow when no handle is left.
    runtime::Task<Result<void>> remove(SegmentId id);
    // Tells those nodes again that could not be told.
    void remove_again();

    runtime::Task<Result<void>> read(NodeId node, SegmentId id, uint64_t offset, Buffer into);
    runtime::Task<Result<void>> read_any(SegmentHandle handle, uint64_t offset, Buffer into);
    runtime::Task<Result<bool>> mend_here(SegmentHandle handle);
    // `node` none: this one.
    void note_bad(const SegmentId& id, NodeId node);

    // ---- room ----

    bool has_room(uint64_t bytes, media::Purpose purpose) const;
    // Of the scarcest node that the next segment goes to, as far as is known.
    uint64_t free_units() const;
    int64_t headroom_units() const;
    // Turns to another group where the present one has less for user data than that. False: none
    // has as much.
    bool make_headroom(uint64_t units);
    // Goes up whenever another node could not do its part: another group may do.
    uint64_t failures() const { return failures_; }

    void last_reference_gone(RemoteCopies* copies);
    // No handle lives any more, nothing is begun.
    void close() { closed_ = true; }

  private:
    struct Joint;
    struct Found {
        replica::SegmentCopy copy;
        std::vector<NodeId> nodes;
    };
    using Job = std::pair<NodeId, runtime::Task<Result<void>>>;
    // All at once; gives the error that matters most.
    runtime::Task<Result<void>> run(std::vector<Job> jobs);
    runtime::Task<void> run_one(Joint& joint, Job& job);
    Error judge(Joint& joint);
    runtime::Task<void> survey_one(replica::RemoteSegments& remote, std::optional<Error>& fenced);
    runtime::Task<Result<void>> adopt_here(SegmentId id);
    runtime::Task<Result<void>> adopt_there(replica::RemoteSegments& remote, SegmentId id);
    runtime::Task<Result<SegmentHandle>> create_in(GroupId group, media::SegmentWish wish);
    Result<replica::RemoteSegments*> remote(NodeId node) const;
    Result<GroupId> group();
    bool is_here(GroupId group) const;
    void avoid(NodeId node);
    std::vector<replica::RemoteSegments*> next_remotes() const;
    replica::SegmentRequest request_of(const SegmentId& id) const;
    void queue_removal(const std::vector<NodeId>& nodes, const SegmentId& id);
    runtime::Task<void> remove_queued();
    runtime::Task<void> mend_bad();

    runtime::Env env_;
    SpaceBudget& space_;
    replica::Placement& placement_;
    const replica::SegmentActor actor_;
    const uint32_t copies_;
    runtime::Gate& background_;
    std::function<void(const SegmentId&)> tell_mended_;
    GroupId group_;                   // of the next segments
    std::map<NodeId, Time> avoided_;  // until when
    uint64_t failures_ = 0;
    std::unordered_map<SegmentId, RemoteCopies*> live_;
    std::map<SegmentId, Found> found_;  // by the survey
    std::set<NodeId> answered_;
    std::vector<NodeId> unanswered_;
    std::map<NodeId, std::vector<SegmentId>> removals_;
    bool is_removing_ = false;
    std::set<std::pair<SegmentId, NodeId>> bad_;
    bool is_mending_ = false;
    bool closed_ = false;
};

}  // namespace peplos::volume
