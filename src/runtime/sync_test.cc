#include "runtime/sync.h"

#include <boost/asio/io_context.hpp>
#include <gtest/gtest.h>

#include "runtime/gate.h"

namespace peplos::runtime {
namespace {

Task<void> take(Semaphore& semaphore, uint64_t count, std::string* log, char name) {
    co_await semaphore.acquire(count);
    *log += name;
}

TEST(Semaphore, ServesWaitersInOrder) {
    asio::io_context context;
    Semaphore semaphore(1);
    std::string log;
    spawn(context.get_executor(), take(semaphore, 3, &log, 'a'));
    spawn(context.get_executor(), take(semaphore, 1, &log, 'b'));
    context.poll();
    EXPECT_EQ(log, "");
    semaphore.release(2);
    context.restart();
    context.poll();
    EXPECT_EQ(log, "a");
    semaphore.release(1);
    context.restart();
    context.poll();
    EXPECT_EQ(log, "ab");
    EXPECT_EQ(semaphore.available(), 0u);
}

TEST(Gate, CloseWaitsForWhatIsInside) {
    asio::io_context context;
    Gate gate;
    Event event;
    bool closed = false;
    gate.spawn(context.get_executor(), event.wait());
    spawn(context.get_executor(), [](Gate& g, bool& done) -> Task<void> {
        co_await g.close();
        done = true;
    }(gate, closed));
    context.poll();
    EXPECT_FALSE(closed);
    EXPECT_FALSE(gate.enter());
    event.set();
    context.restart();
    context.poll();
    EXPECT_TRUE(closed);
}

TEST(CallOn, BringsTheValueHome) {
    asio::io_context home, other;
    std::string value;
    spawn(home.get_executor(), [](Executor target, std::string& out) -> Task<void> {
        out = co_await call_on(target, []() -> Task<std::string> { co_return "from afar"; });
    }(other.get_executor(), value));
    home.poll();
    EXPECT_EQ(value, "");
    other.poll();
    home.restart();
    home.poll();
    EXPECT_EQ(value, "from afar");
}

}  // namespace
}  // namespace peplos::runtime
