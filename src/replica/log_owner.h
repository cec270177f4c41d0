#pragma once

#include <boost/circular_buffer.hpp>
#include <boost/intrusive/list.hpp>
#include <optional>

#include "replica/ack_watch.h"
#include "replica/ensemble.h"
#include "replica/log_tail.h"
#include "replica/replicated_log.h"
#include "runtime/alarm.h"

namespace peplos::replica {

// Between attempts that fail: twice as long each time, between these.
inline constexpr Duration kOwnerPauseMin = std::chrono::milliseconds(20);
inline constexpr Duration kOwnerPauseMax = std::chrono::seconds(1);

// What is behind a ReplicatedLog, and may live a little longer: calls to members and to the control
// store are under way when the log is closed. Carries the words of an Ensemble and decides only
// what that leaves open: when a member is silent, and what is sent when.
//
// Invariants
//   1. Each other member gets the records in LSN order, each from memory: `pending_` holds all that
//      some member of an ensemble, recorded or proposed, does not confirm yet.
//   2. What is acknowledged to writers is Ensemble's acknowledged_lsn, and nothing after the log
//      stopped.
//   3. The log that a new member is opened with is whole (check_tail).
//
// The members' calls: at most kCallsMax appends each are under way. Whoever sends takes the next
// record when it runs, not when it was started: so records leave in order, whatever the order in
// which tasks run.
class LogOwner final : public OwnerSink, public std::enable_shared_from_this<LogOwner> {
  public:
    LogOwner(OwnerContext& context, VolumeId volume, LineageId lineage, uint32_t copies,
             const Ownership& ownership, Lsn last_lsn);

    Result<void> begin();
    // As ReplicatedLog.
    VolumeLog& local() { return *local_; }
    VolumeId volume() const { return volume_; }
    const Claim& claim() const { return ensemble_.claim(); }
    Lsn next_lsn() const { return ensemble_.last_lsn().next(); }
    Admission try_admit(const format::Record& record);
    Task<Result<Admission>> admit(const format::Record& record);
    AppendTicket submit(format::Record record, Admission admission);
    Task<Result<void>> wait(AppendTicket ticket);
    void trim(Lsn drained_lsn, Lsn meta_lsn);
    uint64_t retained_bytes_max() const;
    void refuse_waiting(const Error& why, VolumeLog::Waiting who);
    bool may_read() const;
    Task<Result<void>> renew_promises();
    EnsembleStatus status() const;
    Result<void> degrade();
    void reconsider();
    Task<void> release();
    void close();
    Result<void> check() const;

    void on_member_message(const Message& message) override;

  private:
    // One other member of an ensemble, under one token.
    struct Stream {
        EnsembleMember member;
        Lsn next;   // the next record to send
        Lsn floor;  // it has, or its open carries, all up to here
        uint32_t calls = 0;
        uint32_t generation = 0;   // raised when sending begins again at an earlier record
        bool is_open = false;      // takes appends
        bool is_over = false;      // no member any more
        bool is_reset = false;     // a call was lost, and no answer came since
        bool is_refused = false;   // it will not be a member
        bool is_pausing = false;   // before it is tried again
        bool is_renewing = false;  // a heartbeat is under way
        bool is_silent = false;    // as found last
        Duration pause{};
        Time heard{};  // its last word
        AckWatch watch;
    };
    using StreamPtr = std::shared_ptr<Stream>;
    // A change of ensemble from its proposal to its end.
    struct Proposal {
        std::vector<std::pair<StreamPtr, OpenMessage>> opens;
        std::vector<format::Record> in_flight;  // what the own member need not hold yet
        Lsn last_lsn;
        Time heard{};              // when the own member gave a part of it
        bool is_stale = false;     // its log could not be had: propose again
        bool is_too_long = false;  // no new member would take it
    };
    struct AckWaiter : boost::intrusive::list_base_hook<
                           boost::intrusive::link_mode<boost::intrusive::auto_unlink>> {
        Lsn lsn;
        runtime::Event done;
    };
    using AckWaiters =
        boost::intrusive::list<AckWaiter, boost::intrusive::constant_time_size<false>>;
    using Self = std::shared_ptr<LogOwner>;

