#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "base/bytes.h"
#include "base/ids.h"
#include "base/limits.h"
#include "base/result.h"
#include "format/place.h"

// The pages of a block map, as they lie in map segments. Format: docs/formats/map.md.
//
// A page starts at a multiple of 512 bytes, has a header of 64 bytes with its identity (lineage,
// volume, kind, key, checkpoint sequence) and a CRC over all its bytes, and ends padded with zeros
// to the next multiple of 512. Its parent names its place, that CRC and the low 32 bits of its
// sequence, so a page is believed only when parent and page agree. A page does not know where it
// lies: cleaning a map segment copies pages as they are.
//
//   root -> interior pages (1,024 leaves = 4 GiB each) -> leaves (1,024 blocks = 4 MiB each)
//        -> segment table pages (256 segments each)
namespace peplos::format {

inline constexpr uint16_t kMapVersion = 1;
// Of leaves with lost blocks and of roots that count any. Builds that know only version 1 refuse
// such a page instead of taking it for a damaged one. No other page has it.
inline constexpr uint16_t kMapVersionLost = 2;
inline constexpr uint32_t kPageHeaderBytes = 64;
inline constexpr uint32_t kLeafEntryCount = limits::kLeafBlocks;
inline constexpr uint32_t kInteriorSlotCount = 1024;
inline constexpr uint32_t kSegmentPageEntryCount = 256;
// A leaf, interior or segment table page padded to 512 bytes; all three have this maximum.
inline constexpr uint32_t kPageBytesMax = 16 * 1024 + kPlaceUnitBytes;
static_assert(kPageBytesMax / kPlaceUnitBytes <= kPlaceLengthUnitsMax);
// A root is larger: 16,384 interior pages (64 TiB) and 4,096 segment table pages (1 Mi segments).
inline constexpr uint32_t kRootBytesMax = 4 * 1024 * 1024;

enum class PageKind : uint8_t { leaf = 1, interior = 2, segments = 3, root = 4 };

// Who a page is. `key`: number of the leaf (LBA / 1,024), of the interior page (leaf / 1,024), of
// the segment table page (segment index / 256); 0 for a root.
struct PageIdentity {
    LineageId lineage;
    VolumeId volume;
    PageKind kind = PageKind::leaf;
    uint64_t key = 0;
    uint64_t sequence = 0;  // of the checkpoint that first wrote it, from 1

    bool operator==(const PageIdentity&) const = default;
};

// How a parent names a page: 16 bytes, on disk as in RAM. All zero = no page.
struct PageSlot {
    Place place;              // kind page; length = the padded bytes
    uint32_t crc = 0;         // the page header's CRC
    uint32_t generation = 0;  // low 32 bits of the page's sequence

    constexpr bool operator==(const PageSlot&) const = default;
    constexpr explicit operator bool() const { return static_cast<bool>(place); }
};
static_assert(sizeof(PageSlot) == 16);

// Where a checkpoint's root lies: 48 bytes, the body of the journal's `root` record.
struct RootRef {
    SegmentId segment;           // the map segment
    uint32_t segment_index = 0;  // its index in the volume's segment table
    uint32_t offset_units = 0;   // in units of 512 bytes
    uint32_t bytes = 0;          // padded to 512
    uint32_t crc = 0;            // the page header's CRC
    uint64_t sequence = 0;       // of the checkpoint
    uint64_t reserved = 0;       // 0

