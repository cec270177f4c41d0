#pragma once

#include <cstddef>
#include <vector>

#include "base/bytes.h"
#include "base/ids.h"
#include "base/limits.h"
#include "base/result.h"

// A frame is one commit of a journal ring: a metadata area (header, witnesses, records) and then
// the payload blocks of its records, in record order. Format: docs/formats/ring.md.
namespace peplos::format {

// Which volumes had records in the frame before, and up to which LSN: if that frame is lost,
// this says whose log has a hole at its end, and whose fence may be gone.
struct FrameWitness {
    VolumeId volume;
    Lsn last_lsn;
    bool had_fence = false;
    bool operator==(const FrameWitness&) const = default;
};
inline constexpr uint32_t kFrameWitnessBytes = 16;

inline constexpr uint32_t kFrameHeaderBytes = 128;
inline constexpr uint32_t kFrameWitnessCountMax = 56;
// What a frame's metadata area holds besides records, at most.
inline constexpr uint32_t kFrameOverheadBytes =
    kFrameHeaderBytes + kFrameWitnessCountMax * kFrameWitnessBytes;
static_assert(kFrameOverheadBytes == 1024);
// A metadata area and the payload behind it.
inline constexpr uint32_t kFrameMetadataBytesMax = 256 * kKiB;
static_assert(kFrameMetadataBytesMax + limits::kCommitPayloadBytesMax <= limits::kFrameBytesMax);

struct FrameHeader {
    Incarnation incarnation;
    Boot boot;
    uint64_t sequence = 0;          // contiguous, from 1
    uint64_t settled_sequence = 0;  // when this one began, every frame up to there was durable
    uint64_t log_offset = 0;        // grows for ever; % ring bytes = place in the ring
    uint64_t tail_log_offset = 0;   // no frame before it is needed
    uint64_t tail_sequence = 0;     // of the frame there
    uint32_t metadata_bytes = 0;    // whole area, a multiple of kBlockBytes
    uint32_t payload_bytes = 0;     // a multiple of kBlockBytes
    uint32_t record_count = 0;
    bool witnesses_are_complete = true;  // false: the frame before held more volumes than fit
    std::vector<FrameWitness> witnesses;

    uint64_t bytes() const { return uint64_t{metadata_bytes} + payload_bytes; }
    uint32_t records_offset() const {
        return kFrameHeaderBytes + static_cast<uint32_t>(witnesses.size()) * kFrameWitnessBytes;
    }
};

// Writes header and witnesses at the start of `metadata`, whose records and padding are already in
// place, and seals the area with its checksums. Requires: metadata.size() == metadata_bytes.
void encode_frame(const FrameHeader& header, MutableBytes metadata);

// The header alone, from the frame's first block; believes nothing before its own CRC holds. The
// witnesses are left empty. Errors: corrupt (not a frame header), unsupported.
Result<FrameHeader> decode_frame_header(Bytes block);
// The whole metadata area. Errors: as above; corrupt when the area's CRC does not hold.
Result<FrameHeader> decode_frame(Bytes metadata);
// Whether the block starts with a frame's magic: a frame that began here and may be torn.
bool has_frame_magic(Bytes block);

}  // namespace peplos::format
