#include "replica/member_host.h"

#include <algorithm>

#include "base/fault.h"
#include "replica/local_journal.h"
#include "replica/member.h"

namespace peplos::replica {

MemberHost::MemberHost(runtime::Env env, NodeId self, Timing timing)
    : env_(env), self_(self), timing_(timing) {}

MemberHost::~MemberHost() = default;

void MemberHost::add_device(const DeviceId& id, Incarnation incarnation, LocalJournal& journal) {
    CHECK(device_of(incarnation) == nullptr, "device {} is here already", id);
    devices_.push_back({id, incarnation, &journal});
    for (const RetainedVolume& held : journal.volumes())
        member_for(held.volume, devices_.back());
}

// ---- who is meant ----

Result<void> MemberHost::check(VolumeId volume) const {
    if (stopping_) return fail(Code::stopping, "the node's journal service is stopping");
    if (dropped_.contains(volume)) return fail(Code::fenced, "volume {} is deleted", volume);
    return {};
}

const MemberHost::Device* MemberHost::device_of(Incarnation incarnation) const {
    auto found = std::ranges::find(devices_, incarnation, &Device::incarnation);
    return found == devices_.end() ? nullptr : &*found;
}

// Keeps the fences of volumes of which no device here has a log.
const MemberHost::Device* MemberHost::spare_device() const {
    auto works = [](const Device& device) { return !device.journal->has_failed(); };
    auto found = std::ranges::find_if(devices_, works);
    return found == devices_.end() ? nullptr : &*found;
}

const MemberHost::Members* MemberHost::members_of(VolumeId volume) const {
    auto found = members_.find(volume);
    return found == members_.end() ? nullptr : &found->second;
}

Member* MemberHost::member_at(VolumeId volume, Incarnation incarnation) const {
    const Members* members = members_of(volume);
    if (members == nullptr) return nullptr;
    for (const auto& member : *members) {
        if (member->device() == incarnation) return member.get();
    }
    return nullptr;
}

// The one that this claim opened with that token; else any, to refuse.
Member* MemberHost::member_with(VolumeId volume, const Claim& claim, OpenToken token) const {
    const Members* members = members_of(volume);
    if (members == nullptr || members->empty()) return nullptr;
    for (const auto& member : *members) {
        const MemberLog::Stored& stored = member->machine().stored();
        if (stored.token == token && stored.opened_by == claim) return member.get();
    }
    return members->front().get();
}

Member& MemberHost::member_for(VolumeId volume, const Device& device) {
    if (Member* there = member_at(volume, device.incarnation); there != nullptr) return *there;
    return *members_[volume].emplace_back(std::make_unique<Member>(
        env_, self_, timing_, volume, device.incarnation, *device.journal));
}

Claim MemberHost::newest_claim(VolumeId volume) const {
    Claim newest;
    const Members* members = members_of(volume);
    if (members == nullptr) return newest;
    for (const auto& member : *members) {
        if (member->machine().fence().epoch > newest.epoch) newest = member->machine().fence();
    }
    return newest;
}

bool MemberHost::admits(VolumeId volume, const Claim& claim) const {
    // Whoever deletes the volume goes on until nothing of it is left.
    if (auto dropped = dropped_.find(volume); dropped != dropped_.end())
        return claim == dropped->second;
    const Members* members = members_of(volume);
    if (members == nullptr) return true;
    return std::ranges::all_of(*members, [&claim](const auto& member) {
        const Claim& fence = member->machine().fence();
        return claim.epoch > fence.epoch || claim == fence;
    });
}

Epoch MemberHost::fence_of(VolumeId volume) const {
    return newest_claim(volume).epoch;
}

Message MemberHost::refuse(VolumeId volume, const Claim& claim, OpenToken token,
                           Refusal::Reason reason) const {
    return Refusal{claim, self_, token, reason, newest_claim(volume).epoch};
}

// Whoever asks decides of how many volumes the node hears.
Result<void> MemberHost::check_count(VolumeId volume) const {
    if (members_.contains(volume) || members_.size() < limits::kVolumeCountMax) return {};
    return fail(Code::busy, "the node keeps logs or fences of {} volumes", members_.size());
}

// ---- fencing ----

Task<void> MemberHost::fence_one(Member& member, LineageId lineage, FenceMessage message,
                                 std::optional<Result<Message>>* answer, size_t* missing,
                                 runtime::WaitList* over) {
    *answer = co_await member.fence(lineage, message);
    if (--*missing == 0) over->wake_all();
}

namespace {

// Which answer speaks for the node: that of the device that is meant, else that of the log that the
// newest claim opened, the longest of these. A refusal that says `fenced` goes before them all.
const Result<Message>* choose(const std::vector<std::optional<Result<Message>>>& answers,
                              Incarnation meant) {
    const Result<Message>* best = nullptr;
    auto rank = [meant](const Result<Message>& answer) {
        const auto* fenced = answer ? std::get_if<FenceAnswer>(&*answer) : nullptr;
        if (fenced != nullptr) {
            return std::tuple(meant && fenced->incarnation == meant ? 3 : 2, fenced->opened,
                              fenced->last_lsn);
        }
        const auto* refusal = answer ? std::get_if<Refusal>(&*answer) : nullptr;
        bool is_fenced = refusal != nullptr && refusal->reason == Refusal::Reason::fenced;
        return std::tuple(is_fenced ? 4 : refusal != nullptr ? 1 : 0, Epoch(0), Lsn(0));
    };
    for (const auto& answer : answers) {
        if (best == nullptr || rank(*best) < rank(*answer)) best = &*answer;
    }
    return best;
}

}  // namespace

Task<Result<Message>> MemberHost::fence(VolumeId volume, LineageId lineage, FenceMessage message) {
    // What is gone takes nothing from anybody, and proves nothing.
    if (auto dropped = dropped_.find(volume); dropped != dropped_.end() && !stopping_) {
        if (message.claim == dropped->second)
            co_return FenceAnswer{.claim = message.claim, .from = self_};
    }
    CO_TRY(check(volume));
    CO_TRY_ASSIGN(runtime::Gate::Pass pass, gate_.enter());
    if (!admits(volume, message.claim))
        co_return refuse(volume, message.claim, message.token, Refusal::Reason::fenced);
    CO_TRY(check_count(volume));
    if (const Device* meant = device_of(message.incarnation)) member_for(volume, *meant);
    if (members_of(volume) == nullptr) {
        const Device* spare = spare_device();
        if (spare == nullptr) co_return fail(Code::unavailable, "no device of this node works");
        member_for(volume, *spare);
    }
    // The device that is meant may have failed: what others say does not stand for it.
    Member* meant = member_at(volume, message.incarnation);
    const Members& members = *members_of(volume);
    const size_t count = members.size();
    std::vector<std::optional<Result<Message>>> answers(count);
    size_t missing = count;
    runtime::WaitList over;
    size_t meant_at = count;
    for (size_t i = 0; i < count; ++i) {
        if (members[i].get() == meant) meant_at = i;
        gate_.spawn(env_.executor,
                    fence_one(*members[i], lineage, message, &answers[i], &missing, &over));
    }
    while (missing != 0)
        co_await over.wait();
    CO_TRY(check(volume));
    const Result<Message>* said = choose(answers, message.incarnation);
    bool is_fenced = *said && std::holds_alternative<Refusal>(**said) &&
                     std::get<Refusal>(**said).reason == Refusal::Reason::fenced;
    if (meant_at != count && !is_fenced) co_return *answers[meant_at];
    co_return *said;
}

// ---- the other words ----

Task<Result<Message>> MemberHost::open(OpenCall call) {
    CO_TRY(check(call.volume));
    CO_TRY_ASSIGN(runtime::Gate::Pass pass, gate_.enter());
    const Claim claim = call.message.claim;
    const OpenToken token = call.message.token;
    // A log without a token is open for nobody.
    if (!token)
        co_return fail(Code::invalid_argument, "an open of volume {} without a token", call.volume);
    const Device* device = device_of(call.message.incarnation);
    if (device == nullptr) co_return refuse(call.volume, claim, token, Refusal::Reason::stranger);
    if (!admits(call.volume, claim))
        co_return refuse(call.volume, claim, token, Refusal::Reason::fenced);
    CO_TRY(check_count(call.volume));
    Member& member = member_for(call.volume, *device);
    CO_TRY_ASSIGN(std::optional<OpenCall> whole, member.gather(std::move(call)));
    if (!whole) {
        MemberAnswer more{.claim = claim, .from = self_};
        co_return more;
    }
    co_return co_await member.open(std::move(*whole));
}

Task<Result<Message>> MemberHost::append(AppendCall call) {
    CO_TRY(check(call.volume));
    CO_TRY_ASSIGN(runtime::Gate::Pass pass, gate_.enter());
    const Claim& claim = call.message.claim;
    const OpenToken token = call.message.token;
    if (!admits(call.volume, claim))
        co_return refuse(call.volume, claim, token, Refusal::Reason::fenced);
    Member* member = member_with(call.volume, claim, token);
    if (member == nullptr) co_return refuse(call.volume, claim, token, Refusal::Reason::stranger);
    co_return co_await member->append(std::move(call));
}

Task<Result<Message>> MemberHost::renew(VolumeId volume, RenewMessage message) {
    CO_TRY(check(volume));
    if (!admits(volume, message.claim))
        co_return refuse(volume, message.claim, message.token, Refusal::Reason::fenced);
    Member* member = member_with(volume, message.claim, message.token);
    if (member == nullptr)
        co_return refuse(volume, message.claim, message.token, Refusal::Reason::stranger);
    co_return member->renew(message);
}

Task<Result<void>> MemberHost::release(VolumeId volume, ReleaseMessage message) {
    CO_TRY(check(volume));
    const Members* members = members_of(volume);
    if (members == nullptr) co_return Result<void>{};
    for (const auto& member : *members)
        member->release(message);
    co_return Result<void>{};
}

Task<Result<LogRecords>> MemberHost::read_log(VolumeId volume, Claim claim, Incarnation incarnation,
                                              Lsn after, uint64_t bytes) {
    CO_TRY(check(volume));
    CO_TRY_ASSIGN(runtime::Gate::Pass pass, gate_.enter());
    Member* member = member_at(volume, incarnation);
    if (member == nullptr)
        co_return fail(Code::unavailable, "volume {} has no log on that device", volume);
    auto is_fence = [&] {
        return newest_claim(volume) == claim && member->machine().fence() == claim;
    };
    if (!is_fence()) co_return fail(Code::fenced, "volume {} was fenced anew", volume);
    CO_TRY_ASSIGN(runtime::Gate::Pass inside, member->enter());
    auto records = co_await member->journal().read_log(volume, after, bytes);
    if (!is_fence()) co_return fail(Code::fenced, "volume {} was fenced anew", volume);
    co_return records;
}

// ---- the owner on this node ----

class MemberHost::OwnerLogHere final : public OwnerLog {
  public:
    OwnerLogHere(Member& member, std::unique_ptr<LocalVolumeLog> log, OwnerSink& sink)
        : member_(member), log_(std::move(log)), sink_(sink) {}
    ~OwnerLogHere() override { member_.end_owner(&sink_); }

