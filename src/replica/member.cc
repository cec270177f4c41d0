#include "replica/member.h"

#include <algorithm>

#include "base/crc32c.h"
#include "base/fault.h"

namespace peplos::replica {

using media::Urgency;

// One request whose answer is awaited, on the waiting task's stack. A core that shuts down destroys
// that stack while the member lives.
class Member::Call {
  public:
    Call(Member* member, Message message) : message(std::move(message)), member_(member) {
        place_ = member_->calls_.insert(member_->calls_.end(), this);
    }
    Call(const Call&) = delete;
    ~Call() { member_->calls_.erase(place_); }

    bool is_answered() const { return answer_.has_value(); }
    void set(Result<Message> answer) {
        if (answer_) return;
        answer_ = std::move(answer);
        done_.set();
    }
    Result<Message> take() { return std::move(*answer_); }
    Task<Result<Message>> wait() {
        co_await done_.wait();
        co_return std::move(*answer_);
    }

    // Whether `said`, which nobody asked for just now, answers this.
    bool is_answered_by(const Message& said) const {
        if (const auto* fenced = std::get_if<FenceAnswer>(&said)) {
            const auto* asked = std::get_if<FenceMessage>(&message);
            return asked != nullptr && asked->claim == fenced->claim;
        }
        if (const auto* refusal = std::get_if<Refusal>(&said)) {
            return std::visit(
                [refusal](const auto& asked) {
                    if constexpr (requires { asked.token; })
                        return asked.claim == refusal->claim && asked.token == refusal->token;
                    return false;
                },
                message);
        }
        const auto* answer = std::get_if<MemberAnswer>(&said);
        if (answer == nullptr || answer->is_gap) return false;
        if (const auto* open = std::get_if<OpenMessage>(&message))
            return open->claim == answer->claim && open->token == answer->token;
        const auto* append = std::get_if<AppendMessage>(&message);
        return append != nullptr && append->claim == answer->claim &&
               append->token == answer->token && append->lsn <= answer->durable_lsn;
    }

    const Message message;

