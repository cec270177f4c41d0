#pragma once

#include <boost/asio/io_context.hpp>

#include "runtime/task.h"

namespace peplos::runtime {

// What a loop must know of an io_context to sleep elsewhere than inside it.
//
// A Core sleeps in its io_uring, which also watches the io_context's epoll descriptor: one kernel
// entry submits, waits and brings completions, where a sleep in epoll took six. Asio shows neither
// that descriptor nor whether handlers are queued, and another thread's post signals the descriptor
// only while Asio believes that somebody waits on it. These four facts are read here, past Asio's
// access control, and nowhere else; see docs/decisions/20261122-sleep-in-the-ring.md.
//
// Only the thread that runs the io_context calls it, and never from one of its handlers.
class Reactor {
  public:
    explicit Reactor(asio::io_context& context);

    // Readable when the io_context's descriptors or timers have news.
    int fd() const;
    // poll() would run a handler without looking at descriptors first.
    bool has_ready() const;
    // From here to leave() a post by another thread makes fd() readable. False, and nothing to
    // leave, when handlers are ready already.
    bool enter();
    void leave();

  private:
    asio::io_context& context_;
};

}  // namespace peplos::runtime
