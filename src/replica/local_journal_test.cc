#include "replica/journal_test_rig.h"

namespace peplos::replica {
namespace {

TEST_F(JournalTest, GivesTheTailBackInOrder) {
    auto log = open(VolumeId(1), 1);
    EXPECT_EQ(log->tail().outcome, LogOutcome::complete);
    EXPECT_EQ(log->tail().last_lsn, Lsn(0));
    for (uint64_t i = 1; i <= 5; ++i)
        EXPECT_EQ(put(*log, write_of(i, i * 10, 2)), Lsn(i));
    log.reset();
    end();
    begin();
    log = open(VolumeId(1), 2);
    EXPECT_EQ(log->tail().outcome, LogOutcome::complete) << log->tail().reason;
    EXPECT_EQ(log->tail().last_lsn, Lsn(5));
    EXPECT_EQ(log->tail().fence_before, Epoch(1));
    std::vector<Record> records = replay(*log);
    ASSERT_EQ(records.size(), 5u);
    for (uint64_t i = 1; i <= 5; ++i) {
        EXPECT_EQ(records[i - 1].lsn, Lsn(i));
        EXPECT_EQ(records[i - 1].lba, Lba(i));
        EXPECT_EQ(value_of(records[i - 1], 1), i * 10 + 1);
    }
    EXPECT_EQ(put(*log, write_of(1, 1)), Lsn(6));
}

TEST_F(JournalTest, FencesTheOldOwner) {
    auto old_log = open(VolumeId(1), 1);
    put(*old_log, write_of(1, 1));
    auto refused = world.run(node.journal->open(request(VolumeId(1), 1)));
    ASSERT_FALSE(refused);
    EXPECT_EQ(refused.error().code(), Code::fenced);
    auto new_log = open(VolumeId(1), 5);
    auto late = world.run(old_log->append(write_of(1, 2)));
    ASSERT_FALSE(late);
    EXPECT_EQ(late.error().code(), Code::fenced);
    old_log.reset();
    EXPECT_EQ(put(*new_log, write_of(1, 3)), Lsn(2));
    new_log.reset();
    crash();
    begin();
    auto stale = world.run(node.journal->open(request(VolumeId(1), 5)));
    ASSERT_FALSE(stale) << "the fence is durable";
    EXPECT_EQ(stale.error().code(), Code::fenced);
}

TEST_F(JournalTest, AWipedDeviceCannotTell) {
    auto log = open(VolumeId(1), 1);
    put(*log, write_of(1, 1));
    log.reset();
    end();
    ok(world.run(format_disk(world.env())));
    begin();
    for (uint64_t epoch = 2; epoch < 4; ++epoch) {
        // Asking twice does not make it know.
        log = open(VolumeId(1), epoch);
        EXPECT_EQ(log->tail().outcome, LogOutcome::unknown);
        EXPECT_NE(log->tail().reason.find("formatted anew"), std::string::npos);
        log.reset();
    }
}

TEST_F(JournalTest, ATokenNobodyRecordedDoesNotVouch) {
    auto log = open(VolumeId(1), 1);
    put(*log, write_of(1, 1));
    log.reset();
    Membership good = recorded[VolumeId(1)];
    recorded[VolumeId(1)].token = OpenToken(4711);
    EXPECT_EQ(open(VolumeId(1), 2)->tail().outcome, LogOutcome::unknown);
    EXPECT_EQ(open(VolumeId(1), 3)->tail().outcome, LogOutcome::unknown);
    // A crash between this fence and its record in the control store: the old token still counts.
    recorded[VolumeId(1)] = good;
    EXPECT_EQ(open(VolumeId(1), 4)->tail().outcome, LogOutcome::complete);
    recorded[VolumeId(1)] = good;
    EXPECT_EQ(open(VolumeId(1), 5)->tail().outcome, LogOutcome::complete);
}

TEST_F(JournalTest, TrimForgetsWhatSealAndRootCover) {
    auto log = open(VolumeId(1), 1);
    for (uint64_t i = 1; i <= 4; ++i)
        put(*log, write_of(i, i));
    uint64_t full = log->retained_bytes();
    log->trim(Lsn(3), Lsn(0));
    EXPECT_EQ(log->retained_bytes(), full) << "no durable seal says that 3 is drained";
    EXPECT_EQ(put(*log, seal_of(Lsn(3))), Lsn(5));
    log->trim(Lsn(3), Lsn(0));
    EXPECT_LT(log->retained_bytes(), full);
    log.reset();
    end();
    begin();
    log = open(VolumeId(1), 2);
    EXPECT_EQ(log->tail().outcome, LogOutcome::complete) << log->tail().reason;
    EXPECT_EQ(log->tail().drained_lsn, Lsn(3));
    std::vector<Record> records = replay(*log);
    ASSERT_EQ(records.size(), 2u);
    EXPECT_EQ(records[0].lsn, Lsn(4));
    EXPECT_EQ(records[1].lsn, Lsn(5));
    EXPECT_EQ(put(*log, root_of(Lsn(3), Lsn(5))), Lsn(6));
    log->trim(Lsn(3), Lsn(5));
    EXPECT_EQ(put(*log, root_of(Lsn(3), Lsn(5))), Lsn(7));
    log.reset();
    crash();
    begin();
    log = open(VolumeId(1), 3);
    EXPECT_EQ(log->tail().outcome, LogOutcome::complete) << log->tail().reason;
    ASSERT_TRUE(log->tail().root);
    EXPECT_EQ(log->tail().root->size_blocks, 9u);
    records = replay(*log);
    ASSERT_EQ(records.size(), 2u);
    EXPECT_EQ(records[0].lsn, Lsn(4));
    EXPECT_EQ(records[1].lsn, Lsn(7));
}

TEST_F(JournalTest, RefusesGapsAndToleratesRepeats) {
    auto log = open(VolumeId(1), 1);
    auto submit = [&](Record record, uint64_t lsn) {
        record.lsn = Lsn(lsn);
        Admission admission = log->try_admit(record);
        return world.run(log->wait(log->submit(std::move(record), std::move(admission))));
    };
    EXPECT_TRUE(submit(write_of(1, 7), 1));
    EXPECT_TRUE(submit(write_of(1, 7), 1)) << "a repeat";
    EXPECT_FALSE(submit(write_of(1, 8), 1)) << "another record with that LSN";
    EXPECT_FALSE(submit(write_of(1, 7), 3)) << "a gap";
    EXPECT_TRUE(submit(write_of(1, 9), 2));
    log.reset();
    end();
    begin();
    EXPECT_EQ(open(VolumeId(1), 2)->tail().last_lsn, Lsn(2));
}

Task<void> fill(VolumeLog& log, int count, int* done) {
    for (int i = 0; i < count; ++i) {
        if (!co_await log.append(write_of(1, 1, 32))) co_return;
        ++*done;
    }
}

TEST_F(JournalTest, AVolumeWaitsAtItsShareAndOthersDoNot) {
    auto greedy = open(VolumeId(1), 1);
    auto modest = open(VolumeId(2), 1);
    int done = 0;
    runtime::spawn(world.env().executor, fill(*greedy, 100, &done));
    world.run_until_idle();
    EXPECT_LT(done, 100);
    EXPECT_LE(greedy->retained_bytes(), greedy->retained_bytes_max());
    put(*modest, write_of(1, 1));
    Record zero;
    zero.type = RecordType::zero;
    zero.block_count = 1;
    put(*greedy, std::move(zero));
    Lsn drained(static_cast<uint64_t>(done));
    put(*greedy, seal_of(drained));
    greedy->trim(drained, Lsn(0));
    int before = done;
    world.run_until_idle();
    EXPECT_GT(done, before);
    // Who waits is told when the log ends.
    ok(world.run(node.journal->drop(VolumeId(1))));
    world.run_until_idle();
    EXPECT_LT(done, 100);
}

TEST_F(JournalTest, MovesTheRecordsOfSlowVolumesOutOfTheWay) {
    auto slow = open(VolumeId(1), 1);
    put(*slow, write_of(5, 55));
    put(*slow, root_of(Lsn(0), Lsn(0)));
    auto busy = open(VolumeId(2), 1);
    Lsn last;
    for (int i = 0; i < 400; ++i) {
        last = put(*busy, write_of(1, i, 32));
        if (i % 20 == 19) {
            put(*busy, seal_of(last));
            busy->trim(last, Lsn(0));
        }
    }
    JournalStats stats = node.journal->stats();
    EXPECT_GT(stats.ring.appended_bytes, 3 * kRingBytes);
    EXPECT_GT(stats.reappended_records, 0u);
    slow.reset();
    busy.reset();
    crash();
    begin();
    slow = open(VolumeId(1), 2);
    EXPECT_EQ(slow->tail().outcome, LogOutcome::complete) << slow->tail().reason;
    std::vector<Record> records = replay(*slow);
    ASSERT_EQ(records.size(), 2u);
    EXPECT_EQ(value_of(records[0], 0), 55u);
    EXPECT_EQ(open(VolumeId(2), 2)->tail().outcome, LogOutcome::complete);
    slow.reset();
}

TEST_F(JournalTest, AMoveThatIsUnderWayYieldsToAReplay) {
    auto slow = open(VolumeId(1), 1);
    for (int i = 0; i < 3; ++i)
        put(*slow, write_of(i, 50 + i));
    slow.reset();
    open(VolumeId(1), 2).reset();  // its fence, so that the tail is the first write
    // The move reads its frame for 5 ms; the replay, which begins meanwhile, reads for 20 ms.
    sim::DiskMedia& disk = world.disk(kPath);
    disk.add_fault({.operation = sim::DiskOperation::read,
                    .effect = sim::DiskEffect::slow,
                    .count = 1,
                    .delay = std::chrono::milliseconds(5)});
    disk.add_fault({.operation = sim::DiskOperation::read,
                    .effect = sim::DiskEffect::slow,
                    .skip = 1,
                    .delay = std::chrono::milliseconds(20)});
    auto busy = open(VolumeId(2), 1);
    for (int i = 0; !node.device->ring().is_short(); ++i) {
        Lsn last = put(*busy, write_of(1, i, 32));
        if (i % 20 == 19) {
            put(*busy, seal_of(last));
            busy->trim(last, Lsn(0));
        }
    }
    slow = open(VolumeId(1), 3);
    std::vector<Record> records = replay(*slow);
    ASSERT_EQ(records.size(), 3u);
    for (size_t i = 0; i < 3; ++i)
        EXPECT_EQ(value_of(records[i], 0), 50 + i);
    disk.clear_faults();
    world.run_until_idle();
    // The replay has ended: now the records go out of the way.
    EXPECT_GT(node.journal->stats().reappended_records, 0u);
}

TEST_F(JournalTest, ManyVolumesThatSayLittleTakeLittle) {
    // Each fence has a frame of 4 KiB to itself: together more than the ring has.
    for (uint64_t volume = 1; volume <= 5000; ++volume)
        open(VolumeId(volume), 1).reset();
    world.run_until_idle();
    JournalStats stats = node.journal->stats();
    EXPECT_LT(stats.ring.used_bytes, kRingBytes / 4 * 3);
    EXPECT_LT(stats.reappended_records, 10'000u);
    crash();
    begin();
    EXPECT_EQ(node.journal->volumes().size(), 5000u);
}

TEST_F(JournalTest, WritersThatWaitForATailGoOnWhenOthersHaveDrained) {
    auto slow = open(VolumeId(1), 1);
    put(*slow, write_of(5, 55));
    std::vector<std::unique_ptr<VolumeLog>> logs;
    std::vector<Lsn> last;
    for (uint64_t volume = 2; volume < 5; ++volume) {
        logs.push_back(open(VolumeId(volume), 1));
        for (int i = 0; i < 26; ++i)
            put(*logs.back(), write_of(1, i, 32));
        last.push_back(Lsn(26));
    }
    auto waiting = open(VolumeId(5), 1);
    int done = 0;
    runtime::spawn(world.env().executor, fill(*waiting, 40, &done));
    world.run_until_idle();
    ASSERT_LT(done, 28);
    // Every seal is durable before the first trim: nothing is committed after the trims.
    for (size_t i = 0; i < logs.size(); ++i)
        put(*logs[i], seal_of(last[i]));
    for (size_t i = 0; i < logs.size(); ++i)
        logs[i]->trim(last[i], Lsn(0));
    int before = done;
    world.run_until_idle();
    EXPECT_GT(done, before);
    ok(world.run(node.journal->drop(VolumeId(5))));
    world.run_until_idle();
}

TEST_F(JournalTest, DropForgetsForGood) {
    auto log = open(VolumeId(1), 1);
    put(*log, write_of(1, 1));
    put(*log, root_of(Lsn(0), Lsn(0)));
    ok(world.run(node.journal->drop(VolumeId(1))));
    EXPECT_FALSE(world.run(log->append(write_of(1, 1))));
    log.reset();
    auto other = open(VolumeId(2), 1);
    put(*other, write_of(2, 2));
    other.reset();
    crash();
    begin();
    auto volumes = node.journal->volumes();
    ASSERT_EQ(volumes.size(), 1u);
    EXPECT_EQ(volumes[0].volume, VolumeId(2));
    EXPECT_EQ(volumes[0].last_lsn, Lsn(1));
}

Task<void> replay_into(VolumeLog& log, Collector& collector, std::optional<Error>* error) {
    auto outcome = co_await log.replay(collector);
    if (!outcome) *error = std::move(outcome).error();
}

Task<void> drop_volume(LocalJournal& journal, VolumeId volume, bool* done) {
    auto dropped = co_await journal.drop(volume);
    CHECK(dropped.has_value());
    *done = true;
}

TEST_F(JournalTest, ADropDuringAReplayWaitsForIt) {
    auto log = open(VolumeId(1), 1);
    for (int i = 0; i < 40; ++i)
        put(*log, write_of(i, i, 16));
    log.reset();
    log = open(VolumeId(1), 2);
    Collector collector;
    std::optional<Error> error;
    bool is_dropped = false;
    runtime::spawn(world.env().executor, replay_into(*log, collector, &error));
    while (world.disk(kPath).in_flight_count() == 0)
        ASSERT_TRUE(world.step());
    runtime::spawn(world.env().executor, drop_volume(*node.journal, VolumeId(1), &is_dropped));
    world.run_until_idle();
    EXPECT_TRUE(is_dropped);
    ASSERT_TRUE(error.has_value()) << "the owner is told";
    EXPECT_EQ(error->code(), Code::fenced);
    log.reset();
}

TEST_F(JournalTest, AnOpenDuringAReplayWaitsForIt) {
    auto first = open(VolumeId(1), 1);
    for (int i = 0; i < 40; ++i)
        put(*first, write_of(i, i, 16));
    first.reset();
    first = open(VolumeId(1), 2);
    Collector collector;
    std::optional<Error> error;
    runtime::spawn(world.env().executor, replay_into(*first, collector, &error));
    while (world.disk(kPath).in_flight_count() == 0)
        ASSERT_TRUE(world.step());
    auto second = open(VolumeId(1), 3);
    put(*second, seal_of(Lsn(40)));
    second->trim(Lsn(40), Lsn(0));
    world.run_until_idle();
    ASSERT_TRUE(error.has_value());
    EXPECT_EQ(error->code(), Code::fenced);
    first.reset();
}

TEST_F(JournalTest, DroppedVolumesLeaveNothingInMemory) {
    for (uint64_t volume = 1; volume <= 50; ++volume) {
        auto log = open(VolumeId(volume), 1);
        put(*log, write_of(1, 1));
        ok(world.run(node.journal->drop(VolumeId(volume))));
        log.reset();
    }
    EXPECT_EQ(node.journal->stats().volumes, 0u);
    // Whoever waits for room keeps it alive until it has heard of it.
    auto greedy = open(VolumeId(60), 1);
    int done = 0;
    runtime::spawn(world.env().executor, fill(*greedy, 100, &done));
    world.run_until_idle();
    ok(world.run(node.journal->drop(VolumeId(60))));
    world.run_until_idle();
    greedy.reset();
    auto other = open(VolumeId(61), 1);
    EXPECT_EQ(node.journal->stats().volumes, 1u);
}

// Frames after a boot: [boot 4096] and then 8192 bytes for each append of one block.
TEST_F(JournalTest, DamageIsNamedLastsAndSparesOthers) {
    uint64_t ring =
        format::plan_device(kDiskBytes, kRingBytes, format::MediaClass::nvme)->rings[0].offset;
    auto hurt = open(VolumeId(1), 1);   // fence at 4096
    auto other = open(VolumeId(2), 1);  // fence at 8192
    put(*other, write_of(1, 21));       // 12288
    put(*hurt, write_of(1, 11));        // 20480
    put(*other, write_of(2, 22));       // 28672
    hurt.reset();
    other.reset();
    end();
    world.disk(kPath).corrupt(ring + 20480 + 40);
    begin();
    for (uint64_t epoch = 2; epoch < 5; ++epoch) {
        auto log = open(VolumeId(1), epoch);
        EXPECT_EQ(log->tail().outcome, LogOutcome::unknown);
        EXPECT_NE(log->tail().reason.find(kPath), std::string::npos) << log->tail().reason;
        EXPECT_NE(log->tail().reason.find("LSN 1"), std::string::npos) << log->tail().reason;
        auto fine = open(VolumeId(2), epoch);
        EXPECT_EQ(fine->tail().outcome, LogOutcome::complete) << fine->tail().reason;
        EXPECT_EQ(replay(*fine).size(), 2u);
        log.reset();
        fine.reset();
        crash();
        begin();
    }
}

TEST_F(JournalTest, ACorruptPayloadIsNeverServed) {
    uint64_t ring =
        format::plan_device(kDiskBytes, kRingBytes, format::MediaClass::nvme)->rings[0].offset;
    auto log = open(VolumeId(1), 1);
    put(*log, write_of(1, 11));  // frame at 8192, payload at 12288
    put(*log, write_of(2, 12));
    log.reset();
    end();
    world.disk(kPath).corrupt(ring + 12288 + 77);
    begin();
    log = open(VolumeId(1), 2);
    EXPECT_EQ(log->tail().outcome, LogOutcome::unknown);
    Collector collector;
    auto replayed = world.run(log->replay(collector));
    ASSERT_FALSE(replayed);
    EXPECT_EQ(replayed.error().code(), Code::corrupt);
    EXPECT_TRUE(collector.records.empty());
    log.reset();
}

// Where a retained value lies on the disk: searched, so that the test needs no layout.
uint64_t find_block(sim::World& world, uint64_t value) {
    Buffer want = block_of(value), have = Buffer::allocate(kBlockBytes);
    for (uint64_t at = 0; at < kDiskBytes; at += kBlockBytes) {
        world.disk(kPath).peek(at, have.bytes());
        if (std::memcmp(want.data(), have.data(), kBlockBytes) == 0) return at;
    }
    CHECK(false, "the block is nowhere on the disk");
    return 0;
}

// Another volume's writes, drained as they go, until the tail has passed `sequence`.
void push_tail(JournalTest& test, VolumeLog& busy, uint64_t sequence) {
    for (int i = 0; test.node.device->ring().tail_sequence() <= sequence; ++i) {
        ASSERT_LT(i, 2000);
        Lsn last = test.put(busy, write_of(1, i, 32));
        if (i % 10 != 9) continue;
        test.put(busy, seal_of(last));
        busy.trim(last, Lsn(0));
        if (i % 50 != 49) continue;
        Lsn meta = busy.next_lsn();
        test.put(busy, root_of(last, Lsn(meta.value - 1)));
        busy.trim(last, Lsn(meta.value - 1));
    }
}

TEST_F(JournalTest, WhatGoesBadInTheJournalIsHealedByAnOwnerThatStillHasIt) {
    for (bool is_unreadable : {false, true}) {
        for (bool is_metadata : {false, true}) {
            auto slow = open(VolumeId(1), recorded.size() * 10 + 1);
            Lsn last = slow->next_lsn();
            put(*slow, write_of(5, 4711));
            uint64_t sequence = node.device->ring().newest_sequence();
            bool is_told = false;
            slow->watch_endangered([&is_told] { is_told = true; });
            uint64_t at = find_block(world, 4711) - (is_metadata ? kBlockBytes : 0);
            if (is_unreadable) {
                world.disk(kPath).add_fault({.operation = sim::DiskOperation::read,
                                             .effect = sim::DiskEffect::io_error,
                                             .offset = at,
                                             .bytes = kBlockBytes});
            } else {
                world.disk(kPath).corrupt(at + 100);
            }
            auto busy = open(VolumeId(2 + recorded.size()), 1);
            push_tail(*this, *busy, sequence);
            EXPECT_TRUE(is_told);
            EXPECT_TRUE(slow->is_endangered());
            // What the owner does about it: a drain, then a checkpoint.
            Lsn drained(slow->next_lsn().value - 1);
            ASSERT_GE(drained, last);
            Lsn seal = put(*slow, seal_of(drained));
            EXPECT_TRUE(slow->is_endangered());
            put(*slow, root_of(drained, seal));
            slow->trim(drained, seal);
            EXPECT_FALSE(slow->is_endangered());
            slow.reset();
            busy.reset();
            world.disk(kPath).clear_faults();
            crash();
            begin();
            slow = open(VolumeId(1), recorded.size() * 10 + 5);
            EXPECT_EQ(slow->tail().outcome, LogOutcome::complete) << slow->tail().reason;
            EXPECT_EQ(slow->tail().drained_lsn, drained);
            slow.reset();
            ok(world.run(node.journal->drop(VolumeId(1))));
            recorded.erase(VolumeId(1));
            end();
            begin();
        }
    }
}

TEST_F(JournalTest, WhatGoesBadUnderNobodysEyesIsDamageForGood) {
    auto slow = open(VolumeId(1), 1);
    put(*slow, write_of(5, 4711));
    uint64_t sequence = node.device->ring().newest_sequence();
    slow.reset();
    world.disk(kPath).corrupt(find_block(world, 4711) + 100);
    auto busy = open(VolumeId(2), 1);
    push_tail(*this, *busy, sequence);
    EXPECT_GT(world.faults().probe_count("replica.log.damaged_late"), 0u);
    busy.reset();
    for (uint64_t epoch = 2; epoch < 4; ++epoch) {
        slow = open(VolumeId(1), epoch);
        EXPECT_EQ(slow->tail().outcome, LogOutcome::unknown);
        EXPECT_NE(slow->tail().reason.find(kPath), std::string::npos) << slow->tail().reason;
        slow.reset();
        crash();
        begin();
    }
    EXPECT_EQ(open(VolumeId(2), 2)->tail().outcome, LogOutcome::complete);
}

TEST_F(JournalTest, FencesAndRootsThatWentBadAreWrittenAnew) {
    auto slow = open(VolumeId(1), 1);
    uint64_t fence = node.device->ring().newest_sequence();
    put(*slow, root_of(Lsn(0), Lsn(0)));
    uint64_t root = node.device->ring().newest_sequence();
    // What later records know must not get into those that are written anew under an old LSN.
    Record later = write_of(7, 700);
    later.settled_lsn = Lsn(2);
    put(*slow, std::move(later));
    slow.reset();
    auto& ring = node.device->ring();
    for (uint64_t sequence : {fence, root})
        world.disk(kPath).corrupt(ring.device_offset_of({sequence, 0, 0}) + 150);
    auto busy = open(VolumeId(2), 1);
    push_tail(*this, *busy, root);
    EXPECT_GE(world.faults().probe_count("replica.log.rewrite"), 2u);
    busy.reset();
    crash();
    begin();
    slow = open(VolumeId(1), 2);
    EXPECT_EQ(slow->tail().outcome, LogOutcome::complete) << slow->tail().reason;
    ASSERT_TRUE(slow->tail().root.has_value());
    EXPECT_EQ(slow->tail().root->size_blocks, 9u);
    EXPECT_EQ(slow->tail().settled_lsn, Lsn(2));
    EXPECT_EQ(slow->tail().fence_before, Epoch(1));
}

TEST_F(JournalTest, AScrubFindsWhatWentBadAndTellsTheOwner) {
    auto log = open(VolumeId(1), 1);
    put(*log, write_of(1, 11));
    put(*log, write_of(2, 4711));
    auto closed = open(VolumeId(2), 1);
    put(*closed, write_of(2, 4712));
    closed.reset();
    JournalScrub clean;
    while (world.run(node.journal->scrub(clean, kMiB))) {
    }
    EXPECT_TRUE(clean.problems.empty());
    EXPECT_GT(clean.bytes_checked, 3u * kBlockBytes);
    world.disk(kPath).corrupt(find_block(world, 4711) + 9);
    world.disk(kPath).corrupt(find_block(world, 4712) + 9);
    JournalScrub scrub;
    while (world.run(node.journal->scrub(scrub, kMiB))) {
    }
    ASSERT_EQ(scrub.problems.size(), 2u);
    EXPECT_NE(scrub.problems[0].find("LSN 2"), std::string::npos) << scrub.problems[0];
    EXPECT_NE(scrub.problems[0].find(kPath), std::string::npos) << scrub.problems[0];
    EXPECT_TRUE(log->is_endangered());
    put(*log, seal_of(Lsn(2)));
    put(*log, root_of(Lsn(2), Lsn(3)));
    log->trim(Lsn(2), Lsn(3));
    EXPECT_FALSE(log->is_endangered());
    log.reset();
    crash();
    begin();
    EXPECT_EQ(open(VolumeId(1), 2)->tail().outcome, LogOutcome::complete);
    EXPECT_EQ(open(VolumeId(2), 2)->tail().outcome, LogOutcome::unknown);
}

TEST_F(JournalTest, TwoLostFramesInARow) {
    auto hurt = open(VolumeId(1), 1);
    put(*hurt, write_of(1, 11));
    auto other = open(VolumeId(2), 1);
    put(*other, write_of(1, 21));
    put(*hurt, write_of(2, 12));  // lost; its witness is lost with the next
    uint64_t first = node.device->ring().newest_sequence();
    put(*hurt, write_of(3, 13));  // lost
    put(*other, write_of(2, 22));
    uint64_t place = node.device->ring().device_offset_of({first, 0, 0});
    hurt.reset();
    other.reset();
    end();
    world.disk(kPath).corrupt(place + 40);
    world.disk(kPath).corrupt(place + 2 * kBlockBytes + 40);
    begin();
    for (uint64_t epoch = 2; epoch < 4; ++epoch) {
        EXPECT_EQ(open(VolumeId(1), epoch)->tail().outcome, LogOutcome::unknown);
        auto fine = open(VolumeId(2), epoch);
        EXPECT_EQ(fine->tail().outcome, LogOutcome::complete) << fine->tail().reason;
        EXPECT_EQ(replay(*fine).size(), 2u);
        fine.reset();
        crash();
        begin();
    }
}

Record zero_of(uint64_t lba) {
    Record record;
    record.type = RecordType::zero;
    record.lba = Lba(lba);
    record.block_count = 1;
    return record;
}

Task<void> append_one(VolumeLog& log, int* done) {
    CHECK(co_await log.append(zero_of(1)));
    ++*done;
}

// A frame with records of more volumes than a frame has witnesses: when it is lost, a volume that
// said nothing later cannot be proven whole; one that did is known.
TEST_F(JournalTest, AFrameOfMoreVolumesThanWitnesses) {
    constexpr uint64_t kVolumes = 4 * format::kFrameWitnessCountMax;
    std::vector<std::unique_ptr<VolumeLog>> logs;
    for (uint64_t v = 1; v <= kVolumes; ++v)
        logs.push_back(open(VolumeId(v), 1));
    int done = 0;
    uint64_t before = node.device->ring().newest_sequence();
    for (auto& log : logs)
        runtime::spawn(world.env().executor, append_one(*log, &done));
    world.run_until_idle();
    ASSERT_EQ(done, static_cast<int>(kVolumes));
    uint64_t largest = before + 1;
    size_t records = 0;
    for (uint64_t next = before + 1; next <= node.device->ring().newest_sequence(); ++next) {
        auto frame = world.run(node.device->ring().read_frame(next));
        ASSERT_TRUE(frame);
        if (frame->size() > records) largest = next;
        records = std::max(records, frame->size());
    }
    ASSERT_GT(records, 2 * format::kFrameWitnessCountMax);
    uint64_t place = node.device->ring().device_offset_of({largest, 0, 0});
    put(*logs[5], zero_of(2));
    logs.clear();
    end();
    world.disk(kPath).corrupt(place + 40);
    begin();
    uint64_t complete = 0;
    for (uint64_t v = 1; v <= kVolumes; ++v) {
        auto log = open(VolumeId(v), 2);
        bool is_complete = log->tail().outcome == LogOutcome::complete;
        complete += is_complete ? 1 : 0;
        // Whoever is called complete has what was acknowledged.
        if (is_complete) EXPECT_EQ(replay(*log).size(), v == 6 ? 2u : 1u) << v;
    }
    EXPECT_LE(complete, 1u) << "only the one that said something later can be";
}

TEST_F(JournalTest, AFloodOfTrimsLeavesRoomForSeals) {
    auto log = open(VolumeId(1), 1);
    uint64_t count = 0;
    Record record = zero_of(0);
    for (; Admission admission = log->try_admit(record); ++count) {
        record.lsn = log->next_lsn();
        ok(world.run(log->wait(log->submit(std::move(record), std::move(admission)))));
        record = zero_of(count);
    }
    EXPECT_GT(count, 1000u);
    // Now they wait in line; a seal does not.
    int done = 0;
    runtime::spawn(world.env().executor, append_one(*log, &done));
    Lsn last(log->next_lsn().value - 1);
    put(*log, seal_of(last));
    log->trim(last, Lsn(0));
    world.run_until_idle();
    EXPECT_EQ(done, 1);
    log.reset();
    crash();
    begin();
    EXPECT_EQ(open(VolumeId(1), 2)->tail().outcome, LogOutcome::complete);
}

}  // namespace
}  // namespace peplos::replica
