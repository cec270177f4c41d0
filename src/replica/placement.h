#pragma once

#include <span>
#include <vector>

#include "replica/segment_client.h"

namespace peplos::replica {

class SegmentService;

// Where the copies of segments lie, and how to reach them. One per node; it outlives what uses it.
class Placement {
  public:
    virtual ~Placement() = default;

    virtual NodeId self() const = 0;
    // The nodes of a group, this one too where it is one of them; empty: not known (yet).
    virtual std::vector<NodeId> nodes_of(GroupId group) const = 0;
    // The group that a volume's next segments go to: `copies` nodes, this one among them wherever
    // it has devices, and none of `avoid`. Errors: unavailable (none can be had; says why).
    virtual Result<GroupId> choose(VolumeId volume, uint32_t copies,
                                   std::span<const NodeId> avoid) = 0;
    // Every other node that may hold segments.
    virtual std::vector<NodeId> others() const = 0;
    // Null: no such node is known.
    virtual RemoteSegments* segments_on(NodeId node) = 0;
    // That node durably takes nothing of earlier claims any more, once this resolves.
    // Errors: fenced (it knows a newer one), unavailable, outcome_unknown.
    virtual runtime::Task<Result<void>> fence(NodeId node, VolumeId volume, Claim claim) = 0;
    // Of this node: its owners write their own copies under the same rules as others do.
    virtual SegmentService& service() = 0;
};

}  // namespace peplos::replica
