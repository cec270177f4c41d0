#pragma once

#include <array>
#include <bitset>
#include <cstdint>
#include <map>
#include <memory>
#include <optional>
#include <set>
#include <span>
#include <string>
#include <unordered_map>
#include <vector>

#include "base/ids.h"
#include "base/result.h"
#include "format/map_page.h"
#include "runtime/gate.h"
#include "runtime/sync.h"
#include "runtime/task.h"
#include "volume/leaf_cache.h"
#include "volume/page_reader.h"
#include "volume/page_store.h"
#include "volume/segment_table.h"

namespace peplos::volume {

class Checkpoint;
using format::MapEntry;
using format::Place;
using format::RootRef;

struct MapIdentity {
    VolumeId volume;
    LineageId lineage;
};

struct MapUpdate {
    Lba lba;
    MapEntry entry;  // unmapped = reads as zeros from now on
};

struct ZeroExtent {
    Lba first;
    uint64_t block_count = 0;
};

struct Relocation {
    Lba lba;
    Place old_place;
    MapEntry entry;  // never unmapped
};

// What one meta record does to the map, or what is known of it. All lists ascend by LBA without
// overlap inside a list; losses take effect first (what these blocks hold is not known any more),
// then zeros, updates and relocations.
struct MapChange {
    Lsn lsn;
    std::span<const ZeroExtent> zeros;
    std::span<const MapUpdate> updates;
    std::span<const Relocation> relocations;
    std::span<const ZeroExtent> losses = {};
};

// A volume's map: LBA -> where the block is, and its CRC.
//
// A root array of interior pages, made when the first leaf below them is written; each names 1,024
// leaves; a leaf holds 1,024 blocks. Interior pages and the segment table stay in RAM (under 8 MiB
// per TiB mapped one block per leaf); leaves live in the node's LeafCache. A volume of 64 TiB
// without data costs 128 KiB and no time.
//
// Invariants
//   1. State = f(records in LSN order): nothing depends on time, on the cache or on how reads of
//      leaves interleave.
//   2. A checkpoint is the state after exactly the changes applied before begin_checkpoint().
//   3. Every page served was verified against its parent: magic, CRC, identity, sequence.
//   4. A page of the last durable root is never given up before the next root is durable.
//
// States of a checkpoint (one at a time; applies and lookups go on in all of them):
//
//   idle -begin_checkpoint-> cut -write_checkpoint-> written -commit_checkpoint-> idle
//                             |                        |
//                             +--write failed: idle    +--abort_checkpoint: idle
//
// One executor. Tasks borrow the map and their arguments; close() waits for the map's own
// background work (leaves that it loads); it must be called, and have resolved, before destruction.
class BlockMap {
  public:
    // A new, empty map of `block_count` blocks (at most 64 TiB). Constant time.
    BlockMap(MapIdentity identity, uint64_t block_count, LeafCache& cache, PageStore& store,
             runtime::Executor executor);
    ~BlockMap();
    BlockMap(const BlockMap&) = delete;
    BlockMap& operator=(const BlockMap&) = delete;

    // Reads root, interior and segment table pages into this map, which must be new (block_count
    // is taken from the root). The store cannot know its segments before: the root's own segment
    // comes from `ref`, all others from the root. Reads run in parallel and neighbours as one.
    // Errors: corrupt, unsupported, and those of PageStore::read. After an error: destroy the map.
    runtime::Task<Result<void>> load(RootRef ref);
    runtime::Task<void> close();

    uint64_t block_count() const { return block_count_; }
    uint64_t mapped_count() const { return segments_.live_block_count(); }
    // Blocks whose entries are lost; too high where one leaf was lost twice.
    uint64_t lost_count() const { return lost_count_; }
    // Moves when a leaf is lost, and when nothing is lost any more.
    uint64_t loss_changes() const { return loss_changes_; }
    // The LSN of the last complete apply or of the loaded root's meta_lsn.
    Lsn applied_lsn() const { return applied_lsn_; }
    // What the last durable checkpoint covers.
    Lsn durable_drained_lsn() const { return durable_drained_lsn_; }
    Lsn durable_meta_lsn() const { return segments_.durable_meta_lsn_; }
    const std::optional<RootRef>& durable_root() const { return durable_root_; }
    SegmentTable& segments() { return segments_; }
    const SegmentTable& segments() const { return segments_; }

