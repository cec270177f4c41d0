#include "runtime/system.h"

#include <future>
#include <gtest/gtest.h>
#include <set>

#include "runtime/child.h"

namespace peplos::runtime {
namespace {

using std::chrono::milliseconds;
using std::chrono::seconds;

class SystemTest : public testing::Test {
  protected:
    void SetUp() override {
        auto core = Core::make({.name = "system"});
        ASSERT_TRUE(core) << core.error().text();
        core_ = std::move(*core);
        system_ = std::make_unique<System>(core_.get());
        core_->start();
    }
    template <typename T>
    T run(Task<T> task) {
        std::promise<std::unique_ptr<T>> promise;
        auto keep = [](Task<T> inner, std::promise<std::unique_ptr<T>>& out) -> Task<void> {
            auto value = std::make_unique<T>(co_await std::move(inner));
            out.set_value(std::move(value));
        };
        spawn(core_->executor(), keep(std::move(task), promise));
        return std::move(*promise.get_future().get());
    }
    Env& env() { return system_->env(); }

    std::unique_ptr<Core> core_;
    std::unique_ptr<System> system_;
};

Task<Duration> sleep(Clock& clock, Duration duration) {
    Time start = clock.now();
    co_await clock.sleep_for(duration);
    co_return clock.now() - start;
}

TEST_F(SystemTest, SleepsNotLessThanAsked) {
    EXPECT_GE(run(sleep(env().clock, milliseconds(2))), milliseconds(2));
    EXPECT_GE(run(sleep(env().clock, milliseconds(-5))), milliseconds(0));
    EXPECT_GT(env().clock.wall_now().time_since_epoch(), seconds(1'700'000'000));
}

TEST_F(SystemTest, RandomNumbersDiffer) {
    std::set<uint64_t> seen;
    for (int i = 0; i < 1000; ++i)
        seen.insert(env().rng.next());
    EXPECT_EQ(seen.size(), 1000u);
    std::array<std::byte, 1000> large{};
    env().rng.fill(large);
    std::set<std::byte> tail(large.begin() + 900, large.end());
    EXPECT_GT(tail.size(), 10u);
}

Task<Result<std::string>> talk(Env& env) {
    CO_TRY_ASSIGN(auto listener, co_await env.net.listen("127.0.0.1:0"));
    CO_TRY_ASSIGN(auto client, co_await env.net.connect(listener->address(), seconds(5)));
    CO_TRY_ASSIGN(auto server, co_await listener->accept());
    std::vector<Buffer> parts{Buffer::copy_of(bytes_of_text("warp and ")),
                              Buffer::copy_of(bytes_of_text("weft"))};
    CO_TRY(co_await client->write(parts));
    Buffer heard = Buffer::allocate(13);
    CO_TRY(co_await server->read(heard));
    client->close();
    Buffer more = Buffer::allocate(1);
    auto ended = co_await server->read(more);
    if (ended || ended.error().code() != Code::unavailable) {
        co_return fail(Code::corrupt, "the end was not noticed");
    }
    std::string address = listener->address();
    listener.reset();
    auto refused = co_await env.net.connect(address, seconds(5));
    if (refused) co_return fail(Code::corrupt, "a closed listener answered");
    co_return std::string(reinterpret_cast<const char*>(heard.data()), heard.size());
}

TEST_F(SystemTest, TcpCarriesBytes) {
    auto heard = run(talk(env()));
    ASSERT_TRUE(heard) << heard.error().text();
    EXPECT_EQ(*heard, "warp and weft");
    auto no_host = run(env().net.connect("nowhere", seconds(1)));
    EXPECT_EQ(no_host.error().code(), Code::invalid_argument);
}

TEST(Address, IsHostAndPort) {
    EXPECT_EQ(parse_address("10.0.0.1:7000")->host, "10.0.0.1");
    EXPECT_EQ(parse_address("[::1]:7000")->host, "::1");
    for (std::string_view bad : {"", ":1", "a", "a:", "a:b", "a:65536", "::1:80", "a:-1"}) {
        EXPECT_FALSE(parse_address(bad)) << bad;
    }
}

TEST_F(SystemTest, ChildrenAreHeardAndJudged) {
    auto both = run(run_child({"sh", "-c", "echo out; echo err >&2; exit 3"}));
    ASSERT_TRUE(both) << both.error().text();
    EXPECT_EQ(both->exit_code, 3);
    EXPECT_EQ(both->output, "out\n");
    EXPECT_EQ(both->errors, "err\n");
    EXPECT_EQ(run(run_child_checked({"echo", "a b"})).value(), "a b\n");
    auto failed = run(run_child_checked({"sh", "-c", "echo broken >&2; exit 1"}));
    ASSERT_FALSE(failed);
    EXPECT_NE(failed.error().message().find("broken"), std::string::npos);
    EXPECT_EQ(run(run_child({"no-such-program"})).error().code(), Code::not_found);
    EXPECT_EQ(run(run_child({"sh", "-c", "kill -9 $$"}))->exit_code, 137);
}

TEST_F(SystemTest, ChildrenAreBounded) {
    auto large =
        run(run_child({"sh", "-c", "head -c 1000000 /dev/zero"}, {.output_bytes_max = 99}));
    ASSERT_TRUE(large);
    EXPECT_EQ(large->output.size(), 99u);
    auto endless = run(run_child({"sleep", "1000"}, {.time_max = milliseconds(20)}));
    ASSERT_FALSE(endless);
    EXPECT_EQ(endless.error().code(), Code::unavailable);
    EXPECT_NE(endless.error().message().find("sleep 1000"), std::string::npos);
    // A grandchild that keeps the pipe open is not waited for.
    auto left = run(run_child({"sh", "-c", "sleep 5 & echo done"}));
    ASSERT_TRUE(left);
    EXPECT_EQ(left->output, "done\n");
}

}  // namespace
}  // namespace peplos::runtime
