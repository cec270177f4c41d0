#include "volume/volume_test_rig.h"

namespace peplos::volume {
namespace {

// Random operations in small parallel groups beside the model; ranges of one group do not overlap.
class ModelRun {
  public:
    ModelRun(Rig& rig, uint64_t steps) : rig_(rig), steps_(steps) {}

    Task<std::string> run() {
        for (uint64_t i = 0; i < steps_; ++i) {
            std::string wrong = co_await step();
            if (!wrong.empty()) co_return fmt::format("step {}: {}", i, wrong);
        }
        co_return "";
    }
    // Whether the only errors were of this kind; else the first other one.
    std::string first_error;

  private:
    sim::Random& random() { return rig_.world.random(); }

    Task<std::string> step() {
        switch (random().pick(16)) {
            case 0:
                co_return note(co_await rig_.volume->drain());
            case 1:
                co_return note(co_await rig_.volume->checkpoint());
            case 2:
                co_return co_await clean();
            case 3:
            case 4:
                co_return co_await check_some();
            default:
                co_return co_await write_group();
        }
    }
    Task<std::string> clean() {
        std::vector<uint32_t> indexes;
        std::vector<SegmentView> segments = rig_.volume->segments();
        for (const SegmentView& segment : segments) {
            if (segment.kind != format::SegmentKind::map && random().chance(400)) {
                indexes.push_back(segment.index);
            }
        }
        co_return note(co_await rig_.volume->relocate(std::move(indexes), 2));
    }
    Task<std::string> check_some() {
        uint64_t blocks = rig_.volume->size_bytes() / kBlockBytes;
        uint64_t count = 1 + random().pick(64);
        uint64_t first = random().pick(blocks - count);
        co_return co_await rig_.check(first * kBlockBytes, count * kBlockBytes);
    }
    // Four lanes of the volume are written at once.
    Task<std::string> write_group() {
        uint64_t lane_bytes = rig_.volume->size_bytes() / 4;
        size_t pending = 4;
        runtime::WaitList done;
        std::string wrong;
        for (uint64_t lane = 0; lane < 4; ++lane) {
            runtime::spawn(rig_.world.env().executor,
                           write_one(lane * lane_bytes, lane_bytes, pending, done, wrong));
        }
        while (pending != 0)
            co_await done.wait();
        co_return wrong;
    }
    Task<void> write_one(uint64_t start, uint64_t bytes, size_t& pending, runtime::WaitList& done,
                         std::string& wrong) {
        // A small hot range too, so that blocks are overwritten often.
        uint64_t range = random().chance(500) ? 128 * kKiB : bytes;
        uint64_t size = 0;
        uint64_t unit = kBlockBytes;
        Result<void> outcome;
        uint32_t kind = static_cast<uint32_t>(random().pick(10));
        if (kind < 5) {
            size = (1 + random().pick(8)) * kBlockBytes;
        } else if (kind < 7) {
            unit = 512;
            size = (1 + random().pick(24)) * 512;
        } else if (kind < 8) {
            size = std::min<uint64_t>(range, 128 * kKiB + random().pick(32) * kBlockBytes);
        } else {
            unit = 512;
            size = (1 + random().pick(256)) * 512;
        }
        size = std::min(size, range);
        uint64_t offset = start + random().pick((range - size) / unit + 1) * unit;
        if (kind < 8) {
            outcome = co_await rig_.write(offset, size);
        } else {
            outcome = co_await rig_.zero(offset, size);
        }
        std::string failed = note(outcome);
        if (wrong.empty()) wrong = failed;
        if (--pending == 0) done.wake_all();
    }
    std::string note(const Result<void>& outcome) {
        if (outcome) return "";
        if (first_error.empty()) first_error = outcome.error().text();
        return outcome.error().text();
    }

