#include "peer/wire.h"

#include <algorithm>

#include "base/crc32c.h"

namespace peplos::peer {
namespace {

constexpr uint32_t kMagic = 0x43504550;  // "PEPC"
constexpr uint8_t kFlagPayloadIsChecked = 1;

struct WireHeader {
    uint32_t magic;
    uint32_t crc;  // of what is behind this field
    uint16_t version;
    uint8_t kind;
    uint8_t flags;
    uint16_t method;
    uint16_t code;
    uint64_t id;
    uint32_t body_bytes;
    uint32_t payload_bytes;
    uint32_t body_crc;
    uint32_t payload_crc;
    uint64_t reserved;
};
static_assert(sizeof(WireHeader) == kFrameHeaderBytes);
static_assert(offsetof(WireHeader, version) == 8 && offsetof(WireHeader, id) == 16 &&
              offsetof(WireHeader, body_crc) == 32);
static_assert(std::has_unique_object_representations_v<WireHeader>);
constexpr size_t kCrcStart = offsetof(WireHeader, version);

struct WireHello {
    uint64_t cluster;
    uint64_t node;
    uint64_t target;
    uint64_t boot;
    uint16_t version_min;
    uint16_t version_max;
    uint8_t role;
    uint8_t reserved[27];
};
static_assert(sizeof(WireHello) == kHelloBytes);
static_assert(offsetof(WireHello, boot) == 24 && offsetof(WireHello, role) == 36);
static_assert(std::has_unique_object_representations_v<WireHello>);

uint32_t crc_of(const WireHeader& wire) {
    return crc32c(bytes_of(wire).subspan(kCrcStart));
}

bool answers_a_call(FrameKind kind) {
    return kind == FrameKind::answer || kind == FrameKind::error || kind == FrameKind::refused;
}

bool carries_error(FrameKind kind) {
    return kind == FrameKind::refuse || kind == FrameKind::error || kind == FrameKind::refused;
}

// Which fields a kind of frame has, and how long it may be.
bool is_possible(const FrameHeader& header) {
    FrameKind kind = header.kind;
    if (kind < FrameKind::hello || kind > FrameKind::pong) return false;
    bool is_request = kind == FrameKind::request;
    bool has_payload = is_request || kind == FrameKind::answer;
    uint32_t body_max = has_payload                ? limits::kPeerBodyBytesMax
                        : carries_error(kind)      ? limits::kPeerErrorBytesMax
                        : kind < FrameKind::refuse ? limits::kPeerErrorBytesMax
                                                   : 0;
    uint32_t payload_max = has_payload ? limits::kPeerPayloadBytesMax : 0;
    return (header.id != 0) == (is_request || answers_a_call(kind)) &&
           (is_request || header.method == 0) && (header.code != 0) == carries_error(kind) &&
           header.body_bytes <= body_max && header.payload_bytes <= payload_max &&
           header.payload_bytes % kBlockBytes == 0 &&
           (!header.payload_is_checked || header.payload_bytes != 0) &&
           (header.payload_is_checked || header.payload_crc == 0);
}

}  // namespace

FrameHeaderBytes encode_frame_header(const FrameHeader& header) {
    CHECK(is_possible(header), "a frame of kind {} with {} + {} bytes",
          static_cast<int>(header.kind), header.body_bytes, header.payload_bytes);
    WireHeader wire{};
    wire.magic = kMagic;
    wire.version = header.version;
    wire.kind = static_cast<uint8_t>(header.kind);
    wire.flags = header.payload_is_checked ? kFlagPayloadIsChecked : 0;
    wire.method = header.method;
    wire.code = header.code;
    wire.id = header.id;
    wire.body_bytes = header.body_bytes;
    wire.payload_bytes = header.payload_bytes;
    wire.body_crc = header.body_crc;
    wire.payload_crc = header.payload_crc;
    wire.crc = crc_of(wire);
    return std::bit_cast<FrameHeaderBytes>(wire);
}

Result<FrameHeader> decode_frame_header(const FrameHeaderBytes& bytes) {
    auto wire = std::bit_cast<WireHeader>(bytes);
    if (wire.magic != kMagic) return fail(Code::corrupt, "not a frame of Peplos: no magic");
    if (wire.crc != crc_of(wire))
        return fail(Code::corrupt, "a frame header whose checksum does not hold");
    FrameHeader out;
    out.version = wire.version;
    out.kind = static_cast<FrameKind>(wire.kind);
    out.payload_is_checked = (wire.flags & kFlagPayloadIsChecked) != 0;
    out.method = wire.method;
    out.code = wire.code;
    out.id = wire.id;
    out.body_bytes = wire.body_bytes;
    out.payload_bytes = wire.payload_bytes;
    out.body_crc = wire.body_crc;
    out.payload_crc = wire.payload_crc;
    if ((wire.flags & ~kFlagPayloadIsChecked) != 0 || !is_possible(out))
        return fail(Code::corrupt, "a frame header of kind {} with impossible fields", wire.kind);
    return out;
}

namespace {

struct CodeNumber {
    Code code;
    uint16_t number;
};
constexpr CodeNumber kCodes[] = {
    {Code::invalid_argument, 1}, {Code::not_found, 2},
    {Code::already_exists, 3},   {Code::permission_denied, 4},
    {Code::unsupported, 5},      {Code::corrupt, 6},
    {Code::io_error, 7},         {Code::fenced, 8},
    {Code::no_space, 9},         {Code::busy, 10},
    {Code::unavailable, 11},     {Code::conflict, 12},
    {Code::outcome_unknown, 13}, {Code::stopping, 14},
};

}  // namespace

uint16_t wire_of(Code code) {
    const auto* found = std::ranges::find(kCodes, code, &CodeNumber::code);
    CHECK(found != std::end(kCodes), "an error code without a number");
    return found->number;
}

Code code_of_wire(uint16_t number) {
    const auto* found = std::ranges::find(kCodes, number, &CodeNumber::number);
    return found == std::end(kCodes) ? Code::outcome_unknown : found->code;
}

HelloBytes encode_hello(const Hello& hello) {
    CHECK(hello.cluster && hello.node && hello.boot, "a node without a name");
    WireHello wire{};
    wire.cluster = hello.cluster.value;
    wire.node = hello.node.value;
    wire.target = hello.target.value;
    wire.boot = hello.boot.value;
    wire.version_min = hello.versions.min;
    wire.version_max = hello.versions.max;
    wire.role = static_cast<uint8_t>(hello.role);
    return std::bit_cast<HelloBytes>(wire);
}

Result<Hello> decode_hello(Bytes bytes) {
    ByteReader reader(bytes);
    auto wire = reader.read<WireHello>();
    if (!reader.ok()) return fail(Code::corrupt, "a hello of {} bytes", bytes.size());
    Hello out{ClusterId(wire.cluster),
              NodeId(wire.node),
              NodeId(wire.target),
              NodeBoot(wire.boot),
              {wire.version_min, wire.version_max},
              static_cast<Role>(wire.role)};
    bool is_known_role = out.role == Role::node || out.role == Role::tool;
    if (!out.cluster || !out.node || !out.boot || out.versions.min > out.versions.max ||
        out.versions.min == 0 || !is_known_role)
        return fail(Code::corrupt, "a hello with impossible fields");
    return out;
}

std::string_view error_text(std::string_view message) {
    if (message.size() <= limits::kPeerErrorBytesMax) return message;
    size_t end = limits::kPeerErrorBytesMax;
    // Not inside a character of UTF-8.
    while (end > 0 && (static_cast<unsigned char>(message[end]) & 0xc0) == 0x80)
        --end;
    return message.substr(0, end);
}

Error error_of(uint16_t code, Bytes body) {
    return {code_of_wire(code),
            std::string(reinterpret_cast<const char*>(body.data()), body.size())};
}

Result<Agreement> agree(const Self& self, const Hello& hello, std::string_view identity,
                        NodeId wanted) {
    if (hello.cluster != self.cluster) {
        return fail(Code::permission_denied,
                    "node {} is of cluster {}, node {} of cluster {}: they do not talk", hello.node,
                    hello.cluster, self.node, self.cluster);
    }
    if (wanted && hello.node != wanted) {
        return fail(Code::permission_denied, "node {} answers at an address of node {}", hello.node,
                    wanted);
    }
    if (hello.target != self.node) {
        return fail(Code::permission_denied, "node {} looks for node {} at an address of node {}",
                    hello.node, hello.target, self.node);
    }
    if (hello.node == self.node) {
        return fail(Code::permission_denied, "another process says to be node {}", self.node);
    }
    if (!identity.empty() && parse_hex_id(identity) != hello.node.value) {
        return fail(Code::permission_denied, "who says to be node {} has the certificate of '{}'",
                    hello.node, identity);
    }
    uint16_t version = std::min(self.versions.max, hello.versions.max);
    if (version < std::max(self.versions.min, hello.versions.min)) {
        return fail(Code::unsupported,
                    "node {} speaks versions {} to {} of the protocol, node {} versions {} to {}: "
                    "upgrade the older one first",
                    hello.node, hello.versions.min, hello.versions.max, self.node,
                    self.versions.min, self.versions.max);
    }
    return Agreement{hello.node, hello.boot, hello.role, version};
}

}  // namespace peplos::peer
