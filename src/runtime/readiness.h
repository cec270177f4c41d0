#pragma once

#include <boost/asio/posix/stream_descriptor.hpp>
#include <memory>
#include <optional>

#include "runtime/core.h"

namespace peplos::runtime {

// Waits until a descriptor can be read: on a core through its ring, which costs no kernel entry of
// its own; on another io_context through Asio. Owns the descriptor. One waiter at a time.
class Readiness {
  public:
    // Takes `fd`, which is non-blocking.
    Readiness(Executor executor, int fd);
    Readiness(const Readiness&) = delete;
    Readiness& operator=(const Readiness&) = delete;
    // Requires: nobody waits. Closes the descriptor.
    ~Readiness();

    int fd() const { return fd_; }
    // Returns when a read would not block (also: would fail), or after cancel(). The caller reads
    // until EAGAIN before it waits again.
    Task<void> wait();
    // Ends a wait() under way.
    void cancel();

  private:
    struct Poll : RingOperation {
        std::move_only_function<void()> done;
    };

    Task<void> wait_on_ring();

    int fd_;
    // Where the ring serves: the core, and what the kernel has in hand while somebody waits.
    Core* core_ = nullptr;
    Poll poll_;
    // Elsewhere.
    std::optional<asio::posix::basic_stream_descriptor<Executor>> stream_;
};

}  // namespace peplos::runtime
