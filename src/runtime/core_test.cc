#include "runtime/core.h"

#include <boost/asio/steady_timer.hpp>
#include <fcntl.h>
#include <future>
#include <gtest/gtest.h>
#include <unistd.h>

#include "runtime/gate.h"
#include "runtime/readiness.h"

namespace peplos::runtime {
namespace {

std::unique_ptr<Core> make_core(std::string name = "test", Duration spin = {}) {
    auto core = Core::make({.name = std::move(name), .spin_max = spin});
    if (!core) throw std::runtime_error(core.error().text());
    return std::move(*core);
}

// Runs `task` on the core from this thread and waits for its value.
template <typename T>
T run_on(Core& core, Task<T> task) {
    std::promise<T> promise;
    auto keep = [](Task<T> inner, std::promise<T>& out) -> Task<void> {
        out.set_value(co_await std::move(inner));
    };
    spawn(core.executor(), keep(std::move(task), promise));
    return promise.get_future().get();
}

Task<int> add_afar(Core& other, int value) {
    Executor target = other.executor();
    for (int i = 0; i < 100; ++i) {
        value = co_await call_on(target, [value]() -> Task<int> { co_return value + 1; });
    }
    co_return value;
}

TEST(Core, CallsOtherCores) {
    auto a = make_core("a");
    auto b = make_core("b");
    a->start();
    b->start();
    EXPECT_EQ(run_on(*a, add_afar(*b, 5)), 105);
    EXPECT_EQ(run_on(*b, add_afar(*a, 7)), 107);
    a->stop();
    b->stop();
}

struct NoOperation : RingOperation {
    std::promise<int> promise;
};

Task<bool> submit_no_operation(Core& core, NoOperation& operation) {
    operation.complete = [](RingOperation* base, int32_t result) {
        static_cast<NoOperation*>(base)->promise.set_value(result);
    };
    io_uring_sqe* entry = core.ring().next_entry();
    io_uring_prep_nop(entry);
    core.ring().attach(entry, &operation);
    co_return true;
}

TEST(Core, CompletesOperationsOfOtherRooms) {
    auto core = make_core();
    core->start();
    for (int i = 0; i < 100; ++i) {
        NoOperation operation;
        run_on(*core, submit_no_operation(*core, operation));
        EXPECT_EQ(operation.promise.get_future().get(), 0);
    }
}

Task<void> yield_until(const bool& stop, uint64_t* count) {
    while (!stop) {
        co_await yield();
        ++*count;
    }
}
Task<uint64_t> operate_beside(Core& core) {
    bool stop = false;
    uint64_t count = 0;
    Gate gate;
    Executor executor = core.executor();
    gate.spawn(executor, yield_until(stop, &count));
    struct Mark : RingOperation {
        Event event;
    } mark;
    mark.complete = [](RingOperation* base, int32_t) { static_cast<Mark*>(base)->event.set(); };
    io_uring_sqe* entry = core.ring().next_entry();
    io_uring_prep_nop(entry);
    core.ring().attach(entry, &mark);
    co_await mark.event.wait();
    stop = true;
    co_await gate.close();
    co_return count;
}

TEST(Core, ATaskThatYieldsForEverDoesNotStarveTheRing) {
    auto core = make_core();
    core->start();
    EXPECT_GE(run_on(*core, operate_beside(*core)), 1u);
}

Task<void> wait_with(Event& event, std::shared_ptr<int> witness) {
    co_await event.wait();
    ++*witness;
}

TEST(Core, DestroysSuspendedTasksWithoutRunningThem) {
    auto witness = std::make_shared<int>(0);
    Event event;
    {
        auto core = make_core();
        core->start();
        spawn(core->executor(), wait_with(event, witness));
        run_on(*core, []() -> Task<bool> { co_return true; }());
    }
    EXPECT_EQ(*witness, 0);
    EXPECT_EQ(witness.use_count(), 1);
    EXPECT_EQ(event.is_set(), false);
}

Task<uint64_t> turns_of(Core& core) {
    co_return core.turn_count();
}

// A core that polled would turn thousands of times while the threads hand over.
TEST(Core, SleepsWhenThereIsNothingToDo) {
    auto core = make_core("idle", std::chrono::microseconds(50));
    core->start();
    uint64_t first = run_on(*core, turns_of(*core));
    uint64_t last = first;
    for (int i = 0; i < 200; ++i)
        last = run_on(*core, turns_of(*core));
    EXPECT_LE(last - first, 200u * 4);
    core->stop();
    core->stop();
}

// Each post finds the core on its way to sleep or asleep: one that is not noticed hangs here.
TEST(Core, IsWokenByAnotherThread) {
    auto core = make_core();
    core->start();
    for (int i = 0; i < 5000; ++i) {
        std::promise<void> done;
        asio::post(core->context(), [&done] { done.set_value(); });
        ASSERT_EQ(done.get_future().wait_for(std::chrono::seconds(20)), std::future_status::ready);
    }
}

Task<int> sleep_in_turns(Core& core) {
    int count = 0;
    for (; count < 20; ++count) {
        asio::steady_timer timer(core.context(), std::chrono::microseconds(200));
        co_await timer.async_wait(kUseTask);
    }
    co_return count;
}

TEST(Core, IsWokenByATimer) {
    auto core = make_core();
    core->start();
    EXPECT_EQ(run_on(*core, sleep_in_turns(*core)), 20);
}

// A read that nobody ends must not keep the core from going away.
TEST(Core, EndsWhileTheKernelHasWorkInHand) {
    int ends[2];
    ASSERT_EQ(pipe2(ends, O_NONBLOCK | O_CLOEXEC), 0);
    auto witness = std::make_shared<int>(0);
    auto wait = [](Core& on, int fd, std::shared_ptr<int> seen) -> Task<void> {
        Readiness readiness(on.executor(), fd);
        co_await readiness.wait();
        ++*seen;
    };
    {
        auto core = make_core();
        core->start();
        spawn(core->executor(), wait(*core, ends[0], witness));
        run_on(*core, []() -> Task<bool> { co_return true; }());
    }
    EXPECT_EQ(*witness, 0);
    EXPECT_EQ(witness.use_count(), 1);
    close(ends[1]);
}

Task<size_t> read_when_ready(Executor executor, int fd, size_t bytes) {
    Readiness readiness(executor, fd);
    size_t total = 0;
    std::array<char, 16> chunk{};
    while (total < bytes) {
        ssize_t count = read(fd, chunk.data(), chunk.size());
        if (count > 0) {
            total += static_cast<size_t>(count);
        } else {
            co_await readiness.wait();
        }
    }
    co_return total;
}

TEST(Readiness, TellsOfEveryWrite) {
    int ends[2];
    ASSERT_EQ(pipe2(ends, O_NONBLOCK | O_CLOEXEC), 0);
    auto core = make_core();
    core->start();
    std::thread writer([fd = ends[1]] {
        for (int i = 0; i < 2000; ++i) {
            while (write(fd, "x", 1) != 1)
                std::this_thread::yield();
        }
    });
    EXPECT_EQ(run_on(*core, read_when_ready(core->executor(), ends[0], 2000)), 2000u);
    writer.join();
    close(ends[1]);
}

Task<bool> cancel_wait(Executor executor, int fd) {
    Readiness readiness(executor, fd);
    Gate gate;
    gate.spawn(executor, readiness.wait());
    co_await yield();
    co_await yield();
    readiness.cancel();
    co_await gate.close();
    co_return true;
}

TEST(Readiness, AWaitCanBeCancelled) {
    int ends[2];
    ASSERT_EQ(pipe2(ends, O_NONBLOCK | O_CLOEXEC), 0);
    auto core = make_core();
    core->start();
    EXPECT_TRUE(run_on(*core, cancel_wait(core->executor(), ends[0])));
    close(ends[1]);
}

}  // namespace
}  // namespace peplos::runtime
