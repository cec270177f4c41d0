#include "volume/volume_damage_rig.h"

// The record of a drain is lost, and nothing follows it: what it drained is in segments that nobody
// names any more, and the journal no longer has it. Never does the volume go on as if that had not
// been.
namespace peplos::volume {
namespace {

using replica::OnLoss;

constexpr uint64_t kOld = 64 * kKiB;  // bytes that the checkpoint covers

// A write, a drain and a checkpoint; then another write over half of it, and a drain.
struct LostSeal : testing::Test {
    Rig rig{1};
    uint64_t write_frame = 0;
    uint64_t seal_frame = 0;
    Lsn seal_lsn;
    std::vector<std::byte> before;  // what the checkpoint covers

    void make() {
        rig.make();
        ASSERT_TRUE(rig.world.run(rig.write(0, kOld)));
        ASSERT_TRUE(rig.world.run(rig.volume->drain()));
        ASSERT_TRUE(rig.world.run(rig.volume->checkpoint()));
        before = content();
        write_frame = rig.device->ring().newest_sequence() + 1;
        ASSERT_TRUE(rig.world.run(rig.write(0, kOld / 2)));
        ASSERT_TRUE(rig.world.run(rig.write(20 * kMiB, 8 * kKiB)));
        ASSERT_TRUE(rig.world.run(rig.volume->drain()));
        seal_frame = rig.device->ring().newest_sequence();
        auto record = rig.world.run(rig.device->ring().read_frame(seal_frame));
        ASSERT_TRUE(record && !record->empty());
        ASSERT_EQ(record->front().record.type, format::RecordType::seal);
        seal_lsn = record->front().record.lsn;
    }
    std::vector<std::byte> content() {
        Buffer into = Buffer::allocate(kOld);
        auto read = rig.world.run(rig.volume->read(0, into));
        EXPECT_TRUE(read) << read.error().text();
        Bytes seen = std::as_const(into).bytes();
        return {seen.begin(), seen.end()};
    }
    uint64_t frame_at(uint64_t sequence) {
        return rig.device->ring().device_offset_of({sequence, 0, 0});
    }
    void close_volume() {
        rig.world.run(rig.volume->stop());
        rig.volume.reset();
    }
    // Another volume's records, until the ring's tail has passed that frame.
    void push_tail_over(uint64_t sequence) {
        replica::OpenRequest request{.volume = VolumeId(99),
                                     .lineage = LineageId(98),
                                     .epoch = Epoch(1),
                                     .token = OpenToken(97),
                                     .recorded = {}};
        auto log = rig.world.run(rig.journal->open(request));
        ASSERT_TRUE(log) << log.error().text();
        for (int i = 0; rig.device->ring().tail_sequence() <= sequence; ++i) {
            ASSERT_LT(i, 4000);
            format::Record record;
            record.type = format::RecordType::resize;
            record.body = format::ResizeBody{9};
            if (i % 100 == 99) {
                Lsn last((*log)->next_lsn().value - 1);
                record.type = format::RecordType::root;
                record.body =
                    format::RootBody{.drained_lsn = last, .meta_lsn = last, .size_blocks = 9};
            }
            auto appended = rig.world.run((*log)->append(std::move(record)));
            ASSERT_TRUE(appended) << appended.error().text();
            if (i % 100 == 99) (*log)->trim(*appended, Lsn(appended->value - 1));
        }
    }
    // Neither shown as harmless nor gone on with: the record's LSN is named.
    void expect_refused() {
        for (OnLoss on_loss : {OnLoss::look, OnLoss::accept}) {
            auto report = rig.world.run(rig.recover_volume(on_loss));
            ASSERT_FALSE(report);
            EXPECT_EQ(report.error().code(), Code::unavailable) << report.error().text();
            EXPECT_NE(report.error().message().find(fmt::format("LSN {}", seal_lsn)),
                      std::string::npos)
                << report.error().message();
        }
    }
    // What it drained is named before it is given up, and then the volume is as before that.
    void expect_named_and_given_up() {
        for (OnLoss on_loss : {OnLoss::look, OnLoss::accept}) {
            LossReport report = recover_ok(rig, on_loss);
            EXPECT_FALSE(report.is_whole());
            EXPECT_TRUE(std::ranges::any_of(report.losses, [](const std::string& loss) {
                return loss.find("1 segments with 10 blocks") != std::string::npos;
            })) << fmt::format("{}", fmt::join(report.losses, "; "));
        }
        rig.open();
        EXPECT_EQ(content(), before);
        EXPECT_EQ(read_error(rig, 20 * kMiB), "");
    }
};

TEST_F(LostSeal, WhatTheJournalStillHasMakesUpForIt) {
    make();
    uint64_t at = frame_at(seal_frame);
    rig.stop();
    rig.world.disk(Rig::kPath).corrupt(at + 70);
    rig.start_node();
    ASSERT_FALSE(rig.try_open());
    LossReport report = recover_ok(rig, OnLoss::accept);
    EXPECT_EQ(report.losses.size(), 1u) << "the newest writes may be missing";
    EXPECT_EQ(report.lost_blocks, 0u);
    rig.open();
    rig.expect_all();
}

TEST_F(LostSeal, AfterARestartItsSegmentsAreNamed) {
    make();
    uint64_t seal_at = frame_at(seal_frame);
    std::vector<uint64_t> places;
    for (uint64_t frame = write_frame; frame < seal_frame; ++frame)
        places.push_back(frame_at(frame));
    rig.stop();
    rig.world.disk(Rig::kPath).corrupt(seal_at + 70);
    for (uint64_t at : places)
        rig.world.disk(Rig::kPath).corrupt(at + 70);
    rig.start_node();
    ASSERT_FALSE(rig.try_open());
    expect_named_and_given_up();
}

// The journal itself moves on past it while the volume is closed: it knows what it lost.
TEST_F(LostSeal, InTheSameProcessTheVolumeStaysClosed) {
    make();
    uint64_t at = frame_at(seal_frame);
    close_volume();
    rig.world.disk(Rig::kPath).corrupt(at + 70);
    push_tail_over(seal_frame);
    ASSERT_FALSE(HasFatalFailure());
    ASSERT_FALSE(rig.try_open());
    expect_refused();
    rig.crash({.mode = sim::CrashMode::keep});
    rig.start_node();
    ASSERT_FALSE(rig.try_open());
    expect_named_and_given_up();
}

// The scan at the start could read it, and the replay cannot.
TEST_F(LostSeal, UnreadableAtTheReplayTheVolumeStaysClosed) {
    make();
    uint64_t seal_at = frame_at(seal_frame);
    // No record that can be read follows it: the end of the journal is lost, too.
    Buffer data = Buffer::zeroed(kBlockBytes);
    ASSERT_TRUE(rig.world.run(rig.volume->write(24 * kMiB, data)));
    uint64_t end_at = frame_at(rig.device->ring().newest_sequence());
    rig.crash({.mode = sim::CrashMode::keep});
    make_unreadable(rig, end_at);
    rig.start_node();
    make_unreadable(rig, seal_at);
    ASSERT_FALSE(rig.try_open());
    expect_refused();
    rig.world.disk(Rig::kPath).clear_faults();
    EXPECT_EQ(recover_ok(rig, OnLoss::look).lost_blocks, 0u);
}

// Nothing else is wrong with that journal, so nothing is salvaged of it: an error says where.
TEST_F(LostSeal, UnreadableAtTheReplayOfAWholeJournalItIsAnErrorThatPasses) {
    make();
    uint64_t seal_at = frame_at(seal_frame);
    rig.stop();
    rig.start_node();
    make_unreadable(rig, seal_at);
    ASSERT_FALSE(rig.try_open());
    auto report = rig.world.run(rig.recover_volume(OnLoss::accept));
    ASSERT_FALSE(report);
    EXPECT_NE(report.error().message().find(Rig::kPath), std::string::npos);
    rig.world.disk(Rig::kPath).clear_faults();
    rig.open();
    rig.expect_all();
}

}  // namespace
}  // namespace peplos::volume
