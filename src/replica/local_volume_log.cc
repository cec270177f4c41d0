#include <algorithm>

#include "base/fault.h"
#include "replica/append_ticket.h"
#include "replica/local_journal.h"

namespace peplos::replica {

using format::Record;
using format::RecordType;
using media::Urgency;

namespace {

// So many records are read at a time in a replay.
constexpr size_t kReplayBatch = 256;

}  // namespace

// ---- tickets ----

void AppendTicket::Drop::operator()(State* state) const noexcept {
    if (state->done.is_set()) {
        state->journal->recycle(state);
    } else {
        state->is_dropped = true;
    }
}

const Error* AppendTicket::failure() const {
    if (!state_ || !state_->done.is_set() || state_->result) return nullptr;
    return &state_->result.error();
}

void AppendTicket::State::on_append(Result<media::RecordPosition> position, Record& record) {
    volume->share.give_back(admitted_bytes);
    const Lsn lsn = record.lsn;
    if (position) journal->settle(*volume, record, make_retained(record, *position));
    if (volume->watch != nullptr) {
        volume->watch->on_appended(
            lsn, position ? Result<void>{} : Result<void>(fail(position.error())));
    }
    journal->end_flight(*volume);
    journal->note_latency(submitted);
    settle_now(position ? Result<void>{} : Result<void>(fail(position.error())));
}

void AppendTicket::State::settle_now(Result<void> outcome) {
    result = std::move(outcome);
    done.set();
    if (is_dropped) journal->recycle(this);
}

Admission::~Admission() {
    if (share_ != nullptr) share_->give_back(bytes_);
}

// ---- the log ----

LocalVolumeLog::LocalVolumeLog(LocalJournal* journal, VolumeState* state, Epoch epoch, LogTail tail)
    : journal_(journal), state_(state), volume_(state->id), epoch_(epoch), tail_(std::move(tail)) {}

LocalVolumeLog::~LocalVolumeLog() {
    if (state_ == nullptr) return;
    state_->share.refuse_all();
    state_->log = nullptr;
}

Result<void> LocalVolumeLog::check() const {
    if (journal_->device_.is_failed()) return fail(journal_->device_.failure());
    if (journal_->stopping_) return fail(Code::stopping, "the journal is being stopped");
    if (state_ == nullptr) {
        return fail(Code::fenced,
                    "volume {} was opened with an epoch above {}, or deleted: this "
                    "owner must stop",
                    volume_, epoch_);
    }
    return {};
}

Lsn LocalVolumeLog::next_lsn() const {
    return state_ == nullptr ? Lsn(0) : state_->last_lsn.next();
}

Admission LocalVolumeLog::try_admit(const Record& record) {
    Admission out;
    if (!check()) return out;
    uint64_t cost = format::ring_cost_bytes(record);
    Urgency urgency = urgency_of(record.type);
    if (urgency == Urgency::user) {
        if (!state_->share.try_take(cost)) return out;
    } else {
        state_->share.take(cost);
    }
    out.share_ = &state_->share;
    out.bytes_ = cost;
    out.ring_ = journal_->ring_.try_admit(cost, urgency);
    if (!out.ring_) out = Admission();
    return out;
}

Task<Result<Admission>> LocalVolumeLog::admit(const Record& record) {
    if (Admission now = try_admit(record)) co_return now;
    CO_TRY(check());
    CO_TRY(format::validate_shape(record));
    uint64_t cost = format::ring_cost_bytes(record);
    Urgency urgency = urgency_of(record.type);
    Share& share = state_->share;
    Admission out;
    if (urgency == Urgency::user && !share.try_take(cost)) {
        if (share.waiting() >= limits::kVolumeIoCountMax) {
            co_return fail(Code::busy, "volume {} has {} writes waiting for its journal to drain",
                           volume_, share.waiting());
        }
        PROBE("replica.log.share_full");
        Share::Waiter waiter;
        waiter.cost = cost;
        const uint64_t refusals = share.refusals();
        share.wait_in_line(&waiter);
        co_await waiter.decided.wait();
        if (waiter.is_granted) {
            out.share_ = &share;
            out.bytes_ = cost;
        }
        CO_TRY(check());
        if (waiter.refusal) co_return fail(std::move(*waiter.refusal));
        if (!waiter.is_granted) co_return fail(Code::stopping, "the log is being closed");
        if (share.refusals() != refusals) co_return fail(Error(share.refusal()));
    } else {
        if (urgency != Urgency::user) share.take(cost);
        out.share_ = &share;
        out.bytes_ = cost;
    }
    // A trim that finds its reserve used up waits in line like a write.
    Urgency in_line = urgency == Urgency::zero ? Urgency::user : urgency;
    CO_TRY_ASSIGN(out.ring_, co_await journal_->ring_.admit(cost, in_line, this));
    CO_TRY(check());
    co_return out;
}

// LSNs are contiguous; a repeat of a durable record is told from another one with its LSN.
Result<void> LocalVolumeLog::place_in_sequence(Record& record, bool* is_repeat) {
    *is_repeat = false;
    stamp(record);
    if (record.lsn <= state_->last_lsn) {
        const Retained* entry = state_->find(record.type, record.lsn);
        *is_repeat = entry != nullptr && entry->digest == digest_of(record);
        if (*is_repeat) return {};
    }
    if (record.lsn != state_->last_lsn.next()) {
        return fail(Code::invalid_argument, "volume {}: LSN {} is submitted where {} is due",
                    volume_, record.lsn, state_->last_lsn.next());
    }
    return {};
}

void LocalVolumeLog::stamp(Record& record) const {
    if (state_ == nullptr) return;  // fenced meanwhile: submit() refuses it
    record.volume = volume_;
    record.lineage = state_->lineage;
    record.epoch = epoch_;
    record.open_number = state_->open_number;
    record.prev_data_lsn = state_->last_data_lsn;
    record.prev_meta_lsn = state_->last_meta_lsn;
    record.root_lsn = state_->last_root_lsn;
}

AppendTicket LocalVolumeLog::submit(Record record, Admission admission) {
    AppendTicket::State* ticket = journal_->take_ticket();
    auto refuse = [ticket](Error error) {
        ticket->settle_now(fail(std::move(error)));
        return AppendTicket(ticket);
    };
    if (auto checked = check(); !checked) return refuse(checked.error());
    if (!format::has_lsn(record.type))
        return refuse(Error(Code::invalid_argument, "a log writes its own fences"));
    if (auto valid = format::validate(record); !valid) return refuse(valid.error());
    bool is_repeat = false;
    if (auto placed = place_in_sequence(record, &is_repeat); !placed) return refuse(placed.error());
    if (is_repeat) {
        ticket->settle_now({});
        return AppendTicket(ticket);
    }
    if (taker_ != nullptr && !taker_->takes(record.lsn)) {
        return refuse(Error(Code::fenced, fmt::format("volume {}: this member takes no more from "
                                                      "epoch {}",
                                                      volume_, epoch_)));
    }
    CHECK(admission.share_ == &state_->share && admission.ring_ &&
              admission.bytes_ >= format::ring_cost_bytes(record),
          "submit() without the record's admission");
    state_->last_lsn = record.lsn;
    if (format::is_data(record.type)) state_->last_data_lsn = record.lsn;
    if (format::is_meta(record.type)) state_->last_meta_lsn = record.lsn;
    if (record.type == RecordType::root) state_->last_root_lsn = record.lsn;
    ticket->volume = state_;
    ticket->admitted_bytes = admission.bytes_;
    ticket->submitted = journal_->env_.clock.now();
    admission.share_ = nullptr;
    ++state_->in_flight;
    journal_->ring_.submit(std::move(record), std::move(admission.ring_), ticket);
    return AppendTicket(ticket);
}

Task<Result<void>> LocalVolumeLog::wait(AppendTicket ticket) {
    AppendTicket::State& state = *ticket.state_;
    if (!state.done.is_set()) co_await state.done.wait();
    co_return std::move(state.result);
}

Task<Result<Lsn>> LocalVolumeLog::append(Record record) {
    CO_TRY_ASSIGN(Admission admission, co_await admit(record));
    CO_TRY(check());
    Lsn lsn = next_lsn();
    record.lsn = lsn;
    AppendTicket ticket = submit(std::move(record), std::move(admission));
    CO_TRY(co_await wait(std::move(ticket)));
    co_return lsn;
}

void LocalVolumeLog::trim(Lsn drained_lsn, Lsn meta_lsn) {
    if (state_ == nullptr) return;
    if (state_->member) return journal_->settle_up_to(*state_, drained_lsn, meta_lsn);
    state_->trimmed_drained_lsn = std::max(state_->trimmed_drained_lsn, drained_lsn);
    state_->trimmed_meta_lsn = std::max(state_->trimmed_meta_lsn, meta_lsn);
    journal_->trim(*state_);
}

uint64_t LocalVolumeLog::retained_bytes() const {
    return state_ == nullptr ? 0 : state_->share.retained_bytes();
}
uint64_t LocalVolumeLog::retained_meta_bytes() const {
    return state_ == nullptr ? 0 : state_->meta_bytes;
}
bool LocalVolumeLog::is_endangered() const {
    return state_ != nullptr && (state_->damage_lsn || state_->bad_count != 0);
}
void LocalVolumeLog::refuse_waiting(const Error& why, Waiting who) {
    if (state_ != nullptr) state_->share.refuse_all(why);
    journal_->ring_.refuse_waiting(why, who == Waiting::own ? this : nullptr);
}
uint64_t LocalVolumeLog::retained_bytes_max() const {
    return journal_->ring_.ring_bytes() / 4;
}
bool LocalVolumeLog::is_short() const {
    return journal_->ring_.is_short();
}

// ---- replay ----

Task<Result<void>> LocalVolumeLog::replay(RecordVisitor& visitor) {
    CO_TRY(check());
    CO_TRY_ASSIGN(runtime::Gate::Pass pass, journal_->gate_.enter());
    // Nothing moves while this runs, and nothing of the volume is released. What is under way ends
    // first: it may wait for the device before it releases places that are copied below.
    struct Replaying {
        Replaying(LocalJournal* j, VolumeState* s) : journal(j), state(s) {
            ++journal->replays_;
            ++state->replays;
        }
        ~Replaying() {
            if (--state->replays == 0) state->idle.wake_all();
            if (--journal->replays_ == 0 && journal->ring_.is_short()) journal->ring_.nudge();
        }
        LocalJournal* journal;
        VolumeState* state;
    } replaying(journal_, state_);
    while (journal_->moves_ != 0)
        co_await journal_->moved_.wait();
    while (state_ != nullptr && state_->in_flight != 0)
        co_await state_->idle.wait();
    CO_TRY(check());
    std::vector<Retained> entries;  // copies: the state may change meanwhile
    LocalJournal::Pins pins(journal_);
    for (const Retained* entry : state_->in_order()) {
        entries.push_back(*entry);
        pins.add(entry->position);
    }
    for (size_t begin = 0; begin < entries.size(); begin += kReplayBatch) {
        size_t end = std::min(entries.size(), begin + kReplayBatch);
        std::vector<media::RecordPosition> batch;
        batch.reserve(end - begin);
        for (size_t i = begin; i < end; ++i)
            batch.push_back(entries[i].position);
        auto records = co_await journal_->ring_.read_many(std::move(batch));
        for (size_t i = 0; i < records.size(); ++i) {
            CO_TRY(check());
            const Retained& due = entries[begin + i];
            if (!records[i] && tail_.is_salvaged) {
                visitor.on_unreadable(due.lsn, due.type, records[i].error());
                continue;
            }
            if (!records[i]) co_return fail(std::move(records[i]).error());
            Record record = std::move(*records[i]);
            if (record.volume != volume_ || record.lsn != due.lsn) {
                co_return fail(
                    Code::corrupt,
                    "{} at offset {}: LSN {} of volume {} lies where LSN {} of volume {} "
                    "is due",
                    journal_->device_.name(), journal_->ring_.device_offset_of(due.position),
                    record.lsn, record.volume, due.lsn, volume_);
            }
            CO_TRY(co_await visitor.on_record(std::move(record)));
        }
    }
    co_return Result<void>{};
}

}  // namespace peplos::replica
