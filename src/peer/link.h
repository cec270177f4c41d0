#pragma once

#include <memory>
#include <optional>

#include "peer/frame_parser.h"
#include "runtime/env.h"
#include "runtime/sync.h"

namespace peplos::peer {

// Frames that go out in one gather write.
class Batch {
  public:
    // Computes lengths and checksums; copies the body, shares the payload.
    void add(FrameHeader header, Message message);
    void add(FrameHeader header, Bytes body);
    bool empty() const { return bytes_ == 0; }
    // More can wait for the next write.
    bool is_full() const;
    uint64_t bytes() const { return bytes_; }
    std::vector<Buffer> take();

  private:
    void put(const FrameHeader& header, Bytes body);
    void end_slice();

    std::vector<Buffer> parts_;
    // Where headers and bodies are written, side by side as long as no payload comes between.
    Buffer chunk_;
    size_t slice_begin_ = 0;
    size_t used_ = 0;
    uint64_t bytes_ = 0;
};

// What a link sends: asked whenever it can write.
class Source {
  public:
    virtual ~Source() = default;
    virtual void fill(Batch& batch) = 0;
    // The last batch was written, or was not: the link is closed then.
    virtual void written() = 0;
};

// One connection as a stream of frames: a reader, a writer that sends all that waits as one gather
// write, and the handshake.
class Link {
  public:
    Link(runtime::Env& env, std::unique_ptr<runtime::Connection> connection);
    Link(const Link&) = delete;
    Link& operator=(const Link&) = delete;

    // ---- the handshake; before the writer runs ----

    // As who connects. Errors: what the other end or agree() refuses, corrupt, unavailable.
    runtime::Task<Result<Agreement>> introduce(Self self, NodeId wanted);
    // As who is connected to. A refusal is sent to the other end, too. Errors: likewise.
    runtime::Task<Result<Agreement>> receive_guest(Self self);

    // ---- afterwards ----

    // A frame that is there already, or none. Errors: corrupt, unsupported; the link is closed.
    Result<std::optional<Frame>> take();
    // Waits for more bytes. Errors: unavailable; the link is closed.
    runtime::Task<Result<void>> read_more();

    // Writes what `source` has until the link is closed. `source` outlives it.
    runtime::Task<void> write_loop(Source& source);
    // `source` has something.
    void wake_writer() { work_.wake_all(); }

    // Ends reads and writes under way. The first reason is kept.
    void close(Error why);
    bool is_closed() const { return why_.has_value(); }
    // Requires: closed.
    const Error& why() const { return *why_; }

    // From here on bytes are counted there.
    void count_into(Counters* counters);
    Time last_received() const { return last_received_; }
    Time last_sent() const { return last_sent_; }
    uint16_t version() const { return version_; }
    const std::string& peer() const { return connection_->peer(); }

  private:
    runtime::Task<Result<Frame>> receive();
    runtime::Task<Result<void>> send_now(FrameHeader header, Bytes body);
    void agree_on(uint16_t version);

    runtime::Env& env_;
    std::unique_ptr<runtime::Connection> connection_;
    FrameParser parser_;
    uint16_t version_ = kHandshakeVersion;
    runtime::WaitList work_;
    std::optional<Error> why_;
    Counters own_counters_;
    Counters* counters_ = &own_counters_;
    Time last_received_;
    Time last_sent_;
};

}  // namespace peplos::peer
