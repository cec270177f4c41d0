#pragma once

#include <boost/unordered/unordered_flat_map.hpp>
#include <cstdint>
#include <map>
#include <vector>

#include "base/buffer.h"
#include "base/ids.h"
#include "format/place.h"

namespace peplos::volume {

// Disjoint, never adjacent ranges of blocks.
class ExtentSet {
  public:
    void add(uint64_t first, uint64_t end);
    // The end of the range that holds `lba`; 0 when none does.
    uint64_t end_of_range_with(uint64_t lba) const;
    bool empty() const { return ranges_.empty(); }
    size_t size() const { return ranges_.size(); }
    const std::map<uint64_t, uint64_t>& ranges() const { return ranges_; }

  private:
    std::map<uint64_t, uint64_t> ranges_;  // first -> end
};

// The newest durable version of one block that no map knows yet.
struct OverlayEntry {
    Buffer data;          // the block; empty when `place` says where it is
    format::Place place;  // in a segment that is not in the map yet (large writes)
    Lsn lsn;
    uint32_t crc = 0;
    // LSNs since the version of the same generation that it took the place of; 0: none.
    uint32_t lifespan = 0;

    bool is_reference() const { return static_cast<bool>(place); }
};

// What one drain takes together.
struct OverlayGeneration {
    struct Hash {
        using is_avalanching = void;
        size_t operator()(uint64_t lba) const noexcept { return mix_bits(lba); }
    };
    // A block here is newer than a zero extent over it.
    boost::unordered_flat_map<uint64_t, OverlayEntry, Hash> blocks;
    ExtentSet zeros;
    uint64_t data_blocks = 0;  // of `blocks`, those that hold their bytes in RAM
    Lsn last_lsn;              // newest record in here or before

    bool empty() const { return blocks.empty() && zeros.empty(); }
    uint64_t reference_blocks() const { return blocks.size() - data_blocks; }
};

// What is durable in the journal (or in an open segment) and not in the map: newest version per
// block. Two generations: writes go to the active one; the frozen one belongs to the drain and
// does not change until it is dropped.
//
// Records are applied in LSN order, so what is in the active generation is newer than everything
// frozen. Lookup: active block, active zero, frozen block, frozen zero; else ask the map.
class Overlay {
  public:
    enum class Kind : uint8_t { miss, block, zero };
    struct Found {
        Kind kind = Kind::miss;
        const OverlayEntry* entry = nullptr;  // kind block; valid until the next change
    };

    Found find(uint64_t lba) const {
        if (auto it = active_.blocks.find(lba); it != active_.blocks.end()) {
            return {Kind::block, &it->second};
        }
        if (!active_.zeros.empty() && active_.zeros.end_of_range_with(lba) != 0) {
            return {Kind::zero, nullptr};
        }
        if (!has_frozen_) return {};
        if (auto it = frozen_.blocks.find(lba); it != frozen_.blocks.end()) {
            return {Kind::block, &it->second};
        }
        if (!frozen_.zeros.empty() && frozen_.zeros.end_of_range_with(lba) != 0) {
            return {Kind::zero, nullptr};
        }
        return {};
    }

    // Returns how many blocks of data in RAM the change made superfluous.
    uint64_t put(uint64_t lba, OverlayEntry entry);
    uint64_t put_zero(uint64_t first, uint64_t block_count);

    // Something newer than the frozen generation hides what that says of the block.
    bool is_superseded(uint64_t lba) const {
        return active_.blocks.contains(lba) ||
               (!active_.zeros.empty() && active_.zeros.end_of_range_with(lba) != 0);
    }

    // Makes the active generation the frozen one. Requires: none is frozen.
    void freeze(Lsn last_lsn);
    bool has_frozen() const { return has_frozen_; }
    const OverlayGeneration& active() const { return active_; }
    OverlayGeneration& frozen() { return frozen_; }
    const OverlayGeneration& frozen() const { return frozen_; }
    // Takes the frozen generation out; what it held is in the map now. The caller destroys it.
    OverlayGeneration drop_frozen();
    // Forgets everything (a volume that serves no more). Returns the data blocks it held.
    uint64_t clear();

    uint64_t data_blocks() const { return active_.data_blocks + frozen_.data_blocks; }
    uint64_t reference_blocks() const {
        return active_.reference_blocks() + frozen_.reference_blocks();
    }
    uint64_t zero_extents() const { return active_.zeros.size() + frozen_.zeros.size(); }

  private:
    OverlayGeneration active_;
    OverlayGeneration frozen_;
    bool has_frozen_ = false;
};

}  // namespace peplos::volume
