#pragma once

#include "control/store.h"
#include "fabric/local_node.h"
#include "keeper/keeper.h"
#include "swarm/host.h"
#include "swarm/plan.h"

namespace peplos::swarm {

// What dies with the daemon's process, composed as app/daemon.cc does it. The order is that in
// which it is made. After kill() of its process it is destroyed without stop().
struct SimDaemon {
    SimDaemon(const runtime::Env& env, control::Store& store, const Plan& plan, SimHost& host)
        : SimDaemon(env, store, options_of(plan), plan.keeper, host) {}
    SimDaemon(const runtime::Env& env, control::Store& store, fabric::LocalNodeOptions options,
              keeper::KeeperOptions keeper_options, SimHost& host)
        : node(env, store, std::move(options)), keeper(env, keeper_options) {
        fabric::DeviceSet& devices = node.devices();
        keeper.share(devices.overlay(), devices.space(), devices.leaf_cache());
        if (node.cluster() != nullptr) keeper.share_copies(node.cluster()->service());
        keeper.start();
        node.set_background(&keeper);
        node.set_attachments(&host);
    }
    static fabric::LocalNodeOptions options_of(const Plan& plan) {
        fabric::LocalNodeOptions options;
        options.name = "host";
        options.devices.overlay_bytes = plan.overlay_bytes;
        options.devices.leaf_cache_bytes = plan.leaf_cache_bytes;
        return options;
    }
    Task<void> stop() {
        co_await node.stop();
        co_await keeper.stop();
    }

    fabric::LocalNode node;
    keeper::Keeper keeper;
};

}  // namespace peplos::swarm
