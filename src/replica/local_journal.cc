#include "replica/local_journal.h"

#include <algorithm>
#include <bit>

#include "base/fault.h"
#include "base/log.h"
#include "replica/append_ticket.h"
#include "replica/log_recovery.h"

namespace peplos::replica {

using format::Record;
using format::RecordType;
using media::RecordPosition;
using media::Urgency;

namespace {

constexpr size_t kLatencyBuckets = 32;
// What one turn moves at most, the last frame apart: frames that it reads, bytes that it keeps.
constexpr uint64_t kMoveFrames = 64;
constexpr uint64_t kMoveBytes = 64 * kKiB;

// Of a member's log, which may come back to the root before.
bool is_successor_of_root(const VolumeState& state, const Retained& entry) {
    bool is_root = entry.type == RecordType::root && state.root && state.member;
    return is_root && entry.lsn > state.root->lsn;
}

}  // namespace

LocalJournal::LocalJournal(runtime::Env env, media::Device& device)
    : env_(env), device_(device), ring_(device.ring()), latency_us_(kLatencyBuckets, 0) {}

LocalJournal::~LocalJournal() = default;

// ---- taking over after a restart ----

Task<Result<std::unique_ptr<LocalJournal>>> LocalJournal::open(runtime::Env env,
                                                               media::Device& device) {
    std::unique_ptr<LocalJournal> journal(new LocalJournal(env, device));
    media::RingRecovery recovery = device.ring().take_recovery();
    CO_TRY(co_await journal->adopt(std::move(recovery)));
    journal->gate_.spawn(env.executor, journal->reappend_loop());
    co_return journal;
}

VolumeState& LocalJournal::state_for(VolumeId volume) {
    auto [place, inserted] = volumes_.try_emplace(volume);
    if (inserted) place->second = std::make_unique<VolumeState>(volume, ring_.ring_bytes() / 4);
    return *place->second;
}

Task<Result<void>> LocalJournal::adopt(media::RingRecovery recovery) {
    LogRecovery logs(device_.name(), recovery,
                     [this](RecordPosition position) { return ring_.device_offset_of(position); });
    for (LogRecovery::Volume& found : logs.volumes()) {
        if (found.is_dropped) continue;
        VolumeState& state = state_for(found.id);
        state.lineage = found.lineage;
        state.fence = found.fence;
        state.token = found.tokens.token;
        state.recorded_token = found.tokens.recorded_token;
        state.last_lsn = found.last_lsn;
        state.drained_lsn = found.drained_lsn;
        state.meta_lsn = found.meta_lsn;
        state.trimmed_drained_lsn = found.trimmed_drained_lsn;
        state.trimmed_meta_lsn = found.trimmed_meta_lsn;
        state.member = std::move(found.tokens.member);
        state.open_number = found.open_number;
        state.open_number_seen = found.open_number_seen;
        state.unsettled.assign(found.unsettled.begin(), found.unsettled.end());
        state.voidings = std::move(found.voidings);
        state.older_roots.assign(found.older_roots.begin(), found.older_roots.end());
        state.settled_lsn = found.settled_lsn;
        state.voided = found.voided;
        const Lsn newest_data = found.newest_data_lsn ? found.newest_data_lsn : found.drained_lsn;
        const Lsn newest_meta = found.newest_meta_lsn ? found.newest_meta_lsn : found.meta_lsn;
        // Not drained_lsn: that may be the LSN of any record, and other copies know the newest one.
        state.last_data_lsn = found.data.empty() ? newest_data : found.data.back().lsn;
        state.last_meta_lsn = found.meta.empty() ? newest_meta : found.meta.back().lsn;
        if (found.root) state.last_root_lsn = found.root->lsn;
        state.root_body = std::move(found.root_body);
        state.damage = found.damage;
        state.data.assign(found.data.begin(), found.data.end());
        state.meta.assign(found.meta.begin(), found.meta.end());
        state.root = found.root;
        state.fence_record = found.fence_record;
        state.damage_record = found.damage_record;
        for (const Retained* entry : state.in_order()) {
            state.share.retain(entry->bytes);
            if (!entry->is_good) ++state.bad_count;
        }
        for (const Retained& entry : state.meta)
            state.meta_bytes += entry.bytes;
        for (const KeptRoot& older : state.older_roots) {
            state.share.retain(older.entry.bytes);
            if (!older.entry.is_good) ++state.bad_count;
        }
        if (state.fence_record) state.share.retain(state.fence_record->bytes);
        if (state.damage_record) state.share.retain(state.damage_record->bytes);
    }
    // Damage becomes durable before anything that shows it can be overwritten.
    for (LogRecovery::Volume& found : logs.volumes()) {
        if (found.damage.empty()) continue;
        PROBE("replica.log.damaged");
        LOG_ERROR("journal damaged volume={} reason=\"{}\"", found.id, found.damage);
        if (found.is_damage_durable || found.is_dropped) continue;
        VolumeState& state = state_for(found.id);
        CO_TRY(co_await write_damage(state, found.last_lsn, found.damage_offset));
    }
    for (LogRecovery::Volume& found : logs.volumes()) {
        if (found.is_fence_lost && !found.is_dropped)
            CO_TRY(co_await forget_opens(state_for(found.id)));
    }
    for (RecordPosition position : logs.unneeded())
        ring_.release(position);
    co_return Result<void>{};
}

Task<Result<RecordPosition>> LocalJournal::append_state(VolumeState& state, Record record,
                                                        Urgency urgency) {
    uint64_t cost = format::ring_cost_bytes(record);
    CO_TRY_ASSIGN(media::Admission admission, co_await ring_.admit(cost, urgency));
    ++state.in_flight;
    auto position = co_await ring_.append(std::move(record), std::move(admission));
    end_flight(state);
    co_return position;
}

// Without it nothing moves over what is lost, and a device with it does not even open.
Task<Result<void>> LocalJournal::write_damage(VolumeState& state, Lsn last_lsn,
                                              uint64_t device_offset) {
    Record record =
        state_record(state, RecordType::damage, format::DamageBody{last_lsn, device_offset});
    Retained entry = make_retained(record, {});
    CO_TRY_ASSIGN(entry.position, co_await append_state(state, std::move(record), Urgency::tail));
    if (state.is_dropped) {
        ring_.release(entry.position);
    } else {
        hold(state, entry);
    }
    co_return Result<void>{};
}

// ---- what is retained ----

// A durable record enters the books; what it makes needless leaves them.
void LocalJournal::hold(VolumeState& state, Retained entry) {
    state.share.retain(entry.bytes);
    if (format::is_data(entry.type)) {
        state.data.push_back(entry);
    } else if (format::is_meta(entry.type)) {
        state.meta.push_back(entry);
        state.meta_bytes += entry.bytes;
    } else if (is_successor_of_root(state, entry)) {
        state.older_roots.push_back({*state.root, *state.root_body});
        state.root = entry;
    } else {
        std::optional<Retained>& single = entry.type == RecordType::root    ? state.root
                                          : entry.type == RecordType::fence ? state.fence_record
                                                                            : state.damage_record;
        if (single) let_go(state, *single);
        single = entry;
    }
}

void LocalJournal::let_go(VolumeState& state, const Retained& entry) {
    ring_.release(entry.position);
    if (!entry.is_good) --state.bad_count;
    if (format::is_meta(entry.type)) state.meta_bytes -= entry.bytes;
    state.share.release(entry.bytes);
}

void LocalJournal::let_go_all(VolumeState& state) {
    for (const Retained& entry : state.data)
        let_go(state, entry);
    for (const Retained& entry : state.meta)
        let_go(state, entry);
    if (state.root) let_go(state, *state.root);
    if (state.fence_record) let_go(state, *state.fence_record);
    if (state.damage_record) let_go(state, *state.damage_record);
    for (const KeptRoot& older : state.older_roots)
        let_go(state, older.entry);
    state.older_roots.clear();
    state.data.clear();
    state.meta.clear();
    state.root.reset();
    state.fence_record.reset();
    state.damage_record.reset();
}

void LocalJournal::trim(VolumeState& state) {
    Lsn drained = std::min(state.trimmed_drained_lsn, state.drained_lsn);
    Lsn meta = std::min(state.trimmed_meta_lsn, state.meta_lsn);
    if (PLANTED("journal.lets_go_too_much")) drained = drained.next();
    while (!state.data.empty() && state.data.front().lsn <= drained) {
        let_go(state, state.data.front());
        state.data.pop_front();
    }
    if (!state.voided.empty())
        std::erase_if(state.voided, [drained](Lsn lsn) { return lsn <= drained; });
    while (!state.meta.empty() && state.meta.front().lsn <= meta) {
        let_go(state, state.meta.front());
        state.meta.pop_front();
    }
    // With less that is alive, moving the rest may be worth it now, and nothing else may ever
    // happen here: whoever writes may be waiting for just that.
    if (ring_.is_short()) ring_.nudge();
}

// A record of the open log is durable: it counts from now on.
void LocalJournal::settle(VolumeState& state, const Record& record, const Retained& entry) {
    if (state.is_dropped) {
        ring_.release(entry.position);
        return;
    }
    hold(state, entry);
    state.settled_lsn = std::max(state.settled_lsn, record.settled_lsn);
    if (const auto* settle = std::get_if<format::SettleBody>(&record.body)) {
        state.voided.insert(state.voided.end(), settle->voided.begin(), settle->voided.end());
        if (state.member) state.voidings.push_back({record.lsn, settle->voided});
    }
    if (const auto* seal = std::get_if<format::SealBody>(&record.body)) {
        state.drained_lsn = std::max(state.drained_lsn, seal->drained_lsn);
    } else if (const auto* root = std::get_if<format::RootBody>(&record.body)) {
        state.root_body = *root;
        state.drained_lsn = std::max(state.drained_lsn, root->drained_lsn);
        state.meta_lsn = std::max(state.meta_lsn, root->meta_lsn);
        heal(state, record, *root);
    }
    if (state.member) settle_member(state, record);
}

void LocalJournal::end_flight(VolumeState& state) {
    CHECK(state.in_flight > 0);
    if (--state.in_flight == 0) state.idle.wake_all();
}

Task<void> LocalJournal::quiesce(VolumeState& state) {
    while (state.in_flight != 0 || state.replays != 0)
        co_await state.idle.wait();
}

// Admissions refer to a share until their owners, who know that they are fenced, let go of them:
// what is still referred to is looked at again when the next volume comes or goes.
void LocalJournal::forget_dropped() {
    std::erase_if(dropped_, [this](VolumeId id) {
        auto found = volumes_.find(id);
        if (found == volumes_.end()) return true;
        const VolumeState& state = *found->second;
        bool is_unused = state.uses == 0 && state.in_flight == 0 && state.share.is_idle();
        if (is_unused) volumes_.erase(found);
        return is_unused;
    });
}

// ---- opening ----

Membership LocalJournal::membership_for(OpenToken token) const {
    return {device_.incarnation(), token};
}

// "No entry" is never inferred from missing state: only a token that proves the log's past, or a
// control store that knows of no past, makes a log complete.
LogOutcome LocalJournal::judge(const VolumeState& state, const OpenRequest& request,
                               std::string* reason) const {
    if (!state.damage.empty()) {
        *reason = state.damage;
        return LogOutcome::unknown;
    }
    if (!request.recorded) {
        if (!state.last_lsn) return LogOutcome::complete;
        *reason = fmt::format(
            "{} holds records of volume {} up to LSN {}, of which the control store knows nothing",
            device_.name(), request.volume, state.last_lsn);
        return LogOutcome::unknown;
    }
    const Membership& recorded = *request.recorded;
    if (PLANTED("device.any_will_do")) return LogOutcome::complete;
    if (recorded.incarnation != device_.incarnation()) {
        *reason = fmt::format(
            "{} was formatted anew (incarnation {}, recorded {}): it lost its log of volume {}",
            device_.name(), device_.incarnation(), recorded.incarnation, request.volume);
        return LogOutcome::unknown;
    }
    bool is_proven =
        recorded.token && (recorded.token == state.token || recorded.token == state.recorded_token);
    if (is_proven) return LogOutcome::complete;
    *reason = fmt::format("{} has no log of volume {} with the recorded token", device_.name(),
                          request.volume);
    return LogOutcome::unknown;
}

Task<Result<std::unique_ptr<VolumeLog>>> LocalJournal::open(OpenRequest request) {
    CO_TRY_ASSIGN(runtime::Gate::Pass pass, gate_.enter());
    if (!request.volume || !request.token || request.epoch == kDroppedEpoch || !request.epoch)
        co_return fail(Code::invalid_argument, "a volume is opened with its id, epoch and token");
    forget_dropped();
    VolumeState& state = state_for(request.volume);
    Use use(this, state);
    runtime::Mutex::Guard guard = co_await state.opening.lock();
    if (state.is_dropped)
        co_return fail(Code::fenced, "volume {} is being deleted", request.volume);
    if (request.epoch <= state.fence) {
        co_return fail(Code::fenced, "volume {} has epoch {} on {} already: claim a higher one",
                       request.volume, state.fence, device_.name());
    }
    if (state.lineage && state.lineage != request.lineage) {
        co_return fail(Code::invalid_argument, "volume {} has lineage {} on {}, not {}",
                       request.volume, state.lineage, device_.name(), request.lineage);
    }
    LogTail tail;
    tail.fence_before = state.fence;
    tail.outcome = judge(state, request, &tail.reason);
    // From here on the old owner is refused; what it submitted before is ahead of the fence.
    state.lineage = request.lineage;
    state.fence = request.epoch;
    if (state.log != nullptr) {
        state.log->state_ = nullptr;
        state.log = nullptr;
        state.share.refuse_all();
    }
    const bool is_written_off = request.on_loss == OnLoss::accept &&
                                tail.outcome == LogOutcome::unknown && is_known_here(request);
    if (is_written_off) {
        co_await quiesce(state);
        CO_TRY(co_await write_off(state, tail.reason));
    }
    CO_TRY(
        co_await write_fence(state, request, is_written_off ? LogOutcome::complete : tail.outcome));
    // An old owner's replay ends at its next record: the new one may trim what it still reads.
    co_await quiesce(state);
    LogTail found = tail_of(state);
    found.outcome = tail.outcome;
    found.reason = std::move(tail.reason);
    found.fence_before = tail.fence_before;
    found.is_salvaged = found.outcome == LogOutcome::unknown && request.on_loss != OnLoss::refuse &&
                        is_known_here(request);
    auto log = std::make_unique<LocalVolumeLog>(this, &state, request.epoch, std::move(found));
    state.log = log.get();
    co_return log;
}

Task<Result<void>> LocalJournal::write_fence(VolumeState& state, const OpenRequest& request,
                                             LogOutcome outcome) {
    format::FenceBody body{state.token, state.recorded_token, state.member};
    if (body.member) {
        ++body.member->number;
        body.member->fence = {{}, request.epoch, {}};
        if (outcome == LogOutcome::complete) body.member->opened_by = body.member->fence;
    }
    // An unproven log keeps its old tokens: a new one would vouch for what nobody saw.
    if (outcome == LogOutcome::complete) {
        body.token = request.token;
        body.recorded_token = request.recorded ? request.recorded->token : OpenToken(0);
    }
    Record record = state_record(state, RecordType::fence, body);
    Retained entry = make_retained(record, {});
    CO_TRY_ASSIGN(entry.position, co_await append_state(state, std::move(record)));
    state.token = body.token;
    state.recorded_token = body.recorded_token;
    state.member = std::move(body.member);
    hold(state, entry);
    co_return Result<void>{};
}

LogTail LocalJournal::tail_of(const VolumeState& state) const {
    LogTail out;
    out.last_lsn = state.last_lsn;
    out.drained_lsn = state.drained_lsn;
    out.meta_lsn = state.meta_lsn;
    if (state.damage_meta_lsn > state.meta_lsn) out.lost_meta_lsn = state.damage_meta_lsn;
    out.settled_lsn = state.settled_lsn;
    out.voided = state.voided;
    out.root = state.root_body;
    for (const Retained* entry : state.in_order()) {
        ++out.record_count;
        out.payload_bytes += entry->payload_bytes;
    }
    return out;
}

Task<Result<void>> LocalJournal::drop(VolumeId volume) {
    CO_TRY_ASSIGN(runtime::Gate::Pass pass, gate_.enter());
    forget_dropped();
    auto found = volumes_.find(volume);
    if (found == volumes_.end()) co_return Result<void>{};
    VolumeState& state = *found->second;
    Use use(this, state);
    runtime::Mutex::Guard guard = co_await state.opening.lock();
    if (state.is_dropped) co_return Result<void>{};
    state.is_dropped = true;
    if (state.log != nullptr) state.log->state_ = nullptr;
    state.log = nullptr;
    state.share.refuse_all();
    co_await quiesce(state);
    // The mark outlives every record of the volume: the tail passes them first.
    state.fence = kDroppedEpoch;
    Record record = state_record(state, RecordType::fence, format::FenceBody{});
    auto position = co_await append_state(state, record);
    let_go_all(state);
    // What the volume held may be the room that the mark did not find.
    if (!position && position.error().code() == Code::busy)
        position = co_await append_state(state, std::move(record));
    if (ring_.is_short()) ring_.nudge();
    if (!position) {
        // Space must come free even where the mark found none; a restart would list it again.
        state.is_dropped = position.error().code() == Code::busy;
        if (!state.is_dropped) co_return fail(position.error());
    } else {
        ring_.release(*position);
    }
    dropped_.push_back(volume);
    co_return Result<void>{};
}

Epoch LocalJournal::fence_of(VolumeId volume) const {
    auto found = volumes_.find(volume);
    bool is_known = found != volumes_.end() && !found->second->is_dropped;
    return is_known ? found->second->fence : Epoch(0);
}

std::vector<RetainedVolume> LocalJournal::volumes() const {
    std::vector<RetainedVolume> out;
    for (const auto& [id, state] : volumes_) {
        if (state->is_dropped) continue;
        out.push_back({id, state->lineage, state->fence, state->token, state->last_lsn,
                       state->share.retained_bytes(), !state->damage.empty(),
                       state->log != nullptr});
    }
    std::ranges::sort(out, {}, &RetainedVolume::volume);
    return out;
}

JournalStats LocalJournal::stats() const {
    JournalStats out;
    out.ring = ring_.stats();
    out.volumes = volumes_.size();
    out.reappended_records = reappended_records_;
    out.reappended_bytes = reappended_bytes_;
    out.append_latency_us = latency_us_;
    return out;
}

void LocalJournal::note_latency(Time submitted) {
    auto us = std::chrono::duration_cast<std::chrono::microseconds>(env_.clock.now() - submitted);
    auto bucket = static_cast<size_t>(std::bit_width(static_cast<uint64_t>(us.count())));
    ++latency_us_[std::min(bucket, kLatencyBuckets - 1)];
}

Task<void> LocalJournal::stop() {
    stopping_ = true;
    for (const auto& [id, state] : volumes_)
        state->share.refuse_all();
    look_again_soon_.ring();
    ring_.nudge();
    co_await gate_.close();
}

AppendTicket::State* LocalJournal::take_ticket() {
    if (idle_tickets_.empty()) {
        tickets_.push_back(std::make_unique<AppendTicket::State>());
        idle_tickets_.push_back(tickets_.back().get());
    }
    AppendTicket::State* ticket = idle_tickets_.back();
    idle_tickets_.pop_back();
    ticket->journal = this;
    return ticket;
}

void LocalJournal::recycle(AppendTicket::State* ticket) {
    ticket->reset();
    idle_tickets_.push_back(ticket);
}

// ---- moving old records, so that the ring's tail goes on ----

// Worth it only where enough of what the ring holds is needed no more. A drain makes more of it so,
// but only of what an owner holds: what the others need (volumes that damage or a full device keeps
// closed) stays, and with it the ring would stay full without an end. Below an eighth of the ring
// nothing would be gained but turning it over and over.
bool LocalJournal::should_reappend() const {
    if (stopping_ || device_.is_failed() || replays_ != 0 || !ring_.is_short()) return false;
    uint64_t owned = 0;
    uint64_t ownerless = 0;
    for (const auto& [id, state] : volumes_) {
        bool is_owned = state->log != nullptr;
        (is_owned ? owned : ownerless) += state->share.retained_bytes();
    }
    const uint64_t used = ring_.stats().used_bytes;
    if (used < ownerless + owned + ring_.ring_bytes() / 8) return false;
    return owned < (used - ownerless) / 5 * 3;
}

Task<void> LocalJournal::reappend_loop() {
    // A look before the first wait: a ring that was full when the last daemon ended is full now.
    for (;;) {
        while (should_reappend()) {
            Result<void> moved = co_await reappend_tail();
            if (moved) continue;
            // Full to the reserve: drains must free space first, and they wake this again.
            if (moved.error().code() != Code::busy)
                LOG_ERROR("journal re-append failed device={} error={}", device_.name(),
                          moved.error().text());
            break;
        }
        if (stopping_ || ring_.is_closing()) break;
        co_await ring_.wait_short();
    }
}

// Takes several frames at once: small records of many frames then go into one, where frame by frame
// they would take as much as they free.
Task<Result<void>> LocalJournal::reappend_tail() {
    uint64_t sequence = ring_.tail_sequence();
    if (sequence > ring_.newest_sequence()) co_return fail(Code::busy, "nothing to move");
    if (is_left_to_owner(sequence)) co_return fail(Code::busy, "its owner drains the oldest frame");
    uint64_t end = std::min(sequence + kMoveFrames, ring_.newest_sequence() + 1);
    std::vector<media::Ring::FrameRecord> records;
    uint64_t bytes = 0;
    for (uint64_t next = sequence; next < end && bytes < kMoveBytes; ++next) {
        auto frame = co_await read_patiently(next);
        // A replay may have begun meanwhile: it knows the records by their old places.
        if (replays_ != 0 || ring_.tail_sequence() != sequence) co_return Result<void>{};
        if (!frame) {
            if (next != sequence) break;
            IsLost is_there = [sequence](const Retained& entry) {
                return entry.position.frame_sequence == sequence;
            };
            if (leave_to_owner(sequence, is_there))
                co_return fail(Code::busy, "its owner drains the oldest frame");
            Moving moving(this);
            co_return co_await give_up(sequence, std::move(is_there));
        }
        for (media::Ring::FrameRecord& found : *frame) {
            if (find_needed(found) == nullptr) continue;
            bytes += retained_bytes_of(found.record);
            records.push_back(std::move(found));
        }
    }
    Moving moving(this);
    co_return co_await move_records(std::move(records));
}

// The volume that still needs this copy of a record; null when nobody does.
VolumeState* LocalJournal::find_needed(const media::Ring::FrameRecord& found) {
    auto place = volumes_.find(found.record.volume);
    if (place == volumes_.end() || place->second->is_dropped) return nullptr;
    Retained* entry = place->second->find(found.record.type, found.record.lsn);
    bool is_needed = entry != nullptr && entry->position == found.position;
    return is_needed ? place->second.get() : nullptr;
}

class LocalJournal::MoveSink final : public media::AppendSink {
  public:
    MoveSink(LocalJournal* journal, VolumeState* state, RecordPosition from)
        : journal_(journal), state_(state), from_(from) {
        ++state_->in_flight;
    }
    void on_append(Result<RecordPosition> to, Record& record) override {
        if (to) {
            Retained* entry = state_->find(record.type, record.lsn);
            bool is_same = entry != nullptr && entry->position == from_;
            // Meanwhile it may have become needless: then the copy is, too.
            journal_->ring_.release(is_same ? from_ : *to);
            if (is_same) entry->position = *to;
            if (is_same && !entry->is_good) {
                entry->is_good = true;
                --state_->bad_count;
            }
            ++journal_->reappended_records_;
            journal_->reappended_bytes_ += retained_bytes_of(record);
        }
        journal_->end_flight(*state_);
        done.set(to ? Result<void>{} : Result<void>(fail(to.error())));
    }
    runtime::Promise<Result<void>> done;

