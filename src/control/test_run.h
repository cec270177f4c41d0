#pragma once

#include <boost/asio/executor_work_guard.hpp>
#include <boost/asio/io_context.hpp>
#include <chrono>
#include <optional>

#include "base/check.h"
#include "runtime/task.h"

namespace peplos::control {

// Runs `context` until `value` is set, also when that takes another thread.
template <typename T>
void run_until_set(boost::asio::io_context& context, const std::optional<T>& value) {
    auto guard = boost::asio::make_work_guard(context);
    context.restart();
    auto deadline = std::chrono::steady_clock::now() + std::chrono::seconds(20);
    while (!value) {
        context.run_one_for(std::chrono::seconds(1));
        CHECK(std::chrono::steady_clock::now() < deadline, "a task did not end in 20 s");
    }
}

// Runs `task` on `context` until it has ended and returns its value.
template <typename T>
T run_task(boost::asio::io_context& context, runtime::Task<T> task) {
    std::optional<T> out;
    runtime::spawn(context.get_executor(),
                   [](runtime::Task<T> inner, std::optional<T>& to) -> runtime::Task<void> {
                       to.emplace(co_await std::move(inner));
                   }(std::move(task), out));
    run_until_set(context, out);
    return std::move(*out);
}

}  // namespace peplos::control
