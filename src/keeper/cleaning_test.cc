#include "format/segment_layout.h"
#include "keeper/clean_policy.h"
#include "keeper/keeper_test_rig.h"
#include "sim/fault_plan.h"
#include "volume/lifetime.h"
#include "volume/segment_writer.h"

namespace peplos::keeper {
namespace {

using runtime::Task;
using volume::LifetimePredictor;
using volume::Rig;
using volume::RigOptions;
using volume::SegmentView;

TEST(LifetimePredictor, SeesHeatAndNoneWhereThereIsNone) {
    constexpr uint64_t kBlocks = 4096;
    auto predict = [](auto&& pick) {
        LifetimePredictor predictor;
        std::vector<uint64_t> written(kBlocks, 0);
        for (uint64_t now = 1; now < 24 * kBlocks; ++now) {
            uint64_t block = pick(now);
            if (written[block] != 0) predictor.observe(now - written[block]);
            written[block] = now;
        }
        return predictor;
    };
    sim::Random random(7, 7);
    EXPECT_FALSE(predict([&](uint64_t) { return random.pick(kBlocks); }).has_signal());
    EXPECT_FALSE(predict([&](uint64_t now) { return now % kBlocks; }).has_signal());
    LifetimePredictor skewed = predict([&](uint64_t) {
        return random.chance(900) ? random.pick(kBlocks / 10) : random.pick(kBlocks);
    });
    EXPECT_TRUE(skewed.has_signal());
    EXPECT_TRUE(skewed.is_short(kBlocks / 9));
    EXPECT_FALSE(skewed.is_short(kBlocks * 9));
    EXPECT_FALSE(LifetimePredictor().has_signal());
}

TEST(CleanPolicy, GainsWhatItSaysAlsoFromSegmentsThatAreMostlyAlive) {
    for (uint64_t blocks : {1u, 200u, 254u, 500u, 3000u, 5000u, 6900u, 7700u, 8159u, 9000u}) {
        uint64_t needed = volume::units_for_blocks(blocks);
        EXPECT_GE(volume::run_units_for_blocks(blocks), needed) << blocks;
        EXPECT_LE(volume::run_units_for_blocks(blocks), needed + 2) << blocks;
    }
    SegmentView segment;
    segment.age_lsn = Lsn(1);
    segment.lifetime_class = 1;
    segment.block_count = 8159;
    segment.unit_count = 32;
    segment.live_count = 6900;
    auto choice = choose_segments(std::vector{segment}, 0.97, 32);
    ASSERT_TRUE(choice.has_value());
    EXPECT_GE(choice->gained_units, 3u);
    EXPECT_EQ(reclaimable_units(std::vector{segment}, 0.97), 4u);
    EXPECT_EQ(reclaimable_units(std::vector{segment}, 0.8), 0u);
}

class CleaningTest : public KeptVolume {
  protected:
    void fill(uint64_t bytes) {
        for (uint64_t at = 0; at < bytes; at += kMiB) {
            auto written = rig->world.run(rig->write(at, kMiB));
            ASSERT_TRUE(written) << at << ": " << written.error().text();
        }
    }

    struct Load {
        uint64_t writes_left = 0;
        uint64_t chunk_bytes = kBlockBytes;
        uint64_t hot_permille = 0;  // of the writes, to the first tenth of the volume
        Buffer content;             // of every write; empty: what the rig's model follows
        size_t running = 0;
        Duration longest{};
        std::string problem;
    };
    static constexpr size_t kLanes = 32;

