#pragma once

#include <optional>
#include <set>
#include <vector>

#include "format/record.h"
#include "replica/journal.h"
#include "volume/patient_read.h"
#include "volume/volume.h"

namespace peplos::volume {

// What opening a volume in spite of damage has found out. Plain decisions, no I/O.
class Salvage {
  public:
    explicit Salvage(replica::OnLoss on_loss) : on_loss_(on_loss) {}

    bool is_final() const { return on_loss_ == replica::OnLoss::accept; }
    void find(std::string what) { report_.findings.push_back(std::move(what)); }
    void lose(std::string what) { report_.losses.push_back(std::move(what)); }
    void count_lost(uint64_t blocks) { report_.lost_blocks = blocks + unread_.size(); }
    void give_up(uint64_t blocks) { report_.given_up_blocks += blocks; }
    const LossReport& report() const { return report_; }
    LossReport take_report() { return std::move(report_); }

    // Whether the replay takes this record: data only before the first hole. Each record names the
    // newest of its kind before it, by which a hole is seen. Requires: in LSN order.
    bool admits(const format::Record& record, const replica::LogTail& tail);
    // A meta record that nobody can read: what it said is not known. 0: none is missing.
    Lsn lost_meta() const { return lost_meta_; }
    void lose_meta(Lsn lsn) { lost_meta_ = std::max(lost_meta_, lsn); }
    // The last data record that is taken.
    Lsn last(const replica::LogTail& tail) const {
        return std::max({cut_.value_or(last_taken_), tail.drained_lsn});
    }
    bool is_cut(const replica::LogTail& tail) const {
        return tail.outcome != replica::LogOutcome::complete || cut_;
    }
    // The newest data record below this one that was taken.
    Lsn before(Lsn lsn) const { return last_taken_ < lsn ? last_taken_ : before_last_; }
    // Nothing behind this data record counts.
    void cut_behind(Lsn lsn);
    // Says what the journal lost, once the replay has ended.
    void sum_up(const replica::LogTail& tail);

    // A block of a large write that the drain at the end has to write anew and cannot read: that
    // gives it up.
    void lose_payload(uint64_t lba) { unread_.insert(lba); }
    bool gives_up_payload(uint64_t lba) const { return unread_.contains(lba); }

    // What the log still holds of drained records; read once, when first needed.
    std::optional<std::vector<format::Record>> drained;
    Lsn drained_before;     // what the seals replayed so far have drained
    Lsn prev_data_of_seal;  // of the seal that is being replayed

  private:
    const replica::OnLoss on_loss_;
    LossReport report_;
    Lsn last_data_;    // seen
    Lsn last_meta_;    // seen
    Lsn last_taken_;   // data
    Lsn before_last_;  // the one before
    Lsn lost_meta_;
    std::optional<Lsn> cut_;  // the last data record that counts
    std::set<uint64_t> unread_;
};

}  // namespace peplos::volume
