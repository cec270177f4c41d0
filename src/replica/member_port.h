#pragma once

#include <memory>
#include <vector>

#include "replica/owner_log.h"

// What an owner, or who becomes one, asks of the members of a volume's journal, wherever they run.
namespace peplos::replica {

// One node as a member, for every volume. Every call ends by itself; a fence may take as long as
// the longest promise.
//
// Errors of each: unavailable, busy, corrupt, invalid_argument (certainly not done),
// outcome_unknown (perhaps done, and perhaps later), stopping, io_error. What the member's machine
// decides is no error: FenceAnswer, MemberAnswer or Refusal.
class MemberPort {
  public:
    virtual ~MemberPort() = default;

    virtual Task<Result<Message>> fence(VolumeId volume, LineageId lineage,
                                        FenceMessage message) = 0;
    virtual Task<Result<Message>> open(OpenCall call) = 0;
    // Resolves when the record is durable, or refused, or when one before it is missing. The call
    // is on its way in the moment in which it is awaited first: calls arrive in that order, or not
    // at all.
    virtual Task<Result<Message>> append(AppendCall call) = 0;
    virtual Task<Result<Message>> renew(VolumeId volume, RenewMessage message) = 0;
    virtual Task<Result<void>> release(VolumeId volume, ReleaseMessage message) = 0;
    // The durable records above `after` that the log on that device still needs, ascending, of a
    // log that `claim` fenced or opened: at least one when there is one, else no more than `bytes`.
    // Errors, besides: fenced (`claim` is not the newest that was seen).
    virtual Task<Result<LogRecords>> read_log(VolumeId volume, Claim claim, Incarnation incarnation,
                                              Lsn after, uint64_t bytes) = 0;
};

// The member on the owner's own node.
class LocalMember : public MemberPort {
  public:
    // Of a log that `claim` opened here under `token`; one at a time. Errors: fenced, unavailable.
    virtual Result<std::unique_ptr<OwnerLog>> owner_log(VolumeId volume, const Claim& claim,
                                                        OpenToken token, OwnerSink& sink) = 0;
    // No newer claim was seen here, nor another one with its epoch.
    virtual bool admits(VolumeId volume, const Claim& claim) const = 0;
    // The highest epoch that the volume was fenced or opened with here; 0: never.
    virtual Epoch fence_of(VolumeId volume) const = 0;
};

// How to reach the nodes of the cluster.
class MemberPorts {
  public:
    virtual ~MemberPorts() = default;
    // This node's own.
    virtual LocalMember& local() = 0;
    // Null: no such node is known. Valid until the owners that use it are stopped.
    virtual MemberPort* find(NodeId node) = 0;
    // Every node of the cluster, this one too.
    virtual std::vector<NodeId> nodes() const = 0;
};

}  // namespace peplos::replica
