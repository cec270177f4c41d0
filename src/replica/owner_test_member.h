#pragma once

#include <deque>
#include <list>
#include <map>

#include "replica/member_log.h"
#include "replica/member_port.h"
#include "runtime/gate.h"
#include "sim/world.h"

// A member for the tests of the owner's side: the real MemberLog over media that are a map. A write
// takes a moment and is atomic; what a crash finds in the queue is there or not.
namespace peplos::replica {

using format::Record;
using format::RecordType;

inline constexpr VolumeId kOwnedVolume{77};
inline constexpr LineageId kOwnedLineage{78};

// Outlives the processes.
struct TestMedia {
    Incarnation incarnation;
    MemberLog::Stored stored;
    std::map<Lsn, Record> records;
    bool is_failed = false;

    Lsn drained_lsn() const {
        Lsn out;
        for (const auto& [lsn, record] : records) {
            if (const auto* seal = std::get_if<format::SealBody>(&record.body))
                out = std::max(out, seal->drained_lsn);
        }
        return out;
    }
    // As a member does by itself.
    void trim() {
        Lsn drained = drained_lsn();
        std::erase_if(records, [drained](const auto& item) {
            return item.first <= drained && format::is_data(item.second.type);
        });
    }
    bool has(Lsn lsn) const { return records.contains(lsn) || lsn <= drained_lsn(); }
};

struct TestWrite {
    std::variant<MemberLog::WriteRecord, MemberLog::WriteFence, MemberLog::WriteOpen> what;
    std::vector<Record> records;
    void land(TestMedia& media) const {
        std::visit([&media](const auto& write) { MemberLog::apply(write, media.stored); }, what);
        if (const auto* open = std::get_if<MemberLog::WriteOpen>(&what)) {
            std::erase_if(media.records,
                          [open](const auto& item) { return item.first > open->open.keep_lsn; });
        }
        for (const Record& record : records)
            media.records[record.lsn] = record;
        media.trim();
    }
};

class TestMember final : public LocalMember {
  public:
    TestMember(runtime::Env& env, NodeId self, TestMedia& media, Timing timing, sim::Random& random)
        : env_(env),
          self_(self),
          media_(media),
          random_(random),
          machine_(self, media.incarnation, timing, media.stored, env.clock.now()) {
        MemberLog::Actions ignored;
        if (media.is_failed) machine_.on_io_error(ignored);
    }

    // The process is gone: of what was in flight a part reached the media.
    void crash() {
        for (size_t count = random_.pick(queue_.size() + 1); count > 0; --count) {
            queue_.front().land(media_);
            queue_.pop_front();
        }
    }
    void fail_device() {
        media_.is_failed = true;
        queue_.clear();
        MemberLog::Actions actions;
        machine_.on_io_error(actions);
        carry_out(actions, nullptr);
    }
    const MemberLog& machine() const { return machine_; }

    Task<Result<Message>> fence(VolumeId, LineageId, FenceMessage message) override {
        return ask(message, {}, {}, message.claim, {});
    }
    Task<Result<Message>> open(OpenCall call) override {
        if (call.part == 0) staged_.clear();
        staged_.insert(staged_.end(), call.records.begin(), call.records.end());
        if (call.part + 1 < call.part_count) return accept_part(call.message);
        return ask(call.message, std::exchange(staged_, {}), call.message.token, call.message.claim,
                   {});
    }
    Task<Result<Message>> append(AppendCall call) override {
        AppendMessage message = call.message;
        return ask(message, {std::move(call.record)}, message.token, message.claim, message.lsn);
    }
    Task<Result<Message>> renew(VolumeId, RenewMessage message) override {
        return ask(message, {}, message.token, message.claim, {});
    }
    Task<Result<void>> release(VolumeId, ReleaseMessage message) override {
        MemberLog::Actions actions;
        machine_.on_message(message, env_.clock.now(), actions);
        carry_out(actions, nullptr);
        co_return Result<void>{};
    }
    Task<Result<LogRecords>> read_log(VolumeId, Claim claim, Incarnation incarnation, Lsn after,
                                      uint64_t bytes) override {
        co_await env_.clock.sleep_for(std::chrono::microseconds(200));
        if (media_.is_failed) co_return fail(Code::io_error, "failed");
        if (incarnation != media_.incarnation) co_return fail(Code::unavailable, "no such log");
        if (machine_.fence() != claim) co_return fail(Code::fenced, "a newer claim was here");
        LogRecords out;
        out.is_last = true;
        for (auto it = media_.records.upper_bound(after); it != media_.records.end(); ++it) {
            if (out.records.size() * 64 >= std::max<uint64_t>(bytes / 4096, 64)) {
                out.is_last = false;
                break;
            }
            out.records.push_back(it->second);
        }
        co_return out;
    }
    Result<std::unique_ptr<OwnerLog>> owner_log(VolumeId, const Claim& claim, OpenToken token,
                                                OwnerSink& sink) override;
    bool admits(VolumeId, const Claim& claim) const override {
        return machine_.fence() == claim || machine_.fence().epoch < claim.epoch;
    }
    Epoch fence_of(VolumeId) const override { return machine_.fence().epoch; }

