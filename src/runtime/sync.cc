#include "runtime/sync.h"

namespace peplos::runtime {

namespace detail {

// The service of an execution context that knows every task that waits there.
class WaitingTasks final : public asio::execution_context::service {
  public:
    using key_type = WaitingTasks;
    static inline asio::execution_context::id id;

    explicit WaitingTasks(asio::execution_context& context) : service(context) {}
    // Destroys the tasks. One task's end may drop others.
    void shutdown() override {
        while (Waiter* waiter = waiters.front()) {
            WaitList::unlink(waiter);
            // The waiter stands on the stack that this destroys.
            auto dropped = std::move(waiter->resume);
        }
    }

    WaiterChain<&Waiter::in_context> waiters;
};

}  // namespace detail

WaitList::~WaitList() {
    while (detail::Waiter* waiter = waiters_.front()) {
        unlink(waiter);
        auto dropped = std::move(waiter->resume);
    }
}

void WaitList::unlink(detail::Waiter* waiter) {
    waiter->list->waiters_.remove(waiter);
    --waiter->list->count_;
    waiter->context->waiters.remove(waiter);
}

Task<void> WaitList::wait() {
    detail::Waiter waiter;
    waiter.executor = co_await asio::this_coro::executor;
    waiter.list = this;
    asio::execution_context* context = &asio::query(waiter.executor, asio::execution::context);
    if (context != context_) {
        context_ = context;
        waiting_tasks_ = &asio::use_service<detail::WaitingTasks>(*context);
    }
    waiter.context = waiting_tasks_;
    co_await asio::async_initiate<const asio::use_awaitable_t<Executor>, void()>(
        [](auto handler, WaitList* list, detail::Waiter* w) {
            w->resume = [h = std::move(handler)]() mutable { std::move(h)(); };
            list->waiters_.push_back(w);
            w->context->waiters.push_back(w);
            ++list->count_;
        },
        kUseTask, this, &waiter);
}

void WaitList::wake_one() {
    detail::Waiter* waiter = waiters_.front();
    if (waiter == nullptr) return;
    unlink(waiter);
    // Moved out first: on a dead executor the post destroys the stack that the waiter stands on.
    Executor executor = std::move(waiter->executor);
    auto resume = std::move(waiter->resume);
    asio::post(executor, std::move(resume));
}

void WaitList::wake_all() {
    for (size_t count = count_; count != 0 && count_ != 0; --count)
        wake_one();
}

Task<void> Semaphore::acquire(uint64_t count) {
    if (waiting_ == 0 && available_ >= count) {
        available_ -= count;
        co_return;
    }
    uint64_t ticket = ticket_next_++;
    ++waiting_;
    while (ticket != ticket_serving_ || available_ < count)
        co_await waiters_.wait();
    ++ticket_serving_;
    --waiting_;
    available_ -= count;
    if (waiting_ != 0) waiters_.wake_all();
}

}  // namespace peplos::runtime