    // Each lane has chunks of its own: of two writes to one block at once either may come last.
    static Task<void> overwrite(Rig& rig, size_t lane, Load& load) {
        uint64_t chunks = rig.volume->size_bytes() / load.chunk_bytes / kLanes;
        uint64_t hot = chunks / 10;
        while (load.writes_left != 0 && load.problem.empty()) {
            --load.writes_left;
            auto& random = rig.world.random();
            bool is_skewed = load.hot_permille != 0;
            uint64_t chunk = is_skewed && random.chance(load.hot_permille) ? random.pick(hot)
                             : is_skewed ? hot + random.pick(chunks - hot)
                                         : random.pick(chunks);
            uint64_t at = (chunk * kLanes + lane) * load.chunk_bytes;
            Time start = rig.world.env().clock.now();
            Result<void> written;
            if (load.content.empty()) {
                written = co_await rig.write(at, load.chunk_bytes);
            } else {
                Buffer content = load.content.slice(0, load.chunk_bytes);
                written = co_await rig.volume->write(at, std::move(content));
            }
            load.longest = std::max(load.longest, rig.world.env().clock.now() - start);
            if (!written) load.problem = written.error().text();
        }
        --load.running;
    }
    void run(Load& load) {
        load.running = kLanes;
        for (size_t lane = 0; lane < kLanes; ++lane)
            runtime::spawn(rig->world.env().executor, overwrite(*rig, lane, load));
        for (int i = 0; i < 20'000 && load.running != 0; ++i)
            rig->world.run_for(std::chrono::milliseconds(100));
        EXPECT_EQ(load.running, 0u);
        EXPECT_EQ(load.problem, "") << keeper->stats().last_failure;
    }

    double live_share() const {
        return double(rig->volume->stats().live_bytes) / double(kMiB) /
               double(rig->space->total_units());
    }

    // Bytes that cleaning copies per byte drained, under overwrites of a volume that fills more
    // than half of the device.
    enum class Streams : uint8_t { by_lifetime, one };
    double copied_per_drained(uint64_t hot_permille, Streams streams, uint64_t turns,
                              uint64_t& splits) {
        RigOptions options;
        options.disk_bytes = 200 * kMiB;
        options.volume_bytes = 96 * kMiB;
        options.overlay_bytes = 32 * kMiB;
        // Drains of 8 MiB: the long-lived part of one fills a unit.
        options.ring_bytes = 64 * kMiB;
        make(options);
        sim::FaultPlan& faults = rig->world.faults();
        if (streams == Streams::one) faults.arm("volume.drain.one_stream", UINT64_MAX);
        Load load{.chunk_bytes = 32 * kKiB,
                  .hot_permille = hot_permille,
                  .content = Buffer::zeroed(32 * kKiB)};
        load.writes_left = turns * options.volume_bytes / load.chunk_bytes;
        run(load);
        volume::VolumeStats before = rig->volume->stats();
        load.writes_left = turns * options.volume_bytes / load.chunk_bytes / 2;
        run(load);
        volume::VolumeStats after = rig->volume->stats();
        splits = faults.probe_count("volume.drain.split");
        end();
        return double(after.relocated_bytes - before.relocated_bytes) /
               double(after.drained_bytes - before.drained_bytes);
    }
};

// What that gains depends on the sizes and is measured, not promised: docs/performance.md.
TEST_F(CleaningTest, SkewedOverwritesAreSplitByLifetime) {
    uint64_t splits = 0;
    double one_stream = copied_per_drained(900, Streams::one, 6, splits);
    EXPECT_EQ(splits, 0u);
    double classes = copied_per_drained(900, Streams::by_lifetime, 6, splits);
    EXPECT_GT(splits, 20u);
    RecordProperty("copied_per_drained_one_stream", fmt::format("{:.3f}", one_stream));
    RecordProperty("copied_per_drained_by_lifetime", fmt::format("{:.3f}", classes));
}

TEST_F(CleaningTest, UniformOverwritesKeepOneStream) {
    uint64_t splits = 0;
    EXPECT_GT(copied_per_drained(0, Streams::by_lifetime, 2, splits), 0.1);
    EXPECT_EQ(splits, 0u);
}

// 85 % of the units hold live data: the reserve and a few units are all that is free, and every
// segment that can be cleaned is nearly alive.
TEST_F(CleaningTest, OverwritesGoOnAt85PercentLive) {
    RigOptions options;
    options.disk_bytes = 304 * kMiB;
    options.volume_bytes = 242 * kMiB;
    options.overlay_bytes = 16 * kMiB;
    make(options);
    fill(options.volume_bytes);
    ASSERT_NEAR(live_share(), 0.85, 0.01);
    Load load{.writes_left = 8000, .chunk_bytes = 2 * kBlockBytes};
    run(load);
    EXPECT_LT(load.longest, std::chrono::seconds(5));
    rig->expect_all();
}

// Nobody drains any more: who needs it hears so, and does not wait for ever.
TEST_F(CleaningTest, AWriteAfterTheKeeperStoppedDoesNotHang) {
    RigOptions options;
    options.overlay_bytes = 2 * kMiB;
    make(options);
    rig->world.run(keeper->stop());
    Load load{.writes_left = 2000, .chunk_bytes = kBlockBytes};
    load.running = kLanes;
    for (size_t lane = 0; lane < kLanes; ++lane)
        runtime::spawn(rig->world.env().executor, overwrite(*rig, lane, load));
    rig->world.run_for(std::chrono::seconds(60));
    EXPECT_EQ(load.running, 0u);
    EXPECT_NE(load.problem, "");
}

// New data until the device is full: said soon, and every time; what is freed can be used.
TEST_F(CleaningTest, FullIsSaidSoonAndFreeingEndsIt) {
    RigOptions options;
    options.disk_bytes = 160 * kMiB;
    options.volume_bytes = 512 * kMiB;
    options.overlay_bytes = 16 * kMiB;
    make(options);
    fill(96 * kMiB);
    // Dead blocks here and there, which only dear cleaning gains.
    for (uint64_t i = 0; i < 1000; ++i) {
        uint64_t at = rig->world.random().pick(96 * kMiB / kBlockBytes) * kBlockBytes;
        ASSERT_TRUE(rig->world.run(rig->write(at, kBlockBytes)));
    }
    Time start = rig->world.env().clock.now();
    uint64_t at = 96 * kMiB;
    Result<void> written;
    for (; at < options.volume_bytes && written; at += kBlockBytes)
        written = rig->world.run(rig->write(at, kBlockBytes));
    ASSERT_FALSE(written);
    EXPECT_EQ(written.error().code(), Code::no_space) << written.error().text();
    EXPECT_GT(live_share(), 0.8);
    EXPECT_LT(rig->world.env().clock.now() - start, std::chrono::seconds(60));
    for (int i = 0; i < 20; ++i) {
        start = rig->world.env().clock.now();
        written = rig->world.run(rig->write(at, kBlockBytes));
        EXPECT_FALSE(written);
        EXPECT_LT(rig->world.env().clock.now() - start, std::chrono::seconds(1));
    }
    ASSERT_TRUE(rig->world.run(rig->zero(0, 16 * kMiB)));
    for (uint64_t i = 0; i < 1000; ++i, at += kBlockBytes) {
        written = rig->world.run(rig->write(at, kBlockBytes));
        ASSERT_TRUE(written) << i << ": " << written.error().text();
    }
    rig->expect_all();
}

}  // namespace
}  // namespace peplos::keeper
