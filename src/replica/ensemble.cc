#include "replica/ensemble.h"

#include <algorithm>

#include "base/check.h"
#include "base/fault.h"

namespace peplos::replica {

Ensemble::Ensemble(const Ownership& ownership, Lsn last_lsn, Timing timing)
    : timing_(timing),
      recorded_(ownership),
      version_(ownership.version),
      last_lsn_(last_lsn),
      acknowledged_lsn_(last_lsn) {
    CHECK(ownership.state == control::OwnershipState::open && !ownership.ensemble.empty());
    for (const EnsembleMember& member : ownership.ensemble)
        peers_.push_back({member, last_lsn, {}, true, false, true});
}

Ensemble::Peer* Ensemble::find(NodeId node, OpenToken token) {
    for (Peer& peer : peers_) {
        if (peer.member.node == node && peer.member.token == token) return &peer;
    }
    return nullptr;
}

bool Ensemble::counts(const Peer& peer) const {
    if (change_ != Change::deciding) return peer.is_recorded;
    if (PLANTED("protocol.acknowledges_before_cas")) return peer.is_proposed;
    return peer.is_recorded || peer.is_proposed;
}

// ---- writes ----

Lsn Ensemble::submit(Time now, OwnerActions& out) {
    CHECK(!is_stopped_);
    last_lsn_ = last_lsn_.next();
    for (const Peer& peer : peers_) {
        if (peer.is_open) send_append(peer, last_lsn_, now, out);
    }
    return last_lsn_;
}

void Ensemble::send_append(const Peer& peer, Lsn lsn, Time now, OwnerActions& out) const {
    out.push_back(
        Send{peer.member.node, AppendMessage{recorded_.claim, peer.member.token, lsn, now}});
}

void Ensemble::send_from(const Peer& peer, Lsn first, OwnerActions& out) const {
    if (first <= last_lsn_) out.push_back(SendFrom{peer.member.node, peer.member.token, first});
}

void Ensemble::resend(NodeId node, OpenToken token, OwnerActions& out) const {
    for (const Peer& peer : peers_) {
        bool is_it = peer.member.node == node && peer.member.token == token;
        if (is_it && peer.is_open) send_from(peer, peer.durable_lsn.next(), out);
    }
}

void Ensemble::on_answer(const MemberAnswer& answer, Time now, OwnerActions& out) {
    Peer* peer = find(answer.from, answer.token);
    if (is_stopped_ || peer == nullptr || answer.claim != recorded_.claim) return;
    bool was_open = std::exchange(peer->is_open, true);
    peer->durable_lsn = std::max(peer->durable_lsn, answer.durable_lsn);
    // The member counts from when it got the request, which was not before it was sent; and nothing
    // was sent that is still to come.
    Time since = PLANTED("protocol.promise_from_answer") ? now : std::min(answer.sent_at, now);
    peer->promise.extend(since + timing_.promise - timing_.margin);
    if (!was_open || answer.is_gap) send_from(*peer, answer.durable_lsn.next(), out);
    move_on(out);
}

Lsn Ensemble::durable_on_all() const {
    boost::container::static_vector<Lsn, 2 * limits::kEnsembleMembersMax> durable;
    for (const Peer& peer : peers_) {
        if (counts(peer)) durable.push_back(std::min(peer.durable_lsn, last_lsn_));
    }
    std::ranges::sort(durable);
    if (PLANTED("protocol.acknowledges_majority")) return durable[(durable.size() - 1) / 2];
    return durable.front();
}

// Something became durable, or the ensemble another one.
void Ensemble::move_on(OwnerActions& out) {
    if (is_stopped_) return;
    if (Lsn durable = durable_on_all(); durable > acknowledged_lsn_) {
        acknowledged_lsn_ = durable;
        out.push_back(Acknowledge{durable});
    }
    if (change_ != Change::opening || !may_decide()) return;
    change_ = Change::deciding;
    if (PLANTED("protocol.changes_without_cas")) {
        take_over_proposed();
        return move_on(out);
    }
    out.push_back(CompareAndSet{recorded_, proposed_, recorded_.generation});
    if (PLANTED("protocol.acknowledges_before_cas")) move_on(out);
}

bool Ensemble::may_decide() const {
    return std::ranges::all_of(peers_, [this](const Peer& peer) {
        return !peer.is_proposed || (peer.is_open && peer.durable_lsn >= acknowledged_lsn_);
    });
}

// ---- refusals ----

void Ensemble::on_refusal(const Refusal& refusal, OwnerActions& out) {
    if (is_stopped_ || refusal.claim != recorded_.claim) return;
    if (refusal.reason == Refusal::Reason::fenced) {
        is_stopped_ = true;
        return;
    }
    // An open that came late may be refused as a stranger's after a newer one was taken.
    if (find(refusal.from, refusal.token) != nullptr) out.push_back(Suspect{refusal.from});
}

// ---- another ensemble ----

void Ensemble::propose(const Members& next, Time now, OwnerActions& out) {
    CHECK(may_propose());
    CHECK(std::ranges::any_of(
        next, [this](const auto& member) { return member.node == recorded_.claim.owner; }));
    change_ = Change::opening;
    proposed_ = recorded_;
    proposed_.ensemble = next;
    proposed_.version = ++version_;
    for (const EnsembleMember& member : next) {
        if (Peer* peer = find(member.node, member.token)) {
            peer->is_proposed = true;
            continue;
        }
        peers_.push_back({member, {}, {}, false, true, false});
        OpenMessage open{.claim = recorded_.claim,
                         .version = version_,
                         .incarnation = member.incarnation,
                         .token = member.token,
                         .recorded = {},
                         .keep_lsn = {},
                         .last_lsn = last_lsn_,
                         .sent_at = now};
        out.push_back(Send{member.node, open});
    }
    move_on(out);
}

void Ensemble::give_up() {
    CHECK(may_give_up());
    forget_proposed();
}

void Ensemble::keep_peers(bool (*is_kept)(const Peer&)) {
    auto end = std::remove_if(peers_.begin(), peers_.end(),
                              [is_kept](const Peer& peer) { return !is_kept(peer); });
    peers_.erase(end, peers_.end());
}

void Ensemble::forget_proposed() {
    change_ = Change::none;
    proposed_ = {};
    keep_peers([](const Peer& peer) { return peer.is_recorded; });
    for (Peer& peer : peers_)
        peer.is_proposed = false;
}

void Ensemble::take_over_proposed() {
    change_ = Change::none;
    recorded_ = std::exchange(proposed_, {});
    keep_peers([](const Peer& peer) { return peer.is_proposed; });
    for (Peer& peer : peers_) {
        peer.is_proposed = false;
        peer.is_recorded = true;
    }
}

void Ensemble::on_cas(CasOutcome outcome, const Ownership& current, OwnerActions& out) {
    if (is_stopped_ || change_ != Change::deciding) return;
    if (outcome == CasOutcome::done || current == proposed_) {
        take_over_proposed();
        return move_on(out);
    }
    if (outcome == CasOutcome::unknown && PLANTED("protocol.unknown_is_failure"))
        return forget_proposed();
    if (outcome == CasOutcome::unknown && current == recorded_) {
        if (PLANTED("protocol.reads_record_once")) return forget_proposed();
        out.push_back(CompareAndSet{recorded_, proposed_, recorded_.generation});
        return;
    }
    is_stopped_ = true;  // the record is somebody else's, or was put back
}

// ---- reads ----

bool Ensemble::may_read(Time now) const {
    if (is_stopped_) return false;
    return std::ranges::all_of(peers_, [this, now](const Peer& peer) {
        bool is_needed = counts(peer);
        if (!peer.is_recorded && PLANTED("protocol.reads_by_old_ensemble")) is_needed = false;
        return !is_needed || peer.promise.holds(now);
    });
}

void Ensemble::renew(Time now, OwnerActions& out) const {
    if (is_stopped_) return;
    for (const Peer& peer : peers_) {
        if (!peer.is_open) continue;
        out.push_back(
            Send{peer.member.node, RenewMessage{recorded_.claim, peer.member.token, now}});
    }
}

void Ensemble::release(OwnerActions& out) {
    if (!PLANTED("protocol.reads_after_release")) is_stopped_ = true;
    for (const Peer& peer : peers_)
        out.push_back(Send{peer.member.node, ReleaseMessage{recorded_.claim}});
}

}  // namespace peplos::replica
