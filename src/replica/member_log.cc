#include "replica/member_log.h"

#include "base/check.h"
#include "base/fault.h"

namespace peplos::replica {

void MemberLog::apply(const WriteRecord& write, Stored& stored) {
    stored.last_lsn = write.lsn;
}

void MemberLog::apply(const WriteFence& write, Stored& stored) {
    stored.fence = write.claim;
}

void MemberLog::apply(const WriteOpen& write, Stored& stored) {
    // A fence that was taken while this was on its way is behind it, and newer.
    if (stored.fence.epoch <= write.open.claim.epoch) stored.fence = write.open.claim;
    stored.opened_by = write.open.claim;
    stored.version = write.open.version;
    stored.token = write.open.token;
    stored.recorded = write.recorded;
    stored.last_lsn = write.open.last_lsn;
    stored.is_damaged = false;
}

MemberLog::MemberLog(NodeId self, Incarnation device, Timing timing, const Stored& stored, Time now)
    : self_(self),
      device_(device),
      timing_(timing),
      stored_(stored),
      fence_(stored.fence),
      last_lsn_(stored.last_lsn) {
    bool was_promised = stored.token && stored.opened_by.owner != self;
    if (!was_promised || PLANTED("protocol.restart_forgets_promise")) return;
    promised_to_ = stored.opened_by.owner;
    promise_.extend(now + timing.promise);
}

void MemberLog::on_message(const Message& message, Time now, Actions& out) {
    if (const auto* fence = std::get_if<FenceMessage>(&message)) return on_fence(*fence, now, out);
    if (const auto* open = std::get_if<OpenMessage>(&message)) return on_open(*open, now, out);
    if (const auto* append = std::get_if<AppendMessage>(&message))
        return on_append(*append, now, out);
    if (const auto* renew = std::get_if<RenewMessage>(&message)) return on_renew(*renew, now, out);
    if (const auto* release = std::get_if<ReleaseMessage>(&message))
        return on_release(*release, now, out);
}

bool MemberLog::is_current(const Claim& claim) const {
    if (claim.epoch != fence_.epoch) return claim.epoch > fence_.epoch;
    return claim == fence_ || PLANTED("protocol.ignores_token");
}

bool MemberLog::is_open_for(const Claim& claim, OpenToken token) const {
    if (PLANTED("protocol.ignores_fence")) return token == stored_.token;
    if (opening_ || !stored_.token || claim.epoch != fence_.epoch) return false;
    if (PLANTED("protocol.ignores_token")) return stored_.opened_by.epoch == claim.epoch;
    return claim == fence_ && stored_.opened_by == claim && token == stored_.token;
}

bool MemberLog::is_proven_by(Incarnation incarnation, OpenToken token) const {
    bool is_same_device = incarnation == device_ || PLANTED("protocol.ignores_incarnation");
    if (!token || stored_.is_damaged || !is_same_device) return false;
    return token == stored_.token || token == stored_.recorded;
}

// ---- fencing ----

void MemberLog::on_fence(const FenceMessage& message, Time now, Actions& out) {
    if (failed_ && PLANTED("protocol.io_error_is_absence")) {
        FenceAnswer absent{.claim = message.claim, .from = self_, .incarnation = device_};
        absent.outcome = LogOutcome::complete;
        out.push_back(Send{message.claim.owner, absent});
        return;
    }
    if (failed_) return refuse(message.claim, message.token, Refusal::Reason::failed, out);
    if (PLANTED("protocol.no_fence")) {
        out.push_back(Send{message.claim.owner, judge(message)});
        return;
    }
    if (!is_current(message.claim))
        return refuse(message.claim, message.token, Refusal::Reason::fenced, out);
    if (message.claim != fence_) {
        fence_ = message.claim;
        sent_at_ = {};
        out.push_back(WriteFence{message.claim});
    }
    asked_ = message;
    answer_fence(now, out);
}

void MemberLog::on_fenced(const Claim& claim, Time now, Actions& out) {
    apply(WriteFence{claim}, stored_);
    answer_fence(now, out);
}

void MemberLog::answer_fence(Time now, Actions& out) {
    if (!asked_ || asked_->claim != fence_) return;
    bool is_durable = stored_.fence == fence_ || PLANTED("protocol.volatile_fence");
    if (!is_durable) return;
    // Whoever claims from the node that was promised to has seen its earlier self die.
    bool is_promised = promise_.holds(now) && promised_to_ != fence_.owner;
    if (is_promised && !PLANTED("protocol.breaks_promise")) {
        out.push_back(Wake{promise_.until});
        return;
    }
    out.push_back(Send{fence_.owner, judge(*asked_)});
    asked_.reset();
}

FenceAnswer MemberLog::judge(const FenceMessage& asked) const {
    FenceAnswer out{.claim = asked.claim, .from = self_, .incarnation = device_};
    out.last_lsn = stored_.last_lsn;
    if (is_proven_by(asked.incarnation, asked.token)) out.outcome = LogOutcome::complete;
    if (!stored_.token && PLANTED("protocol.wiped_is_empty")) out.outcome = LogOutcome::complete;
    if (!stored_.is_damaged) out.opened = stored_.opened_by.epoch;
    return out;
}

void MemberLog::on_time(Time now, Actions& out) {
    answer_fence(now, out);
}

// ---- becoming a member ----

void MemberLog::on_open(const OpenMessage& message, Time now, Actions& out) {
    using Reason = Refusal::Reason;
    if (failed_) return refuse(message.claim, message.token, Reason::failed, out);
    bool is_same_device = message.incarnation == device_ || PLANTED("protocol.ignores_incarnation");
    if (!is_same_device) return refuse(message.claim, message.token, Reason::stranger, out);
    if (!is_current(message.claim) && !PLANTED("protocol.ignores_fence"))
        return refuse(message.claim, message.token, Reason::fenced, out);
    if (opening_) return;  // its repeat, or one that the owner will repeat
    if (message.token == stored_.token) {
        sent_at_ = std::max(sent_at_, message.sent_at);
        return answer(now, out);
    }
    bool is_old = message.claim == stored_.opened_by && message.version <= stored_.version;
    bool is_unfounded =
        message.keep_lsn && (message.claim != fence_ || message.keep_lsn > stored_.last_lsn);
    if (is_old || is_unfounded) return refuse(message.claim, message.token, Reason::stranger, out);
    if (message.claim != fence_) sent_at_ = {};
    fence_ = message.claim;
    sent_at_ = std::max(sent_at_, message.sent_at);
    bool is_proven = is_proven_by(device_, message.recorded);
    opening_ = WriteOpen{message, is_proven ? message.recorded : OpenToken(0)};
    out.push_back(*opening_);
}

void MemberLog::on_opened(OpenToken token, Time now, Actions& out) {
    CHECK(opening_ && opening_->open.token == token, "an open ends that never began");
    apply(*opening_, stored_);
    last_lsn_ = stored_.last_lsn;
    opening_.reset();
    if (stored_.opened_by == fence_) answer(now, out);
    answer_fence(now, out);
}

// Of the owner for whom the log is open; everybody else is refused.
bool MemberLog::admits(const Claim& claim, OpenToken token, Actions& out) const {
    using Reason = Refusal::Reason;
    if (!failed_ && is_open_for(claim, token)) return true;
    Reason unknown = is_current(claim) ? Reason::stranger : Reason::fenced;
    refuse(claim, token, failed_ ? Reason::failed : unknown, out);
    return false;
}

// ---- appending ----

void MemberLog::on_append(const AppendMessage& message, Time now, Actions& out) {
    if (!admits(message.claim, message.token, out)) return;
    sent_at_ = std::max(sent_at_, message.sent_at);
    bool is_repeat = message.lsn <= last_lsn_ && !PLANTED("protocol.repeats_append");
    if (is_repeat) {
        if (message.lsn <= stored_.last_lsn) answer(now, out);
        return;
    }
    bool is_gap = message.lsn > last_lsn_.next() && !PLANTED("protocol.accepts_gap");
    if (is_gap) return answer(now, out, true);
    last_lsn_ = PLANTED("protocol.accepts_gap") ? message.lsn : last_lsn_.next();
    out.push_back(WriteRecord{last_lsn_});
    if (PLANTED("protocol.volatile_append")) {
        MemberAnswer early{fence_, self_, stored_.token, last_lsn_, false, sent_at_};
        out.push_back(Send{fence_.owner, early});
    }
}

void MemberLog::on_appended(Lsn lsn, Time now, Actions& out) {
    apply(WriteRecord{lsn}, stored_);
    answer(now, out);
}

void MemberLog::on_io_error(Actions& out) {
    failed_ = true;
    opening_.reset();
    if (asked_) refuse(asked_->claim, asked_->token, Refusal::Reason::failed, out);
    asked_.reset();
    if (stored_.token) refuse(stored_.opened_by, stored_.token, Refusal::Reason::failed, out);
}

// ---- promises ----

void MemberLog::on_renew(const RenewMessage& message, Time now, Actions& out) {
    if (!admits(message.claim, message.token, out)) return;
    sent_at_ = std::max(sent_at_, message.sent_at);
    answer(now, out);
}

void MemberLog::on_release(const ReleaseMessage& message, Time now, Actions& out) {
    if (message.claim != stored_.opened_by) return;
    promise_ = {};
    answer_fence(now, out);
}

// Says what is durable, to the owner who opened this log. Unless a newer claim is here, that is a
// promise too.
void MemberLog::answer(Time now, Actions& out, bool is_gap) {
    MemberAnswer said{stored_.opened_by, self_, stored_.token, stored_.last_lsn, is_gap, {}};
    bool may_promise = fence_ == stored_.opened_by || PLANTED("protocol.no_fence");
    if (may_promise) {
        said.sent_at = sent_at_;
        promised_to_ = fence_.owner;
        promise_.extend(now + timing_.promise);
    }
    out.push_back(Send{said.claim.owner, said});
}

void MemberLog::refuse(const Claim& claim, OpenToken token, Refusal::Reason reason,
                       Actions& out) const {
    out.push_back(Send{claim.owner, Refusal{claim, self_, token, reason, fence_.epoch}});
}

}  // namespace peplos::replica
