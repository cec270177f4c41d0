#pragma once

#include <boost/container/small_vector.hpp>
#include <boost/container/static_vector.hpp>
#include <variant>

#include "base/ids.h"
#include "base/limits.h"
#include "base/units.h"
#include "control/records.h"

// The words of the replication protocol (DESIGN sections 4 and 5): what an owner, the members of
// its ensemble and the control store say to each other. Three machines speak them: MemberLog,
// Ensemble and Takeover. None does I/O or reads a clock; coroutines carry their words around, and
// `src/model` tries every order in which these can arrive.
//
// Every type lists its fields in fields(), so that a checker can copy, compare and hash it.
namespace peplos::replica {

using control::EnsembleMember;
using Members = boost::container::static_vector<EnsembleMember, limits::kEnsembleMembersMax>;

// "No entry" is never inferred from missing state: `unknown` says that this member cannot tell
// whether its log holds every acknowledged record.
enum class LogOutcome : uint8_t { complete, unknown };

struct Timing {
    // For so long a member that acknowledged, or answered a heartbeat, honours no newer fence.
    Duration promise = std::chrono::seconds(2);
    // The owner believes a promise for so much less: the clocks of two nodes run at rates that
    // differ, and neither is compared with the other.
    Duration margin = std::chrono::milliseconds(100);
    bool operator==(const Timing&) const = default;
};

// The end of a promise; the default has ended.
struct Promise {
    Time until{};
    bool holds(Time now) const { return now < until; }
    void extend(Time to) { until = std::max(until, to); }
    bool operator==(const Promise&) const = default;
};

// One ownership of a volume, as one claim won it. The token is random: a control store that was
// put back to an older state can hand out an epoch twice, never with one token.
struct Claim {
    NodeId owner;
    Epoch epoch;
    OpenToken token;
    bool operator==(const Claim&) const = default;
    void fields(this auto& self, auto&& visit) { visit(self.owner, self.epoch, self.token); }
};

// The fence of a volume that is deleted: no claim has this epoch.
inline constexpr Epoch kDroppedEpoch{UINT64_MAX};

// What the control store says of a volume: `volume/<id>`. It is compared and set as a whole,
// because a counter alone may come back after the store was put back to an older state.
struct Ownership {
    Claim claim;
    control::OwnershipState state = control::OwnershipState::open;
    Members ensemble;
    uint64_t version = 0;  // raised by every change
    // Of the control store, when the ensemble was recorded: a store that was put back to an older
    // state has another one. 0: the ensemble is known to be out of date.
    uint64_t generation = 0;
    bool operator==(const Ownership&) const = default;
    void fields(this auto& self, auto&& visit) {
        visit(self.claim, self.state, self.ensemble, self.version, self.generation);
    }
};

// ---- to a member; every message says under which claim it is sent ----

// Takes no more from earlier claims, and says what the log holds. `incarnation` and `token` are
// the member's as recorded before the claim; none: it is asked as a witness only.
struct FenceMessage {
    Claim claim;
    Incarnation incarnation;
    OpenToken token;
    bool operator==(const FenceMessage&) const = default;
    void fields(this auto& self, auto&& visit) { visit(self.claim, self.incarnation, self.token); }
};

// Makes the member one of the ensemble: from now on its log is what it holds up to keep_lsn, and
// the records above it up to last_lsn, which come along. All of it, or nothing.
struct OpenMessage {
    Claim claim;
    uint64_t version = 0;     // of the ensemble that it will belong to; unique within a claim
    Incarnation incarnation;  // the device that is meant
    OpenToken token;          // new, random
    OpenToken recorded;       // the one that the control store knows of it; none: it is no member
    Lsn keep_lsn;             // above 0 only of a log that this claim fenced
    Lsn last_lsn;
    Time sent_at{};
    bool operator==(const OpenMessage&) const = default;
    void fields(this auto& self, auto&& visit) {
        visit(self.claim, self.version, self.incarnation, self.token, self.recorded, self.keep_lsn,
              self.last_lsn, self.sent_at);
    }
};

// One record.
struct AppendMessage {
    Claim claim;
    OpenToken token;
    Lsn lsn;
    Time sent_at{};
    bool operator==(const AppendMessage&) const = default;
    void fields(this auto& self, auto&& visit) {
        visit(self.claim, self.token, self.lsn, self.sent_at);
    }
};

// A heartbeat: asks for a new promise.
struct RenewMessage {
    Claim claim;
    OpenToken token;
    Time sent_at{};
    bool operator==(const RenewMessage&) const = default;
    void fields(this auto& self, auto&& visit) { visit(self.claim, self.token, self.sent_at); }
};

// The owner has stopped and gives its promise back.
struct ReleaseMessage {
    Claim claim;
    bool operator==(const ReleaseMessage&) const = default;
    void fields(this auto& self, auto&& visit) { visit(self.claim); }
};

// ---- a member's answers, each to the claim that asked ----

struct FenceAnswer {
    Claim claim;
    NodeId from;
    Incarnation incarnation;  // of the device that says so
    LogOutcome outcome = LogOutcome::unknown;
    Lsn last_lsn;  // durable
    Epoch opened;  // of the claim that opened the log; 0: it never was, or has a hole
    bool operator==(const FenceAnswer&) const = default;
    void fields(this auto& self, auto&& visit) {
        visit(self.claim, self.from, self.incarnation, self.outcome, self.last_lsn, self.opened);
    }
};

// To appends, heartbeats and opens alike. sent_at is the newest of the requests it answers, and a
// promise counts from there; the default: no promise.
struct MemberAnswer {
    Claim claim;
    NodeId from;
    OpenToken token;
    Lsn durable_lsn;
    bool is_gap = false;  // a record before the one that was sent is missing: send durable_lsn + 1
    Time sent_at{};
    bool operator==(const MemberAnswer&) const = default;
    void fields(this auto& self, auto&& visit) {
        visit(self.claim, self.from, self.token, self.durable_lsn, self.is_gap, self.sent_at);
    }
};

struct Refusal {
    enum class Reason : uint8_t {
        fenced,    // a newer claim was here, or another one of that epoch: its epoch is `fence`
        stranger,  // the token or the incarnation is not that of this log
        failed,    // the device failed and is never used again
    };
    Claim claim;
    NodeId from;
    OpenToken token;  // of the request
    Reason reason = Reason::fenced;
    Epoch fence;
    bool operator==(const Refusal&) const = default;
    void fields(this auto& self, auto&& visit) {
        visit(self.claim, self.from, self.token, self.reason, self.fence);
    }
};

using Message = std::variant<FenceMessage, OpenMessage, AppendMessage, RenewMessage, ReleaseMessage,
                             FenceAnswer, MemberAnswer, Refusal>;

// ---- what a machine wants done ----

struct Send {
    NodeId to;
    Message message;
};

// Appends of every record from `first` on, in order, to this member.
struct SendFrom {
    NodeId to;
    OpenToken token;
    Lsn first;
};

// In the control store: exactly this value becomes that one, provided that the store still has this
// generation; else it is a conflict. Answered by on_cas().
struct CompareAndSet {
    Ownership expected;
    Ownership desired;
    uint64_t generation = 0;
    bool operator==(const CompareAndSet&) const = default;
    void fields(this auto& self, auto&& visit) {
        visit(self.expected, self.desired, self.generation);
    }
};

enum class CasOutcome : uint8_t {
    done,
    conflict,  // nothing was changed; the answer carries what is there instead
    // It may have happened, or happen later. The answer carries what is there now.
    unknown,
};

// Every record up to here is acknowledged to whoever wrote it.
struct Acknowledge {
    Lsn lsn;
};

// This member will not answer any more: propose another ensemble.
struct Suspect {
    NodeId node;
};

using OwnerAction = std::variant<Send, SendFrom, CompareAndSet, Acknowledge, Suspect>;
using OwnerActions = boost::container::small_vector<OwnerAction, 4>;

}  // namespace peplos::replica
