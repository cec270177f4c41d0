#pragma once

#include <deque>
#include <memory>
#include <optional>

#include "base/check.h"
#include "runtime/task.h"

// Waiting between tasks of one executor. Nothing here is thread-safe: cores talk by call_on().
// Waiters are resumed through the executor, in the order in which they came, never inline.
namespace peplos::runtime {

class WaitList;

namespace detail {

class WaitingTasks;

// One suspended task. It stands in two lists at once: the one that will wake it, and the one of
// everything that waits on its executor's context, which destroys it when the context shuts down.
// It lives on the suspended task's own stack, so waiting allocates nothing.
struct Waiter {
    struct Links {
        Waiter* previous = nullptr;
        Waiter* next = nullptr;
    };
    Executor executor;
    std::move_only_function<void()> resume;
    Links in_list;
    Links in_context;
    WaitList* list = nullptr;
    WaitingTasks* context = nullptr;
};

template <Waiter::Links Waiter::* kLinks>
class WaiterChain {
  public:
    Waiter* front() const { return first_; }
    void push_back(Waiter* waiter) {
        (waiter->*kLinks) = {last_, nullptr};
        (last_ == nullptr ? first_ : (last_->*kLinks).next) = waiter;
        last_ = waiter;
    }
    void remove(Waiter* waiter) {
        Waiter::Links& links = waiter->*kLinks;
        (links.previous == nullptr ? first_ : (links.previous->*kLinks).next) = links.next;
        (links.next == nullptr ? last_ : (links.next->*kLinks).previous) = links.previous;
        links = {};
    }

  private:
    Waiter* first_ = nullptr;
    Waiter* last_ = nullptr;
};

}  // namespace detail

// A list of suspended tasks.
//
// A context that shuts down (a core that ends, a simulated process that is killed) destroys the
// tasks that wait on it, without running them, while the objects that they use still exist.
class WaitList {
  public:
    WaitList() = default;
    WaitList(const WaitList&) = delete;
    WaitList& operator=(const WaitList&) = delete;
    ~WaitList();

    // Suspends until a wake reaches this waiter. The condition must be checked again afterwards.
    Task<void> wait();
    void wake_one();
    void wake_all();
    size_t count() const { return count_; }

  private:
    friend class detail::WaitingTasks;

    // Takes it out of both lists.
    static void unlink(detail::Waiter* waiter);

    detail::WaiterChain<&detail::Waiter::in_list> waiters_;
    size_t count_ = 0;
    // The context of the last waiter, to spare a look-up per wait.
    asio::execution_context* context_ = nullptr;
    detail::WaitingTasks* waiting_tasks_ = nullptr;
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
        while (!set_)
            co_await waiters_.wait();
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
        while (!value_.has_value())
            co_await waiters_.wait();
        co_return std::move(*value_);
    }

  private:
    std::optional<T> value_;
    WaitList waiters_;
};

}  // namespace peplos::runtime
