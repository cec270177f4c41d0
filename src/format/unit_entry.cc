#include "format/unit_entry.h"

#include "base/crc32c.h"

namespace peplos::format {
namespace {

constexpr uint32_t kEntryMagic = 0x54494e55;  // "UNIT"
// 2 can say a group, and that a copy is replaced; what says neither is written as 1.
constexpr uint8_t kEntryVersionAlone = 1;
constexpr uint8_t kEntryVersion = 2;
constexpr uint32_t kRunUnitsMax = limits::kSegmentBytesMax / limits::kSegmentUnitBytes;

struct EntryWire {
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
    uint64_t group;
};
static_assert(sizeof(EntryWire) == kUnitEntryBytes);
static_assert(offsetof(EntryWire, segment) == 16 && offsetof(EntryWire, incarnation) == 48);
static_assert(std::has_unique_object_representations_v<EntryWire>);
static_assert(kRunUnitsMax <= UINT8_MAX);
constexpr size_t kEntryCrcStart = offsetof(EntryWire, unit);

uint32_t crc_of(const EntryWire& wire) {
    return crc32c(bytes_of(wire).subspan(kEntryCrcStart));
}

// The run is a power of two, aligned to its length.
bool is_run(uint32_t first_unit, uint32_t unit_count) {
    return std::has_single_bit(unit_count) && unit_count <= kRunUnitsMax &&
           first_unit % unit_count == 0;
}

}  // namespace

UnitEntryBytes encode_unit_entry(const UnitEntry& entry, uint32_t unit, Incarnation incarnation) {
    EntryWire wire{};
    wire.magic = kEntryMagic;
    wire.unit = unit;
    bool is_alone = entry.state != UnitState::replaced && !entry.group;
    wire.version = is_alone ? kEntryVersionAlone : kEntryVersion;
    wire.state = static_cast<uint8_t>(entry.state);
    wire.incarnation = incarnation.value;
    if (entry.state != UnitState::prepared) {
        CHECK(is_run(unit, entry.unit_count) && entry.segment);
        wire.kind = static_cast<uint8_t>(entry.kind);
        wire.unit_count = static_cast<uint8_t>(entry.unit_count);
        wire.segment = entry.segment;
        wire.lineage = entry.lineage.value;
        wire.volume = entry.volume.value;
        wire.group = entry.group.value;
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
    auto wire = std::bit_cast<EntryWire>(raw);
    if (wire.magic != kEntryMagic || wire.crc != crc_of(wire))
        return fail(Code::corrupt, "a unit entry whose checksum does not hold");
    if (wire.version < kEntryVersionAlone || wire.version > kEntryVersion) {
        return fail(Code::unsupported,
                    "a unit entry of version {}: this build reads versions {} to {}; use a newer "
                    "one",
                    wire.version, kEntryVersionAlone, kEntryVersion);
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
    if (wire.version == kEntryVersion) out.group = GroupId(wire.group);
    bool is_known_kind = is_segment_kind(wire.kind);
    bool is_known_state = out.state == UnitState::used ||
                          (out.state == UnitState::replaced && wire.version == kEntryVersion);
    if (!is_known_state || !is_known_kind || !is_run(unit, out.unit_count) || !out.segment)
        return fail(Code::corrupt, "a unit entry with impossible fields");
    return out;
}

}  // namespace peplos::format
