#include "replica/member_test_rig.h"

// MemberHost beside the machine's own tests (protocol_test.cc): what it adds to them.
namespace peplos::replica {
namespace {

using Reason = Refusal::Reason;
using Lsns = std::vector<uint64_t>;

TEST_F(MemberTest, AnOpenLogTakesRecordsInOrderAndRepeatsThem) {
    fill(3);
    Stamper behind = stamper;
    Record fourth = behind.stamp(write_of(4, 400));
    Record fifth = behind.stamp(write_of(5, 500));
    MemberAnswer gap = answer(append(1, 11, fifth));
    EXPECT_TRUE(gap.is_gap);
    EXPECT_EQ(gap.durable_lsn, Lsn(3));
    EXPECT_EQ(answer(append(1, 11, fourth)).durable_lsn, Lsn(4));
    EXPECT_EQ(answer(append(1, 11, fourth)).durable_lsn, Lsn(4)) << "a repeat changes nothing";
    EXPECT_EQ(answer(append(1, 11, fifth)).durable_lsn, Lsn(5));
    FenceAnswer said = fenced(fence(2, 11));
    EXPECT_EQ(said.outcome, LogOutcome::complete);
    EXPECT_EQ(said.last_lsn, Lsn(5));
    EXPECT_EQ(said.opened, Epoch(1));
    std::vector<Record> records = read(2);
    EXPECT_EQ(lsns_of(records), (Lsns{1, 2, 3, 4, 5}));
    EXPECT_EQ(value_of(records[3], 0), 400u);
    EXPECT_EQ(refused(append(1, 11, behind.stamp(write_of(6, 1)))), Reason::fenced);
}

TEST_F(MemberTest, AFenceWaitsForAPromiseUntilItIsGivenBack) {
    fill(1);
    Time before = world.now();
    std::ignore = fenced(fence(2, 11));
    EXPECT_GE(world.now() - before, Timing{}.promise - std::chrono::milliseconds(100));
    answer(open(open_call(3, 33, {}, {}, kOther)));
    ASSERT_TRUE(world.run(host->release(kVolume, {claim_of(3, kOther)})));
    before = world.now();
    EXPECT_EQ(fenced(fence(4, 33, kOwner)).outcome, LogOutcome::complete);
    EXPECT_LT(world.now() - before, std::chrono::milliseconds(500));
}

TEST_F(MemberTest, AStaleClaimIsRefusedEverywhere) {
    fill(1);
    std::ignore = fence(5, 11);
    EXPECT_EQ(refused(fence(4, 11)), Reason::fenced);
    EXPECT_EQ(refused(open(open_call(1, 12))), Reason::fenced);
    RenewMessage renew{claim_of(1), OpenToken(11), world.now()};
    EXPECT_EQ(refused(ok(world.run(host->renew(kVolume, renew)))), Reason::fenced);
    EXPECT_FALSE(host->admits(kVolume, claim_of(4)));
    EXPECT_FALSE(host->admits(kVolume, {kOwner, Epoch(5), OpenToken(1)})) << "not that claim";
    EXPECT_TRUE(host->admits(kVolume, claim_of(5, kOther)));
    EXPECT_EQ(host->fence_of(kVolume), Epoch(5));
    auto read = world.run(host->read_log(kVolume, claim_of(4), device, Lsn(0), kMiB));
    EXPECT_EQ(read.error().code(), Code::fenced);
}

TEST_F(MemberTest, TwoFencesAtOnceLeaveNobodyWithoutAnAnswer) {
    fill(1);
    std::optional<Result<Message>> older, newer;
    auto ask = [](MemberHost* host, FenceMessage message,
                  std::optional<Result<Message>>* out) -> Task<void> {
        *out = co_await host->fence(kVolume, kLineage, message);
    };
    runtime::spawn(world.env().executor,
                   ask(host.get(), {claim_of(2, kOther), device, OpenToken(11)}, &older));
    world.run_for(std::chrono::milliseconds(50));
    runtime::spawn(world.env().executor,
                   ask(host.get(), {claim_of(3, kOther), device, OpenToken(11)}, &newer));
    world.run_for(std::chrono::seconds(3));
    ASSERT_TRUE(older && *older && newer && *newer);
    EXPECT_EQ(refused(**older), Reason::fenced);
    EXPECT_EQ(fenced(**newer).outcome, LogOutcome::complete);
}

TEST_F(MemberTest, AnOpenKeepsWhatTheClaimerFencedAndForgetsTheRest) {
    fill(5);
    std::ignore = fence(2, 11);
    Stamper next = stamper;
    next.epoch = Epoch(2);
    next.last = next.data = Lsn(3);
    std::vector<Record> come{next.stamp(write_of(1, 4000))};
    EXPECT_EQ(answer(open(open_call(2, 22, come, Lsn(3), kOther))).durable_lsn, Lsn(4));
    restart();
    FenceAnswer said = fenced(fence(3, 22, kOther));
    EXPECT_EQ(said.outcome, LogOutcome::complete);
    EXPECT_EQ(said.last_lsn, Lsn(4));
    EXPECT_EQ(said.opened, Epoch(2));
    std::vector<Record> records = read(3);
    EXPECT_EQ(lsns_of(records), (Lsns{1, 2, 3, 4}));
    EXPECT_EQ(value_of(records[3], 0), 4000u) << "not what it held at that LSN before";
}

TEST_F(MemberTest, AnOpenWithoutHistoryForgetsEverything) {
    fill(5);
    Stamper next;
    next.epoch = Epoch(2);
    next.last = Lsn(8);
    std::vector<Record> come;
    come.push_back(next.stamp(root_of(Lsn(8), Lsn(8))));
    come.push_back(next.stamp(write_of(3, 30)));
    OpenCall call = open_call(2, 22, come);
    call.base = {Lsn(8), Lsn(8)};
    EXPECT_EQ(answer(open(call)).durable_lsn, Lsn(10));
    restart();
    EXPECT_EQ(fenced(fence(3, 22)).last_lsn, Lsn(10));
    EXPECT_EQ(lsns_of(read(3)), (Lsns{9, 10}));
}

TEST_F(MemberTest, WhatDoesNotHoldTogetherIsNotTaken) {
    fill(3);
    Stamper next = stamper;
    Record bad = stamper.stamp(write_of(4, 4));
    bad.payload.front().bytes()[9] ^= std::byte{1};
    EXPECT_EQ(world.run(host->append(append_call(1, 11, bad))).error().code(), Code::corrupt);
    std::ignore = fence(2, 11);
    next.epoch = Epoch(2);
    std::vector<Record> come;
    for (uint64_t i = 0; i < 3; ++i)
        come.push_back(next.stamp(write_of(i, i)));
    come.erase(come.begin() + 1);
    EXPECT_EQ(world.run(host->open(open_call(2, 22, come, Lsn(3), kOther))).error().code(),
              Code::corrupt);
    FenceAnswer said = fenced(fence(3, 11));
    EXPECT_EQ(said.outcome, LogOutcome::complete);
    EXPECT_EQ(said.last_lsn, Lsn(3));
}

TEST_F(MemberTest, ATailMayComeInParts) {
    Stamper next;
    std::vector<Record> records;
    for (uint64_t i = 0; i < 6; ++i)
        records.push_back(next.stamp(write_of(i, i)));
    OpenCall whole = open_call(1, 11, records);
    for (uint32_t part = 0; part < 3; ++part) {
        OpenCall call = whole;
        call.part = part;
        call.part_count = 3;
        call.records.assign(records.begin() + 2 * part, records.begin() + 2 * part + 2);
        MemberAnswer said = answer(open(call));
        EXPECT_EQ(said.token, OpenToken(part == 2 ? 11 : 0));
        EXPECT_EQ(said.durable_lsn, Lsn(part == 2 ? 6 : 0));
    }
    whole.part = 1;
    whole.part_count = 3;
    EXPECT_EQ(world.run(host->open(whole)).error().code(), Code::invalid_argument);
}

// Numbers that a node may send and no owner means: answered, and nothing is kept of them.
TEST_F(MemberTest, NumbersThatNoOwnerMeansDoNoHarm) {
    OpenCall nowhere = open_call(1, 11);
    nowhere.message.incarnation = Incarnation(0);
    EXPECT_EQ(refused(open(nowhere)), Reason::stranger);
    EXPECT_EQ(world.run(host->open(open_call(1, 0))).error().code(), Code::invalid_argument);
    Stamper far;
    far.last = Lsn(uint64_t{1} << 63);
    OpenCall beyond = open_call(1, 11, {far.stamp(write_of(1, 1))});
    beyond.records[0].prev_data_lsn = Lsn(0);
    EXPECT_EQ(world.run(host->open(beyond)).error().code(), Code::invalid_argument);
    fill(3);
    EXPECT_EQ(refused(append(1, 0, stamper.stamp(write_of(4, 4)))), Reason::stranger);
    EXPECT_EQ(refused(append(0, 11, Stamper().stamp(write_of(4, 4)))), Reason::fenced);
}

TEST_F(MemberTest, AFirstPartThatIsRefusedLeavesNothingToGoOnWith) {
    Stamper next;
    std::vector<Record> records{next.stamp(write_of(1, 1)), next.stamp(write_of(2, 2))};
    OpenCall first = open_call(1, 11, records);
    first.part_count = 2;
    first.records.pop_back();
    OpenCall second = first;
    second.part = 1;
    second.records = {records[1]};
    EXPECT_EQ(answer(open(first)).token, OpenToken(0));
    OpenCall bad = first;
    bad.records[0].volume = VolumeId(99);
    EXPECT_EQ(world.run(host->open(bad)).error().code(), Code::invalid_argument);
    EXPECT_EQ(world.run(host->open(second)).error().code(), Code::invalid_argument);
    EXPECT_EQ(answer(open(first)).token, OpenToken(0));
    EXPECT_EQ(answer(open(second)).durable_lsn, Lsn(2));
}

// One claim's parts are gone when a newer one fences.
TEST_F(MemberTest, AFenceEndsAnOpenThatIsUnderWay) {
    Stamper next;
    OpenCall call = open_call(1, 11, {next.stamp(write_of(1, 1)), next.stamp(write_of(2, 2))});
    call.part_count = 2;
    call.records.pop_back();
    EXPECT_EQ(answer(open(call)).token, OpenToken(0));
    std::ignore = fenced(fence(2, 0));
    call.part = 1;
    EXPECT_EQ(refused(open(call)), Reason::fenced);
}

TEST_F(MemberTest, AWipedDeviceSaysUnknown) {
    fill(3);
    world.run(host->stop());
    host.reset();
    end();
    ok(world.run(format_disk(world.env())));
    Incarnation old = device;
    begin();
    make_host();
    FenceMessage message{claim_of(2, kOther), old, OpenToken(11)};
    FenceAnswer said = fenced(ok(world.run(host->fence(kVolume, kLineage, message))));
    EXPECT_EQ(said.outcome, LogOutcome::unknown);
    EXPECT_EQ(said.opened, Epoch(0));
    OpenCall call = open_call(3, 33);
    call.message.incarnation = old;
    EXPECT_EQ(refused(open(call)), Reason::stranger);
}

TEST_F(MemberTest, AFailedDeviceSaysSoForEver) {
    fill(2);
    world.disk(kPath).add_fault({.operation = sim::DiskOperation::write,
                                 .effect = sim::DiskEffect::io_error,
                                 .offset = 0,
                                 .bytes = kDiskBytes});
    EXPECT_EQ(refused(append(1, 11, stamper.stamp(write_of(3, 3)))), Reason::failed);
    world.disk(kPath).clear_faults();
    EXPECT_EQ(refused(fence(2, 11)), Reason::failed);
    EXPECT_EQ(refused(open(open_call(3, 33))), Reason::failed);
}

// A seal that was never acknowledged may be undone, and what it made needless is needed again.
TEST_F(MemberTest, OnlyAnAcknowledgedSealTrims) {
    fill(3);
    stamper.settled = Lsn(3);
    answer(append(1, 11, stamper.stamp(seal_of(Lsn(3)))));
    std::ignore = fence(2, 11);
    EXPECT_EQ(lsns_of(read(2)), (Lsns{1, 2, 3, 4}));
    restart();
    std::ignore = fence(3, 11);
    EXPECT_EQ(lsns_of(read(3)), (Lsns{1, 2, 3, 4}));
    answer(open(open_call(3, 33, {}, Lsn(3), kOther)));
    EXPECT_EQ(lsns_of(read(3)), (Lsns{1, 2, 3})) << "without the seal";
    Stamper next = stamper;
    next.epoch = Epoch(3);
    next.last = next.data = Lsn(3);
    next.meta = Lsn(0);
    auto put = [&](Record record) {
        AppendMessage message{claim_of(3, kOther), OpenToken(33), record.lsn, world.now()};
        return answer(ok(world.run(host->append({kVolume, message, std::move(record)}))));
    };
    put(next.stamp(seal_of(Lsn(2))));
    next.settled = Lsn(4);
    put(next.stamp(write_of(9, 9)));
    EXPECT_EQ(lsns_of(read(3)), (Lsns{3, 4, 5}));
    power_cut();
    std::ignore = fence(4, 33);
    EXPECT_EQ(lsns_of(read(4)), (Lsns{3, 4, 5}));
}

struct Sink final : OwnerSink {
    void on_member_message(const Message& message) override { said.push_back(message); }
    std::vector<Message> said;
};

TEST_F(MemberTest, TheOwnersOwnMemberSpeaksThroughTheSink) {
    answer(open(open_call(1, 11, {}, {}, kSelf)));
    Sink sink;
    auto log = ok(host->owner_log(kVolume, claim_of(1, kSelf), OpenToken(11), sink));
    EXPECT_EQ(put(*log, write_of(1, 10)), Lsn(1));
    EXPECT_EQ(put(*log, write_of(2, 20)), Lsn(2));
    world.run_for(std::chrono::milliseconds(10));
    ASSERT_FALSE(sink.said.empty());
    EXPECT_EQ(answer(sink.said.back()).durable_lsn, Lsn(2));
    EXPECT_EQ(lsns_of(ok(world.run(log->read_log(Lsn(1), kMiB))).records), Lsns{2});
    log->renew(world.now());
    // Trimmed at once, on record: nothing that follows says that the seal was acknowledged.
    EXPECT_EQ(put(*log, seal_of(Lsn(2))), Lsn(3));
    log->trim(Lsn(2), Lsn(0));
    world.run_for(std::chrono::milliseconds(10));
    EXPECT_EQ(lsns_of(ok(world.run(log->read_log(Lsn(0), kMiB))).records), Lsns{3});
    std::ignore = fence(2, 11);
    EXPECT_EQ(world.run(log->append(write_of(4, 4))).error().code(), Code::fenced);
    log.reset();
    power_cut();
    EXPECT_EQ(fenced(fence(3, 11)).outcome, LogOutcome::complete);
    EXPECT_EQ(lsns_of(read(3)), Lsns{3});
}

// A whole ring of another volume's records that nobody drains.
TEST_F(MemberTest, AFullRingDelaysAppendsAndNothingElse) {
    fill(2);
    std::vector<std::unique_ptr<VolumeLog>> others;
    for (uint64_t v = 20; v < 26; ++v) {
        others.push_back(JournalTest::open(VolumeId(v), 1));
        for (;;) {
            Record record = write_of(0, v, 32);
            Admission admission = others.back()->try_admit(record);
            if (!admission) break;
            record.lsn = others.back()->next_lsn();
            ok(world.run(others.back()->wait(
                others.back()->submit(std::move(record), std::move(admission)))));
        }
    }
    std::optional<Result<Message>> late;
    auto ask = [](MemberHost* host, AppendCall call,
                  std::optional<Result<Message>>* out) -> Task<void> {
        *out = co_await host->append(std::move(call));
    };
    while (node.device->ring().free_bytes(media::Urgency::user) >= 3 * kBlockBytes)
        answer(append(1, 11, stamper.stamp(write_of(3, 3))));
    runtime::spawn(world.env().executor,
                   ask(host.get(), append_call(1, 11, stamper.stamp(write_of(4, 4))), &late));
    world.run_for(std::chrono::milliseconds(100));
    EXPECT_FALSE(late);
    RenewMessage renew{claim_of(1), OpenToken(11), world.now()};
    std::ignore = answer(ok(world.run(host->renew(kVolume, renew))));
    EXPECT_EQ(fenced(fence(2, 11)).outcome, LogOutcome::complete);
    world.run_for(std::chrono::milliseconds(100));
    ASSERT_TRUE(late && *late);
    EXPECT_EQ(refused(**late), Reason::fenced);
    others.clear();
}

TEST_F(MemberTest, ADeletedVolumeIsForgotten) {
    fill(2);
    ok(world.run(host->drop(kVolume)));
    FenceMessage message{claim_of(2), device, OpenToken(11)};
    EXPECT_EQ(world.run(host->fence(kVolume, kLineage, message)).error().code(), Code::fenced);
    restart();
    EXPECT_EQ(host->fence_of(kVolume), Epoch(0));
}

}  // namespace
}  // namespace peplos::replica