  private:
    friend class TestOwnerLog;
    struct Waiting {
        OpenToken token;
        Claim claim;
        Lsn lsn;
        bool is_fence = false;
        std::optional<Message> answer;
        runtime::Event done;
    };

    Task<Result<Message>> accept_part(OpenMessage message) {
        co_return Message(MemberAnswer{message.claim, self_, OpenToken(0), {}, false, {}});
    }

    Task<Result<Message>> ask(Message message, std::vector<Record> records, OpenToken token,
                              Claim claim, Lsn lsn) {
        auto waiting = std::make_shared<Waiting>();
        waiting->token = token;
        waiting->claim = claim;
        waiting->lsn = lsn;
        waiting->is_fence = std::holds_alternative<FenceMessage>(message);
        bool is_append = std::holds_alternative<AppendMessage>(message);
        MemberLog::Actions actions;
        machine_.on_message(message, env_.clock.now(), actions);
        waiting_.push_back(waiting);
        carry_out(actions, &records, waiting.get());
        if (!waiting->answer && is_append) waiting->lsn = lsn;
        if (!waiting->answer) {
            runtime::spawn(env_.executor, give_up_later(env_, waiting));
            co_await waiting->done.wait();
        }
        std::erase(waiting_, waiting);
        if (!waiting->answer) co_return fail(Code::outcome_unknown, "no answer in time");
        co_return *waiting->answer;
    }
    static Task<void> give_up_later(runtime::Env& env, std::shared_ptr<Waiting> waiting) {
        co_await env.clock.sleep_for(std::chrono::seconds(4));
        waiting->done.set();
    }

    // `asked`: whose message it was; an answer that comes at once is its.
    void carry_out(const MemberLog::Actions& actions, std::vector<Record>* records,
                   Waiting* asked = nullptr) {
        for (const MemberLog::Action& action : actions) {
            if (const auto* sent = std::get_if<Send>(&action)) {
                answer(sent->message, asked);
            } else if (const auto* record = std::get_if<MemberLog::WriteRecord>(&action)) {
                write({*record, *records});
            } else if (const auto* fence = std::get_if<MemberLog::WriteFence>(&action)) {
                write({*fence, {}});
            } else if (const auto* open = std::get_if<MemberLog::WriteOpen>(&action)) {
                write({*open, *records});
            } else if (const auto* wake = std::get_if<MemberLog::Wake>(&action)) {
                runtime::spawn(env_.executor, wake_at(wake->at));
            }
        }
    }
    void answer(const Message& message, Waiting* asked) {
        if (asked != nullptr && !asked->answer) {
            asked->answer = message;
            asked->done.set();
        }
        const auto* fenced = std::get_if<FenceAnswer>(&message);
        const auto* said = std::get_if<MemberAnswer>(&message);
        const auto* refusal = std::get_if<Refusal>(&message);
        for (const auto& waiting : waiting_) {
            bool is_for = false;
            if (fenced != nullptr) is_for = waiting->is_fence && waiting->claim == fenced->claim;
            if (said != nullptr && !waiting->is_fence)
                is_for = !said->is_gap && waiting->claim == said->claim &&
                         waiting->token == said->token && waiting->lsn <= said->durable_lsn;
            if (refusal != nullptr && asked == nullptr) is_for = waiting->claim == refusal->claim;
            if (!is_for || waiting->answer) continue;
            waiting->answer = message;
            waiting->done.set();
        }
        bool is_own = said != nullptr ? said->claim == sink_claim_
                                      : refusal != nullptr && refusal->claim == sink_claim_;
        if (sink_ == nullptr || !is_own) return;
        if (asked != nullptr || is_in_submit_) {
            runtime::spawn(env_.executor, tell_later(message));
        } else {
            sink_->on_member_message(message);
        }
    }
    Task<void> tell_later(Message message) {
        if (sink_ != nullptr) sink_->on_member_message(message);
        co_return;
    }
    Task<void> wake_at(Time at) {
        co_await env_.clock.sleep_until(at);
        MemberLog::Actions actions;
        machine_.on_time(env_.clock.now(), actions);
        carry_out(actions, nullptr);
    }

    void write(TestWrite write) {
        queue_.push_back(std::move(write));
        if (!std::exchange(is_writing_, true)) runtime::spawn(env_.executor, write_all());
    }
    Task<void> write_all() {
        while (!queue_.empty()) {
            co_await env_.clock.sleep_for(std::chrono::microseconds(random_.between(20, 900)));
            // A commit takes what waits.
            size_t count = queue_.empty() ? 0 : 1 + random_.pick(queue_.size());
            for (; count > 0 && !queue_.empty(); --count) {
                TestWrite write = std::move(queue_.front());
                queue_.pop_front();
                write.land(media_);
                complete(write);
            }
        }
        is_writing_ = false;
    }
    void complete(const TestWrite& write) {
        MemberLog::Actions actions;
        Time now = env_.clock.now();
        if (const auto* record = std::get_if<MemberLog::WriteRecord>(&write.what)) {
            machine_.on_appended(record->lsn, now, actions);
        } else if (const auto* fence = std::get_if<MemberLog::WriteFence>(&write.what)) {
            machine_.on_fenced(fence->claim, now, actions);
        } else {
            machine_.on_opened(std::get<MemberLog::WriteOpen>(write.what).open.token, now, actions);
        }
        carry_out(actions, nullptr);
    }

