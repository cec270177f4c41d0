#pragma once

#include <vector>

#include "base/bytes.h"
#include "base/ids.h"
#include "base/limits.h"
#include "base/result.h"

// What a device is and where its parts lie. Two copies. Format: docs/formats/superblock.md.
namespace peplos::format {

enum class MediaClass : uint8_t { nvme = 1, ssd = 2, hdd = 3 };

struct RingPlace {
    uint64_t offset = 0;
    uint64_t bytes = 0;
    bool operator==(const RingPlace&) const = default;
};

inline constexpr uint32_t kSuperblockBytes = kBlockBytes;
inline constexpr uint64_t kSuperblockOffsets[2] = {0, 1 * kMiB};
inline constexpr uint32_t kRingCountMax = 16;

struct Superblock {
    DeviceId device;          // stays when the device is formatted anew
    Incarnation incarnation;  // changes then
    Boot boot;                // raised by every open; the higher of two copies is the newer
    uint64_t device_bytes = 0;
    uint64_t unit_table_offset = 0;
    uint64_t unit_table_bytes = 0;
    uint64_t units_offset = 0;  // of unit 0
    uint32_t unit_count = 0;
    MediaClass media_class = MediaClass::nvme;
    std::vector<RingPlace> rings;  // one today
    bool operator==(const Superblock&) const = default;
};

// Requires: out.size() == kSuperblockBytes, parts that do not overlap.
void encode_superblock(const Superblock& superblock, MutableBytes out);
// Errors: not_found (the block is not a superblock: no magic), corrupt, unsupported.
Result<Superblock> decode_superblock(Bytes block);

// Lays a device out. Errors: invalid_argument (too small, or the ring is).
Result<Superblock> plan_device(uint64_t device_bytes, uint64_t ring_bytes, MediaClass media_class);

}  // namespace peplos::format
