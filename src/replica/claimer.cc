#include "replica/claimer.h"

#include <algorithm>
#include <map>

#include "base/fault.h"
#include "base/log.h"
#include "replica/log_tail.h"
#include "replica/takeover.h"
#include "runtime/alarm.h"

namespace peplos::replica {

namespace {

using Phase = Takeover::Phase;

constexpr Duration kCandidatePause = std::chrono::milliseconds(50);
constexpr Duration kCallPause = std::chrono::milliseconds(50);
constexpr Duration kCasPauseMin = std::chrono::milliseconds(20);
constexpr Duration kCasPauseMax = std::chrono::seconds(1);
constexpr Duration kStorePause = std::chrono::milliseconds(200);
// Between two ensembles that are tried.
constexpr Duration kAdoptPause = std::chrono::milliseconds(200);
// Before a claim is made anew, after somebody interfered, and when all that was heard was no help.
constexpr Duration kLostPause = std::chrono::milliseconds(50);
constexpr Duration kHopelessPauseMin = std::chrono::seconds(1);
constexpr Duration kHopelessPauseMax = std::chrono::seconds(30);

}  // namespace

// One claim, from its compare-and-set to the log or to its loss. Calls that it made may outlive it.
class Claimer::Attempt final : public std::enable_shared_from_this<Attempt> {
  public:
    Attempt(OwnerContext& context, ClaimRequest request, Epoch fence_seen)
        : context_(context), request_(request) {
        std::vector<NodeId> nodes = context.ports.nodes();
        takeover_ = Takeover(context.self, OpenToken(context.env.rng.next_id()), fence_seen,
                             context.store.generation(), {nodes.begin(), nodes.end()});
    }

    // Errors: conflict (somebody else's claim is recorded), unavailable (what the members said is
    // no help: claim anew), stopping.
    Task<Result<std::unique_ptr<ReplicatedLog>>> run(Ownership recorded);
    void end() {
        is_over_ = true;
        news_.ring();
    }
    std::string why() const;
    Epoch epoch() const { return takeover_.claim().epoch; }

  private:
    using Self = std::shared_ptr<Attempt>;
    // One member of the ensemble to be, under the adoption under way.
    struct Opening {
        EnsembleMember member;
        Time heard{};
        bool is_done = false;
        bool is_refused = false;
        bool is_failed = false;  // and is not asked again
        std::string why;         // the last attempt came to nothing, for people
        void note(const Error& error) { why = fmt::format(" ({})", error.message()); }
    };
    using OpeningPtr = std::shared_ptr<Opening>;

    Time now() const { return context_.env.clock.now(); }
    void spawn(Task<void> task) { context_.gate.spawn(context_.env.executor, std::move(task)); }
    MemberPort* port_of(NodeId node) const {
        return node == context_.self ? &context_.ports.local() : context_.ports.find(node);
    }
    void carry_out(const OwnerActions& actions);
    void on_fencing();
    void on_opening();
    bool has_heard_all() const;
    bool is_hopeless() const;
    void adopt();
    Members choose_next();
    void lose_source(NodeId node);
    static Task<void> fence(Self self, NodeId node, FenceMessage message);
    static Task<void> open(Self self, OpeningPtr opening, OpenMessage message);
    Task<Result<LogRecords>> load_tail(const OpenMessage& message, OpeningPtr opening);
    static Task<void> decide(Self self, CompareAndSet cas);