    // Lookup -------------------------------------------------------------------------------------

    // Fills `out` with the entries of blocks first, first+1, ... when every leaf it needs is in RAM
    // (or maps nothing). False: call lookup(); `out` is undefined. Never allocates or suspends.
    // Requires: the range lies inside the volume.
    bool lookup_cached(Lba first, std::span<MapEntry> out);
    // The same, loading leaves; concurrent loads of one leaf are one read.
    // Errors: corrupt (named), and those of PageStore::read.
    runtime::Task<Result<void>> lookup(Lba first, std::span<MapEntry> out);

    // Change -------------------------------------------------------------------------------------

    // Applies one record. Segments it names must be in segments() before. A relocation takes effect
    // only where the entry still equals old_place. Live counts follow every transition.
    // Requires: no other apply runs; change.lsn >= applied_lsn(); LBAs inside the volume (equal
    // LSNs: a record applied in several calls, each complete before the next).
    // Readers meanwhile see some of it: what an overlay hides must stay hidden until it resolves.
    // A leaf that is corrupt does not stop a change: its blocks become `lost`, until they are
    // written or zeroed. Nor does one that its device does not give while it gives the rest of that
    // segment: the change is kept beside it until it can be read (see settle_unread()).
    // Errors: as lookup; then part of it was applied, and nothing but the same call again (it is
    // idempotent) may follow: a checkpoint is refused until it succeeded.
    // Also corrupt: an entry names a segment that the table does not have (named, checked first,
    // nothing applied).
    runtime::Task<Result<void>> apply(MapChange change);
    // Requires: block_count >= block_count(), at most 64 TiB. Part of the state: a `resize` record.
    void grow(Lsn lsn, uint64_t block_count);

    // Reads the leaves that changes have passed by. Their blocks read as errors until then, but for
    // those that were written or zeroed since; a restart replays the same changes.
    // Errors: unavailable (some still cannot be read: no checkpoint before they can).
    runtime::Task<Result<void>> settle_unread();
    // Gives them up: what no change since has written or zeroed is lost. Gives the blocks lost.
    uint64_t lose_unread();

    // Checkpoint ---------------------------------------------------------------------------------

    // Bytes of leaves that the next checkpoint has to write, as they are in RAM.
    uint64_t dirty_bytes() const { return dirty_bytes_; }
    // How many leaves these are: what a replay of the changes since then would have to read.
    uint64_t dirty_leaf_count() const { return dirty_leaf_count_; }
    // Fixes the cut, in time proportional to the interior pages and stale table pages; no I/O.
    // `drained_lsn`, `meta_lsn`: what the state covers, for recovery.
    // Errors: busy (a checkpoint runs, an apply does or has failed, or settle_unread() is due).
    Result<void> begin_checkpoint(Lsn drained_lsn, Lsn meta_lsn);
    // Writes the cut: leaves, interior pages, segment table pages, root; live pages of map segments
    // that are mostly dead move along. Resolves when all of it is durable; the caller then makes
    // the `root` record durable and calls commit_checkpoint().
    // Errors: those of PageStore; the map goes on, and the next checkpoint writes what is missing.
    runtime::Task<Result<RootRef>> write_checkpoint();
    // The `root` record is durable: pages and segments that only older roots needed are free.
    void commit_checkpoint();
    // The `root` record certainly is not and never becomes durable.
    void abort_checkpoint();

    // Inspection ---------------------------------------------------------------------------------

    struct Audit {
        uint64_t leaf_count = 0;
        uint64_t mapped_count = 0;
        // One sentence per segment whose live count is not what the map says.
        std::vector<std::string> mismatches;
    };
    // Recomputes every live count from every leaf (loading all of them, outside the cache) and
    // compares. Requires: no apply and no checkpoint run meanwhile. Errors: as lookup.
    runtime::Task<Result<Audit>> audit();
    // Reads every page of the map that lies in map segment `index` and checks it against its
    // parent. What is wrong goes to `problems`, with its place; returns the bytes checked.
    // Requires: no checkpoint runs meanwhile.
    runtime::Task<uint64_t> scrub_segment(uint32_t index, std::vector<std::string>& problems);
    // Resident bytes without the leaves.
    uint64_t memory_bytes() const;
    uint64_t leaf_count() const;  // leaves that map something or are dirty

