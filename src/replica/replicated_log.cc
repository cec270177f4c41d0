#include "replica/replicated_log.h"

#include "replica/log_owner.h"

namespace peplos::replica {

using format::Record;

Result<std::unique_ptr<ReplicatedLog>> ReplicatedLog::start(OwnerContext& context, VolumeId volume,
                                                            LineageId lineage, uint32_t copies,
                                                            const Ownership& ownership,
                                                            Lsn last_lsn) {
    auto owner = std::make_shared<LogOwner>(context, volume, lineage, copies, ownership, last_lsn);
    if (auto begun = owner->begin(); !begun) {
        owner->close();
        return fail(std::move(begun).error());
    }
    return std::unique_ptr<ReplicatedLog>(new ReplicatedLog(std::move(owner)));
}

ReplicatedLog::ReplicatedLog(std::shared_ptr<LogOwner> owner) : owner_(std::move(owner)) {}

ReplicatedLog::~ReplicatedLog() {
    owner_->close();
}

VolumeId ReplicatedLog::volume() const {
    return owner_->volume();
}
Epoch ReplicatedLog::epoch() const {
    return owner_->claim().epoch;
}
const Claim& ReplicatedLog::claim() const {
    return owner_->claim();
}
const LogTail& ReplicatedLog::tail() const {
    return owner_->local().tail();
}
Task<Result<void>> ReplicatedLog::replay(RecordVisitor& visitor) {
    return owner_->local().replay(visitor);
}
Task<Result<std::vector<Record>>> ReplicatedLog::find_drained() {
    return owner_->local().find_drained();
}
Lsn ReplicatedLog::next_lsn() const {
    return owner_->next_lsn();
}
Admission ReplicatedLog::try_admit(const Record& record) {
    return owner_->try_admit(record);
}
Task<Result<Admission>> ReplicatedLog::admit(const Record& record) {
    return owner_->admit(record);
}
AppendTicket ReplicatedLog::submit(Record record, Admission admission) {
    return owner_->submit(std::move(record), std::move(admission));
}
Task<Result<void>> ReplicatedLog::wait(AppendTicket ticket) {
    return owner_->wait(std::move(ticket));
}

Task<Result<Lsn>> ReplicatedLog::append(Record record) {
    CO_TRY_ASSIGN(Admission admission, co_await admit(record));
    CO_TRY(owner_->check());
    Lsn lsn = next_lsn();
    record.lsn = lsn;
    AppendTicket ticket = submit(std::move(record), std::move(admission));
    CO_TRY(co_await wait(std::move(ticket)));
    co_return lsn;
}

void ReplicatedLog::trim(Lsn drained_lsn, Lsn meta_lsn) {
    owner_->trim(drained_lsn, meta_lsn);
}
uint64_t ReplicatedLog::retained_bytes() const {
    return owner_->local().retained_bytes();
}
uint64_t ReplicatedLog::retained_meta_bytes() const {
    return owner_->local().retained_meta_bytes();
}
uint64_t ReplicatedLog::retained_bytes_max() const {
    return owner_->retained_bytes_max();
}
bool ReplicatedLog::is_short() const {
    return owner_->local().is_short();
}
bool ReplicatedLog::is_endangered() const {
    return owner_->local().is_endangered();
}
void ReplicatedLog::watch_endangered(std::function<void()> tell) {
    owner_->local().watch_endangered(std::move(tell));
}
void ReplicatedLog::refuse_waiting(const Error& why, Waiting who) {
    owner_->refuse_waiting(why, who);
}

bool ReplicatedLog::may_read() const {
    return owner_->may_read();
}
Task<Result<void>> ReplicatedLog::renew_promises() {
    return owner_->renew_promises();
}
EnsembleStatus ReplicatedLog::status() const {
    return owner_->status();
}
Result<void> ReplicatedLog::degrade() {
    return owner_->degrade();
}
void ReplicatedLog::reconsider() {
    owner_->reconsider();
}
Task<void> ReplicatedLog::release() {
    return owner_->release();
}

}  // namespace peplos::replica
