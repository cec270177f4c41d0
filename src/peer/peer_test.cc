#include <algorithm>
#include <gtest/gtest.h>

#include "peer/peer_test_rig.h"

namespace peplos::peer {
namespace {

using runtime::Task;
using std::chrono::milliseconds;
using std::chrono::seconds;

TEST(Peer, ACallIsAnswered) {
    PeerRig rig(1);
    rig.start_server();
    EXPECT_FALSE(rig.channel().is_connected());
    Message request;
    request.body = body_of("hello");
    request.payload = {Buffer::zeroed(4096), Buffer::zeroed(2 * kMiB)};
    request.payload[1].data()[kMiB + 5] = std::byte{7};
    auto answer = rig.call(kEcho, request);
    ASSERT_TRUE(answer) << answer.error().text();
    EXPECT_EQ(answer->body, request.body);
    EXPECT_EQ(answer->payload_bytes(), 4096 + 2 * kMiB);
    ASSERT_EQ(answer->payload.size(), 3u);
    EXPECT_EQ(answer->payload[1].data()[4096 + 5], std::byte{7});
    EXPECT_TRUE(rig.channel().is_connected());
    EXPECT_EQ(rig.channel().version(), 1);
    EXPECT_TRUE(rig.channel().node_boot());
    EXPECT_EQ(rig.server->connection_count(), 1u);
    auto unknown = rig.call(kUnknown, {});
    ASSERT_FALSE(unknown);
    EXPECT_EQ(unknown.error().code(), Code::unsupported);
    rig.stop();
}

TEST(Peer, TheHandlersErrorTravels) {
    PeerRig rig(2);
    rig.fail_permille = 1000;
    rig.start_server();
    rig.begin_call(seconds(1));
    rig.world.run_for(seconds(1));
    ASSERT_TRUE(rig.calls[0].outcome.has_value() && !*rig.calls[0].outcome);
    EXPECT_EQ(rig.calls[0].outcome->error().code(), Code::conflict);
    EXPECT_EQ(rig.calls[0].outcome->error().message(), "0");
    EXPECT_EQ(rig.channel().counters().calls_failed, 1u);
    EXPECT_EQ(rig.server->counters().at(NodeId(1)).calls_failed, 1u);
    rig.stop();
}

TEST(Peer, AnIdleConnectionStays) {
    PeerRig rig(3);
    rig.start_server();
    ASSERT_TRUE(rig.call(kEcho, {}));
    rig.world.run_for(seconds(100));
    EXPECT_TRUE(rig.channel().is_connected());
    EXPECT_EQ(rig.channel().counters().connects, 1u);
    EXPECT_EQ(rig.server->connection_count(), 1u);
    // A process that stood still does not take the others for dead.
    rig.world.pause(seconds(30));
    rig.world.run_for(milliseconds(500));
    EXPECT_TRUE(rig.call(kEcho, {}));
    rig.stop();
}

TEST(Peer, HandlersStartInTheOrderOfTheCalls) {
    for (uint64_t seed = 0; seed < 8; ++seed) {
        PeerRig rig(seed, {.order = sim::Order::fifo});
        rig.start_server({.calls_max = 7});
        for (int i = 0; i < 300; ++i) {
            rig.begin_call(seconds(30), i % 10 == 0 ? 256 * kKiB : 0);
            if (i % 50 == 0) rig.world.run_for(milliseconds(3));
        }
        rig.world.run_for(seconds(30));
        EXPECT_EQ(rig.judge(), "");
        ASSERT_EQ(rig.starts.size(), 300u);
        EXPECT_TRUE(std::ranges::is_sorted(rig.starts)) << seed;
        rig.stop();
    }
}

// The executor runs tasks in any order; still a handler starts after the one before.
Task<void> call_in_order(PeerRig* rig, int count) {
    for (int i = 0; i < count; ++i) {
        rig->begin_call(seconds(30));
        co_await rig->client->env().clock.sleep_for(std::chrono::nanoseconds(100));
    }
}

TEST(Peer, HandlersStartInOrderOnAnyExecutor) {
    for (uint64_t seed = 0; seed < 8; ++seed) {
        PeerRig rig(seed);
        rig.start_server();
        rig.world.run(*rig.client, call_in_order(&rig, 200));
        rig.world.run_for(seconds(5));
        EXPECT_EQ(rig.judge(), "");
        ASSERT_EQ(rig.starts.size(), 200u);
        EXPECT_TRUE(std::ranges::is_sorted(rig.starts)) << seed;
        rig.stop();
    }
}

TEST(Peer, WhatWaitsGoesOutInOneWrite) {
    PeerRig rig(4);
    rig.work_max = {};
    rig.start_server();
    ASSERT_TRUE(rig.call(kEcho, {}));
    uint64_t before = rig.channel().counters().writes;
    for (int i = 0; i < 32; ++i)
        rig.begin_call(seconds(1), 4096);
    rig.world.run_for(milliseconds(100));
    EXPECT_EQ(rig.judge(), "");
    EXPECT_LE(rig.channel().counters().writes - before, 8u);
    rig.stop();
}

TEST(Peer, NobodyThereIsUnavailable) {
    PeerRig rig(5);
    auto refused = rig.call(kEcho, {});
    ASSERT_FALSE(refused);
    EXPECT_EQ(refused.error().code(), Code::unavailable);
    EXPECT_NE(rig.channel().last_error(), "");
    rig.start_server();
    EXPECT_TRUE(rig.call(kEcho, {}, seconds(2)));
    EXPECT_EQ(rig.channel().last_error(), "");
    auto nowhere =
        rig.world.run(*rig.client, rig.channels->to(NodeId(3)).call(kEcho, {}, seconds(1)));
    ASSERT_FALSE(nowhere);
    EXPECT_EQ(nowhere.error().code(), Code::unavailable);
    rig.stop();
}

TEST(Peer, TheNextAddressIsTried) {
    PeerRig rig(6);
    rig.start_server();
    rig.channels->set_address(NodeId(2), {"b:1", "b:2", std::string(kAddress)});
    EXPECT_TRUE(rig.call(kEcho, {}));
    rig.stop();
}

TEST(Peer, ACallHasADeadline) {
    PeerRig rig(7);
    rig.work_max = seconds(100);
    rig.start_server();
    ASSERT_TRUE(rig.call(kEcho, {}));
    rig.begin_call(milliseconds(300));
    rig.begin_call(milliseconds(100));
    rig.world.run_for(milliseconds(301));
    EXPECT_EQ(rig.judge(), "");
    EXPECT_EQ(rig.calls[1].outcome->error().code(), Code::outcome_unknown);
    // The late answer meets nobody.
    rig.world.run_for(seconds(101));
    EXPECT_TRUE(rig.call(kEcho, {}));
    EXPECT_TRUE(rig.channel().is_connected());
    // Not even a connection in time.
    rig.end_server(false);
    rig.world.net().partition(*rig.client, *rig.server_process);
    rig.begin_call(milliseconds(50));
    rig.world.run_for(milliseconds(60));
    EXPECT_EQ(rig.judge(), "");
    rig.stop();
}

TEST(Peer, AHalfOpenConnectionIsNoticedInASecond) {
    PeerRig rig(8);
    rig.start_server();
    ASSERT_TRUE(rig.call(kEcho, {}));
    rig.world.run_for(seconds(1));
    rig.world.net().partition(*rig.client, *rig.server_process);
    Time begin = rig.world.now();
    auto lost = rig.call(kEcho, {}, seconds(30));
    ASSERT_FALSE(lost);
    EXPECT_EQ(lost.error().code(), Code::outcome_unknown);
    EXPECT_LE(rig.world.now() - begin, milliseconds(1100));
    rig.world.net().heal();
    EXPECT_TRUE(rig.call(kEcho, {}, seconds(5)));
    // The server has forgotten, and says so when it hears from us.
    rig.world.net().half_open(*rig.server_process, *rig.client);
    rig.world.run_for(milliseconds(10));
    EXPECT_TRUE(rig.channel().is_connected());
    auto reset = rig.call(kEcho, {}, seconds(30));
    ASSERT_FALSE(reset);
    EXPECT_EQ(reset.error().code(), Code::outcome_unknown);
    EXPECT_TRUE(rig.call(kEcho, {}, seconds(5)));
    rig.stop();
}

TEST(Peer, ASlowHandlerIsNoDeadNode) {
    PeerRig rig(9);
    rig.work_max = seconds(30);
    rig.start_server({.calls_max = 4});
    for (int i = 0; i < 20; ++i)
        rig.begin_call(seconds(300), 64 * kKiB);
    rig.world.run_for(seconds(300));
    EXPECT_EQ(rig.judge(), "");
    EXPECT_EQ(rig.starts.size(), 20u);
    EXPECT_EQ(rig.channel().counters().connections_lost, 0u);
    rig.stop();
}

TEST(Peer, ASlowLinkIsNoDeadNode) {
    sim::NetProfile slow;
    slow.bytes_per_second = 2 * kMiB;
    PeerRig rig(10, {.net = slow});
    rig.work_max = {};
    rig.start_server();
    for (int i = 0; i < 3; ++i)
        rig.begin_call(seconds(100), 16 * kMiB);
    Message big;
    big.payload = {Buffer::zeroed(limits::kPeerPayloadBytesMax)};
    auto echoed = rig.call(kEcho, std::move(big), seconds(200));
    ASSERT_TRUE(echoed) << echoed.error().text();
    EXPECT_EQ(echoed->payload_bytes(), limits::kPeerPayloadBytesMax);
    EXPECT_EQ(rig.judge(), "");
    EXPECT_EQ(rig.channel().counters().connections_lost, 0u);
    rig.stop();
}

TEST(Peer, BoundsAreKept) {
    PeerRig rig(11);
    rig.work_max = seconds(5);
    rig.fail_permille = 0;
    rig.start_server();
    rig.channels = std::make_unique<Channels>(
        rig.client->env(), self_of(1), ChannelOptions{.calls_max = 10, .bytes_max = 1 * kMiB});
    rig.channels->set_address(NodeId(2), {std::string(kAddress)});
    // Ten are under way, ten wait for these, five are too many.
    for (int i = 0; i < 25; ++i)
        rig.begin_call(seconds(60));
    rig.world.run_for(milliseconds(10));
    size_t busy = 0;
    for (const auto& call : rig.calls)
        busy += call.outcome.has_value() && !*call.outcome &&
                call.outcome->error().code() == Code::busy;
    EXPECT_EQ(busy, 5u);
    auto control = rig.world.run(
        *rig.client, rig.channel().call(kEcho, {}, std::chrono::seconds(1), Lane::control));
    EXPECT_TRUE(control) << "it passes those that wait";
    rig.world.run_for(seconds(60));
    EXPECT_EQ(rig.judge(), "");
    EXPECT_EQ(rig.starts.size(), 20u);
    rig.begin_call(seconds(60), 2 * kMiB);  // alone, it is let in
    rig.world.run_for(milliseconds(1));
    rig.begin_call(milliseconds(1), 4096);  // no room in its time
    rig.begin_call(seconds(60), 4096);
    rig.world.run_for(seconds(60));
    EXPECT_EQ(rig.judge(), "");
    EXPECT_TRUE(rig.calls[25].outcome->has_value());
    EXPECT_EQ(rig.calls[26].outcome->error().code(), Code::busy);
    EXPECT_TRUE(rig.calls[27].outcome->has_value());
    Message large;
    large.body.resize(limits::kPeerBodyBytesMax + 1);
    auto refused = rig.call(kEcho, std::move(large));
    ASSERT_FALSE(refused);
    EXPECT_EQ(refused.error().code(), Code::invalid_argument);
    rig.stop();
}

TEST(Peer, StopEndsEverything) {
    PeerRig rig(12);
    rig.work_max = seconds(5);
    rig.start_server();
    for (int i = 0; i < 10; ++i)
        rig.begin_call(seconds(60));
    rig.world.run_for(milliseconds(10));
    rig.world.run(*rig.client, rig.channels->stop());
    for (const auto& call : rig.calls)
        EXPECT_EQ(call.outcome->error().code(), Code::stopping);
    auto after = rig.call(kEcho, {});
    ASSERT_FALSE(after);
    EXPECT_EQ(after.error().code(), Code::stopping);
    rig.world.run(*rig.client, rig.channels->stop());
    rig.stop();
}

Task<void> stop_server(PeerRig* rig) {
    co_await rig->server->stop();
}

TEST(Peer, AServerThatStopsAnswersWhatItBegan) {
    PeerRig rig(13);
    rig.fail_permille = 0;
    rig.work_max = seconds(1);
    rig.start_server();
    for (int i = 0; i < 10; ++i)
        rig.begin_call(seconds(60));
    rig.world.run_for(milliseconds(10));
    runtime::spawn(rig.server_process->executor(), stop_server(&rig));
    rig.world.run_for(milliseconds(5));
    rig.begin_call(milliseconds(500));
    rig.world.run_for(seconds(5));
    EXPECT_EQ(rig.judge(), "");
    for (int i = 0; i < 10; ++i)
        EXPECT_TRUE(rig.calls[i].outcome->has_value()) << i;
    EXPECT_EQ(rig.calls[10].outcome->error().code(), Code::unavailable);
    rig.stop();
}

// ---- who is who ----

Error refusal(PeerRig& rig, Self self, uint64_t wanted) {
    Channels channels(rig.client->env(), self);
    channels.set_address(NodeId(wanted), {std::string(kAddress)});
    auto outcome =
        rig.world.run(*rig.client, channels.to(NodeId(wanted)).call(kEcho, {}, seconds(1)));
    rig.world.run(*rig.client, channels.stop());
    if (outcome) return {Code::conflict, "it was answered"};
    return outcome.error();
}

TEST(Peer, WhoIsNotMeantIsRefused) {
    PeerRig rig(14);
    rig.start_server();
    auto expect = [](const Error& error, std::string_view part) {
        EXPECT_EQ(error.code(), Code::unavailable);
        EXPECT_NE(error.message().find(part), std::string::npos) << error.message();
    };
    expect(refusal(rig, self_of(1), 3), "looks for node 0000000000000003");
    Self stranger = self_of(1);
    stranger.cluster = ClusterId(0xdd);
    expect(refusal(rig, stranger, 2), "of cluster 00000000000000dd");
    Self newer = self_of(1);
    newer.versions = {2, 3};
    expect(refusal(rig, newer, 2), "versions 2 to 3");
    Self both = self_of(1);
    both.versions = {1, 2};
    EXPECT_EQ(refusal(rig, both, 2).code(), Code::conflict);
    rig.world.net().set_identity("a", "00000000000000aa");
    expect(refusal(rig, self_of(1), 2), "the certificate of");
    EXPECT_EQ(refusal(rig, self_of(0xaa), 2).code(), Code::conflict);
    rig.world.net().set_identity("b", "00000000000000bb");
    expect(refusal(rig, self_of(0xaa), 2), "the certificate of");
    rig.stop();
}

Task<bool> is_closed(runtime::Connection& connection) {
    Buffer buffer = Buffer::allocate(1000);
    auto read = co_await connection.read(buffer);
    co_return !read;
}

TEST(Peer, StrangersAreBoundedInTimeAndNumber) {
    PeerRig rig(15);
    rig.start_server();
    std::vector<std::unique_ptr<runtime::Connection>> silent;
    for (uint32_t i = 0; i < limits::kPeerStrangersMax + 10; ++i) {
        auto made = rig.client->env().net.connect(std::string(kAddress), seconds(1));
        silent.push_back(std::move(*rig.world.run(*rig.client, std::move(made))));
    }
    Time begin = rig.world.now();
    EXPECT_TRUE(rig.world.run(*rig.client, is_closed(*silent[0])));
    EXPECT_LE(rig.world.now() - begin, seconds(3));
    EXPECT_TRUE(rig.call(kEcho, {}, seconds(5)));
    // One who speaks another language is gone at once.
    auto other = rig.world.run(*rig.client,
                               rig.client->env().net.connect(std::string(kAddress), seconds(1)));
    std::vector<Buffer> parts{Buffer::copy_of(bytes_of_text(std::string(100, 'x')))};
    ASSERT_TRUE(rig.world.run(*rig.client, (*other)->write(parts)));
    begin = rig.world.now();
    EXPECT_TRUE(rig.world.run(*rig.client, is_closed(**other)));
    EXPECT_LE(rig.world.now() - begin, milliseconds(10));
    rig.stop();
}

}  // namespace
}  // namespace peplos::peer
