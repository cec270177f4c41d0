#include "replica/segment_service.h"

#include <gtest/gtest.h>

#include "base/crc32c.h"
#include "media/device.h"
#include "replica/segment_repair.h"
#include "sim/world.h"

namespace peplos::replica {
namespace {

using format::SegmentKind;
using media::Purpose;
using runtime::Durability;
using runtime::Task;

constexpr VolumeId kServedVolume(0xa1);
constexpr LineageId kServedLineage(0xb2);

Claim claim_of(uint64_t epoch, uint64_t owner = 1) {
    return {NodeId(owner), Epoch(epoch), OpenToken(epoch * 10 + owner)};
}
SegmentActor actor_of(const Claim& claim) {
    return {kServedVolume, kServedLineage, claim};
}
SegmentId id_of(uint32_t sequence) {
    return {kServedVolume, 1, sequence};
}

// One serving node, called without a network between.
class SegmentServiceTest : public testing::Test {
  protected:
    void SetUp() override {
        ASSERT_TRUE(world.run(format(world.env())));
        open();
    }
    void TearDown() override {
        world.kill();
        drop();
    }
    void open() {
        auto opened = world.run(open_device(world.env()));
        ASSERT_TRUE(opened) << opened.error().text();
        device = std::move(*opened);
        service = std::make_unique<SegmentService>(
            world.env(),
            [this](VolumeId, const Claim& claim) { return claim.epoch >= fence.epoch; });
        service->add_store(device->segments());
        remote = std::make_unique<RemoteSegments>(
            NodeId(2), [this](peer::Method method, peer::Message message, Duration) {
                return service->handle(method, std::move(message));
            });
    }
    void restart() {
        world.crash();
        drop();
        open();
    }
    void drop() {
        remote.reset();
        service.reset();
        device.reset();
    }
    Code code_of(const Result<void>& outcome) {
        EXPECT_FALSE(outcome);
        return outcome ? Code::conflict : outcome.error().code();
    }
    Result<void> create(const Claim& claim, uint32_t sequence) {
        return world.run(remote->create(actor_of(claim), id_of(sequence), GroupId(7),
                                        SegmentKind::data, kMiB, Purpose::user));
    }
    Result<void> write(const Claim& claim, uint32_t sequence, uint64_t offset,
                       Durability durability = Durability::volatile_) {
        std::vector<Buffer> from{Buffer::zeroed(kBlockBytes)};
        return world.run(remote->write(actor_of(claim), id_of(sequence), offset, from, durability));
    }

    static Task<Result<void>> format(runtime::Env& env) {
        CO_TRY_ASSIGN(auto disk, co_await env.disks.open("d", {.create_bytes = 96 * kMiB}));
        co_return co_await media::format_device(*disk, {.ring_bytes = limits::kRingBytesMin},
                                                env.rng);
    }
    static Task<Result<std::unique_ptr<media::Device>>> open_device(runtime::Env& env) {
        CO_TRY_ASSIGN(auto disk, co_await env.disks.open("d", {}));
        co_return co_await media::Device::open(env, std::move(disk));
    }

