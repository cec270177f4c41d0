#pragma once

#include "peer/channel.h"
#include "replica/member_port.h"

namespace peplos::replica {

// Another node as a member of journals, over a channel that outlives this. What it answers for the
// machines is no error; errors are as MemberPort says.
class MemberClient final : public MemberPort {
  public:
    explicit MemberClient(peer::Channel& channel) : channel_(channel) {}

    Task<Result<Message>> fence(VolumeId volume, LineageId lineage, FenceMessage message) override;
    Task<Result<Message>> open(OpenCall call) override;
    Task<Result<Message>> append(AppendCall call) override;
    Task<Result<Message>> renew(VolumeId volume, RenewMessage message) override;
    Task<Result<void>> release(VolumeId volume, ReleaseMessage message) override;
    // Records whose checksums do not hold are `corrupt`: the log is read elsewhere, or again.
    Task<Result<LogRecords>> read_log(VolumeId volume, Claim claim, Incarnation incarnation,
                                      Lsn after, uint64_t bytes) override;

  private:
    peer::Channel& channel_;
};

}  // namespace peplos::replica
