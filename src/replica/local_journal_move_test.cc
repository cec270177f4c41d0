#include "replica/journal_test_rig.h"

// When old records move to the front of the ring, so that its tail goes on.
namespace peplos::replica {
namespace {

constexpr VolumeId kIdle(1);
constexpr VolumeId kEarlierFiller(2);

struct JournalMoveTest : JournalTest {
    media::Ring& ring() { return node.device->ring(); }
    // The oldest record is one of a volume that is replayed and so keeps its place; behind it the
    // ring fills with what another volume needs no more.
    void fill_behind_a_replay() {
        idle = open(kIdle, 1);
        put(*idle, write_of(7, 70));
        written = ring().newest_sequence();
        runtime::spawn(world.env().executor, replay_slowly(*idle, visitor, &is_replayed));
        filler = open(kEarlierFiller, 1);
        for (uint64_t i = 0; !ring().is_short(); ++i) {
            ASSERT_LT(i, 1000u);
            Lsn last = put(*filler, write_of(1, i, 32));
            Lsn seal = put(*filler, seal_of(last));
            put(*filler, root_of(last, seal));
            filler->trim(last, seal);
        }
    }

    uint64_t written = 0;  // the frame of its record
    SlowVisitor visitor;
    bool is_replayed = false;
    std::unique_ptr<VolumeLog> idle;
    std::unique_ptr<VolumeLog> filler;
};

// The daemon ended before anything could move, and nobody writes after the start.
TEST_F(JournalMoveTest, ARingThatWasFullAtTheLastEndIsLookedAtAtTheStart) {
    fill_behind_a_replay();
    ASSERT_FALSE(HasFatalFailure());
    idle.reset();
    filler.reset();
    crash(sim::CrashMode::keep);
    begin();
    world.run_until_idle();
    EXPECT_FALSE(ring().is_short());
    EXPECT_GE(node.journal->stats().reappended_records, 1u);
    auto log = open(kIdle, 2);
    EXPECT_EQ(log->tail().outcome, LogOutcome::complete) << log->tail().reason;
    std::vector<Record> records = replay(*log);
    ASSERT_EQ(records.size(), 1u);
    EXPECT_EQ(value_of(records[0], 0), 70u);
}

// A replay holds all moves up; its end wakes them, though nobody writes.
TEST_F(JournalMoveTest, WhatAReplayHeldUpMovesWhenItEnds) {
    fill_behind_a_replay();
    ASSERT_FALSE(HasFatalFailure());
    EXPECT_EQ(node.journal->stats().reappended_records, 0u);
    visitor.go_on.set();
    world.run_until_idle();
    EXPECT_TRUE(is_replayed);
    EXPECT_FALSE(ring().is_short());
    EXPECT_EQ(replay(*idle).size(), 1u);
    idle.reset();
    filler.reset();
}

// Replays that begin at every moment of a move that the device delays: each waits for it, and
// gives what is there.
TEST_F(JournalMoveTest, AReplayBesideAMoveWaitsAndBothEndWell) {
    for (uint64_t events = 0; events < 40; events += 3) {
        SCOPED_TRACE(fmt::format("{} events", events));
        end();
        ok(world.run(format_disk(world.env())));
        recorded.clear();
        begin();
        visitor.go_on.reset();
        is_replayed = false;
        fill_behind_a_replay();
        ASSERT_FALSE(HasFatalFailure());
        world.disk(kPath).add_fault({.operation = sim::DiskOperation::write,
                                     .effect = sim::DiskEffect::slow,
                                     .delay = std::chrono::milliseconds(50)});
        visitor.go_on.set();
        for (uint64_t i = 0; i < events; ++i)
            world.step();
        std::vector<Record> records = replay(*idle);
        ASSERT_EQ(records.size(), 1u);
        EXPECT_EQ(value_of(records[0], 0), 70u);
        world.disk(kPath).clear_faults();
        world.run_until_idle();
        EXPECT_TRUE(is_replayed);
        EXPECT_FALSE(ring().is_short());
        idle.reset();
        filler.reset();
    }
}

// The oldest record went bad and its owner did not drain it: it is given up, and while the device
// takes its time to write that down, a replay begins. It waits, or it would read places that are
// let go meanwhile.
TEST_F(JournalMoveTest, AReplayWaitsForAMoveThatGivesSomethingUp) {
    fill_behind_a_replay();
    ASSERT_FALSE(HasFatalFailure());
    const uint64_t next = ring().device_offset_of({written + 1, 0, 0});
    world.disk(kPath).corrupt(next - 100);
    world.disk(kPath).add_fault({.operation = sim::DiskOperation::write,
                                 .effect = sim::DiskEffect::slow,
                                 .delay = std::chrono::milliseconds(50)});
    visitor.go_on.set();
    int refused = 0;
    for (int i = 0; i < 1500 && ring().is_short(); ++i) {
        world.run_for(std::chrono::milliseconds(10));
        Collector collector;
        auto replayed = world.run(idle->replay(collector));
        if (!replayed) {
            ++refused;
            EXPECT_EQ(replayed.error().code(), Code::corrupt);
        }
    }
    EXPECT_GT(refused, 0);
    EXPECT_FALSE(ring().is_short());
    EXPECT_TRUE(idle->is_endangered());
    world.disk(kPath).clear_faults();
    world.run_until_idle();
    idle.reset();
    filler.reset();
}

}  // namespace
}  // namespace peplos::replica
