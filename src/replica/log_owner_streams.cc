#include <algorithm>

#include "base/fault.h"
#include "base/log.h"
#include "replica/log_owner.h"

namespace peplos::replica {

namespace {

// Appends under way to one member.
constexpr uint32_t kCallsMax = 128;
// How often the members are looked at, while appends are on their way and otherwise.
constexpr Duration kTickBusy = std::chrono::milliseconds(50);
constexpr Duration kTickIdle = std::chrono::milliseconds(250);
// Who wakes so much later than due stood still, and knows nothing about the silence of others.
constexpr Duration kStoodStill = std::chrono::milliseconds(100);
// A better ensemble is looked for so often.
constexpr Duration kLook = std::chrono::seconds(2);

}  // namespace

LogOwner::StreamPtr LogOwner::find(NodeId node, OpenToken token) const {
    for (const StreamPtr& stream : streams_) {
        if (stream->member.node == node && stream->member.token == token) return stream;
    }
    return nullptr;
}

// One stream for each other member of the ensembles.
void LogOwner::sync_streams() {
    if (is_over()) return;
    std::vector<StreamPtr> kept;
    for (const Ensemble::Peer& peer : ensemble_.peers()) {
        if (peer.member.node == context_.self) continue;
        StreamPtr stream = find(peer.member.node, peer.member.token);
        if (stream == nullptr) {
            stream = std::make_shared<Stream>();
            stream->member = peer.member;
            stream->floor = ensemble_.last_lsn();
            stream->next = stream->floor.next();
            stream->is_open = peer.is_open;
            stream->heard = now();
        }
        kept.push_back(std::move(stream));
    }
    for (const StreamPtr& stream : streams_) {
        if (std::ranges::find(kept, stream) == kept.end()) stream->is_over = true;
    }
    streams_ = std::move(kept);
    if (keeps_records()) return forget_confirmed();
    pending_.clear();
    pending_bytes_ = 0;
    pending_first_ = next_lsn();
}

// ---- appends ----

void LogOwner::pump(const StreamPtr& stream) {
    if (!stream->is_open || stream->is_pausing) return;
    // Who does not answer is tried with one call.
    uint32_t calls_max = stream->is_reset ? 1 : kCallsMax;
    uint64_t waiting = ensemble_.last_lsn().value + 1 - stream->next.value;
    for (uint64_t i = 0; i < waiting && stream->calls < calls_max; ++i) {
        ++stream->calls;
        spawn(send_records(shared_from_this(), stream));
    }
}

Task<void> LogOwner::send_records(Self self, StreamPtr stream) {
    LogOwner& owner = *self;
    auto has_more = [&owner, &stream] {
        stream->next = std::max(stream->next, stream->floor.next());
        return !owner.is_over() && !stream->is_over && !stream->is_pausing &&
               stream->next <= owner.ensemble_.last_lsn();
    };
    while (has_more()) {
        Lsn lsn = stream->next;
        const uint32_t generation = stream->generation;
        MemberPort* port = owner.context_.ports.find(stream->member.node);
        if (port == nullptr) {
            owner.on_lost_call(stream, generation, Error(Code::unavailable, "no such node"));
            break;
        }
        CHECK(lsn >= owner.pending_first_, "a record is gone that a member lacks");
        stream->next = lsn.next();
        Time sent = owner.now();
        AppendCall call{.volume = owner.volume_,
                        .message = {owner.claim(), stream->member.token, lsn, sent},
                        .record = owner.pending_[lsn.value - owner.pending_first_.value]};
        stream->watch.on_sent(sent);
        auto word = co_await port->append(std::move(call));
        Time now = owner.now();
        stream->watch.on_end(now, word.has_value());
        if (owner.is_over() || stream->is_over) break;
        if (!word) {
            owner.on_lost_call(stream, generation, word.error());
            break;
        }
        if (auto* answer = std::get_if<MemberAnswer>(&*word)) {
            if (!answer->is_gap) stream->watch.note(now - sent);
            // What was sent before the last resend says nothing new about what is missing.
            if (generation != stream->generation) answer->is_gap = false;
        }
        owner.on_word(stream, *word);
    }
    --stream->calls;
}

// Begins again with an earlier record.
void LogOwner::send_again(const StreamPtr& stream, Lsn first) {
    if (first < pending_first_) {
        // It lost what it confirmed.
        stream->is_refused = true;
        return consider_change();
    }
    ++stream->generation;
    stream->next = first;
    pump(stream);
}

void LogOwner::on_lost_call(const StreamPtr& stream, uint32_t generation, const Error& why) {
    if (is_over() || stream->is_over || generation != stream->generation) return;
    PROBE("replica.owner.lost_call");
    ++stream->generation;
    stream->next = stream->floor.next();
    stream->is_pausing = true;
    stream->pause = std::clamp(stream->pause * 2, kOwnerPauseMin, kOwnerPauseMax);
    spawn(try_again(shared_from_this(), stream));
    if (why.code() == Code::busy) return;  // it lives
    stream->is_reset = true;
    change_news_.ring();
    consider_change();
}

Task<void> LogOwner::try_again(Self self, StreamPtr stream) {
    co_await self->context_.env.clock.sleep_for(stream->pause);
    stream->is_pausing = false;
    if (self->is_over() || stream->is_over) co_return;
    OwnerActions actions;
    self->ensemble_.resend(stream->member.node, stream->member.token, actions);
    self->run(actions);
}

// ---- words ----

void LogOwner::on_word(const StreamPtr& stream, const Message& word) {
    stream->heard = now();
    stream->watch.heard(stream->heard);
    if (const auto* answer = std::get_if<MemberAnswer>(&word)) return on_answer(stream, *answer);
    const auto* refusal = std::get_if<Refusal>(&word);
    if (refusal == nullptr) return;
    OwnerActions actions;
    ensemble_.on_refusal(*refusal, actions);
    run(actions);
}

void LogOwner::on_answer(const StreamPtr& stream, MemberAnswer answer) {
    const bool is_ours = answer.from == stream->member.node &&
                         answer.token == stream->member.token && answer.claim == claim();
    if (!is_ours) return;
    const bool was_reset = std::exchange(stream->is_reset, false);
    stream->pause = {};
    stream->is_open = true;
    stream->floor = std::max(stream->floor, answer.durable_lsn);
    OwnerActions actions;
    ensemble_.on_answer(answer, now(), actions);
    run(actions);
    if (is_over()) return;
    if (!pending_.empty()) forget_confirmed();
    if (was_reset) pump(stream);
    if (words_.count() != 0) words_.wake_all();
}

// ---- heartbeats ----

void LogOwner::ask_renewal() {
    if (is_over()) return;
    renewed_ = now();
    OwnerActions actions;
    ensemble_.renew(renewed_, actions);
    run(actions);
}

Task<void> LogOwner::send_renewal(Self self, StreamPtr stream, RenewMessage message) {
    MemberPort* port = self->context_.ports.find(stream->member.node);
    if (port != nullptr) {
        auto word = co_await port->renew(self->volume_, message);
        if (word && !self->is_over() && !stream->is_over) self->on_word(stream, *word);
    }
    stream->is_renewing = false;
}

void LogOwner::begin_ticking() {
    bool is_needed = !streams_.empty() || ensemble_.ownership().ensemble.size() < copies_;
    if (!is_needed || is_ticking_ || is_over()) return;
    is_ticking_ = true;
    spawn(tick(shared_from_this()));
}

Task<void> LogOwner::tick(Self self) {
    LogOwner& owner = *self;
    runtime::Clock& clock = owner.context_.env.clock;
    for (;;) {
        bool is_busy = std::ranges::any_of(
            owner.streams_, [](const auto& stream) { return stream->watch.has_outstanding(); });
        Time due = clock.now() + (is_busy ? kTickBusy : kTickIdle);
        co_await clock.sleep_until(due);
        if (owner.context_.is_stopping)
            owner.stop_with(Error(Code::stopping, "the owners on this node are being stopped"));
        bool is_full =
            owner.streams_.empty() && owner.ensemble_.ownership().ensemble.size() >= owner.copies_;
        if (owner.is_over() || (is_full && !owner.is_changing_)) break;
        Time now = clock.now();
        if (now - due > kStoodStill) {
            PROBE("replica.owner.stood_still");
            for (const StreamPtr& stream : owner.streams_) {
                stream->watch.forgive(now);
                stream->heard = now;
            }
        }
        owner.look_at_members(now);
    }
    owner.is_ticking_ = false;
}

void LogOwner::look_at_members(Time now) {
    bool is_someone_silent = false;
    for (const StreamPtr& stream : streams_) {
        bool is_lost = now - stream->heard >= context_.timing.silence_at_rest;
        bool is_silent = stream->watch.is_silent(now, context_.timing) || is_lost;
        if (is_silent && !stream->is_silent)
            LOG_WARN("a member of the journal is silent volume={} node={}", volume_,
                     stream->member.node);
        stream->is_silent = is_silent;
        is_someone_silent =
            is_someone_silent || is_silent || stream->is_reset || stream->is_refused;
    }
    if (now - renewed_ >= context_.timing.renew) ask_renewal();
    bool is_short = ensemble_.ownership().ensemble.size() < copies_;
    if (is_someone_silent || (is_short && now >= look_due_)) {
        look_due_ = now + kLook;
        consider_change();
    }
    words_.wake_all();
}

}  // namespace peplos::replica
