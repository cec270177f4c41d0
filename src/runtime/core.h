#pragma once

#include <atomic>
#include <boost/asio/executor_work_guard.hpp>
#include <boost/asio/io_context.hpp>
#include <thread>

#include "base/units.h"
#include "runtime/reactor.h"
#include "runtime/ring.h"
#include "runtime/task.h"

namespace peplos::runtime {

struct CoreOptions {
    // The thread's name, at most 15 characters.
    std::string name = "core";
    // Operations submitted at once; more may be in flight.
    uint32_t ring_entries = 512;
    // While disk operations are in flight and nothing else is ready, look for their end this long
    // before sleeping. Zero never spins.
    Duration spin_max{0};
};

// One thread's loop: the handlers of an io_context and the operations of an io_uring.
//
// A turn: take finished ring operations and resume their tasks; run every ready handler; submit
// what these prepared; sleep in the ring when nothing is left. The ring watches the io_context's
// epoll descriptor as well, so timers, sockets and other threads end that sleep too. An idle core
// costs nothing.
//
// Other rooms may use context() for their own descriptors (asio::posix::stream_descriptor) and
// ring() for their own operations; both only on the core's thread. Other threads reach a core by
// call_on(core.executor(), ...) or stop().
class Core {
  public:
    // Errors: unsupported (no io_uring), unavailable.
    static Result<std::unique_ptr<Core>> make(CoreOptions options);
    Core(const Core&) = delete;
    Core& operator=(const Core&) = delete;
    // Stops, and destroys suspended tasks without running
    // them. Objects that tasks use, and disks, are destroyed after their tasks: close the gates
    // before.
    ~Core();

    // Runs the loop on a thread of its own. Call start() or run(), once.
    void start();
    // Runs the loop on the calling thread until stop(), and then waits for what the kernel has in
    // hand: the tasks that wait for it are destroyed, not resumed.
    void run();
    // Ends the loop after the turn that runs now. Any thread, any number of times. After start() it
    // also waits for the thread, unless it is called on it.
    void stop();

    Executor executor() { return context_.get_executor(); }
    asio::io_context& context() { return context_; }
    Ring& ring() { return *ring_; }
    bool is_this_thread() const {
        return thread_id_.load(std::memory_order_relaxed) == std::this_thread::get_id();
    }

    // Calls `handler` in the next turn, after the ring had its chance (see yield()).
    void post_next_turn(std::move_only_function<void()> handler) {
        next_turn_.push_back(std::move(handler));
    }
    // Keeps `object` until the last operation of the ring has ended.
    void keep(std::shared_ptr<void> object) { kept_.push_back(std::move(object)); }
    // Turns of the loop so far; one per wake-up when little happens. The core's thread only.
    uint64_t turn_count() const { return turn_count_; }
    // The core of the calling thread; null elsewhere.
    static Core* current();

  private:
    Core(CoreOptions options, std::unique_ptr<Ring> ring);
    void loop();
    // Runs what yielded in the turn before.
    void run_next_turn();
    bool spin_for_completion();
    void sleep();
    // Lets the ring tell of news on the io_context's descriptors, once.
    void watch_reactor();
    static void reactor_has_news(RingOperation* base, int32_t result);
    struct Watch : RingOperation {
        Core* core = nullptr;
        bool armed = false;
    };

    CoreOptions options_;
    std::vector<std::shared_ptr<void>> kept_;
    std::unique_ptr<Ring> ring_;
    // One thread runs it; others only post.
    asio::io_context context_{1};
    asio::executor_work_guard<asio::io_context::executor_type> work_{context_.get_executor()};
    Reactor reactor_{context_};
    Watch watch_;
    bool reactor_news_ = false;
    bool stopping_ = false;
    uint64_t turn_count_ = 0;
    std::vector<std::move_only_function<void()>> next_turn_;
    std::atomic<std::thread::id> thread_id_{};
    std::thread thread_;
};

}  // namespace peplos::runtime
