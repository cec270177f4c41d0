#include <gtest/gtest.h>

#include "sim/world.h"

namespace peplos::sim {
namespace {

using std::chrono::microseconds;
using std::chrono::milliseconds;
using std::chrono::seconds;
using ConnectionPtr = std::unique_ptr<runtime::Connection>;

Task<void> accept_one(runtime::Listener& listener, std::shared_ptr<ConnectionPtr> to) {
    auto accepted = co_await listener.accept();
    if (accepted) *to = std::move(*accepted);
}

Task<void> write_to(runtime::Connection& connection, size_t bytes,
                    std::shared_ptr<std::optional<Result<void>>> outcome) {
    std::vector<Buffer> parts{Buffer::zeroed(bytes)};
    *outcome = co_await connection.write(std::move(parts));
}

// How many bytes arrive until the connection ends, or until nothing comes.
Task<void> count_bytes(runtime::Connection& connection, std::shared_ptr<size_t> count,
                       std::shared_ptr<bool> ended) {
    while (true) {
        Buffer buffer = Buffer::allocate(10'000);
        auto some = co_await connection.read_some(buffer);
        if (!some) break;
        *count += *some;
    }
    *ended = true;
}

class SimNetTest : public testing::Test {
  protected:
    explicit SimNetTest(uint64_t seed = 3) : world_(seed) {}
    void SetUp() override {
        listener_ = world_.run(b_, b_.env().net.listen("b:1")).value();
        connect();
    }
    void connect() {
        auto accepted = std::make_shared<ConnectionPtr>();
        runtime::spawn(b_.executor(), accept_one(*listener_, accepted));
        at_a_ = world_.run(a_, a_.env().net.connect("b:1", seconds(1))).value();
        world_.run_for(milliseconds(1));
        at_b_ = std::move(*accepted);
        ASSERT_NE(at_b_, nullptr);
    }
    auto write(Process& process, ConnectionPtr& connection, size_t bytes) {
        auto outcome = std::make_shared<std::optional<Result<void>>>();
        runtime::spawn(process.executor(), write_to(*connection, bytes, outcome));
        return outcome;
    }
    void read(Process& process, ConnectionPtr& connection) {
        count_ = std::make_shared<size_t>(0);
        ended_ = std::make_shared<bool>(false);
        runtime::spawn(process.executor(), count_bytes(*connection, count_, ended_));
    }

    World world_;
    Process& a_ = world_.start("a");
    Process& b_ = world_.start("b");
    std::unique_ptr<runtime::Listener> listener_;
    ConnectionPtr at_a_;
    ConnectionPtr at_b_;
    std::shared_ptr<size_t> count_;
    std::shared_ptr<bool> ended_;
};

TEST_F(SimNetTest, AWriterWaitsForAReader) {
    auto outcome = write(a_, at_a_, 5 * kMiB);
    world_.run_for(seconds(10));
    EXPECT_FALSE(outcome->has_value());
    read(b_, at_b_);
    world_.run_for(seconds(1));
    ASSERT_TRUE(outcome->has_value());
    EXPECT_TRUE(outcome->value());
    EXPECT_EQ(*count_, 5 * kMiB);
    EXPECT_FALSE(*ended_);
    at_a_->close();
    world_.run_for(seconds(1));
    EXPECT_TRUE(*ended_);
}

TEST_F(SimNetTest, APartitionOfOneDirection) {
    world_.net().partition_one_way(a_, b_);
    read(b_, at_b_);
    auto held = write(a_, at_a_, 1000);
    world_.run_for(seconds(1));
    EXPECT_EQ(*count_, 0u);
    EXPECT_FALSE(world_.run(a_, a_.env().net.connect("b:1", milliseconds(100))));
    world_.net().heal(a_, b_);
    world_.run_for(seconds(1));
    EXPECT_EQ(*count_, 1000u);
    // The other way: bytes arrive, and their acknowledgements do not.
    world_.net().partition_one_way(b_, a_);
    auto stuck = write(a_, at_a_, 3 * kMiB);
    world_.run_for(seconds(1));
    EXPECT_FALSE(stuck->has_value());
    EXPECT_GT(*count_, 1000u);
    world_.net().heal();
    world_.run_for(seconds(1));
    EXPECT_EQ(*count_, 1000u + 3 * kMiB);
}

TEST_F(SimNetTest, ALongPartitionBreaksTheSendersEnd) {
    world_.net().partition(a_, b_);
    read(a_, at_a_);
    auto sent = write(a_, at_a_, 1000);
    world_.run_for(seconds(10));
    EXPECT_FALSE(*ended_);
    world_.run_for(seconds(10));
    EXPECT_TRUE(*ended_);
}

TEST_F(SimNetTest, WhoForgetsIsFoundOutBySending) {
    world_.net().half_open(a_, b_);
    read(b_, at_b_);
    world_.run_for(seconds(100));
    EXPECT_FALSE(*ended_);
    auto refused = write(a_, at_a_, 10);
    world_.run_for(milliseconds(10));
    ASSERT_TRUE(refused->has_value());
    EXPECT_FALSE(refused->value());
    auto sent = write(b_, at_b_, 10);
    world_.run_for(milliseconds(10));
    EXPECT_TRUE(*ended_);
}

TEST_F(SimNetTest, ALostMachineIsSilentUntilItIsBack) {
    read(a_, at_a_);
    listener_->close();
    world_.crash(b_);
    at_b_ = nullptr;
    world_.run_for(seconds(10));
    EXPECT_FALSE(*ended_);
    auto sent = write(a_, at_a_, 10);
    world_.run_for(seconds(5));
    EXPECT_FALSE(*ended_);
    world_.start("b");
    world_.run_for(seconds(1));
    EXPECT_TRUE(*ended_);
}

TEST_F(SimNetTest, AKilledProcessIsHeardOfAtOnce) {
    read(a_, at_a_);
    world_.kill(b_);
    at_b_ = nullptr;
    world_.run_for(milliseconds(10));
    EXPECT_TRUE(*ended_);
    auto refused = world_.run(a_, a_.env().net.connect("b:1", seconds(100)));
    EXPECT_FALSE(refused);
}

TEST_F(SimNetTest, AResetKeepsAPrefix) {
    std::set<size_t> prefixes;
    for (uint64_t round = 0; round < 30; ++round) {
        connect();
        read(b_, at_b_);
        world_.net().reset_after(a_, b_, 1 + round % 3 * 4000);
        auto sent = write(a_, at_a_, 10'000);
        world_.run_for(seconds(1));
        EXPECT_TRUE(*ended_);
        EXPECT_LE(*count_, 10'000u);
        prefixes.insert(*count_);
    }
    EXPECT_GT(prefixes.size(), 5u);
}

TEST_F(SimNetTest, LinksHaveDelaysSpikesAndBandwidth) {
    NetProfile slow;
    slow.delay = {milliseconds(10), milliseconds(10)};
    slow.bytes_per_second = 1 * kMiB;
    world_.net().set_profile(a_, b_, slow);
    read(b_, at_b_);
    auto sent = write(a_, at_a_, 512 * kKiB);
    world_.run_for(milliseconds(505));
    EXPECT_LT(*count_, 512 * kKiB);
    world_.run_for(milliseconds(20));
    EXPECT_EQ(*count_, 512 * kKiB);
    slow.bytes_per_second = 0;
    slow.spike_permille = 1000;
    slow.spike = {seconds(1), seconds(1)};
    world_.net().set_profile(a_, b_, slow);
    auto later = write(a_, at_a_, 1);
    world_.run_for(milliseconds(900));
    EXPECT_EQ(*count_, 512 * kKiB);
    world_.run_for(milliseconds(200));
    EXPECT_EQ(*count_, 512 * kKiB + 1);
}

TEST_F(SimNetTest, IdentityIsWhatTheTestSays) {
    EXPECT_EQ(at_a_->identity(), "");
    world_.net().set_identity("b", "bee");
    connect();
    EXPECT_EQ(at_a_->identity(), "bee");
    EXPECT_EQ(at_b_->identity(), "");
    EXPECT_EQ(world_.net().stream_count(a_, b_), 1u);
}

}  // namespace
}  // namespace peplos::sim
