#pragma once

#include <memory>

#include "runtime/clock.h"
#include "runtime/sync.h"

namespace peplos::runtime {

// A sleep that somebody else can end: background loops wait on it, stop() and news ring it.
// One waiter at a time; a ring while nobody waits makes the next wait return at once.
class Alarm {
  public:
    Alarm() : event_(std::make_shared<Event>()) {}

    // Returns after `duration` or as soon as ring() is called.
    Task<void> wait(Clock& clock, Duration duration) {
        // The timer may outlive the alarm: it holds the event, and nothing else of ours.
        spawn(co_await asio::this_coro::executor, set_later(clock, duration, event_));
        co_await event_->wait();
        event_ = std::make_shared<Event>();
    }
    // Waits for ring() alone.
    Task<void> wait() {
        co_await event_->wait();
        event_ = std::make_shared<Event>();
    }
    void ring() { event_->set(); }

  private:
    static Task<void> set_later(Clock& clock, Duration duration, std::shared_ptr<Event> event) {
        co_await clock.sleep_for(duration);
        event->set();
    }

    std::shared_ptr<Event> event_;
};

}  // namespace peplos::runtime
