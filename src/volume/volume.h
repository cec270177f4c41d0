#pragma once

#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "base/ids.h"
#include "format/segment_kind.h"
#include "volume/background.h"
#include "volume/block_device.h"
#include "volume/resources.h"
#include "volume/stats.h"

// A volume: the virtual disk over a journal, segments and a block map.
//
// Invariants
//   1. A write is acknowledged only after its record is durable in the journal, in LSN order.
//   2. The map is f(records in LSN order) exactly; replay after a crash gives the same map.
//   3. A reader takes the overlay (not drained yet) before the map; both change without suspension
//      per block, so a reader sees a block's old or new bytes, never neither.
//   4. The map names only sealed segments, and the overlay only durable bytes.
//   5. A segment is removed only when the map does not name it, a durable delete intent says so,
//      no replay needs its index (its seal is covered by the newest root), and no pin holds it.
//   6. Acknowledged undrained bytes always have promised space (SpaceBudget).
//
//   create/open -> serving -> close (drain, checkpoint) or stop (nothing) -> destroyed object
//                     |-> faulted: io_error, fenced or corrupt metadata; every call answers it
namespace peplos::volume {

struct VolumeCore;

struct VolumeParams {
    VolumeId id;
    LineageId lineage;
    // The size the control store knows; a resize found in the journal (a grow that was durable
    // when the control store was not told) wins when it is larger. A multiple of kBlockBytes.
    uint64_t size_bytes = 0;
    uint32_t sector_bytes = 512;
    Epoch epoch;      // the claimed one, above every epoch seen
    OpenToken token;  // new, random: record it (Journal::membership_for) once open() succeeded
    // As the control store knew it before this claim; none only for a volume that never had a log.
    std::optional<replica::Membership> recorded;
    // On how many nodes each new segment lies; more than one needs Resources::placement.
    uint32_t copies = 1;
};

// What damage keeps a volume closed, and what going on without it costs.
struct LossReport {
    // What cannot be read: each names the device, the offset and what it was needed for.
    std::vector<std::string> findings;
    // What is gone, in the order of the findings as far as they cost something.
    std::vector<std::string> losses;
    uint64_t lost_blocks = 0;      // that read as errors until they are written or trimmed
    uint64_t dropped_records = 0;  // acknowledged, readable, and behind a hole in the journal
    uint64_t dropped_blocks = 0;   // that these wrote
    uint64_t given_up_blocks = 0;  // drained, into segments that nothing names any more
    Lsn kept_lsn{UINT64_MAX};      // the journal counts up to here; all of it, unless it is cut
    bool is_whole() const { return findings.empty(); }
    // More would be lost than that says.
    bool is_worse_than(const LossReport& shown) const {
        return lost_blocks > shown.lost_blocks || dropped_blocks > shown.dropped_blocks ||
               given_up_blocks > shown.given_up_blocks || kept_lsn < shown.kept_lsn ||
               losses.size() > shown.losses.size();
    }
};

// How near a volume is to its bounds: what the keeper schedules by. All O(1).
struct Pressure {
    uint64_t undrained_bytes = 0;
    uint64_t undrained_extents = 0;  // zero extents
    uint64_t replay_bytes = 0;       // sealed since the last root: what a restart would re-read
    uint64_t replay_records = 0;     // meta records since the last root
    uint64_t dirty_leaf_bytes = 0;
    uint64_t dirty_leaf_count = 0;     // leaves that a restart may have to read to replay
    uint64_t dead_segments = 0;        // nothing live, to be removed
    uint64_t dead_bytes_waiting = 0;   // dead, but only a checkpoint lets them go
    uint64_t retained_bytes = 0;       // pinned in the journal's ring
    uint64_t retained_meta_bytes = 0;  // of these, what only a checkpoint frees
    uint64_t retained_bytes_max = 0;
    bool is_endangered = false;  // records went bad in the journal: drain and checkpoint now
    bool journal_is_short = false;
    bool writes_wait = false;  // somebody waits for overlay room, journal room or extents