    VolumeId volume() const override { return log_->volume(); }
    Epoch epoch() const override { return log_->epoch(); }
    const LogTail& tail() const override { return log_->tail(); }
    Task<Result<void>> replay(RecordVisitor& visitor) override { return log_->replay(visitor); }
    Task<Result<std::vector<format::Record>>> find_drained() override {
        return log_->find_drained();
    }
    Lsn next_lsn() const override { return log_->next_lsn(); }
    Admission try_admit(const format::Record& record) override { return log_->try_admit(record); }
    Task<Result<Admission>> admit(const format::Record& record) override {
        return log_->admit(record);
    }
    AppendTicket submit(format::Record record, Admission admission) override {
        return log_->submit(std::move(record), std::move(admission));
    }
    Task<Result<void>> wait(AppendTicket ticket) override { return log_->wait(std::move(ticket)); }
    Task<Result<Lsn>> append(format::Record record) override {
        return log_->append(std::move(record));
    }
    void trim(Lsn drained_lsn, Lsn meta_lsn) override { log_->trim(drained_lsn, meta_lsn); }
    uint64_t retained_bytes() const override { return log_->retained_bytes(); }
    uint64_t retained_meta_bytes() const override { return log_->retained_meta_bytes(); }
    uint64_t retained_bytes_max() const override { return log_->retained_bytes_max(); }
    bool is_short() const override { return log_->is_short(); }
    bool is_endangered() const override { return log_->is_endangered(); }
    void watch_endangered(std::function<void()> tell) override {
        log_->watch_endangered(std::move(tell));
    }
    void refuse_waiting(const Error& why, Waiting who) override { log_->refuse_waiting(why, who); }
    void renew(Time sent_at) override { member_.renew_owner(sent_at); }
    void stamp(format::Record& record) const override { log_->stamp(record); }
    Task<Result<LogRecords>> read_log(Lsn after, uint64_t bytes) override {
        return member_.journal().read_log(log_->volume(), after, bytes);
    }

