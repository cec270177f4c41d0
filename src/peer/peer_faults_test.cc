#include <gtest/gtest.h>

#include "peer/peer_test_rig.h"

// Calls under every fault that the network and the processes of both ends can have: each one ends
// in time and its outcome is true.
namespace peplos::peer {
namespace {

using std::chrono::milliseconds;
using std::chrono::seconds;

class Nemesis {
  public:
    explicit Nemesis(PeerRig& rig) : rig_(rig), random_(rig.world.random()) {}

    void act() {
        sim::NetFabric& net = rig_.world.net();
        sim::Process& a = *rig_.client;
        sim::Process& b = *rig_.server_process;
        switch (random_.pick(14)) {
            case 0:
                return net.reset(a, b);
            case 1:
                return net.reset_after(a, b, random_.pick(10'000));
            case 2:
                return net.reset_after(b, a, random_.pick(10'000));
            case 3:
                return net.half_open(a, b);
            case 4:
                return net.half_open(b, a);
            case 5:
                return net.partition(a, b);
            case 6:
                return net.partition_one_way(a, b);
            case 7:
                return net.partition_one_way(b, a);
            case 8:
                return net.set_profile(random_.chance(500) ? slow() : sim::NetProfile{});
            case 9:
                rig_.end_server(random_.chance(500));
                return rig_.start_server();
            case 10:
                if (random_.chance(300)) rig_.end_client(random_.chance(500));
                return;
            case 11:
                return rig_.world.pause(milliseconds(random_.pick(3) == 0 ? 1500 : 20));
            default:
                return net.heal();
        }
    }

  private:
    static sim::NetProfile slow() {
        sim::NetProfile profile;
        profile.spike_permille = 100;
        profile.bytes_per_second = 4 * kMiB;
        profile.buffer_bytes = 64 * kKiB;
        profile.short_read_permille = 500;
        return profile;
    }

    PeerRig& rig_;
    sim::Random& random_;
};

struct Seen {
    size_t answered = 0;
    size_t unavailable = 0;
    size_t unknown = 0;
    size_t unknown_and_executed = 0;
    size_t failed = 0;
    size_t busy = 0;
    uint64_t hash = 0;
};

void count(const PeerRig& rig, Seen& seen) {
    for (const PeerRig::Call& call : rig.calls) {
        if (!call.outcome.has_value()) continue;
        if (call.outcome->has_value()) {
            ++seen.answered;
            continue;
        }
        Code code = call.outcome->error().code();
        seen.unavailable += code == Code::unavailable;
        seen.failed += code == Code::conflict;
        seen.busy += code == Code::busy;
        seen.unknown += code == Code::outcome_unknown;
        seen.unknown_and_executed += code == Code::outcome_unknown && call.starts == 1;
    }
    seen.hash = rig.world.event_hash();
}

// A pause of the whole world makes deadlines pass unseen; calls of that time are late by it.
void run(uint64_t seed, Seen& seen) {
    PeerRig rig(seed);
    // In half of the runs calls wait for room.
    if (seed % 2 == 0) rig.bounds = {.calls_max = 4, .bytes_max = 64 * kKiB};
    rig.start_client();
    rig.calls.reserve(10'000);
    rig.start_server();
    Nemesis nemesis(rig);
    sim::Random& random = rig.world.random();
    for (int i = 0; i < 150; ++i) {
        for (uint64_t calls = random.pick(8); calls != 0; --calls) {
            Duration timeout = milliseconds(20 + random.pick(3) * 400);
            rig.begin_call(timeout, random.chance(200) ? 4096 << random.pick(8) : 0);
        }
        rig.world.run_for(std::chrono::microseconds(random.pick(60'000)));
        Time before = rig.world.now();
        if (random.chance(400)) nemesis.act();
        Duration paused = rig.world.now() - before;
        for (PeerRig::Call& call : rig.calls) {
            if (!call.outcome.has_value()) call.deadline += paused;
        }
    }
    rig.world.net().heal();
    rig.world.net().set_profile(sim::NetProfile{});
    rig.world.run_for(seconds(3));
    ASSERT_EQ(rig.judge(), "") << "seed " << seed;
    auto works = rig.call(kEcho, {}, seconds(10));
    EXPECT_TRUE(works) << "seed " << seed << ": " << works.error().text();
    rig.stop();
    count(rig, seen);
}

TEST(PeerFaults, EveryOutcomeIsTrue) {
    Seen seen;
    for (uint64_t seed = 1; seed <= 40 && !testing::Test::HasFailure(); ++seed)
        run(seed, seen);
    // Each of them was put to the test.
    EXPECT_GT(seen.answered, 1000u);
    EXPECT_GT(seen.unavailable, 100u);
    EXPECT_GT(seen.failed, 100u);
    EXPECT_GT(seen.busy, 10u);
    EXPECT_GT(seen.unknown, 100u);
    EXPECT_GT(seen.unknown_and_executed, 50u);
    EXPECT_GT(seen.unknown, seen.unknown_and_executed);
}

TEST(PeerFaults, TheSameSeedIsTheSameRun) {
    Seen first;
    Seen second;
    run(77, first);
    run(77, second);
    EXPECT_EQ(first.hash, second.hash);
    EXPECT_EQ(first.answered, second.answered);
}

// Either process dies at every event of a call's life.
TEST(PeerFaults, ADeathAtEveryEvent) {
    for (bool server_dies : {true, false}) {
        size_t unknown_and_executed = 0;
        for (uint64_t events = 0; events < 250; ++events) {
            PeerRig rig(events % 3);
            rig.work_max = milliseconds(1);
            rig.calls.reserve(10);
            rig.start_server();
            for (int i = 0; i < 3; ++i)
                rig.begin_call(seconds(2), 8192);
            for (uint64_t i = 0; i < events; ++i)
                rig.world.step();
            server_dies ? rig.end_server(events % 2 == 0) : rig.end_client(events % 2 == 0);
            if (server_dies) rig.start_server();
            rig.world.run_for(seconds(3));
            ASSERT_EQ(rig.judge(), "") << events;
            for (const auto& call : rig.calls)
                unknown_and_executed +=
                    call.outcome.has_value() && !*call.outcome && call.starts == 1;
            EXPECT_TRUE(rig.call(kEcho, {}, seconds(5))) << events;
            rig.stop();
        }
        if (server_dies) EXPECT_GT(unknown_and_executed, 0u);
    }
}

// The connection breaks at every byte of a request and of an answer.
TEST(PeerFaults, ALossAtEveryByte) {
    size_t executed = 0;
    for (bool is_request : {true, false}) {
        for (uint64_t bytes = 1; bytes < 4096 + 200; bytes += bytes < 120 ? 1 : 97) {
            PeerRig rig(bytes);
            rig.calls.reserve(10);
            rig.start_server();
            ASSERT_TRUE(rig.call(kEcho, {}));
            sim::Process& from = is_request ? *rig.client : *rig.server_process;
            sim::Process& to = is_request ? *rig.server_process : *rig.client;
            rig.world.net().reset_after(from, to, bytes);
            rig.begin_call(seconds(2), 4096);
            rig.begin_call(seconds(2), 4096);
            rig.world.run_for(seconds(3));
            ASSERT_EQ(rig.judge(), "") << bytes;
            executed += rig.starts.size();
            rig.stop();
        }
    }
    EXPECT_GT(executed, 100u);
}

}  // namespace
}  // namespace peplos::peer
