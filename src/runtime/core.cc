#include "runtime/core.h"

#include <boost/asio/buffer.hpp>
#include <chrono>
#include <pthread.h>
#include <unistd.h>

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
    int fd = dup(ring_->event_fd());
    CHECK(fd >= 0, "dup of an eventfd failed: {}", errno);
    event_.assign(fd);
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
        context_.poll();
        ring_->submit();
        if (stopping_ || !next_turn_.empty() || ring_->has_finished()) continue;
        if (ring_->in_flight_count() != 0 && spin_for_completion()) continue;
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
    if (options_.spin_max <= Duration::zero()) return false;
    auto end = std::chrono::steady_clock::now() + options_.spin_max;
    while (std::chrono::steady_clock::now() < end) {
        for (int i = 0; i < 64; ++i) {
            if (ring_->has_finished()) return true;
            __builtin_ia32_pause();
        }
    }
    return false;
}

// The event is enabled before the last look: what finishes after the look is signalled.
void Core::sleep() {
    arm_event();
    ring_->enable_event(true);
    std::atomic_thread_fence(std::memory_order_seq_cst);
    if (!ring_->has_finished()) context_.run_one();
    ring_->enable_event(false);
}

void Core::arm_event() {
    if (std::exchange(event_armed_, true)) return;
    event_.async_read_some(asio::buffer(&event_value_, sizeof(event_value_)),
                           [this](boost::system::error_code, size_t) { event_armed_ = false; });
}

}  // namespace peplos::runtime
