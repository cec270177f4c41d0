#include "replica/segment_wire.h"

#include <algorithm>
#include <bit>

namespace peplos::replica {

namespace {

constexpr uint16_t kSegmentWireVersion = 1;

struct WireRequest {
    uint16_t version;
    uint8_t kind;
    uint8_t purpose;
    uint8_t durability;
    uint8_t reserved[3];
    uint64_t volume;
    uint64_t owner;
    uint64_t epoch;
    uint64_t token;
    SegmentId id;
    uint64_t lineage;
    uint64_t group;
    uint64_t offset;
    uint64_t bytes;
    uint64_t id_count;
};
static_assert(sizeof(WireRequest) == 96);
static_assert(std::has_unique_object_representations_v<WireRequest>);

struct WireAnswer {
    uint16_t version;
    uint8_t is_more;
    uint8_t is_leaving;
    uint32_t copy_count;
    uint64_t total_units;
    uint64_t free_units;
    uint64_t reserve_units;
    uint64_t largest_free_run;
};
static_assert(sizeof(WireAnswer) == 40);
static_assert(std::has_unique_object_representations_v<WireAnswer>);

struct WireCopy {
    SegmentId id;
    uint64_t lineage;
    uint64_t group;
    uint8_t kind;
    uint8_t unit_count;
    uint8_t reserved[6];
};
static_assert(sizeof(WireCopy) == 40);
static_assert(std::has_unique_object_representations_v<WireCopy>);

constexpr uint32_t kRunUnitsMax = limits::kSegmentBytesMax / limits::kSegmentUnitBytes;

bool is_run(uint8_t units) {
    return std::has_single_bit(units) && units <= kRunUnitsMax;
}

template <size_t kCount>
bool is_zero(const uint8_t (&bytes)[kCount]) {
    return std::ranges::all_of(bytes, [](uint8_t byte) { return byte == 0; });
}

Result<void> check_version(uint16_t version, const char* what) {
    if (version == kSegmentWireVersion) return {};
    return fail(Code::unsupported, "a segment {} of version {}: this build knows version {}", what,
                version, kSegmentWireVersion);
}

}  // namespace

std::vector<std::byte> encode(const SegmentRequest& request) {
    CHECK(request.ids.size() <= kSegmentListMax);
    WireRequest wire{};
    wire.version = kSegmentWireVersion;
    wire.kind = static_cast<uint8_t>(request.kind);
    wire.purpose = static_cast<uint8_t>(request.purpose);
    wire.durability = static_cast<uint8_t>(request.durability);
    wire.volume = request.volume.value;
    wire.owner = request.claim.owner.value;
    wire.epoch = request.claim.epoch.value;
    wire.token = request.claim.token.value;
    wire.id = request.id;
    wire.lineage = request.lineage.value;
    wire.group = request.group.value;
    wire.offset = request.offset;
    wire.bytes = request.bytes;
    wire.id_count = request.ids.size();
    std::vector<std::byte> out(sizeof(wire) + request.ids.size() * sizeof(SegmentId));
    ByteWriter writer(out);
    writer.write(wire);
    writer.put(std::as_bytes(std::span(request.ids)));
    return out;
}

Result<SegmentRequest> decode_segment_request(Bytes bytes) {
    ByteReader reader(bytes);
    auto wire = reader.read<WireRequest>();
    if (!reader.ok()) return fail(Code::corrupt, "a segment call that is cut off");
    TRY(check_version(wire.version, "call"));
    bool is_good = format::is_segment_kind(wire.kind) &&
                   wire.purpose <= static_cast<uint8_t>(media::Purpose::maintenance) &&
                   wire.durability <= static_cast<uint8_t>(runtime::Durability::durable) &&
                   is_zero(wire.reserved) && wire.id_count <= kSegmentListMax &&
                   wire.offset <= limits::kSegmentBytesMax &&
                   wire.bytes <= limits::kSegmentBytesMax &&
                   reader.remaining() == wire.id_count * sizeof(SegmentId);
    if (!is_good) return fail(Code::corrupt, "a segment call with impossible fields");
    SegmentRequest out;
    out.kind = static_cast<format::SegmentKind>(wire.kind);
    out.purpose = static_cast<media::Purpose>(wire.purpose);
    out.durability = static_cast<runtime::Durability>(wire.durability);
    out.volume = VolumeId(wire.volume);
    out.claim = {NodeId(wire.owner), Epoch(wire.epoch), OpenToken(wire.token)};
    out.id = wire.id;
    out.lineage = LineageId(wire.lineage);
    out.group = GroupId(wire.group);
    out.offset = wire.offset;
    out.bytes = wire.bytes;
    out.ids.resize(wire.id_count);
    for (SegmentId& id : out.ids)
        id = reader.read<SegmentId>();
    return out;
}

std::vector<std::byte> encode(const SegmentAnswer& answer) {
    CHECK(answer.copies.size() <= kSegmentListMax);
    WireAnswer wire{};
    wire.version = kSegmentWireVersion;
    wire.is_more = answer.is_more ? 1 : 0;
    wire.is_leaving = answer.is_leaving ? 1 : 0;
    wire.copy_count = static_cast<uint32_t>(answer.copies.size());
    wire.total_units = answer.space.total_units;
    wire.free_units = answer.space.free_units;
    wire.reserve_units = answer.space.reserve_units;
    wire.largest_free_run = answer.space.largest_free_run;
    std::vector<std::byte> out(sizeof(wire) + answer.copies.size() * sizeof(WireCopy));
    ByteWriter writer(out);
    writer.write(wire);
    for (const SegmentCopy& copy : answer.copies) {
        CHECK(is_run(static_cast<uint8_t>(copy.unit_count)));
        writer.write(WireCopy{copy.id,
                              copy.lineage.value,
                              copy.group.value,
                              static_cast<uint8_t>(copy.kind),
                              static_cast<uint8_t>(copy.unit_count),
                              {}});
    }
    return out;
}

Result<SegmentAnswer> decode_segment_answer(Bytes bytes) {
    ByteReader reader(bytes);
    auto wire = reader.read<WireAnswer>();
    if (!reader.ok()) return fail(Code::corrupt, "an answer to a segment call that is cut off");
    TRY(check_version(wire.version, "answer"));
    bool is_good = wire.is_more <= 1 && wire.is_leaving <= 1 &&
                   wire.copy_count <= kSegmentListMax &&
                   reader.remaining() == wire.copy_count * sizeof(WireCopy) &&
                   wire.total_units <= UINT32_MAX && wire.free_units <= wire.total_units &&
                   wire.reserve_units <= UINT32_MAX && wire.largest_free_run <= wire.free_units;
    if (!is_good) return fail(Code::corrupt, "an answer to a segment call with impossible fields");
    SegmentAnswer out;
    out.is_more = wire.is_more != 0;
    out.is_leaving = wire.is_leaving != 0;
    out.space = {wire.total_units, wire.free_units, wire.reserve_units, wire.largest_free_run};
    out.copies.reserve(wire.copy_count);
    for (uint32_t i = 0; i < wire.copy_count; ++i) {
        auto copy = reader.read<WireCopy>();
        if (!copy.id || !format::is_segment_kind(copy.kind) || !is_run(copy.unit_count) ||
            !is_zero(copy.reserved)) {
            return fail(Code::corrupt, "an answer that lists an impossible segment");
        }
        out.copies.push_back({copy.id, LineageId(copy.lineage), GroupId(copy.group),
                              static_cast<format::SegmentKind>(copy.kind), copy.unit_count});
    }
    return out;
}

}  // namespace peplos::replica
