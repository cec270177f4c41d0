#include "format/segment_layout.h"
#include "keeper/clean_policy.h"
#include "keeper/keeper_test_rig.h"
#include "keeper/scrub.h"

namespace peplos::keeper {
namespace {

using runtime::Task;
using volume::Rig;
using volume::RigOptions;
using volume::SegmentView;

TEST(CleanPolicy, CleansLittleWhileThereIsRoom) {
    EXPECT_DOUBLE_EQ(live_share_max(0.3), 0.25);
    EXPECT_NEAR(live_share_max(0.91), 0.65, 1e-9);
    EXPECT_NEAR(live_share_max(0.95), 0.97, 1e-9);
    EXPECT_LT(live_share_max(0.7), live_share_max(0.8));
    EXPECT_LE(live_share_max(1.0), 0.97);
}

SegmentView view(uint32_t index, uint8_t lifetime_class, uint32_t live, uint32_t units) {
    SegmentView out;
    out.index = index;
    out.lifetime_class = lifetime_class;
    out.age_lsn = Lsn(index);
    out.block_count = units * 250;
    out.live_count = live;
    out.unit_count = units;
    return out;
}

TEST(CleanPolicy, KeepsLifetimeClassesApartAndGainsUnits) {
    std::vector<SegmentView> segments{view(1, 1, 10, 8), view(2, 2, 10, 4), view(3, 1, 20, 8),
                                      view(4, 1, 1990, 8)};
    auto choice = choose_segments(segments, 0.25, 32);
    ASSERT_TRUE(choice.has_value());
    EXPECT_EQ(choice->segments, (std::vector<uint32_t>{1, 3}));
    EXPECT_EQ(choice->lifetime_class, 2);
    EXPECT_EQ(choice->gained_units, 15u);
    EXPECT_FALSE(choose_segments(std::vector{view(4, 1, 1990, 8)}, 0.25, 32).has_value());
}

using KeeperTest = KeptVolume;

TEST_F(KeeperTest, DrainsWhatWritersPileUp) {
    RigOptions options;
    options.overlay_bytes = 2 * kMiB;
    make(options);
    for (uint64_t at = 0; at < 16 * kMiB; at += 64 * kKiB) {
        auto written = rig->world.run(rig->write(at, 64 * kKiB));
        ASSERT_TRUE(written) << written.error().text();
    }
    EXPECT_GT(keeper->stats().drains, 3u);
    EXPECT_EQ(keeper->stats().failures, 0u) << keeper->stats().last_failure;
    rig->expect_all();
}

TEST_F(KeeperTest, OverwritesGoOnForEverOnANearlyFullDevice) {
    RigOptions options;
    options.disk_bytes = 72 * kMiB;
    options.volume_bytes = 24 * kMiB;
    options.overlay_bytes = 4 * kMiB;
    make(options);
    for (uint64_t i = 0; i < 1500; ++i) {
        uint64_t at = rig->world.random().pick(options.volume_bytes / (64 * kKiB)) * 64 * kKiB;
        auto written = rig->world.run(rig->write(at, 64 * kKiB));
        ASSERT_TRUE(written) << i << ": " << written.error().text() << " last "
                             << keeper->stats().last_failure;
    }
    EXPECT_EQ(keeper->stats().failures, 0u) << keeper->stats().last_failure;
    rig->expect_all();
}

constexpr size_t kWriters = 32;

// Each writer has blocks of its own: of two writes to one block at once either may come last.
Task<void> overwrite(Rig& rig, size_t lane, size_t& running, std::string& problem) {
    uint64_t blocks = rig.volume->size_bytes() / kBlockBytes / kWriters;
    for (int i = 0; i < 1000 && problem.empty(); ++i) {
        uint64_t at = (rig.world.random().pick(blocks) * kWriters + lane) * kBlockBytes;
        auto written = co_await rig.write(at, kBlockBytes);
        if (!written) problem = written.error().text();
    }
    --running;
}

// Whoever loses the race for what was gained waits on: the devices are not full.
TEST_F(KeeperTest, ManyWritersOverwriteANearlyFullDeviceAndNoneIsRefused) {
    RigOptions options;
    options.disk_bytes = 160 * kMiB;
    options.volume_bytes = 98 * kMiB;
    options.overlay_bytes = 16 * kMiB;
    make(options);
    for (uint64_t at = 0; at < options.volume_bytes; at += kMiB)
        ASSERT_TRUE(rig->world.run(rig->write(at, kMiB)));
    size_t running = kWriters;
    std::string problem;
    for (size_t lane = 0; lane < kWriters; ++lane)
        runtime::spawn(rig->world.env().executor, overwrite(*rig, lane, running, problem));
    for (int i = 0; i < 6000 && running != 0; ++i)
        rig->world.run_for(std::chrono::milliseconds(100));
    EXPECT_EQ(running, 0u);
    EXPECT_EQ(problem, "") << keeper->stats().last_failure;
    rig->expect_all();
}

TEST_F(KeeperTest, IdleVolumesLeaveTheJournalToAWriterThatWaits) {
    RigOptions options;
    options.overlay_bytes = 64 * kMiB;
    make(options);
    // Three volumes that say nothing more, each a little below its share of a 16 MiB journal.
    std::vector<std::unique_ptr<volume::Volume>> idle;
    for (uint64_t i = 1; i <= 3; ++i) {
        volume::VolumeParams params{.id = VolumeId(i),
                                    .lineage = LineageId(i),
                                    .size_bytes = 8 * kMiB,
                                    .sector_bytes = 4096,
                                    .epoch = Epoch(1),
                                    .token = OpenToken(i),
                                    .recorded = {}};
        auto made = rig->world.run(volume::Volume::create(*rig->resources, params));
        ASSERT_TRUE(made) << made.error().text();
        idle.push_back(std::move(*made));
        keeper->opened(*idle.back());
        for (uint64_t k = 0; k < 28; ++k) {
            Buffer data = Buffer::zeroed(124 * kKiB);
            ASSERT_TRUE(rig->world.run(idle.back()->write(k * 128 * kKiB, std::move(data))));
        }
    }
    for (uint64_t k = 0; k < 100; ++k) {
        auto written = rig->world.run(rig->write(k * 128 * kKiB, 124 * kKiB));
        ASSERT_TRUE(written) << k << ": " << written.error().text();
    }
    for (auto& volume : idle) {
        rig->world.run(keeper->closing(*volume));
        rig->world.run(volume->stop());
    }
    idle.clear();
    rig->expect_all();
}

TEST_F(KeeperTest, ScrubVisitsEverySegmentAndReportsProblems) {
    make({});
    ASSERT_TRUE(rig->world.run(rig->write(0, 64 * kKiB)));
    ASSERT_TRUE(rig->world.run(rig->volume->drain()));
    ASSERT_TRUE(keeper->start_scrub());
    EXPECT_FALSE(keeper->start_scrub());
    rig->world.run_for(std::chrono::seconds(5));
    EXPECT_FALSE(keeper->scrub_report().running);
    EXPECT_EQ(keeper->scrub_report().segments_done, keeper->scrub_report().segments_total);
    EXPECT_GE(keeper->scrub_report().bytes_checked, 64 * kKiB);
    EXPECT_TRUE(keeper->scrub_report().problems.empty());
}

TEST_F(KeeperTest, SealsThatFillTheShareOfTheJournalAreCheckpointed) {
    make({});
    // Each seal carries thousands of extents; no data is there that a drain could free.
    for (uint64_t round = 0; round < 24; ++round) {
        for (uint64_t i = 0; i < 4000; ++i) {
            uint64_t at = (i * 2 + round % 2) * kBlockBytes;
            ASSERT_TRUE(rig->world.run(rig->zero(at, kBlockBytes)));
        }
        ASSERT_TRUE(rig->world.run(rig->volume->drain()));
    }
    for (uint64_t i = 0; i < 256; ++i) {
        auto written = rig->world.run(rig->write(i * 64 * kKiB, 64 * kKiB));
        ASSERT_TRUE(written) << i << ": " << written.error().text();
    }
    EXPECT_LT(rig->volume->pressure().retained_meta_bytes,
              rig->volume->pressure().retained_bytes_max / 2);
    rig->expect_all();
}

Task<void> write_until_error(Rig& rig, uint64_t offset, std::optional<Error>* error) {
    Result<void> outcome;
    while (outcome)
        outcome = co_await rig.write(offset, 64 * kKiB);
    error->emplace(std::move(outcome).error());
}

// Who waits for room in the journal when the keeper stops, or comes later, waits for nothing.
TEST_F(KeeperTest, WritersThatWaitForTheJournalAreRefusedWhenTheKeeperStops) {
    RigOptions options;
    options.overlay_bytes = 64 * kMiB;
    make(options, {}, Start::never);  // nobody drains
    std::optional<Error> errors[8];
    auto start = [&](size_t i) {
        runtime::spawn(rig->world.env().executor, write_until_error(*rig, i * kMiB, &errors[i]));
    };
    for (size_t i = 0; i < 4; ++i)
        start(i);
    rig->world.run_for(std::chrono::minutes(2));
    for (size_t i = 0; i < 4; ++i)
        ASSERT_FALSE(errors[i].has_value()) << errors[i]->text();
    rig->world.run(keeper->stop());
    for (size_t i = 4; i < 8; ++i)
        start(i);
    rig->world.run_for(std::chrono::milliseconds(10));
    for (const auto& error : errors) {
        ASSERT_TRUE(error.has_value());
        EXPECT_EQ(error->code(), Code::stopping) << error->text();
        EXPECT_NE(error->message().find("the node is stopping"), std::string::npos);
    }
    EXPECT_FALSE(rig->volume->faulted().has_value());
    rig->expect_all();
}

// A node's stop waits only so long for an open that is under way, and stops its keeper twice.
TEST_F(KeeperTest, AVolumeOpenedAfterTheStopIsNotTouched) {
    make({});
    rig->world.run(keeper->stop());
    volume::VolumeParams params{.id = VolumeId(77),
                                .lineage = LineageId(77),
                                .size_bytes = 8 * kMiB,
                                .sector_bytes = 4096,
                                .epoch = Epoch(1),
                                .token = OpenToken(77),
                                .recorded = {}};
    auto late = rig->world.run(volume::Volume::create(*rig->resources, params));
    ASSERT_TRUE(late) << late.error().text();
    keeper->opened(**late);
    rig->world.run((*late)->stop());
    late->reset();
    rig->world.run(keeper->stop());
}

TEST_F(KeeperTest, AWriterHearsOfDrainsThatFailAndGoesOnLater) {
    for (uint64_t overlay_bytes : {2 * kMiB, 64 * kMiB}) {
        RigOptions options;
        options.overlay_bytes = overlay_bytes;
        make(options);
        rig->world.faults().arm("volume.drain.no_space", UINT64_MAX);
        Result<void> written;
        uint64_t at = 0;
        for (; written && at < 24 * kMiB; at += 64 * kKiB)
            written = rig->world.run(rig->write(at, 64 * kKiB));
        ASSERT_FALSE(written);
        EXPECT_EQ(written.error().code(), Code::no_space) << written.error().text();
        rig->world.faults().disarm("volume.drain.no_space");
        for (uint64_t i = 0; i < 128; ++i) {
            written = rig->world.run(rig->write(i * 64 * kKiB, 64 * kKiB));
            ASSERT_TRUE(written) << i << ": " << written.error().text();
        }
        rig->expect_all();
        TearDown();
        rig.reset();
    }
}

TEST_F(KeeperTest, WhatGoesBadInTheJournalIsDrainedFromMemory) {
    RigOptions options;
    options.overlay_bytes = 64 * kMiB;
    make(options);
    ASSERT_TRUE(rig->world.run(rig->write(0, 64 * kKiB)));
    auto& ring = rig->device->ring();
    uint64_t sequence = ring.newest_sequence();
    uint64_t at = ring.device_offset_of({sequence, 0, 0}) + kBlockBytes;  // its payload
    rig->world.disk(Rig::kPath).corrupt(at + 10);
    ASSERT_TRUE(keeper->start_scrub());
    rig->world.run_for(std::chrono::seconds(5));
    ASSERT_EQ(keeper->scrub_report().problems.size(), 1u);
    EXPECT_NE(keeper->scrub_report().problems[0].find(Rig::kPath), std::string::npos);
    EXPECT_GT(keeper->stats().drains, 0u);
    EXPECT_FALSE(rig->volume->pressure().is_endangered);
    rig->crash();
    keeper = std::make_unique<Keeper>(rig->world.env());
    rig->background = keeper.get();
    rig->recover();
    ASSERT_FALSE(HasFatalFailure());
    keeper->opened(*rig->volume);
    rig->expect_all();
}

TEST_F(KeeperTest, AScrubChecksTheMapPagesOfClosedVolumes) {
    make({});
    ASSERT_TRUE(rig->world.run(rig->write(0, 64 * kKiB)));
    ASSERT_TRUE(rig->world.run(rig->volume->drain()));
    ASSERT_TRUE(rig->world.run(rig->volume->checkpoint()));
    SegmentId map_segment{};
    for (const SegmentView& segment : rig->volume->segments()) {
        if (segment.kind == format::SegmentKind::map) map_segment = segment.id;
    }
    media::SegmentStore& store = rig->device->segments();
    std::string place = store.place_of(store.find(map_segment), format::kSegmentDataOffset);
    ScrubReport good;
    rig->world.run(scrub_unopened(store, map_segment, good));
    EXPECT_TRUE(good.problems.empty()) << good.problems[0];
    uint64_t units = 0;
    sscanf(place.c_str(), "disk0 at offset %lu", &units);
    ASSERT_GT(units, 16 * kMiB);
    rig->world.disk(Rig::kPath).corrupt(units + 100);
    ScrubReport bad;
    rig->world.run(scrub_unopened(store, map_segment, bad));
    ASSERT_EQ(bad.problems.size(), 1u);
    EXPECT_NE(bad.problems[0].find(place), std::string::npos) << bad.problems[0];
}

TEST_F(KeeperTest, SparseWritesAreCheckpointedBeforeTheyTakeLongToReplay) {
    make({}, KeeperOptions{.replay_leaves_max = 500});
    volume::VolumeParams params{.id = VolumeId(1),
                                .lineage = LineageId(1),
                                .size_bytes = 16 * kGiB,
                                .sector_bytes = 4096,
                                .epoch = Epoch(1),
                                .token = OpenToken(1),
                                .recorded = {}};
    auto made = rig->world.run(volume::Volume::create(*rig->resources, params));
    ASSERT_TRUE(made) << made.error().text();
    std::unique_ptr<volume::Volume> sparse = std::move(*made);
    keeper->opened(*sparse);
    // One block in each of 2,000 leaves, 100 in a drain.
    uint64_t most = 0;
    for (uint64_t i = 0; i < 2000; ++i) {
        Buffer block = Buffer::zeroed(kBlockBytes);
        ASSERT_TRUE(rig->world.run(sparse->write(i * 4 * kMiB, std::move(block))));
        if (i % 100 != 99) continue;
        ASSERT_TRUE(rig->world.run(sparse->drain()));
        most = std::max(most, sparse->pressure().dirty_leaf_count);
        keeper->wants(*sparse);
        rig->world.run_for(std::chrono::seconds(1));
    }
    EXPECT_GE(keeper->stats().checkpoints, 3u);
    EXPECT_LE(most, 600u);
    rig->world.run(keeper->closing(*sparse));
    rig->world.run(sparse->stop());
}

TEST_F(KeeperTest, IdleVolumesCostNothing) {
    make({}, KeeperOptions{.prezero_bytes = 0});
    rig->world.run_for(std::chrono::seconds(5));
    uint64_t events = rig->world.event_count();
    rig->world.run_for(std::chrono::seconds(60));
    // The one tick of the node and nothing per volume.
    EXPECT_LT(rig->world.event_count() - events, 60u * 2 * 8);
}

}  // namespace
}  // namespace peplos::keeper