    bool operator==(const RootRef&) const = default;
    explicit operator bool() const { return bytes != 0; }
};
static_assert(sizeof(RootRef) == 48 && std::is_trivially_copyable_v<RootRef>);

// Checks the page that begins `bytes` by what it says of itself, where no parent is known. Returns
// its padded bytes. Errors: not_found (zeros: no page begins here), corrupt, unsupported.
Result<uint32_t> verify_page(Bytes bytes);
// The same, and who the page says it is.
struct PageOutline {
    PageIdentity identity;
    uint32_t crc = 0;
    uint32_t bytes = 0;  // padded
};
Result<PageOutline> outline_page(Bytes bytes);

// Leaf ---------------------------------------------------------------------------------------

struct LeafItem {
    uint32_t index = 0;  // block in the leaf, below kLeafEntryCount
    MapEntry entry;      // never unmapped
};
// Encodes items (ascending by index, at least one) as extents or as a full array, whichever is
// smaller, into `out` (at least kPageBytesMax); the padding is zeroed. Returns the padded bytes;
// the CRC for the slot goes to `crc`.
uint32_t encode_leaf(const PageIdentity& identity, std::span<const LeafItem> items,
                     MutableBytes out, uint32_t& crc);
// Fills `out` (kLeafEntryCount items) and returns how many. See decode_* below for errors.
Result<uint32_t> decode_leaf(Bytes page, const PageIdentity& expected, const PageSlot& slot,
                             std::span<LeafItem> out);

// Interior -----------------------------------------------------------------------------------

// `slots`: the first slots.size() of the page, the rest is empty. At most kInteriorSlotCount.
uint32_t encode_interior(const PageIdentity& identity, std::span<const PageSlot> slots,
                         MutableBytes out, uint32_t& crc);
// Fills `out` (kInteriorSlotCount slots), empty ones zeroed.
Result<void> decode_interior(Bytes page, const PageIdentity& expected, const PageSlot& slot,
                             std::span<PageSlot> out);

// Segment table ------------------------------------------------------------------------------

enum class SegmentState : uint8_t {
    none = 0,    // the index is not used
    open = 1,    // may still gain blocks (large writes); never cleaned, never deleted
    sealed = 2,  // immutable
};

// One segment in the table: 64 bytes, on disk as in RAM.
struct SegmentEntry {
    SegmentId id;
    GroupId group;             // where it is placed; 0 = the volume's own devices (RF1)
    Lsn sealed_lsn;            // of the meta record that brought it in
    Lsn age_lsn;               // how old its data are: the LSN at which they were written
    uint32_t block_count = 0;  // blocks it was written with; a map segment: 512-byte units
    uint32_t live_count = 0;   // of these, named by the map; in map segments: live units
    uint32_t birth = 0;        // birth snapshot interval
    uint8_t kind = 0;          // SegmentKind
    uint8_t lifetime_class = 0;
    SegmentState state = SegmentState::none;
    uint8_t media_class = 0;   // reserved: 0
    uint8_t ec_data = 0;       // reserved: k of an erasure-coded segment, 0 = copies
    uint8_t ec_parity = 0;     // reserved: m
    uint8_t reserved[6] = {};  // 0

    bool operator==(const SegmentEntry&) const = default;
};
static_assert(sizeof(SegmentEntry) == 64 && std::is_trivially_copyable_v<SegmentEntry>);
static_assert(offsetof(SegmentEntry, block_count) == 40);

// `entries`: the first entries.size() of the page, unused ones all zero.
uint32_t encode_segments(const PageIdentity& identity, std::span<const SegmentEntry> entries,
                         MutableBytes out, uint32_t& crc);
Result<void> decode_segments(Bytes page, const PageIdentity& expected, const PageSlot& slot,
                             std::span<SegmentEntry> out);

// Root ---------------------------------------------------------------------------------------

struct RootChild {
    uint32_t key = 0;
    uint32_t reserved = 0;
    PageSlot slot;
};
static_assert(sizeof(RootChild) == 24);

struct RootMapSegment {
    uint32_t segment_index = 0;
    uint32_t reserved = 0;
    SegmentEntry entry;
};
static_assert(sizeof(RootMapSegment) == 72);

// Everything a checkpoint is. Map segments are listed here, not in the segment table pages,
// because writing those pages may itself open map segments.
struct RootPage {
    Lsn drained_lsn;                   // data records up to here are in the map
    Lsn meta_lsn;                      // meta records up to here are in the map
    uint64_t block_count = 0;          // the volume's size
    uint64_t mapped_count = 0;         // mapped blocks = the sum of the data segments' live counts
    uint64_t lost_count = 0;           // blocks whose entries are lost
    uint64_t orphan_count_max = 0;     // blocks counted alive for leaves that were lost, at most
    std::vector<RootChild> interiors;  // ascending by key
    std::vector<RootChild> segment_pages;      // ascending by key
    std::vector<RootMapSegment> map_segments;  // ascending by index
};
uint32_t root_page_bytes(const RootPage& root);  // padded to 512
// `out`: at least root_page_bytes(root). Requires: that is at most kRootBytesMax.
uint32_t encode_root(const PageIdentity& identity, const RootPage& root, MutableBytes out,
                     uint32_t& crc);
Result<RootPage> decode_root(Bytes page, const PageIdentity& expected, const RootRef& ref);

// Errors of every decode_*: corrupt (magic, size, CRC, identity or a field out of bounds; the
// message names the page and what is wrong), unsupported (a version or encoding this build does
// not know). `page` is exactly the padded bytes that the slot names. Outputs are undefined then.

}  // namespace peplos::format
