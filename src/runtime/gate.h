#pragma once

#include "runtime/sync.h"

namespace peplos::runtime {

// Stopping a service has two problems: no new work may begin, and the work that runs still uses
// the service. A Gate solves both: work holds a pass; close() refuses new passes and waits until
// the last one is returned. Lives on one executor.
class Gate {
  public:
    class [[nodiscard]] Pass {
      public:
        explicit Pass(Gate* gate) : gate_(gate) { ++gate_->inside_; }
        Pass(Pass&& other) noexcept : gate_(std::exchange(other.gate_, nullptr)) {}
        Pass& operator=(Pass&&) = delete;
        ~Pass() {
            if (gate_ != nullptr) gate_->leave();
        }

      private:
        Gate* gate_;
    };

    // Errors: stopping.
    Result<Pass> enter() {
        if (closed_) return fail(Code::stopping, "the service is stopping");
        return Pass(this);
    }
    // Runs `task` in the background inside the gate; dropped unrun when the gate is closed.
    void spawn(Executor executor, Task<void> task) {
        if (closed_) return;
        runtime::spawn(std::move(executor), run(Pass(this), std::move(task)));
    }
    bool is_closed() const { return closed_; }
    size_t inside_count() const { return inside_; }
    // Idempotent. Never call it from inside the gate.
    Task<void> close() {
        closed_ = true;
        while (inside_ != 0)
            co_await empty_.wait();
    }

  private:
    static Task<void> run(Pass pass, Task<void> task) { co_await std::move(task); }
    void leave() {
        --inside_;
        if (inside_ == 0) empty_.wake_all();
    }

    size_t inside_ = 0;
    bool closed_ = false;
    WaitList empty_;
};

}  // namespace peplos::runtime
