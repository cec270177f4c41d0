#pragma once

#include <array>
#include <cstddef>
#include <string>
#include <string_view>

#include "base/bytes.h"
#include "peer/message.h"

// What two nodes send each other: frames, each a header, a body and a payload.
// Format: docs/formats/peer.md.
namespace peplos::peer {

inline constexpr uint32_t kFrameHeaderBytes = 48;
using FrameHeaderBytes = std::array<std::byte, kFrameHeaderBytes>;
// Frames of the handshake have this version in every build, so that builds which have no version
// in common can still tell each other.
inline constexpr uint16_t kHandshakeVersion = 1;

enum class FrameKind : uint8_t {
    hello = 1,    // who connects; the first frame
    welcome = 2,  // who answers
    refuse = 3,   // or why it does not; the last frame
    request = 4,
    answer = 5,
    error = 6,    // the handler's
    refused = 7,  // the call was not handed to a handler
    ping = 8,     // asks for a sign of life
    pong = 9,     // a sign of life, asked for or not
};

struct FrameHeader {
    uint16_t version = kHandshakeVersion;
    FrameKind kind = FrameKind::ping;
    bool payload_is_checked = false;
    Method method = 0;  // request only
    uint16_t code = 0;  // refuse, error, refused: wire_of(Code)
    uint64_t id = 0;    // request and what answers it: never 0
    uint32_t body_bytes = 0;
    uint32_t payload_bytes = 0;
    uint32_t body_crc = 0;
    uint32_t payload_crc = 0;
    bool operator==(const FrameHeader&) const = default;
};

FrameHeaderBytes encode_frame_header(const FrameHeader& header);
// Believes nothing before the header's own CRC holds; lengths are within limits.h afterwards.
// Errors: corrupt.
Result<FrameHeader> decode_frame_header(const FrameHeaderBytes& bytes);

// Numbers of error codes on the wire: the same for ever.
uint16_t wire_of(Code code);
// A code of a newer build counts as outcome_unknown.
Code code_of_wire(uint16_t number);

// The body of hello and welcome.
struct Hello {
    ClusterId cluster;
    NodeId node;
    NodeId target;  // who it wants to talk to
    NodeBoot boot;
    VersionRange versions;
    Role role = Role::node;
    bool operator==(const Hello&) const = default;
};
inline constexpr uint32_t kHelloBytes = 64;
using HelloBytes = std::array<std::byte, kHelloBytes>;
HelloBytes encode_hello(const Hello& hello);
// Takes a longer one of a newer build. Errors: corrupt.
Result<Hello> decode_hello(Bytes bytes);

// Cuts to limits::kPeerErrorBytesMax, at a whole character.
std::string_view error_text(std::string_view message);
// The error that a refuse, error or refused frame carries.
Error error_of(uint16_t code, Bytes body);

// What both ends know of each other after the handshake.
struct Agreement {
    NodeId node;
    NodeBoot boot;
    Role role = Role::node;
    uint16_t version = 0;
};
// Whether `self` goes on with who says `hello`: right cluster, a version in common (the highest
// one), a name that the proven `identity` bears out (where there is one), and each the one that the
// other wants. `wanted` is 0 where anyone may come. Both ends ask this, so both can say why not.
// Errors: permission_denied (wrong cluster, node or proof), unsupported (no version in common).
Result<Agreement> agree(const Self& self, const Hello& hello, std::string_view identity,
                        NodeId wanted);

}  // namespace peplos::peer
