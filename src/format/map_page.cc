#include "format/map_page.h"

#include <algorithm>
#include <array>

#include "base/crc32c.h"
#include "format/segment_layout.h"

namespace peplos::format {
namespace {

constexpr uint32_t kPageMagic = 0x4d504550;  // "PEPM"

enum Encoding : uint8_t {
    array = 1,    // leaf: 1,024 map entries; other pages: the first `count` elements
    extents = 2,  // leaf: `count` extents, then the CRCs of all their blocks
};

struct RawPageHeader {
    uint32_t magic;
    uint16_t version;
    uint8_t kind;
    uint8_t encoding;
    uint32_t crc;    // over `bytes` bytes with this field 0
    uint32_t bytes;  // header and body without padding
    uint32_t count;
    uint32_t reserved0;
    uint64_t lineage;
    uint64_t volume;
    uint64_t key;
    uint64_t sequence;
    uint64_t reserved1;  // key id: 0 = not encrypted
};
static_assert(sizeof(RawPageHeader) == kPageHeaderBytes);
static_assert(offsetof(RawPageHeader, crc) == 8 && offsetof(RawPageHeader, lineage) == 24);

// Blocks first..first+count-1 of a leaf, lying one after the other from `place` on.
struct RawExtent {
    uint16_t first;
    uint16_t count;
    uint32_t reserved;
    Place place;
};
static_assert(sizeof(RawExtent) == 16);

struct RawRoot {
    uint64_t drained_lsn;
    uint64_t meta_lsn;
    uint64_t block_count;
    uint64_t mapped_count;
    uint32_t interior_count;
    uint32_t segment_page_count;
    uint32_t map_segment_count;
    uint32_t birth;           // reserved: the current birth snapshot interval
    uint64_t parent_volume;   // reserved: a clone's parent
    uint64_t parent_root[2];  // reserved
    uint64_t deadlist[2];     // reserved
    uint64_t lost_count;      // these two: version 2 only
    uint64_t orphan_count_max;
    uint64_t reserved;
};
static_assert(sizeof(RawRoot) == 112);

const char* name_of(PageKind kind) {
    switch (kind) {
        case PageKind::leaf:
            return "leaf";
        case PageKind::interior:
            return "interior page";
        case PageKind::segments:
            return "segment table page";
        case PageKind::root:
            return "root";
    }
    return "page";
}

// "map leaf 12 of volume 00..": how errors call a page.
std::string text_of(const PageIdentity& identity) {
    return fmt::format("map {} {} of volume {}", name_of(identity.kind), identity.key,
                       identity.volume);
}

// Completes a page whose body is in place behind the header: pads, fills the header, returns the
// padded bytes.
uint32_t finish_page(const PageIdentity& identity, Encoding encoding, uint32_t count,
                     uint32_t bytes, MutableBytes out, uint32_t& crc,
                     uint16_t version = kMapVersion) {
    CHECK(identity.lineage && identity.volume && identity.sequence != 0);
    const auto padded = static_cast<uint32_t>(round_up(bytes, kPlaceUnitBytes));
    CHECK(padded <= out.size());
    std::memset(out.data() + bytes, 0, padded - bytes);
    RawPageHeader header{};
    header.magic = kPageMagic;
    header.version = version;
    header.kind = static_cast<uint8_t>(identity.kind);
    header.encoding = encoding;
    header.bytes = bytes;
    header.count = count;
    header.lineage = identity.lineage.value;
    header.volume = identity.volume.value;
    header.key = identity.key;
    header.sequence = identity.sequence;
    std::memcpy(out.data(), &header, sizeof(header));
    crc = crc32c(out.first(bytes));
    std::memcpy(out.data() + offsetof(RawPageHeader, crc), &crc, sizeof(crc));
    return padded;
}

// Verifies a page against its parent's word: sizes first, then CRC, then all else.
Result<RawPageHeader> open_page(Bytes page, const PageIdentity& expected, uint32_t parent_crc,
                                uint32_t generation) {
    RawPageHeader header;
    if (page.size() < sizeof(header)) {
        return fail(Code::corrupt, "{} is cut short: {} bytes", text_of(expected), page.size());
    }
    std::memcpy(&header, page.data(), sizeof(header));
    if (header.magic != kPageMagic || header.bytes < sizeof(header) ||
        round_up(header.bytes, kPlaceUnitBytes) != page.size()) {
        return fail(Code::corrupt, "{} is not there: magic {:08x}, {} bytes of {}",
                    text_of(expected), header.magic, header.bytes, page.size());
    }
    RawPageHeader blank = header;
    blank.crc = 0;
    const uint32_t computed = crc32c(page.subspan(sizeof(header), header.bytes - sizeof(header)),
                                     crc32c(bytes_of(blank)));
    if (computed != header.crc || computed != parent_crc) {
        return fail(Code::corrupt,
                    "{} fails its CRC: {:08x} computed, {:08x} in the page, {:08x} in its parent",
                    text_of(expected), computed, header.crc, parent_crc);
    }
    const bool may_be_lost = expected.kind == PageKind::leaf || expected.kind == PageKind::root;
    if ((header.version != kMapVersion && !(may_be_lost && header.version == kMapVersionLost)) ||
        header.reserved1 != 0) {
        return fail(Code::unsupported,
                    "{} has version {} and key {}, this build reads versions {} and {}: upgrade "
                    "peplosd",
                    text_of(expected), header.version, header.reserved1, kMapVersion,
                    kMapVersionLost);
    }
    if (header.lineage != expected.lineage.value || header.volume != expected.volume.value ||
        header.kind != static_cast<uint8_t>(expected.kind) || header.key != expected.key ||
        static_cast<uint32_t>(header.sequence) != generation) {
        return fail(Code::corrupt,
                    "{} is another page: volume {:016x}, lineage {:016x}, kind {}, key {}, "
                    "sequence {}",
                    text_of(expected), header.volume, header.lineage, header.kind, header.key,
                    header.sequence);
    }
    return header;
}

}  // namespace

Result<uint32_t> verify_page(Bytes bytes) {
    RawPageHeader header;
    if (bytes.size() < sizeof(header)) return fail(Code::corrupt, "a map page is cut short");
    std::memcpy(&header, bytes.data(), sizeof(header));
    if (header.magic == 0 && header.crc == 0 && header.bytes == 0) {
        return fail(Code::not_found, "no map page begins here");
    }
    const uint64_t padded = round_up(header.bytes, kPlaceUnitBytes);
    if (header.magic != kPageMagic || header.bytes < sizeof(header) || padded > bytes.size()) {
        return fail(Code::corrupt, "no map page is where one is due: magic {:08x}, {} bytes",
                    header.magic, header.bytes);
    }
    RawPageHeader blank = header;
    blank.crc = 0;
    const uint32_t computed = crc32c(bytes.subspan(sizeof(header), header.bytes - sizeof(header)),
                                     crc32c(bytes_of(blank)));
    if (computed != header.crc) {
        return fail(Code::corrupt, "a map page (kind {}, key {}) fails its CRC", header.kind,
                    header.key);
    }
    return static_cast<uint32_t>(padded);
}

Result<PageOutline> outline_page(Bytes bytes) {
    TRY_ASSIGN(const uint32_t padded, verify_page(bytes));
    RawPageHeader header;
    std::memcpy(&header, bytes.data(), sizeof(header));
    PageOutline out;
    out.identity = {LineageId(header.lineage), VolumeId(header.volume),
                    static_cast<PageKind>(header.kind), header.key, header.sequence};
    out.crc = header.crc;
    out.bytes = padded;
    return out;
}

namespace {

// A page of `count` elements of T behind the header; fills the rest of `out` with zeros.
template <typename T>
Result<void> open_array(Bytes page, const PageIdentity& expected, const PageSlot& slot,
                        std::span<T> out) {
    TRY_ASSIGN(const RawPageHeader header, open_page(page, expected, slot.crc, slot.generation));
    if (header.encoding != Encoding::array) {
        return fail(Code::unsupported, "{} has encoding {}", text_of(expected), header.encoding);
    }
    if (header.count > out.size() || header.bytes != sizeof(header) + header.count * sizeof(T)) {
        return fail(Code::corrupt, "{} has {} elements in {} bytes", text_of(expected),
                    header.count, header.bytes);
    }
    std::memcpy(out.data(), page.data() + sizeof(header), header.count * sizeof(T));
    std::fill(out.begin() + header.count, out.end(), T{});
    return {};
}

template <typename T>
uint32_t write_array(const PageIdentity& identity, std::span<const T> elements, MutableBytes out,
                     uint32_t& crc) {
    const auto bytes = static_cast<uint32_t>(kPageHeaderBytes + elements.size_bytes());
    CHECK(bytes <= out.size());
    if (!elements.empty()) {
        std::memcpy(out.data() + kPageHeaderBytes, elements.data(), elements.size_bytes());
    }
    return finish_page(identity, Encoding::array, static_cast<uint32_t>(elements.size()), bytes,
                       out, crc);
}

bool continues(const LeafItem& last, const LeafItem& next) {
    constexpr uint64_t kStep = uint64_t{kBlockUnits} << 26;
    return next.index == last.index + 1 && next.entry.place.bits == last.entry.place.bits + kStep &&
           next.entry.place.offset_units() == last.entry.place.offset_units() + kBlockUnits;
}

// What a leaf may name. Only pages of version 2 have lost blocks.
bool is_known(const RawPageHeader& header, Place place) {
    return place.is_valid_as(PlaceKind::block) ||
           (header.version == kMapVersionLost && place.is_valid_as(PlaceKind::lost));
}

Result<uint32_t> read_extents(Bytes page, const RawPageHeader& header, const PageIdentity& expected,
                              std::span<LeafItem> out) {
    ByteReader extents(page.subspan(sizeof(header), header.bytes - sizeof(header)));
    if (header.count == 0 || header.count > kLeafEntryCount ||
        header.count * sizeof(RawExtent) > extents.remaining()) {
        return fail(Code::corrupt, "{} has {} extents", text_of(expected), header.count);
    }
    ByteReader crcs = extents;
    crcs.take(header.count * sizeof(RawExtent));
    uint32_t count = 0, end = 0;
    for (uint32_t i = 0; i < header.count; ++i) {
        const auto extent = extents.read<RawExtent>();
        const uint64_t last = uint64_t{extent.count} * kBlockBytes + extent.place.offset_bytes();
        const bool is_lost = extent.place.kind() == PlaceKind::lost;
        if (extent.count == 0 || extent.first < end || extent.reserved != 0 ||
            extent.first + extent.count > kLeafEntryCount || !is_known(header, extent.place) ||
            (is_lost && extent.count != 1) || last > limits::kSegmentBytesMax) {
            return fail(Code::corrupt, "{}: extent {} ({}+{}) is out of range", text_of(expected),
                        i, extent.first, extent.count);
        }
        end = extent.first + extent.count;
        for (uint32_t k = 0; k < extent.count; ++k) {
            const Place place =
                is_lost ? extent.place
                        : Place::make(PlaceKind::block, extent.place.segment_index(),
                                      extent.place.offset_units() + k * kBlockUnits, kBlockUnits);
            out[count++] = {extent.first + k, {place, crcs.read<uint32_t>(), 0}};
        }
    }
    if (!crcs.ok() || crcs.remaining() != 0) {
        return fail(Code::corrupt, "{} has CRCs for other than its {} blocks", text_of(expected),
                    count);
    }
    return count;
}

Result<uint32_t> read_entries(Bytes page, const RawPageHeader& header, const PageIdentity& expected,
                              std::span<LeafItem> out) {
    if (header.bytes != sizeof(header) + kLeafEntryCount * sizeof(MapEntry)) {
        return fail(Code::corrupt, "{} is a full array of {} bytes", text_of(expected),
                    header.bytes);
    }
    ByteReader reader(page.subspan(sizeof(header)));
    uint32_t count = 0;
    for (uint32_t i = 0; i < kLeafEntryCount; ++i) {
        const auto entry = reader.read<MapEntry>();
        if (entry == MapEntry{}) continue;
        if (!is_known(header, entry.place) || entry.reserved != 0) {
            return fail(Code::corrupt, "{}: entry {} has a bad place {:#x}", text_of(expected), i,
                        entry.place.bits);
        }
        out[count++] = {i, entry};
    }
    if (count != header.count) {
        return fail(Code::corrupt, "{} says {} blocks and has {}", text_of(expected), header.count,
                    count);
    }
    return count;
}

// A slot that may name a page, or nothing.
bool is_valid(const PageSlot& slot) {
    if (!slot) return slot == PageSlot{};
    return slot.place.is_valid_as(PlaceKind::page) && slot.place.length_bytes() <= kPageBytesMax;
}

bool is_valid(const SegmentEntry& entry) {
    if (entry.state == SegmentState::none) return entry == SegmentEntry{};
    constexpr uint8_t kZero[sizeof(entry.reserved)] = {};
    return entry.state <= SegmentState::sealed && entry.id && is_segment_kind(entry.kind) &&
           entry.lifetime_class < kSegmentClassCount && entry.media_class == 0 &&
           entry.ec_data == 0 && entry.ec_parity == 0 &&
           std::memcmp(entry.reserved, kZero, sizeof(kZero)) == 0;
}

Result<void> read_children(ByteReader& reader, uint32_t count, uint64_t key_end,
                           const PageIdentity& expected, std::vector<RootChild>& out) {
    uint64_t next_key = 0;
    out.resize(count);
    for (RootChild& child : out) {
        child = reader.read<RootChild>();
        if (child.key < next_key || child.key >= key_end || child.reserved != 0 || !child.slot ||
            !is_valid(child.slot)) {
            return fail(Code::corrupt, "{} names child {} badly", text_of(expected), child.key);
        }
        next_key = uint64_t{child.key} + 1;
    }
    return {};
}

Result<void> read_map_segments(ByteReader& reader, uint32_t count, const PageIdentity& expected,
                               std::vector<RootMapSegment>& out) {
    uint64_t next_index = 0;
    out.resize(count);
    for (RootMapSegment& segment : out) {
        segment = reader.read<RootMapSegment>();
        if (segment.segment_index < next_index ||
            segment.segment_index > limits::kSegmentIndexMax || segment.reserved != 0 ||
            segment.entry.state == SegmentState::none || !is_valid(segment.entry) ||
            segment.entry.kind != static_cast<uint8_t>(SegmentKind::map)) {
            return fail(Code::corrupt, "{} lists map segment {} badly", text_of(expected),
                        segment.segment_index);
        }
        next_index = uint64_t{segment.segment_index} + 1;
    }
    return {};
}

}  // namespace

uint32_t encode_leaf(const PageIdentity& identity, std::span<const LeafItem> items,
                     MutableBytes out, uint32_t& crc) {
    CHECK(!items.empty() && items.size() <= kLeafEntryCount && out.size() >= kPageBytesMax);
    const bool has_lost = std::ranges::any_of(items, &MapEntry::is_lost, &LeafItem::entry);
    const uint16_t version = has_lost ? kMapVersionLost : kMapVersion;
    uint32_t extent_count = 1;
    for (size_t i = 1; i < items.size(); ++i) {
        extent_count += continues(items[i - 1], items[i]) ? 0 : 1;
    }
    const size_t body = extent_count * sizeof(RawExtent) + items.size() * sizeof(uint32_t);
    std::byte* at = out.data() + kPageHeaderBytes;
    if (body >= kLeafEntryCount * sizeof(MapEntry)) {
        std::memset(at, 0, kLeafEntryCount * sizeof(MapEntry));
        for (const LeafItem& item : items) {
            std::memcpy(at + item.index * sizeof(MapEntry), &item.entry, sizeof(MapEntry));
        }
        return finish_page(identity, Encoding::array, static_cast<uint32_t>(items.size()),
                           kPageHeaderBytes + kLeafEntryCount * sizeof(MapEntry), out, crc,
                           version);
    }
    std::byte* crcs = at + extent_count * sizeof(RawExtent);
    RawExtent extent{};
    for (size_t i = 0; i < items.size(); ++i) {
        std::memcpy(crcs + i * sizeof(uint32_t), &items[i].entry.crc, sizeof(uint32_t));
        if (i != 0 && continues(items[i - 1], items[i])) {
            ++extent.count;
            continue;
        }
        if (i != 0) {
            std::memcpy(at, &extent, sizeof(extent));
            at += sizeof(extent);
        }
        extent = {static_cast<uint16_t>(items[i].index), 1, 0, items[i].entry.place};
    }
    std::memcpy(at, &extent, sizeof(extent));
    return finish_page(identity, Encoding::extents, extent_count,
                       static_cast<uint32_t>(kPageHeaderBytes + body), out, crc, version);
}

Result<uint32_t> decode_leaf(Bytes page, const PageIdentity& expected, const PageSlot& slot,
                             std::span<LeafItem> out) {
    CHECK(out.size() >= kLeafEntryCount);
    TRY_ASSIGN(const RawPageHeader header, open_page(page, expected, slot.crc, slot.generation));
    if (header.encoding == Encoding::extents) return read_extents(page, header, expected, out);
    if (header.encoding == Encoding::array) return read_entries(page, header, expected, out);
    return fail(Code::unsupported, "{} has encoding {}", text_of(expected), header.encoding);
}

uint32_t encode_interior(const PageIdentity& identity, std::span<const PageSlot> slots,
                         MutableBytes out, uint32_t& crc) {
    CHECK(slots.size() <= kInteriorSlotCount);
    return write_array(identity, slots, out, crc);
}

Result<void> decode_interior(Bytes page, const PageIdentity& expected, const PageSlot& slot,
                             std::span<PageSlot> out) {
    CHECK(out.size() == kInteriorSlotCount);
    TRY(open_array(page, expected, slot, out));
    for (uint32_t i = 0; i < out.size(); ++i) {
        if (!is_valid(out[i])) {
            return fail(Code::corrupt, "{}: slot {} has a bad place {:#x}", text_of(expected), i,
                        out[i].place.bits);
        }
    }
    return {};
}

uint32_t encode_segments(const PageIdentity& identity, std::span<const SegmentEntry> entries,
                         MutableBytes out, uint32_t& crc) {
    CHECK(entries.size() <= kSegmentPageEntryCount);
    return write_array(identity, entries, out, crc);
}

Result<void> decode_segments(Bytes page, const PageIdentity& expected, const PageSlot& slot,
                             std::span<SegmentEntry> out) {
    CHECK(out.size() == kSegmentPageEntryCount);
    TRY(open_array(page, expected, slot, out));
    for (uint32_t i = 0; i < out.size(); ++i) {
        if (!is_valid(out[i]) || out[i].kind == static_cast<uint8_t>(SegmentKind::map) ||
            out[i].live_count > out[i].block_count) {
            return fail(Code::corrupt, "{}: entry {} (segment {}) is not valid", text_of(expected),
                        i, out[i].id);
        }
    }
    return {};
}

uint32_t root_page_bytes(const RootPage& root) {
    const size_t bytes = kPageHeaderBytes + sizeof(RawRoot) +
                         (root.interiors.size() + root.segment_pages.size()) * sizeof(RootChild) +
                         root.map_segments.size() * sizeof(RootMapSegment);
    return static_cast<uint32_t>(round_up(bytes, kPlaceUnitBytes));
}

uint32_t encode_root(const PageIdentity& identity, const RootPage& root, MutableBytes out,
                     uint32_t& crc) {
    CHECK(root_page_bytes(root) <= kRootBytesMax && root_page_bytes(root) <= out.size());
    RawRoot raw{};
    raw.drained_lsn = root.drained_lsn.value;
    raw.meta_lsn = root.meta_lsn.value;
    raw.block_count = root.block_count;
    raw.mapped_count = root.mapped_count;
    raw.lost_count = root.lost_count;
    raw.orphan_count_max = root.orphan_count_max;
    raw.interior_count = static_cast<uint32_t>(root.interiors.size());
    raw.segment_page_count = static_cast<uint32_t>(root.segment_pages.size());
    raw.map_segment_count = static_cast<uint32_t>(root.map_segments.size());
    ByteWriter writer(out.subspan(kPageHeaderBytes));
    writer.write(raw);
    writer.put(std::as_bytes(std::span(root.interiors)));
    writer.put(std::as_bytes(std::span(root.segment_pages)));
    writer.put(std::as_bytes(std::span(root.map_segments)));
    const bool has_lost = root.lost_count != 0 || root.orphan_count_max != 0;
    return finish_page(identity, Encoding::array, 1,
                       static_cast<uint32_t>(kPageHeaderBytes + writer.offset()), out, crc,
                       has_lost ? kMapVersionLost : kMapVersion);
}

Result<RootPage> decode_root(Bytes page, const PageIdentity& expected, const RootRef& ref) {
    if (page.size() > kRootBytesMax) {
        return fail(Code::corrupt, "{} of {} bytes is too large", text_of(expected), page.size());
    }
    TRY_ASSIGN(const RawPageHeader header,
               open_page(page, expected, ref.crc, static_cast<uint32_t>(ref.sequence)));
    ByteReader reader(page.subspan(sizeof(header), header.bytes - sizeof(header)));
    const auto raw = reader.read<RawRoot>();
    const uint64_t lists =
        (uint64_t{raw.interior_count} + raw.segment_page_count) * sizeof(RootChild) +
        uint64_t{raw.map_segment_count} * sizeof(RootMapSegment);
    if (!reader.ok() || header.encoding != Encoding::array || header.sequence != ref.sequence ||
        lists != reader.remaining() || raw.block_count > limits::kVolumeBytesMax / kBlockBytes ||
        raw.orphan_count_max > UINT64_MAX - raw.block_count ||
        raw.mapped_count > raw.block_count + raw.orphan_count_max) {
        return fail(Code::corrupt, "{}: {} bytes do not hold {}+{}+{} children of {} blocks",
                    text_of(expected), header.bytes, raw.interior_count, raw.segment_page_count,
                    raw.map_segment_count, raw.block_count);
    }
    if (raw.parent_volume != 0 || raw.deadlist[0] != 0 || raw.birth != 0) {
        return fail(Code::unsupported, "{} belongs to a clone or snapshot: upgrade peplosd",
                    text_of(expected));
    }
    if (header.version == kMapVersion && (raw.lost_count != 0 || raw.orphan_count_max != 0)) {
        return fail(Code::unsupported, "{} counts lost blocks, unlike its version",
                    text_of(expected));
    }
    RootPage root;
    root.lost_count = raw.lost_count;
    root.orphan_count_max = raw.orphan_count_max;
    root.drained_lsn = Lsn(raw.drained_lsn);
    root.meta_lsn = Lsn(raw.meta_lsn);
    root.block_count = raw.block_count;
    root.mapped_count = raw.mapped_count;
    const uint64_t interior_end =
        div_up(raw.block_count, uint64_t{kLeafEntryCount} * kInteriorSlotCount);
    const uint64_t page_end = (limits::kSegmentIndexMax + uint64_t{1}) / kSegmentPageEntryCount;
    TRY(read_children(reader, raw.interior_count, interior_end, expected, root.interiors));
    TRY(read_children(reader, raw.segment_page_count, page_end, expected, root.segment_pages));
    TRY(read_map_segments(reader, raw.map_segment_count, expected, root.map_segments));
    return root;
}

}  // namespace peplos::format
