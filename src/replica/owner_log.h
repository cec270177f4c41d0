#pragma once

#include "replica/journal.h"
#include "replica/member_calls.h"

// The owner's own member, as the owner uses it: by calls, not by messages.
namespace peplos::replica {

// Told what the member on the owner's own node says to it: MemberAnswer or Refusal.
class OwnerSink {
  public:
    // From the ring's commit loop, or from a posted task; never from inside a call of the owner's.
    virtual void on_member_message(const Message& message) = 0;

  protected:
    ~OwnerSink() = default;
};

// The log of the owner's own member: a VolumeLog of this device alone, whose appends go through the
// member's machine as everybody's do. A ticket resolves when the record is durable *here*; what
// that means for the ensemble comes through the sink. Once another claim fenced the member, every
// call gives `fenced`. Destroyed before the host, and when no call of it is under way.
class OwnerLog : public VolumeLog {
  public:
    // Gives the record all that submit() will give it: volume, lineage, epoch and chains. So the
    // other members get it as this one does.
    virtual void stamp(format::Record& record) const = 0;
    // A heartbeat of the owner to itself: the sink gets the answer.
    virtual void renew(Time sent_at) = 0;
    // The records above `after`, as MemberPort::read_log() gives them: for members that lack them.
    virtual Task<Result<LogRecords>> read_log(Lsn after, uint64_t bytes) = 0;
};

}  // namespace peplos::replica
