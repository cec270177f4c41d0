#include "format/unit_entry.h"

#include "base/crc32c.h"

namespace peplos::format {
namespace {

constexpr uint32_t kMagic = 0x54494e55;  // "UNIT"
constexpr uint8_t kVersion = 1;
constexpr uint32_t kRunUnitsMax = limits::kSegmentBytesMax / limits::kSegmentUnitBytes;

struct Wire {
    uint32_t magic;
    uint32_t crc;  // of what is behind this field
    uint32_t unit;
    uint8_t version;
    uint8_t state;
    uint8_t kind;
    uint8_t unit_count;
    SegmentId segment;
    uint64_t lineage;
    uint64_t volume;
    uint64_t incarnation;
    uint64_t reserved;
};
static_assert(sizeof(Wire) == kUnitEntryBytes);
static_assert(offsetof(Wire, segment) == 16 && offsetof(Wire, incarnation) == 48);
static_assert(std::has_unique_object_representations_v<Wire>);
static_assert(kRunUnitsMax <= UINT8_MAX);
constexpr size_t kCrcStart = offsetof(Wire, unit);

uint32_t crc_of(const Wire& wire) {
    return crc32c(bytes_of(wire).subspan(kCrcStart));
}

// The run is a power of two, aligned to its length.
bool is_run(uint32_t first_unit, uint32_t unit_count) {
    return std::has_single_bit(unit_count) && unit_count <= kRunUnitsMax &&
           first_unit % unit_count == 0;
}

}  // namespace

std::string_view name_of(SegmentKind kind) {
    switch (kind) {
        case SegmentKind::data:
            return "data";
        case SegmentKind::relocated:
            return "relocated";
        case SegmentKind::large:
            return "large";
        case SegmentKind::map:
            return "map";
    }
    return "unknown";
}

UnitEntryBytes encode_unit_entry(const UnitEntry& entry, uint32_t unit, Incarnation incarnation) {
    Wire wire{};
    wire.magic = kMagic;
    wire.unit = unit;
    wire.version = kVersion;
    wire.state = static_cast<uint8_t>(entry.state);
    wire.incarnation = incarnation.value;
    if (entry.state == UnitState::used) {
        CHECK(is_run(unit, entry.unit_count) && entry.segment);
        wire.kind = static_cast<uint8_t>(entry.kind);
        wire.unit_count = static_cast<uint8_t>(entry.unit_count);
        wire.segment = entry.segment;
        wire.lineage = entry.lineage.value;
        wire.volume = entry.volume.value;
    }
    wire.crc = crc_of(wire);
    return std::bit_cast<UnitEntryBytes>(wire);
}

Result<std::optional<UnitEntry>> decode_unit_entry(Bytes bytes, uint32_t unit,
                                                   Incarnation incarnation) {
    ByteReader reader(bytes);
    auto raw = reader.read<UnitEntryBytes>();
    if (!reader.ok()) return fail(Code::corrupt, "a unit entry that is cut off");
    if (raw == UnitEntryBytes{}) return std::nullopt;
    auto wire = std::bit_cast<Wire>(raw);
    if (wire.magic != kMagic || wire.crc != crc_of(wire))
        return fail(Code::corrupt, "a unit entry whose checksum does not hold");
    if (wire.version != kVersion) {
        return fail(Code::unsupported,
                    "a unit entry of version {}: this build reads version {}; use a newer one",
                    wire.version, kVersion);
    }
    if (wire.unit != unit || wire.incarnation != incarnation.value)
        return fail(Code::corrupt, "a unit entry that belongs to unit {} of device format {:016x}",
                    wire.unit, wire.incarnation);
    UnitEntry out;
    out.state = static_cast<UnitState>(wire.state);
    if (out.state == UnitState::prepared) return out;
    out.kind = static_cast<SegmentKind>(wire.kind);
    out.unit_count = wire.unit_count;
    out.segment = wire.segment;
    out.lineage = LineageId(wire.lineage);
    out.volume = VolumeId(wire.volume);
    bool is_known_kind = is_segment_kind(wire.kind);
    if (out.state != UnitState::used || !is_known_kind || !is_run(unit, out.unit_count) ||
        !out.segment)
        return fail(Code::corrupt, "a unit entry with impossible fields");
    return out;
}

}  // namespace peplos::format
