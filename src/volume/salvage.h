#pragma once

#include <optional>
#include <vector>

#include "format/record.h"
#include "replica/journal.h"
#include "volume/volume.h"

namespace peplos::volume {

// A device may fail a read and give the same bytes right the next time.
inline constexpr int kReadAttempts = 3;

// Bytes that are not what they should be, or that the device does not give.
constexpr bool is_damage(Code code) {
    return code == Code::corrupt || code == Code::io_error || code == Code::not_found;
}

// What opening a volume in spite of damage has found out. Plain decisions, no I/O.
class Salvage {
  public:
    explicit Salvage(replica::OnLoss on_loss) : on_loss_(on_loss) {}

    bool is_final() const { return on_loss_ == replica::OnLoss::accept; }
    void find(std::string what) { report_.findings.push_back(std::move(what)); }
    void lose(std::string what) { report_.losses.push_back(std::move(what)); }
    void count_lost(uint64_t blocks) { report_.lost_blocks = blocks; }
    bool is_worse_than(const LossReport& shown) const {
        return report_.lost_blocks > shown.lost_blocks ||
               report_.dropped_blocks > shown.dropped_blocks ||
               report_.losses.size() > shown.losses.size();
    }
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
};

}  // namespace peplos::volume
