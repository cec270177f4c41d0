#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <vector>

#include "base/bytes.h"
#include "base/ids.h"
#include "base/limits.h"
#include "base/result.h"
#include "base/units.h"
#include "format/place.h"
#include "format/segment_kind.h"

// A segment's bytes. Format: docs/formats/segment.md.
//
//   0       header  4 KiB  identity; written when the segment is opened
//   4 KiB   footer  4 KiB  the seal; written last, when everything below is durable
//   8 KiB   data           blocks of 4 KiB, or map pages packed in units of 512 bytes
//   index_offset    index  entries of 40 bytes sorted by (LBA, LSN); none in a map segment
//
// Invariants
//   1. Without a valid footer a segment was never sealed; its data are still in the journal.
//   2. Header and footer carry the same identity; a footer of another segment proves nothing.
//   3. A sealed segment never changes.
// The footer stands at a fixed place, not at the end of the run: a segment that is sealed short
// gives back the rest of its run, and recovery must find the footer whichever length the unit
// table had when power failed. One read of 8 KiB tells what a segment is.
// Blocks have one CRC each, in the index and in the map; there is no coarser checksum, because
// every reader (reads, scrub, repair, cleaner) checks single blocks.
namespace peplos::format {

inline constexpr uint16_t kSegmentVersion = 1;
inline constexpr uint64_t kSegmentHeaderOffset = 0;
inline constexpr uint64_t kSegmentFooterOffset = kBlockBytes;
inline constexpr uint64_t kSegmentDataOffset = 2 * uint64_t{kBlockBytes};

// Lifetime classes in the style of SepBIT: 0 is the shortest-lived.
inline constexpr uint8_t kSegmentClassCount = 6;

enum class Codec : uint8_t { none = 0 };

// What a segment is from its first byte on.
struct SegmentHeader {
    SegmentId id;
    VolumeId volume;    // the volume whose owner wrote it
    LineageId lineage;  // the lineage all its blocks belong to; never two tenants
    Epoch epoch;        // the owner's epoch when it was opened
    SegmentKind kind = SegmentKind::data;
    uint8_t lifetime_class = 0;  // below kSegmentClassCount
    Codec codec = Codec::none;

    bool operator==(const SegmentHeader&) const = default;
};

// What the seal adds. Offsets and sizes in bytes from the segment's first byte.
struct SegmentFooter {
    SegmentHeader header;
    Lsn lsn_min, lsn_max;                   // of the blocks; 0 in a map segment
    uint32_t birth_min = 0, birth_max = 0;  // birth snapshot intervals
    uint32_t entry_count = 0;               // index entries; 0 in a map segment
    uint32_t index_crc = 0;                 // from encode_segment_index; 0 without entries
    uint64_t data_bytes = 0;                // used from kSegmentDataOffset on, 4 KiB multiple

    bool operator==(const SegmentFooter&) const = default;
    uint64_t index_offset() const { return kSegmentDataOffset + data_bytes; }
    uint64_t index_bytes() const;
    // The end of the index, a 4 KiB multiple: what a shortened run must keep.
    uint64_t bytes() const { return index_offset() + index_bytes(); }
};

// One block of a segment, 40 bytes, on disk as in RAM.
struct SegmentIndexEntry {
    Lba lba;
    Lsn lsn;
    Place old_place;            // kind relocated: where the block was; otherwise all zero
    uint32_t offset_units = 0;  // in units of 512 bytes from the segment's first byte
    uint32_t crc = 0;           // CRC32C of the block's 4 KiB, uncompressed
    uint32_t birth = 0;         // birth snapshot interval
    uint8_t length_units = kBlockUnits;
    uint8_t block_in_chunk = 0;
    Codec codec = Codec::none;
    uint8_t flags = 0;  // 0

    bool operator==(const SegmentIndexEntry&) const = default;
    // The entry for the map, once the segment has an index in the volume's segment table.
    MapEntry map_entry(uint32_t segment_index) const {
        return {Place::make(PlaceKind::block, segment_index, offset_units, length_units,
                            block_in_chunk),
                crc, 0};
    }
};
static_assert(sizeof(SegmentIndexEntry) == 40);
static_assert(offsetof(SegmentIndexEntry, old_place) == 16);
static_assert(offsetof(SegmentIndexEntry, offset_units) == 24);
static_assert(offsetof(SegmentIndexEntry, length_units) == 36);

constexpr uint64_t segment_index_bytes(uint64_t entry_count) {
    return round_up(entry_count * sizeof(SegmentIndexEntry), kBlockBytes);
}
inline uint64_t SegmentFooter::index_bytes() const {
    return segment_index_bytes(entry_count);
}

// Bytes a segment of `block_count` blocks takes, before rounding up to a run of units.
constexpr uint64_t segment_bytes_for(uint64_t block_count) {
    return kSegmentDataOffset + block_count * kBlockBytes + segment_index_bytes(block_count);
}
// The most blocks that a run of `run_bytes` (>= 1 MiB) holds together with their index.
constexpr uint32_t segment_block_count_max(uint64_t run_bytes) {
    uint64_t count = (run_bytes - kSegmentDataOffset) / (kBlockBytes + sizeof(SegmentIndexEntry));
    while (segment_bytes_for(count) > run_bytes)
        --count;
    return static_cast<uint32_t>(count);
}
inline constexpr uint32_t kSegmentEntryCountMax = segment_block_count_max(limits::kSegmentBytesMax);
// Where block number `position` (from 0) of an uncompressed segment lies.
constexpr uint64_t segment_block_offset(uint64_t position) {
    return kSegmentDataOffset + position * kBlockBytes;
}
// The smallest power-of-two run (1..32 MiB) that holds `bytes`. Requires: bytes <= 32 MiB.
constexpr uint64_t segment_run_bytes(uint64_t bytes) {
    uint64_t run = limits::kSegmentBytesMin;
    while (run < bytes)
        run *= 2;
    return run;
}

// Each writes exactly kBlockBytes.
void encode_segment_header(const SegmentHeader& header, MutableBytes out);
void encode_segment_footer(const SegmentFooter& footer, MutableBytes out);
// Writes segment_index_bytes(entries.size()) bytes, the tail zeroed, and returns the CRC for the
// footer. Requires: entries strictly ascending by (LBA, LSN).
uint32_t encode_segment_index(std::span<const SegmentIndexEntry> entries, MutableBytes out);

// Errors: corrupt (magic, CRC or a field out of bounds: named), unsupported (a version, kind or
// codec this build does not know, under a valid CRC). Requires: at least kBlockBytes.
Result<SegmentHeader> decode_segment_header(Bytes bytes);
Result<SegmentFooter> decode_segment_footer(Bytes bytes);

// The seal of segment `expected`, from its first kSegmentDataOffset bytes: nullopt = never sealed
// (no footer, or the footer of a segment that used the place before).
// Errors: corrupt (the header is not `expected`'s, the footer fails its CRC or contradicts the
// header), unsupported. A caller that knows the segment as sealed treats nullopt as corrupt.
Result<std::optional<SegmentFooter>> decode_segment_front(Bytes front, const SegmentId& expected);

// `bytes` starts at footer.index_offset(). Every returned entry lies inside the data area, within
// the footer's LSN and birth ranges, and in order.
// Errors: corrupt (also when `bytes` is shorter than the index), unsupported.
Result<std::vector<SegmentIndexEntry>> decode_segment_index(const SegmentFooter& footer,
                                                            Bytes bytes);

}  // namespace peplos::format
