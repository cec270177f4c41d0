#pragma once

#include <boost/asio/as_tuple.hpp>
#include <boost/asio/steady_timer.hpp>
#include <memory>
#include <set>
#include <string>

#include "base/log.h"
#include "base/units.h"
#include "runtime/task.h"

// Calls from a door to the node, each with a deadline: a door answers even when the node does not.
namespace peplos::http {

// What an unanswered call may have done, which decides what the user is told.
enum class Effect : uint8_t { reads, changes };

// Lives on the door's executor. A call that passed its deadline goes on in the node and owns all
// it touches (never the door); the calls in flight are counted, so a node that hangs makes the
// door say `busy`, it does not make the door grow.
class Calls {
  public:
    static constexpr size_t kInFlightCountMax = 1024;

    // `node` is the executor that the calls run on.
    Calls(runtime::Executor home, runtime::Executor node)
        : state_(std::make_shared<State>(std::move(home), std::move(node))) {}

    // Runs make() -> Task<Result<T>> on the node's executor and returns its result.
    // `what` begins the message: "creating volume \"x\"". When the result comes after the deadline
    // `late(Result<T>)` gets it, on the door's executor.
    // Errors: those of the call; outcome_unknown (changes) or unavailable (reads) after `limit`;
    // busy; stopping.
    template <typename Make, typename Late>
    auto ask(std::string what, Effect effect, Duration limit, Make make, Late late)
        -> std::invoke_result_t<Make&>;
    template <typename Make>
    auto ask(std::string what, Effect effect, Duration limit, Make make) {
        auto ignore = [](auto) {};
        return ask(std::move(what), effect, limit, std::move(make), ignore);
    }

    // From now on every call, also those in flight, answers `stopping` at once.
    void give_up() {
        state_->stopped = true;
        for (Timer* timer : state_->timers)
            timer->cancel();
    }
    size_t in_flight_count() const { return state_->in_flight; }

  private:
    using Timer =
        boost::asio::basic_waitable_timer<std::chrono::steady_clock,
                                          boost::asio::wait_traits<std::chrono::steady_clock>,
                                          runtime::Executor>;
    struct State {
        State(runtime::Executor h, runtime::Executor n) : home(std::move(h)), node(std::move(n)) {}
        runtime::Executor home;
        runtime::Executor node;
        size_t in_flight = 0;
        std::set<Timer*> timers;
        bool stopped = false;
    };
    template <typename R>
    struct Call {
        explicit Call(const runtime::Executor& home) : timer(home) {}
        Timer timer;
        std::unique_ptr<R> result;
        bool abandoned = false;
    };

    template <typename R, typename Make, typename Late>
    static runtime::Task<void> carry(std::shared_ptr<State> state, std::shared_ptr<Call<R>> call,
                                     Make make, Late late) {
        R result = co_await runtime::call_on(state->node, std::move(make));
        --state->in_flight;
        if (call->abandoned) {
            late(std::move(result));
            co_return;
        }
        call->result = std::make_unique<R>(std::move(result));
        call->timer.cancel();
    }
    static Error overdue(const std::string& what, Effect effect, Duration limit);

    std::shared_ptr<State> state_;
};

inline Error Calls::overdue(const std::string& what, Effect effect, Duration limit) {
    LOG_WARN("a call to the node is overdue call=\"{}\" limit_ms={}", what,
             std::chrono::duration_cast<std::chrono::milliseconds>(limit).count());
    double seconds = std::chrono::duration<double>(limit).count();
    if (effect == Effect::reads) {
        return Error(Code::unavailable,
                     fmt::format("{} was not answered within {} s: the node is overloaded or a "
                                 "device hangs; see `peplos doctor`, then repeat",
                                 what, seconds));
    }
    return Error(Code::outcome_unknown,
                 fmt::format("{} did not finish within {} s and goes on in the background: the "
                             "node is overloaded or a device hangs; see `peplos doctor`, then "
                             "repeat the command (repeating is safe)",
                             what, seconds));
}

template <typename Make, typename Late>
auto Calls::ask(std::string what, Effect effect, Duration limit, Make make, Late late)
    -> std::invoke_result_t<Make&> {
    using R = typename runtime::detail::TaskValue<std::invoke_result_t<Make&>>::type;
    std::shared_ptr<State> state = state_;  // this object may go while we wait
    if (state->stopped) co_return fail(Code::stopping, "{}: peplosd is stopping", what);
    if (state->in_flight >= kInFlightCountMax) {
        co_return fail(Code::busy, "{}: {} calls already wait for the node; see `peplos doctor`",
                       what, state->in_flight);
    }
    auto call = std::make_shared<Call<R>>(state->home);
    call->timer.expires_after(limit);
    ++state->in_flight;
    state->timers.insert(&call->timer);
    runtime::spawn(state->home, carry<R>(state, call, std::move(make), std::move(late)));
    auto token = boost::asio::as_tuple(runtime::kUseTask);
    co_await call->timer.async_wait(token);
    state->timers.erase(&call->timer);
    if (call->result != nullptr) co_return std::move(*call->result);
    call->abandoned = true;
    if (state->stopped) {
        co_return fail(Code::stopping, "{} was cut short because peplosd is stopping: repeat it",
                       what);
    }
    co_return fail(overdue(what, effect, limit));
}

}  // namespace peplos::http
