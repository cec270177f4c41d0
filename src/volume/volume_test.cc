#include "volume/volume.h"

#include "volume/volume_test_rig.h"

namespace peplos::volume {
namespace {

TEST(Volume, UnwrittenBlocksReadAsZeros) {
    Rig rig(1);
    rig.make();
    rig.expect_all();
}

TEST(Volume, WritesAreThereAfterDrainCheckpointAndReopen) {
    Rig rig(2);
    rig.make();
    ASSERT_OK(rig.world.run(rig.write(0, 4096)));
    ASSERT_OK(rig.world.run(rig.write(8192, 64 * kKiB)));
    ASSERT_OK(rig.world.run(rig.write(1 * kMiB, 256 * kKiB)));
    ASSERT_OK(rig.world.run(rig.write(5 * kMiB + 512, 512)));
    ASSERT_OK(rig.world.run(rig.zero(16 * kKiB, 8 * kKiB)));
    rig.expect_all();
    rig.reopen();
    rig.expect_all();
    ASSERT_OK(rig.world.run(rig.volume->drain()));
    rig.expect_all();
    EXPECT_EQ(rig.volume->stats().undrained_bytes, 0u);
    rig.reopen();
    rig.expect_all();
    ASSERT_OK(rig.world.run(rig.volume->checkpoint()));
    rig.expect_all();
    rig.reopen();
    rig.expect_all();
}

Task<void> write_bytes(Volume& volume, uint64_t offset, uint64_t bytes, std::byte with, int& left) {
    Buffer data = Buffer::allocate(bytes);
    std::memset(data.data(), static_cast<int>(with), bytes);
    auto outcome = co_await volume.write(offset, std::move(data));
    EXPECT_TRUE(outcome);
    --left;
}

// A wide write that begins inside a block, and a short one inside a block that the wide one covers:
// both read, modify and write. The sectors that only the wide one wrote are the wide one's.
TEST(Volume, ReadModifyWritesSideBySideUndoNothing) {
    Rig rig(8);
    rig.make();
    for (int round = 1; round <= 60; ++round) {
        int left = 2;
        auto wide = static_cast<std::byte>(2 * round);
        auto narrow = static_cast<std::byte>(2 * round + 1);
        runtime::Executor executor = rig.world.env().executor;
        runtime::spawn(executor, write_bytes(*rig.volume, 3072, 9216, wide, left));
        runtime::spawn(executor, write_bytes(*rig.volume, 4096, 3584, narrow, left));
        while (left != 0)
            ASSERT_TRUE(rig.world.step());
        Buffer sector = Buffer::allocate(4096);
        ASSERT_OK(rig.world.run(rig.volume->read(4096, sector)));
        ASSERT_EQ(sector.bytes()[3584], wide) << "round " << round;
    }
}

TEST(Volume, CloseLeavesNothingToReplay) {
    Rig rig(3);
    rig.make();
    ASSERT_OK(rig.world.run(rig.write(4096, 4096)));
    ASSERT_OK(rig.world.run(rig.volume->close()));
    rig.reopen();
    EXPECT_EQ(rig.volume->stats().undrained_bytes, 0u);
    EXPECT_EQ(rig.volume->pressure().replay_bytes, 0u);
    rig.expect_all();
}

TEST(Volume, AVolumeThatOnlyGrewIsCheckpointedAndReopened) {
    Rig rig(5);
    rig.make();
    uint64_t bytes = rig.volume->size_bytes() + 64 * kMiB;
    ASSERT_OK(rig.world.run(rig.volume->grow(bytes)));
    ASSERT_OK(rig.world.run(rig.volume->checkpoint()));
    EXPECT_EQ(rig.volume->size_bytes(), bytes);
    rig.reopen();
    EXPECT_EQ(rig.volume->size_bytes(), bytes);
}

TEST(Volume, A16TiBVolumeIsMadeInConstantTime) {
    RigOptions options;
    options.volume_bytes = kMiB;
    Rig rig(4, options);
    rig.make();
    VolumeParams params{.id = VolumeId(77),
                        .lineage = LineageId(78),
                        .size_bytes = 16 * kTiB,
                        .sector_bytes = 4096,
                        .epoch = Epoch(1),
                        .token = OpenToken(5),
                        .recorded = {}};
    uint64_t events = rig.world.event_count();
    auto made = rig.world.run(Volume::create(*rig.resources, params));
    ASSERT_OK(made);
    EXPECT_LT(rig.world.event_count() - events, 1000u);
    Buffer block = Buffer::zeroed(4096);
    std::memset(block.data(), 7, 4096);
    ASSERT_OK(rig.world.run((*made)->write(16 * kTiB - 4096, block)));
    ASSERT_OK(rig.world.run((*made)->zero(0, 16 * kTiB - 4096)));
    ASSERT_OK(rig.world.run((*made)->drain()));
    Buffer back = Buffer::allocate(4096);
    ASSERT_OK(rig.world.run((*made)->read(16 * kTiB - 4096, back)));
    EXPECT_EQ(std::memcmp(block.data(), back.data(), 4096), 0);
    rig.world.run((*made)->stop());
}

Task<void> check_into(Rig& rig, uint64_t offset, uint64_t bytes, std::optional<std::string>* out) {
    *out = co_await rig.check(offset, bytes);
}

Task<void> drain_into(Rig& rig, std::optional<Result<void>>* out) {
    *out = co_await rig.volume->drain();
}

// While the seal of a drain goes into the map step by step, its segment looks half dead, and what
// it replaces half alive.
TEST(Volume, ARelocationBesideADrainTakesEachBlockOnce) {
    RigOptions options;
    options.disk_bytes = 192 * kMiB;
    options.overlay_bytes = 64 * kMiB;
    NoWork background;
    Rig rig(7, options);
    rig.background = &background;
    rig.make();
    std::vector<uint32_t> indexes;
    std::optional<Result<void>> drained;
    for (int round = 0; round < 2; ++round) {
        for (uint64_t at = 0; at < options.volume_bytes; at += kMiB)
            ASSERT_OK(rig.world.run(rig.write(at, kMiB)));
        if (round == 0) ASSERT_OK(rig.world.run(rig.volume->drain()));
        if (round == 0) {
            for (const SegmentView& segment : rig.volume->segments())
                indexes.push_back(segment.index);
        }
    }
    // The map's pages are read in between, so that both get on.
    ASSERT_OK(rig.world.run(rig.volume->checkpoint()));
    rig.cache->drop_clean();
    runtime::spawn(rig.world.env().executor, drain_into(rig, &drained));
    auto half_applied = [&rig] {
        for (const SegmentView& segment : rig.volume->segments()) {
            bool is_half = segment.live_count != 0 && segment.live_count != segment.block_count;
            if (is_half) return true;
        }
        return false;
    };
    while (!half_applied() && !drained)
        ASSERT_TRUE(rig.world.step());
    ASSERT_FALSE(drained.has_value());
    for (const SegmentView& segment : rig.volume->segments()) {
        if (std::ranges::find(indexes, segment.index) == indexes.end())
            indexes.push_back(segment.index);
    }
    ASSERT_OK(rig.world.run(rig.volume->relocate(indexes, 2)));
    ASSERT_TRUE(drained.has_value());
    ASSERT_OK(*drained);
    rig.expect_all();
    ASSERT_OK(rig.world.run(rig.volume->checkpoint()));
    rig.crash();
    rig.recover();
    rig.expect_all();
}

TEST(Volume, AReadAcrossLeavesSeesOneMomentOfTheMap) {
    Rig rig(6);
    rig.make();
    constexpr uint64_t kBorder = limits::kLeafBlocks * kBlockBytes;
    ASSERT_OK(rig.world.run(rig.write(kBorder - 8 * kKiB, 8 * kKiB)));
    ASSERT_OK(rig.world.run(rig.volume->drain()));
    SegmentView first = rig.volume->segments().at(0);
    ASSERT_OK(rig.world.run(rig.write(kBorder, 8 * kKiB)));
    ASSERT_OK(rig.world.run(rig.volume->drain()));
    ASSERT_OK(rig.world.run(rig.volume->checkpoint()));
    rig.cache->drop_clean();
    ASSERT_EQ(rig.world.run(rig.check(0, kBlockBytes)), "");
    // The first leaf is in RAM; the second one takes a second.
    rig.world.disk(Rig::kPath)
        .add_fault({.operation = sim::DiskOperation::read,
                    .effect = sim::DiskEffect::slow,
                    .count = 1,
                    .delay = std::chrono::seconds(1)});
    std::optional<std::string> wrong;
    runtime::spawn(rig.world.env().executor,
                   check_into(rig, kBorder - 8 * kKiB, 16 * kKiB, &wrong));
    rig.world.run_for(std::chrono::milliseconds(1));
    // Meanwhile what the first leaf named moves, and its segment goes.
    ASSERT_OK(rig.world.run(rig.volume->relocate({first.index}, 2)));
    ASSERT_OK(rig.world.run(rig.volume->checkpoint()));
    ASSERT_FALSE(rig.device->segments().find(first.id));
    ASSERT_FALSE(wrong.has_value());
    rig.world.run_for(std::chrono::seconds(2));
    ASSERT_TRUE(wrong.has_value());
    EXPECT_EQ(*wrong, "");
}

// What the seal, or a relocation, says is durable: it must not be undone for a queue that is full.
TEST(Volume, ADurableChangeWaitsForLeavesThatAreElsewhere) {
    constexpr uint64_t kForever = 1'000'000;
    for (uint64_t times : {uint64_t{1}, uint64_t{5}, kForever}) {
        Rig rig(311);
        rig.make();
        ASSERT_OK(rig.world.run(rig.write(0, 256 * kKiB)));
        ASSERT_OK(rig.world.run(rig.volume->drain()));
        ASSERT_OK(rig.world.run(rig.write(64 * kKiB, 64 * kKiB)));
        rig.world.faults().arm("volume.map.leaves_are_away", times);
        Result<void> drained = rig.world.run(rig.volume->drain());
        EXPECT_EQ(drained.has_value(), times != kForever);
        EXPECT_EQ(rig.world.run(rig.volume->drain()).has_value(), times != kForever);
        if (times != kForever) rig.expect_all();
        rig.world.faults().disarm("volume.map.leaves_are_away");
        rig.crash({.mode = sim::CrashMode::lose});
        rig.recover();
        rig.expect_all();
    }
}

TEST(Volume, ADurableRelocationWaitsForLeavesThatAreElsewhere) {
    Rig rig(312);
    rig.make();
    ASSERT_OK(rig.world.run(rig.write(0, 256 * kKiB)));
    ASSERT_OK(rig.world.run(rig.volume->drain()));
    ASSERT_OK(rig.world.run(rig.write(64 * kKiB, 64 * kKiB)));
    ASSERT_OK(rig.world.run(rig.volume->drain()));
    std::vector<uint32_t> all;
    for (const SegmentView& segment : rig.volume->segments()) {
        if (segment.kind == format::SegmentKind::data) all.push_back(segment.index);
    }
    ASSERT_FALSE(all.empty());
    rig.world.faults().arm("volume.map.leaves_are_away", 4);
    ASSERT_OK(rig.world.run(rig.volume->relocate(all, 1)));
    rig.expect_all();
    rig.reopen();
    rig.expect_all();
}

}  // namespace
}  // namespace peplos::volume