    // log_owner.cc
    Time now() const { return context_.env.clock.now(); }
    bool is_over() const { return fault_.has_value(); }
    void stop_with(Error why);
    void run(const OwnerActions& actions);
    void acknowledge(Lsn lsn);
    void suspect(NodeId node);
    bool keeps_records() const { return is_keeping_ || !streams_.empty(); }
    void keep(const format::Record& record);
    void forget_confirmed();
    bool has_room(const format::Record& record) const;
    void spawn(Task<void> task);
    Task<void> tell_released(MemberPort& port, ReleaseMessage message);

    // log_owner_streams.cc
    StreamPtr find(NodeId node, OpenToken token) const;
    void sync_streams();
    void pump(const StreamPtr& stream);
    void send_again(const StreamPtr& stream, Lsn first);
    void on_lost_call(const StreamPtr& stream, uint32_t generation, const Error& why);
    void on_answer(const StreamPtr& stream, MemberAnswer answer);
    void on_word(const StreamPtr& stream, const Message& word);
    static Task<void> send_records(Self self, StreamPtr stream);
    static Task<void> try_again(Self self, StreamPtr stream);
    static Task<void> send_renewal(Self self, StreamPtr stream, RenewMessage message);
    void ask_renewal();
    void begin_ticking();
    static Task<void> tick(Self self);
    void look_at_members(Time now);

    // log_owner_change.cc
    void consider_change();
    static Task<void> change(Self self);
    Task<bool> change_once();
    Members choose_next();
    Members without_silent() const;
    std::vector<NodeId> silent_nodes() const;
    std::vector<NodeId> avoided_nodes();
    void avoid(NodeId node);
    Task<bool> start_keeping();
    // Whether it came to something.
    Task<bool> see_through(std::shared_ptr<Proposal> proposal);
    bool has_failed(const Proposal& proposal);
    std::shared_ptr<Proposal> propose(const Members& next);
    static Task<void> open_all(Self self, std::shared_ptr<Proposal> proposal);
    static Task<Result<LogRecords>> load_tail(Self self, std::shared_ptr<Proposal> proposal);
    static Task<void> open_member(Self self, StreamPtr stream, OpenMessage message,
                                  std::shared_ptr<const LogRecords> tail);
    static Task<void> decide(Self self, CompareAndSet cas);

    OwnerContext& context_;
    const VolumeId volume_;
    const LineageId lineage_;
    const uint32_t copies_;
    Ensemble ensemble_;
    std::unique_ptr<OwnerLog> local_;
    EnsembleMember own_member_;
    Lsn own_durable_lsn_;
    // Set once: why there will be no acknowledgement any more.
    std::optional<Error> fault_;

    Lsn acknowledged_lsn_;
    AckWaiters waiters_;  // ascending
    runtime::WaitList room_;
    std::optional<Error> room_refusal_;
    uint64_t room_refusals_ = 0;
    runtime::WaitList words_;  // of members: whoever waits for promises looks again

    // Records from pending_first_ on, stamped.
    boost::circular_buffer<format::Record> pending_{8};
    Lsn pending_first_;
    uint64_t pending_bytes_ = 0;
    bool is_keeping_ = false;  // though there is no other member yet
    Lsn keeping_from_;

    std::vector<StreamPtr> streams_;
    bool is_ticking_ = false;
    Time renewed_{};  // when promises were asked for last
    Time look_due_{};

    bool is_changing_ = false;
    Time change_due_{};  // not before
    bool is_degrading_ = false;
    std::shared_ptr<Proposal> proposal_;  // whose opens propose() gathers
    runtime::Alarm change_news_;
    std::vector<std::pair<NodeId, Time>> avoided_;
    std::string why_;  // no other ensemble is to be had
};

}  // namespace peplos::replica
