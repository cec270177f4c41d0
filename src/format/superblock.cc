#include "format/superblock.h"

#include "base/crc32c.h"
#include "format/unit_entry.h"

namespace peplos::format {
namespace {

constexpr uint64_t kSuperblockMagic = 0x4b4c42534f4c5050;  // "PPLOSBLK"
constexpr uint16_t kSuperblockVersion = 1;

struct WireRing {
    uint64_t offset;
    uint64_t bytes;
};

struct SuperblockWire {
    uint64_t magic;
    uint32_t crc;  // of the block behind this field
    uint16_t version;
    uint8_t media_class;
    uint8_t ring_count;
    uint8_t device[16];
    uint64_t incarnation;
    uint64_t boot;
    uint64_t device_bytes;
    uint64_t unit_table_offset;
    uint64_t unit_table_bytes;
    uint64_t units_offset;
    uint32_t unit_count;
    uint32_t unit_bytes;
    WireRing rings[kRingCountMax];
    uint8_t reserved[kSuperblockBytes - 88 - sizeof(WireRing) * kRingCountMax];
};
static_assert(sizeof(SuperblockWire) == kSuperblockBytes);
static_assert(offsetof(SuperblockWire, device) == 16 && offsetof(SuperblockWire, boot) == 40);
static_assert(offsetof(SuperblockWire, unit_count) == 80 && offsetof(SuperblockWire, rings) == 88);
static_assert(std::has_unique_object_representations_v<SuperblockWire>);
constexpr size_t kSuperblockCrcStart = offsetof(SuperblockWire, version);

// Where the first part behind the superblocks begins.
constexpr uint64_t kPartsOffset = 2 * kMiB;

bool is_inside(uint64_t offset, uint64_t bytes, uint64_t begin, uint64_t end) {
    return offset % kBlockBytes == 0 && bytes % kBlockBytes == 0 && offset >= begin &&
           offset <= end && bytes <= end - offset;
}

// Superblocks, unit table, rings and units follow one another without overlap.
bool parts_fit(const Superblock& s) {
    if (s.device_bytes > UINT64_MAX / 2 || s.unit_count == 0 || s.rings.empty()) return false;
    uint64_t end = kPartsOffset;
    if (!is_inside(s.unit_table_offset, s.unit_table_bytes, end, s.device_bytes)) return false;
    if (s.unit_table_bytes / kUnitEntryBytes < s.unit_count) return false;
    end = s.unit_table_offset + s.unit_table_bytes;
    for (const RingPlace& ring : s.rings) {
        if (!is_inside(ring.offset, ring.bytes, end, s.device_bytes)) return false;
        if (ring.bytes < limits::kRingBytesMin) return false;
        end = ring.offset + ring.bytes;
    }
    return is_inside(s.units_offset, s.unit_count * limits::kSegmentUnitBytes, end, s.device_bytes);
}

bool is_known(MediaClass media_class) {
    return media_class == MediaClass::nvme || media_class == MediaClass::ssd ||
           media_class == MediaClass::hdd;
}

}  // namespace

void encode_superblock(const Superblock& superblock, MutableBytes out) {
    CHECK(out.size() == kSuperblockBytes);
    CHECK(parts_fit(superblock) && superblock.rings.size() <= kRingCountMax);
    SuperblockWire wire{};
    wire.magic = kSuperblockMagic;
    wire.version = kSuperblockVersion;
    wire.media_class = static_cast<uint8_t>(superblock.media_class);
    wire.ring_count = static_cast<uint8_t>(superblock.rings.size());
    std::memcpy(wire.device, superblock.device.bytes.data(), sizeof(wire.device));
    wire.incarnation = superblock.incarnation.value;
    wire.boot = superblock.boot.value;
    wire.device_bytes = superblock.device_bytes;
    wire.unit_table_offset = superblock.unit_table_offset;
    wire.unit_table_bytes = superblock.unit_table_bytes;
    wire.units_offset = superblock.units_offset;
    wire.unit_count = superblock.unit_count;
    wire.unit_bytes = limits::kSegmentUnitBytes;
    for (size_t i = 0; i < superblock.rings.size(); ++i) {
        wire.rings[i] = {superblock.rings[i].offset, superblock.rings[i].bytes};
    }
    wire.crc = crc32c(bytes_of(wire).subspan(kSuperblockCrcStart));
    std::memcpy(out.data(), &wire, sizeof(wire));
}

Result<Superblock> decode_superblock(Bytes block) {
    ByteReader reader(block);
    auto wire = reader.read<SuperblockWire>();
    if (!reader.ok() || wire.magic != kSuperblockMagic)
        return fail(Code::not_found, "no Peplos superblock");
    if (wire.crc != crc32c(bytes_of(wire).subspan(kSuperblockCrcStart)))
        return fail(Code::corrupt, "a superblock whose checksum does not hold");
    if (wire.version != kSuperblockVersion || wire.unit_bytes != limits::kSegmentUnitBytes) {
        return fail(Code::unsupported,
                    "a device of format version {} with units of {} bytes: this build reads "
                    "version {} with units of {} bytes; use a newer one",
                    wire.version, wire.unit_bytes, kSuperblockVersion, limits::kSegmentUnitBytes);
    }
    Superblock out;
    std::memcpy(out.device.bytes.data(), wire.device, sizeof(wire.device));
    out.incarnation = Incarnation(wire.incarnation);
    out.boot = Boot(wire.boot);
    out.device_bytes = wire.device_bytes;
    out.unit_table_offset = wire.unit_table_offset;
    out.unit_table_bytes = wire.unit_table_bytes;
    out.units_offset = wire.units_offset;
    out.unit_count = wire.unit_count;
    out.media_class = static_cast<MediaClass>(wire.media_class);
    if (wire.ring_count == 0 || wire.ring_count > kRingCountMax || !is_known(out.media_class))
        return fail(Code::corrupt, "a superblock with impossible fields");
    for (uint32_t i = 0; i < wire.ring_count; ++i) {
        out.rings.push_back({wire.rings[i].offset, wire.rings[i].bytes});
    }
    if (!parts_fit(out)) return fail(Code::corrupt, "a superblock whose parts overlap");
    return out;
}

Result<Superblock> plan_device(uint64_t device_bytes, uint64_t ring_bytes, MediaClass media_class) {
    if (ring_bytes < limits::kRingBytesMin || ring_bytes % kMiB != 0) {
        return fail(Code::invalid_argument,
                    "a journal ring of {} bytes: give whole MiB, at least {} bytes", ring_bytes,
                    limits::kRingBytesMin);
    }
    Superblock out;
    out.media_class = media_class;
    out.device_bytes = device_bytes;
    out.unit_table_offset = kPartsOffset;
    // Sized for as many units as the device could hold; whole MiB, so that units are aligned.
    out.unit_table_bytes =
        round_up(device_bytes / limits::kSegmentUnitBytes * kUnitEntryBytes + 1, kMiB);
    uint64_t ring_offset = out.unit_table_offset + out.unit_table_bytes;
    out.rings = {{ring_offset, ring_bytes}};
    out.units_offset = ring_offset + ring_bytes;
    uint64_t needed = out.units_offset + limits::kSegmentBytesMax;
    if (device_bytes < needed) {
        return fail(Code::invalid_argument,
                    "a device of {} bytes is too small: with a journal of {} bytes it needs {}",
                    device_bytes, ring_bytes, needed);
    }
    uint64_t units = (device_bytes - out.units_offset) / limits::kSegmentUnitBytes;
    if (units > UINT32_MAX / 2)
        return fail(Code::invalid_argument, "a device of {} bytes is too large", device_bytes);
    out.unit_count = static_cast<uint32_t>(units);
    CHECK(parts_fit(out));
    return out;
}

}  // namespace peplos::format
