#include "replica/member_service.h"

#include "peer/channel.h"
#include "replica/member_client.h"
#include "replica/member_test_rig.h"
#include "replica/member_wire.h"

namespace peplos::replica {
namespace {

// An owner on a node of its own calls the member, over the simulated network.
struct MemberServiceTest : MemberTest {
    static peer::Self self_of(NodeId node) {
        return {.cluster = ClusterId(1), .node = node, .boot = NodeBoot(1)};
    }
    void SetUp() override {
        MemberTest::SetUp();
        service = std::make_unique<MemberService>(*host);
        service->bind(server);
        start(server);
    }
    void TearDown() override {
        world.run(caller, channels.stop());
        world.run(server.stop());
        MemberTest::TearDown();
    }
    void start(peer::Server& which) {
        ok(world.run(which.start(fmt::format("{}:{}", world.process().name(), ++port))));
        channels.set_address(kSelf, {which.address()});
    }
    template <typename T>
    T call(Task<T> task) {
        return world.run(caller, std::move(task));
    }
    Result<LogRecords> read_all(uint64_t bytes) {
        ReadLogCall all{kVolume, claim_of(1), device, Lsn(0), bytes};
        auto method = static_cast<peer::Method>(MemberMethod::read_log);
        TRY_ASSIGN(peer::Message answer,
                   call(channels.to(kSelf).call(method, encode(all), std::chrono::seconds(5))));
        return decode_records(std::move(answer));
    }

    uint16_t port = 7000;
    sim::Process& caller = world.start("caller");
    runtime::Env caller_env = caller.env();
    runtime::Env server_env = world.env();
    peer::Channels channels{caller_env, self_of(kOwner)};
    peer::Server server{server_env, self_of(kSelf)};
    MemberClient client{channels.to(kSelf)};
    std::unique_ptr<MemberService> service;
};

TEST_F(MemberServiceTest, AnOwnerOnAnotherNodeIsServed) {
    FenceMessage ask{claim_of(1), device, OpenToken(0)};
    EXPECT_EQ(fenced(ok(call(client.fence(kVolume, kLineage, ask)))).from, kSelf);
    EXPECT_EQ(answer(ok(call(client.open(open_call(1, 11))))).token, OpenToken(11));
    for (uint64_t i = 1; i <= 3; ++i) {
        AppendCall append = append_call(1, 11, stamper.stamp(write_of(i, 100 * i)));
        EXPECT_EQ(answer(ok(call(client.append(std::move(append))))).durable_lsn, Lsn(i));
    }
    RenewMessage renew{claim_of(1), OpenToken(11), world.now()};
    EXPECT_EQ(answer(ok(call(client.renew(kVolume, renew)))).sent_at, renew.sent_at);
    LogRecords log = ok(call(client.read_log(kVolume, claim_of(1), device, Lsn(1), kMiB)));
    EXPECT_EQ(lsns_of(log.records), (std::vector<uint64_t>{2, 3}));
    EXPECT_EQ(value_of(log.records[1], 0), 300u);
    EXPECT_TRUE(log.is_last);
    EXPECT_TRUE(call(client.release(kVolume, {claim_of(1)})));
}

TEST_F(MemberServiceTest, NobodySpeaksForAnotherNode) {
    const Claim other = claim_of(9, kOther);
    auto is_denied = [](const auto& result) {
        return !result && result.error().code() == Code::permission_denied;
    };
    EXPECT_TRUE(is_denied(call(client.fence(kVolume, kLineage, {other, device, OpenToken(0)}))));
    EXPECT_TRUE(is_denied(call(client.open(open_call(9, 11, {}, {}, kOther)))));
    AppendCall append = append_call(9, 11, stamper.stamp(write_of(1, 1)));
    append.message.claim = other;
    EXPECT_TRUE(is_denied(call(client.append(std::move(append)))));
    EXPECT_TRUE(is_denied(call(client.renew(kVolume, {other, OpenToken(11), world.now()}))));
    EXPECT_TRUE(is_denied(call(client.release(kVolume, {other}))));
    EXPECT_TRUE(is_denied(call(client.read_log(kVolume, other, device, Lsn(0), kMiB))));
    EXPECT_EQ(host->fence_of(kVolume), Epoch(0));
}

// Whatever is asked for, an answer fits a message.
TEST_F(MemberServiceTest, AReaderGetsNoMoreThanAMessageCarries) {
    answer(open(open_call(1, 11)));
    for (uint64_t i = 1; i <= 12; ++i) {
        stamper.settled = Lsn(i - 1);
        answer(append(1, 11, stamper.stamp(write_of(i, i, 32))));
    }
    LogRecords few = ok(read_all(0));
    EXPECT_EQ(lsns_of(few.records), (std::vector<uint64_t>{1}));
    LogRecords many = ok(read_all(~uint64_t{0}));
    EXPECT_EQ(lsns_of(many.records), (std::vector<uint64_t>{1, 2, 3}));
    EXPECT_FALSE(many.is_last);
}

TEST_F(MemberServiceTest, WhatWasNotAskedIsNoAnswer) {
    Message said;
    peer::Server liar(server_env, self_of(kSelf));
    liar.handle(static_cast<peer::Method>(MemberMethod::renew),
                [&said](NodeId, peer::Message) -> Task<Result<peer::Message>> {
                    return [](Message word) -> Task<Result<peer::Message>> {
                        co_return encode(word);
                    }(said);
                });
    start(liar);
    auto renew = [&](Message word) {
        said = std::move(word);
        return call(client.renew(kVolume, {claim_of(1), OpenToken(11), world.now()}));
    };
    MemberAnswer good{.claim = claim_of(1), .from = kSelf, .token = OpenToken(11)};
    EXPECT_TRUE(renew(good));
    MemberAnswer other_node = good;
    other_node.from = kOther;
    EXPECT_EQ(renew(other_node).error().code(), Code::outcome_unknown);
    MemberAnswer other_claim = good;
    other_claim.claim = claim_of(2);
    EXPECT_EQ(renew(other_claim).error().code(), Code::outcome_unknown);
    EXPECT_EQ(renew(FenceAnswer{.claim = claim_of(1), .from = kSelf}).error().code(),
              Code::outcome_unknown);
    EXPECT_EQ(refused(ok(renew(Refusal{.claim = claim_of(1), .from = kSelf}))),
              Refusal::Reason::fenced);
    world.run(liar.stop());
}

}  // namespace
}  // namespace peplos::replica