    Rig& rig_;
    uint64_t steps_;
};

TEST(VolumeModel, RandomOperationsMatchAPlainMap) {
    for (uint64_t seed = 1; seed <= 3; ++seed) {
        Rig rig(seed);
        rig.make();
        for (int round = 0; round < 3; ++round) {
            ModelRun model(rig, 60);
            ASSERT_EQ(rig.world.run(model.run()), "") << "seed " << seed << " round " << round;
            rig.expect_all();
            if (round % 2 == 0) rig.reopen();
            ASSERT_FALSE(HasFailure()) << "seed " << seed << " round " << round;
        }
        rig.expect_all();
        ASSERT_FALSE(HasFailure()) << "seed " << seed;
    }
}

TEST(VolumeModel, PowerCutsLoseNothingAcknowledgedAndSettleTheRest) {
    for (uint64_t seed = 100; seed < 103; ++seed) {
        Rig rig(seed);
        rig.make();
        for (int round = 0; round < 3; ++round) {
            ModelRun model(rig, 1000);
            rig.world.run_events(model.run(), 50 + rig.world.random().pick(4000));
            ASSERT_EQ(model.first_error, "") << "seed " << seed;
            rig.crash();
            rig.recover();
            ASSERT_FALSE(HasFailure()) << "seed " << seed << " round " << round;
            rig.expect_all();
            // What was read, stays: an unknown write settles once.
            if (round == 1) {
                rig.crash();
                rig.recover();
                rig.expect_all();
            }
            ASSERT_FALSE(HasFailure()) << "seed " << seed << " round " << round;
        }
    }
}

Task<Result<void>> fixed_workload(Rig& rig) {
    CO_TRY(co_await rig.write(0, 16 * kKiB));
    CO_TRY(co_await rig.write(1 * kMiB, 128 * kKiB));
    CO_TRY(co_await rig.write(4096 + 512, 512));
    CO_TRY(co_await rig.volume->drain());
    CO_TRY(co_await rig.zero(8192, 4096));
    CO_TRY(co_await rig.write(1 * kMiB + 4096, 4096));
    CO_TRY(co_await rig.volume->drain());
    CO_TRY(co_await rig.volume->checkpoint());
    std::vector<uint32_t> indexes;
    std::vector<SegmentView> segments = rig.volume->segments();
    for (const SegmentView& segment : segments)
        indexes.push_back(segment.index);
    CO_TRY(co_await rig.volume->relocate(indexes, 2));
    CO_TRY(co_await rig.volume->checkpoint());
    CO_TRY(co_await rig.write(0, 4096));
    co_return Result<void>{};
}

TEST(VolumeModel, APowerCutAtEveryEventOfAFixedWorkload) {
    RigOptions options;
    options.volume_bytes = 2 * kMiB;
    options.disk_bytes = 64 * kMiB;
    bool finished = false;
    uint64_t crash_states = 0;
    for (uint64_t events = 0; !finished; events += 1 + events / 8) {
        Rig rig(7, options);
        rig.make();
        auto outcome = rig.world.run_events(fixed_workload(rig), events);
        finished = outcome.has_value();
        if (finished) ASSERT_TRUE(*outcome) << outcome->error().text();
        rig.crash();
        rig.recover();
        rig.expect_all();
        ASSERT_FALSE(HasFailure()) << "after " << events << " events";
        ++crash_states;
    }
    RecordProperty("crash_states", static_cast<int>(crash_states));
}

TEST(VolumeModel, ReplayGivesTheSameMap) {
    for (uint64_t seed = 200; seed < 203; ++seed) {
        Rig rig(seed);
        rig.make();
        ModelRun model(rig, 80);
        ASSERT_EQ(rig.world.run(model.run()), "") << "seed " << seed;
        ASSERT_TRUE(rig.world.run(rig.volume->drain()));
        auto before = rig.world.run(rig.volume->dump_map());
        ASSERT_TRUE(before);
        rig.crash();
        rig.recover();
        ASSERT_FALSE(HasFailure()) << "seed " << seed;
        auto after = rig.world.run(rig.volume->dump_map());
        ASSERT_TRUE(after);
        EXPECT_EQ(*before, *after) << "seed " << seed;
    }
}

}  // namespace
}  // namespace peplos::volume
