#include <algorithm>

#include "base/fault.h"
#include "base/log.h"
#include "replica/log_owner.h"

namespace peplos::replica {

namespace {

constexpr Duration kLookAgain = std::chrono::milliseconds(100);
// When nothing was left to try.
constexpr Duration kFruitlessPause = std::chrono::milliseconds(300);

}  // namespace

// ---- whether, and to what ----

void LogOwner::consider_change() {
    if (is_changing_ || is_over() || !ensemble_.may_propose()) return;
    if (now() < change_due_ && !is_degrading_) return;
    is_changing_ = true;
    spawn(change(shared_from_this()));
}

void LogOwner::reconsider() {
    avoided_.clear();
    change_due_ = {};
    consider_change();
}

Result<void> LogOwner::degrade() {
    TRY(check());
    if (ensemble_.change() == Ensemble::Change::deciding) {
        return fail(Code::conflict,
                    "volume {}: a change of its members is being recorded already: look again when "
                    "it is over",
                    volume_);
    }
    if (silent_nodes().empty()) {
        return fail(Code::conflict, "volume {}: every member of its journal answers: nothing waits",
                    volume_);
    }
    is_degrading_ = true;
    change_news_.ring();
    consider_change();
    return {};
}

std::vector<NodeId> LogOwner::silent_nodes() const {
    std::vector<NodeId> out;
    for (const Ensemble::Peer& peer : ensemble_.peers()) {
        if (!peer.is_recorded) continue;
        StreamPtr stream = find(peer.member.node, peer.member.token);
        bool is_silent =
            stream != nullptr && (stream->is_silent || stream->is_reset || stream->is_refused);
        if (is_silent) out.push_back(peer.member.node);
    }
    return out;
}

void LogOwner::avoid(NodeId node) {
    std::erase_if(avoided_, [node](const auto& known) { return known.first == node; });
    avoided_.emplace_back(node, now() + context_.timing.avoid);
}

std::vector<NodeId> LogOwner::avoided_nodes() {
    std::erase_if(avoided_, [at = now()](const auto& known) { return known.second <= at; });
    std::vector<NodeId> out = silent_nodes();
    for (const auto& [node, until] : avoided_) {
        if (std::ranges::find(out, node) == out.end()) out.push_back(node);
    }
    return out;
}

Members LogOwner::without_silent() const {
    std::vector<NodeId> silent = silent_nodes();
    Members out;
    for (const EnsembleMember& member : ensemble_.ownership().ensemble) {
        if (std::ranges::find(silent, member.node) == silent.end()) out.push_back(member);
    }
    return out;
}

// Members that stay keep their token, new ones get one. Empty: no change.
Members LogOwner::choose_next() {
    const Members& present = ensemble_.ownership().ensemble;
    std::vector<NodeId> avoid = avoided_nodes();
    Members chosen = context_.chooser.choose(volume_, copies_, present, avoid);
    why_ = "no other node can take a copy now";
    Members out;
    bool is_new = false;
    bool has_own = false;
    for (EnsembleMember member : chosen) {
        bool is_avoided = std::ranges::find(avoid, member.node) != avoid.end();
        bool is_twice = std::ranges::find(out, member.node, &EnsembleMember::node) != out.end();
        if (is_avoided || is_twice) return {};
        if (member.node == context_.self) {
            has_own = true;
            member = own_member_;
        }
        auto known = std::ranges::find(present, member.node, &EnsembleMember::node);
        bool stays = known != present.end() && known->incarnation == member.incarnation;
        member.token = stays ? known->token : OpenToken(context_.env.rng.next_id());
        is_new = is_new || !stays;
        out.push_back(member);
    }
    bool is_change = is_new || out.size() != present.size();
    if (!has_own || !is_change) return {};
    why_.clear();
    return out;
}

// ---- from the proposal to the record ----

Task<void> LogOwner::change(Self self) {
    while (co_await self->change_once()) {
    }
    self->change_due_ = self->now() + kFruitlessPause;
    self->is_changing_ = false;
    self->is_keeping_ = false;
    self->sync_streams();
    self->begin_ticking();
}

// False: nothing is left to do, or to try, now.
Task<bool> LogOwner::change_once() {
    if (is_over() || !ensemble_.may_propose()) co_return false;
    Members next;
    if (std::exchange(is_degrading_, false)) {
        next = without_silent();
        if (next.size() == ensemble_.ownership().ensemble.size()) co_return false;
    } else {
        next = choose_next();
    }
    if (next.empty()) co_return false;
    if (!co_await start_keeping()) co_return false;
    if (!ensemble_.may_propose()) co_return false;
    std::shared_ptr<Proposal> proposal = propose(next);
    if (!co_await see_through(std::move(proposal)))
        co_await context_.env.clock.sleep_for(kOwnerPauseMin);
    co_return !is_over();
}

// From here on all that the own member does not hold durably is in memory.
Task<bool> LogOwner::start_keeping() {
    if (!keeps_records()) {
        is_keeping_ = true;
        pending_first_ = next_lsn();
        keeping_from_ = ensemble_.last_lsn();
    }
    while (!is_over() && own_durable_lsn_ < keeping_from_)
        co_await change_news_.wait(context_.env.clock, kLookAgain);
    co_return !is_over();
}

std::shared_ptr<LogOwner::Proposal> LogOwner::propose(const Members& next) {
    auto proposal = std::make_shared<Proposal>();
    proposal->last_lsn = ensemble_.last_lsn();
    proposal->heard = now();
    proposal->in_flight.assign(pending_.begin(), pending_.end());
    LOG_INFO("the journal gets other members volume={} members={}", volume_, next.size());
    OwnerActions actions;
    ensemble_.propose(next, now(), actions);
    sync_streams();
    proposal_ = proposal;
    run(actions);
    proposal_.reset();
    if (!proposal->opens.empty()) spawn(open_all(shared_from_this(), proposal));
    begin_ticking();
    return proposal;
}

// A new member failed, or the log for it.
bool LogOwner::has_failed(const Proposal& proposal) {
    bool has = proposal.is_stale || proposal.is_too_long || is_degrading_;
    for (const auto& [stream, message] : proposal.opens) {
        Time heard = std::max(stream->heard, proposal.heard);
        bool is_silent = now() - heard >= context_.timing.open_patience;
        if (!stream->is_refused && !is_silent) continue;
        PROBE("replica.owner.new_member_failed");
        avoid(stream->member.node);
        has = true;
    }
    return has;
}

Task<bool> LogOwner::see_through(std::shared_ptr<Proposal> proposal) {
    while (!is_over() && ensemble_.change() != Ensemble::Change::none) {
        if (ensemble_.may_give_up() && has_failed(*proposal)) {
            PROBE("replica.owner.gives_up");
            for (const auto& [stream, message] : proposal->opens) {
                if (proposal->is_too_long) avoid(stream->member.node);
            }
            ensemble_.give_up();
            sync_streams();
            if (proposal->is_too_long)
                why_ = "the journal has to be drained before a new member can take it";
            co_return false;
        }
        co_await change_news_.wait(context_.env.clock, kLookAgain);
    }
    co_return true;
}

// ---- the log, to new members ----

Task<Result<LogRecords>> LogOwner::load_tail(Self self, std::shared_ptr<Proposal> proposal) {
    std::vector<format::Record>& in_flight = proposal->in_flight;
    Lsn own_end = proposal->last_lsn;
    if (!in_flight.empty()) own_end = Lsn(in_flight.front().lsn.value - 1);
    LogOwner& owner = *self;
    LogRecords tail;
    // A log of which all is drained ends with a root or a seal: there is something to read always.
    if (own_end) {
        CO_TRY_ASSIGN(tail, co_await read_tail(
                                owner.context_.env.clock, owner.context_.ports.local(),
                                owner.volume_, owner.claim(), owner.own_member_.incarnation, Lsn(0),
                                own_end, limits::kEnsembleTailBytesMax, &proposal->heard));
    }
    tail.records.insert(tail.records.end(), std::make_move_iterator(in_flight.begin()),
                        std::make_move_iterator(in_flight.end()));
    in_flight.clear();
    CO_TRY(check_tail(tail.records, Lsn(0), proposal->last_lsn));
    co_return tail;
}

Task<void> LogOwner::open_all(Self self, std::shared_ptr<Proposal> proposal) {
    auto loaded = co_await load_tail(self, proposal);
    if (self->is_over()) co_return;
    if (!loaded) {
        PROBE("replica.owner.tail_is_stale");
        LOG_INFO("the journal cannot be given to new members now volume={} why={}", self->volume_,
                 loaded.error().text());
        proposal->is_too_long = loaded.error().code() == Code::no_space;
        proposal->is_stale = true;
        self->change_news_.ring();
        co_return;
    }
    auto tail = std::make_shared<const LogRecords>(std::move(*loaded));
    for (const auto& [stream, message] : proposal->opens) {
        stream->heard = self->now();
        self->spawn(open_member(self, stream, message, tail));
    }
}

Task<void> LogOwner::open_member(Self self, StreamPtr stream, OpenMessage message,
                                 std::shared_ptr<const LogRecords> tail) {
    LogOwner& owner = *self;
    while (!owner.is_over() && !stream->is_over) {
        MemberPort* port = owner.context_.ports.find(stream->member.node);
        if (port != nullptr) {
            auto word = co_await send_open(owner.context_.env.clock, *port, owner.volume_,
                                           owner.lineage_, message, *tail, &stream->heard);
            if (owner.is_over() || stream->is_over) co_return;
            if (word) {
                owner.on_word(stream, *word);
                if (stream->is_open || stream->is_refused) break;
            }
        }
        co_await owner.context_.env.clock.sleep_for(kLookAgain);
    }
    owner.change_news_.ring();
}

// ---- the record ----

Task<void> LogOwner::decide(Self self, CompareAndSet cas) {
    LogOwner& owner = *self;
    for (Duration pause = kOwnerPauseMin;; pause = std::min(2 * pause, kOwnerPauseMax)) {
        auto [outcome, current] = co_await owner.context_.store.compare_and_set(owner.volume_, cas);
        if (owner.is_over()) co_return;
        OwnerActions actions;
        owner.ensemble_.on_cas(outcome, current, actions);
        auto repeat = std::ranges::find_if(actions, [](const OwnerAction& action) {
            return std::holds_alternative<CompareAndSet>(action);
        });
        const bool is_repeated = repeat != actions.end();
        if (is_repeated) {
            PROBE("replica.owner.repeats_cas");
            cas = std::get<CompareAndSet>(*repeat);
            actions.erase(repeat);
        }
        owner.run(actions);
        if (owner.is_over()) co_return;
        if (!is_repeated) break;
        co_await owner.context_.env.clock.sleep_for(pause);
        if (owner.is_over()) co_return;
    }
    owner.sync_streams();
    owner.change_news_.ring();
    owner.begin_ticking();
}

}  // namespace peplos::replica
