#include "format/segment_layout.h"
#include "format/superblock.h"
#include "swarm/damaged_node.h"

namespace peplos::swarm {
namespace {

// One part of the map of the volume is corrupt.
class LostLeaf : public DamagedNode {
  protected:
    void boot_again() {
        boot();
        for (const char* name : {"hurt", "whole"})
            ASSERT_TRUE(mount(name));
    }
    // The first leaf that the only map segment of the volume holds: that of its first 4 MiB.
    uint64_t leaf_offset(VolumeId id) {
        Buffer block = Buffer::allocate(format::kSuperblockBytes);
        world.disk(kDisk).peek(0, block.bytes());
        auto superblock = format::decode_superblock(std::as_const(block).bytes());
        CHECK(superblock);
        for (const auto& member : daemon->node.devices().members()) {
            for (const media::SegmentInfo& segment : member->device->segments().list(id)) {
                if (segment.kind != format::SegmentKind::map) continue;
                return superblock->units_offset + segment.first_unit * limits::kSegmentUnitBytes +
                       format::kSegmentDataOffset;
            }
        }
        CHECK(false, "no map segment");
        return 0;
    }
    keeper::ScrubReport scrub() {
        CHECK(daemon->keeper.start_scrub());
        while (daemon->keeper.scrub_report().running)
            CHECK(world.step());
        return daemon->keeper.scrub_report();
    }
};

TEST_F(LostLeaf, OneCorruptLeafHurtsItsBlocksAndIsSeenEverywhere) {
    make();
    VolumeId hurt = info("hurt").id;
    settle_and_stop();
    boot();
    uint64_t page = leaf_offset(hurt);
    shut_down();
    world.disk(kDisk).corrupt(page + 70);
    boot_again();
    std::string error = read("hurt", 8192);
    EXPECT_NE(error.find(kDisk), std::string::npos) << error;
    EXPECT_NE(error.find("map leaf 0"), std::string::npos) << error;
    auto named = [](const keeper::ScrubReport& report, std::string_view what) {
        return std::ranges::any_of(report.problems, [&](const std::string& problem) {
            return problem.find(what) != std::string::npos;
        });
    };
    EXPECT_TRUE(named(scrub(), "map leaf 0"));
    // What is written there heals its own blocks; the drain finds the rest lost.
    ASSERT_TRUE(write("hurt", 0));
    for (int life = 0; life < 2; ++life) {
        settle_and_stop();
        boot_again();
        EXPECT_EQ(read("hurt", 0), "");
        EXPECT_EQ(read("hurt", 4 * kMiB), "");
        error = read("hurt", 64 * kKiB);
        EXPECT_NE(error.find("block 16 (4096 bytes at 65536) is lost"), std::string::npos) << error;
        EXPECT_EQ(read("whole", 0), "");
        ASSERT_TRUE(write("whole", 8 * kMiB));
        EXPECT_EQ(info("whole").health.light, fabric::Light::green);
        fabric::Health health = info("hurt").health;
        EXPECT_EQ(health.light, fabric::Light::red);
        EXPECT_NE(health.reason.find("1008 blocks"), std::string::npos) << health.reason;
        EXPECT_TRUE(named(scrub(), "1008 of the blocks 0 to 1023 are lost"));
    }
    ASSERT_TRUE(world.run(device("hurt").zero(64 * kKiB, 4 * kMiB - 64 * kKiB)));
    ASSERT_TRUE(write("hurt", 12 * kMiB));  // makes it drain
    settle_and_stop();
    boot_again();
    EXPECT_EQ(info("hurt").health.light, fabric::Light::green) << info("hurt").health.reason;
    EXPECT_TRUE(scrub().problems.empty());
    EXPECT_EQ(read("hurt", 0), "");
    shut_down();
}

}  // namespace
}  // namespace peplos::swarm
