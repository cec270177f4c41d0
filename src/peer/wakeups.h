#pragma once

#include <functional>
#include <memory>
#include <vector>

#include "runtime/clock.h"

namespace peplos::peer {

// One timer for many deadlines: calls `wake` at (or soon after) each time that was armed. A time is
// armed only when no earlier one is, so whoever is woken looks at everything that has become due,
// and arms the next. Costs one sleeping task for many calls; nothing when none is armed.
class Wakeups {
  public:
    Wakeups(runtime::Executor executor, runtime::Clock& clock, std::function<void()> wake)
        : executor_(std::move(executor)), clock_(clock), state_(std::make_shared<State>()) {
        state_->wake = std::move(wake);
    }
    Wakeups(const Wakeups&) = delete;
    Wakeups& operator=(const Wakeups&) = delete;
    ~Wakeups() { state_->wake = nullptr; }

    void arm(Time when) {
        auto& armed = state_->armed;
        if (!armed.empty() && armed.back() <= when) return;
        armed.push_back(when);
        runtime::spawn(executor_, sleep(clock_, when, state_));
    }

  private:
    struct State {
        std::vector<Time> armed;  // the earliest last
        std::function<void()> wake;
    };

    // The sleep may outlive its owner: it holds the state, and nothing else of ours.
    static runtime::Task<void> sleep(runtime::Clock& clock, Time when,
                                     std::shared_ptr<State> state) {
        co_await clock.sleep_until(when);
        std::erase(state->armed, when);
        if (state->wake) state->wake();
    }

    runtime::Executor executor_;
    runtime::Clock& clock_;
    std::shared_ptr<State> state_;
};

}  // namespace peplos::peer
