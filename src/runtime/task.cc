#include "runtime/task.h"

#include <boost/asio/co_spawn.hpp>
#include <exception>

#include "base/check.h"
#include "runtime/core.h"

namespace peplos::runtime {

void spawn(Executor executor, Task<void> task) {
    if (executor_of_task != nullptr) executor = executor_of_task(executor);
    asio::post(executor, [executor, task = std::move(task)]() mutable {
        auto run = [](Task<void> inner) -> Task<void> {
            co_await asio::this_coro::throw_if_cancelled(false);
            co_await std::move(inner);
        };
        asio::co_spawn(executor, run(std::move(task)), [](std::exception_ptr error) {
            if (!error) return;
            try {
                std::rethrow_exception(error);
            } catch (const std::exception& e) {
                CHECK(false, "an exception escaped a task: {}", e.what());
            }
        });
    });
}

// On a core it waits for the loop's next turn: posted again and again it would keep the loop from
// its ring.
Task<void> yield() {
    Executor executor = co_await asio::this_coro::executor;
    Core* core = Core::current();
    if (core != nullptr && &asio::query(executor, asio::execution::context) == &core->context()) {
        co_await asio::async_initiate<const asio::use_awaitable_t<Executor>, void()>(
            [](auto handler, Core* c) { c->post_next_turn(std::move(handler)); }, kUseTask, core);
    } else {
        co_await asio::post(executor, kUseTask);
    }
}

}  // namespace peplos::runtime