  private:
    friend class Checkpoint;
    friend class LeafCache;
    friend class MapSalvage;

    static constexpr uint32_t kSlotCount = format::kInteriorSlotCount;
    static constexpr uint64_t kInteriorBlocks = uint64_t{kSlotCount} * limits::kLeafBlocks;
    // Leaves whose loads an apply keeps in flight at once.
    static constexpr uint32_t kApplyWindow = 64;

    // `leaf` is null (not in RAM), emptied() (changed, and maps nothing) or a leaf in the cache.
    // `page` changes only by a checkpoint: what a running one has yet to encode stays as it was.
    struct Slot {
        format::PageSlot page;
        Leaf* leaf = nullptr;
    };
    // A leaf as it was at the running checkpoint's cut, set aside because it changed since.
    struct Captured {
        uint64_t leaf_index;
        std::vector<LeafItem> items;
    };
    struct Interior {
        std::unique_ptr<Slot[]> slots;
        uint32_t slot_count = 0;
        bool page_dirty = false;          // slots differ from `page`
        format::PageSlot page;            // as last written
        std::bitset<kSlotCount> dirty;    // leaf changed since the last cut
        std::bitset<kSlotCount> pending;  // changed before the running cut, not yet encoded
        std::vector<Captured> captured;   // likewise, but changed again since
    };
    struct Loading;
    struct Window;
    // A page that only an older root needs.
    struct Superseded {
        uint32_t segment_index;
        uint32_t units;
    };
    // What is known of a block whose leaf could not be read when a change came: either what it is
    // since its last update, or where a move took it from and to, should it have been there.
    struct UnreadBlock {
        bool is_known = false;
        MapEntry entry;
        std::vector<std::pair<Place, MapEntry>> moves;
    };
    // Every segment that it names counts one block more, so that nothing takes it for dead.
    using UnreadLeaf = std::map<uint32_t, UnreadBlock>;
    enum class CheckpointState : uint8_t { idle, cut, writing, written };
    // Updates or relocations, one of them empty.
    struct Steps {
        std::span<const MapUpdate> updates;
        std::span<const Relocation> relocations;
        size_t size() const { return updates.size() + relocations.size(); }
        uint64_t lba(size_t i) const {
            return updates.empty() ? relocations[i].lba.value : updates[i].lba.value;
        }
        uint64_t leaf_index(size_t i) const { return lba(i) / limits::kLeafBlocks; }
        const MapEntry& entry(size_t i) const {
            return updates.empty() ? relocations[i].entry : updates[i].entry;
        }
    };

    static Leaf* emptied() { return reinterpret_cast<Leaf*>(uintptr_t{1}); }
    static bool is_leaf(const Leaf* leaf) { return reinterpret_cast<uintptr_t>(leaf) > 1; }
    static uint32_t slot_number(uint64_t leaf_index) { return leaf_index % kSlotCount; }

    // nullptr when the leaf's interior page does not exist.
    Slot* slot_of(uint64_t leaf_index);
    Interior& interior_of(uint64_t leaf_index) { return *interiors_[leaf_index / kSlotCount]; }
    void make_interior(uint64_t interior_index);
    uint32_t slot_count_of(uint64_t interior_index) const;
    // Whether the leaf must be read before its entries are known.
    bool is_missing(uint64_t leaf_index);
    format::PageIdentity identity_of(format::PageKind kind, uint64_t key,
                                     uint64_t sequence = 0) const;

