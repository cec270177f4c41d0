#pragma once

#include <optional>

#include "peer/wire.h"

namespace peplos::peer {

struct Frame {
    FrameHeader header;
    Message message;
};

// Makes frames of a stream of bytes that nobody has vouched for. No I/O: the caller reads some
// bytes into target(), says how many they are, and takes frames until there is none. What is small
// is read many frames at once and copied out; a large payload is read to where it stays.
//
// Memory for a payload is taken as its bytes arrive, never by what a header claims.
class FrameParser {
  public:
    FrameParser();

    // Where the next bytes go: never empty. Requires: next() gave none since the last bytes.
    Buffer target();
    // That many bytes were put at the start of the last target().
    void put(size_t bytes);
    // The next whole frame, or none yet. Errors: corrupt, unsupported (a version that was not
    // agreed on): the stream is of no use any more.
    Result<std::optional<Frame>> next();

    // Of every frame that follows. At first those of the handshake alone.
    void agree_on(uint16_t version);

  private:
    Result<bool> take_header();
    Result<bool> take_body();
    Result<bool> take_payload();
    size_t waiting() const { return end_ - begin_; }
    // Room for more of the payload, in its last buffer or a new one.
    Buffer& payload_buffer();

    Buffer input_;
    size_t begin_ = 0;
    size_t end_ = 0;
    bool target_is_payload_ = false;
    uint16_t version_ = kHandshakeVersion;
    bool in_handshake_ = true;

    bool has_header_ = false;
    Frame frame_;
    size_t body_bytes_ = 0;
    // Of the payload: in all, and in its last buffer.
    size_t payload_bytes_ = 0;
    size_t last_buffer_bytes_ = 0;
};

}  // namespace peplos::peer
