#include "replica/journal_test_rig.h"

namespace peplos::replica {
namespace {

struct JournalLossTest : JournalTest {
    // How a log is opened to look at what is left of it, or to go on with that.
    std::unique_ptr<VolumeLog> salvage(VolumeId volume, uint64_t epoch, OnLoss on_loss) {
        OpenRequest asked = request(volume, epoch);
        asked.on_loss = on_loss;
        auto log = ok(world.run(node.journal->open(asked)));
        token = asked.token;
        return log;
    }
    bool scrub_finds_nothing() {
        JournalScrub scrub;
        while (world.run(node.journal->scrub(scrub, kMiB))) {
        }
        return scrub.problems.empty();
    }
    std::vector<Lsn> lsns(VolumeLog& log) {
        std::vector<Lsn> out;
        for (const Record& record : replay(log))
            out.push_back(record.lsn);
        return out;
    }
    // Writes 1 to 3, of which the last is in a block that cannot be read right behind what can.
    void lose_the_end() {
        auto log = open(VolumeId(1), 1);
        put(*log, write_of(1, 11));
        put(*log, write_of(2, 12));
        uint64_t next = node.device->ring().newest_sequence() + 1;
        put(*log, write_of(3, 13));
        end_at = node.device->ring().device_offset_of({next, 0, 0});
        log.reset();
        crash(sim::CrashMode::keep);
        world.disk(kPath).add_fault({.operation = sim::DiskOperation::read,
                                     .effect = sim::DiskEffect::io_error,
                                     .offset = end_at,
                                     .bytes = kBlockBytes});
    }

