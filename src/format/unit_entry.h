#pragma once

#include <array>
#include <optional>

#include "base/bytes.h"
#include "base/ids.h"
#include "base/limits.h"
#include "base/result.h"
#include "format/segment_kind.h"

// The unit table says what exists on a device: one entry per unit of kSegmentUnitBytes.
// Format: docs/formats/units.md.
namespace peplos::format {

inline constexpr uint32_t kUnitEntryBytes = 64;
inline constexpr uint32_t kUnitEntriesPerBlock = kBlockBytes / kUnitEntryBytes;
using UnitEntryBytes = std::array<std::byte, kUnitEntryBytes>;

enum class UnitState : uint8_t {
    used = 1,      // the first unit of a segment's run; the run's other entries mean nothing
    prepared = 2,  // free, and written before: a durable write here costs no extent conversion
    // As used, of a copy whose repaired successor takes its place: where a used entry of the same
    // segment exists the units are free, else this is still the segment.
    replaced = 3,
};

// An entry of zeros is a unit that is free, or inside the run of an earlier entry.
struct UnitEntry {
    UnitState state = UnitState::used;
    // used and replaced only:
    SegmentKind kind = SegmentKind::data;
    uint32_t unit_count = 0;  // the run's length: a power of two, the run aligned to it
    SegmentId segment;
    LineageId lineage;
    VolumeId volume;
    GroupId group;  // the nodes that have copies; 0: this device has the only one
    bool operator==(const UnitEntry&) const = default;
};

// `unit` and the incarnation are under the checksum: an entry in the wrong place, or of an earlier
// format, does not pass.
UnitEntryBytes encode_unit_entry(const UnitEntry& entry, uint32_t unit, Incarnation incarnation);
// No entry: all zeros. Errors: corrupt, unsupported.
Result<std::optional<UnitEntry>> decode_unit_entry(Bytes bytes, uint32_t unit,
                                                   Incarnation incarnation);

}  // namespace peplos::format
