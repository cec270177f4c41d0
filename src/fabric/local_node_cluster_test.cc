#include <gtest/gtest.h>

#include "control/memory_store.h"
#include "fabric/fake_host.h"
#include "fabric/local_node.h"
#include "sim/world.h"

namespace peplos::fabric {
namespace {

// Three nodes of one cluster, each with a device, on one control store.
class LocalNodeClusterTest : public testing::Test {
  protected:
    struct Host {
        Host(sim::Process& process, control::Store& store, NodeId id)
            : process(process),
              node(process.env(), store,
                   LocalNodeOptions{
                       .name = name_of(id), .id = id, .cluster = options_of(id, process)}) {
            node.set_attachments(&fake);
        }
        static ClusterOptions options_of(NodeId id, sim::Process& process) {
            ClusterOptions options;
            options.self = {
                .cluster = ClusterId(7), .node = id, .boot = NodeBoot(process.env().rng.next_id())};
            options.listen = address_of(id);
            return options;
        }
        sim::Process& process;
        FakeHost fake;
        LocalNode node;
    };

    static std::string name_of(NodeId id) { return fmt::format("host-{}", id.value); }
    static std::string address_of(NodeId id) { return fmt::format("{}:7668", name_of(id)); }

    void SetUp() override {
        control::ClusterRecord cluster;
        cluster.id = ClusterId(7);
        control::Transaction birth{
            control::create(std::string(control::kClusterKey), *control::encode(cluster))};
        for (uint64_t i = 1; i <= kNodes; ++i) {
            control::NodeRecord record;
            record.id = NodeId(i);
            record.name = name_of(record.id);
            record.addresses = {address_of(record.id)};
            birth.push_back(
                control::create(control::node_key(record.id), *control::encode(record)));
        }
        ASSERT_TRUE(world.run(store.compare_and_set(std::move(birth))));
        for (uint64_t i = 1; i <= kNodes; ++i) {
            hosts.push_back(boot(NodeId(i)));
            std::string path = fmt::format("/{}", name_of(NodeId(i)));
            auto added = world.run(host(i).process, host(i).node.add_device(path, kGiB, "ssd"));
            ASSERT_TRUE(added) << added.error().text();
        }
        // The nodes hear of each other, and groups are made.
        world.run_for(std::chrono::seconds(20));
    }
    void TearDown() override {
        for (const auto& one : hosts) {
            if (one != nullptr) world.run(one->process, one->node.stop());
        }
    }
    // `surviving`: what the kernel kept attached meanwhile.
    std::unique_ptr<Host> boot(NodeId id, std::vector<VolumeId> surviving = {}) {
        auto made = std::make_unique<Host>(world.start(fmt::format("{}-{}", name_of(id), ++lives)),
                                           store, id);
        made->fake.surviving = std::move(surviving);
        Result<void> started = world.run(made->process, made->node.start());
        EXPECT_TRUE(started) << started.error().text();
        return made;
    }
    // The power of that host goes, or only its daemon; its objects go after the process is dead.
    void lose(uint64_t i, bool is_power_loss = true) {
        is_power_loss ? world.crash(host(i).process) : world.kill(host(i).process);
        host(i).fake.devices.clear();
        hosts[i - 1] = nullptr;
    }
    Host& host(uint64_t i) { return *hosts.at(i - 1); }
    Result<VolumeInfo> create(uint64_t at, const std::string& name, uint32_t copies = 2) {
        VolumeSpec spec;
        spec.name = name;
        spec.size_bytes = 64 * kMiB;
        spec.copies = copies;
        return world.run(host(at).process, host(at).node.create_volume(spec));
    }
    static Task<void> keep(Task<Result<std::string>> task,
                           std::shared_ptr<std::optional<Result<std::string>>> out) {
        *out = co_await std::move(task);
    }
    // Within a minute, or it fails and says what the volume waits for.
    Result<std::string> mount(uint64_t at, const std::string& name) {
        auto out = std::make_shared<std::optional<Result<std::string>>>();
        runtime::spawn(host(at).process.executor(),
                       keep(host(at).node.mount(name, "container"), out));
        for (int i = 0; i < 600 && !out->has_value(); ++i)
            world.run_for(std::chrono::milliseconds(100));
        if (out->has_value()) return std::move(**out);
        return fail(Code::unavailable, "no end: {}", info(at, name)->health.reason);
    }
    static Task<void> unmount_later(Host& host, std::string name) {
        std::ignore = co_await host.node.unmount(std::move(name), "container");
    }
    Result<void> unmount(uint64_t at, const std::string& name) {
        return world.run(host(at).process, host(at).node.unmount(name, "container"));
    }
    Result<VolumeInfo> info(uint64_t at, const std::string& name) {
        return world.run(host(at).process, host(at).node.volume(name));
    }
    volume::BlockDevice& device(uint64_t at, const std::string& name) {
        return *host(at).fake.devices.at(info(at, name)->id);
    }
    Result<void> write(uint64_t at, const std::string& name, uint64_t block, int value) {
        Buffer data = Buffer::zeroed(kBlockBytes);
        std::memset(data.data(), value, data.size());
        return world.run(host(at).process,
                         device(at, name).write(block * kBlockBytes, std::move(data)));
    }
    // -1: an error.
    int read(uint64_t at, const std::string& name, uint64_t block) {
        Buffer data = Buffer::zeroed(kBlockBytes);
        auto outcome =
            world.run(host(at).process, device(at, name).read(block * kBlockBytes, data));
        EXPECT_TRUE(outcome) << outcome.error().text();
        return outcome ? std::to_integer<int>(data.data()[kBlockBytes - 1]) : -1;
    }
    uint64_t used_bytes(uint64_t at) {
        NodeStatus status = *world.run(host(at).process, host(at).node.status());
        return status.capacity_bytes - status.free_bytes;
    }
    Task<Result<StoredVolume>> stored(VolumeId id) { co_return co_await read_volume(store, id); }
    control::VolumeRecord record_of(VolumeId id) { return world.run(stored(id))->record; }
    Task<Result<StoredVolume>> put(StoredVolume changed) {
        co_return co_await write_volume(store, changed.record, changed.revision);
    }
    void change(VolumeId id, auto&& edit) {
        StoredVolume now = *world.run(stored(id));
        edit(now.record);
        ASSERT_TRUE(world.run(put(std::move(now))));
    }
    bool has_mount_record(uint64_t at, VolumeId id) {
        return world.run(store.get(control::mount_key(NodeId(at), id)))->has_value();
    }

