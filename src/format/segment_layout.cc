#include "format/segment_layout.h"

#include <algorithm>
#include <tuple>

#include "base/crc32c.h"

namespace peplos::format {
namespace {

constexpr uint64_t kHeaderMagic = 0x3130474553504550;  // "PEPSEG01"
constexpr uint64_t kFooterMagic = 0x3130544f46504550;  // "PEPFOT01"

// The identity, the same bytes in header and footer.
struct RawIdentity {
    uint64_t writer;
    uint32_t writer_epoch;
    uint32_t writer_sequence;
    uint64_t volume;
    uint64_t lineage;
    uint64_t epoch;
    uint8_t kind;
    uint8_t lifetime_class;
    uint8_t codec;
    uint8_t media_class;  // reserved: 0
    uint8_t ec_data;      // reserved: 0
    uint8_t ec_parity;    // reserved: 0
    uint16_t reserved0;
    uint64_t key_id;  // reserved: 0 = not encrypted
    uint8_t nonce[16];
    uint8_t tag[16];
};
static_assert(sizeof(RawIdentity) == 88);

struct RawHeader {
    uint64_t magic;
    uint32_t crc;  // over the whole block with this field 0
    uint16_t version;
    uint16_t reserved0;
    RawIdentity identity;
    uint8_t reserved[kBlockBytes - 104];
};
static_assert(sizeof(RawHeader) == kBlockBytes && offsetof(RawHeader, identity) == 16);

struct RawFooter {
    uint64_t magic;
    uint32_t crc;
    uint16_t version;
    uint16_t reserved0;
    RawIdentity identity;
    uint64_t lsn_min;
    uint64_t lsn_max;
    uint32_t birth_min;
    uint32_t birth_max;
    uint32_t entry_count;
    uint32_t index_crc;
    uint64_t data_bytes;
    uint64_t index_offset;
    uint8_t reserved[kBlockBytes - 152];
};
static_assert(sizeof(RawFooter) == kBlockBytes && offsetof(RawFooter, lsn_min) == 104);

RawIdentity raw_of(const SegmentHeader& header) {
    RawIdentity raw{};
    raw.writer = header.id.writer.value;
    raw.writer_epoch = header.id.epoch;
    raw.writer_sequence = header.id.sequence;
    raw.volume = header.volume.value;
    raw.lineage = header.lineage.value;
    raw.epoch = header.epoch.value;
    raw.kind = static_cast<uint8_t>(header.kind);
    raw.lifetime_class = header.lifetime_class;
    raw.codec = static_cast<uint8_t>(header.codec);
    return raw;
}

// Reads the identity of a block whose CRC holds. `what` names the block in errors.
Result<SegmentHeader> header_of(const RawIdentity& raw, const char* what) {
    SegmentHeader header;
    header.id = {VolumeId(raw.writer), raw.writer_epoch, raw.writer_sequence};
    header.volume = VolumeId(raw.volume);
    header.lineage = LineageId(raw.lineage);
    header.epoch = Epoch(raw.epoch);
    if (!header.id || !header.volume || !header.lineage) {
        return fail(Code::corrupt, "{} of segment {} has no identity", what, header.id);
    }
    if (!is_segment_kind(raw.kind) || raw.lifetime_class >= kSegmentClassCount) {
        return fail(Code::unsupported, "{} of segment {} has kind {} and class {}: unknown here",
                    what, header.id, raw.kind, raw.lifetime_class);
    }
    if (raw.codec != 0 || raw.key_id != 0 || raw.ec_data != 0 || raw.ec_parity != 0) {
        return fail(Code::unsupported,
                    "{} of segment {} uses codec {}, key {} or coding {}+{}: not known here", what,
                    header.id, raw.codec, raw.key_id, raw.ec_data, raw.ec_parity);
    }
    header.kind = static_cast<SegmentKind>(raw.kind);
    header.lifetime_class = raw.lifetime_class;
    return header;
}

template <typename Raw>
void seal_block(Raw& raw, MutableBytes out) {
    CHECK(out.size() >= kBlockBytes);
    raw.version = kSegmentVersion;
    raw.crc = 0;
    raw.crc = crc32c(bytes_of(raw));
    std::memcpy(out.data(), &raw, sizeof(raw));
}

// Copies a block out and checks magic, CRC and version, in this order.
template <typename Raw>
Result<Raw> open_block(Bytes bytes, uint64_t magic, const char* what) {
    CHECK(bytes.size() >= kBlockBytes);
    Raw raw;
    std::memcpy(&raw, bytes.data(), sizeof(raw));
    if (raw.magic != magic) {
        return fail(Code::corrupt, "no segment {} here: magic {:016x}", what, raw.magic);
    }
    const uint32_t stored = raw.crc;
    raw.crc = 0;
    const uint32_t computed = crc32c(bytes_of(raw));
    if (stored != computed) {
        return fail(Code::corrupt, "segment {} fails its CRC: {:08x} stored, {:08x} computed", what,
                    stored, computed);
    }
    if (raw.version != kSegmentVersion) {
        return fail(Code::unsupported,
                    "segment {} has version {}, this build reads {}: upgrade peplosd", what,
                    raw.version, kSegmentVersion);
    }
    return raw;
}

Result<void> check_entry(const SegmentFooter& footer, const SegmentIndexEntry& entry,
                         uint32_t position) {
    const SegmentId& id = footer.header.id;
    if (entry.codec != Codec::none || entry.flags != 0) {
        return fail(Code::unsupported, "index entry {} of segment {} has codec {}, flags {:#x}",
                    position, id, static_cast<int>(entry.codec), entry.flags);
    }
    const uint64_t offset = uint64_t{entry.offset_units} * kPlaceUnitBytes;
    if (entry.length_units != kBlockUnits || entry.block_in_chunk != 0 ||
        offset % kBlockBytes != 0 || offset < kSegmentDataOffset ||
        offset + kBlockBytes > footer.index_offset()) {
        return fail(Code::corrupt, "index entry {} of segment {} lies outside its data ({}+{})",
                    position, id, offset, entry.length_units * kPlaceUnitBytes);
    }
    if (entry.lba.value >= limits::kVolumeBytesMax / kBlockBytes || entry.lsn < footer.lsn_min ||
        entry.lsn > footer.lsn_max || entry.birth < footer.birth_min ||
        entry.birth > footer.birth_max) {
        return fail(Code::corrupt, "index entry {} of segment {} (LBA {}, LSN {}) is out of range",
                    position, id, entry.lba, entry.lsn);
    }
    const bool relocated = footer.header.kind == SegmentKind::relocated;
    if (!entry.old_place.is_valid_as(relocated ? PlaceKind::block : PlaceKind::none)) {
        return fail(Code::corrupt, "index entry {} of segment {} has a bad old place {:#x}",
                    position, id, entry.old_place.bits);
    }
    return {};
}

}  // namespace

void encode_segment_header(const SegmentHeader& header, MutableBytes out) {
    CHECK(header.id && header.volume && header.lineage);
    CHECK(header.lifetime_class < kSegmentClassCount);
    RawHeader raw{};
    raw.magic = kHeaderMagic;
    raw.identity = raw_of(header);
    seal_block(raw, out);
}

void encode_segment_footer(const SegmentFooter& footer, MutableBytes out) {
    CHECK(footer.header.id && footer.header.volume && footer.header.lineage);
    CHECK(footer.data_bytes % kBlockBytes == 0 && footer.bytes() <= limits::kSegmentBytesMax);
    CHECK(footer.lsn_min <= footer.lsn_max && footer.birth_min <= footer.birth_max);
    RawFooter raw{};
    raw.magic = kFooterMagic;
    raw.identity = raw_of(footer.header);
    raw.lsn_min = footer.lsn_min.value;
    raw.lsn_max = footer.lsn_max.value;
    raw.birth_min = footer.birth_min;
    raw.birth_max = footer.birth_max;
    raw.entry_count = footer.entry_count;
    raw.index_crc = footer.index_crc;
    raw.data_bytes = footer.data_bytes;
    raw.index_offset = footer.index_offset();
    seal_block(raw, out);
}

uint32_t encode_segment_index(std::span<const SegmentIndexEntry> entries, MutableBytes out) {
    CHECK(entries.size() <= kSegmentEntryCountMax);
    CHECK(out.size() >= segment_index_bytes(entries.size()));
    for (size_t i = 1; i < entries.size(); ++i) {
        CHECK(std::tie(entries[i - 1].lba, entries[i - 1].lsn) <
                  std::tie(entries[i].lba, entries[i].lsn),
              "index entry {} is out of order", i);
    }
    if (entries.empty()) return 0;
    ByteWriter writer(out);
    Bytes bytes = std::as_bytes(entries);
    writer.put(bytes);
    writer.zero_to(segment_index_bytes(entries.size()));
    return crc32c(bytes);
}

Result<SegmentHeader> decode_segment_header(Bytes bytes) {
    TRY_ASSIGN(const RawHeader raw, open_block<RawHeader>(bytes, kHeaderMagic, "header"));
    return header_of(raw.identity, "header");
}

Result<SegmentFooter> decode_segment_footer(Bytes bytes) {
    TRY_ASSIGN(const RawFooter raw, open_block<RawFooter>(bytes, kFooterMagic, "footer"));
    SegmentFooter footer;
    TRY_ASSIGN(footer.header, header_of(raw.identity, "footer"));
    footer.lsn_min = Lsn(raw.lsn_min);
    footer.lsn_max = Lsn(raw.lsn_max);
    footer.birth_min = raw.birth_min;
    footer.birth_max = raw.birth_max;
    footer.entry_count = raw.entry_count;
    footer.index_crc = raw.index_crc;
    footer.data_bytes = raw.data_bytes;
    if (raw.data_bytes > limits::kSegmentBytesMax || raw.data_bytes % kBlockBytes != 0 ||
        raw.entry_count > kSegmentEntryCountMax || raw.index_offset != footer.index_offset() ||
        footer.bytes() > limits::kSegmentBytesMax || raw.lsn_min > raw.lsn_max ||
        raw.birth_min > raw.birth_max) {
        return fail(Code::corrupt,
                    "footer of segment {} contradicts itself: {} data bytes, {} entries, index at "
                    "{}, LSN {}..{}",
                    footer.header.id, raw.data_bytes, raw.entry_count, raw.index_offset,
                    raw.lsn_min, raw.lsn_max);
    }
    return footer;
}

Result<std::optional<SegmentFooter>> decode_segment_front(Bytes front, const SegmentId& expected) {
    CHECK(front.size() >= kSegmentDataOffset);
    TRY_ASSIGN(const SegmentHeader header, decode_segment_header(front));
    if (header.id != expected) {
        return fail(Code::corrupt, "segment {} expected, the header says {}", expected, header.id);
    }
    const Bytes place = front.subspan(kSegmentFooterOffset, kBlockBytes);
    uint64_t magic;
    std::memcpy(&magic, place.data(), sizeof(magic));
    if (magic != kFooterMagic) return std::nullopt;
    TRY_ASSIGN(const SegmentFooter footer, decode_segment_footer(place));
    if (footer.header.id != expected) return std::nullopt;
    if (footer.header != header) {
        return fail(Code::corrupt, "header and footer of segment {} differ", expected);
    }
    return footer;
}

Result<std::vector<SegmentIndexEntry>> decode_segment_index(const SegmentFooter& footer,
                                                            Bytes bytes) {
    const size_t size = footer.entry_count * sizeof(SegmentIndexEntry);
    if (footer.entry_count > kSegmentEntryCountMax || bytes.size() < size) {
        return fail(Code::corrupt, "index of segment {} is cut short: {} of {} bytes",
                    footer.header.id, bytes.size(), size);
    }
    const uint32_t computed = size == 0 ? 0 : crc32c(bytes.first(size));
    if (computed != footer.index_crc) {
        return fail(Code::corrupt,
                    "index of segment {} fails its CRC: {:08x} in the footer, {:08x} computed",
                    footer.header.id, footer.index_crc, computed);
    }
    std::vector<SegmentIndexEntry> entries(footer.entry_count);
    if (size != 0) std::memcpy(entries.data(), bytes.data(), size);
    for (uint32_t i = 0; i < entries.size(); ++i) {
        TRY(check_entry(footer, entries[i], i));
        if (i != 0 && std::tie(entries[i - 1].lba, entries[i - 1].lsn) >=
                          std::tie(entries[i].lba, entries[i].lsn)) {
            return fail(Code::corrupt, "index of segment {} is not sorted at entry {}",
                        footer.header.id, i);
        }
    }
    return entries;
}

}  // namespace peplos::format
