#pragma once

#include <boost/asio/any_io_executor.hpp>
#include <boost/asio/awaitable.hpp>
#include <boost/asio/post.hpp>
#include <boost/asio/this_coro.hpp>
#include <boost/asio/use_awaitable.hpp>
#include <functional>
#include <tuple>
#include <utility>

#include "base/result.h"

// Coroutines of Peplos.
//
// A Task is lazy, owned and awaited once. It runs on the executor of whoever awaits it; an object
// lives on one executor and its tasks run there. Storage rooms see only this header, sync.h,
// gate.h and the seams (clock.h, disk.h, net.h, rng.h): the simulator supplies another Executor and
// other seams, and the same code runs.
namespace peplos::runtime {

namespace asio = boost::asio;

using Executor = asio::any_io_executor;

template <typename T = void>
using Task = asio::awaitable<T, Executor>;

inline constexpr asio::use_awaitable_t<Executor> kUseTask{};

// Starts `task` on `executor`: always posted, never run inline. Cancellation never throws into it.
// An exception that escapes it aborts the process. Whoever spawns must outlive the task: use a
// Gate.
void spawn(Executor executor, Task<void> task);

// Set by the simulator; null in production. Gives each task that is spawned an executor of its own,
// over that of the spawner.
inline Executor (*executor_of_task)(const Executor& spawner) = nullptr;

// The executor that the calling task runs on.
inline Task<Executor> this_executor() {
    co_return co_await asio::this_coro::executor;
}

// Lets everything that is ready run before the caller goes on.
Task<void> yield();

// Runs `make()` on `target` and brings its value back to the caller's executor. This is the mailbox
// between cores: arguments and result are moved, nothing is shared.
// `make` is a callable returning Task<T>; it and its captures live until the task has ended.
template <typename Make>
auto call_on(Executor target, Make make) -> std::invoke_result_t<Make&>;

// ---- implementation ----

namespace detail {

template <typename T>
struct TaskValue;
template <typename T>
struct TaskValue<Task<T>> {
    using type = T;
};

template <typename Make, typename T, typename Handler>
Task<void> run_and_return(Make make, Executor home, Handler handler) {
    if constexpr (std::is_void_v<T>) {
        co_await make();
        asio::post(home, std::move(handler));
    } else {
        // Wrapped because Asio wants completion arguments that can be default-constructed.
        auto value = std::make_unique<T>(co_await make());
        asio::post(home, [handler = std::move(handler), value = std::move(value)]() mutable {
            std::move(handler)(std::move(value));
        });
    }
}

}  // namespace detail

template <typename Make>
auto call_on(Executor target, Make make) -> std::invoke_result_t<Make&> {
    using T = typename detail::TaskValue<std::invoke_result_t<Make&>>::type;
    Executor home = co_await asio::this_coro::executor;
    if constexpr (std::is_void_v<T>) {
        co_await asio::async_initiate<const asio::use_awaitable_t<Executor>, void()>(
            [target, home](auto handler, Make m) {
                spawn(target, detail::run_and_return<Make, T, decltype(handler)>(
                                  std::move(m), home, std::move(handler)));
            },
            kUseTask, std::move(make));
    } else {
        std::unique_ptr<T> value =
            co_await asio::async_initiate<const asio::use_awaitable_t<Executor>,
                                          void(std::unique_ptr<T>)>(
                [target, home](auto handler, Make m) {
                    spawn(target, detail::run_and_return<Make, T, decltype(handler)>(
                                      std::move(m), home, std::move(handler)));
                },
                kUseTask, std::move(make));
        co_return std::move(*value);
    }
}

}  // namespace peplos::runtime
