#pragma once

#include <cstdint>

#include "base/check.h"
#include "base/limits.h"
#include "base/units.h"

namespace peplos::format {

// Places inside segments count in these units: an offset has 17 bits, a length 7.
inline constexpr uint32_t kPlaceUnitBytes = 512;
inline constexpr uint32_t kBlockUnits = kBlockBytes / kPlaceUnitBytes;
inline constexpr uint32_t kPlaceOffsetUnitsMax = (1u << 17) - 1;
inline constexpr uint32_t kPlaceLengthUnitsMax = (1u << 7) - 1;
static_assert(limits::kSegmentBytesMax / kPlaceUnitBytes <= kPlaceOffsetUnitsMax + 1);

// What a place names. Values are on disk; this build reads and writes none, block, page and
// lost.
enum class PlaceKind : uint8_t {
    none = 0,      // nothing: unmapped, reads as zeros
    block = 1,     // one uncompressed block of 4 KiB
    chunk = 2,     // reserved: a block inside a compressed chunk
    indirect = 3,  // reserved: a reference into a hidden volume (deduplication)
    page = 4,      // a map page in a map segment
    lost = 5,      // the leaf that said where could not be read: until the block is written or
                   // zeroed, reading it is an error, never zeros; pages of version 2
};

// Where something lies: 8 bytes, on disk as in RAM.
//
//   bits  0..25  segment index     into the volume's segment table
//   bits 26..42  offset            in units of 512 bytes from the segment's first byte
//   bits 43..49  length            in units of 512 bytes; 8 for a block
//   bits 50..53  block in chunk    0 for a block
//   bits 54..57  kind
//   bits 58..63  0
//
// All zero is "nothing", so that zero-filled memory is an empty map.
struct Place {
    uint64_t bits = 0;

    constexpr bool operator==(const Place&) const = default;
    constexpr explicit operator bool() const { return bits != 0; }

    static constexpr Place make(PlaceKind kind, uint32_t segment_index, uint32_t offset_units,
                                uint32_t length_units, uint32_t block_in_chunk = 0) {
        return Place{uint64_t{segment_index} | uint64_t{offset_units} << 26 |
                     uint64_t{length_units} << 43 | uint64_t{block_in_chunk} << 50 |
                     uint64_t{static_cast<uint8_t>(kind)} << 54};
    }
    // One uncompressed block `offset_bytes` into segment `segment_index`.
    // Requires: offset_bytes is a multiple of 512 below kSegmentBytesMax.
    static constexpr Place block(uint32_t segment_index, uint64_t offset_bytes) {
        CHECK(segment_index <= limits::kSegmentIndexMax);
        CHECK(offset_bytes % kPlaceUnitBytes == 0 && offset_bytes < limits::kSegmentBytesMax);
        return make(PlaceKind::block, segment_index,
                    static_cast<uint32_t>(offset_bytes / kPlaceUnitBytes), kBlockUnits);
    }

    // No place at all, and not nothing either.
    static constexpr Place lost() { return make(PlaceKind::lost, 0, 0, 0); }

    constexpr uint32_t segment_index() const { return bits & limits::kSegmentIndexMax; }
    constexpr uint32_t offset_units() const { return bits >> 26 & kPlaceOffsetUnitsMax; }
    constexpr uint32_t length_units() const { return bits >> 43 & kPlaceLengthUnitsMax; }
    constexpr uint32_t block_in_chunk() const { return bits >> 50 & 15; }
    constexpr PlaceKind kind() const { return static_cast<PlaceKind>(bits >> 54 & 15); }
    constexpr uint64_t offset_bytes() const { return uint64_t{offset_units()} * kPlaceUnitBytes; }
    constexpr uint32_t length_bytes() const { return length_units() * kPlaceUnitBytes; }

    // Whether bytes from disk can be a place of `expected` kind that this build reads: no stray
    // bit is set and the range lies inside the largest segment.
    constexpr bool is_valid_as(PlaceKind expected) const {
        if (expected == PlaceKind::none) return bits == 0;
        if (expected == PlaceKind::lost) return bits == lost().bits;
        if (kind() != expected || bits >> 58 != 0 || block_in_chunk() != 0) return false;
        if (expected == PlaceKind::block && length_units() != kBlockUnits) return false;
        return length_units() != 0 && offset_bytes() + length_bytes() <= limits::kSegmentBytesMax;
    }
};
static_assert(sizeof(Place) == 8);

// One block of a volume in its map: 16 bytes, on disk as in RAM. All zero = unmapped.
struct MapEntry {
    Place place;
    uint32_t crc = 0;       // CRC32C of the block's 4 KiB
    uint32_t reserved = 0;  // 0

    constexpr bool operator==(const MapEntry&) const = default;
    constexpr explicit operator bool() const { return static_cast<bool>(place); }
    constexpr bool is_lost() const { return place.kind() == PlaceKind::lost; }
    // Names a block of a segment, which counts as alive for that.
    constexpr bool is_block() const { return place.kind() == PlaceKind::block; }
};
static_assert(sizeof(MapEntry) == 16);

}  // namespace peplos::format
