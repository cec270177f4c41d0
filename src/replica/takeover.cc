#include "replica/takeover.h"

#include <algorithm>

#include "base/check.h"
#include "base/fault.h"

namespace peplos::replica {

using control::OwnershipState;

Takeover::Takeover(NodeId self, OpenToken token, Epoch fence_seen, uint64_t generation,
                   Nodes cluster)
    : self_(self), generation_(generation), cluster_(std::move(cluster)) {
    mine_.claim = {self, fence_seen, token};
}

// ---- claiming ----

void Takeover::start(const Ownership& recorded, OwnerActions& out) {
    CHECK(phase_ == Phase::claiming && !recorded_.size());
    Epoch seen = mine_.claim.epoch;
    OpenToken token = mine_.claim.token;
    recorded_ = recorded.ensemble;
    is_restored_ = recorded.generation != generation_;
    if (PLANTED("protocol.believes_restored_store")) is_restored_ = false;
    mine_ = recorded;
    mine_.claim.token = token;
    before_ = recorded;
    claim(std::max(recorded.claim.epoch, seen).next(), out);
}

void Takeover::claim(Epoch epoch, OwnerActions& out) {
    phase_ = Phase::claiming;
    mine_.claim.owner = self_;
    mine_.claim.epoch = epoch;
    mine_.state = OwnershipState::recovering;
    mine_.version = before_.version + 1;
    version_ = mine_.version;
    out.push_back(CompareAndSet{before_, mine_, generation_});
}

void Takeover::on_cas(CasOutcome outcome, const Ownership& current, OwnerActions& out) {
    if (phase_ != Phase::claiming && phase_ != Phase::committing) return;
    if (outcome == CasOutcome::done || current == mine_) {
        if (phase_ == Phase::committing) {
            phase_ = Phase::serving;
            return;
        }
        phase_ = Phase::fencing;
        return fence(out);
    }
    // What was read is no proof that an earlier copy of the call will not be carried out yet.
    if (outcome == CasOutcome::unknown && current == before_) {
        out.push_back(CompareAndSet{before_, mine_, generation_});
        return;
    }
    phase_ = Phase::lost;
}

// ---- fencing ----

const EnsembleMember* Takeover::recorded_member(NodeId node) const {
    auto found = std::ranges::find(recorded_, node, &EnsembleMember::node);
    return found == recorded_.end() ? nullptr : &*found;
}

void Takeover::fence(OwnerActions& out) const {
    auto ask = [this, &out](NodeId node, const EnsembleMember* member) {
        if (find(node) != nullptr) return;
        FenceMessage message{mine_.claim, {}, {}};
        if (member != nullptr) {
            message.incarnation = member->incarnation;
            message.token = member->token;
        }
        out.push_back(Send{node, message});
    };
    for (const EnsembleMember& member : recorded_)
        ask(member.node, &member);
    if (!is_restored_) return;
    for (NodeId node : cluster_) {
        if (recorded_member(node) == nullptr) ask(node, nullptr);
    }
}

const Takeover::Heard* Takeover::find(NodeId node) const {
    auto found = std::ranges::find(heard_, node, &Heard::from);
    return found == heard_.end() ? nullptr : &*found;
}

// The first word of a node counts: its log is frozen from then on.
void Takeover::hear(const Heard& heard) {
    if (phase_ != Phase::fencing || find(heard.from) != nullptr) return;
    auto place = std::ranges::upper_bound(heard_, heard.from, {}, &Heard::from);
    heard_.insert(place, heard);
}

void Takeover::on_fence_answer(const FenceAnswer& answer) {
    if (answer.claim != mine_.claim) return;
    hear({answer.from, true, answer.incarnation, answer.outcome, answer.last_lsn, answer.opened});
}

void Takeover::on_refusal(const Refusal& refusal, OwnerActions& out) {
    if (refusal.claim != mine_.claim) return;
    if (refusal.reason == Refusal::Reason::failed) {
        on_source_lost(refusal.from);
        return hear({.from = refusal.from});
    }
    // The device was replaced since it answered.
    if (refusal.reason == Refusal::Reason::stranger) return on_source_lost(refusal.from);
    bool is_fenced = refusal.reason == Refusal::Reason::fenced;
    if (!is_fenced || (phase_ != Phase::fencing && phase_ != Phase::opening)) return;
    // Either somebody claimed after us, and this compare-and-set fails, or the control store went
    // back behind that fence, and its ensemble is of the past.
    if (PLANTED("protocol.epoch_from_store")) return;
    before_ = mine_;
    mine_.generation = 0;
    if (!PLANTED("protocol.believes_restored_store")) is_restored_ = true;
    heard_.clear();
    next_.clear();
    opened_.clear();
    claim(std::max(refusal.fence, mine_.claim.epoch).next(), out);
}

// ---- adopting ----

bool Takeover::is_better(const Heard& a, const Heard& b) const {
    if (is_restored_ && a.opened != b.opened) return a.opened > b.opened;
    return a.last_lsn > b.last_lsn;
}

bool Takeover::has_everybody_answered() const {
    return std::ranges::all_of(cluster_, [this](NodeId node) { return find(node) != nullptr; });
}

const Takeover::Heard* Takeover::choose() const {
    if (is_restored_ && !has_everybody_answered()) return nullptr;
    const Heard* best = nullptr;
    for (const Heard& heard : heard_) {
        bool may_be = is_restored_ ? heard.opened.value != 0
                                   : recorded_member(heard.from) != nullptr &&
                                         heard.outcome == LogOutcome::complete;
        if (!heard.is_usable || !may_be) continue;
        if (best == nullptr || is_better(heard, *best)) best = &heard;
    }
    return best;
}

Takeover::Source Takeover::source() const {
    const Heard* best = choose();
    return best == nullptr ? Source{} : Source{best->from, best->incarnation, best->last_lsn};
}

void Takeover::on_source_lost(NodeId node) {
    for (Heard& heard : heard_) {
        if (heard.from == node) heard.is_usable = false;
    }
}

bool Takeover::may_adopt() const {
    if (phase_ != Phase::fencing && phase_ != Phase::opening) return false;
    if (recorded_.empty() && !is_restored_) return true;
    return choose() != nullptr;
}

std::string Takeover::why_waiting() const {
    if (may_adopt()) return {};
    std::string silent;
    auto name = [&silent, this](NodeId node) {
        if (find(node) == nullptr) silent += fmt::format("{}{}", silent.empty() ? "" : ", ", node);
    };
    if (is_restored_) {
        for (NodeId node : cluster_)
            name(node);
        if (silent.empty())
            return "the control store was restored from a backup, and no node holds the journal";
        return fmt::format(
            "the control store was restored from a backup: every node has to say "
            "what it holds, and these did not answer: {}",
            silent);
    }
    for (const EnsembleMember& member : recorded_)
        name(member.node);
    if (silent.empty()) return "no member of the journal can prove that its copy is complete";
    return fmt::format("no member of the journal with a complete copy answered; silent: {}",
                       silent);
}

Lsn Takeover::keep_lsn(const EnsembleMember& member) const {
    NodeId node = member.node;
    const Heard* heard = find(node);
    bool has_log = heard != nullptr && heard->is_usable;
    if (!has_log || heard->incarnation != member.incarnation) return {};
    bool is_part =
        node == source().node || (!is_restored_ && heard->outcome == LogOutcome::complete &&
                                  recorded_member(node) != nullptr);
    return is_part ? std::min(heard->last_lsn, adopted_lsn_) : Lsn(0);
}

void Takeover::adopt(const Members& next, Time now, OwnerActions& out) {
    CHECK(may_adopt() && !next.empty());
    phase_ = Phase::opening;
    const Heard* source = choose();
    adopted_lsn_ = source == nullptr ? Lsn(0) : source->last_lsn;
    next_ = next;
    opened_.clear();
    ++version_;
    for (const EnsembleMember& member : next_)
        send_open(member, now, out);
    if (PLANTED("protocol.serves_before_copy")) commit(out);
}

void Takeover::send_open(const EnsembleMember& member, Time now, OwnerActions& out) const {
    const EnsembleMember* recorded = recorded_member(member.node);
    OpenMessage open{.claim = mine_.claim,
                     .version = version_,
                     .incarnation = member.incarnation,
                     .token = member.token,
                     .recorded = recorded == nullptr ? OpenToken(0) : recorded->token,
                     .keep_lsn = keep_lsn(member),
                     .last_lsn = adopted_lsn_,
                     .sent_at = now};
    if (PLANTED("protocol.no_copy")) open.last_lsn = open.keep_lsn;
    out.push_back(Send{member.node, open});
}

void Takeover::on_answer(const MemberAnswer& answer, OwnerActions& out) {
    if (phase_ != Phase::opening || answer.claim != mine_.claim) return;
    auto member = std::ranges::find(next_, answer.from, &EnsembleMember::node);
    if (member == next_.end() || member->token != answer.token) return;
    auto place = std::ranges::lower_bound(opened_, answer.from);
    if (place == opened_.end() || *place != answer.from) opened_.insert(place, answer.from);
    if (opened_.size() == next_.size()) commit(out);
}

// ---- committing ----

void Takeover::commit(OwnerActions& out) {
    phase_ = Phase::committing;
    before_ = mine_;
    mine_.state = OwnershipState::open;
    mine_.ensemble = next_;
    mine_.version = version_;
    mine_.generation = generation_;
    out.push_back(CompareAndSet{before_, mine_, generation_});
    if (PLANTED("protocol.serves_before_commit")) phase_ = Phase::serving;
}

void Takeover::repeat(Time now, OwnerActions& out) const {
    if (phase_ == Phase::fencing) fence(out);
    if (phase_ != Phase::opening) return;
    for (const EnsembleMember& member : next_) {
        if (!std::ranges::binary_search(opened_, member.node)) send_open(member, now, out);
    }
}

}  // namespace peplos::replica