    OpenToken token;
    uint64_t end_at = 0;
};

TEST_F(JournalLossTest, OneReadThatFailsOrIsGarbledCostsNothing) {
    auto log = open(VolumeId(1), 1);
    put(*log, write_of(1, 11));
    put(*log, write_of(2, 12));
    for (sim::DiskEffect effect : {sim::DiskEffect::io_error, sim::DiskEffect::garbled}) {
        world.disk(kPath).add_fault(
            {.operation = sim::DiskOperation::read, .effect = effect, .count = 2});
        EXPECT_TRUE(scrub_finds_nothing());
        EXPECT_FALSE(log->is_endangered());
        world.disk(kPath).clear_faults();
    }
}

// What a scrub could not read is drained from memory. When the process dies before that, the next
// one reads it itself, and it is what the device gives then that counts.
TEST_F(JournalLossTest, WhatCouldNotBeReadForAWhileIsNoDamage) {
    auto log = open(VolumeId(1), 1);
    put(*log, write_of(1, 11));
    put(*log, write_of(2, 12));
    for (sim::DiskEffect effect : {sim::DiskEffect::io_error, sim::DiskEffect::garbled}) {
        world.disk(kPath).add_fault({.operation = sim::DiskOperation::read, .effect = effect});
        EXPECT_FALSE(scrub_finds_nothing());
        EXPECT_TRUE(log->is_endangered());
        world.disk(kPath).clear_faults();
    }
    log.reset();
    crash();
    begin();
    log = open(VolumeId(1), 2);
    EXPECT_EQ(log->tail().outcome, LogOutcome::complete) << log->tail().reason;
    EXPECT_EQ(replay(*log).size(), 2u);
}

TEST_F(JournalLossTest, ALostEndIsGivenUpOnceThatIsAccepted) {
    lose_the_end();
    begin();
    // A look changes nothing, however often.
    for (uint64_t epoch : {2, 3}) {
        auto log = salvage(VolumeId(1), epoch, OnLoss::look);
        EXPECT_EQ(log->tail().outcome, LogOutcome::unknown);
        EXPECT_TRUE(log->tail().is_salvaged);
        EXPECT_EQ(log->tail().last_lsn, Lsn(2));
        EXPECT_EQ(lsns(*log), (std::vector{Lsn(1), Lsn(2)}));
    }
    EXPECT_FALSE(open(VolumeId(1), 4)->tail().is_salvaged);
    auto log = salvage(VolumeId(1), 5, OnLoss::accept);
    EXPECT_EQ(lsns(*log), (std::vector{Lsn(1), Lsn(2)}));
    Lsn last = log->tail().last_lsn;
    EXPECT_EQ(last.value, 2 + write_off_lsns(kRingBytes));
    log.reset();
    // Not carried out yet: the log is as closed as before, and can be accepted again.
    crash();
    world.disk(kPath).clear_faults();
    begin();
    EXPECT_EQ(open(VolumeId(1), 6)->tail().outcome, LogOutcome::unknown);
    log = salvage(VolumeId(1), 7, OnLoss::accept);
    EXPECT_GT(log->tail().last_lsn, last);
    last = log->tail().last_lsn;
    EXPECT_TRUE(log->is_endangered());
    put(*log, root_of(last, last));
    log->trim(last, last);
    EXPECT_FALSE(log->is_endangered());
    log.reset();
    crash();
    begin();
    log = open(VolumeId(1), 8);
    EXPECT_EQ(log->tail().outcome, LogOutcome::complete) << log->tail().reason;
    EXPECT_EQ(log->tail().drained_lsn, last);
    put(*log, write_of(1, 99));
    EXPECT_EQ(replay(*log).back().lsn, last.next().next());
}

// As many of the smallest records as the largest rings hold are all below where a log goes on.
TEST_F(JournalLossTest, ALogGoesOnBehindAllThatALostRingMayHaveHeld) {
    Record zero;
    zero.type = RecordType::zero;
    zero.block_count = 1;
    for (uint64_t ring_bytes : {kRingBytes, limits::kRingBytesDefault, kGiB, 64 * kGiB})
        EXPECT_GE(write_off_lsns(ring_bytes), ring_bytes / format::encoded_bytes(zero));
}

// The block can be read again one day, and with it what was given up.
TEST_F(JournalLossTest, WhatWasGivenUpNeverComesBack) {
    auto log = open(VolumeId(1), 1);
    put(*log, write_of(1, 11));
    put(*log, write_of(2, 12));
    uint64_t at =
        node.device->ring().device_offset_of({node.device->ring().newest_sequence(), 0, 0});
    put(*log, write_of(3, 13));
    log.reset();
    crash(sim::CrashMode::keep);
    world.disk(kPath).add_fault({.operation = sim::DiskOperation::read,
                                 .effect = sim::DiskEffect::io_error,
                                 .offset = at,
                                 .bytes = kBlockBytes});
    begin();
    log = salvage(VolumeId(1), 2, OnLoss::accept);
    EXPECT_EQ(lsns(*log), (std::vector{Lsn(1), Lsn(3)}));
    Lsn last = log->tail().last_lsn;
    world.disk(kPath).clear_faults();
    for (int boot = 0; boot < 2; ++boot) {
        if (boot == 1) {
            log = salvage(VolumeId(1), 4, OnLoss::accept);
            last = log->tail().last_lsn;
            put(*log, root_of(last, last));
        }
        log.reset();
        crash();
        begin();
        log = open(VolumeId(1), boot == 0 ? 3 : 5);
        // Nothing was said of what is covered: then not even what can be read again counts.
        EXPECT_EQ(log->tail().outcome, boot == 0 ? LogOutcome::unknown : LogOutcome::complete);
    }
    EXPECT_EQ(log->tail().drained_lsn, last);
    for (const Record& record : replay(*log))
        EXPECT_GE(record.lsn, last);
}

TEST_F(JournalLossTest, AFormattedDeviceHasNothingToAccept) {
    auto log = open(VolumeId(1), 1);
    put(*log, write_of(1, 11));
    log.reset();
    end();
    ok(world.run(format_disk(world.env())));
    begin();
    log = salvage(VolumeId(1), 2, OnLoss::accept);
    EXPECT_EQ(log->tail().outcome, LogOutcome::unknown);
    EXPECT_FALSE(log->tail().is_salvaged);
}

}  // namespace
}  // namespace peplos::replica
