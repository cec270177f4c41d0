#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <utility>
#include <vector>

#include "base/check.h"
#include "base/limits.h"
#include "format/map_page.h"

namespace peplos::volume {

using format::LeafItem;
using format::MapEntry;

class BlockMap;

// 1,024 consecutive blocks of a map in RAM: a sorted vector while sparse (18 bytes per block), a
// full array once dense (16 KiB).
class Leaf {
  public:
    static constexpr uint32_t kEntryCount = format::kLeafEntryCount;
    static constexpr uint32_t kSparseEntriesMax = 384;

    Leaf(BlockMap* owner, uint64_t index) : owner_(owner), index_(index) {}
    Leaf(const Leaf&) = delete;
    Leaf& operator=(const Leaf&) = delete;
    // Replaces the contents. `items` ascending by index, none unmapped.
    void assign(std::span<const LeafItem> items);

    uint64_t index() const { return index_; }
    uint32_t mapped_count() const { return count_; }
    MapEntry get(uint32_t block) const { return dense_ ? dense_[block] : find_sparse(block); }
    // Fills `out` with the entries from `first` on.
    void copy(uint32_t first, std::span<MapEntry> out) const;
    // Sets one entry (unmapped = removes) and returns the old one.
    MapEntry exchange(uint32_t block, MapEntry entry);
    // Every mapped block in order; returns how many. `out`: kEntryCount items.
    uint32_t items(std::span<LeafItem> out) const;
    uint32_t memory_bytes() const;

  private:
    friend class LeafCache;
    friend class BlockMap;
    friend class Checkpoint;

    MapEntry find_sparse(uint32_t block) const;
    MapEntry exchange_dense(uint32_t block, MapEntry entry);
    void reserve_sparse(uint32_t capacity);
    void make_dense();

    BlockMap* owner_;
    uint64_t index_;
    // Sparse: `keys_` ascending and `entries_`, count_ of capacity_ in use.
    std::unique_ptr<uint16_t[]> keys_;
    std::unique_ptr<MapEntry[]> entries_;
    std::unique_ptr<MapEntry[]> dense_;
    uint32_t count_ = 0;
    uint32_t capacity_ = 0;
    // The cache's part.
    Leaf* previous_ = nullptr;
    Leaf* next_ = nullptr;
    uint32_t charged_bytes_ = 0;
    uint32_t pins_ = 0;
    bool clean_ = true;        // equals the page its slot names
    bool referenced_ = false;  // used since the hand last passed
};

// Bounds the memory of all leaves of all volumes of a node (one executor).
//
// Clean leaves that nobody pins form a clock; a new leaf pushes out those that were not used since
// the hand last passed. Dirty leaves stay until a checkpoint has written them, so they are bounded
// apart: from dirty_bytes_max on needs_checkpoint() is true and owners must checkpoint before they
// apply much more. Pinned and dirty leaves may exceed bytes_max for as long as they are needed.
class LeafCache {
  public:
    // By default half of the budget may be dirty.
    explicit LeafCache(uint64_t bytes_max = limits::kLeafCacheBytesDefault,
                       uint64_t dirty_bytes_max = 0)
        : bytes_max_(bytes_max),
          dirty_bytes_max_(dirty_bytes_max != 0 ? dirty_bytes_max : bytes_max / 2) {}
    LeafCache(const LeafCache&) = delete;
    LeafCache& operator=(const LeafCache&) = delete;
    ~LeafCache() { CHECK(bytes_ == 0, "{} bytes of leaves outlive their cache", bytes_); }

    uint64_t bytes() const { return bytes_; }
    uint64_t bytes_max() const { return bytes_max_; }
    uint64_t dirty_bytes() const { return dirty_bytes_; }
    bool needs_checkpoint() const { return dirty_bytes_ >= dirty_bytes_max_; }
    // Also evicts down to the new budget.
    void set_bytes_max(uint64_t bytes_max);
    // Drops every leaf that may be dropped. For tests and measurements.
    void drop_clean();

  private:
    friend class BlockMap;
    friend class Checkpoint;
    friend class LeafPin;

    // The leaf's memory changed, or it is new: charges it and evicts others.
    void charge(Leaf& leaf);
    // The leaf is about to be destroyed.
    void discharge(Leaf& leaf);
    void mark_dirty(Leaf& leaf);
    void mark_clean(Leaf& leaf);
    void pin(Leaf& leaf);
    void unpin(Leaf& leaf);
    void evict_to(uint64_t bytes_max);
    void link(Leaf& leaf);
    void unlink(Leaf& leaf);

    uint64_t bytes_max_;
    uint64_t dirty_bytes_max_;
    uint64_t bytes_ = 0;
    uint64_t dirty_bytes_ = 0;
    // The clock: a list whose head is under the hand.
    Leaf* head_ = nullptr;
    Leaf* tail_ = nullptr;
};

// Keeps a leaf in the cache while it lives. Empty for a leaf that maps nothing.
class LeafPin {
  public:
    LeafPin() = default;
    LeafPin(LeafCache& cache, Leaf& leaf) : cache_(&cache), leaf_(&leaf) { cache.pin(leaf); }
    LeafPin(LeafPin&& other) noexcept
        : cache_(other.cache_), leaf_(std::exchange(other.leaf_, nullptr)) {}
    LeafPin& operator=(LeafPin&& other) noexcept {
        std::swap(cache_, other.cache_);
        std::swap(leaf_, other.leaf_);
        return *this;
    }
    ~LeafPin() {
        if (leaf_ != nullptr) cache_->unpin(*leaf_);
    }
    Leaf* leaf() const { return leaf_; }

  private:
    LeafCache* cache_ = nullptr;
    Leaf* leaf_ = nullptr;
};

}  // namespace peplos::volume