    static constexpr uint64_t kNodes = 3;
    sim::World world{42};
    control::MemoryStore store;
    std::vector<std::unique_ptr<Host>> hosts;
    int lives = 0;
};

TEST_F(LocalNodeClusterTest, WhatOneCreatesOrRemovesTheOthersKnow) {
    Result<VolumeInfo> created = create(1, "data");
    ASSERT_TRUE(created) << created.error().text();
    ASSERT_TRUE(info(2, "data")) << "asked for by name at once";
    ASSERT_TRUE(create(1, "more"));
    world.run_for(std::chrono::seconds(1));
    EXPECT_EQ(world.run(host(3).process, host(3).node.volumes())->size(), 2u);
    ASSERT_TRUE(world.run(host(1).process, host(1).node.remove_volume("data")));
    world.run_for(std::chrono::seconds(1));
    EXPECT_EQ(world.run(host(2).process, host(2).node.volumes())->size(), 1u);
    Result<VolumeInfo> gone = info(3, "data");
    ASSERT_FALSE(gone);
    EXPECT_EQ(gone.error().code(), Code::not_found);
}

TEST_F(LocalNodeClusterTest, OfTwoCreationsOfOneNameOneVolumeComes) {
    Result<VolumeInfo> first = create(1, "data");
    Result<VolumeInfo> second = create(2, "data");
    ASSERT_TRUE(first && second);
    EXPECT_EQ(first->id, second->id);
}

TEST_F(LocalNodeClusterTest, AMountElsewhereIsRefusedAndNamesTheHost) {
    Result<VolumeInfo> created = create(1, "data");
    ASSERT_TRUE(created) << created.error().text();
    ASSERT_TRUE(mount(1, "data"));
    Result<std::string> second = mount(2, "data");
    ASSERT_FALSE(second);
    EXPECT_EQ(second.error().code(), Code::busy);
    EXPECT_NE(second.error().message().find("host-1 since "), std::string::npos)
        << second.error().message();
    EXPECT_EQ(info(2, "data")->host, "host-1");
    EXPECT_EQ(info(1, "data")->state, "attached");
    ASSERT_TRUE(write(1, "data", 3, 5)) << "the refused one did no harm";
}

// What the old host's kernel has not written yet comes before the new one's first read.
TEST_F(LocalNodeClusterTest, AVolumeMovesOnlyOnceItIsOffItsOldHost) {
    Result<VolumeInfo> created = create(1, "data");
    ASSERT_TRUE(created) << created.error().text();
    ASSERT_TRUE(mount(1, "data"));
    VolumeId id = info(1, "data")->id;
    host(1).fake.busy = true;
    ASSERT_TRUE(unmount(1, "data"));
    Result<std::string> early = mount(2, "data");
    ASSERT_FALSE(early);
    EXPECT_EQ(early.error().code(), Code::busy);
    EXPECT_NE(early.error().message().find("lets go"), std::string::npos) << early.error().text();
    EXPECT_TRUE(has_mount_record(1, id));
    ASSERT_TRUE(write(1, "data", 5, 55)) << "the old host still writes";
    host(1).fake.busy = false;
    world.run_for(std::chrono::seconds(15));
    EXPECT_FALSE(has_mount_record(1, id));
    Result<std::string> mounted = mount(2, "data");
    ASSERT_TRUE(mounted) << mounted.error().text();
    EXPECT_EQ(read(2, "data", 5), 55);
}

TEST_F(LocalNodeClusterTest, TheOnlyCopyStaysWhereItIs) {
    Result<VolumeInfo> created = create(1, "data", 1);
    ASSERT_TRUE(created) << created.error().text();
    ASSERT_TRUE(mount(1, "data"));
    ASSERT_TRUE(write(1, "data", 1, 11));
    ASSERT_TRUE(unmount(1, "data"));
    world.run_for(std::chrono::seconds(5));
    Result<std::string> moved = mount(2, "data");
    ASSERT_FALSE(moved);
    EXPECT_NE(moved.error().message().find("host-1"), std::string::npos) << moved.error().text();
    ASSERT_TRUE(mount(1, "data"));
    EXPECT_EQ(read(1, "data", 1), 11);
}

// The node that deletes finds one away, and goes on when it is back.
TEST_F(LocalNodeClusterTest, ADeletionWaitsForANodeThatIsAway) {
    Result<VolumeInfo> created = create(1, "data");
    ASSERT_TRUE(created) << created.error().text();
    ASSERT_TRUE(mount(1, "data"));
    for (uint64_t i = 0; i < 8; ++i)
        ASSERT_TRUE(
            world.run(host(1).process, device(1, "data").write(i * kMiB, Buffer::zeroed(kMiB))));
    ASSERT_TRUE(unmount(1, "data"));
    world.run_for(std::chrono::minutes(1));
    VolumeId id = info(1, "data")->id;
    lose(2);
    world.run_for(std::chrono::seconds(5));
    ASSERT_TRUE(world.run(host(1).process, host(1).node.remove_volume("data")));
    world.run_for(std::chrono::minutes(1));
    EXPECT_TRUE(world.run(store.get(control::volume_key(id)))->has_value());
    hosts[1] = boot(NodeId(2));
    world.run_for(std::chrono::minutes(1));
    EXPECT_FALSE(world.run(store.get(control::volume_key(id)))->has_value());
}

TEST_F(LocalNodeClusterTest, AVolumeFollowsItsContainer) {
    Result<VolumeInfo> created = create(1, "data");
    ASSERT_TRUE(created) << created.error().text();
    for (uint64_t turn = 0; turn < 6; ++turn) {
        uint64_t at = 1 + turn % kNodes;
        Result<std::string> mounted = mount(at, "data");
        ASSERT_TRUE(mounted) << mounted.error().text();
        for (uint64_t before = 0; before < turn; ++before)
            ASSERT_EQ(read(at, "data", before), static_cast<int>(before + 1));
        ASSERT_TRUE(write(at, "data", turn, static_cast<int>(turn + 1)));
        ASSERT_TRUE(unmount(at, "data"));
        // Also before the old host has let go.
        if (turn % 2 == 0) world.run_for(std::chrono::seconds(5));
    }
}

TEST_F(LocalNodeClusterTest, AVolumeSurvivesItsHost) {
    Result<VolumeInfo> created = create(1, "data");
    ASSERT_TRUE(created) << created.error().text();
    ASSERT_TRUE(mount(1, "data"));
    for (uint64_t i = 0; i < 40; ++i)
        ASSERT_TRUE(write(1, "data", i, static_cast<int>(i + 1)));
    lose(1);
    Time before = world.now();
    Result<std::string> mounted = mount(2, "data");
    while (!mounted && world.now() - before < std::chrono::seconds(30)) {
        world.run_for(std::chrono::milliseconds(200));
        mounted = mount(2, "data");
    }
    ASSERT_TRUE(mounted) << mounted.error().text();
    EXPECT_LT(world.now() - before, std::chrono::seconds(10));
    for (uint64_t i = 0; i < 40; ++i)
        EXPECT_EQ(read(2, "data", i), static_cast<int>(i + 1));
    ASSERT_TRUE(write(2, "data", 7, 77));
    // The host comes back, finds its volume taken, and gets it again when the other lets go.
    hosts[0] = boot(NodeId(1));
    world.run_for(std::chrono::seconds(5));
    EXPECT_TRUE(host(1).fake.devices.empty());
    EXPECT_FALSE(mount(1, "data"));
    ASSERT_TRUE(unmount(2, "data"));
    mounted = mount(1, "data");
    ASSERT_TRUE(mounted) << mounted.error().text();
    EXPECT_EQ(read(1, "data", 7), 77);
}

// The daemon dies while every other host is away: it starts, says what its containers wait for, and
// serves them when a host is back.
TEST_F(LocalNodeClusterTest, AStartWaitsForNobodyAndResumesLater) {
    ASSERT_TRUE(create(1, "data"));
    ASSERT_TRUE(create(1, "other"));
    ASSERT_TRUE(mount(1, "data"));
    ASSERT_TRUE(mount(1, "other"));
    ASSERT_TRUE(write(1, "data", 3, 33));
    const VolumeId id = info(1, "data")->id;
    const VolumeId other = info(1, "other")->id;
    lose(1, false);
    lose(2);
    lose(3);
    const Time before = world.now();
    hosts[0] = boot(NodeId(1), {id, other});
    EXPECT_LT(world.now() - before, std::chrono::seconds(10));
    world.run_for(std::chrono::seconds(20));
    EXPECT_TRUE(host(1).fake.devices.empty());
    EXPECT_NE(info(1, "data")->health.light, Light::green);
    EXPECT_FALSE(info(1, "data")->health.reason.empty());
    // A person gives one of them up, and need not wait for the others to come back.
    const Time asked = world.now();
    auto detached = world.run(host(1).process, host(1).node.detach_forced("other"));
    EXPECT_LT(world.now() - asked, std::chrono::seconds(10));
    hosts[1] = boot(NodeId(2));
    hosts[2] = boot(NodeId(3));
    world.run_for(std::chrono::seconds(60));
    ASSERT_TRUE(host(1).fake.devices.contains(id)) << info(1, "data")->health.reason;
    EXPECT_FALSE(host(1).fake.devices.contains(other));
    EXPECT_EQ(read(1, "data", 3), 33);
    ASSERT_TRUE(write(1, "data", 4, 44));
}

// The daemon dies before it has let go of a volume, and another host uses that meanwhile: what this
// host's kernel still has of it is old, and goes before anybody mounts it here again.
TEST_F(LocalNodeClusterTest, AnOldStateOfTheHostIsNotServedAgain) {
    ASSERT_TRUE(create(1, "data"));
    ASSERT_TRUE(mount(1, "data"));
    ASSERT_TRUE(write(1, "data", 3, 33));
    const VolumeId id = info(1, "data")->id;
    host(1).fake.busy = true;
    ASSERT_TRUE(unmount(1, "data"));
    world.run_for(std::chrono::seconds(3));
    lose(1, false);
    Result<std::string> mounted = fail(Code::unavailable, "not yet");
    for (int i = 0; i < 60 && !mounted; ++i) {
        world.run_for(std::chrono::milliseconds(500));
        mounted = mount(2, "data");
    }
    ASSERT_TRUE(mounted) << mounted.error().text();
    ASSERT_TRUE(write(2, "data", 3, 44));
    ASSERT_TRUE(unmount(2, "data"));
    world.run_for(std::chrono::seconds(5));
    hosts[0] = boot(NodeId(1), {id});
    mounted = mount(1, "data");
    EXPECT_TRUE(host(1).fake.surviving.empty());
    for (int i = 0; i < 20 && !mounted; ++i) {
        world.run_for(std::chrono::milliseconds(500));
        mounted = mount(1, "data");
    }
    ASSERT_TRUE(mounted) << mounted.error().text();
    EXPECT_EQ(read(1, "data", 3), 44);
}

// What is to be resumed and held by nobody any more is let go once it is served.
TEST_F(LocalNodeClusterTest, AResumedVolumeThatNobodyHoldsIsLetGo) {
    ASSERT_TRUE(create(1, "data"));
    ASSERT_TRUE(mount(1, "data"));
    ASSERT_TRUE(write(1, "data", 3, 33));
    const VolumeId id = info(1, "data")->id;
    lose(1, false);
    lose(2);
    lose(3);
    hosts[0] = boot(NodeId(1), {id});
    world.run_for(std::chrono::seconds(5));
    runtime::spawn(host(1).process.executor(), unmount_later(host(1), "data"));
    world.run_for(std::chrono::seconds(5));
    EXPECT_TRUE(has_mount_record(1, id)) << "its host still has it";
    hosts[1] = boot(NodeId(2));
    hosts[2] = boot(NodeId(3));
    world.run_for(std::chrono::seconds(60));
    EXPECT_TRUE(host(1).fake.devices.empty());
    EXPECT_FALSE(has_mount_record(1, id));
}

// The network between two hosts is cut, and the owner lives: it is not robbed.
TEST_F(LocalNodeClusterTest, WhoRenewsItsLeaseIsNotDead) {
    ASSERT_TRUE(create(1, "data"));
    ASSERT_TRUE(mount(1, "data"));
    world.net().partition(host(1).process, host(2).process);
    for (int i = 0; i < 20; ++i) {
        world.run_for(std::chrono::seconds(1));
        Result<std::string> mounted = mount(2, "data");
        ASSERT_FALSE(mounted);
        ASSERT_EQ(mounted.error().code(), Code::busy) << mounted.error().text();
    }
    ASSERT_TRUE(write(1, "data", 3, 33));
    // Nor while the store is away, and right after it.
    store.set_available(false);
    world.run_for(std::chrono::seconds(20));
    store.set_available(true);
    Result<std::string> mounted = mount(2, "data");
    ASSERT_FALSE(mounted);
    ASSERT_TRUE(write(1, "data", 4, 44));
    world.net().heal();
    // Once it is silent everywhere it is dead.
    lose(1);
    const Time before = world.now();
    while (!mounted && world.now() - before < std::chrono::seconds(30)) {
        world.run_for(std::chrono::milliseconds(200));
        mounted = mount(2, "data");
    }
    ASSERT_TRUE(mounted) << mounted.error().text();
    EXPECT_LT(world.now() - before, std::chrono::seconds(10));
    EXPECT_EQ(read(2, "data", 4), 44);
}

// What was drained into segments, too, and with reads from whoever has them.
TEST_F(LocalNodeClusterTest, SegmentsSurviveTheirHost) {
    Result<VolumeInfo> created = create(1, "data");
    ASSERT_TRUE(created) << created.error().text();
    ASSERT_TRUE(mount(1, "data"));
    for (uint64_t i = 0; i < 32; ++i) {
        Buffer data = Buffer::zeroed(kMiB);
        std::memset(data.data(), static_cast<int>(i + 1), data.size());
        ASSERT_TRUE(world.run(host(1).process, device(1, "data").write(i * kMiB, data)));
    }
    ASSERT_TRUE(unmount(1, "data"));
    world.run_for(std::chrono::minutes(1));  // closed: drained, and a checkpoint made
    EXPECT_GE(used_bytes(1) + used_bytes(2) + used_bytes(3), 64 * kMiB) << "two copies";
    lose(1);
    world.run_for(std::chrono::seconds(10));
    for (uint64_t at : {2, 3}) {
        Result<std::string> mounted = mount(at, "data");
        ASSERT_TRUE(mounted) << mounted.error().text();
        for (uint64_t i = 0; i < 32; ++i)
            ASSERT_EQ(read(at, "data", i * kMiB / kBlockBytes), static_cast<int>(i + 1));
        ASSERT_TRUE(unmount(at, "data"));
        world.run_for(std::chrono::seconds(5));
    }
}

TEST_F(LocalNodeClusterTest, ARemovedVolumeLeavesNothingAnywhere) {
    uint64_t before[kNodes];
    for (uint64_t i = 1; i <= kNodes; ++i)
        before[i - 1] = used_bytes(i);
    Result<VolumeInfo> created = create(1, "data");
    ASSERT_TRUE(created) << created.error().text();
    ASSERT_TRUE(mount(1, "data"));
    for (uint64_t i = 0; i < 32; ++i)
        ASSERT_TRUE(
            world.run(host(1).process, device(1, "data").write(i * kMiB, Buffer::zeroed(kMiB))));
    ASSERT_TRUE(unmount(1, "data"));
    world.run_for(std::chrono::minutes(1));
    VolumeId id = info(1, "data")->id;
    ASSERT_TRUE(world.run(host(3).process, host(3).node.remove_volume("data")));
    world.run_for(std::chrono::minutes(1));
    EXPECT_FALSE(world.run(store.get(control::volume_key(id)))->has_value());
    for (uint64_t i = 1; i <= kNodes; ++i)
        EXPECT_EQ(used_bytes(i), before[i - 1]) << "node " << i;
}

// Whichever of the two transactions is applied first, the other one fails.
TEST_F(LocalNodeClusterTest, AMountAndAClaimAtOnceNeverBothHold) {
    Result<VolumeInfo> created = create(1, "data");
    ASSERT_TRUE(created) << created.error().text();
    ASSERT_TRUE(mount(1, "data"));
    ASSERT_TRUE(unmount(1, "data"));
    VolumeId id = info(1, "data")->id;
    // The claim of the other node comes between this node's look at the record and its mount.
    change(id, [](control::VolumeRecord& record) {
        record.owner = NodeId(2);
        record.epoch = record.epoch.next();
        record.state = control::OwnershipState::recovering;
    });
    Result<std::string> late = mount(1, "data");
    if (late) {
        EXPECT_EQ(record_of(id).owner, NodeId(1)) << "it claimed the volume anew";
    } else {
        world.run_for(std::chrono::seconds(15));  // what was attached before is taken down
        EXPECT_FALSE(has_mount_record(1, id));
        EXPECT_TRUE(host(1).fake.devices.empty());
    }
}

TEST_F(LocalNodeClusterTest, AnOwnerThatWasOvertakenLetsGo) {
    Result<VolumeInfo> created = create(1, "data");
    ASSERT_TRUE(created) << created.error().text();
    ASSERT_TRUE(mount(1, "data"));
    VolumeId id = info(1, "data")->id;
    change(id, [](control::VolumeRecord& record) {
        record.owner = NodeId(2);
        record.epoch = record.epoch.next();
        record.state = control::OwnershipState::recovering;
    });
    world.run_for(std::chrono::seconds(5));
    EXPECT_TRUE(host(1).fake.devices.empty());
    Result<VolumeInfo> now = info(1, "data");
    ASSERT_TRUE(now);
    EXPECT_EQ(now->host, "host-2");
    EXPECT_TRUE(now->holders.empty());
    EXPECT_FALSE(has_mount_record(1, id));
}

TEST_F(LocalNodeClusterTest, WhatHappenedWhileTheStoreWasAwayIsLearned) {
    ASSERT_TRUE(create(1, "old"));
    ASSERT_TRUE(mount(1, "old"));
    store.set_available(false);
    world.run_for(std::chrono::seconds(10));
    EXPECT_EQ(world.run(host(2).process, host(2).node.volumes())->size(), 1u)
        << "what is known stays";
    ASSERT_TRUE(write(1, "old", 1, 9)) << "I/O never hears of it";
    EXPECT_EQ(read(1, "old", 1), 9);
    store.set_available(true);
    ASSERT_TRUE(unmount(1, "old"));
    ASSERT_TRUE(world.run(host(1).process, host(1).node.remove_volume("old")));
    ASSERT_TRUE(create(1, "new"));
    world.run_for(std::chrono::seconds(5));
    auto volumes = world.run(host(2).process, host(2).node.volumes());
    ASSERT_TRUE(volumes);
    ASSERT_EQ(volumes->size(), 1u);
    EXPECT_EQ(volumes->front().spec.name, "new");
}

}  // namespace
}  // namespace peplos::fabric
