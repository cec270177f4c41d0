#include "runtime/core.h"

#include <chrono>
#include <poll.h>
#include <pthread.h>

#include "base/check.h"

namespace peplos::runtime {
namespace {

thread_local Core* current_core = nullptr;

}  // namespace

Core* Core::current() {
    return current_core;
}

Result<std::unique_ptr<Core>> Core::make(CoreOptions options) {
    TRY_ASSIGN(std::unique_ptr<Ring> ring, Ring::make(options.ring_entries));
    return std::unique_ptr<Core>(new Core(std::move(options), std::move(ring)));
}

Core::Core(CoreOptions options, std::unique_ptr<Ring> ring)
    : options_(std::move(options)), ring_(std::move(ring)) {
    watch_.core = this;
    watch_.is_endless = true;
    watch_.complete = reactor_has_news;
    watch_.drop = [](RingOperation* base) { static_cast<Watch*>(base)->armed = false; };
}

Core::~Core() {
    stop();
    ring_->wait_for_all();
    next_turn_.clear();
}

void Core::start() {
    CHECK(!thread_.joinable(), "a core is started once");
    thread_ = std::thread([this] { run(); });
    pthread_setname_np(thread_.native_handle(), options_.name.substr(0, 15).c_str());
}

void Core::run() {
    CHECK(current_core == nullptr, "one core per thread");
    current_core = this;
    thread_id_ = std::this_thread::get_id();
    ring_->enable();
    loop();
    // Here, since the kernel takes calls for a ring from one thread only.
    ring_->wait_for_all();
    current_core = nullptr;
}

void Core::stop() {
    asio::post(context_, [this] { stopping_ = true; });
    if (thread_.joinable() && !is_this_thread()) thread_.join();
}

void Core::loop() {
    while (!stopping_) {
        ++turn_count_;
        ring_->reap();
        run_next_turn();
        // Until no handler is ready.
        if (std::exchange(reactor_news_, false) || reactor_.has_ready()) context_.poll();
        watch_reactor();
        if (stopping_ || !next_turn_.empty() || ring_->has_finished()) {
            ring_->submit();
            continue;
        }
        if (options_.spin_max > Duration::zero() && ring_->in_flight_count() > 1) {
            ring_->submit();
            if (spin_for_completion()) continue;
        }
        sleep();
    }
}

void Core::run_next_turn() {
    if (next_turn_.empty()) return;
    auto handlers = std::exchange(next_turn_, {});
    for (auto& handler : handlers)
        handler();
}

bool Core::spin_for_completion() {
    auto end = std::chrono::steady_clock::now() + options_.spin_max;
    while (std::chrono::steady_clock::now() < end) {
        for (int i = 0; i < 64; ++i) {
            if (ring_->has_finished()) return true;
            __builtin_ia32_pause();
        }
    }
    return false;
}

// What another thread posts before enter() is seen there; after it, the descriptor tells.
void Core::sleep() {
    if (!reactor_.enter()) return;
    ring_->submit_and_wait();
    reactor_.leave();
}

// Armed anew after poll() has emptied the descriptor: arming looks at it first, so nothing is
// missed in between.
void Core::watch_reactor() {
    if (std::exchange(watch_.armed, true)) return;
    io_uring_sqe* entry = ring_->next_entry();
    io_uring_prep_poll_add(entry, reactor_.fd(), POLLIN);
    ring_->attach(entry, &watch_);
}

void Core::reactor_has_news(RingOperation* base, int32_t) {
    auto* watch = static_cast<Watch*>(base);
    watch->armed = false;
    watch->core->reactor_news_ = true;
}

}  // namespace peplos::runtime
