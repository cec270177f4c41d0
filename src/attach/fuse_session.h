#pragma once

#include <functional>
#include <memory>
#include <vector>

#include "attach/fuse_protocol.h"
#include "base/buffer.h"
#include "base/ids.h"
#include "runtime/gate.h"
#include "runtime/readiness.h"
#include "volume/block_device.h"

namespace peplos::attach {

// Memory that a read of the FUSE device may fill before its length is known. One per core, shared
// by all sessions of it: a request is taken out of it before the next one is read.
class ReceiveBuffer {
  public:
    ReceiveBuffer() : tail_(Buffer::allocate(kRequestTailBytes)) {}
    std::array<std::byte, kRequestHeadBytes>& head() { return head_; }
    Buffer& tail() { return tail_; }
    // The first `bytes` of the tail as memory of their own. Small payloads are copied, so that an
    // overlay which keeps 4 KiB does not pin 1 MiB; large ones take the memory with them.
    Buffer take_payload(size_t bytes);

  private:
    std::array<std::byte, kRequestHeadBytes> head_{};
    Buffer tail_;
};

// Serves one volume as the one file of one FUSE connection. Lives on the storage core.
//
// Invariants
//   1. A request is answered at most once, and its memory is its own until then.
//   2. A request that cannot be answered because we are stopping is left unanswered: the kernel
//      hands it out again to the next daemon (resend()).
//   3. Every answer to a write follows the volume's durability; there is no cache here. So FSYNC is
//      answered with ENOSYS once, and the kernel spares us all further ones.
//   4. Nothing here blocks: the descriptor is non-blocking in both directions.
class FuseSession {
  public:
    struct Counters {
        uint64_t requests = 0;
        uint64_t resent = 0;
        uint64_t errors = 0;
    };

    // Takes `fd`, a /dev/fuse descriptor whose connection is (about to be) mounted.
    FuseSession(runtime::Executor executor, VolumeId id,
                std::shared_ptr<volume::BlockDevice> device, std::shared_ptr<ReceiveBuffer> receive,
                int fd);
    // Requires: stop() has resolved, or start() was never called.
    ~FuseSession();
    FuseSession(const FuseSession&) = delete;
    FuseSession& operator=(const FuseSession&) = delete;

    void start();
    // Makes the kernel queue again whatever a dead predecessor read and did not answer.
    // Errors: unsupported (kernel older than 6.9), unavailable (the connection is gone).
    Result<void> resend();
    // No further request is read; resolves when those that were read are answered. Idempotent.
    runtime::Task<void> stop();
    // The kernel ended the connection (unmounted or aborted).
    bool is_dead() const { return dead_; }
    bool is_stopping() const { return stopping_; }
    int fd() const { return readiness_.fd(); }
    const Counters& counters() const { return counters_; }

  private:
    enum class Step : uint8_t { again, drained, ended };

    // A task that serves one request after the other: starting a task per request would cost as
    // much as the rest of a small read.
    struct Server {
        FuseRequest request;
        Buffer payload;
        // Set while it waits in idle_.
        std::move_only_function<void()> resume;
    };

    runtime::Task<void> serve();
    // Has the request served at once, until it waits for the device.
    void hand_out(const FuseRequest& request, Buffer payload);
    runtime::Task<void> serve_requests(FuseRequest first, Buffer payload);
    runtime::Task<void> wait_for_request(Server& server);
    Step receive_one();
    void dispatch(const FuseRequest& request, size_t total);
    void answer_init(const FuseRequest& request);
    void answer_setattr(const FuseRequest& request);
    void answer_statfs(const FuseRequest& request);
    runtime::Task<void> serve_read(FuseRequest request);
    runtime::Task<void> serve_write(FuseRequest request, Buffer payload);
    runtime::Task<void> serve_fallocate(FuseRequest request);

    void reply(uint64_t unique, Bytes body);
    void reply_error(uint64_t unique, int error);
    // The volume's answer to a request: nothing at all while we are stopping.
    void reply_failure(uint64_t unique, const Error& error);
    template <typename T>
    void reply_struct(uint64_t unique, const T& body) {
        reply(unique, bytes_of(body));
    }

    runtime::Executor executor_;
    VolumeId id_;
    std::shared_ptr<volume::BlockDevice> device_;
    std::shared_ptr<ReceiveBuffer> receive_;
    runtime::Readiness readiness_;
    runtime::Gate gate_;
    runtime::WaitList room_;
    std::vector<Server*> idle_;
    Counters counters_;
    size_t in_flight_ = 0;
    bool stopping_ = false;
    bool dead_ = false;
};

}  // namespace peplos::attach
