#include "format/frame.h"

#include "base/crc32c.h"

namespace peplos::format {
namespace {

constexpr uint64_t kFrameMagic = 0x454d415246504550;  // "PEPFRAME"
constexpr uint16_t kFrameVersion = 3;
// Up to 2 witnesses said nothing of fences. In 1 one frame at a time was in flight: what came
// before a frame was settled.
constexpr uint16_t kVersionOneInFlight = 1;
constexpr uint16_t kFlagWitnessesIncomplete = 1;

struct WireFrame {
    uint64_t magic;
    uint32_t header_crc;  // of this structure behind this field
    uint32_t area_crc;    // of the metadata area behind this structure
    uint16_t version;
    uint16_t flags;
    uint32_t record_count;
    uint64_t incarnation;
    uint64_t boot;
    uint64_t sequence;
    uint64_t log_offset;
    uint64_t tail_log_offset;
    uint64_t tail_sequence;
    uint32_t metadata_bytes;
    uint32_t payload_bytes;
    uint32_t witness_count;
    uint32_t reserved_0;
    uint64_t settled_sequence;
    uint8_t reserved_1[32];
};
static_assert(sizeof(WireFrame) == kFrameHeaderBytes);
static_assert(offsetof(WireFrame, incarnation) == 24 && offsetof(WireFrame, metadata_bytes) == 72 &&
              offsetof(WireFrame, settled_sequence) == 88);
static_assert(std::has_unique_object_representations_v<WireFrame>);
struct WireWitness {
    uint64_t volume;
    uint64_t last_lsn;  // and kHadFence
};
static_assert(sizeof(WireWitness) == kFrameWitnessBytes);
constexpr uint64_t kHadFence = uint64_t{1} << 63;  // no LSN gets there
constexpr size_t kHeaderCrcStart = offsetof(WireFrame, area_crc);

uint32_t header_crc(const WireFrame& header) {
    return crc32c(bytes_of(header).subspan(kHeaderCrcStart));
}

Result<FrameHeader> checked(const WireFrame& wire) {
    if (wire.version < kVersionOneInFlight || wire.version > kFrameVersion) {
        return fail(Code::unsupported,
                    "a journal frame of version {}: this build reads versions {} to {}; use a "
                    "newer one",
                    wire.version, kVersionOneInFlight, kFrameVersion);
    }
    FrameHeader out;
    out.incarnation = Incarnation(wire.incarnation);
    out.boot = Boot(wire.boot);
    out.sequence = wire.sequence;
    out.settled_sequence =
        wire.version == kVersionOneInFlight ? wire.sequence - 1 : wire.settled_sequence;
    out.log_offset = wire.log_offset;
    out.tail_log_offset = wire.tail_log_offset;
    out.tail_sequence = wire.tail_sequence;
    out.metadata_bytes = wire.metadata_bytes;
    out.payload_bytes = wire.payload_bytes;
    out.record_count = wire.record_count;
    out.witnesses_are_complete = (wire.flags & kFlagWitnessesIncomplete) == 0;
    bool sizes_hold =
        wire.metadata_bytes % kBlockBytes == 0 && wire.metadata_bytes != 0 &&
        wire.metadata_bytes <= kFrameMetadataBytesMax && wire.payload_bytes % kBlockBytes == 0 &&
        wire.payload_bytes <= limits::kCommitPayloadBytesMax &&
        wire.witness_count <= kFrameWitnessCountMax && wire.log_offset % kBlockBytes == 0;
    bool order_holds = wire.sequence != 0 && wire.tail_sequence <= wire.sequence &&
                       wire.tail_sequence != 0 && wire.tail_log_offset <= wire.log_offset &&
                       out.settled_sequence < wire.sequence;
    if (!sizes_hold || !order_holds)
        return fail(Code::corrupt, "a journal frame header with impossible fields");
    return out;
}

}  // namespace

void encode_frame(const FrameHeader& header, MutableBytes metadata) {
    CHECK(metadata.size() == header.metadata_bytes);
    CHECK(header.metadata_bytes % kBlockBytes == 0 && header.payload_bytes % kBlockBytes == 0);
    CHECK(header.metadata_bytes != 0 && header.metadata_bytes <= kFrameMetadataBytesMax);
    CHECK(header.payload_bytes <= limits::kCommitPayloadBytesMax);
    CHECK(header.witnesses.size() <= kFrameWitnessCountMax);
    CHECK(header.sequence != 0 && header.tail_sequence != 0);
    CHECK(header.tail_log_offset <= header.log_offset && header.tail_sequence <= header.sequence);
    CHECK(header.settled_sequence < header.sequence);
    WireFrame wire{};
    wire.magic = kFrameMagic;
    wire.version = kFrameVersion;
    wire.flags = header.witnesses_are_complete ? 0 : kFlagWitnessesIncomplete;
    wire.record_count = header.record_count;
    wire.incarnation = header.incarnation.value;
    wire.boot = header.boot.value;
    wire.sequence = header.sequence;
    wire.settled_sequence = header.settled_sequence;
    wire.log_offset = header.log_offset;
    wire.tail_log_offset = header.tail_log_offset;
    wire.tail_sequence = header.tail_sequence;
    wire.metadata_bytes = header.metadata_bytes;
    wire.payload_bytes = header.payload_bytes;
    wire.witness_count = static_cast<uint32_t>(header.witnesses.size());
    ByteWriter witnesses(metadata.subspan(sizeof(WireFrame)));
    for (const FrameWitness& witness : header.witnesses) {
        CHECK((witness.last_lsn.value & kHadFence) == 0);
        witnesses.write(WireWitness{witness.volume.value,
                                    witness.last_lsn.value | (witness.had_fence ? kHadFence : 0)});
    }
    wire.area_crc = crc32c(Bytes(metadata).subspan(sizeof(WireFrame)));
    wire.header_crc = header_crc(wire);
    std::memcpy(metadata.data(), &wire, sizeof(wire));
}

Result<FrameHeader> decode_frame_header(Bytes block) {
    ByteReader reader(block);
    auto wire = reader.read<WireFrame>();
    if (!reader.ok() || wire.magic != kFrameMagic)
        return fail(Code::corrupt, "not a journal frame: no magic");
    if (wire.header_crc != header_crc(wire))
        return fail(Code::corrupt, "a journal frame header whose checksum does not hold");
    return checked(wire);
}

Result<FrameHeader> decode_frame(Bytes metadata) {
    TRY_ASSIGN(FrameHeader header, decode_frame_header(metadata));
    if (header.metadata_bytes > metadata.size())
        return fail(Code::corrupt, "a journal frame that is cut off");
    ByteReader reader(metadata.first(header.metadata_bytes));
    auto wire = reader.read<WireFrame>();
    if (wire.area_crc != crc32c(metadata.first(header.metadata_bytes).subspan(sizeof(WireFrame))))
        return fail(Code::corrupt, "a journal frame whose metadata do not match their checksum");
    header.witnesses.reserve(wire.witness_count);
    for (uint32_t i = 0; i < wire.witness_count; ++i) {
        auto witness = reader.read<WireWitness>();
        header.witnesses.push_back({VolumeId(witness.volume), Lsn(witness.last_lsn & ~kHadFence),
                                    (witness.last_lsn & kHadFence) != 0});
    }
    CHECK(reader.ok(), "the smallest area holds the most witnesses");
    return header;
}

bool has_frame_magic(Bytes block) {
    uint64_t magic = 0;
    if (block.size() < sizeof(magic)) return false;
    std::memcpy(&magic, block.data(), sizeof(magic));
    return magic == kFrameMagic;
}

}  // namespace peplos::format
