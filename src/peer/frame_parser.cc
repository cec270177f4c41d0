#include "peer/frame_parser.h"

#include <algorithm>

#include "base/crc32c.h"

namespace peplos::peer {
namespace {

constexpr size_t kInputBytes = 128 * kKiB;
// From here on the rest of a payload is read in place; below, one read for many frames is cheaper
// than one copy less.
constexpr size_t kInPlaceBytesMin = 32 * kKiB;

bool is_of_handshake(FrameKind kind) {
    return kind <= FrameKind::refuse;
}

}  // namespace

FrameParser::FrameParser() : input_(Buffer::allocate(kInputBytes)) {}

void FrameParser::agree_on(uint16_t version) {
    version_ = version;
    in_handshake_ = false;
}

Buffer& FrameParser::payload_buffer() {
    auto& payload = frame_.message.payload;
    if (payload.empty() || last_buffer_bytes_ == payload.back().size()) {
        size_t rest = frame_.header.payload_bytes - payload_bytes_;
        payload.push_back(
            Buffer::allocate(std::min<size_t>(rest, limits::kPeerPayloadBufferBytes)));
        last_buffer_bytes_ = 0;
    }
    return payload.back();
}

Buffer FrameParser::target() {
    bool body_is_whole = has_header_ && body_bytes_ == frame_.header.body_bytes;
    size_t rest = body_is_whole ? frame_.header.payload_bytes - payload_bytes_ : 0;
    target_is_payload_ = waiting() == 0 && rest >= kInPlaceBytesMin;
    if (target_is_payload_) {
        Buffer& buffer = payload_buffer();
        return buffer.slice(last_buffer_bytes_, buffer.size() - last_buffer_bytes_);
    }
    if (begin_ != 0) {
        std::memmove(input_.data(), input_.data() + begin_, waiting());
        end_ -= begin_;
        begin_ = 0;
    }
    CHECK(end_ < input_.size(), "frames were not taken");
    return input_.slice(end_, input_.size() - end_);
}

void FrameParser::put(size_t bytes) {
    if (target_is_payload_) {
        payload_bytes_ += bytes;
        last_buffer_bytes_ += bytes;
        CHECK(last_buffer_bytes_ <= frame_.message.payload.back().size());
    } else {
        end_ += bytes;
        CHECK(end_ <= input_.size());
    }
}

Result<bool> FrameParser::take_header() {
    if (waiting() < kFrameHeaderBytes) return false;
    FrameHeaderBytes bytes;
    std::memcpy(bytes.data(), input_.data() + begin_, bytes.size());
    TRY_ASSIGN(FrameHeader header, decode_frame_header(bytes));
    if (header.version != version_) {
        return fail(Code::unsupported, "a frame of version {}, agreed was {}", header.version,
                    version_);
    }
    if (in_handshake_ != is_of_handshake(header.kind)) {
        return fail(Code::corrupt, "a frame of kind {} at the wrong time",
                    static_cast<int>(header.kind));
    }
    begin_ += kFrameHeaderBytes;
    has_header_ = true;
    frame_.header = header;
    bool is_unchecked = header.payload_bytes != 0 && !header.payload_is_checked;
    frame_.message.payload_check = is_unchecked ? PayloadCheck::by_caller : PayloadCheck::by_link;
    // Bounded: decode_frame_header() refuses more.
    frame_.message.body.resize(header.body_bytes);
    return true;
}

Result<bool> FrameParser::take_body() {
    auto& body = frame_.message.body;
    size_t count = std::min(waiting(), body.size() - body_bytes_);
    if (count != 0) std::memcpy(body.data() + body_bytes_, input_.data() + begin_, count);
    begin_ += count;
    body_bytes_ += count;
    if (body_bytes_ < body.size()) return false;
    if (crc32c(body) != frame_.header.body_crc)
        return fail(Code::corrupt, "a frame whose body's checksum does not hold");
    return true;
}

Result<bool> FrameParser::take_payload() {
    const FrameHeader& header = frame_.header;
    while (payload_bytes_ < header.payload_bytes && waiting() != 0) {
        Buffer& buffer = payload_buffer();
        size_t count = std::min(waiting(), buffer.size() - last_buffer_bytes_);
        std::memcpy(buffer.data() + last_buffer_bytes_, input_.data() + begin_, count);
        begin_ += count;
        payload_bytes_ += count;
        last_buffer_bytes_ += count;
    }
    if (payload_bytes_ < header.payload_bytes) return false;
    if (!header.payload_is_checked) return true;
    uint32_t crc = 0;
    for (const Buffer& buffer : frame_.message.payload)
        crc = crc32c(buffer.bytes(), crc);
    if (crc != header.payload_crc)
        return fail(Code::corrupt, "a frame whose payload's checksum does not hold");
    return true;
}

Result<std::optional<Frame>> FrameParser::next() {
    if (!has_header_) {
        TRY_ASSIGN(bool whole, take_header());
        if (!whole) return std::nullopt;
    }
    // Once a byte of the payload is there, the body was whole and its checksum held.
    if (payload_bytes_ == 0 && frame_.message.payload.empty()) {
        TRY_ASSIGN(bool whole, take_body());
        if (!whole) return std::nullopt;
    }
    TRY_ASSIGN(bool whole, take_payload());
    if (!whole) return std::nullopt;
    has_header_ = false;
    body_bytes_ = payload_bytes_ = last_buffer_bytes_ = 0;
    return std::exchange(frame_, Frame{});
}

}  // namespace peplos::peer
