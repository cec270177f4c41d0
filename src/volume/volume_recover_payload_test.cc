#include "volume/volume_damage_rig.h"

// Payload of large writes that a recovery has to write anew: their segment was sealed and
// shortened, so that an index of all its blocks does not fit any more, and the record of that drain
// is lost.
namespace peplos::volume {
namespace {

using replica::OnLoss;

// One block more than a unit holds with an index of all of them; most are trimmed, and so the drain
// found room for an index of the rest.
constexpr uint64_t kBlocks = format::segment_block_count_max(limits::kSegmentBytesMin) + 1;
constexpr uint64_t kLiving = 61;
constexpr uint64_t kPlace = 4 * kMiB;
constexpr uint64_t kBad = 3;  // of the living blocks

struct LargePayload : testing::Test {
    NoWork background;
    Rig rig{1};
    uint64_t payload_at = 0;

    void SetUp() override {
        rig.background = &background;
        rig.make();
        const uint64_t dead_bytes = (kBlocks - kLiving) * kBlockBytes;
        ASSERT_TRUE(rig.world.run(rig.write(0, dead_bytes)));
        ASSERT_TRUE(rig.world.run(rig.write(kPlace, kLiving * kBlockBytes)));
        ASSERT_TRUE(rig.world.run(rig.write(8 * kMiB, kBlockBytes)));  // settles what was before
        ASSERT_TRUE(rig.world.run(rig.zero(0, dead_bytes)));
        ASSERT_TRUE(rig.world.run(rig.volume->drain()));
        SegmentView segment = only_segment(rig, format::SegmentKind::large);
        ASSERT_EQ(segment.unit_count, 1u) << "it was not shortened";
        payload_at =
            device_offset(rig, segment.id) + format::segment_block_offset(kBlocks - kLiving + kBad);
        uint64_t seal_at = frame_offset(rig, rig.device->ring().newest_sequence());
        rig.stop();
        rig.world.disk(Rig::kPath).corrupt(seal_at + 70);
        rig.start_node();
        ASSERT_FALSE(rig.try_open());
    }
    void TearDown() override {
        if (!rig.volume) rig.stop_node();
    }
    uint64_t given_up() { return rig.world.faults().probe_count("volume.drain.bad_reference"); }
    static bool names_it(const LossReport& report) {
        const uint64_t at = kPlace + kBad * kBlockBytes;
        return std::ranges::any_of(report.losses, [at](const std::string& loss) {
            return loss.find(fmt::format("bytes {} to {}", at, at + kBlockBytes - 1)) !=
                   std::string::npos;
        });
    }
    // It alone is lost, and stays so until it is written again.
    void expect_lost_alone() {
        rig.world.disk(Rig::kPath).clear_faults();
        rig.open();
        for (int life = 0; life < 2; ++life) {
            EXPECT_NE(read_error(rig, kPlace + kBad * kBlockBytes), "");
            EXPECT_EQ(rig.world.run(rig.check(kPlace, kBad * kBlockBytes)), "");
            EXPECT_EQ(rig.world.run(rig.check(kPlace + (kBad + 1) * kBlockBytes,
                                              (kLiving - kBad - 1) * kBlockBytes)),
                      "");
            rig.reopen();
        }
        ASSERT_TRUE(rig.world.run(rig.write(kPlace + kBad * kBlockBytes, kBlockBytes)));
        rig.expect_all();
    }
};

TEST_F(LargePayload, IsWrittenAnewWhole) {
    LossReport report = recover_ok(rig, OnLoss::accept);
    EXPECT_EQ(report.lost_blocks, 0u);
    EXPECT_EQ(given_up(), 0u);
    rig.open();
    rig.expect_all();
}

TEST_F(LargePayload, ABlockThatRottedIsShownAndGivenUpAlone) {
    rig.world.disk(Rig::kPath).corrupt(payload_at + 5);
    for (OnLoss on_loss : {OnLoss::look, OnLoss::accept}) {
        LossReport report = recover_ok(rig, on_loss);
        EXPECT_EQ(report.lost_blocks, 1u);
        EXPECT_TRUE(names_it(report)) << fmt::format("{}", fmt::join(report.losses, "; "));
    }
    EXPECT_EQ(given_up(), 1u);
    expect_lost_alone();
}

// Nobody waits an hour, and the next attempt another one: what was shown and accepted ends.
TEST_F(LargePayload, ABlockThatTheDeviceNeverGivesIsShownAndGivenUpAtOnce) {
    make_unreadable(rig, payload_at);
    Time start = rig.world.now();
    LossReport shown = recover_ok(rig, OnLoss::look);
    EXPECT_TRUE(names_it(shown));
    auto done = rig.world.run(rig.recover_volume(OnLoss::accept, shown));
    ASSERT_TRUE(done) << done.error().text();
    EXPECT_EQ(done->lost_blocks, 1u);
    EXPECT_LT(rig.world.now() - start, std::chrono::minutes(1));
    expect_lost_alone();
}

// Good when it was shown, and bad when the drain comes to it: nothing is given up unseen.
TEST_F(LargePayload, ABlockThatFailsAfterItWasShownWholeIsNotGivenUp) {
    rig.world.disk(Rig::kPath)
        .add_fault({.operation = sim::DiskOperation::read,
                    .effect = sim::DiskEffect::garbled,
                    .offset = payload_at,
                    .bytes = kBlockBytes,
                    .skip = 1});
    auto refused = rig.world.run(rig.recover_volume(OnLoss::accept));
    ASSERT_FALSE(refused);
    EXPECT_EQ(refused.error().code(), Code::corrupt) << refused.error().text();
    EXPECT_EQ(given_up(), 0u);
    ASSERT_FALSE(rig.try_open());
    EXPECT_TRUE(names_it(recover_ok(rig, OnLoss::look)));
    rig.world.disk(Rig::kPath).clear_faults();
    recover_ok(rig, OnLoss::accept);
    rig.open();
    rig.expect_all();
}

}  // namespace
}  // namespace peplos::volume