  private:
    Member* member_;
    std::list<Call*>::iterator place_;
    std::optional<Result<Message>> answer_;
    runtime::Event done_;
};

namespace {

// The journal keeps the highest bit of an LSN for itself, and counts on from what it is given.
constexpr Lsn kLsnMax(uint64_t{1} << 62);

// A log that was never a member's was opened by its own node.
MemberLog::Stored stored_here(const LocalJournal& journal, VolumeId volume, NodeId self) {
    MemberLog::Stored stored = journal.stored_of(volume);
    if (stored.opened_by.epoch && !stored.opened_by.owner) stored.opened_by.owner = self;
    if (stored.fence.epoch && !stored.fence.owner) stored.fence.owner = self;
    return stored;
}

// Of one record: what no later check sees.
Result<void> verify(const format::Record& record, VolumeId volume, const Claim& claim) {
    TRY(format::validate(record));
    if (record.volume != volume || record.epoch > claim.epoch || !format::has_lsn(record.type)) {
        return fail(Code::invalid_argument,
                    "a {} record of volume {} and epoch {} was sent for volume {} and epoch {}",
                    format::name_of(record.type), record.volume, record.epoch, volume, claim.epoch);
    }
    if (record.lsn > kLsnMax)
        return fail(Code::invalid_argument, "LSN {} of volume {} is never reached", record.lsn,
                    volume);
    size_t block = 0;
    for (const Buffer& buffer : record.payload) {
        for (size_t at = 0; at < buffer.size(); at += kBlockBytes, ++block) {
            if (crc32c(buffer.bytes().subspan(at, kBlockBytes)) == record.crcs[block]) continue;
            return fail(Code::corrupt,
                        "block {} of the record of volume {} at LSN {} does not match its checksum",
                        block, volume, record.lsn);
        }
    }
    return {};
}

}  // namespace

Member::Member(runtime::Env env, NodeId self, Timing timing, VolumeId volume, Incarnation device,
               LocalJournal& journal)
    : env_(env),
      self_(self),
      volume_(volume),
      device_(device),
      journal_(journal),
      machine_(self, device, timing, stored_here(journal, volume, self), env.clock.now()),
      planned_(machine_.stored()) {
    journal_.watch(volume_, this);
}

Member::~Member() {
    journal_.watch(volume_, nullptr);
}

Result<void> Member::check() const {
    if (stopping_) return fail(Code::stopping, "the node's journal service is stopping");
    if (journal_.is_dropped(volume_)) return fail(Code::fenced, "volume {} is deleted", volume_);
    return {};
}

// ---- the machine ----

Member::Write Member::feed(const Message& message, Call* call) {
    MemberLog::Actions out;
    Write write;
    machine_.set_damaged(journal_.is_damaged(volume_));
    if (journal_.has_failed() && !machine_.is_failed()) {
        machine_.on_io_error(out);
        perform(out, nullptr, nullptr);
        out.clear();
        ask_again();
    }
    const Claim before = machine_.fence();
    machine_.on_message(message, env_.clock.now(), out);
    perform(out, call, &write);
    if (machine_.fence() != before) {
        // Whoever owned the log here, or was about to, is refused from now on.
        if (gathered_ && gathered_->message.claim.epoch <= machine_.fence().epoch &&
            gathered_->message.claim != machine_.fence())
            gathered_.reset();
        journal_.end_log(volume_);
        journal_.stop_waiting(this, Error(Code::fenced, "a newer claim came"));
        ask_again();
    }
    return write;
}

bool Member::would_write(const Message& message) const {
    MemberLog copy = machine_;
    MemberLog::Actions out;
    copy.set_damaged(journal_.is_damaged(volume_));
    copy.on_message(message, env_.clock.now(), out);
    return std::ranges::any_of(out, [](const MemberLog::Action& action) {
        return !std::holds_alternative<Send>(action) &&
               !std::holds_alternative<MemberLog::Wake>(action);
    });
}

void Member::perform(const MemberLog::Actions& actions, Call* call, Write* write) {
    for (const MemberLog::Action& action : actions) {
        if (const auto* send = std::get_if<Send>(&action)) {
            deliver(send->message, call);
        } else if (const auto* wake = std::get_if<MemberLog::Wake>(&action)) {
            wake_at(wake->at);
        } else {
            CHECK(write != nullptr, "a completion wants nothing written");
            std::visit(
                [this, write](const auto& wanted) {
                    if constexpr (std::is_constructible_v<Write, decltype(wanted)>) {
                        MemberLog::apply(wanted, planned_);
                        *write = wanted;
                    }
                },
                action);
        }
    }
}

void Member::deliver(const Message& message, Call* call) {
    tell_owner(message);
    if (call != nullptr) return call->set(message);
    for (Call* waiting : calls_) {
        if (waiting->is_answered_by(message)) waiting->set(message);
    }
}

void Member::ask_again() {
    std::vector<Call*> open;
    for (Call* call : calls_) {
        const auto* fence = std::get_if<FenceMessage>(&call->message);
        const auto* opening = std::get_if<OpenMessage>(&call->message);
        bool is_old = (fence != nullptr && fence->claim != machine_.fence()) ||
                      (opening != nullptr && opening->claim != machine_.fence());
        if (!call->is_answered() && (is_old || machine_.is_failed())) open.push_back(call);
    }
    for (Call* call : open) {
        MemberLog::Actions out;
        machine_.on_message(call->message, env_.clock.now(), out);
        perform(out, call, nullptr);
    }
}

void Member::on_appended(Lsn lsn, const Result<void>& outcome) {
    on_written(MemberLog::WriteRecord{lsn}, outcome);
}

void Member::StateSink::on_written(const Result<void>& outcome) {
    Member* to = member;
    Write done = std::move(write);
    std::erase_if(to->sinks_, [this](const StateSink& sink) { return &sink == this; });
    to->on_written(done, outcome);
}

void Member::on_written(const Write& write, const Result<void>& outcome) {
    MemberLog::Actions out;
    const Time now = env_.clock.now();
    if (!outcome || machine_.is_failed()) {
        if (!machine_.is_failed()) machine_.on_io_error(out);
    } else if (const auto* record = std::get_if<MemberLog::WriteRecord>(&write)) {
        machine_.on_appended(record->lsn, now, out);
    } else if (const auto* fence = std::get_if<MemberLog::WriteFence>(&write)) {
        machine_.on_fenced(fence->claim, now, out);
    } else if (const auto* open = std::get_if<MemberLog::WriteOpen>(&write)) {
        machine_.on_opened(open->open.token, now, out);
    }
    perform(out, nullptr, nullptr);
    if (machine_.is_failed() || std::holds_alternative<MemberLog::WriteOpen>(write)) ask_again();
}

Member::StateSink* Member::remember(Write write) {
    StateSink& sink = sinks_.emplace_back();
    sink.member = this;
    sink.write = std::move(write);
    return &sink;
}

// ---- time ----

void Member::wake_at(Time at) {
    wake_time_ = is_waking_ ? std::min(wake_time_, at) : at;
    if (is_waking_) return wake_.ring();
    is_waking_ = true;
    gate_.spawn(env_.executor, wake_later());
}

Task<void> Member::wake_later() {
    while (!stopping_ && env_.clock.now() < wake_time_)
        co_await wake_.wait(env_.clock, wake_time_ - env_.clock.now());
    is_waking_ = false;
    if (stopping_) co_return;
    MemberLog::Actions out;
    machine_.set_damaged(journal_.is_damaged(volume_));
    machine_.on_time(env_.clock.now(), out);
    perform(out, nullptr, nullptr);
}

void Member::stop() {
    stopping_ = true;
    const Error why(Code::stopping, "the node's journal service is stopping");
    for (Call* call : calls_)
        call->set(fail(Error(why)));
    journal_.stop_waiting(this, why);
    wake_.ring();
}

// ---- fencing ----

Task<Result<Message>> Member::fence(LineageId lineage, FenceMessage message) {
    CO_TRY_ASSIGN(runtime::Gate::Pass pass, gate_.enter());
    CO_TRY(check());
    media::Admission room;
    if (would_write(message)) {
        CO_TRY_ASSIGN(room, journal_.admit_fence());
    }
    Call call(this, message);
    Write write = feed(message, &call);
    if (std::holds_alternative<MemberLog::WriteFence>(write)) {
        PROBE("replica.member.fenced");
        journal_.submit_fence(volume_, lineage, planned_, std::move(room), remember(write));
    }
    co_return co_await call.wait();
}

void Member::release(const ReleaseMessage& message) {
    Write write = feed(message, nullptr);
    CHECK(std::holds_alternative<std::monostate>(write));
}

// ---- becoming a member ----

Result<std::optional<OpenCall>> Member::gather(OpenCall call) {
    TRY(check());
    bool is_first = call.part == 0;
    bool is_next = gathered_ && gathered_->message == call.message &&
                   gathered_->lineage == call.lineage && gathered_->part_count == call.part_count &&
                   gathered_->part + 1 == call.part;
    if (call.part_count == 0 || call.part >= call.part_count || (!is_first && !is_next)) {
        return fail(Code::invalid_argument, "part {} of {} of an open of volume {} is not due",
                    call.part, call.part_count, volume_);
    }
    Lsn last = call.message.keep_lsn;
    if (is_first) {
        gathered_.reset();
        gathered_bytes_ = 0;
    }
    if (!is_first && !gathered_->records.empty()) last = gathered_->records.back().lsn;
    for (const format::Record& record : call.records) {
        TRY(verify(record, volume_, call.message.claim));
        if (record.lsn <= last || record.lineage != call.lineage)
            return fail(Code::invalid_argument, "an open of volume {} is out of order at LSN {}",
                        volume_, record.lsn);
        last = record.lsn;
        gathered_bytes_ += retained_bytes_of(record);
    }
    // Records that carry little data take more than their payload.
    if (gathered_bytes_ > 2 * kTakeoverTailBytesMax) {
        gathered_.reset();
        return fail(Code::invalid_argument, "the tail of volume {} has more than {} bytes", volume_,
                    2 * kTakeoverTailBytesMax);
    }
    if (is_first) {
        gathered_ = std::move(call);
    } else {
        gathered_->part = call.part;
        gathered_->base = call.base;
        for (format::Record& record : call.records)
            gathered_->records.push_back(std::move(record));
    }
    if (gathered_->part + 1 != gathered_->part_count) return std::nullopt;
    return std::exchange(gathered_, std::nullopt);
}

Task<Result<Message>> Member::open(OpenCall call) {
    CO_TRY_ASSIGN(runtime::Gate::Pass pass, gate_.enter());
    runtime::Mutex::Guard guard = co_await opening_.lock();
    CO_TRY(check());
    Call waiting(this, call.message);
    media::Admission room;
    if (would_write(call.message)) {
        CO_TRY(journal_.check_open(volume_, call));
        CO_TRY_ASSIGN(room, journal_.admit_open(volume_, call));
    }
    Write write = feed(call.message, &waiting);
    if (std::holds_alternative<MemberLog::WriteOpen>(write)) {
        PROBE("replica.member.opened");
        journal_.submit_open(std::move(call), planned_, std::move(room), remember(write));
    }
    co_return co_await waiting.wait();
}

// ---- appending ----

// First come, first served. A record that frees room, and with it what stands before it, may take
// the reserve; and what the owner says was acknowledged may free some.
Task<Result<void>> Member::wait_for_room(const AppendCall& call, media::Admission* room) {
    const bool is_user = urgency_of(call.record.type) == Urgency::user;
    for (;;) {
        bool is_urgent = !is_user || urgent_waiting_ != 0;
        *room = journal_.try_admit_record(call.record, is_urgent ? Urgency::meta : Urgency::user);
        if (*room) co_return Result<void>{};
        PROBE("replica.member.waits_for_room");
        journal_.note_settled(volume_, call.record.settled_lsn);
        auto admitted = co_await journal_.admit_record(call.record, this);
        CO_TRY(check());
        if (admitted) *room = std::move(*admitted);
        if (admitted || !would_write(call.message)) co_return Result<void>{};
        if (admitted.error().code() != Code::busy) co_return fail(std::move(admitted).error());
    }
}

Task<Result<Message>> Member::append(AppendCall call) {
    CO_TRY_ASSIGN(runtime::Gate::Pass pass, gate_.enter());
    CO_TRY(check());
    CO_TRY(verify(call.record, volume_, call.message.claim));
    if (call.record.lsn != call.message.lsn)
        co_return fail(Code::invalid_argument, "the record of LSN {} was sent as LSN {}",
                       call.record.lsn, call.message.lsn);
    if (appends_waiting_ >= limits::kVolumeIoCountMax)
        co_return fail(Code::busy, "volume {} has {} records waiting", volume_, appends_waiting_);
    const bool is_urgent = urgency_of(call.record.type) != Urgency::user;
    struct Waiting {
        Waiting(Member* m, bool u) : member(m), is_urgent(u) {
            ++member->appends_waiting_;
            if (is_urgent) ++member->urgent_waiting_;
        }
        ~Waiting() {
            --member->appends_waiting_;
            if (is_urgent) --member->urgent_waiting_;
        }
        Member* member;
        bool is_urgent;
    };
    std::optional<Waiting> waiting(std::in_place, this, is_urgent);
    if (is_urgent && appending_.is_locked())
        journal_.stop_waiting(this, Error(Code::busy, "what frees room waits behind it"));
    std::optional<runtime::Mutex::Guard> guard(co_await appending_.lock());
    CO_TRY(check());
    media::Admission room;
    if (would_write(call.message)) CO_TRY(co_await wait_for_room(call, &room));
    waiting.reset();
    // Looked at again: to wait took time.
    if (room && would_write(call.message)) CO_TRY(journal_.check_append(volume_, call.record));
    Call asked(this, call.message);
    Write write = feed(call.message, &asked);
    if (std::holds_alternative<MemberLog::WriteRecord>(write)) {
        CHECK(static_cast<bool>(room), "a record is written without room");
        journal_.submit_record(std::move(call.record), std::move(room));
    }
    guard.reset();
    co_return co_await asked.wait();
}

Result<Message> Member::renew(const RenewMessage& message) {
    TRY(check());
    Call call(this, message);
    Write write = feed(message, &call);
    CHECK(call.is_answered() && std::holds_alternative<std::monostate>(write));
    return call.take();
}

// ---- the owner on this node ----

void Member::begin_owner(const Claim& claim, OpenToken token, OwnerSink* sink) {
    owner_claim_ = claim;
    owner_token_ = token;
    owner_ = sink;
}

void Member::end_owner(const OwnerSink* sink) {
    if (owner_ == sink) owner_ = nullptr;
}

void Member::tell_owner(const Message& message) {
    const auto* answer = std::get_if<MemberAnswer>(&message);
    const auto* refusal = std::get_if<Refusal>(&message);
    bool is_its = (answer != nullptr && answer->claim == owner_claim_) ||
                  (refusal != nullptr && refusal->claim == owner_claim_);
    if (owner_ == nullptr || !is_its) return;
    to_owner_.push_back(message);
    if (is_telling_) return;
    is_telling_ = true;
    gate_.spawn(env_.executor, tell_owner_later());
}

Task<void> Member::tell_owner_later() {
    is_telling_ = false;
    std::deque<Message> told = std::exchange(to_owner_, {});
    for (const Message& message : told) {
        if (owner_ != nullptr) owner_->on_member_message(message);
    }
    co_return;
}

void Member::renew_owner(Time sent_at) {
    if (stopping_) return;
    std::ignore = feed(RenewMessage{owner_claim_, owner_token_, sent_at}, nullptr);
}

bool Member::takes(Lsn lsn) {
    if (stopping_) return false;
    AppendMessage message{owner_claim_, owner_token_, lsn, env_.clock.now()};
    Write write = feed(message, nullptr);
    return std::holds_alternative<MemberLog::WriteRecord>(write);
}

}  // namespace peplos::replica
