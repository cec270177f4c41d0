#include "format/record.h"

#include <algorithm>

#include "base/crc32c.h"
#include "format/frame.h"

namespace peplos::format {
namespace {

constexpr uint32_t kRecordMagic = 0x43455250;  // "PREC"
constexpr uint16_t kRecordVersion = 3;
// Before members of ensembles: no open numbers, and fences said nothing of claims.
constexpr uint16_t kVersionAlone = 2;
// Before settled_lsn: payloads were durable before their references took an LSN.
constexpr uint16_t kVersionSerial = 1;

struct RecordHeader {
    uint32_t magic;
    uint32_t crc;  // of everything behind this field, encoded_bytes in all
    uint16_t version;
    uint8_t type;
    uint8_t codec;  // 0: none
    uint32_t encoded_bytes;
    uint64_t volume;
    uint64_t lineage;
    uint64_t epoch;
    uint64_t lsn;
    uint64_t prev_data_lsn;
    uint64_t prev_meta_lsn;
    uint64_t root_lsn;
    uint64_t lba;
    uint64_t block_count;
    uint32_t crc_count;
    uint32_t body_bytes;
    uint64_t key_id;  // 0: not encrypted
    uint8_t nonce[12];
    uint32_t payload_blocks;
    uint8_t tag[16];
    uint64_t settled_lsn;
    uint64_t open_number;
    uint8_t reserved[8];
};
static_assert(sizeof(RecordHeader) == kRecordHeaderBytes);
static_assert(offsetof(RecordHeader, settled_lsn) == 136 &&
              offsetof(RecordHeader, open_number) == 144);
static_assert(offsetof(RecordHeader, volume) == 16 && offsetof(RecordHeader, lba) == 72);
static_assert(offsetof(RecordHeader, key_id) == 96 && offsetof(RecordHeader, tag) == 120);
constexpr size_t kRecordCrcStart = offsetof(RecordHeader, version);

struct WireSegment {
    SegmentId id;
    uint64_t group;
    uint32_t index;
    uint32_t block_count;
    uint8_t segment_class;
    uint8_t reserved[7];
};
static_assert(sizeof(WireSegment) == kSealedSegmentBytes && sizeof(SegmentId) == 16);
static_assert(std::has_unique_object_representations_v<WireSegment>);

struct WireRoot {
    uint64_t drained_lsn;
    uint64_t meta_lsn;
    SegmentId page_segment;
    uint64_t page_offset;
    uint32_t page_bytes;
    uint32_t page_crc;
    uint64_t size_blocks;
    uint64_t page_sequence;
    uint32_t page_segment_index;
    uint32_t reserved;
};
static_assert(sizeof(WireRoot) == 72);
static_assert(std::has_unique_object_representations_v<WireRoot>);

struct WireCounts {
    uint32_t segment_count;
    uint32_t zero_count;
};

struct WireClaim {
    uint64_t owner;
    uint64_t epoch;
    uint64_t token;
};
// Behind the tokens of a fence; behind it the spans.
struct WireMember {
    uint64_t number;
    WireClaim fence;
    WireClaim opened_by;
    uint64_t version;
    uint64_t drained_lsn;
    uint64_t meta_lsn;
    uint32_t span_count;
    uint32_t reserved;
};
static_assert(sizeof(WireMember) == 88 && sizeof(LogSpan) == 24);
static_assert(std::has_unique_object_representations_v<WireMember>);
constexpr uint64_t kFenceTokensBytes = 16;

bool is_known(uint8_t type) {
    switch (static_cast<RecordType>(type)) {
        case RecordType::write:
        case RecordType::write_ref:
        case RecordType::zero:
        case RecordType::noop:
        case RecordType::settle:
        case RecordType::seal:
        case RecordType::relocate:
        case RecordType::resize:
        case RecordType::delete_intent:
        case RecordType::root:
        case RecordType::fence:
        case RecordType::damage:
            return true;
    }
    return false;
}

// ---- bodies: their sizes ----

uint64_t bytes_of_body(const std::monostate&) {
    return 0;
}
uint64_t bytes_of_body(const SealBody& body) {
    return kSealBodyFixedBytes + body.segments.size() * kSealedSegmentBytes +
           body.zeros.size() * kZeroExtentBytes;
}
uint64_t bytes_of_body(const RelocateBody& body) {
    return 8 + body.segments.size() * kSealedSegmentBytes;
}
uint64_t bytes_of_body(const RootBody&) {
    return sizeof(WireRoot);
}
uint64_t bytes_of_body(const WriteRefBody&) {
    return 24;
}
uint64_t bytes_of_body(const SettleBody& body) {
    return 8 + body.voided.size() * sizeof(uint64_t);
}
uint64_t bytes_of_body(const ResizeBody&) {
    return 8;
}
uint64_t bytes_of_body(const DeleteIntentBody& body) {
    return 8 + body.segments.size() * sizeof(SegmentId);
}
uint64_t bytes_of_body(const FenceBody& body) {
    if (!body.member) return kFenceTokensBytes;
    return kFenceTokensBytes + sizeof(WireMember) + body.member->spans.size() * sizeof(LogSpan);
}
uint64_t bytes_of_body(const DamageBody&) {
    return 16;
}

uint64_t body_bytes(const RecordBody& body) {
    return std::visit([](const auto& b) { return bytes_of_body(b); }, body);
}

// ---- bodies: writing ----

void put_segments(ByteWriter& out, const std::vector<SealedSegment>& segments) {
    for (const SealedSegment& s : segments) {
        out.write(WireSegment{s.id, s.group.value, s.index, s.block_count, s.segment_class, {}});
    }
}

void put_body(ByteWriter&, const std::monostate&) {}
void put_body(ByteWriter& out, const SealBody& body) {
    out.write(body.drained_lsn.value);
    out.write(WireCounts{static_cast<uint32_t>(body.segments.size()),
                         static_cast<uint32_t>(body.zeros.size())});
    put_segments(out, body.segments);
    for (const ZeroExtent& extent : body.zeros) {
        out.write(extent.lba.value);
        out.write(extent.block_count);
    }
}
void put_body(ByteWriter& out, const RelocateBody& body) {
    out.write(WireCounts{static_cast<uint32_t>(body.segments.size()), 0});
    put_segments(out, body.segments);
}
void put_body(ByteWriter& out, const RootBody& body) {
    WireRoot wire{};
    wire.drained_lsn = body.drained_lsn.value;
    wire.meta_lsn = body.meta_lsn.value;
    wire.page_segment = body.page_segment;
    wire.page_offset = body.page_offset;
    wire.page_bytes = body.page_bytes;
    wire.page_crc = body.page_crc;
    wire.size_blocks = body.size_blocks;
    wire.page_sequence = body.page_sequence;
    wire.page_segment_index = body.page_segment_index;
    out.write(wire);
}
void put_body(ByteWriter& out, const WriteRefBody& body) {
    out.write(body.segment);
    out.write(body.segment_index);
    out.write(body.block_offset);
}
void put_body(ByteWriter& out, const SettleBody& body) {
    out.write(WireCounts{static_cast<uint32_t>(body.voided.size()), 0});
    for (Lsn lsn : body.voided)
        out.write(lsn.value);
}
void put_body(ByteWriter& out, const ResizeBody& body) {
    out.write(body.size_blocks);
}
void put_body(ByteWriter& out, const DeleteIntentBody& body) {
    out.write(WireCounts{static_cast<uint32_t>(body.segments.size()), 0});
    for (const SegmentId& id : body.segments)
        out.write(id);
}
WireClaim wire_of(const ClaimBody& claim) {
    return {claim.owner.value, claim.epoch.value, claim.token.value};
}
void put_body(ByteWriter& out, const FenceBody& body) {
    out.write(body.token.value);
    out.write(body.recorded_token.value);
    if (!body.member) return;
    const MemberBody& member = *body.member;
    out.write(WireMember{member.number, wire_of(member.fence), wire_of(member.opened_by),
                         member.version, member.drained_lsn.value, member.meta_lsn.value,
                         static_cast<uint32_t>(member.spans.size()), 0});
    for (const LogSpan& span : member.spans)
        out.write(span);
}
void put_body(ByteWriter& out, const DamageBody& body) {
    out.write(body.last_lsn.value);
    out.write(body.device_offset);
}

// ---- bodies: reading. The reader covers exactly the body; running over shows in ok(). ----

std::vector<SealedSegment> take_segments(ByteReader& in, uint32_t count) {
    std::vector<SealedSegment> out;
    if (count > in.remaining() / sizeof(WireSegment)) {
        in.take(in.remaining() + 1);  // Fails the reader: the count cannot be true.
        return out;
    }
    out.reserve(count);
    for (uint32_t i = 0; i < count; ++i) {
        auto wire = in.read<WireSegment>();
        out.push_back(
            {wire.id, wire.index, GroupId(wire.group), wire.block_count, wire.segment_class});
    }
    return out;
}

SealBody take_seal(ByteReader& in) {
    SealBody body;
    body.drained_lsn = Lsn(in.read<uint64_t>());
    auto counts = in.read<WireCounts>();
    body.segments = take_segments(in, counts.segment_count);
    if (counts.zero_count != in.remaining() / kZeroExtentBytes) {
        in.take(in.remaining() + 1);
        return body;
    }
    body.zeros.reserve(counts.zero_count);
    for (uint32_t i = 0; i < counts.zero_count; ++i) {
        Lba lba(in.read<uint64_t>());
        body.zeros.push_back({lba, in.read<uint64_t>()});
    }
    return body;
}

DeleteIntentBody take_delete_intent(ByteReader& in) {
    DeleteIntentBody body;
    auto counts = in.read<WireCounts>();
    if (counts.segment_count != in.remaining() / sizeof(SegmentId)) {
        in.take(in.remaining() + 1);
        return body;
    }
    body.segments.reserve(counts.segment_count);
    for (uint32_t i = 0; i < counts.segment_count; ++i) {
        body.segments.push_back(in.read<SegmentId>());
    }
    return body;
}

SettleBody take_settle(ByteReader& in) {
    SettleBody body;
    auto counts = in.read<WireCounts>();
    if (counts.segment_count != in.remaining() / sizeof(uint64_t)) {
        in.take(in.remaining() + 1);
        return body;
    }
    body.voided.reserve(counts.segment_count);
    for (uint32_t i = 0; i < counts.segment_count; ++i)
        body.voided.push_back(Lsn(in.read<uint64_t>()));
    return body;
}

RootBody take_root(ByteReader& in) {
    auto wire = in.read<WireRoot>();
    RootBody body;
    body.drained_lsn = Lsn(wire.drained_lsn);
    body.meta_lsn = Lsn(wire.meta_lsn);
    body.page_segment = wire.page_segment;
    body.page_offset = wire.page_offset;
    body.page_bytes = wire.page_bytes;
    body.page_crc = wire.page_crc;
    body.size_blocks = wire.size_blocks;
    body.page_sequence = wire.page_sequence;
    body.page_segment_index = wire.page_segment_index;
    return body;
}

ClaimBody claim_of(const WireClaim& wire) {
    return {NodeId(wire.owner), Epoch(wire.epoch), OpenToken(wire.token)};
}

FenceBody take_fence(ByteReader& in) {
    FenceBody body;
    body.token = OpenToken(in.read<uint64_t>());
    body.recorded_token = OpenToken(in.read<uint64_t>());
    if (in.remaining() == 0) return body;
    auto wire = in.read<WireMember>();
    MemberBody& member = body.member.emplace();
    member.number = wire.number;
    member.fence = claim_of(wire.fence);
    member.opened_by = claim_of(wire.opened_by);
    member.version = wire.version;
    member.drained_lsn = Lsn(wire.drained_lsn);
    member.meta_lsn = Lsn(wire.meta_lsn);
    if (!in.ok() || wire.span_count > in.remaining() / sizeof(LogSpan)) {
        in.take(in.remaining() + 1);
        return body;
    }
    for (uint32_t i = 0; i < wire.span_count; ++i)
        member.spans.push_back(in.read<LogSpan>());
    return body;
}

RecordBody take_body(ByteReader& in, RecordType type) {
    switch (type) {
        case RecordType::write:
        case RecordType::zero:
        case RecordType::noop:
            return std::monostate{};
        case RecordType::write_ref: {
            WriteRefBody body;
            body.segment = in.read<SegmentId>();
            body.segment_index = in.read<uint32_t>();
            body.block_offset = in.read<uint32_t>();
            return body;
        }
        case RecordType::settle:
            return take_settle(in);
        case RecordType::seal:
            return take_seal(in);
        case RecordType::relocate:
            return RelocateBody{take_segments(in, in.read<WireCounts>().segment_count)};
        case RecordType::resize:
            return ResizeBody{in.read<uint64_t>()};
        case RecordType::delete_intent:
            return take_delete_intent(in);
        case RecordType::root:
            return take_root(in);
        case RecordType::fence:
            return take_fence(in);
        case RecordType::damage: {
            Lsn last(in.read<uint64_t>());
            return DamageBody{last, in.read<uint64_t>()};
        }
    }
    return std::monostate{};
}

// ---- rules that hold on both sides of the disk ----

template <typename Body>
bool holds(const Record& record) {
    return std::holds_alternative<Body>(record.body);
}

bool body_fits_type(const Record& record) {
    switch (record.type) {
        case RecordType::write:
        case RecordType::zero:
        case RecordType::noop:
            return holds<std::monostate>(record);
        case RecordType::write_ref:
            return holds<WriteRefBody>(record);
        case RecordType::settle:
            return holds<SettleBody>(record);
        case RecordType::seal:
            return holds<SealBody>(record);
        case RecordType::relocate:
            return holds<RelocateBody>(record);
        case RecordType::resize:
            return holds<ResizeBody>(record);
        case RecordType::delete_intent:
            return holds<DeleteIntentBody>(record);
        case RecordType::root:
            return holds<RootBody>(record);
        case RecordType::fence:
            return holds<FenceBody>(record);
        case RecordType::damage:
            return holds<DamageBody>(record);
    }
    return false;
}

// Ascending, apart from each other, and limits that never go back.
bool are_in_order(const std::vector<LogSpan>& spans) {
    LogSpan before;
    for (const LogSpan& span : spans) {
        bool is_behind = span.first_open > before.last_open || &span == &spans.front();
        if (!is_behind || span.last_open < span.first_open || span.limit_lsn < before.limit_lsn)
            return false;
        before = span;
    }
    return true;
}

constexpr uint64_t kLbaEnd = limits::kVolumeBytesMax / kBlockBytes;

// What is wrong with the record's fields, or null.
const char* fault_of(const Record& record) {
    if (!body_fits_type(record)) return "a body of another type";
    if (body_bytes(record.body) > limits::kRecordBodyBytesMax) return "a body that is too long";
    bool has_extent = record.type <= RecordType::zero;
    if (has_extent) {
        if (record.block_count == 0) return "an empty extent";
        if (record.lba.value >= kLbaEnd || record.block_count > kLbaEnd - record.lba.value)
            return "an extent beyond the largest volume";
    } else if (record.block_count != 0 || record.lba.value != 0) {
        return "an extent where none belongs";
    }
    bool has_crcs = record.type == RecordType::write || record.type == RecordType::write_ref;
    if (record.crcs.size() != (has_crcs ? record.block_count : 0))
        return "not one checksum per block";
    if (record.type == RecordType::write && record.block_count > kWriteBlocksMax)
        return "more payload than a commit takes";
    if (record.type == RecordType::write_ref && record.block_count > kWriteRefBlocksMax)
        return "more blocks than one reference takes";
    if (has_lsn(record.type) && record.settled_lsn > record.lsn)
        return "a settled LSN that is still to come";
    if (const auto* settle = std::get_if<SettleBody>(&record.body)) {
        if (!std::ranges::is_sorted(settle->voided)) return "LSNs out of order";
    }
    if (const auto* fence = std::get_if<FenceBody>(&record.body); fence && fence->member) {
        if (fence->member->spans.size() > kLogSpanCountMax) return "too many spans";
        if (!are_in_order(fence->member->spans)) return "spans out of order";
    }
    return nullptr;
}

}  // namespace

std::string_view name_of(RecordType type) {
    switch (type) {
        case RecordType::write:
            return "write";
        case RecordType::write_ref:
            return "write_ref";
        case RecordType::zero:
            return "zero";
        case RecordType::noop:
            return "noop";
        case RecordType::settle:
            return "settle";
        case RecordType::seal:
            return "seal";
        case RecordType::relocate:
            return "relocate";
        case RecordType::resize:
            return "resize";
        case RecordType::delete_intent:
            return "delete_intent";
        case RecordType::root:
            return "root";
        case RecordType::fence:
            return "fence";
        case RecordType::damage:
            return "damage";
    }
    return "unknown";
}

uint32_t encoded_bytes(const Record& record) {
    uint64_t bytes = kRecordHeaderBytes + record.crcs.size() * sizeof(uint32_t);
    if (record.body.index() != 0) bytes += body_bytes(record.body);
    return static_cast<uint32_t>(round_up(bytes, kRecordAlignment));
}

uint64_t ring_cost_bytes(const Record& record) {
    return round_up(kFrameOverheadBytes + encoded_bytes(record), kBlockBytes) +
           record.payload_bytes();
}

Result<void> validate_shape(const Record& record) {
    if (const char* fault = fault_of(record)) {
        return fail(Code::invalid_argument, "a {} record of volume {} at LSN {} has {}",
                    name_of(record.type), record.volume, record.lsn, fault);
    }
    return {};
}

Result<void> validate(const Record& record) {
    TRY(validate_shape(record));
    uint64_t held = 0;
    for (const Buffer& buffer : record.payload) {
        if (buffer.size() % kBlockBytes != 0 || buffer.empty()) {
            return fail(Code::invalid_argument,
                        "a write record of volume {} at LSN {} has a payload buffer of {} bytes, "
                        "not whole blocks",
                        record.volume, record.lsn, buffer.size());
        }
        held += buffer.size();
    }
    if (held != record.payload_bytes()) {
        return fail(Code::invalid_argument,
                    "a {} record of volume {} at LSN {} holds {} bytes of payload instead of {}",
                    name_of(record.type), record.volume, record.lsn, held, record.payload_bytes());
    }
    return {};
}

void encode_record(const Record& record, MutableBytes out) {
    CHECK(fault_of(record) == nullptr, "a {} record of volume {} at LSN {} has {} ({})",
          name_of(record.type), record.volume, record.lsn, fault_of(record), record.settled_lsn);
    CHECK(out.size() == encoded_bytes(record));
    RecordHeader header{};
    header.magic = kRecordMagic;
    header.version = kRecordVersion;
    header.type = static_cast<uint8_t>(record.type);
    header.encoded_bytes = static_cast<uint32_t>(out.size());
    header.volume = record.volume.value;
    header.lineage = record.lineage.value;
    header.epoch = record.epoch.value;
    header.lsn = record.lsn.value;
    header.prev_data_lsn = record.prev_data_lsn.value;
    header.prev_meta_lsn = record.prev_meta_lsn.value;
    header.root_lsn = record.root_lsn.value;
    header.settled_lsn = record.settled_lsn.value;
    header.open_number = record.open_number;
    header.lba = record.lba.value;
    header.block_count = record.block_count;
    header.crc_count = static_cast<uint32_t>(record.crcs.size());
    header.body_bytes = static_cast<uint32_t>(body_bytes(record.body));
    header.payload_blocks = static_cast<uint32_t>(record.payload_bytes() / kBlockBytes);

    ByteWriter writer(out);
    writer.write(header);
    writer.put(std::as_bytes(std::span(record.crcs.data(), record.crcs.size())));
    std::visit([&writer](const auto& body) { put_body(writer, body); }, record.body);
    CHECK(round_up(writer.offset(), kRecordAlignment) == out.size());
    writer.zero_to(out.size());
    uint32_t crc = crc32c(Bytes(out).subspan(kRecordCrcStart));
    std::memcpy(out.data() + offsetof(RecordHeader, crc), &crc, sizeof(crc));
}

Result<DecodedRecord> decode_record(Bytes bytes) {
    ByteReader reader(bytes);
    auto header = reader.read<RecordHeader>();
    if (!reader.ok() || header.magic != kRecordMagic)
        return fail(Code::corrupt, "not a journal record: no magic");
    // Bounded here, believed below once the checksum holds.
    if (header.encoded_bytes < sizeof(RecordHeader) || header.encoded_bytes > bytes.size() ||
        header.encoded_bytes % kRecordAlignment != 0) {
        return fail(Code::corrupt, "a journal record with an impossible length of {} bytes",
                    header.encoded_bytes);
    }
    if (crc32c(bytes.first(header.encoded_bytes).subspan(kRecordCrcStart)) != header.crc)
        return fail(Code::corrupt, "a journal record whose checksum does not hold");
    bool is_known_version = header.version >= kVersionSerial && header.version <= kRecordVersion;
    if (!is_known_version || !is_known(header.type) || header.codec != 0 || header.key_id != 0) {
        return fail(Code::unsupported,
                    "a journal record of version {}, type {}, codec {}, key {:016x}: this build "
                    "reads versions up to {} without codecs and keys; use a newer one",
                    header.version, header.type, header.codec, header.key_id, kRecordVersion);
    }
    uint64_t behind = uint64_t{header.crc_count} * sizeof(uint32_t) + header.body_bytes;
    if (round_up(sizeof(RecordHeader) + behind, kRecordAlignment) != header.encoded_bytes)
        return fail(Code::corrupt, "a journal record whose parts do not add up to its length");

    DecodedRecord out;
    out.encoded_bytes = header.encoded_bytes;
    Record& record = out.record;
    record.type = static_cast<RecordType>(header.type);
    record.volume = VolumeId(header.volume);
    record.lineage = LineageId(header.lineage);
    record.epoch = Epoch(header.epoch);
    record.lsn = Lsn(header.lsn);
    record.prev_data_lsn = Lsn(header.prev_data_lsn);
    record.prev_meta_lsn = Lsn(header.prev_meta_lsn);
    record.root_lsn = Lsn(header.root_lsn);
    record.settled_lsn = Lsn(header.version == kVersionSerial ? header.lsn : header.settled_lsn);
    if (header.version > kVersionAlone) record.open_number = header.open_number;
    record.lba = Lba(header.lba);
    record.block_count = header.block_count;
    record.crcs.resize(header.crc_count);
    Bytes crcs = reader.take(size_t{header.crc_count} * sizeof(uint32_t));
    if (!crcs.empty()) std::memcpy(record.crcs.data(), crcs.data(), crcs.size());
    ByteReader body(reader.take(header.body_bytes));
    record.body = take_body(body, record.type);
    if (!reader.ok() || !body.ok() || body.remaining() != 0)
        return fail(Code::corrupt, "a {} record whose body has the wrong length",
                    name_of(record.type));
    if (const char* fault = fault_of(record))
        return fail(Code::corrupt, "a {} record with {}", name_of(record.type), fault);
    if (header.payload_blocks != record.payload_bytes() / kBlockBytes)
        return fail(Code::corrupt, "a {} record with the wrong payload length",
                    name_of(record.type));
    return out;
}

Result<void> verify_payload(const Record& record, Bytes payload) {
    CHECK(payload.size() == record.payload_bytes());
    for (size_t i = 0; i < payload.size() / kBlockBytes; ++i) {
        if (crc32c(payload.subspan(i * kBlockBytes, kBlockBytes)) != record.crcs[i]) {
            return fail(Code::corrupt,
                        "block {} (LBA {}) of the record of volume {} at LSN {} does not match "
                        "its checksum",
                        i, record.lba.value + i, record.volume, record.lsn);
        }
    }
    return {};
}

}  // namespace peplos::format
