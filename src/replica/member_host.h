#pragma once

#include <memory>
#include <optional>
#include <unordered_map>

#include "replica/journal.h"
#include "replica/member_calls.h"
#include "replica/member_log.h"
#include "replica/member_port.h"
#include "runtime/env.h"
#include "runtime/gate.h"

namespace peplos::replica {

class LocalJournal;
class Member;

// What this node keeps of volumes' logs, for whichever owner: one MemberLog for each volume and
// device, on the devices' journals. Carries the machines' words to and from the media and decides
// nothing that they decide.
//
// Invariants
//   1. A machine is given what needs room in the ring only when that room is there: what it asks to
//      be written is submitted at once, in the order in which it was asked for. So a full ring
//      delays appends and refuses opens, and neither fences nor heartbeats.
//   2. Nothing that came over the wire is taken before its checksums and its chains hold.
//   3. A fence that was seen on one device of the node holds on all of them.
// Relax 1 and a takeover waits for the drain of an owner that is dead.
//
// Lives on one executor. stop() it before the journals, and those before their devices.
class MemberHost final : public LocalMember {
  public:
    MemberHost(runtime::Env env, NodeId self, Timing timing);
    ~MemberHost() override;
    MemberHost(const MemberHost&) = delete;
    MemberHost& operator=(const MemberHost&) = delete;

    // The logs that the device's journal recovered become members. Promises which the last process
    // may have given are honoured from now on.
    void add_device(const DeviceId& id, Incarnation incarnation, LocalJournal& journal);

    // Each resolves with what the machine answers: FenceAnswer, MemberAnswer or Refusal. Errors:
    // stopping, busy (no room, or too many wait), corrupt and invalid_argument (what came with the
    // message does not hold), io_error, unavailable (no device is there).

    // Waits until no promise to another owner holds. `incarnation` of the message says which
    // device's log is meant; when that device is not here, or none is named, the node answers with
    // the log that the newest claim opened. All devices are fenced. Repeats are fine.
    Task<Result<Message>> fence(VolumeId volume, LineageId lineage, FenceMessage message) override;
    Task<Result<Message>> open(OpenCall call) override;
    // Resolves when durable: durable_lsn of the answer says up to where. Calls of one owner start
    // in LSN order; what waits for room waits in that order.
    Task<Result<Message>> append(AppendCall call) override;
    Task<Result<Message>> renew(VolumeId volume, RenewMessage message) override;
    Task<Result<void>> release(VolumeId volume, ReleaseMessage message) override;

    // For a claimer, or the owner: the records above `after` that the log on that device still
    // needs, ascending; at least one when there is one, else no more than `bytes`.
    // Errors: fenced (`claim` is not the newest that was seen), unavailable (no such log), corrupt,
    // io_error.
    Task<Result<LogRecords>> read_log(VolumeId volume, Claim claim, Incarnation incarnation,
                                      Lsn after, uint64_t bytes) override;
    // Whether `claim` may still write and delete segments of the volume here (P4): no newer one was
    // seen, nor another one with its epoch.
    bool admits(VolumeId volume, const Claim& claim) const override;
    // The highest epoch that the volume was fenced or opened with here; 0: never.
    Epoch fence_of(VolumeId volume) const override;

    // For the owner on this node, after its open() here was answered: the log that it opened under
    // `token`. One at a time. Answers of the machine to this claim go to `sink` as long as the log
    // lives. Errors: fenced, unavailable (no log was opened here under that token).
    Result<std::unique_ptr<OwnerLog>> owner_log(VolumeId volume, const Claim& claim,
                                                OpenToken token, OwnerSink& sink) override;

    // The volume is deleted: nothing of it is kept, durably. Calls for it get `fenced`.
    Task<Result<void>> drop(VolumeId volume);
    // Calls that wait, for room or for a promise to end, end with `stopping`, as do new ones.
    void begin_stop();
    // The same, and waits for their end. No owner's log may live any more.
    Task<void> stop();

  private:
    struct Device {
        DeviceId id;
        Incarnation incarnation;
        LocalJournal* journal = nullptr;
    };
    using Members = std::vector<std::unique_ptr<Member>>;

    class OwnerLogHere;

    Result<void> check(VolumeId volume) const;
    const Device* device_of(Incarnation incarnation) const;
    const Device* spare_device() const;
    const Members* members_of(VolumeId volume) const;
    Member* member_at(VolumeId volume, Incarnation incarnation) const;
    Member* member_with(VolumeId volume, const Claim& claim, OpenToken token) const;
    Member& member_for(VolumeId volume, const Device& device);
    // The newest claim that was seen on any device.
    Claim newest_claim(VolumeId volume) const;
    // What the node says to a claim that no log of its hears.
    Message refuse(VolumeId volume, const Claim& claim, OpenToken token,
                   Refusal::Reason reason) const;
    // Errors: busy (so many volumes are here already).
    Result<void> check_count(VolumeId volume) const;
    Task<void> fence_one(Member& member, LineageId lineage, FenceMessage message,
                         std::optional<Result<Message>>* answer, size_t* missing,
                         runtime::WaitList* over);

    runtime::Env env_;
    const NodeId self_;
    const Timing timing_;
    std::vector<Device> devices_;
    std::unordered_map<VolumeId, Members> members_;
    Members leaving_;  // of deleted volumes
    // Volumes that were deleted while this process lives, and the claim that did it.
    std::unordered_map<VolumeId, Claim> dropped_;
    bool stopping_ = false;
    runtime::Gate gate_;
};

}  // namespace peplos::replica
