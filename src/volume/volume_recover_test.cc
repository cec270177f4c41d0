#include "volume/volume_damage_rig.h"

namespace peplos::volume {
namespace {

using replica::OnLoss;

// Two checkpointed writes, and after the checkpoint a drain of two others.
void fill(Rig& rig) {
    rig.make();
    ASSERT_TRUE(rig.world.run(rig.write(0, 64 * kKiB)));
    ASSERT_TRUE(rig.world.run(rig.write(8 * kMiB, 64 * kKiB)));
    ASSERT_TRUE(rig.world.run(rig.volume->drain()));
    ASSERT_TRUE(rig.world.run(rig.volume->checkpoint()));
}

SegmentView drain_more(Rig& rig) {
    std::vector<uint32_t> before;
    for (const SegmentView& segment : rig.volume->segments())
        before.push_back(segment.index);
    CHECK(rig.world.run(rig.write(16 * kKiB, 8 * kKiB)));
    CHECK(rig.world.run(rig.write(20 * kMiB, 32 * kKiB)));
    CHECK(rig.world.run(rig.zero(8 * kMiB, 16 * kKiB)));
    CHECK(rig.world.run(rig.volume->drain()));
    for (const SegmentView& segment : rig.volume->segments()) {
        if (std::ranges::find(before, segment.index) == before.end()) return segment;
    }
    CHECK(false, "the drain made no segment");
    return {};
}

TEST(VolumeRecover, AVolumeThatIsWholeHasNothingToRecover) {
    Rig rig(1);
    fill(rig);
    drain_more(rig);
    ASSERT_TRUE(rig.world.run(rig.write(24 * kMiB, 8 * kKiB)));
    rig.stop();
    rig.start_node();
    for (OnLoss on_loss : {OnLoss::look, OnLoss::accept}) {
        LossReport report = recover_ok(rig, on_loss);
        EXPECT_TRUE(report.is_whole());
        EXPECT_TRUE(report.losses.empty());
    }
    rig.open();
    rig.expect_all();
}

// The journal still has what the drain took: nothing is lost but the index itself.
TEST(VolumeRecover, AnUnreadableSegmentIndexIsPutTogetherFromTheJournal) {
    for (bool is_corrupt : {false, true}) {
        Rig rig(2);
        fill(rig);
        SegmentView segment = drain_more(rig);
        ASSERT_TRUE(rig.world.run(rig.write(24 * kKiB, 4 * kKiB)));
        uint64_t at = device_offset(rig, segment.id) + index_offset(rig, segment);
        rig.stop();
        if (is_corrupt) {
            rig.world.disk(Rig::kPath).corrupt(at + 9);
        } else {
            make_unreadable(rig, at);
        }
        rig.start_node();
        auto opened = rig.try_open();
        ASSERT_FALSE(opened);
        EXPECT_NE(opened.error().message().find(Rig::kPath), std::string::npos);
        for (OnLoss on_loss : {OnLoss::look, OnLoss::look, OnLoss::accept}) {
            ASSERT_FALSE(rig.try_open());
            LossReport report = recover_ok(rig, on_loss);
            ASSERT_EQ(report.findings.size(), 1u);
            EXPECT_NE(report.findings[0].find(Rig::kPath), std::string::npos);
            EXPECT_TRUE(report.losses.empty()) << report.losses[0];
            EXPECT_EQ(report.lost_blocks, 0u);
        }
        rig.open();
        rig.expect_all();
        rig.reopen();
        rig.expect_all();
    }
}

// What the journal does not say any more is lost as far as it may have been touched; the rest is as
// it was, and what is written again is well.
TEST(VolumeRecover, BlocksThatNobodyCanTellAreLostAndNeverOld) {
    Rig rig(3);
    fill(rig);
    uint64_t frame = rig.device->ring().newest_sequence() + 1;
    SegmentView segment = drain_more(rig);
    ASSERT_TRUE(rig.world.run(rig.write(24 * kKiB, 4 * kKiB)));
    uint64_t at = device_offset(rig, segment.id) + index_offset(rig, segment);
    uint64_t record_at = rig.device->ring().device_offset_of({frame, 0, 0});
    rig.stop();
    make_unreadable(rig, at);
    make_unreadable(rig, record_at);
    rig.start_node();
    ASSERT_FALSE(rig.try_open());
    LossReport report = recover_ok(rig, OnLoss::accept);
    ASSERT_EQ(report.losses.size(), 1u);
    EXPECT_GT(report.lost_blocks, 1000u);
    rig.world.disk(Rig::kPath).clear_faults();
    rig.open();
    for (int life = 0; life < 2; ++life) {
        EXPECT_NE(read_error(rig, 0).find("is lost"), std::string::npos) << read_error(rig, 0);
        EXPECT_NE(read_error(rig, 16 * kKiB), "");
        EXPECT_NE(read_error(rig, 20 * kMiB), "");
        EXPECT_EQ(rig.world.run(rig.check(8 * kMiB, 16 * kKiB)), "");
        EXPECT_EQ(rig.world.run(rig.check(24 * kKiB, 4 * kKiB)), "");
        rig.reopen();
    }
    ASSERT_TRUE(rig.world.run(rig.write(0, 24 * kKiB)));
    EXPECT_EQ(rig.world.run(rig.check(0, 28 * kKiB)), "");
}

// A block that rotted beside it is lost alone.
TEST(VolumeRecover, OneRottenBlockOfAnUnreadableIndexIsLostAlone) {
    Rig rig(4);
    fill(rig);
    SegmentView segment = drain_more(rig);
    uint64_t begin = device_offset(rig, segment.id);
    uint64_t at = begin + index_offset(rig, segment);
    rig.stop();
    make_unreadable(rig, at);
    rig.world.disk(Rig::kPath).corrupt(begin + format::segment_block_offset(0) + 5);
    rig.start_node();
    LossReport report = recover_ok(rig, OnLoss::accept);
    EXPECT_EQ(report.lost_blocks, 1u);
    ASSERT_EQ(report.losses.size(), 1u);
    EXPECT_NE(report.losses[0].find("bytes 16384 to 20479"), std::string::npos) << report.losses[0];
    rig.open();
    EXPECT_NE(read_error(rig, 16 * kKiB), "");
    EXPECT_EQ(rig.world.run(rig.check(20 * kKiB, 4 * kKiB)), "");
    EXPECT_EQ(rig.world.run(rig.check(20 * kMiB, 32 * kKiB)), "");
}

// What cleaning moved is still where it was.
TEST(VolumeRecover, AnUnreadableIndexOfTheCleanerCostsNothing) {
    Rig rig(5);
    fill(rig);
    SegmentView from = only_segment(rig, format::SegmentKind::data);
    ASSERT_TRUE(rig.world.run(rig.write(0, 32 * kKiB)));
    ASSERT_TRUE(rig.world.run(rig.volume->drain()));
    ASSERT_TRUE(rig.world.run(rig.volume->relocate({from.index}, 2)));
    SegmentView segment = only_segment(rig, format::SegmentKind::relocated);
    uint64_t at = device_offset(rig, segment.id) + index_offset(rig, segment);
    rig.stop();
    make_unreadable(rig, at);
    rig.start_node();
    ASSERT_FALSE(rig.try_open());
    LossReport report = recover_ok(rig, OnLoss::accept);
    EXPECT_EQ(report.findings.size(), 1u);
    EXPECT_TRUE(report.losses.empty());
    rig.open();
    rig.expect_all();
    rig.reopen();
    rig.expect_all();
}

// The block right behind the newest frame that can be read: acknowledged writes may have been
// there. Gives how many of the three writes of the tail are there at the end.
void lose_the_newest(Rig& rig) {
    fill(rig);
    ASSERT_TRUE(rig.world.run(rig.write(0, 4 * kKiB)));
    ASSERT_TRUE(rig.world.run(rig.write(12 * kKiB, 4 * kKiB)));
    uint64_t next = rig.device->ring().newest_sequence() + 1;
    Buffer data = Buffer::zeroed(kBlockBytes);
    ASSERT_TRUE(rig.world.run(rig.volume->write(28 * kKiB, data)));
    uint64_t at = rig.device->ring().device_offset_of({next, 0, 0});
    rig.crash({.mode = sim::CrashMode::keep});
    make_unreadable(rig, at);
}

TEST(VolumeRecover, AVolumeGoesOnBehindALostEndOfTheJournal) {
    Rig rig(6);
    lose_the_newest(rig);
    rig.start_node();
    auto opened = rig.try_open();
    ASSERT_FALSE(opened);
    EXPECT_EQ(opened.error().code(), Code::unavailable);
    for (OnLoss on_loss : {OnLoss::look, OnLoss::accept}) {
        LossReport report = recover_ok(rig, on_loss);
        ASSERT_EQ(report.findings.size(), 1u);
        EXPECT_NE(report.findings[0].find(Rig::kPath), std::string::npos) << report.findings[0];
        ASSERT_EQ(report.losses.size(), 1u);
        EXPECT_EQ(report.lost_blocks, 0u);
    }
    rig.open();
    rig.expect_all();
    ASSERT_TRUE(rig.world.run(rig.write(4 * kKiB, 64 * kKiB)));
    rig.world.disk(Rig::kPath).clear_faults();
    rig.crash();
    rig.recover();
    rig.expect_all();
}

// A hole in the middle: what follows it would be a state that never was.
TEST(VolumeRecover, WhatFollowsAHoleIsDroppedAndCounted) {
    Rig rig(7);
    fill(rig);
    ASSERT_TRUE(rig.world.run(rig.write(0, 4 * kKiB)));
    uint64_t next = rig.device->ring().newest_sequence() + 1;
    Buffer data = Buffer::zeroed(kBlockBytes);
    for (uint64_t offset : {28 * kKiB, 32 * kKiB, 36 * kKiB})
        ASSERT_TRUE(rig.world.run(rig.volume->write(offset, data)));
    uint64_t at = rig.device->ring().device_offset_of({next, 0, 0});
    rig.crash({.mode = sim::CrashMode::keep});
    rig.world.disk(Rig::kPath).corrupt(at + 70);
    rig.start_node();
    LossReport report = recover_ok(rig, OnLoss::accept);
    EXPECT_EQ(report.dropped_records, 2u);
    EXPECT_EQ(report.dropped_blocks, 2u);
    rig.open();
    rig.expect_all();
}

// What is accepted is what was shown: nothing more goes with it.
TEST(VolumeRecover, MoreThanWasShownIsNotGivenUp) {
    for (bool is_journal : {false, true}) {
        SCOPED_TRACE(is_journal);
        Rig rig(8);
        fill(rig);
        std::vector<uint64_t> spoilt;  // one byte of each: at first one, later the other
        if (is_journal) {
            ASSERT_TRUE(rig.world.run(rig.write(28 * kKiB, kBlockBytes)));
            for (uint64_t offset : {32 * kKiB, 36 * kKiB}) {
                Buffer data = Buffer::zeroed(kBlockBytes);
                ASSERT_TRUE(rig.world.run(rig.volume->write(offset, data)));
                uint64_t newest = rig.device->ring().newest_sequence();
                spoilt.push_back(rig.device->ring().device_offset_of({newest, 0, 0}) + kBlockBytes);
            }
            std::ranges::reverse(spoilt);
        } else {
            SegmentView segment = drain_more(rig);
            uint64_t begin = device_offset(rig, segment.id);
            make_unreadable(rig, begin + index_offset(rig, segment));
            for (uint64_t block : {0, 3})
                spoilt.push_back(begin + format::segment_block_offset(block) + 5);
        }
        rig.stop();
        rig.world.disk(Rig::kPath).corrupt(spoilt[0]);
        rig.start_node();
        LossReport shown = recover_ok(rig, OnLoss::look);
        ASSERT_FALSE(shown.losses.empty());
        rig.world.disk(Rig::kPath).corrupt(spoilt[1]);
        for (int i = 0; i < 2; ++i) {
            auto refused = rig.world.run(rig.recover_volume(OnLoss::accept, shown));
            ASSERT_FALSE(refused);
            EXPECT_EQ(refused.error().code(), Code::busy) << refused.error().text();
            EXPECT_FALSE(rig.try_open());
        }
        LossReport more = recover_ok(rig, OnLoss::look);
        EXPECT_TRUE(more.is_worse_than(shown));
        EXPECT_FALSE(shown.is_worse_than(more));
        auto done = rig.world.run(rig.recover_volume(OnLoss::accept, more));
        ASSERT_TRUE(done) << done.error().text();
        rig.open();
        EXPECT_EQ(expect_all_but_lost(rig), more.lost_blocks);
    }
}

// ---- the map ----

// Several checkpoints, one leaf written anew, one trimmed empty, something undrained.
void fill_map(Rig& rig) {
    fill(rig);
    ASSERT_TRUE(rig.world.run(rig.write(4 * kMiB, 64 * kKiB)));
    ASSERT_TRUE(rig.world.run(rig.write(16 * kMiB, 256 * kKiB)));
    ASSERT_TRUE(rig.world.run(rig.volume->drain()));
    ASSERT_TRUE(rig.world.run(rig.volume->checkpoint()));
    ASSERT_TRUE(rig.world.run(rig.zero(8 * kMiB, 4 * kMiB)));
    ASSERT_TRUE(rig.world.run(rig.zero(16 * kMiB, 8 * kKiB)));
    ASSERT_TRUE(rig.world.run(rig.write(8 * kKiB, 16 * kKiB)));
    ASSERT_TRUE(rig.world.run(rig.volume->drain()));
    ASSERT_TRUE(rig.world.run(rig.volume->checkpoint()));
    ASSERT_TRUE(rig.world.run(rig.write(40 * kKiB, 8 * kKiB)));
    ASSERT_TRUE(rig.world.run(rig.volume->drain()));
    ASSERT_TRUE(rig.world.run(rig.write(12 * kKiB, 8 * kKiB)));
}

TEST(VolumeRecover, APageOfTheMapAboveTheLeavesIsPutTogetherFromWhatIsBelow) {
    for (format::PageKind kind :
         {format::PageKind::root, format::PageKind::interior, format::PageKind::segments}) {
        for (bool is_corrupt : {false, true}) {
            SCOPED_TRACE(fmt::format("kind {} corrupt {}", static_cast<int>(kind), is_corrupt));
            Rig rig(20);
            fill_map(rig);
            uint64_t at = page_offset(rig, kind);
            rig.stop();
            if (is_corrupt) {
                rig.world.disk(Rig::kPath).corrupt(at + 65);
            } else {
                make_unreadable(rig, round_down(at, kBlockBytes));
            }
            rig.start_node();
            auto opened = rig.try_open();
            ASSERT_FALSE(opened);
            EXPECT_NE(opened.error().message().find(Rig::kPath), std::string::npos)
                << opened.error().text();
            LossReport report = recover_ok(rig, OnLoss::look);
            EXPECT_EQ(report.findings.size(), 1u);
            EXPECT_TRUE(report.losses.empty()) << report.losses[0];
            EXPECT_FALSE(rig.try_open());
            report = recover_ok(rig, OnLoss::accept);
            EXPECT_EQ(report.lost_blocks, 0u);
            rig.world.disk(Rig::kPath).clear_faults();
            rig.open();
            for (int life = 0; life < 2; ++life) {
                rig.expect_all();
                ASSERT_TRUE(rig.world.run(rig.write(20 * kMiB, 64 * kKiB)));
                ASSERT_TRUE(rig.world.run(rig.volume->drain()));
                ASSERT_TRUE(rig.world.run(rig.volume->checkpoint()));
                rig.reopen();
            }
            if (HasFailure()) return;
        }
    }
}

// Without its own leaf page a part of the map is not proven, and nothing of it is served.
TEST(VolumeRecover, WhatCannotBeProvenOfTheMapIsLost) {
    Rig rig(21);
    fill_map(rig);
    uint64_t interior = page_offset(rig, format::PageKind::interior);
    uint64_t leaf = page_offset(rig, format::PageKind::leaf);
    rig.stop();
    rig.world.disk(Rig::kPath).corrupt(interior + 65);
    rig.world.disk(Rig::kPath).corrupt(leaf + 65);
    rig.start_node();
    ASSERT_FALSE(rig.try_open());
    LossReport report = recover_ok(rig, OnLoss::accept);
    ASSERT_FALSE(report.losses.empty());
    EXPECT_GT(report.lost_blocks, 0u);
    rig.open();
    for (uint64_t offset = 0; offset < 32 * kMiB; offset += 4 * kKiB) {
        std::string wrong = rig.world.run(rig.check(offset, 4 * kKiB));
        if (wrong.empty()) continue;
        EXPECT_NE(wrong.find("is lost"), std::string::npos) << wrong;
    }
    // What came later is there, and writing heals.
    EXPECT_EQ(rig.world.run(rig.check(40 * kKiB, 8 * kKiB)), "");
    EXPECT_EQ(rig.world.run(rig.check(12 * kKiB, 8 * kKiB)), "");
    for (uint64_t at = 0; at < 32 * kMiB; at += kMiB)
        ASSERT_TRUE(rig.world.run(rig.write(at, kMiB)));
    ASSERT_TRUE(rig.world.run(rig.volume->drain()));
    EXPECT_EQ(rig.volume->stats().lost_blocks, 0u);
    rig.expect_all();
}

}  // namespace
}  // namespace peplos::volume
