#pragma once

#include <vector>

#include "base/bytes.h"
#include "format/segment_kind.h"
#include "media/segment_store.h"
#include "replica/protocol.h"

// What nodes say to each other about the segments that they hold for each other's volumes.
// Format: docs/formats/peer-segments.md.
namespace peplos::replica {

// The calls, by their method numbers. Payload is in the call or the answer, beside the body.
enum class SegmentMethod : uint16_t {
    create = 0x20,  // id, lineage, group, kind, purpose, bytes
    write = 0x21,   // id, offset, durability; the payload
    read = 0x22,    // id, offset, bytes; the answer has the payload
    sync = 0x23,    // ids: all that was written to them before
    shrink = 0x24,  // id, bytes
    remove = 0x25,  // ids
    list = 0x26,    // id: what comes behind it; the answer has segments of the volume
    adopt = 0x27,   // id; the answer has the segment
    space = 0x28,   // only the space, which every answer has
    mend = 0x29,    // id: check the copy, and repair it when it is bad
};

// How many segments or ids one message has at most.
inline constexpr uint32_t kSegmentListMax = 4096;

struct SegmentRequest {
    VolumeId volume;
    Claim claim;  // under which the caller works; none for reads
    SegmentId id;
    LineageId lineage;
    GroupId group;
    uint64_t offset = 0;
    uint64_t bytes = 0;
    format::SegmentKind kind = format::SegmentKind::data;
    media::Purpose purpose = media::Purpose::user;
    runtime::Durability durability = runtime::Durability::volatile_;
    std::vector<SegmentId> ids;
    bool operator==(const SegmentRequest&) const = default;
};

// A segment that a node has a copy of.
struct SegmentCopy {
    SegmentId id;
    LineageId lineage;
    GroupId group;
    format::SegmentKind kind = format::SegmentKind::data;
    uint32_t unit_count = 0;
    bool operator==(const SegmentCopy&) const = default;
    uint64_t bytes() const { return unit_count * limits::kSegmentUnitBytes; }
};

// What a node has left for segments, over all its devices.
struct NodeSpace {
    uint64_t total_units = 0;
    uint64_t free_units = 0;
    uint64_t reserve_units = 0;     // part of free_units that `user` may not take
    uint64_t largest_free_run = 0;  // in units
    bool operator==(const NodeSpace&) const = default;
};

struct SegmentAnswer {
    NodeSpace space;
    bool is_more = false;     // list: ask again behind the last one
    bool is_leaving = false;  // remove, list: some of the volume's are still being read
    std::vector<SegmentCopy> copies;
    bool operator==(const SegmentAnswer&) const = default;
};

std::vector<std::byte> encode(const SegmentRequest& request);
std::vector<std::byte> encode(const SegmentAnswer& answer);
// Errors: corrupt (cut off, or fields out of bounds), unsupported (another version).
Result<SegmentRequest> decode_segment_request(Bytes bytes);
Result<SegmentAnswer> decode_segment_answer(Bytes bytes);

}  // namespace peplos::replica
