#include "format/map_page.h"
#include "swarm/damaged_node.h"

namespace peplos::swarm {
namespace {

using Loss = fabric::Node::Loss;

// Damage keeps the volume closed.
class Recover : public DamagedNode {
  protected:
    void lose_power() {
        world.crash({.mode = sim::CrashMode::keep});
        host.lose_host();
        daemon.reset();
    }
    // Every page of that kind of the volume, on the whole disk.
    void corrupt_pages(VolumeId id, format::PageKind kind) {
        Buffer bytes = Buffer::allocate(256 * kMiB);
        world.disk(kDisk).peek(0, bytes.bytes());
        int hits = 0;
        for (uint64_t at = 0; at + kMiB < bytes.size(); at += format::kPlaceUnitBytes) {
            auto page = format::outline_page(std::as_const(bytes).bytes().subspan(at, kMiB));
            if (!page || page->identity.volume != id || page->identity.kind != kind) continue;
            world.disk(kDisk).corrupt(at + 65);
            ++hits;
        }
        ASSERT_NE(hits, 0);
    }
    Result<fabric::RecoveryReport> recover(const std::string& name, Loss loss) {
        return world.run(daemon->node.recover_volume(name, loss));
    }
};

TEST_F(Recover, AVolumeWithoutARootIsToldShownAndRecovered) {
    make();
    VolumeId hurt = info("hurt").id;
    auto served = recover("hurt", Loss::accept);
    ASSERT_TRUE(served);
    EXPECT_TRUE(served->is_whole);
    world.run_for(std::chrono::seconds(1));
    shut_down();
    corrupt_pages(hurt, format::PageKind::root);
    boot();
    auto mounted = mount("hurt");
    ASSERT_FALSE(mounted);
    EXPECT_NE(mounted.error().message().find("peplos volume recover hurt"), std::string::npos)
        << mounted.error().message();
    EXPECT_NE(mounted.error().message().find(kDisk), std::string::npos);
    fabric::Health health = info("hurt").health;
    EXPECT_EQ(health.light, fabric::Light::red);
    EXPECT_EQ(health.next, "peplos volume recover hurt");
    ASSERT_TRUE(mount("whole"));
    for (int i = 0; i < 2; ++i) {
        auto shown = recover("hurt", Loss::show);
        ASSERT_TRUE(shown) << shown.error().text();
        EXPECT_FALSE(shown->is_done || shown->is_whole);
        EXPECT_EQ(shown->findings.size(), 1u);
        EXPECT_TRUE(shown->losses.empty()) << shown->losses[0];
        EXPECT_NE(shown->message.find("--accept-loss"), std::string::npos);
        EXPECT_FALSE(mount("hurt"));
        EXPECT_EQ(info("hurt").recovered_at, WallTime{});
    }
    auto done = recover("hurt", Loss::accept);
    ASSERT_TRUE(done) << done.error().text();
    EXPECT_TRUE(done->is_done);
    for (int life = 0; life < 2; ++life) {
        for (const char* name : {"hurt", "whole"}) {
            ASSERT_TRUE(mount(name)) << name;
            EXPECT_EQ(read(name, 0), "");
            EXPECT_EQ(read(name, 4 * kMiB), "");
            EXPECT_EQ(info(name).health.light, fabric::Light::green);
        }
        EXPECT_NE(info("hurt").recovered_at, WallTime{});
        EXPECT_NE(info("hurt").recovered_without.find("map root"), std::string::npos);
        EXPECT_EQ(info("whole").recovered_at, WallTime{});
        shut_down();
        boot();
    }
    ASSERT_TRUE(world.run(daemon->node.remove_volume("hurt")));
    world.run_for(std::chrono::seconds(1));
    EXPECT_FALSE(world.run(store.get(control::loss_key(hurt)))->has_value());
    shut_down();
}

// An end of the journal that cannot be read closes every volume of the device. Accepting the loss
// of one opens that one and no other.
TEST_F(Recover, ALostEndOfTheJournalIsAcceptedVolumeByVolume) {
    make();
    world.run_for(std::chrono::seconds(1));
    replica::JournalStats before = daemon->node.devices().members()[0]->journal->stats();
    auto& ring = daemon->node.devices().members()[0]->device->ring();
    uint64_t at = 0;
    {
        uint64_t newest = ring.newest_sequence();
        at = ring.device_offset_of({newest, 0, 0});
        EXPECT_GT(before.volumes, 1u);
    }
    lose_power();
    world.disk(kDisk).add_fault({.operation = sim::DiskOperation::read,
                                 .effect = sim::DiskEffect::io_error,
                                 .offset = at,
                                 .bytes = kBlockBytes});
    boot();
    for (const char* name : {"hurt", "whole"})
        ASSERT_FALSE(mount(name)) << name;
    world.disk(kDisk).clear_faults();
    auto shown = recover("hurt", Loss::show);
    ASSERT_TRUE(shown) << shown.error().text();
    ASSERT_EQ(shown->losses.size(), 1u);
    auto done = recover("hurt", Loss::accept);
    ASSERT_TRUE(done) << done.error().text();
    ASSERT_TRUE(mount("hurt"));
    EXPECT_FALSE(mount("whole"));
    EXPECT_EQ(read("hurt", 0), "");
    EXPECT_EQ(read("hurt", 4 * kMiB), "");
    auto busy = recover("hurt", Loss::accept);
    EXPECT_TRUE(busy && busy->is_whole);
    ASSERT_TRUE(write("hurt", 8 * kMiB));
    shut_down();
    boot();
    ASSERT_TRUE(mount("hurt"));
    EXPECT_EQ(read("hurt", 8 * kMiB), "");
    EXPECT_FALSE(mount("whole"));
    // Nothing is given up unseen: this daemon has shown nothing yet.
    auto unseen = recover("whole", Loss::accept);
    ASSERT_TRUE(unseen);
    EXPECT_FALSE(unseen->is_done || unseen->is_whole);
    EXPECT_EQ(unseen->losses.size(), 1u);
    EXPECT_FALSE(mount("whole"));
    EXPECT_EQ(info("whole").recovered_at, WallTime{});
    unseen = recover("whole", Loss::accept);
    ASSERT_TRUE(unseen && unseen->is_done);
    ASSERT_TRUE(mount("whole"));
    EXPECT_EQ(read("whole", 4 * kMiB), "");
    shut_down();
}

// Between the plan and its acceptance more was damaged: that is shown before it is given up.
TEST_F(Recover, MoreThanWasShownIsNotGivenUp) {
    make();
    VolumeId hurt = info("hurt").id;
    world.run_for(std::chrono::seconds(1));
    shut_down();
    corrupt_pages(hurt, format::PageKind::interior);
    boot();
    auto shown = recover("hurt", Loss::show);
    ASSERT_TRUE(shown) << shown.error().text();
    EXPECT_TRUE(shown->losses.empty());
    corrupt_pages(hurt, format::PageKind::leaf);
    for (int i = 0; i < 2; ++i) {
        auto refused = recover("hurt", Loss::accept);
        ASSERT_FALSE(refused);
        EXPECT_EQ(refused.error().code(), Code::busy);
        EXPECT_NE(refused.error().message().find("peplos volume recover hurt"), std::string::npos);
        EXPECT_FALSE(mount("hurt"));
        EXPECT_EQ(info("hurt").recovered_at, WallTime{});
    }
    shown = recover("hurt", Loss::show);
    ASSERT_TRUE(shown && !shown->losses.empty());
    auto done = recover("hurt", Loss::accept);
    ASSERT_TRUE(done) << done.error().text();
    EXPECT_TRUE(done->is_done);
    ASSERT_TRUE(mount("hurt"));
    EXPECT_NE(read("hurt", 0).find("is lost"), std::string::npos);
    shut_down();
}

// What a mounted file system has in memory would not fit what is left below it.
TEST_F(Recover, AVolumeThatTheHostStillHasIsLeftAlone) {
    make();
    VolumeId hurt = info("hurt").id;
    world.run_for(std::chrono::seconds(1));
    world.kill();
    host.lose_daemon();
    daemon.reset();
    corrupt_pages(hurt, format::PageKind::root);
    boot();
    auto refused = recover("hurt", Loss::accept);
    ASSERT_FALSE(refused);
    EXPECT_EQ(refused.error().code(), Code::busy);
    EXPECT_NE(refused.error().message().find("peplos volume detach hurt --force"),
              std::string::npos);
    ASSERT_TRUE(world.run(daemon->node.detach_forced("hurt")));
    ASSERT_TRUE(recover("hurt", Loss::show));
    auto done = recover("hurt", Loss::accept);
    ASSERT_TRUE(done) << done.error().text();
    ASSERT_TRUE(mount("hurt"));
    EXPECT_EQ(read("hurt", 4 * kMiB), "");
    shut_down();
}

}  // namespace
}  // namespace peplos::swarm
