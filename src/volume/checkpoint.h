#pragma once

#include <cstdint>
#include <unordered_set>
#include <vector>

#include "base/buffer.h"
#include "volume/block_map.h"

namespace peplos::volume {

// One checkpoint of a map, from its cut to its root page. Part of BlockMap.
//
// The cut is three marks: per interior page the set of pending leaves (changed before the cut),
// copies of the stale segment table pages, and the two LSNs. From then on:
//   - an apply that touches a pending leaf first sets its state at the cut aside ("captured");
//   - a slot's page changes only here, so interior pages may be encoded at the end;
//   - what was encoded but not yet written is `in flight`: it keeps its leaf from eviction.
class Checkpoint {
  public:
    Checkpoint(BlockMap& map, Lsn drained_lsn, Lsn meta_lsn);

    // Writes everything. After an error: restore().
    runtime::Task<Result<RootRef>> write();
    // Gives back to the map, as changed, what was not written.
    void restore();

    const RootRef& root() const { return root_; }
    Lsn drained_lsn() const { return drained_lsn_; }
    Lsn meta_lsn() const { return meta_lsn_; }

  private:
    enum class Kind : uint8_t { leaf, moved_leaf, interior, segments };
    // A page in the batch.
    struct Item {
        Kind kind;
        uint64_t key;
        uint32_t offset;        // in the batch, bytes
        format::PageSlot slot;  // complete but for segment and offset
    };

    runtime::Task<Result<void>> write_leaves();
    runtime::Task<Result<void>> move_pages();
    runtime::Task<Result<void>> write_interiors();
    runtime::Task<Result<void>> write_segments();
    runtime::Task<Result<void>> write_root();
    runtime::Task<Result<void>> make_room();
    runtime::Task<Result<void>> flush();

    void encode_leaf_page(uint64_t leaf_index, std::span<const LeafItem> items);
    void encode_next(BlockMap::Interior& interior, uint64_t key);
    runtime::Task<Result<void>> read_singly(std::span<const PageRead> pages,
                                            std::vector<std::pair<PageRead, Buffer>>& out);
    Result<void> copy_page(const PageRead& page, Bytes bytes);
    void push(Kind kind, uint64_t key, uint32_t bytes, uint32_t crc, uint32_t generation);
    void install(const Item& item, const format::PageSlot& slot);
    void install_leaf(uint64_t leaf_index, const format::PageSlot& slot);
    void supersede(const format::PageSlot& slot);
    void choose_victims();
    bool is_victim(const format::PageSlot& slot) const {
        return slot && victims_.contains(slot.place.segment_index());
    }
    format::PageIdentity identity(format::PageKind kind, uint64_t key) const;
    MutableBytes batch_rest() { return batch_.bytes().subspan(used_); }

    BlockMap& map_;
    uint64_t sequence_;
    Lsn drained_lsn_, meta_lsn_;
    uint64_t block_count_;
    uint64_t mapped_count_;
    uint64_t lost_count_, orphan_count_max_;
    std::vector<uint64_t> keys_;  // interior pages with pending leaves
    std::vector<SegmentTable::CutPage> segment_pages_;
    uint64_t bytes_expected_ = 0;
    std::unordered_set<uint32_t> victims_;  // map segments to empty

    Buffer batch_;
    uint32_t used_ = 0;
    std::vector<Item> items_;
    RootRef root_;
};

}  // namespace peplos::volume
