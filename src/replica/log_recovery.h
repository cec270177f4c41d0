#pragma once

#include <map>
#include <string>
#include <tuple>
#include <unordered_map>
#include <vector>

#include "media/ring.h"
#include "replica/volume_state.h"

namespace peplos::replica {

// Decides, from the records that a ring's recovery found, what each volume's log holds and whether
// it is whole. Plain functions, no I/O.
//
// Which records are a member's log (DESIGN section 5)
//   Each open of a log has a number, higher than that of every record that the ring held then, and
//   every record carries the number of the open under which it was taken. The newest fence record
//   names the opens whose records count, each up to an LSN (LogSpan). An open writes its records
//   first and that fence record last, and the ring makes them durable in that order.
//   - Half an open: no fence record names its number, so nothing of it counts, now or ever: later
//     opens have higher numbers. The log is what it was.
//   - An open that keeps less than the log had limits the older numbers to what it keeps. One that
//     keeps nothing names its own number alone: what a member that left still had lying there when
//     it came back does not count, whatever its epoch.
//   - So two records that count and have one LSN are copies of one record: what is taken at an LSN
//     that the log had before comes after an open that cut it off there.
//   - A copy that was moved within the ring keeps its number, and fence records are numbered
//     themselves: a move that comes late brings nothing back.
//   The epoch would not do in place of the number: an adopted record keeps its epoch, and of two
//   opens that came to nothing and to something the former may have the records of higher epochs.
// A log that was never a member's has number 0 throughout and counts as a whole.
class LogRecovery {
  public:
    struct Volume {
        VolumeId id;
        LineageId lineage;
        Epoch fence;
        format::FenceBody tokens;  // and what a member knows
        Lsn last_lsn;
        Lsn drained_lsn;  // the newest of seals and roots
        Lsn meta_lsn;
        // The newest data and meta record, also where it is gone: as the others name it.
        Lsn newest_data_lsn;
        Lsn newest_meta_lsn;
        // What is really needed no more; lower for as long as a member's seals and roots may still
        // be undone.
        Lsn trimmed_drained_lsn;
        Lsn trimmed_meta_lsn;
        std::vector<Trimming> unsettled;
        std::vector<Voiding> voidings;
        std::vector<KeptRoot> older_roots;
        uint64_t open_number = 0;
        uint64_t open_number_seen = 0;
        // Which opens and fences there were cannot be told: the log proves nothing, and is open for
        // nobody.
        bool is_fence_lost = false;
        Lsn settled_lsn;
        std::vector<Lsn> voided;  // ascending, above drained_lsn
        std::optional<format::RootBody> root_body;
        // Still needed, sorted by LSN.
        std::vector<Retained> data;
        std::vector<Retained> meta;
        std::optional<Retained> root;
        std::optional<Retained> fence_record;
        std::optional<Retained> damage_record;
        // Why the log cannot be trusted; empty: it can.
        std::string damage;
        uint64_t damage_offset = 0;
        bool is_dropped = false;
        bool is_damage_durable = false;
        bool is_healed = false;  // of an earlier damage
    };

    // `device` is for messages; offset_of gives a position's device offset.
    LogRecovery(std::string device, const media::RingRecovery& recovery,
                std::function<uint64_t(media::RecordPosition)> offset_of);

    std::vector<Volume>& volumes() { return volumes_; }
    // Positions that nobody needs.
    const std::vector<media::RecordPosition>& unneeded() const { return unneeded_; }

  private:
    using Indices = std::vector<size_t>;  // of recovered records, in ring order
    const media::RecoveredRecord& at(size_t index) const { return recovery_.records[index]; }

    Volume fold(VolumeId id, const Indices& indices);
    void take_fence(const Indices& indices, Volume& out);
    Indices keep_counting(const Indices& indices, Volume& out);
    void settle_trims(const Indices& indices, Volume& out) const;
    void keep_roots(const Indices& indices, Volume& out);
    void check_lost_fence(VolumeId id, const Indices& indices, Volume& out) const;
    static void take_named(const format::Record& record, Volume& out);
    void take_newest(const Indices& indices, Volume& out);
    static void take_voided(Lsn lsn, const std::vector<Lsn>& voided, Volume& out);
    std::tuple<uint64_t, Epoch, bool, size_t> rank(size_t index) const;
    void keep_by_lsn(std::map<Lsn, size_t>& kept, size_t index);
    Retained retained(size_t index) const;
    void keep_needed(const Indices& indices, Volume& out);
    void check_chains(const Indices& indices, Volume& out) const;
    void check_lost_frames(VolumeId id, const Indices& indices, Volume& out) const;
    void damage(Volume& out, uint64_t device_offset, std::string why) const;

    std::string device_;
    const media::RingRecovery& recovery_;
    std::function<uint64_t(media::RecordPosition)> offset_of_;
    std::vector<Volume> volumes_;
    std::vector<media::RecordPosition> unneeded_;
};

}  // namespace peplos::replica
