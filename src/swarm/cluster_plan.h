#pragma once

#include "keeper/keeper.h"
#include "sim/world.h"
#include "swarm/operations.h"

// What one run of several nodes does: drawn from its seed, as Plan is.
namespace peplos::swarm {

// What is done to the nodes and the ways between them.
enum class ClusterFault : uint8_t {
    stop,            // of one daemon: a restart, an upgrade
    kill,            // -9 of one daemon; its host and containers live on
    power_loss,      // of one host
    all_power_loss,  // of every host
    pause,           // SIGSTOP of one daemon, 1 to 120 s
    partition,       // between two nodes
    one_way,         // the same in one direction
    isolation,       // of one node from all others
    reset,           // connections between two nodes break
    half_open,       // and only one end hears of it
    store_away,      // one node does not reach the control store
    store_outage,    // no node does
};
inline constexpr size_t kClusterFaultCount = 12;
std::string_view name_of(ClusterFault fault);

struct ClusterPlan {
    sim::Order order = sim::Order::random;
    sim::DiskProfile disk;
    sim::NetProfile net;
    uint32_t node_count = 3;
    uint64_t device_bytes = 0;
    uint64_t overlay_bytes = 0;
    uint64_t leaf_cache_bytes = 0;
    keeper::KeeperOptions keeper;

    uint32_t volume_count = 1;
    uint64_t volume_bytes_max = 0;
    uint32_t copies_max = 2;
    uint32_t workers_per_volume = 1;
    uint64_t operations = 2'000;  // at least so many in all
    uint64_t faults = 20;         // and so many of these
    // What a user does between two operations, at most.
    Duration pace{};
    Work work;

    // Of 1,000 steps of the driver (one each 10 to 300 ms) so many move a container that runs, move
    // one whose host seems dead, inject a fault, end the faults of the network and the store.
    uint32_t move_permille = 0;
    uint32_t rescue_permille = 0;
    uint32_t fault_permille = 0;
    uint32_t heal_permille = 0;
    // By ClusterFault; 0: never.
    uint32_t fault_weights[kClusterFaultCount] = {};

    uint32_t store_unavailable_permille = 0;
    uint32_t store_unknown_permille = 0;
    Duration store_delay_max{};
    Duration watch_lag_max{};
    // Of 1,000 passes of a FAULT (base/fault.h) so many are true.
    uint32_t site_permille = 0;
    // A mistake to make, of swarm/planted.h; empty: none.
    std::string planted;
};

ClusterPlan draw_cluster_plan(uint64_t seed);
// One line for people.
std::string describe(const ClusterPlan& plan);

}  // namespace peplos::swarm