    runtime::Env& env_;
    const NodeId self_;
    TestMedia& media_;
    sim::Random& random_;
    MemberLog machine_;
    std::deque<TestWrite> queue_;
    bool is_writing_ = false;
    bool is_in_submit_ = false;
    std::vector<Record> staged_;
    std::list<std::shared_ptr<Waiting>> waiting_;
    OwnerSink* sink_ = nullptr;
    Claim sink_claim_;
};

class TestOwnerLog final : public OwnerLog {
  public:
    TestOwnerLog(TestMember& member, Claim claim, OpenToken token)
        : member_(member), claim_(claim), token_(token) {
        tail_.last_lsn = member.media_.stored.last_lsn;
        tail_.drained_lsn = member.media_.drained_lsn();
        tail_.outcome = LogOutcome::complete;
        if (!member.media_.records.empty()) last_ = std::prev(member.media_.records.end())->second;
    }
    ~TestOwnerLog() override {
        if (member_.sink_claim_ == claim_) member_.sink_ = nullptr;
    }

    VolumeId volume() const override { return kOwnedVolume; }
    Epoch epoch() const override { return claim_.epoch; }
    const LogTail& tail() const override { return tail_; }
    Task<Result<void>> replay(RecordVisitor& visitor) override {
        std::vector<Record> records;
        for (const auto& [lsn, record] : member_.media_.records)
            records.push_back(record);
        for (Record& record : records)
            CO_TRY(co_await visitor.on_record(std::move(record)));
        co_return Result<void>{};
    }
    Task<Result<std::vector<Record>>> find_drained() override { co_return std::vector<Record>{}; }
    Lsn next_lsn() const override { return member_.machine_.last_lsn().next(); }
    Admission try_admit(const Record&) override { return {}; }
    Task<Result<Admission>> admit(const Record&) override { co_return Admission(); }
    void stamp(Record& record) const override {
        record.volume = kOwnedVolume;
        record.lineage = kOwnedLineage;
        record.epoch = claim_.epoch;
        record.prev_data_lsn = format::is_data(last_.type) ? last_.lsn : last_.prev_data_lsn;
        record.prev_meta_lsn = format::is_meta(last_.type) ? last_.lsn : last_.prev_meta_lsn;
        record.root_lsn = last_.root_lsn;
    }
    AppendTicket submit(Record record, Admission) override {
        stamp(record);
        last_ = record;
        AppendMessage message{claim_, token_, record.lsn, member_.env_.clock.now()};
        MemberLog::Actions actions;
        member_.machine_.on_message(message, message.sent_at, actions);
        std::vector<Record> records{std::move(record)};
        member_.is_in_submit_ = true;
        member_.carry_out(actions, &records);
        member_.is_in_submit_ = false;
        return {};
    }
    Task<Result<void>> wait(AppendTicket) override { co_return Result<void>{}; }
    Task<Result<Lsn>> append(Record) override { co_return fail(Code::unsupported, "not here"); }
    void trim(Lsn, Lsn) override {}
    uint64_t retained_bytes() const override { return member_.media_.records.size() * 200; }
    uint64_t retained_meta_bytes() const override { return 0; }
    uint64_t retained_bytes_max() const override { return kGiB; }
    bool is_short() const override { return false; }
    bool is_endangered() const override { return false; }
    void watch_endangered(std::function<void()>) override {}
    void refuse_waiting(const Error&, Waiting) override {}
    void renew(Time sent_at) override {
        MemberLog::Actions actions;
        member_.machine_.on_message(RenewMessage{claim_, token_, sent_at}, member_.env_.clock.now(),
                                    actions);
        member_.is_in_submit_ = true;
        member_.carry_out(actions, nullptr);
        member_.is_in_submit_ = false;
    }
    Task<Result<LogRecords>> read_log(Lsn after, uint64_t bytes) override {
        return member_.read_log(kOwnedVolume, claim_, member_.media_.incarnation, after, bytes);
    }

  private:
    TestMember& member_;
    const Claim claim_;
    const OpenToken token_;
    LogTail tail_;
    Record last_;
};

inline Result<std::unique_ptr<OwnerLog>> TestMember::owner_log(VolumeId, const Claim& claim,
                                                               OpenToken token, OwnerSink& sink) {
    const MemberLog::Stored& stored = machine_.stored();
    if (machine_.fence() != claim) return fail(Code::fenced, "a newer claim was here");
    if (stored.opened_by != claim || stored.token != token)
        return fail(Code::unavailable, "no log was opened here under that token");
    sink_ = &sink;
    sink_claim_ = claim;
    return std::make_unique<TestOwnerLog>(*this, claim, token);
}

}  // namespace peplos::replica