    OwnerContext& context_;
    const ClaimRequest request_;
    Takeover takeover_;
    std::map<NodeId, Epoch> asking_;  // fences under way
    std::vector<OpeningPtr> openings_;
    std::vector<NodeId> avoided_;
    Time adopt_due_{};  // not before
    std::string why_not_chosen_;
    std::optional<Error> fenced_;  // by a newer claim, which the record names
    bool is_over_ = false;
    runtime::Alarm news_;
};

// ---- the way from phase to phase ----

Task<Result<std::unique_ptr<ReplicatedLog>>> Claimer::Attempt::run(Ownership recorded) {
    OwnerActions actions;
    takeover_.start(recorded, actions);
    carry_out(actions);
    while (!is_over_ && !context_.is_stopping) {
        switch (takeover_.phase()) {
            case Phase::claiming:
                adopt_due_ = {};
                break;
            case Phase::fencing:
                on_fencing();
                break;
            case Phase::opening:
                on_opening();
                break;
            case Phase::committing:
                break;
            case Phase::serving:
                co_return ReplicatedLog::start(context_, request_.volume, request_.lineage,
                                               request_.copies, takeover_.ownership(),
                                               takeover_.adopted_lsn());
            case Phase::lost:
                co_return fail(Code::conflict, "somebody else's claim on volume {} is recorded",
                               request_.volume);
        }
        if (fenced_) co_return fail(*fenced_);
        if (is_hopeless()) co_return fail(Code::unavailable, "{}", takeover_.why_waiting());
        co_await news_.wait(context_.env.clock, kCandidatePause);
    }
    co_return fail(Code::stopping, "the claim on volume {} was given up", request_.volume);
}

std::string Claimer::Attempt::why() const {
    switch (takeover_.phase()) {
        case Phase::claiming:
            return "the claim waits for the control store";
        case Phase::committing:
            return "the new members wait for the control store";
        case Phase::fencing:
            if (!why_not_chosen_.empty()) return why_not_chosen_;
            if (!takeover_.may_adopt()) return takeover_.why_waiting();
            return "the other members of the journal are asked for what they hold";
        case Phase::opening: {
            if (!takeover_.may_adopt()) return takeover_.why_waiting();
            std::string nodes;
            for (const OpeningPtr& opening : openings_) {
                if (opening->is_done) continue;
                nodes += fmt::format("{}{}{}", nodes.empty() ? "" : ", ", opening->member.node,
                                     opening->why);
            }
            if (!why_not_chosen_.empty()) return why_not_chosen_;
            return fmt::format("the journal is being copied to {}", nodes);
        }
        case Phase::serving:
        case Phase::lost:
            break;
    }
    return {};
}

void Claimer::Attempt::carry_out(const OwnerActions& actions) {
    for (const OwnerAction& action : actions) {
        if (const auto* cas = std::get_if<CompareAndSet>(&action)) {
            spawn(decide(shared_from_this(), *cas));
            continue;
        }
        const auto* sent = std::get_if<Send>(&action);
        if (sent == nullptr) continue;
        if (const auto* message = std::get_if<FenceMessage>(&sent->message)) {
            Epoch& asked = asking_[sent->to];
            if (asked == message->claim.epoch) continue;
            asked = message->claim.epoch;
            spawn(fence(shared_from_this(), sent->to, *message));
        } else if (const auto* message = std::get_if<OpenMessage>(&sent->message)) {
            auto found = std::ranges::find_if(openings_, [&](const OpeningPtr& opening) {
                return opening->member.token == message->token;
            });
            CHECK(found != openings_.end());
            spawn(open(shared_from_this(), *found, *message));
        }
    }
    news_.ring();
}

// ---- fencing ----

bool Claimer::Attempt::has_heard_all() const {
    auto has = [this](NodeId node) { return takeover_.has_heard(node); };
    return std::ranges::all_of(takeover_.recorded(), has, &EnsembleMember::node) &&
           (!takeover_.is_restored() || std::ranges::all_of(context_.ports.nodes(), has));
}

// Their words are final, for this claim.
bool Claimer::Attempt::is_hopeless() const {
    Phase phase = takeover_.phase();
    bool is_waiting = phase == Phase::fencing || phase == Phase::opening;
    return is_waiting && !takeover_.may_adopt() && (phase == Phase::opening || has_heard_all());
}

void Claimer::Attempt::on_fencing() {
    if (takeover_.may_adopt()) {
        if (adopt_due_ == Time{}) adopt_due_ = now() + context_.timing.fence_grace;
        if (has_heard_all() || now() >= adopt_due_) {
            adopt_due_ = now() + kAdoptPause;
            return adopt();
        }
    }
    OwnerActions actions;
    takeover_.repeat(now(), actions);
    bool is_new = std::ranges::any_of(actions, [this](const OwnerAction& action) {
        const auto* sent = std::get_if<Send>(&action);
        return sent != nullptr && asking_[sent->to] != takeover_.claim().epoch;
    });
    if (is_new) carry_out(actions);
}

Task<void> Claimer::Attempt::fence(Self self, NodeId node, FenceMessage message) {
    MemberPort* port = self->port_of(node);
    if (port != nullptr) {
        auto word = co_await port->fence(self->request_.volume, self->request_.lineage, message);
        if (self->is_over_) co_return;
        if (word) {
            OwnerActions actions;
            if (const auto* answer = std::get_if<FenceAnswer>(&*word))
                self->takeover_.on_fence_answer(*answer);
            if (const auto* refusal = std::get_if<Refusal>(&*word))
                self->takeover_.on_refusal(*refusal, actions);
            self->carry_out(actions);
        }
    }
    // What was not answered is asked again.
    co_await self->context_.env.clock.sleep_for(kCallPause);
    Epoch& asked = self->asking_[node];
    if (asked == message.claim.epoch) asked = {};
}

// ---- adopting ----

Members Claimer::Attempt::choose_next() {
    std::vector<NodeId> avoid = avoided_;
    for (const EnsembleMember& member : takeover_.recorded()) {
        if (!takeover_.has_heard(member.node)) avoid.push_back(member.node);
    }
    Members out =
        context_.chooser.choose(request_.volume, request_.copies, takeover_.recorded(), avoid);
    bool has_own = false;
    bool is_good = true;
    for (EnsembleMember& member : out) {
        has_own = has_own || member.node == context_.self;
        is_good = is_good && std::ranges::find(avoid, member.node) == avoid.end() &&
                  std::ranges::count(out, member.node, &EnsembleMember::node) == 1;
        member.token = OpenToken(context_.env.rng.next_id());
    }
    if (!has_own || !is_good) return {};
    return out;
}

void Claimer::Attempt::adopt() {
    Members next = choose_next();
    if (next.empty()) {
        why_not_chosen_ =
            fmt::format("no {} nodes can take a copy of the journal now", request_.copies);
        // Who failed may have come back.
        avoided_.clear();
        return;
    }
    why_not_chosen_.clear();
    openings_.clear();
    for (const EnsembleMember& member : next) {
        openings_.push_back(std::make_shared<Opening>());
        openings_.back()->member = member;
        openings_.back()->heard = now();
    }
    OwnerActions actions;
    takeover_.adopt(next, now(), actions);
    carry_out(actions);
}

void Claimer::Attempt::on_opening() {
    if (!takeover_.may_adopt() || now() < adopt_due_) return;
    bool is_failed = false;
    for (const OpeningPtr& opening : openings_) {
        bool is_silent =
            !opening->is_done && now() - opening->heard >= context_.timing.open_patience;
        if (is_silent || opening->is_failed) avoided_.push_back(opening->member.node);
        is_failed = is_failed || is_silent || opening->is_failed || opening->is_refused;
    }
    if (!is_failed) return;
    PROBE("replica.claimer.adopts_again");
    adopt_due_ = now() + kAdoptPause;
    adopt();
}

// If there is another log as good: for now it cannot be had from there.
void Claimer::Attempt::lose_source(NodeId node) {
    Takeover without = takeover_;
    without.on_source_lost(node);
    if (!without.may_adopt()) return;
    PROBE("replica.claimer.other_source");
    takeover_ = std::move(without);
    for (const OpeningPtr& opening : openings_)
        opening->is_refused = true;
    news_.ring();
}

Task<Result<LogRecords>> Claimer::Attempt::load_tail(const OpenMessage& message,
                                                     OpeningPtr opening) {
    LogRecords records;
    bool is_whole = message.keep_lsn == message.last_lsn || PLANTED("claimer.no_copy");
    if (is_whole) co_return records;
    Takeover::Source source = takeover_.source();
    // The own log, if it goes as far.
    for (const OpeningPtr& other : openings_) {
        bool has_all = other->member.node == context_.self &&
                       takeover_.keep_lsn(other->member) == message.last_lsn;
        if (has_all) source = {context_.self, other->member.incarnation, message.last_lsn};
    }
    MemberPort* port = port_of(source.node);
    if (port == nullptr) co_return fail(Code::unavailable, "no way to node {}", source.node);
    auto read = co_await read_tail(context_.env.clock, *port, request_.volume, message.claim,
                                   source.incarnation, message.keep_lsn, message.last_lsn,
                                   kTakeoverTailBytesMax, &opening->heard);
    if (read) {
        if (auto checked = check_tail(read->records, message.keep_lsn, message.last_lsn); !checked)
            read = fail(std::move(checked).error());
    }
    if (!read && source.node != context_.self && !is_over_) {
        LOG_INFO("the journal cannot be read from there now volume={} node={} why={}",
                 request_.volume, source.node, read.error().text());
        // It answered this claim before: a newer one has come since, and may be given up by now.
        if (read.error().code() == Code::fenced) {
            PROBE("replica.claimer.fenced_at_source");
            fenced_ = read.error();
            news_.ring();
        } else {
            lose_source(source.node);
        }
    }
    co_return read;
}

Task<void> Claimer::Attempt::open(Self self, OpeningPtr opening, OpenMessage message) {
    auto is_current = [&self, &opening] {
        return !self->is_over_ && self->takeover_.phase() == Phase::opening &&
               std::ranges::find(self->openings_, opening) != self->openings_.end();
    };
    while (is_current() && !opening->is_done && !opening->is_refused) {
        auto tail = co_await self->load_tail(message, opening);
        MemberPort* port = self->port_of(opening->member.node);
        if (tail && port != nullptr && is_current()) {
            auto word = co_await send_open(self->context_.env.clock, *port, self->request_.volume,
                                           self->request_.lineage, message, *tail, &opening->heard);
            if (!is_current()) co_return;
            OwnerActions actions;
            if (!word) opening->note(word.error());
            if (word) {
                if (const auto* answer = std::get_if<MemberAnswer>(&*word)) {
                    self->takeover_.on_answer(*answer, actions);
                    opening->is_done = answer->token == message.token;
                } else if (const auto* refusal = std::get_if<Refusal>(&*word)) {
                    self->takeover_.on_refusal(*refusal, actions);
                    opening->is_refused = true;
                    // A device that is not there refuses an open that keeps nothing, too.
                    opening->is_failed =
                        refusal->reason == Refusal::Reason::failed ||
                        (refusal->reason == Refusal::Reason::stranger && !message.keep_lsn);
                }
            }
            self->carry_out(actions);
        } else if (!tail && tail.error().code() == Code::no_space) {
            opening->is_failed = true;
            self->news_.ring();
            co_return;
        } else if (!tail) {
            opening->note(tail.error());
        }
        if (!is_current() || opening->is_done) break;
        co_await self->context_.env.clock.sleep_for(kCallPause);
    }
}

// ---- the record ----

Task<void> Claimer::Attempt::decide(Self self, CompareAndSet cas) {
    for (Duration pause = kCasPauseMin;; pause = std::min(2 * pause, kCasPauseMax)) {
        auto [outcome, current] =
            co_await self->context_.store.compare_and_set(self->request_.volume, cas);
        if (self->is_over_) co_return;
        OwnerActions actions;
        self->takeover_.on_cas(outcome, current, actions);
        const auto* repeat =
            actions.empty() ? nullptr : std::get_if<CompareAndSet>(&actions.front());
        if (repeat == nullptr) {
            self->carry_out(actions);
            break;
        }
        PROBE("replica.claimer.repeats_cas");
        cas = *repeat;
        co_await self->context_.env.clock.sleep_for(pause);
        if (self->is_over_) co_return;
    }
    self->news_.ring();
}

// ---- from attempt to attempt ----

Claimer::Claimer(OwnerContext& context) : context_(context) {}

Claimer::~Claimer() {
    if (attempt_) attempt_->end();
}

void Claimer::cancel() {
    is_cancelled_ = true;
    if (attempt_) attempt_->end();
}

std::string Claimer::why() const {
    return attempt_ ? attempt_->why() : why_;
}

Result<void> Claimer::check() const {
    if (is_cancelled_) return fail(Code::stopping, "the claim was given up");
    if (context_.is_stopping) return fail(Code::stopping, "the owners on this node are stopped");
    return {};
}

// In short steps: a cancelled claim ends soon.
Task<void> Claimer::pause(Duration duration) {
    Time end = context_.env.clock.now() + duration;
    while (check() && context_.env.clock.now() < end) {
        Time step = std::min(end, context_.env.clock.now() + kStorePause);
        co_await context_.env.clock.sleep_until(step);
    }
}

Task<Result<Ownership>> Claimer::read_record(VolumeId volume) {
    for (;;) {
        CO_TRY(check());
        auto recorded = co_await context_.store.read(volume);
        if (recorded || recorded.error().code() == Code::not_found) co_return recorded;
        why_ = fmt::format("the control store cannot be read: {}", recorded.error().message());
        co_await pause(kStorePause);
    }
}

Task<Result<std::unique_ptr<ReplicatedLog>>> Claimer::claim(ClaimRequest request) {
    CO_TRY_ASSIGN(runtime::Gate::Pass pass, context_.gate.enter());
    Epoch claimed;     // by the last attempt
    Ownership before;  // of the last attempt
    bool was_conflict = false;
    Duration hopeless = kHopelessPauseMin;
    for (;;) {
        CO_TRY_ASSIGN(Ownership recorded, co_await read_record(request.volume));
        CO_TRY(check());
        bool is_overtaken =
            claimed && recorded.claim.owner != context_.self && recorded.claim.epoch >= claimed;
        if (is_overtaken) {
            co_return fail(Code::conflict, "volume {} was claimed by node {} meanwhile",
                           request.volume, recorded.claim.owner);
        }
        // The store refuses the claim as it stands, though nobody claims: for the caller to know
        // why.
        bool is_refused = was_conflict && recorded == before;
        if (is_refused) {
            co_return fail(Code::conflict, "the control store refuses a claim of volume {} now",
                           request.volume);
        }
        before = recorded;
        Epoch seen = std::max(context_.ports.local().fence_of(request.volume), claimed);
        attempt_ = std::make_shared<Attempt>(context_, request, seen);
        auto log = co_await attempt_->run(std::move(recorded));
        attempt_->end();
        claimed = attempt_->epoch();
        why_ = attempt_->why();
        attempt_.reset();
        was_conflict = !log && log.error().code() == Code::conflict;
        bool is_repeated =
            !log && (log.error().code() == Code::conflict || log.error().code() == Code::fenced ||
                     log.error().code() == Code::unavailable);
        if (!is_repeated) co_return log;
        LOG_INFO("a claim has to be made anew volume={} epoch={} why={}", request.volume, claimed,
                 log.error().text());
        bool is_hopeless = log.error().code() == Code::unavailable;
        if (is_hopeless) why_ = log.error().message();
        co_await pause(is_hopeless ? hopeless : kLostPause);
        if (is_hopeless) hopeless = std::min(2 * hopeless, kHopelessPauseMax);
    }
}

}  // namespace peplos::replica
