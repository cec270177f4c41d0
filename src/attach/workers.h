#pragma once

#include <boost/asio/executor_work_guard.hpp>
#include <boost/asio/thread_pool.hpp>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "base/result.h"
#include "base/units.h"
#include "runtime/task.h"

namespace peplos::attach {

struct ChildResult {
    int exit_code = -1;  // -1: killed by a signal or never started
    bool timed_out = false;
    std::string out;  // at most 64 KiB each
    std::string err;
};

// Runs a program and collects what it prints. After `limit` it is killed; one that the kernel
// cannot kill yet (it waits for I/O) is left to a reaper and reported as timed out. It inherits no
// descriptor but its standard ones. Blocks: call it on a worker.
ChildResult run_child(const std::vector<std::string>& argv, Duration limit);

// Threads for what may wait: children, and calls of the kernel that are short but not instant.
// Work must be bounded in time; it never touches objects of the core.
class Workers {
  public:
    static constexpr size_t kThreads = 8;
    Workers() : pool_(kThreads) {}
    // Waits for the work that runs.
    ~Workers() { pool_.join(); }

    // Runs `work` on a worker and brings its value back to the caller's executor.
    template <typename T>
    runtime::Task<T> run(std::function<T()> work) {
        runtime::Executor home = co_await boost::asio::this_coro::executor;
        auto& pool = pool_;
        std::unique_ptr<T> value = co_await boost::asio::async_initiate<
            const boost::asio::use_awaitable_t<runtime::Executor>, void(std::unique_ptr<T>)>(
            [home, &pool](auto handler, std::function<T()> w) {
                // The guard keeps the core's loop alive until the value is back.
                auto guard = boost::asio::make_work_guard(home);
                boost::asio::post(pool, [home, guard = std::move(guard),
                                         handler = std::move(handler), w = std::move(w)]() mutable {
                    auto result = std::make_unique<T>(w());
                    boost::asio::post(
                        home, [handler = std::move(handler), result = std::move(result)]() mutable {
                            std::move(handler)(std::move(result));
                        });
                });
            },
            runtime::kUseTask, std::move(work));
        co_return std::move(*value);
    }
    runtime::Task<ChildResult> child(std::vector<std::string> argv, Duration limit);

  private:
    boost::asio::thread_pool pool_;
};

}  // namespace peplos::attach
