#pragma once

#include <functional>
#include <optional>

#include "peer/channel.h"
#include "replica/segment_wire.h"
#include "runtime/task.h"

namespace peplos::replica {

// Which volume's segments, and under which claim.
struct SegmentActor {
    VolumeId volume;
    LineageId lineage;
    Claim claim;
};

// The segments that one other node holds. Lives on one executor.
//
// Errors of every call: unavailable (certainly not executed), outcome_unknown (maybe), fenced (the
// claim is too old), busy, unsupported (the node speaks another version); and what is said below.
// Each is within the node's name.
class RemoteSegments {
  public:
    // Carries one call to the node and its answer back, within the time given.
    using Call = std::function<runtime::Task<Result<peer::Message>>(
        peer::Method method, peer::Message message, Duration timeout)>;
    RemoteSegments(NodeId node, Call call) : node_(node), call_(std::move(call)) {}
    // Over a channel, which outlives this.
    explicit RemoteSegments(peer::Channel& channel);
    RemoteSegments(const RemoteSegments&) = delete;
    RemoteSegments& operator=(const RemoteSegments&) = delete;

    NodeId node() const { return node_; }

    // Errors: no_space, already_exists.
    runtime::Task<Result<void>> create(SegmentActor actor, SegmentId id, GroupId group,
                                       format::SegmentKind kind, uint64_t bytes,
                                       media::Purpose purpose);
    // A durable write over the footer's place seals: nothing is written after it.
    // Errors: not_found, unavailable also without a grant.
    runtime::Task<Result<void>> write(SegmentActor actor, SegmentId id, uint64_t offset,
                                      std::vector<Buffer> from, runtime::Durability durability);
    // Bytes as they are on the device: the caller knows the checksums. Errors: not_found, io_error.
    runtime::Task<Result<void>> read(VolumeId volume, SegmentId id, uint64_t offset, Buffer into);
    runtime::Task<Result<void>> sync(SegmentActor actor, std::vector<SegmentId> ids);
    runtime::Task<Result<void>> shrink(SegmentActor actor, SegmentId id, uint64_t bytes);
    // What is gone already is fine. False: some of the volume's segments are still being read, and
    // come back with a power cut before that ends.
    // Only for segments that no record will ever name again, and ids are never given twice: so a
    // call that is late, or comes twice, does no harm.
    runtime::Task<Result<bool>> remove(SegmentActor actor, std::vector<SegmentId> ids);
    struct Listing {
        std::vector<SegmentCopy> copies;  // ascending
        bool is_leaving = false;
    };
    // All that the node has of the volume, after what older claims had under way has ended.
    runtime::Task<Result<Listing>> list(SegmentActor actor);
    // The claim goes on writing a segment that is not sealed. Requires, for one of an earlier
    // epoch: the node was fenced durably under this claim. Errors: not_found.
    runtime::Task<Result<SegmentCopy>> adopt(SegmentActor actor, SegmentId id);
    // Asks the node to check its copy, and to make it anew from another node's where it is bad or
    // missing. Done some time later. Errors: busy.
    runtime::Task<Result<void>> mend(VolumeId volume, LineageId lineage, SegmentCopy copy);
    runtime::Task<Result<void>> refresh_space();

    // As of the last answer; none: it never answered.
    const std::optional<NodeSpace>& space() const { return space_; }
    // Whether create() would find a run, as far as is known.
    bool has_room(uint64_t bytes, media::Purpose purpose) const;

  private:
    struct Answer {
        SegmentAnswer answer;
        std::vector<Buffer> payload;
    };
    runtime::Task<Result<Answer>> ask(SegmentMethod method, SegmentRequest request,
                                      std::vector<Buffer> payload = {});
    runtime::Task<Result<void>> read_piece(VolumeId volume, SegmentId id, uint64_t offset,
                                           Buffer into);

    const NodeId node_;
    const Call call_;
    std::optional<NodeSpace> space_;
};

// The most bytes that one `read` or `write` carries.
inline constexpr uint64_t kSegmentCallBytesMax = 1 * kMiB;

}  // namespace peplos::replica