    sim::World world{5};
    Claim fence;
    std::unique_ptr<media::Device> device;
    std::unique_ptr<SegmentService> service;
    std::unique_ptr<RemoteSegments> remote;
};

TEST_F(SegmentServiceTest, WhatIsWrittenIsRead) {
    const Claim claim = claim_of(1);
    ASSERT_TRUE(create(claim, 1));
    EXPECT_EQ(code_of(create(claim, 1)), Code::already_exists);
    Buffer bytes = Buffer::zeroed(3 * kBlockBytes);
    bytes.data()[5000] = std::byte{42};
    std::vector<Buffer> from{bytes};
    ASSERT_TRUE(world.run(
        remote->write(actor_of(claim), id_of(1), 8192, std::move(from), Durability::volatile_)));
    std::vector<SegmentId> ids{id_of(1)};
    ASSERT_TRUE(world.run(remote->sync(actor_of(claim), ids)));
    Buffer into = Buffer::allocate(kBlockBytes);
    ASSERT_TRUE(world.run(remote->read(kServedVolume, id_of(1), 8192 + kBlockBytes, into)));
    EXPECT_EQ(into.data()[5000 - kBlockBytes], std::byte{42});
    EXPECT_EQ(code_of(world.run(remote->read(kServedVolume, id_of(2), 0, into))), Code::not_found);
    EXPECT_EQ(code_of(world.run(remote->read(VolumeId(9), id_of(1), 0, into))), Code::not_found);
    ASSERT_TRUE(remote->space());
    EXPECT_EQ(remote->space()->free_units, device->segments().space().free_units);
    auto listing = world.run(remote->list(actor_of(claim)));
    ASSERT_TRUE(listing);
    ASSERT_EQ(listing->copies.size(), 1u);
    EXPECT_EQ(listing->copies[0].group, GroupId(7));
    EXPECT_TRUE(*world.run(remote->remove(actor_of(claim), ids)));
    EXPECT_TRUE(*world.run(remote->remove(actor_of(claim), ids)));
    EXPECT_TRUE(device->segments().list().empty());
}

TEST_F(SegmentServiceTest, AnOlderClaimChangesNothing) {
    const Claim old = claim_of(1);
    const Claim newer = claim_of(2, 3);
    ASSERT_TRUE(create(old, 1));
    ASSERT_TRUE(world.run(remote->adopt(actor_of(newer), id_of(1))));
    EXPECT_EQ(code_of(write(old, 1, 8192)), Code::fenced);
    EXPECT_EQ(code_of(create(old, 2)), Code::fenced);
    std::vector<SegmentId> ids{id_of(1)};
    EXPECT_EQ(code_of(world.run(remote->sync(actor_of(old), ids))), Code::fenced);
    EXPECT_EQ(code_of(world.run(remote->shrink(actor_of(old), id_of(1), 4096))), Code::fenced);
    EXPECT_FALSE(world.run(remote->remove(actor_of(old), ids)));
    EXPECT_FALSE(world.run(remote->adopt(actor_of(old), id_of(1))));
    EXPECT_FALSE(world.run(remote->list(actor_of(old))));
    EXPECT_TRUE(write(newer, 1, 8192));
    // A durable fence that no call has told of yet.
    fence = claim_of(3);
    EXPECT_EQ(code_of(write(newer, 1, 8192)), Code::fenced);
}

TEST_F(SegmentServiceTest, ARestartVoidsGrants) {
    const Claim claim = claim_of(1);
    ASSERT_TRUE(create(claim, 1));
    ASSERT_TRUE(write(claim, 1, 8192, Durability::durable));
    restart();
    EXPECT_EQ(code_of(write(claim, 1, 12288)), Code::unavailable);
    std::vector<SegmentId> ids{id_of(1)};
    EXPECT_EQ(code_of(world.run(remote->sync(actor_of(claim), ids))), Code::unavailable);
    ASSERT_TRUE(world.run(remote->adopt(actor_of(claim), id_of(1))));
    EXPECT_TRUE(write(claim, 1, 12288));
}

TEST_F(SegmentServiceTest, ASealedSegmentNeverChanges) {
    const Claim claim = claim_of(1);
    ASSERT_TRUE(create(claim, 1));
    ASSERT_TRUE(write(claim, 1, 0));
    ASSERT_TRUE(write(claim, 1, format::kSegmentFooterOffset, Durability::durable));
    EXPECT_EQ(code_of(write(claim, 1, 8192)), Code::unavailable);
    EXPECT_EQ(service->grants().grant_count(), 0u);
}

TEST_F(SegmentServiceTest, AnAdopterWaitsForWhatTheOldOwnerHasUnderWay) {
    const Claim old = claim_of(1);
    const Claim newer = claim_of(2);
    SegmentGrants grants([](VolumeId, const Claim&) { return true; });
    ASSERT_TRUE(grants.grant(kServedVolume, old, id_of(1)));
    std::optional<SegmentGrants::Pass> pass;
    pass.emplace(*grants.enter(kServedVolume, old, id_of(1)));
    bool is_settled = false;
    struct Settle {
        static Task<void> run(SegmentGrants& grants, Claim claim, bool& is_settled) {
            EXPECT_TRUE(co_await grants.settle(kServedVolume, claim));
            is_settled = true;
        }
    };
    runtime::spawn(world.env().executor, Settle::run(grants, newer, is_settled));
    world.run_until_idle();
    EXPECT_FALSE(is_settled);
    EXPECT_FALSE(grants.enter(kServedVolume, old, id_of(1)));
    pass.reset();
    world.run_until_idle();
    EXPECT_TRUE(is_settled);
}

TEST_F(SegmentServiceTest, AListingOfManyComesInParts) {
    const Claim claim = claim_of(1);
    for (uint32_t i = 1; i <= 20; ++i)
        ASSERT_TRUE(create(claim, i));
    auto listing = world.run(remote->list(actor_of(claim)));
    ASSERT_TRUE(listing);
    ASSERT_EQ(listing->copies.size(), 20u);
    for (uint32_t i = 1; i <= 20; ++i)
        EXPECT_EQ(listing->copies[i - 1].id, id_of(i));
}

TEST_F(SegmentServiceTest, WhatIsNoCallIsRefused) {
    peer::Message message;
    message.body.resize(10);
    auto answered = world.run(service->handle(0x21, message));
    ASSERT_FALSE(answered);
    EXPECT_EQ(answered.error().code(), Code::corrupt);
    answered = world.run(service->handle(0x2a, message));
    ASSERT_FALSE(answered);
    EXPECT_EQ(answered.error().code(), Code::unsupported);
    SegmentRequest request;
    message.body = encode(request);
    message.body[0] = std::byte{9};
    answered = world.run(service->handle(0x28, message));
    ASSERT_FALSE(answered);
    EXPECT_EQ(answered.error().code(), Code::unsupported);
    // More said than sent.
    request.volume = kServedVolume;
    request.claim = claim_of(1);
    request.id = id_of(1);
    request.bytes = 8192;
    request.offset = 8192;
    ASSERT_TRUE(create(claim_of(1), 1));
    message.body = encode(request);
    message.payload = {Buffer::zeroed(kBlockBytes)};
    answered = world.run(service->handle(0x21, message));
    ASSERT_FALSE(answered);
    EXPECT_EQ(answered.error().code(), Code::corrupt);
}

TEST(SegmentWire, WhatIsEncodedComesBack) {
    SegmentRequest request;
    request.volume = kServedVolume;
    request.claim = claim_of(4);
    request.id = id_of(9);
    request.lineage = kServedLineage;
    request.group = GroupId(3);
    request.offset = 4096;
    request.bytes = limits::kSegmentBytesMax;
    request.kind = SegmentKind::map;
    request.purpose = Purpose::maintenance;
    request.durability = Durability::durable;
    request.ids = {id_of(1), id_of(2)};
    auto again = decode_segment_request(encode(request));
    ASSERT_TRUE(again);
    EXPECT_EQ(*again, request);
    SegmentAnswer answer;
    answer.space = {100, 50, 5, 32};
    answer.is_more = true;
    answer.copies = {{id_of(1), kServedLineage, GroupId(2), SegmentKind::large, 8}};
    auto heard = decode_segment_answer(encode(answer));
    ASSERT_TRUE(heard);
    EXPECT_EQ(*heard, answer);
    // Cut off anywhere, or longer: refused.
    for (size_t bytes = 0; bytes < encode(request).size(); ++bytes)
        EXPECT_FALSE(decode_segment_request(Bytes(encode(request)).first(bytes)));
    for (size_t bytes = 0; bytes < encode(answer).size(); ++bytes)
        EXPECT_FALSE(decode_segment_answer(Bytes(encode(answer)).first(bytes)));
    auto longer = encode(answer);
    longer.push_back({});
    EXPECT_FALSE(decode_segment_answer(longer));
}

}  // namespace
}  // namespace peplos::replica
