#include "replica/log_owner.h"

#include <algorithm>

#include "base/fault.h"
#include "base/log.h"
#include "replica/append_ticket.h"
#include "runtime/gate.h"

namespace peplos::replica {

using format::Record;

namespace {

// Readers ask for promises no more often.
constexpr Duration kAskAgain = std::chrono::milliseconds(50);

bool is_user(const Record& record) {
    return record.type == format::RecordType::write || record.type == format::RecordType::write_ref;
}

}  // namespace

LogOwner::LogOwner(OwnerContext& context, VolumeId volume, LineageId lineage, uint32_t copies,
                   const Ownership& ownership, Lsn last_lsn)
    : context_(context),
      volume_(volume),
      lineage_(lineage),
      copies_(copies),
      ensemble_(ownership, last_lsn, context.timing.protocol),
      own_durable_lsn_(last_lsn),
      acknowledged_lsn_(last_lsn),
      pending_first_(last_lsn.next()) {}

Result<void> LogOwner::begin() {
    for (const EnsembleMember& member : ensemble_.ownership().ensemble) {
        if (member.node == context_.self) own_member_ = member;
    }
    CHECK(own_member_.node, "an owner is a member of its ensemble");
    TRY_ASSIGN(local_,
               context_.ports.local().owner_log(volume_, claim(), own_member_.token, *this));
    if (local_->next_lsn() != next_lsn()) {
        return fail(Code::corrupt, "volume {}: the own member's log goes on at LSN {}, not at {}",
                    volume_, local_->next_lsn(), next_lsn());
    }
    sync_streams();
    if (!streams_.empty()) ask_renewal();
    begin_ticking();
    return {};
}

void LogOwner::spawn(Task<void> task) {
    context_.gate.spawn(context_.env.executor, std::move(task));
}

// ---- the end ----

Result<void> LogOwner::check() const {
    if (fault_) return fail(Error(*fault_));
    return {};
}

void LogOwner::stop_with(Error why) {
    if (fault_) return;
    fault_ = std::move(why);
    for (AckWaiter& waiter : waiters_)
        waiter.done.set();
    room_.wake_all();
    words_.wake_all();
    change_news_.ring();
    for (const StreamPtr& stream : streams_)
        stream->is_over = true;
    streams_.clear();
    pending_.clear();
    pending_bytes_ = 0;
}

void LogOwner::close() {
    stop_with(Error(Code::stopping, fmt::format("the log of volume {} was closed", volume_)));
    local_.reset();
}

// Lost, it costs the next claimer some time.
Task<void> LogOwner::tell_released(MemberPort& port, ReleaseMessage message) {
    std::ignore = co_await port.release(volume_, message);
}

// At once: a member that is silent must not keep the others' word from the next claimer.
Task<void> LogOwner::release() {
    OwnerActions actions;
    const bool was_serving = !is_over();
    if (was_serving) ensemble_.release(actions);
    stop_with(Error(Code::stopping, fmt::format("volume {} was released", volume_)));
    runtime::Gate telling;
    for (const OwnerAction& action : actions) {
        const auto* sent = std::get_if<Send>(&action);
        if (sent == nullptr) continue;
        MemberPort* port =
            sent->to == context_.self ? &context_.ports.local() : context_.ports.find(sent->to);
        if (port == nullptr) continue;
        telling.spawn(context_.env.executor,
                      tell_released(*port, std::get<ReleaseMessage>(sent->message)));
    }
    co_await telling.close();
}

// ---- room ----

// Never for what frees room.
bool LogOwner::has_room(const Record& record) const {
    if (!is_user(record) || (streams_.empty() && copies_ <= 1)) return true;
    // What a new member can take at once; and what some member is behind with.
    uint64_t bytes = std::max(local_->retained_bytes(), pending_bytes_);
    return bytes == 0 || bytes + format::ring_cost_bytes(record) <= limits::kEnsembleTailBytesMax;
}

Admission LogOwner::try_admit(const Record& record) {
    if (is_over() || !has_room(record)) return {};
    if (room_.count() != 0 && is_user(record)) return {};
    return local_->try_admit(record);
}

Task<Result<Admission>> LogOwner::admit(const Record& record) {
    CO_TRY(check());
    CO_TRY(format::validate_shape(record));
    const uint64_t refusals = room_refusals_;
    while (!has_room(record)) {
        if (room_.count() >= limits::kVolumeIoCountMax) {
            co_return fail(Code::busy, "volume {} has {} writes waiting for its journal to drain",
                           volume_, room_.count());
        }
        PROBE("replica.owner.room_full");
        co_await room_.wait();
        CO_TRY(check());
        if (refusals != room_refusals_) co_return fail(Error(*room_refusal_));
    }
    auto admission = co_await local_->admit(record);
    CO_TRY(check());
    co_return admission;
}

void LogOwner::refuse_waiting(const Error& why, VolumeLog::Waiting who) {
    room_refusal_ = why;
    ++room_refusals_;
    room_.wake_all();
    if (local_) local_->refuse_waiting(why, who);
}

void LogOwner::trim(Lsn drained_lsn, Lsn meta_lsn) {
    if (is_over()) return;
    local_->trim(drained_lsn, meta_lsn);
    if (room_.count() != 0) room_.wake_all();
}

uint64_t LogOwner::retained_bytes_max() const {
    uint64_t bytes = local_->retained_bytes_max();
    return copies_ <= 1 ? bytes : std::min(bytes, limits::kEnsembleTailBytesMax);
}

// ---- writes ----

AppendTicket LogOwner::submit(Record record, Admission admission) {
    if (is_over()) return {};
    Lsn lsn = record.lsn;
    if (lsn != next_lsn()) {  // a repeat, or a mistake: the own log knows
        AppendTicket ticket = local_->submit(std::move(record), std::move(admission));
        ticket.lsn_ = std::min(lsn, ensemble_.last_lsn());
        return ticket;
    }
    const bool is_kept = keeps_records();
    if (is_kept) keep(record);
    AppendTicket ticket = local_->submit(std::move(record), std::move(admission));
    if (const Error* why = ticket.failure()) {
        if (is_kept) {
            pending_bytes_ -= format::ring_cost_bytes(pending_.back());
            pending_.pop_back();
        }
        bool is_final = why->code() != Code::invalid_argument;
        if (is_final) stop_with(Error(*why));
        return ticket;
    }
    ticket.lsn_ = lsn;
    OwnerActions actions;
    ensemble_.submit(now(), actions);
    CHECK(ensemble_.last_lsn() == lsn);
    if (!is_kept) pending_first_ = lsn.next();
    for (const StreamPtr& stream : streams_)
        pump(stream);
    return ticket;
}

void LogOwner::keep(const Record& record) {
    if (pending_.full()) pending_.set_capacity(pending_.capacity() * 2);
    pending_.push_back(record);
    local_->stamp(pending_.back());
    pending_bytes_ += format::ring_cost_bytes(record);
}

void LogOwner::forget_confirmed() {
    Lsn confirmed = std::min(own_durable_lsn_, ensemble_.last_lsn());
    for (const StreamPtr& stream : streams_)
        confirmed = std::min(confirmed, stream->floor);
    if (pending_first_ > confirmed) return;
    while (pending_first_ <= confirmed && !pending_.empty()) {
        pending_bytes_ -= format::ring_cost_bytes(pending_.front());
        pending_.pop_front();
        pending_first_ = pending_first_.next();
    }
    if (room_.count() != 0) room_.wake_all();
}

Task<Result<void>> LogOwner::wait(AppendTicket ticket) {
    if (const Error* why = ticket.failure()) co_return fail(Error(*why));
    if (!ticket.lsn_) {
        CO_TRY(check());
        co_return fail(Code::invalid_argument, "nothing was submitted with this ticket");
    }
    Lsn lsn = ticket.lsn_;
    while (acknowledged_lsn_ < lsn && !is_over()) {
        AckWaiter waiter;
        waiter.lsn = lsn;
        auto place = waiters_.end();
        while (place != waiters_.begin() && std::prev(place)->lsn > lsn)
            --place;
        waiters_.insert(place, waiter);
        co_await waiter.done.wait();
    }
    if (acknowledged_lsn_ >= lsn) co_return Result<void>{};
    if (fault_->code() != Code::stopping) co_return fail(Error(*fault_));
    co_return fail(Code::outcome_unknown,
                   "volume {}: {}, with LSN {} on its way: whether it counts is found by the next "
                   "owner",
                   volume_, fault_->message(), lsn);
}

void LogOwner::acknowledge(Lsn lsn) {
    acknowledged_lsn_ = std::max(acknowledged_lsn_, lsn);
    while (!waiters_.empty() && waiters_.front().lsn <= acknowledged_lsn_) {
        AckWaiter& waiter = waiters_.front();
        waiters_.pop_front();
        waiter.done.set();
    }
}

// ---- what the machine wants ----

void LogOwner::run(const OwnerActions& actions) {
    for (const OwnerAction& action : actions) {
        if (const auto* done = std::get_if<Acknowledge>(&action)) {
            acknowledge(done->lsn);
        } else if (const auto* from = std::get_if<SendFrom>(&action)) {
            if (StreamPtr stream = find(from->to, from->token)) send_again(stream, from->first);
        } else if (const auto* cas = std::get_if<CompareAndSet>(&action)) {
            spawn(decide(shared_from_this(), *cas));
        } else if (const auto* suspected = std::get_if<Suspect>(&action)) {
            suspect(suspected->node);
        } else if (const auto* sent = std::get_if<Send>(&action)) {
            if (const auto* renewal = std::get_if<RenewMessage>(&sent->message)) {
                if (sent->to == context_.self) {
                    local_->renew(renewal->sent_at);
                } else if (StreamPtr stream = find(sent->to, renewal->token)) {
                    if (stream->is_renewing) continue;
                    stream->is_renewing = true;
                    spawn(send_renewal(shared_from_this(), stream, *renewal));
                }
            } else if (const auto* open = std::get_if<OpenMessage>(&sent->message)) {
                CHECK(proposal_ != nullptr);
                StreamPtr stream = find(sent->to, open->token);
                CHECK(stream != nullptr);
                proposal_->opens.emplace_back(std::move(stream), *open);
            }
        }
        if (is_over()) return;
    }
    if (ensemble_.is_stopped() && !is_over()) {
        stop_with(Error(Code::fenced,
                        fmt::format("volume {} was claimed by another owner after epoch {}: this "
                                    "one must stop",
                                    volume_, claim().epoch)));
    }
}

void LogOwner::suspect(NodeId node) {
    if (node == context_.self) {
        return stop_with(
            Error(Code::io_error,
                  fmt::format("volume {}: this node's copy of the journal failed: claim it anew",
                              volume_)));
    }
    for (const StreamPtr& stream : streams_) {
        if (stream->member.node == node) stream->is_refused = true;
    }
    change_news_.ring();
    consider_change();
}

void LogOwner::on_member_message(const Message& message) {
    if (is_over()) return;
    OwnerActions actions;
    if (const auto* answer = std::get_if<MemberAnswer>(&message)) {
        own_durable_lsn_ = std::max(own_durable_lsn_, answer->durable_lsn);
        ensemble_.on_answer(*answer, now(), actions);
        if (PLANTED("owner.acks_local_only")) acknowledge(answer->durable_lsn);
    } else if (const auto* refusal = std::get_if<Refusal>(&message)) {
        ensemble_.on_refusal(*refusal, actions);
    }
    run(actions);
    if (is_over()) return;
    if (!pending_.empty()) forget_confirmed();
    if (words_.count() != 0) words_.wake_all();
    if (is_keeping_ && own_durable_lsn_ >= keeping_from_) change_news_.ring();
}

// ---- reads ----

bool LogOwner::may_read() const {
    if (is_over()) return false;
    // Alone, this member is the one that a claimer has to fence, and it would know.
    if (!context_.ports.local().admits(volume_, claim())) return false;
    return ensemble_.peers().size() == 1 || ensemble_.may_read(now());
}

Task<Result<void>> LogOwner::renew_promises() {
    const Time end = now() + context_.timing.protocol.promise + context_.timing.renew;
    while (!may_read()) {
        CO_TRY(check());
        if (!context_.ports.local().admits(volume_, claim())) {
            stop_with(Error(Code::fenced,
                            fmt::format("volume {} was claimed by another owner after epoch {}",
                                        volume_, claim().epoch)));
            continue;
        }
        if (now() >= end) {
            co_return fail(Code::unavailable,
                           "volume {} cannot be read now: not every member of its journal answers",
                           volume_);
        }
        // Its answers wake this loop: it must not turn by itself.
        if (now() - renewed_ >= kAskAgain) ask_renewal();
        co_await words_.wait();  // tick() wakes it at the latest
    }
    co_return Result<void>{};
}

// ---- for people ----

EnsembleStatus LogOwner::status() const {
    EnsembleStatus out;
    out.members = ensemble_.ownership().ensemble;
    out.copies = copies_;
    out.silent = silent_nodes();
    out.is_changing = ensemble_.change() != Ensemble::Change::none;
    out.last_lsn = ensemble_.last_lsn();
    out.acknowledged_lsn = acknowledged_lsn_;
    if (is_over()) {
        out.why = fault_->message();
    } else if (ensemble_.change() == Ensemble::Change::deciding) {
        out.why = "the change of members waits for the control store";
    } else if (out.is_changing) {
        out.why = "the journal is being copied to new members";
    } else if (!out.silent.empty()) {
        out.why = fmt::format("silent: {}; {}", fmt::join(out.silent, ", "),
                              why_.empty() ? "looking for another node" : why_);
    } else if (out.members.size() < copies_) {
        out.why = why_.empty() ? "fewer copies than wanted" : why_;
    }
    return out;
}

}  // namespace peplos::replica
