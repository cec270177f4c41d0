#include "runtime/sync.h"

namespace peplos::runtime {

Task<void> WaitList::wait() {
    Executor executor = co_await asio::this_coro::executor;
    co_await asio::async_initiate<const asio::use_awaitable_t<Executor>, void()>(
        [this, executor](auto handler) {
            waiters_.push_back({executor, [h = std::move(handler)]() mutable { std::move(h)(); }});
        },
        kUseTask);
}

void WaitList::wake_one() {
    if (waiters_.empty()) return;
    Waiter waiter = std::move(waiters_.front());
    waiters_.pop_front();
    asio::post(waiter.executor, std::move(waiter.resume));
}

void WaitList::wake_all() {
    size_t count = waiters_.size();
    for (size_t i = 0; i < count; ++i) wake_one();
}

Task<void> Semaphore::acquire(uint64_t count) {
    if (waiting_ == 0 && available_ >= count) {
        available_ -= count;
        co_return;
    }
    uint64_t ticket = ticket_next_++;
    ++waiting_;
    while (ticket != ticket_serving_ || available_ < count) co_await waiters_.wait();
    ++ticket_serving_;
    --waiting_;
    available_ -= count;
    if (waiting_ != 0) waiters_.wake_all();
}

}  // namespace peplos::runtime
