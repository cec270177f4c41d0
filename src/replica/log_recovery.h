#pragma once

#include <string>
#include <unordered_map>
#include <vector>

#include "media/ring.h"
#include "replica/volume_state.h"

namespace peplos::replica {

// Decides, from the records that a ring's recovery found, what each volume's log holds and whether
// it is whole. Plain functions, no I/O.
class LogRecovery {
  public:
    struct Volume {
        VolumeId id;
        LineageId lineage;
        Epoch fence;
        format::FenceBody tokens;
        Lsn last_lsn;
        Lsn drained_lsn;
        Lsn meta_lsn;
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
    void take_newest(const Indices& indices, Volume& out);
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
