#pragma once

#include <boost/container/small_vector.hpp>
#include <optional>
#include <variant>
#include <vector>

#include "base/buffer.h"
#include "base/ids.h"
#include "base/limits.h"
#include "base/result.h"

// Journal records: what a volume says, in LSN order, about its blocks and its map.
// Format: docs/formats/ring.md.
//
// A record's encoding does not depend on where it lies; the payload of a `write` travels beside it
// as whole blocks, guarded by the per-block checksums in the record.
namespace peplos::format {

enum class RecordType : uint8_t {
    // Data-like: needed until drained. lba and block_count name the extent.
    write = 1,      // the payload follows in the ring; one CRC per block
    write_ref = 2,  // the payload lies in a segment; one CRC per block. Durable or not: settled_lsn
    zero = 3,       // the extent reads as zeros from here on; any length
    noop = 4,       // takes an LSN, says nothing
    settle = 5,     // which references never became writes: SettleBody
    // Meta: needed until a checkpoint covers it.
    seal = 16,           // a drain: SealBody
    relocate = 17,       // the cleaner's segments: RelocateBody
    resize = 18,         // ResizeBody
    delete_intent = 19,  // these segments may be removed: DeleteIntentBody
    // The newest one is always needed.
    root = 32,  // a checkpoint: RootBody
    // State of one device's log of a volume; lsn is 0.
    fence = 48,   // the epoch was raised: FenceBody
    damage = 49,  // acknowledged records were lost here: DamageBody
};
std::string_view name_of(RecordType type);

constexpr bool is_data(RecordType type) {
    return type <= RecordType::settle;
}
constexpr bool is_meta(RecordType type) {
    return type >= RecordType::seal && type <= RecordType::delete_intent;
}
// Whether the record takes a place in the volume's LSN sequence.
constexpr bool has_lsn(RecordType type) {
    return type <= RecordType::root;
}

// A segment that a drain or the cleaner sealed. Its own index says which blocks it holds.
struct SealedSegment {
    SegmentId id;
    uint32_t index = 0;  // in the volume's segment table
    GroupId group;
    uint32_t block_count = 0;
    uint8_t segment_class = 0;
    bool operator==(const SealedSegment&) const = default;
};
struct ZeroExtent {
    Lba lba;
    uint64_t block_count = 0;
    bool operator==(const ZeroExtent&) const = default;
};

// Everything <= drained_lsn is in these segments, is zero in these extents, or was there before.
struct SealBody {
    Lsn drained_lsn;
    std::vector<SealedSegment> segments;
    std::vector<ZeroExtent> zeros;
    bool operator==(const SealBody&) const = default;
};
// The segments' index entries carry the old place; each replays only where the map still says so.
struct RelocateBody {
    std::vector<SealedSegment> segments;
    bool operator==(const RelocateBody&) const = default;
};
// The root page of a checkpoint covers data <= drained_lsn and meta records <= meta_lsn.
struct RootBody {
    Lsn drained_lsn;
    Lsn meta_lsn;
    SegmentId page_segment;    // none: the empty map
    uint64_t page_offset = 0;  // bytes from the segment's start
    uint32_t page_bytes = 0;
    uint32_t page_crc = 0;
    uint64_t size_blocks = 0;
    uint32_t page_segment_index = 0;  // of page_segment, in the volume's segment table
    uint64_t page_sequence = 0;       // of the checkpoint: part of the page's identity
    bool operator==(const RootBody&) const = default;
};
struct WriteRefBody {
    SegmentId segment;
    uint32_t segment_index = 0;
    uint32_t block_offset = 0;  // of the first block, in blocks from the segment's start
    bool operator==(const WriteRefBody&) const = default;
};
// The records with these LSNs, ascending, were never acknowledged and their payload is not whole:
// they count as if they had never been, whatever their segment reads as later.
struct SettleBody {
    std::vector<Lsn> voided;
    bool operator==(const SettleBody&) const = default;
};
struct ResizeBody {
    uint64_t size_blocks = 0;
    bool operator==(const ResizeBody&) const = default;
};
struct DeleteIntentBody {
    std::vector<SegmentId> segments;
    bool operator==(const DeleteIntentBody&) const = default;
};
// Who claimed a volume; the token tells two claims of one epoch apart.
struct ClaimBody {
    NodeId owner;
    Epoch epoch;
    OpenToken token;
    bool operator==(const ClaimBody&) const = default;
};
// The records that a member took under its opens first_open .. last_open (Record::open_number), up
// to limit_lsn: these are part of its log.
struct LogSpan {
    uint64_t first_open = 0;
    uint64_t last_open = 0;
    Lsn limit_lsn;
    bool operator==(const LogSpan&) const = default;
};
// What a member of an ensemble knows of its log beside the records (replica/member_log.h). The
// spans ascend; records of opens that none of them names, or above its limit, are not the log's.
struct MemberBody {
    uint64_t number = 0;  // of such records of this log: the highest is the newest
    ClaimBody fence;
    ClaimBody opened_by;
    uint64_t version = 0;
    // Data up to here and meta records up to there are gone from this log, because an acknowledged
    // seal or root made them needless.
    Lsn drained_lsn;
    Lsn meta_lsn;
    std::vector<LogSpan> spans;
    bool operator==(const MemberBody&) const = default;
};
// `token` is the log's right from here on; `recorded_token` is the one that the control store knew
// when the log was opened: either proves this log complete (a crash may fall between the two).
struct FenceBody {
    OpenToken token;
    OpenToken recorded_token;
    std::optional<MemberBody> member;  // none: the log of a volume with this copy only
    bool operator==(const FenceBody&) const = default;
};
// A record of the volume, up to `last_lsn`, was lost on this device at this ring offset.
struct DamageBody {
    Lsn last_lsn;
    uint64_t device_offset = 0;
    bool operator==(const DamageBody&) const = default;
};
using RecordBody = std::variant<std::monostate, SealBody, RelocateBody, RootBody, WriteRefBody,
                                SettleBody, ResizeBody, DeleteIntentBody, FenceBody, DamageBody>;

using BlockCrcs = boost::container::small_vector<uint32_t, 4>;
using Payload = boost::container::small_vector<Buffer, 1>;

struct Record {
    RecordType type = RecordType::noop;
    VolumeId volume;
    LineageId lineage;
    Epoch epoch;
    Lsn lsn;
    // Chains by which a missing record is noticed, filled in by the journal: the newest data-like,
    // meta and root record before this one (0: none).
    Lsn prev_data_lsn;
    Lsn prev_meta_lsn;
    Lsn root_lsn;
    // Every record up to here was whole when this one was submitted, the payload of references
    // included, or a `settle` record names it. The record of a reference and its payload are
    // written at the same time; so above this a payload that does not match is a torn write that
    // nobody was told of, at or below it is damage.
    Lsn settled_lsn;
    // Under which of its opens the member that holds this copy took it, from 1; 0: it was never
    // opened as a member. Each member counts for itself: it is no part of what the owner says.
    uint64_t open_number = 0;
    Lba lba;
    uint64_t block_count = 0;
    BlockCrcs crcs;   // write, write_ref: CRC32C of each block of the extent
    RecordBody body;  // the alternative that belongs to `type`
    // write: block_count * kBlockBytes in whole blocks, gathered from these buffers in order.
    // The bytes do not change until the append has completed.
    Payload payload;

