#pragma once

#include <optional>

#include "replica/protocol.h"

namespace peplos::replica {

// What one member does for one volume: every decision about its log, as a plain machine. Messages
// and completions go in; what is to be written and to be sent comes out. Time comes as an argument.
//
// Invariants
//   1. An append is taken only under the newest claim that was seen, for the log that this claim
//      opened, at last + 1. A repeat is answered and changes nothing.
//   2. A fence is answered when it is durable and no promise to another owner holds any more. From
//      the moment it was taken, nothing of an earlier claim is, and no promise is given.
//   3. `complete` is said only of a log that the recorded token and incarnation prove. A log keeps
//      being proven by the recorded token while a claimer opens it anew, until that claimer's own
//      ensemble is recorded: then its own token does.
//   4. What is acknowledged is durable.
//   5. A device that failed once says nothing but that.
// Relax 2 and an old owner acknowledges, or reads, what the new one does not know. Relax 3 and a
// crash in the middle of a takeover costs the log that it was about to save.
//
// Writing: each action below is one durable write. They complete in the order in which they were
// asked for (the ring's order), by on_appended(), on_fenced() and on_opened(); none is asked for
// twice. When one fails: on_io_error(), and nothing completes any more.
class MemberLog {
  public:
    // What the media hold, and a restart reads.
    struct Stored {
        Claim fence;           // the newest
        Claim opened_by;       // none: the log was never opened here
        uint64_t version = 0;  // of that open
        OpenToken token;       // of that open
        OpenToken recorded;    // the one that also proves this log, see invariant 3
        Lsn last_lsn;
        bool is_damaged = false;  // a hole, or a record that cannot be read
        bool operator==(const Stored&) const = default;
        void fields(this auto& self, auto&& visit) {
            visit(self.fence, self.opened_by, self.version, self.token, self.recorded,
                  self.last_lsn, self.is_damaged);
        }
    };

    // The record of message `lsn`, which is last + 1.
    struct WriteRecord {
        Lsn lsn;
        bool operator==(const WriteRecord&) const = default;
        void fields(this auto& self, auto&& visit) { visit(self.lsn); }
    };
    struct WriteFence {
        Claim claim;
        bool operator==(const WriteFence&) const = default;
        void fields(this auto& self, auto&& visit) { visit(self.claim); }
    };
    // Counts as a whole, from the moment its last byte is durable: keeps the records up to
    // open.keep_lsn, forgets all others, takes those of the message.
    struct WriteOpen {
        OpenMessage open;
        OpenToken recorded;  // what becomes Stored::recorded
        bool operator==(const WriteOpen&) const = default;
        void fields(this auto& self, auto&& visit) { visit(self.open, self.recorded); }
    };
    // Call on_time() then.
    struct Wake {
        Time at;
    };
    using Action = std::variant<Send, WriteRecord, WriteFence, WriteOpen, Wake>;
    using Actions = boost::container::small_vector<Action, 2>;

    // What the media hold after such a write, for whoever reads them back.
    static void apply(const WriteRecord& write, Stored& stored);
    static void apply(const WriteFence& write, Stored& stored);
    static void apply(const WriteOpen& write, Stored& stored);

    MemberLog() = default;
    // After a start. A promise that the last process gave may still hold: it is honoured, unless
    // it was given to an owner on this node, who died with it.
    MemberLog(NodeId self, Incarnation device, Timing timing, const Stored& stored, Time now);

    void on_message(const Message& message, Time now, Actions& out);
    void on_appended(Lsn lsn, Time now, Actions& out);
    void on_fenced(const Claim& claim, Time now, Actions& out);
    void on_opened(OpenToken token, Time now, Actions& out);
    // A write or a sync failed. It is not tried again: the pages may be marked clean and be lost.
    void on_io_error(Actions& out);
    void on_time(Time now, Actions& out);
    // The media were found to have a hole, or not to have it any more.
    void set_damaged(bool is_damaged) { stored_.is_damaged = is_damaged; }

    bool is_failed() const { return failed_; }
    // The newest claim seen, durable or not.
    const Claim& fence() const { return fence_; }
    Lsn last_lsn() const { return last_lsn_; }
    Lsn durable_lsn() const { return stored_.last_lsn; }
    // As far as it is durable.
    const Stored& stored() const { return stored_; }

    bool operator==(const MemberLog&) const = default;
    void fields(this auto& self, auto&& visit) {
        visit(self.self_, self.device_, self.stored_, self.fence_, self.last_lsn_, self.opening_,
              self.asked_, self.promise_, self.promised_to_, self.sent_at_, self.failed_);
    }
    // It is the same for all members, and no part of the fields.
    void set_timing(Timing timing) { timing_ = timing; }

  private:
    void on_fence(const FenceMessage& message, Time now, Actions& out);
    void on_open(const OpenMessage& message, Time now, Actions& out);
    void on_append(const AppendMessage& message, Time now, Actions& out);
    void on_renew(const RenewMessage& message, Time now, Actions& out);
    void on_release(const ReleaseMessage& message, Time now, Actions& out);
    // Whether a claim may still command this member.
    bool is_current(const Claim& claim) const;
    bool is_open_for(const Claim& claim, OpenToken token) const;
    bool admits(const Claim& claim, OpenToken token, Actions& out) const;
    bool is_proven_by(Incarnation incarnation, OpenToken token) const;
    void answer_fence(Time now, Actions& out);
    FenceAnswer judge(const FenceMessage& asked) const;
    void answer(Time now, Actions& out, bool is_gap = false);
    void refuse(const Claim& claim, OpenToken token, Refusal::Reason reason, Actions& out) const;

    NodeId self_;
    Incarnation device_;
    Timing timing_;
    Stored stored_;
    Claim fence_;   // seen; stored_.fence is the durable one
    Lsn last_lsn_;  // taken; stored_.last_lsn is the durable one
    std::optional<WriteOpen> opening_;
    std::optional<FenceMessage> asked_;  // and not answered yet
    Promise promise_;
    NodeId promised_to_;
    Time sent_at_{};  // of the newest request of the present claim
    bool failed_ = false;
};

}  // namespace peplos::replica