    // Meta records take so much of the volume's part of the journal that a checkpoint is due: no
    // drain frees them, and writers may be waiting for just that room.
    bool is_meta_heavy() const {
        return retained_meta_bytes * 8 >= retained_bytes_max ||
               (writes_wait && retained_meta_bytes * 2 >= retained_bytes) ||
               (journal_is_short && retained_meta_bytes >= 64 * kKiB);
    }
};

// One segment as the cleaner and scrub see it.
struct SegmentView {
    uint32_t index = 0;
    SegmentId id;
    format::SegmentKind kind = format::SegmentKind::data;
    uint8_t lifetime_class = 0;
    Lsn age_lsn;               // how old its data are
    uint32_t block_count = 0;  // as sealed
    uint32_t live_count = 0;   // its blocks, where the map does not name them yet
    uint32_t unit_count = 0;
    bool is_damaged = false;  // cleaning it does not empty it
};

// What a scrub of one segment found: each problem names device, segment, offset and volume.
struct ScrubResult {
    uint64_t bytes_checked = 0;
    std::vector<std::string> problems;
    // What was wrong with this node's copy, which has been made anew out of another node's.
    std::vector<std::string> repaired;
};

class Volume final : public BlockDevice {
  public:
    // A new, empty volume: constant time and memory, whatever its size (thin).
    // Errors: invalid_argument (size or sector), no_space, io_error, fenced, busy.
    static runtime::Task<Result<std::unique_ptr<Volume>>> create(Resources& resources,
                                                                 VolumeParams params);
    // Fences with params.epoch, loads the newest root and replays the journal. Serves at return.
    // Errors: unavailable (the log cannot prove it is complete: the reason says which device and
    // why; nothing was lost by asking), corrupt (map or seals needed for the replay: named),
    // fenced, io_error, unsupported, busy.
    static runtime::Task<Result<std::unique_ptr<Volume>>> open(Resources& resources,
                                                               VolumeParams params);
    // The same with the log of a claim that is through, whose epoch and token params carry.
    // `recorded` is not looked at.
    static runtime::Task<Result<std::unique_ptr<Volume>>> open(
        Resources& resources, VolumeParams params, std::unique_ptr<replica::VolumeLog> log);
    // A way out for a volume whose open() fails by damage: finds out what is lost and, with
    // `accept`, goes on without it. That is final once this returns, and happens not at all before:
    // after an error or a power cut it is repeated. `look` changes nothing. Open it afterwards.
    // What is lost never reads as if it were right: lost blocks read as errors until they are
    // written or trimmed; of the journal the volume keeps what is before the first hole.
    // Errors: unavailable (not a matter of damage, or nothing can be saved: says why), as open().
    // `accepted`: what was shown to whoever accepts; when more is lost by now, it is refused
    // (busy).
    static runtime::Task<Result<LossReport>> recover(
        Resources& resources, VolumeParams params, replica::OnLoss on_loss,
        std::optional<LossReport> accepted = std::nullopt);
    // Frees every segment and the log of a volume that is not open; of an open one after stop().
    // Works on a full device; idempotent (a repeat finds nothing). With Resources::placement it
    // frees the segments on every node, under `claim`.
    // Errors: busy (somebody still reads a segment; nobody else frees it after a power cut, so call
    // again before the volume is forgotten), io_error, unavailable (a node does not answer: call
    // again), fenced.
    static runtime::Task<Result<void>> destroy(Resources& resources, VolumeId volume,
                                               replica::Claim claim = {});

    // Requires: close() or stop() has resolved (or its process is dead).
    ~Volume() override;

    // Refuses new I/O, waits for what runs, drains and checkpoints, so that the next open has
    // nothing to replay. Ends stopped, whatever it returns. Errors: of drain and checkpoint;
    // nothing acknowledged is lost by them. Call Background::closing() first. Idempotent.
    runtime::Task<Result<void>> close();
    // Refuses new I/O and waits for what runs; everything acknowledged is in the journal.
    runtime::Task<void> stop();

    VolumeId id() const;
    Epoch epoch() const;
    uint64_t size_bytes() const override;
    uint32_t sector_bytes() const override;

    // Calls may be at most limits::kVolumeIoCountMax at once; more wait their turn.
    runtime::Task<Result<void>> read(uint64_t offset, Buffer into) override;
    runtime::Task<Result<void>> write(uint64_t offset, Buffer from) override;
    runtime::Task<Result<void>> zero(uint64_t offset, uint64_t bytes) override;
    runtime::Task<Result<void>> flush() override;

    // Online; durable on return, then tell the control store. The same size is fine.
    // Errors: invalid_argument (smaller, above limits::kVolumeBytesMax, not whole blocks).
    runtime::Task<Result<void>> grow(uint64_t size_bytes);

    VolumeStats stats() const;
    const Resources& resources() const;
    // Why the volume serves no more (device failed, fenced); none while it is well.
    std::optional<Error> faulted() const;

    // ---- for the keeper; each is serialised with the others inside the volume ----

    Pressure pressure() const;
    // Brings what is acknowledged now into segments and trims the journal. At most one segment's
    // worth is in memory beside the overlay. Errors: no_space (nothing changed), io_error, ...
    runtime::Task<Result<void>> drain();
    // Writers that wait for room in the journal get `why` instead: nothing is coming.
    void refuse_waiting(const Error& why);
    // Writes changed map pages and a root, then lets go of what only the old root needed.
    runtime::Task<Result<void>> checkpoint();
    // Removes dead segments that the newest root allows; cheap when there are none.
    runtime::Task<Result<void>> remove_dead();
    // Segments that hold blocks or map pages and are sealed, in no order.
    std::vector<SegmentView> segments() const;
    // Writes the live blocks of these segments into a new one of `lifetime_class`: afterwards
    // they are dead. Bounded by one segment's worth. A segment that is gone is skipped.
    // Errors: corrupt (named; its other blocks are moved), no_space, io_error.
    runtime::Task<Result<void>> relocate(std::vector<uint32_t> segment_indexes,
                                         uint8_t lifetime_class);
    // Checks header, footer, index and every block of one segment, or every map page in it, in this
    // node's copy; a bad copy is made anew out of another node's where there is one.
    runtime::Task<Result<ScrubResult>> scrub(uint32_t segment_index);

    // The whole map as text lines "lba place crc" of mapped blocks in order, for tests.
    runtime::Task<Result<std::string>> dump_map();

  private:
    explicit Volume(std::unique_ptr<VolumeCore> core);
    std::unique_ptr<VolumeCore> core_;
};

}  // namespace peplos::volume
