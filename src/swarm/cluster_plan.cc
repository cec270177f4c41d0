#include "swarm/cluster_plan.h"

#include <fmt/format.h>

namespace peplos::swarm {

namespace {

constexpr uint64_t kClusterStream = 0x91b7;

void draw_nodes(ClusterPlan& plan, sim::Random& random) {
    plan.order = random.chance(700) ? sim::Order::random : sim::Order::fifo;
    plan.node_count = random.chance(700) ? 3 : static_cast<uint32_t>(random.between(4, 7));
    plan.device_bytes = random.between(640, 1024) * kMiB;
    plan.overlay_bytes = random.between(4, 24) * kMiB;
    plan.leaf_cache_bytes = random.between(256, 4096) * kKiB;
    keeper::KeeperOptions& keeper = plan.keeper;
    keeper.drain_bytes = random.between(64, 8 * 1024) * kKiB;
    keeper.replay_bytes_max = random.between(1, 64) * kMiB;
    keeper.replay_records_max = random.between(4, 512);
    keeper.checkpoint_interval = std::chrono::milliseconds(random.between(500, 60'000));
    keeper.tick = std::chrono::milliseconds(random.between(100, 1'000));
    keeper.free_share_min = static_cast<double>(random.between(20, 600)) / 1000;
    keeper.scrub_bytes_per_second = random.between(1, 500) * kMiB;
    keeper.prezero_bytes = 0;
    plan.net.short_read_permille = static_cast<uint32_t>(random.pick(300));
    plan.net.spike_permille = random.maybe(20);
    plan.net.delay.high *= static_cast<int64_t>(1) << random.pick(6);
    if (random.chance(300)) plan.net.bytes_per_second = random.between(2, 200) * kMiB;
}

void draw_cluster_users(ClusterPlan& plan, sim::Random& random) {
    plan.volume_count = static_cast<uint32_t>(random.between(1, 4));
    plan.volume_bytes_max = random.between(2, 24) * kMiB;
    plan.copies_max = random.chance(600) ? 2 : 3;
    plan.workers_per_volume = static_cast<uint32_t>(random.between(1, 4));
    plan.pace = std::chrono::milliseconds(random.between(20, 1'000));
    plan.work = draw_work(random);
    plan.move_permille = static_cast<uint32_t>(random.between(1, 30));
    plan.rescue_permille = static_cast<uint32_t>(random.between(5, 200));
}

void draw_cluster_faults(ClusterPlan& plan, sim::Random& random) {
    plan.fault_permille = static_cast<uint32_t>(random.between(5, 60));
    plan.heal_permille = static_cast<uint32_t>(random.between(5, 60));
    for (uint32_t& weight : plan.fault_weights)
        weight = random.maybe(5);
    // Something always breaks.
    plan.fault_weights[random.pick(kClusterFaultCount)] = 5;
    auto rare = static_cast<size_t>(ClusterFault::all_power_loss);
    plan.fault_weights[rare] = plan.fault_weights[rare] != 0 ? 1 : 0;
    plan.store_unavailable_permille = random.maybe(30);
    plan.store_unknown_permille = random.maybe(30);
    plan.store_delay_max = std::chrono::milliseconds(random.maybe(200));
    plan.watch_lag_max = std::chrono::milliseconds(random.maybe(5'000));
    plan.site_permille = random.maybe(10);
}

}  // namespace

std::string_view name_of(ClusterFault fault) {
    switch (fault) {
        case ClusterFault::stop:
            return "stop";
        case ClusterFault::kill:
            return "kill -9";
        case ClusterFault::power_loss:
            return "power loss";
        case ClusterFault::all_power_loss:
            return "power loss of all";
        case ClusterFault::pause:
            return "pause of a node";
        case ClusterFault::partition:
            return "partition";
        case ClusterFault::one_way:
            return "one-way partition";
        case ClusterFault::isolation:
            return "isolation";
        case ClusterFault::reset:
            return "connections reset";
        case ClusterFault::half_open:
            return "half-open connections";
        case ClusterFault::store_away:
            return "store away from a node";
        case ClusterFault::store_outage:
            return "store outage";
    }
    return "?";
}

ClusterPlan draw_cluster_plan(uint64_t seed) {
    sim::Random random(seed, kClusterStream);
    ClusterPlan plan;
    draw_nodes(plan, random);
    draw_cluster_users(plan, random);
    draw_cluster_faults(plan, random);
    return plan;
}

std::string describe(const ClusterPlan& plan) {
    std::string faults;
    for (size_t i = 0; i < kClusterFaultCount; ++i) {
        if (plan.fault_weights[i] == 0) continue;
        faults +=
            fmt::format(" {} {},", name_of(static_cast<ClusterFault>(i)), plan.fault_weights[i]);
    }
    return fmt::format(
        "{} nodes with a device of {} MiB, {} volume(s) of up to {} MiB and {} copies with {} "
        "worker(s) each at most every {} ms; move {} rescue {} fault {} heal {}:{} store {}/{} "
        "within {} ms, watches late by {} ms, sites {}",
        plan.node_count, plan.device_bytes / kMiB, plan.volume_count, plan.volume_bytes_max / kMiB,
        plan.copies_max, plan.workers_per_volume, plan.pace / std::chrono::milliseconds(1),
        plan.move_permille, plan.rescue_permille, plan.fault_permille, plan.heal_permille, faults,
        plan.store_unavailable_permille, plan.store_unknown_permille,
        plan.store_delay_max / std::chrono::milliseconds(1),
        plan.watch_lag_max / std::chrono::milliseconds(1), plan.site_permille);
}

}  // namespace peplos::swarm
