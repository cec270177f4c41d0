#pragma once

#include <array>
#include <map>
#include <set>
#include <string>
#include <vector>

#include "volume/block_map.h"

namespace peplos::volume {

using format::PageSlot;

// A data segment of the volume that is on one of its devices, with its index.
struct FoundSegment {
    SegmentEntry entry;  // live_count not known
    std::vector<format::SegmentIndexEntry> index;
};

// Puts a map together of which the root, interior pages or segment table pages cannot be read.
//
// Nothing is guessed. Leaves say who they are, so the newest ones are found in the map segments
// that the root lists; live counts then prove segment by segment that no leaf is missing or too
// many: an entry of a segment whose count agrees is right, what is not shown to be right is lost.
// What segment a table index meant follows from its blocks' checksums, which every read compares.
class MapSalvage {
  public:
    // `map` is new. `map_segments`: those of the volume on its devices, with their bytes.
    MapSalvage(BlockMap& map, std::vector<std::pair<SegmentId, uint64_t>> map_segments)
        : map_(map), map_segments_(std::move(map_segments)) {}

    // After it the map is as after BlockMap::load(), but for losses() and missing().
    // `size_blocks`: as the root record says. Errors: those of reads that are no damage.
    runtime::Task<Result<void>> load(RootRef ref, format::RootPage from_record);
    // Table indexes that leaves name and no readable page lists: which segments are they?
    bool has_missing() const { return !missing_.empty(); }
    // Answers that for those that `found` proves; the others' blocks are lost.
    void match(std::vector<FoundSegment> found);
    // Compares the counts; to be called last. What is lost is to be applied to the map.
    runtime::Task<Result<void>> prove();
    const std::vector<ZeroExtent>& losses() const { return losses_; }
    const std::vector<std::string>& findings() const { return findings_; }

  private:
    struct FoundPage {
        format::PageOutline outline;
        SegmentId segment;
        uint64_t offset = 0;
        PageSlot slot(uint32_t segment_index) const;
    };
    // Of an index in no readable table page: blocks that leaves say are in it.
    struct Missing {
        std::vector<std::pair<uint64_t, MapEntry>> blocks;
    };

    runtime::Task<Result<void>> scan();
    runtime::Task<Result<void>> scan_segment(SegmentId id, uint64_t bytes);
    void walk(SegmentId id, Bytes bytes);
    runtime::Task<Result<format::RootPage>> find_root(RootRef ref, format::RootPage from_record);
    runtime::Task<Result<void>> rebuild_root(RootRef ref, format::RootPage* root);
    using LoadPage = Result<void> (BlockMap::*)(uint64_t key, const PageSlot& slot, Bytes page);
    runtime::Task<Result<bool>> load_child(const format::RootChild& child, LoadPage load);
    runtime::Task<Result<void>> load_tables(const format::RootPage& root);
    runtime::Task<Result<void>> load_interiors(const format::RootPage& root);
    void find_leaves(uint64_t key);
    runtime::Task<Result<Buffer>> read_page(const PageSlot& slot);
    runtime::Task<Result<void>> read_leaves();
    void count_leaf(uint64_t leaf_index, std::span<const LeafItem> items);
    bool is_let_go(uint64_t leaf_index, std::span<const LeafItem> items) const;
    void let_go(uint64_t leaf_index);
    void explain(SegmentId id, uint64_t offset, uint64_t bytes);
    void explain(const PageSlot& slot);
    bool has_unknown_bytes() const;
    std::optional<uint32_t> index_of(SegmentId id) const;

    BlockMap& map_;
    std::vector<std::pair<SegmentId, uint64_t>> map_segments_;
    std::vector<FoundPage> pages_;
    bool scanned_ = false;
    uint64_t sequence_ = 0;  // of the root
    bool root_lost_ = false;
    std::set<uint64_t> lost_interiors_;
    std::set<uint32_t> lost_tables_;
    uint64_t unread_leaves_ = 0;
    // Units of places that the scan could make nothing of, and that lost pages explain; blocks that
    // cannot be read.
    std::set<std::pair<SegmentId, uint64_t>> unknown_;
    std::set<std::pair<SegmentId, uint64_t>> explained_;
    std::set<std::pair<SegmentId, uint64_t>> unreadable_;
    std::map<uint32_t, uint64_t> counts_;  // entries per data segment, as the leaves say
    std::map<uint32_t, Missing> missing_;
    // Segments whose counts do not agree. Their entries in leaves that the counts would have to
    // prove are lost.
    std::set<uint32_t> disproven_;
    std::vector<ZeroExtent> losses_;
    std::vector<std::string> findings_;
};

}  // namespace peplos::volume