  private:
    Member& member_;
    std::unique_ptr<LocalVolumeLog> log_;
    OwnerSink& sink_;
};

Result<std::unique_ptr<OwnerLog>> MemberHost::owner_log(VolumeId volume, const Claim& claim,
                                                        OpenToken token, OwnerSink& sink) {
    TRY(check(volume));
    if (!admits(volume, claim))
        return fail(Code::fenced, "volume {} was fenced above epoch {}", volume, claim.epoch);
    Member* member = member_with(volume, claim, token);
    bool is_open = member != nullptr && member->machine().stored().opened_by == claim &&
                   member->machine().stored().token == token;
    if (!is_open)
        return fail(Code::unavailable, "volume {} was not opened here by epoch {}", volume,
                    claim.epoch);
    auto log = member->journal().log_for_owner(volume, claim.epoch, member);
    member->begin_owner(claim, token, &sink);
    return std::make_unique<OwnerLogHere>(*member, std::move(log), sink);
}

// ---- the end ----

Task<Result<void>> MemberHost::drop(VolumeId volume) {
    CO_TRY_ASSIGN(runtime::Gate::Pass pass, gate_.enter());
    dropped_.try_emplace(volume, newest_claim(volume));
    const Members* members = members_of(volume);
    if (members != nullptr) {
        for (const auto& member : *members)
            member->stop();
        for (const auto& member : *members)
            co_await member->close();
        // A log that its owner still holds refers to its member.
        std::erase_if(leaving_, [](const auto& member) { return !member->has_owner(); });
        for (auto& member : members_[volume]) {
            if (member->has_owner()) leaving_.push_back(std::move(member));
        }
        members_.erase(volume);
    }
    for (const Device& device : devices_)
        CO_TRY(co_await device.journal->drop(volume));
    co_return Result<void>{};
}

void MemberHost::begin_stop() {
    stopping_ = true;
    for (const auto& [volume, members] : members_) {
        for (const auto& member : members)
            member->stop();
    }
}

Task<void> MemberHost::stop() {
    begin_stop();
    for (const auto& [volume, members] : members_) {
        for (const auto& member : members)
            co_await member->close();
    }
    co_await gate_.close();
    // They refer to journals that end before this does.
    members_.clear();
    leaving_.clear();
}

}  // namespace peplos::replica
