#include "fabric/local_node.h"

#include <gtest/gtest.h>

#include "control/memory_store.h"
#include "fabric/fake_host.h"
#include "sim/world.h"

namespace peplos::fabric {
namespace {

// Makes no room: all is full. Whoever waits for room is refused at its end.
class FullBackground final : public volume::Background {
  public:
    explicit FullBackground(FakeHost& host) : host_(host) {}
    void opened(volume::Volume&) override {}
    Task<void> closing(volume::Volume&) override { co_return; }
    void wants(volume::Volume&) override {}
    Task<bool> make_room() override { co_return false; }
    Task<void> stop() override {
        ++stops;
        host_.is_request_waiting = false;
        host_.request_done.wake_all();
        co_return;
    }
    int stops = 0;

  private:
    FakeHost& host_;
};

struct Host {
    explicit Host(sim::World& world, control::Store& store, Duration trim_interval = {})
        : node(world.env(), store,
               LocalNodeOptions{.name = "host1", .trim_interval = trim_interval}) {
        node.set_attachments(&fake);
    }
    FakeHost fake;
    LocalNode node;
};

class LocalNodeTest : public testing::Test {
  protected:
    void boot() {
        host = std::make_unique<Host>(world, store);
        Result<void> started = world.run(host->node.start());
        ASSERT_TRUE(started) << started.error().text();
    }
    void boot_with_device() {
        boot();
        auto device = world.run(host->node.add_device("/disk0", 512 * kMiB, "ssd"));
        ASSERT_TRUE(device) << device.error().text();
    }
    void shut_down() {
        world.run(host->node.stop());
        host.reset();
    }
    // kill -9: no stop, the objects go after the process is dead.
    void kill() {
        world.kill();
        host->fake.devices.clear();
        host.reset();
    }
    Result<VolumeInfo> create(const std::string& name, uint64_t bytes = 64 * kMiB) {
        VolumeSpec spec;
        spec.name = name;
        spec.size_bytes = bytes;
        return world.run(host->node.create_volume(spec));
    }
    Result<std::string> mount(const std::string& name, const std::string& holder) {
        return world.run(host->node.mount(name, holder));
    }
    volume::BlockDevice& device_of(const std::string& name) {
        VolumeId id = world.run(host->node.volume(name))->id;
        return *host->fake.devices.at(id);
    }
    void TearDown() override {
        if (host != nullptr) shut_down();
    }

