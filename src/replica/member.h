#pragma once

#include <list>
#include <optional>

#include "replica/local_journal.h"
#include "replica/member_host.h"
#include "runtime/alarm.h"

namespace peplos::replica {

// One volume's log on one device: its MemberLog, and what carries the machine's words to and from
// the device's journal. Part of MemberHost; see there.
//
// Lives on the host's executor until the host ends: what waits refers to it.
class Member final : public AppendWatch, public AppendTaker {
  public:
    Member(runtime::Env env, NodeId self, Timing timing, VolumeId volume, Incarnation device,
           LocalJournal& journal);
    ~Member();

    Task<Result<Message>> fence(LineageId lineage, FenceMessage message);
    // Once all parts of it are here.
    Task<Result<Message>> open(OpenCall call);
    Task<Result<Message>> append(AppendCall call);
    Result<Message> renew(const RenewMessage& message);
    void release(const ReleaseMessage& message);

    // A part of an open; the whole of it with the last one. Errors: invalid_argument, corrupt.
    Result<std::optional<OpenCall>> gather(OpenCall call);

    void begin_owner(const Claim& claim, OpenToken token, OwnerSink* sink);
    void end_owner(const OwnerSink* sink);
    void renew_owner(Time sent_at);
    void stop();
    // Waits until no call is under way.
    Task<void> close() { return gate_.close(); }
    Result<runtime::Gate::Pass> enter() { return gate_.enter(); }
    bool has_owner() const { return owner_ != nullptr; }

    const MemberLog& machine() const { return machine_; }
    LocalJournal& journal() { return journal_; }
    Incarnation device() const { return device_; }
    VolumeId volume() const { return volume_; }

    void on_appended(Lsn lsn, const Result<void>& outcome) override;
    bool takes(Lsn lsn) override;

  private:
    class Call;
    using Write = std::variant<std::monostate, MemberLog::WriteRecord, MemberLog::WriteFence,
                               MemberLog::WriteOpen>;
    struct StateSink final : LocalJournal::WriteSink {
        void on_written(const Result<void>& outcome) override;
        Member* member = nullptr;
        Write write;
    };

    Result<void> check() const;
    // Gives the message to the machine. What it says goes to `call`; what is to be written is for
    // the caller, who has the room.
    Write feed(const Message& message, Call* call);
    // Whether the machine would want a record or an open written.
    bool would_write(const Message& message) const;
    void perform(const MemberLog::Actions& actions, Call* call, Write* write);
    void deliver(const Message& message, Call* call);
    void tell_owner(const Message& message);
    Task<void> tell_owner_later();
    // Calls that the machine forgot, because a newer claim came, hear so.
    void ask_again();
    void on_written(const Write& write, const Result<void>& outcome);
    void wake_at(Time at);
    Task<void> wake_later();
    StateSink* remember(Write write);
    Task<Result<void>> wait_for_room(const AppendCall& call, media::Admission* room);

    runtime::Env env_;
    const NodeId self_;
    const VolumeId volume_;
    const Incarnation device_;
    LocalJournal& journal_;
    MemberLog machine_;
    MemberLog::Stored planned_;  // when everything under way is durable
    std::list<Call*> calls_;
    std::list<StateSink> sinks_;  // of state records under way
    std::optional<OpenCall> gathered_;
    uint64_t gathered_bytes_ = 0;
    runtime::Mutex opening_;
    runtime::Mutex appending_;  // first come, first served: who waits for room holds it
    size_t appends_waiting_ = 0;
    size_t urgent_waiting_ = 0;  // of these, such as free room

    Claim owner_claim_;
    OpenToken owner_token_;
    OwnerSink* owner_ = nullptr;
    std::deque<Message> to_owner_;
    bool is_telling_ = false;

    Time wake_time_{};
    bool is_waking_ = false;
    runtime::Alarm wake_;
    bool stopping_ = false;
    runtime::Gate gate_;
};

}  // namespace peplos::replica