  private:
    LocalJournal* journal_;
    VolumeState* state_;
    RecordPosition from_;
};

// Those that are needed and cannot be read are left to their owners, or given up. Errors: busy (the
// oldest frame stays because of that).
Task<Result<void>> LocalJournal::settle_bad(const std::vector<media::Ring::FrameRecord>& records) {
    Result<void> outcome;
    for (const media::Ring::FrameRecord& found : records) {
        if (found.payload_is_good || find_needed(found) == nullptr) continue;
        IsLost is_it = [position = found.position](const Retained& entry) {
            return entry.position == position;
        };
        const uint64_t sequence = found.position.frame_sequence;
        if (leave_to_owner(sequence, is_it)) {
            outcome = fail(Code::busy, "its owner drains what became unreadable");
            continue;
        }
        CO_TRY(co_await give_up(sequence, std::move(is_it)));
    }
    co_return outcome;
}

// All of it, or all of the oldest frame: part of a frame would take room and free none, and a full
// ring has just enough for one frame.
media::Admission LocalJournal::admit_move(std::vector<media::Ring::FrameRecord>& records) {
    uint64_t cost = media::Ring::move_cost_bytes(records);
    media::Admission admission = ring_.try_admit(cost, Urgency::reappend);
    if (admission) return admission;
    std::erase_if(records, [oldest = ring_.tail_sequence()](const auto& found) {
        return found.position.frame_sequence != oldest;
    });
    if (records.empty()) return admission;
    PROBE("replica.log.move_oldest");
    cost = media::Ring::move_cost_bytes(records);
    admission = ring_.try_admit(cost, Urgency::reappend);
    if (!admission) admission = ring_.try_admit(cost, Urgency::tail);
    return admission;
}

Task<Result<void>> LocalJournal::move_records(std::vector<media::Ring::FrameRecord> records) {
    Result<void> outcome = co_await settle_bad(records);
    if (!outcome && outcome.error().code() != Code::busy) co_return outcome;
    // From here to submit_moved() nothing suspends.
    std::erase_if(records, [this](const auto& found) {
        return !found.payload_is_good || find_needed(found) == nullptr;
    });
    if (records.empty()) co_return outcome;
    media::Admission admission = admit_move(records);
    if (!admission) co_return fail(Code::busy, "the journal of {} is full", device_.name());
    PROBE("replica.log.reappend");
    std::vector<std::unique_ptr<MoveSink>> sinks;
    std::vector<media::AppendSink*> told;
    for (const media::Ring::FrameRecord& found : records) {
        sinks.push_back(std::make_unique<MoveSink>(this, find_needed(found), found.position));
        told.push_back(sinks.back().get());
    }
    ring_.submit_moved(std::move(records), std::move(admission), told);
    for (const auto& sink : sinks) {
        Result<void> moved = co_await sink->done.take();
        if (!moved) outcome = std::move(moved);
    }
    co_return outcome;
}

}  // namespace peplos::replica