    sim::World world{42};
    control::MemoryStore store;
    std::unique_ptr<Host> host;
};

// What waits for room that never comes is refused in the end; else the background outlives
// requests.
TEST_F(LocalNodeTest, StopsThoughARequestWaitsForRoomThatNeverComes) {
    for (bool is_stuck : {true, false}) {
        boot();
        FullBackground background(host->fake);
        host->node.set_background(&background);
        host->fake.is_request_waiting = is_stuck;
        Time before = world.env().clock.now();
        shut_down();
        EXPECT_EQ(background.stops, 1);
        Duration took = world.env().clock.now() - before;
        EXPECT_EQ(took >= std::chrono::seconds(1), is_stuck);
        EXPECT_LT(took, std::chrono::seconds(20));
    }
}

// What a removed volume has on a device that is missing goes when the device is back.
TEST_F(LocalNodeTest, RemovesAVolumeWhileADeviceIsMissing) {
    boot_with_device();
    ASSERT_TRUE(world.run(host->node.add_device("/disk1", 512 * kMiB, "ssd")));
    for (const char* name : {"a", "b"}) {
        ASSERT_TRUE(create(name));
        ASSERT_TRUE(mount(name, "c1"));
        for (uint64_t i = 0; i < 60; ++i) {
            Buffer data = Buffer::zeroed(kMiB);
            ASSERT_TRUE(world.run(device_of(name).write(i * kMiB, std::move(data))));
        }
        ASSERT_TRUE(world.run(host->node.unmount(name, "c1")));
        world.run_for(std::chrono::minutes(1));
    }
    auto used = [this] {
        std::vector<uint64_t> out;
        for (const DeviceInfo& device : world.run(host->node.status())->devices)
            out.push_back(device.segment_bytes_total - device.segment_bytes_free);
        return out;
    };
    for (uint64_t bytes : used())
        ASSERT_NE(bytes, 0u);
    shut_down();
    world.disk("/disk1").add_fault(
        {.operation = sim::DiskOperation::read, .effect = sim::DiskEffect::io_error});
    boot();
    for (const char* name : {"a", "b"})
        std::ignore = world.run(host->node.remove_volume(name));
    world.run_for(std::chrono::minutes(1));
    shut_down();
    world.disk("/disk1").clear_faults();
    boot();
    for (const char* name : {"a", "b"})
        std::ignore = world.run(host->node.remove_volume(name));
    world.run_for(std::chrono::minutes(1));
    for (uint64_t bytes : used())
        EXPECT_EQ(bytes, 0u);
}

TEST_F(LocalNodeTest, WithoutADeviceItSaysWhatToDo) {
    boot();
    Result<VolumeInfo> created = create("data");
    ASSERT_FALSE(created);
    EXPECT_EQ(created.error().code(), Code::unavailable);
    EXPECT_NE(created.error().message().find("peplos device add"), std::string::npos);
    EXPECT_EQ(world.run(host->node.status())->health.light, Light::red);
}

TEST_F(LocalNodeTest, CreateIsIdempotentAndRefusesADifferentSpec) {
    boot_with_device();
    ASSERT_TRUE(create("data"));
    VolumeId id = world.run(host->node.volume("data"))->id;
    ASSERT_TRUE(create("data"));
    EXPECT_EQ(world.run(host->node.volume("data"))->id, id);
    Result<VolumeInfo> other = create("data", 128 * kMiB);
    ASSERT_FALSE(other);
    EXPECT_EQ(other.error().code(), Code::already_exists);
    EXPECT_NE(other.error().message().find("size"), std::string::npos);
}

TEST_F(LocalNodeTest, BytesOutliveStopAndKill) {
    boot_with_device();
    ASSERT_TRUE(create("data"));
    ASSERT_TRUE(mount("data", "c1"));
    Buffer bytes = Buffer::zeroed(kBlockBytes);
    std::memset(bytes.data(), 0x5a, bytes.size());
    ASSERT_TRUE(world.run(device_of("data").write(8 * kBlockBytes, bytes)));
    shut_down();
    boot();
    ASSERT_TRUE(mount("data", "c2"));
    Buffer read = Buffer::zeroed(kBlockBytes);
    ASSERT_TRUE(world.run(device_of("data").read(8 * kBlockBytes, read)));
    EXPECT_EQ(std::memcmp(read.data(), bytes.data(), kBlockBytes), 0);
    std::memset(bytes.data(), 0x77, bytes.size());
    ASSERT_TRUE(
        world.run(device_of("data").write(9 * kBlockBytes, Buffer::copy_of(bytes.bytes()))));
    kill();
    boot();
    ASSERT_TRUE(mount("data", "c3"));
    ASSERT_TRUE(world.run(device_of("data").read(9 * kBlockBytes, read)));
    EXPECT_EQ(std::memcmp(read.data(), bytes.data(), kBlockBytes), 0);
    EXPECT_EQ(host->fake.formats, 0) << "a formatted volume is never formatted again";
}

// A store restored from a backup knows an old token and an old epoch, or not even a home. What was
// written since is there all the same, and what was formatted since is never formatted again.
class RestoredStoreTest : public LocalNodeTest {
  protected:
    std::vector<control::KeyValue> copy() {
        return world.run(control::list_all(store, ""))->entries;
    }
    void restore(const std::vector<control::KeyValue>& backup) {
        std::vector<control::KeyValue> now = copy();
        control::Transaction change;
        for (const control::KeyValue& entry : now) {
            bool kept = std::ranges::any_of(
                backup, [&entry](const auto& old) { return old.key == entry.key; });
            if (!kept) change.push_back(control::remove(entry.key, std::nullopt));
        }
        for (const control::KeyValue& entry : backup)
            change.push_back(control::put(entry.key, std::nullopt, entry.value));
        ASSERT_TRUE(world.run(store.compare_and_set(std::move(change))));
    }
    void write(int value) {
        Buffer bytes = Buffer::zeroed(kBlockBytes);
        std::memset(bytes.data(), value, bytes.size());
        ASSERT_TRUE(world.run(device_of("data").write(8 * kBlockBytes, std::move(bytes))));
    }
    int read() {
        Buffer bytes = Buffer::zeroed(kBlockBytes);
        EXPECT_TRUE(world.run(device_of("data").read(8 * kBlockBytes, bytes)));
        return std::to_integer<int>(bytes.data()[kBlockBytes - 1]);
    }
    void expect_served(int value) {
        boot();
        Result<std::string> mounted = mount("data", "later");
        ASSERT_TRUE(mounted) << mounted.error().text();
        EXPECT_EQ(read(), value);
        EXPECT_EQ(host->fake.formats, 0) << "what holds data is never formatted";
    }
};

TEST_F(RestoredStoreTest, WhatWasWrittenSinceIsServed) {
    boot_with_device();
    ASSERT_TRUE(create("data"));
    ASSERT_TRUE(mount("data", "c1"));
    write(1);
    shut_down();
    std::vector<control::KeyValue> backup = copy();
    for (int value : {2, 3, 4}) {
        boot();
        ASSERT_TRUE(mount("data", "c2"));
        write(value);
        value == 3 ? kill() : shut_down();
    }
    restore(backup);
    expect_served(4);
}

TEST_F(RestoredStoreTest, ABackupOfBeforeTheFirstMountFormatsNothing) {
    boot_with_device();
    ASSERT_TRUE(create("data"));
    std::vector<control::KeyValue> backup = copy();
    ASSERT_TRUE(mount("data", "c1"));
    write(7);
    kill();
    restore(backup);
    expect_served(7);
}

TEST_F(RestoredStoreTest, APowerCutAtAnyStepOfTheFirstMountAfterwardsLosesNothing) {
    boot_with_device();
    ASSERT_TRUE(create("data"));
    ASSERT_TRUE(mount("data", "c1"));
    shut_down();
    std::vector<control::KeyValue> backup = copy();
    boot();
    ASSERT_TRUE(mount("data", "c2"));
    write(9);
    kill();
    bool is_done = false;
    for (uint64_t events = 0; !is_done; events += 11) {
        restore(backup);
        boot();
        is_done = world.run_events(host->node.mount("data", "c3"), events).has_value();
        world.crash();
        host->fake.devices.clear();
        host.reset();
        expect_served(9);
        shut_down();
    }
}

TEST_F(RestoredStoreTest, AnOlderDeviceIsNotTaken) {
    boot_with_device();
    ASSERT_TRUE(create("data"));
    ASSERT_TRUE(mount("data", "c1"));
    shut_down();
    // Another token under the epoch that the device has seen: the device went back, not the store.
    std::vector<control::KeyValue> records = copy();
    for (control::KeyValue& entry : records) {
        auto record = control::decode<control::VolumeRecord>(entry.value);
        if (!entry.key.starts_with(control::kVolumePrefix)) continue;
        ASSERT_TRUE(record);
        record->ensemble.front().token = OpenToken(77);
        entry.value = *control::encode(*record);
    }
    restore(records);
    boot();
    Result<std::string> mounted = mount("data", "c2");
    ASSERT_FALSE(mounted);
    EXPECT_NE(mounted.error().message().find("cannot prove"), std::string::npos);
}

TEST_F(LocalNodeTest, CopyWithTheContainersOwnIdLeavesItsMount) {
    boot_with_device();
    ASSERT_TRUE(create("data"));
    ASSERT_TRUE(mount("data", "c1"));
    ASSERT_TRUE(mount("data", "c1"));
    ASSERT_TRUE(world.run(host->node.unmount("data", "c1")));
    world.run_for(std::chrono::minutes(1));
    EXPECT_EQ(host->fake.devices.size(), 1u);
    ASSERT_TRUE(world.run(host->node.unmount("data", "c1")));
    ASSERT_TRUE(world.run(host->node.unmount("data", "unknown")));
    world.run_for(std::chrono::minutes(1));
    EXPECT_TRUE(host->fake.devices.empty());
    EXPECT_EQ(world.run(host->node.volume("data"))->state, "available");
}

TEST_F(LocalNodeTest, RemoveNamesTheHolderAndFreesTheSpace) {
    boot_with_device();
    ASSERT_TRUE(create("data"));
    ASSERT_TRUE(mount("data", "container-17"));
    Result<void> removed = world.run(host->node.remove_volume("data"));
    ASSERT_FALSE(removed);
    EXPECT_EQ(removed.error().code(), Code::busy);
    EXPECT_NE(removed.error().message().find("container-17"), std::string::npos);
    Buffer large = Buffer::zeroed(kMiB);
    for (uint64_t i = 0; i < 40; ++i) {
        ASSERT_TRUE(world.run(device_of("data").write(i * kMiB, large)));
    }
    ASSERT_TRUE(world.run(host->node.unmount("data", "container-17")));
    ASSERT_TRUE(world.run(host->node.remove_volume("data")));
    world.run_for(std::chrono::minutes(1));
    NodeStatus status = *world.run(host->node.status());
    EXPECT_EQ(status.free_bytes, status.capacity_bytes);
    EXPECT_EQ(world.run(host->node.volume("data")).error().code(), Code::not_found);
}

TEST_F(LocalNodeTest, ADeletionCutShortIsFinishedAtTheNextStart) {
    boot_with_device();
    ASSERT_TRUE(create("data"));
    ASSERT_TRUE(mount("data", "c1"));
    ASSERT_TRUE(world.run(device_of("data").write(0, Buffer::zeroed(kMiB))));
    ASSERT_TRUE(world.run(host->node.unmount("data", "c1")));
    ASSERT_TRUE(world.run(host->node.remove_volume("data")));
    kill();
    boot();
    world.run_for(std::chrono::minutes(1));
    NodeStatus status = *world.run(host->node.status());
    EXPECT_EQ(status.volume_count, 0u);
    EXPECT_EQ(status.free_bytes, status.capacity_bytes);
}

TEST_F(LocalNodeTest, HoldersSurviveTheDaemonWhileTheKernelKeepsTheMount) {
    boot_with_device();
    ASSERT_TRUE(create("data"));
    ASSERT_TRUE(create("other"));
    ASSERT_TRUE(mount("data", "c1"));
    ASSERT_TRUE(mount("other", "c2"));
    VolumeId id = world.run(host->node.volume("data"))->id;
    kill();
    host = std::make_unique<Host>(world, store);
    host->fake.surviving = {id};
    ASSERT_TRUE(world.run(host->node.start()));
    EXPECT_EQ(world.run(host->node.volume("data"))->holders, std::vector<std::string>{"c1"});
    EXPECT_EQ(world.run(host->node.volume("data"))->state, "attached");
    EXPECT_TRUE(world.run(host->node.volume("other"))->holders.empty());
    EXPECT_TRUE(world.run(host->node.remove_volume("other")));
    EXPECT_FALSE(world.run(host->node.remove_volume("data")));
}

// dockerd was killed and comes back: its container still runs when the counts are forgotten, and is
// started again a moment later.
TEST_F(LocalNodeTest, AMountAfterARefusedReleaseMountsAgain) {
    boot_with_device();
    ASSERT_TRUE(create("data"));
    ASSERT_TRUE(mount("data", "c1"));
    host->fake.busy = true;
    ASSERT_TRUE(world.run(host->node.forget_holders()));
    world.run_for(std::chrono::seconds(5));
    ASSERT_EQ(host->fake.unmounted.size(), 1u);
    Result<std::string> path = mount("data", "c1");
    ASSERT_TRUE(path) << path.error().text();
    EXPECT_NE(*path, "");
    EXPECT_TRUE(host->fake.unmounted.empty());
}

TEST_F(LocalNodeTest, ABusyKernelKeepsTheVolumeAttached) {
    boot_with_device();
    ASSERT_TRUE(create("data"));
    ASSERT_TRUE(mount("data", "c1"));
    host->fake.busy = true;
    ASSERT_TRUE(world.run(host->node.forget_holders()));
    world.run_for(std::chrono::minutes(1));
    EXPECT_EQ(world.run(host->node.volume("data"))->state, "attached");
    Result<void> removed = world.run(host->node.remove_volume("data"));
    ASSERT_FALSE(removed);
    EXPECT_NE(removed.error().message().find("pid 7"), std::string::npos);
    host->fake.busy = false;
    world.run_for(std::chrono::minutes(1));
    EXPECT_EQ(world.run(host->node.volume("data"))->state, "available");
}

TEST_F(LocalNodeTest, AFailedMountLeavesNoHolder) {
    boot_with_device();
    ASSERT_TRUE(create("data"));
    host->fake.refuse_attach = true;
    ASSERT_FALSE(mount("data", "c1"));
    EXPECT_TRUE(world.run(host->node.volume("data"))->holders.empty());
    host->fake.refuse_attach = false;
    ASSERT_TRUE(mount("data", "c1"));
    EXPECT_EQ(world.run(host->node.volume("data"))->health.light, Light::green);
}

TEST_F(LocalNodeTest, UnknownOutcomesOfTheControlStoreAreSettledByReading) {
    boot_with_device();
    store.queue_mishap(control::MemoryStore::Mishap::unknown_applied);
    ASSERT_TRUE(create("data"));
    store.queue_mishap(control::MemoryStore::Mishap::unknown_applied);
    ASSERT_TRUE(mount("data", "c1"));
    store.queue_mishap(control::MemoryStore::Mishap::unknown_lost);
    Result<VolumeInfo> lost = create("more");
    ASSERT_FALSE(lost);
    EXPECT_EQ(lost.error().code(), Code::unavailable);
    ASSERT_TRUE(create("more"));
}

TEST_F(LocalNodeTest, GrowReachesTheRecordAndNeverShrinks) {
    boot_with_device();
    ASSERT_TRUE(create("data"));
    ASSERT_TRUE(mount("data", "c1"));
    EXPECT_EQ(*world.run(host->node.grow_volume("data", 128 * kMiB)), "grown online");
    EXPECT_EQ(device_of("data").size_bytes(), 128 * kMiB);
    EXPECT_FALSE(world.run(host->node.grow_volume("data", 64 * kMiB)));
    kill();
    boot();
    EXPECT_EQ(world.run(host->node.volume("data"))->spec.size_bytes, 128 * kMiB);
}

// ext4 grows at a mount, and a mount that finds the volume still attached has to be one.
TEST_F(LocalNodeTest, GrowingWhatNobodyHoldsTakesItDownFirst) {
    boot_with_device();
    host->fake.grows_online = false;
    ASSERT_TRUE(create("data"));
    ASSERT_TRUE(mount("data", "c1"));
    ASSERT_TRUE(world.run(host->node.unmount("data", "c1")));
    ASSERT_EQ(host->fake.devices.size(), 1u) << "the detach comes a moment later";
    ASSERT_TRUE(world.run(host->node.grow_volume("data", 128 * kMiB)));
    EXPECT_TRUE(host->fake.devices.empty());
    ASSERT_TRUE(mount("data", "c2"));
    EXPECT_TRUE(host->fake.outgrown.empty());
    EXPECT_EQ(device_of("data").size_bytes(), 128 * kMiB);
}

TEST_F(LocalNodeTest, AMountWithoutOtherHoldersIsOneThatTheFileSystemGrowsAt) {
    boot_with_device();
    host->fake.grows_online = false;
    ASSERT_TRUE(create("data"));
    ASSERT_TRUE(mount("data", "c1"));
    ASSERT_TRUE(world.run(host->node.grow_volume("data", 128 * kMiB)));
    ASSERT_TRUE(mount("data", "c2"));
    EXPECT_EQ(host->fake.outgrown.size(), 1u) << "c1 uses it: nothing may be taken away";
    ASSERT_TRUE(world.run(host->node.unmount("data", "c1")));
    ASSERT_TRUE(world.run(host->node.unmount("data", "c2")));
    host->fake.busy = true;
    Result<std::string> path = mount("data", "c3");
    ASSERT_TRUE(path) << path.error().text();
    EXPECT_NE(*path, "") << "whoever else uses it, the mount must work";
    ASSERT_TRUE(world.run(host->node.unmount("data", "c3")));
    host->fake.busy = false;
    ASSERT_TRUE(mount("data", "c4"));
    EXPECT_TRUE(host->fake.outgrown.empty());
}

TEST_F(LocalNodeTest, ADamagedFileSystemKeepsItsDeviceForTheRepair) {
    boot_with_device();
    ASSERT_TRUE(create("data"));
    host->fake.damaged = true;
    Result<std::string> refused = mount("data", "c1");
    ASSERT_FALSE(refused);
    EXPECT_EQ(refused.error().code(), Code::corrupt);
    world.run_for(std::chrono::minutes(1));
    ASSERT_EQ(host->fake.devices.size(), 1u);
    EXPECT_TRUE(world.run(device_of("data").write(0, Buffer::zeroed(kBlockBytes))));
    EXPECT_TRUE(world.run(host->node.volume("data"))->attach.has_value());
    EXPECT_EQ(world.run(host->node.volume("data"))->health.light, Light::red);
    host->fake.damaged = false;
    ASSERT_TRUE(mount("data", "c1"));
    EXPECT_EQ(world.run(host->node.volume("data"))->health.light, Light::green);
    ASSERT_TRUE(world.run(host->node.unmount("data", "c1")));
    ASSERT_TRUE(world.run(host->node.remove_volume("data")));
    EXPECT_TRUE(host->fake.devices.empty());
}

TEST_F(LocalNodeTest, ADamagedVolumeCanBeRemoved) {
    boot_with_device();
    ASSERT_TRUE(create("data"));
    host->fake.damaged = true;
    ASSERT_FALSE(mount("data", "c1"));
    ASSERT_TRUE(world.run(host->node.remove_volume("data")));
    EXPECT_TRUE(host->fake.devices.empty()) << "the host must not keep a removed volume";
}

Task<void> forget(LocalNode* node, bool* done) {
    Result<void> forgotten = co_await node->forget_holders();
    *done = forgotten.has_value();
}

Task<void> mount_and_note(LocalNode* node, std::string name, std::string holder, bool* done) {
    Result<std::string> path = co_await node->mount(std::move(name), std::move(holder));
    *done = path.has_value();
}

TEST_F(LocalNodeTest, ForgettingTheOldDockerdSparesTheNewOnesMounts) {
    boot_with_device();
    ASSERT_TRUE(create("a"));
    ASSERT_TRUE(create("b"));
    ASSERT_TRUE(mount("a", "old"));
    ASSERT_TRUE(mount("b", "old"));
    // Two volumes, so that one of them comes after the one that makes forget_holders() wait.
    VolumeId a = world.run(host->node.volume("a"))->id;
    VolumeId b = world.run(host->node.volume("b"))->id;
    std::string first = a < b ? "a" : "b";
    std::string second = a < b ? "b" : "a";
    host->fake.busy = true;
    ASSERT_TRUE(world.run(host->node.forget_holders()));
    world.run_for(std::chrono::minutes(1));
    host->fake.busy = false;
    host->fake.unmounted = {std::min(a, b)};
    host->fake.slow = {std::min(a, b)};
    ASSERT_TRUE(mount(second, "old"));
    bool mounted = false;
    bool forgotten = false;
    runtime::spawn(world.env().executor, mount_and_note(&host->node, first, "slow", &mounted));
    world.run_for(std::chrono::milliseconds(1));
    runtime::spawn(world.env().executor, forget(&host->node, &forgotten));
    world.run_for(std::chrono::milliseconds(1));
    ASSERT_TRUE(mount(second, "new"));
    host->fake.slow.clear();
    host->fake.slow_done.wake_all();
    world.run_for(std::chrono::milliseconds(1));
    EXPECT_TRUE(mounted);
    EXPECT_TRUE(forgotten);
    std::vector<std::string> holders = world.run(host->node.volume(second))->holders;
    EXPECT_EQ(std::ranges::count(holders, "new"), 1);
}

TEST_F(LocalNodeTest, AFailedDeviceGivesErrorsAndTheVolumesCanBeRemoved) {
    boot_with_device();
    ASSERT_TRUE(create("data"));
    ASSERT_TRUE(create("other"));
    ASSERT_TRUE(mount("data", "c1"));
    ASSERT_TRUE(mount("other", "c2"));
    world.disk("/disk0").add_fault({sim::DiskOperation::write, sim::DiskEffect::io_error});
    Result<void> written = world.run(device_of("data").write(0, Buffer::zeroed(kBlockBytes)));
    ASSERT_FALSE(written);
    EXPECT_EQ(world.run(host->node.status())->health.light, Light::red);
    volume::BlockDevice* dead = &device_of("data");
    EXPECT_FALSE(world.run(host->node.grow_volume("data", 128 * kMiB)));
    EXPECT_EQ(&device_of("data"), dead);
    ASSERT_TRUE(world.run(host->node.unmount("data", "c1")));
    ASSERT_TRUE(world.run(host->node.unmount("other", "c2")));
    Result<void> removed = world.run(host->node.remove_volume("data"));
    EXPECT_TRUE(removed) << removed.error().text();
    EXPECT_TRUE(world.run(host->node.remove_volume("other")));
    world.run_for(std::chrono::minutes(1));
    EXPECT_TRUE(host->fake.devices.empty());
    EXPECT_FALSE(create("data"));
    shut_down();
}

// What goes bad on a device is counted and shown everywhere: nobody has to look into the log.
TEST_F(LocalNodeTest, DeviceErrorsAreCountedAndTold) {
    boot_with_device();
    ASSERT_TRUE(create("data"));
    ASSERT_TRUE(mount("data", "c1"));
    Buffer bytes = Buffer::zeroed(64 * kBlockBytes);
    std::memset(bytes.data(), 0x5a, bytes.size());
    ASSERT_TRUE(world.run(device_of("data").write(0, std::move(bytes))));
    shut_down();  // drained: from now on reads go to the disk
    boot();
    ASSERT_TRUE(mount("data", "c1"));
    auto counted = [this](const std::string& name) {
        for (const Metric& metric : world.run(host->node.metrics()))
            if (metric.name == name) return metric.value;
        return -1.0;
    };
    EXPECT_EQ(world.run(host->node.status())->health.light, Light::green);
    EXPECT_EQ(counted("peplos_device_read_errors_total"), 0);
    EXPECT_EQ(counted("peplos_device_corruptions_total"), 0);
    Buffer block = Buffer::zeroed(kBlockBytes);
    world.disk("/disk0").add_fault({sim::DiskOperation::read, sim::DiskEffect::io_error});
    EXPECT_FALSE(world.run(device_of("data").read(0, block)));
    world.disk("/disk0").clear_faults();
    EXPECT_GE(counted("peplos_device_read_errors_total"), 1);
    world.disk("/disk0").add_fault({sim::DiskOperation::read, sim::DiskEffect::garbled});
    EXPECT_FALSE(world.run(device_of("data").read(kBlockBytes, block)));
    world.disk("/disk0").clear_faults();
    EXPECT_GE(counted("peplos_device_corruptions_total"), 1);
    EXPECT_EQ(counted("peplos_device_write_errors_total"), 0);
    EXPECT_EQ(counted("peplos_device_up"), 1);
    Result<NodeStatus> status = world.run(host->node.status());
    ASSERT_TRUE(status);
    const DeviceInfo& device = status->devices.front();
    EXPECT_GE(device.read_errors, 1U);
    EXPECT_GE(device.corruptions, 1U);
    EXPECT_EQ(device.health.light, Light::yellow);
    EXPECT_NE(device.health.reason.find("/disk0"), std::string::npos);
    EXPECT_NE(status->health.light, Light::green);
    EXPECT_FALSE(status->health.next.empty());
    world.disk("/disk0").add_fault({sim::DiskOperation::write, sim::DiskEffect::io_error});
    EXPECT_FALSE(world.run(device_of("data").write(0, Buffer::zeroed(kBlockBytes))));
    EXPECT_EQ(counted("peplos_device_write_errors_total"), 1);
    EXPECT_EQ(counted("peplos_device_up"), 0);
    EXPECT_EQ(world.run(host->node.status())->health.light, Light::red);
}

// The kernel waits for a volume whose device did not come back: only a person may give it up.
TEST_F(LocalNodeTest, LeftoversWithHoldersAreLeftToAPerson) {
    boot_with_device();
    ASSERT_TRUE(create("data"));
    ASSERT_TRUE(mount("data", "c1"));
    VolumeId id = world.run(host->node.volume("data"))->id;
    kill();
    host = std::make_unique<Host>(world, store);
    host->fake.surviving = {id, VolumeId(77)};
    Leftover known;
    known.id = id;
    Leftover unknown;
    unknown.id = VolumeId(77);
    host->fake.left = {known, unknown};
    world.disk("/disk0").add_fault({sim::DiskOperation::read, sim::DiskEffect::io_error});
    ASSERT_TRUE(world.run(host->node.start()));
    std::vector<Leftover> found = *world.run(host->node.leftovers());
    ASSERT_EQ(found.size(), 2u);
    EXPECT_EQ(found[0].volume, "data");
    EXPECT_TRUE(found[0].has_holders);
    EXPECT_EQ(world.run(host->node.volume("data"))->health.light, Light::red);
    EXPECT_EQ(world.run(host->node.mend_leftovers())->size(), 1u);
    ASSERT_EQ(host->fake.left.size(), 1u);
    EXPECT_EQ(host->fake.left[0].id, id);
    ASSERT_TRUE(world.run(host->node.detach_forced("data")));
    EXPECT_TRUE(host->fake.left.empty());
    EXPECT_TRUE(world.run(host->node.volume("data"))->holders.empty());
}

// What kept it from being served passes: nobody need lend a hand.
TEST_F(LocalNodeTest, AResumeThatFailedIsTriedAgain) {
    boot_with_device();
    ASSERT_TRUE(create("data"));
    ASSERT_TRUE(mount("data", "c1"));
    VolumeId id = world.run(host->node.volume("data"))->id;
    kill();
    host = std::make_unique<Host>(world, store);
    host->fake.surviving = {id};
    host->fake.before_resuming = [this] { store.set_available(false); };
    ASSERT_TRUE(world.run(host->node.start()));
    world.run_for(std::chrono::seconds(10));
    EXPECT_TRUE(host->fake.devices.empty());
    EXPECT_EQ(world.run(host->node.volume("data"))->health.light, Light::red);
    EXPECT_FALSE(world.run(host->node.volume("data"))->holders.empty());
    store.set_available(true);
    world.run_for(std::chrono::seconds(60));
    EXPECT_TRUE(host->fake.devices.contains(id));
    EXPECT_EQ(world.run(host->node.volume("data"))->health.light, Light::green);
}

TEST_F(LocalNodeTest, FreedSpaceComesBackByItselfOneVolumeAfterTheOther) {
    host = std::make_unique<Host>(world, store, std::chrono::minutes(10));
    ASSERT_TRUE(world.run(host->node.start()));
    ASSERT_TRUE(world.run(host->node.add_device("/disk0", 512 * kMiB, "ssd")));
    for (const char* name : {"a", "b", "idle"})
        ASSERT_TRUE(create(name));
    ASSERT_TRUE(mount("a", "c1"));
    ASSERT_TRUE(mount("b", "c2"));
    world.run_for(std::chrono::minutes(9));
    EXPECT_TRUE(host->fake.trimmed.empty()) << "before its time";
    world.run_for(std::chrono::minutes(22));
    EXPECT_EQ(host->fake.trimmed.size(), 6u) << "two mounted volumes, three passes";
    EXPECT_EQ(host->fake.most_trims_running, 1);
}

TEST_F(LocalNodeTest, SizesAreReadAnewWhenSomebodyLooks) {
    boot_with_device();
    ASSERT_TRUE(create("data"));
    ASSERT_TRUE(mount("data", "c1"));
    world.run_for(std::chrono::minutes(1));
    int before = host->fake.refreshes;
    for (int i = 0; i < 10; ++i)
        ASSERT_TRUE(world.run(host->node.volumes()));
    world.run_for(std::chrono::minutes(1));
    EXPECT_GT(host->fake.refreshes, before);
    EXPECT_LE(host->fake.refreshes, before + 2);
}

}  // namespace
}  // namespace peplos::fabric