    uint64_t payload_bytes() const {
        return type == RecordType::write ? block_count * kBlockBytes : 0;
    }
};

inline constexpr uint32_t kRecordAlignment = 8;
inline constexpr uint32_t kRecordHeaderBytes = 160;
// Payload blocks of one `write`; blocks of one `write_ref`.
inline constexpr uint32_t kWriteBlocksMax = limits::kCommitPayloadBytesMax / kBlockBytes;
inline constexpr uint32_t kWriteRefBlocksMax = limits::kIoBytesMax / kBlockBytes;
// What a body takes: for callers that must split what does not fit kRecordBodyBytesMax.
inline constexpr uint32_t kSealBodyFixedBytes = 16;
inline constexpr uint32_t kSealedSegmentBytes = 40;
inline constexpr uint32_t kZeroExtentBytes = 16;
inline constexpr uint32_t kVoidedLsnCountMax = (limits::kRecordBodyBytesMax - 8) / 8;
inline constexpr uint32_t kLogSpanCountMax = 256;

// Bytes of the encoding without the payload, a multiple of kRecordAlignment.
uint32_t encoded_bytes(const Record& record);
// invalid_argument when the record breaks its type's rules (sizes, counts, body, payload).
Result<void> validate(const Record& record);
// The same without the payload, for a record whose bytes are still to come.
Result<void> validate_shape(const Record& record);
// Requires: validate(record), out.size() == encoded_bytes(record). Writes every byte of `out`.
void encode_record(const Record& record, MutableBytes out);

struct DecodedRecord {
    Record record;  // payload left empty
    uint32_t encoded_bytes = 0;
};
// Decodes the record at the start of `bytes`; believes nothing before its CRC holds.
// Errors: corrupt, unsupported (a newer version, type or codec).
Result<DecodedRecord> decode_record(Bytes bytes);

// corrupt when a block of `payload` does not match its CRC; names the block.
// Requires: payload.size() == record.payload_bytes().
Result<void> verify_payload(const Record& record, Bytes payload);

// What an append may take of the ring at most, alone in its frame: the currency of admission.
uint64_t ring_cost_bytes(const Record& record);

}  // namespace peplos::format
