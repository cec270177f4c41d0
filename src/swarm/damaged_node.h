#pragma once

#include <gtest/gtest.h>

#include "swarm/daemon.h"

namespace peplos::swarm {

// A whole node with two volumes, one of which a test damages. Every write is drained, and every
// drain is soon followed by a checkpoint.
class DamagedNode : public testing::Test {
  protected:
    static constexpr const char* kDisk = "/disk0";

    void boot() {
        daemon = std::make_unique<SimDaemon>(world.env(), store, plan(), host);
        auto started = world.run(daemon->node.start());
        ASSERT_TRUE(started) << started.error().text();
    }
    void shut_down() {
        world.run(daemon->stop());
        daemon.reset();
        host.lose_host();
    }
    void settle_and_stop() {
        world.run_for(std::chrono::seconds(1));
        shut_down();
    }
    void make() {
        boot();
        ASSERT_TRUE(world.run(daemon->node.add_device(kDisk, 256 * kMiB, "ssd")));
        for (const char* name : {"hurt", "whole"}) {
            fabric::VolumeSpec spec;
            spec.name = name;
            spec.size_bytes = 16 * kMiB;
            ASSERT_TRUE(world.run(daemon->node.create_volume(spec)));
            ASSERT_TRUE(mount(name));
            ASSERT_TRUE(write(name, 0));
            ASSERT_TRUE(write(name, 4 * kMiB));
        }
    }
    Result<std::string> mount(const std::string& name) {
        return world.run(daemon->node.mount(name, "c1"));
    }
    fabric::VolumeInfo info(const std::string& name) {
        return *world.run(daemon->node.volume(name));
    }
    volume::BlockDevice& device(const std::string& name) { return *host.device(info(name).id); }
    Result<void> write(const std::string& name, uint64_t offset) {
        Buffer bytes = Buffer::zeroed(64 * kKiB);
        std::memset(bytes.data(), static_cast<int>(1 + offset / kMiB), bytes.size());
        return world.run(device(name).write(offset, std::move(bytes)));
    }
    // "" or what is wrong.
    std::string read(const std::string& name, uint64_t offset) {
        Buffer bytes = Buffer::zeroed(kBlockBytes);
        auto outcome = world.run(device(name).read(offset, bytes));
        if (!outcome) return outcome.error().text();
        return bytes.data()[9] == std::byte(1 + offset / kMiB) ? "" : "other bytes";
    }
    static Plan plan() {
        Plan plan;
        plan.overlay_bytes = 256 * kKiB;
        plan.keeper.drain_bytes = 4 * kKiB;
        plan.keeper.checkpoint_interval = std::chrono::milliseconds(20);
        plan.keeper.tick = std::chrono::milliseconds(5);
        plan.leaf_cache_bytes = 4 * kMiB;
        return plan;
    }

    sim::World world{7};
    control::MemoryStore store;
    SimHost host;
    std::unique_ptr<SimDaemon> daemon;
};

}  // namespace peplos::swarm
