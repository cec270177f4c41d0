#pragma once

#include <deque>
#include <memory>
#include <optional>

#include "base/check.h"
#include "runtime/task.h"

// Waiting between tasks of one executor. Nothing here is thread-safe: cores talk by call_on().
// Waiters are resumed through the executor, in the order in which they came, never inline.
namespace peplos::runtime {

// A list of suspended tasks.
class WaitList {
  public:
    // Suspends until a wake reaches this waiter. The condition must be checked again afterwards.
    Task<void> wait();
    void wake_one();
    void wake_all();
    size_t count() const { return waiters_.size(); }

  private:
    struct Waiter {
        Executor executor;
        std::move_only_function<void()> resume;
    };
    std::deque<Waiter> waiters_;
};

// Set once or many times; wait() returns at once while set.
class Event {
  public:
    void set() {
        set_ = true;
        waiters_.wake_all();
    }
    void reset() { set_ = false; }
    bool is_set() const { return set_; }
    Task<void> wait() {
        while (!set_) co_await waiters_.wait();
    }

  private:
    bool set_ = false;
    WaitList waiters_;
};

// A counted budget (bytes, slots). Waiters are served in order: a large request is not starved by
// small ones behind it.
class Semaphore {
  public:
    explicit Semaphore(uint64_t available) : available_(available) {}

    // Waits until `count` units are free and takes them. Requires: count <= the total ever added.
    Task<void> acquire(uint64_t count);
    bool try_acquire(uint64_t count) {
        if (waiting_ != 0 || available_ < count) return false;
        available_ -= count;
        return true;
    }
    void release(uint64_t count) {
        available_ += count;
        waiters_.wake_all();
    }
    uint64_t available() const { return available_; }
    size_t waiting() const { return waiting_; }

  private:
    uint64_t available_;
    uint64_t ticket_next_ = 0;
    uint64_t ticket_serving_ = 0;
    size_t waiting_ = 0;
    WaitList waiters_;
};

// Mutual exclusion over several awaits. Keep the guard in the locking scope.
class Mutex {
  public:
    class [[nodiscard]] Guard {
      public:
        explicit Guard(Mutex* mutex) : mutex_(mutex) {}
        Guard(Guard&& other) noexcept : mutex_(std::exchange(other.mutex_, nullptr)) {}
        Guard& operator=(Guard&&) = delete;
        ~Guard() {
            if (mutex_ != nullptr) mutex_->unlock();
        }

      private:
        Mutex* mutex_;
    };
    Task<Guard> lock() {
        co_await semaphore_.acquire(1);
        co_return Guard(this);
    }
    bool is_locked() const { return semaphore_.available() == 0; }

  private:
    void unlock() { semaphore_.release(1); }
    Semaphore semaphore_{1};
};

// One value from one task to one other. The value may be set before or after take() is called.
template <typename T>
class Promise {
  public:
    void set(T value) {
        CHECK(!value_.has_value(), "a promise is set once");
        value_.emplace(std::move(value));
        waiters_.wake_all();
    }
    bool is_set() const { return value_.has_value(); }
    // Call once.
    Task<T> take() {
        while (!value_.has_value()) co_await waiters_.wait();
        co_return std::move(*value_);
    }

  private:
    std::optional<T> value_;
    WaitList waiters_;
};

}  // namespace peplos::runtime
