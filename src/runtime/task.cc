#include "runtime/task.h"

#include <exception>

#include <boost/asio/co_spawn.hpp>

#include "base/check.h"

namespace peplos::runtime {

void spawn(Executor executor, Task<void> task) {
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

Task<void> yield() { co_await asio::post(co_await asio::this_coro::executor, kUseTask); }

}  // namespace peplos::runtime
