#pragma once

#include <array>
#include <cstdint>
#include <memory>
#include <set>
#include <span>
#include <vector>

#include "base/ids.h"
#include "base/result.h"
#include "format/map_page.h"
#include "format/segment_layout.h"

namespace peplos::volume {

using format::SegmentEntry;
using format::SegmentState;

// A segment that nothing needs any more: delete it from its devices, then forget it.
struct DeadSegment {
    uint32_t index = 0;
    SegmentId id;
};

// A segment worth cleaning.
struct CleanCandidate {
    uint32_t index = 0;
    SegmentId id;
    double score = 0;  // age * (1-u) / (1+u), u = live_count / block_count; age in LSNs
    uint32_t live_count = 0;
    uint32_t block_count = 0;
};

// The second half of a volume's map: segment index -> which segment, how much of it is alive.
//
// Life of an index:
//
//   free -reserve-> reserved -add-> open -seal-> sealed (add may go to sealed at once; replay adds
//   without reserve) ; sealed with no live block = dead -take_deletable-> its segment is deleted ;
//   dead at a checkpoint's cut -commit of that checkpoint-> free
//
// Invariants
//   1. live_count of a data segment = map entries that name it, after every complete apply.
//   2. live_count of a map segment = 512-byte units of pages that the map in RAM, or the last
//      durable root, names.
//   3. A segment is handed out for deletion only when no replay can read it: its meta record is at
//      or below the durable checkpoint's meta_lsn and no block of it is alive (so no entry of the
//      durable map that names it survives the replay).
//   4. An index is used again only after a durable root that does not list it.
// Relax 3 and replay meets a seal record whose segment is gone; relax 4 and a root lists two
// segments under one index.
//
// 64 bytes per segment: 2 MiB per TiB of full segments. One executor.
class SegmentTable {
  public:
    // Takes the lowest free index. Errors: no_space (all 2^26 are in use).
    Result<uint32_t> reserve();
    // Gives back a reserved index that was never added.
    void release(uint32_t index);

    // Brings a segment in, with live_count 0 whatever `entry` says: apply() counts. The same id
    // again at the same index updates block_count, state and LSNs and keeps the count (an open
    // segment that gains blocks, or a repeated record).
    // Errors: corrupt (the index is in use by another segment, or is out of range: bytes of a
    // record that lies; both named).
    Result<void> add(uint32_t index, const SegmentEntry& entry);
    // open -> sealed. Requires: the index is open or sealed.
    void seal(uint32_t index, uint32_t block_count);

    // nullptr when the index is free or reserved. Valid until the next add or commit.
    const SegmentEntry* find(uint32_t index) const;
    // Moves a live count. Requires: the index is in use and the count stays within its type.
    void count_live(uint32_t index, int64_t delta);

    // What a count should be, where a lost leaf left it too high. Nothing is deletable by it before
    // the next checkpoint: a replay from the last one counts as before. Requires: not above it.
    void correct_live(uint32_t index, uint32_t live_count);

    // Where blocks may be gained by cleaning: sealed data, relocated and large segments that are
    // neither full nor dead, best score first, at most `count_max`. `now` = the volume's last LSN.
    std::vector<CleanCandidate> candidates(Lsn now, uint32_t count_max) const;
    // Segments that may be deleted now; each is handed out once per run of the process (again after
    // a restart: a segment that is gone already is fine). The caller waits for reads that pin the
    // segment by id. Never call it between load() and the end of the replay.
    std::vector<DeadSegment> take_deletable();
    // The caller could not delete these after all: the next take_deletable() gives them again.
    void hand_back(std::span<const DeadSegment> dead);

    // Counters over segments in use.
    uint32_t segment_count() const { return segment_count_; }
    uint64_t live_block_count() const { return live_block_count_; }    // data segments
    uint64_t total_block_count() const { return total_block_count_; }  // data segments
    uint64_t memory_bytes() const;
    // One above the highest index ever used: the bound for a walk with find().
    uint32_t index_end() const { return index_end_; }

  private:
    friend class BlockMap;
    friend class Checkpoint;
    friend class MapSalvage;

    static constexpr uint32_t kChunkEntries = 64;
    static constexpr uint32_t kPageEntries = format::kSegmentPageEntryCount;
    enum Phase : uint8_t { free = 0, reserved = 1, used = 2 };
    // What is true of an index beside its entry.
    struct Status {
        uint8_t phase : 2 = Phase::free;
        bool omitted : 1 = false;  // the running checkpoint's cut leaves it out
        bool taken : 1 = false;    // handed out for deletion
    };
    struct Chunk {
        std::array<SegmentEntry, kChunkEntries> entries{};
        std::array<Status, kChunkEntries> status{};
    };
    // A segment table page: what the last written one is, and whether it is stale.
    struct Page {
        format::PageSlot slot;
        bool dirty = false;
    };
    // The pages that a cut has to write, as they were at the cut.
    struct CutPage {
        uint32_t key;
        std::vector<SegmentEntry> entries;
    };

    // Copies every stale page, leaves out what is dead, and marks it omitted.
    std::vector<CutPage> cut();
    // Ends the running cut: omitted indexes become free, the rest of them deletable.
    void commit(Lsn meta_lsn);
    void abort();
    // Fills the page `key` from disk.
    Result<void> restore(uint32_t key, std::span<const SegmentEntry> entries,
                         const format::PageSlot& slot);
    // Map segments come from the root, with no page counted yet; then every page the root reaches
    // is counted; then those without any are dropped, for deletion.
    Result<void> restore_map_segment(uint32_t index, const SegmentEntry& entry);
    void count_restored_page(uint32_t index, uint32_t units);
    void finish_restore(Lsn meta_lsn);
    // A page of `units` was appended to map segment `index`.
    void count_new_page(uint32_t index, uint32_t units);

    SegmentEntry& entry(uint32_t index) {
        return chunks_[index / kChunkEntries]->entries[index % kChunkEntries];
    }
    Status& status(uint32_t index) {
        return chunks_[index / kChunkEntries]->status[index % kChunkEntries];
    }
    bool is_used(uint32_t index) const;
    void grow_to(uint32_t index);
    void touch(uint32_t index);
    void note_if_dead(uint32_t index);

    std::vector<std::unique_ptr<Chunk>> chunks_;
    std::vector<Page> pages_;
    std::set<uint32_t> free_;  // below index_end_
    uint32_t index_end_ = 0;
    uint32_t segment_count_ = 0;
    uint64_t live_block_count_ = 0;
    uint64_t total_block_count_ = 0;
    Lsn durable_meta_lsn_;
    std::vector<uint32_t> dead_;          // seen dead; verified when used
    std::vector<DeadSegment> deletable_;  // freed by a commit before they were handed out
};

}  // namespace peplos::volume
