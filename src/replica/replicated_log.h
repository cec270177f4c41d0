#pragma once

#include "replica/owner_context.h"

namespace peplos::replica {

class LogOwner;

// Who holds a log, for people and for placement.
struct EnsembleStatus {
    Members members;      // as recorded, as far as this owner knows
    uint32_t copies = 0;  // wanted
    std::vector<NodeId> silent;
    bool is_changing = false;
    // Why writes wait, or the log has fewer copies than wanted; empty: all is well.
    std::string why;
    Lsn last_lsn;
    Lsn acknowledged_lsn;
};

// A volume's log with its copies on several nodes, while this node owns the volume: the log of the
// own member, and those of the others behind MemberPorts. The decisions are Ensemble's.
//
// wait() resolves when the record is acknowledged: durable on all members of every ensemble that
// may be the recorded one. A member that does not answer delays this until it returns, another
// ensemble is found, or degrade() gives it up.
//
// Errors of every call: fenced (somebody else claimed the volume: whether records that were not
// acknowledged yet survive is the new owner's finding), io_error (the own device failed: claim the
// volume anew, on another device or node), outcome_unknown (this log was released or closed with
// the record on its way), stopping.
class ReplicatedLog final : public VolumeLog {
  public:
    // Of a takeover that is through: `ownership` is recorded and open, its members have the log.
    // Errors: fenced, not_found, corrupt (the own member has another log).
    static Result<std::unique_ptr<ReplicatedLog>> start(OwnerContext& context, VolumeId volume,
                                                        LineageId lineage, uint32_t copies,
                                                        const Ownership& ownership, Lsn last_lsn);
    // At once, whatever is on its way: what that comes to is unknown. release() is the polite way.
    ~ReplicatedLog() override;

    VolumeId volume() const override;
    Epoch epoch() const override;
    const LogTail& tail() const override;
    Task<Result<void>> replay(RecordVisitor& visitor) override;
    Task<Result<std::vector<format::Record>>> find_drained() override;
    Lsn next_lsn() const override;
    Admission try_admit(const format::Record& record) override;
    Task<Result<Admission>> admit(const format::Record& record) override;
    AppendTicket submit(format::Record record, Admission admission) override;
    Task<Result<void>> wait(AppendTicket ticket) override;
    Task<Result<Lsn>> append(format::Record record) override;
    void trim(Lsn drained_lsn, Lsn meta_lsn) override;
    uint64_t retained_bytes() const override;
    uint64_t retained_meta_bytes() const override;
    uint64_t retained_bytes_max() const override;
    bool is_short() const override;
    bool is_endangered() const override;
    void watch_endangered(std::function<void()> tell) override;
    void refuse_waiting(const Error& why, Waiting who) override;

    const Claim& claim() const;
    bool may_read() const override;
    Task<Result<void>> renew_promises() override;

    EnsembleStatus status() const;
    // Goes on with the members that answer, the own one at least: what is written from now on has
    // fewer copies until others are found. Errors: conflict (all of them answer; or a change is
    // under way), and those of every call.
    Result<void> degrade();
    // Nodes came or went: looks for a better ensemble now rather than soon.
    void reconsider();
    // Stops, and gives the promises back: the next claimer need not wait. Writes on their way
    // become outcome_unknown.
    Task<void> release();

  private:
    explicit ReplicatedLog(std::shared_ptr<LogOwner> owner);

    std::shared_ptr<LogOwner> owner_;
};

}  // namespace peplos::replica