    // Leaves in RAM.
    runtime::Task<Result<LeafPin>> fetch(uint64_t leaf_index);
    runtime::Task<Result<void>> read_leaf(uint64_t leaf_index);
    Result<void> install_leaf(uint64_t leaf_index, Bytes page);
    runtime::Task<Result<void>> fetch_all(std::vector<uint64_t> leaf_indexes,
                                          std::vector<LeafPin>* pins);
    runtime::Task<void> fetch_one(std::shared_ptr<Window> window, uint64_t leaf_index);
    runtime::Task<Result<void>> fetch_to_change(std::vector<uint64_t> leaf_indexes,
                                                std::vector<LeafPin>* pins);
    runtime::Task<Result<LeafPin>> fetch_or_lose(uint64_t leaf_index);
    runtime::Task<Result<void>> read_or_lose(uint64_t leaf_index);
    void lose_leaf(uint64_t leaf_index);

    // unread_leaves.cc
    bool is_unread(uint64_t leaf_index) { return unread_now_.contains(leaf_index); }
    bool lookup_unread(uint64_t leaf_index, uint32_t block, std::span<MapEntry> out) const;
    size_t apply_to_unread(const Steps& steps, size_t at);
    void zero_unread(uint64_t leaf_index, uint32_t first, uint32_t end);
    void set_unread(UnreadBlock& block, MapEntry entry);
    void merge_unread(uint64_t leaf_index);
    void end_loading(uint64_t leaf_index, Loading& loading, const Result<void>& read);
    void count_out(const MapEntry& old);
    void evict(Leaf& leaf);
    void destroy_leaf(Slot& slot);
    void capture(Interior& interior, uint64_t leaf_index);
    Leaf& leaf_for_change(uint64_t leaf_index);
    void leaf_changed(uint64_t leaf_index);
    void set_entry(Leaf& leaf, uint32_t block, MapEntry entry);

    // Apply.
    Result<void> check(const MapChange& change) const;
    Result<void> check_entry(Lba lba, const MapEntry& entry) const;
    runtime::Task<Result<void>> apply_all(MapChange change);
    runtime::Task<Result<void>> apply_zero(ZeroExtent extent);
    runtime::Task<Result<void>> apply_loss(ZeroExtent extent);
    runtime::Task<Result<void>> apply_steps(Steps steps);
    size_t apply_to_leaf(const Steps& steps, size_t at);
    void zero_in_leaf(uint64_t leaf_index, uint32_t first, uint32_t end);
    // The first leaf at or after `leaf_index` that may map something, or `end`.
    uint64_t next_mapped(uint64_t leaf_index, uint64_t end);

    std::vector<PageRead> pages_in(uint32_t segment_index) const;
    Result<void> check_page(const PageRead& page, Bytes bytes) const;
    // Load.
    runtime::Task<Result<format::RootPage>> load_root(RootRef ref);
    Result<void> load_interior(uint64_t key, const format::PageSlot& slot, Bytes page);
    Result<void> load_segments(uint64_t key, const format::PageSlot& slot, Bytes page);
    Result<void> count_page(const format::PageSlot& slot);

    MapIdentity identity_;
    uint64_t block_count_;
    LeafCache& cache_;
    PageStore& store_;
    runtime::Executor executor_;
    SegmentTable segments_;
    runtime::Gate gate_;
    PageReader reader_;
    std::vector<std::unique_ptr<Interior>> interiors_;
    std::unordered_map<uint64_t, std::shared_ptr<Loading>> loading_;
    uint64_t dirty_bytes_ = 0;
    uint64_t dirty_leaf_count_ = 0;
    uint64_t lost_count_ = 0;
    uint64_t loss_changes_ = 0;
    uint64_t orphan_count_max_ = 0;  // blocks counted alive that no leaf names, at most
    uint64_t sequence_ = 0;          // of the last checkpoint begun
    Lsn applied_lsn_;
    Lsn durable_drained_lsn_;
    bool applying_ = false;
    std::optional<Lsn> failed_lsn_;  // of an apply that must be repeated
    std::map<uint64_t, UnreadLeaf> unread_;
    std::set<uint64_t> unread_now_;  // could not be read in this apply, so it asks no more

    CheckpointState checkpoint_state_ = CheckpointState::idle;
    std::unique_ptr<Checkpoint> checkpoint_;
    std::optional<RootRef> durable_root_;
    std::vector<Superseded> superseded_;
};

}  // namespace peplos::volume
