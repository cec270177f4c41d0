#pragma once

#include <functional>
#include <map>
#include <vector>

#include "base/ids.h"
#include "control/store.h"
#include "runtime/alarm.h"
#include "runtime/env.h"
#include "runtime/gate.h"

namespace peplos::fabric {

using runtime::Task;

struct LeaseOptions {
    // A node renews its lease so often, and holds it for so long after that was seen.
    Duration renewal = std::chrono::milliseconds(1500);
    Duration term = std::chrono::seconds(6);
};

// Each node's sign of life in the control store: it writes `lease/NODE` again and again, and others
// read that of the nodes that they do not hear. So a node that only the network between two hides
// is not taken for dead. Hints only: replicas fence. Lives on one executor.
//
// Invariants
//   1. No two clocks are compared: a lease counts from when this node saw it renewed.
//   2. Whenever the store was out of reach, everybody has a whole term to renew after that.
class Leases {
  public:
    // `silent`: the nodes that were not heard lately. The store outlives it.
    Leases(runtime::Env env, NodeId self, control::Store& store,
           std::function<std::vector<NodeId>()> silent, LeaseOptions options = {});

    // Returns at once.
    void start();
    Task<void> stop();

    // Of a silent node: false once it has not renewed its lease for a term, as the store says.
    bool holds(NodeId node) const;

  private:
    struct Seen {
        control::Revision revision;
        Time renewed_at;
        Time read_at;
    };
    Task<void> renew();
    Task<void> follow();
    void note(NodeId node, control::Revision revision, Time asked);

    runtime::Env env_;
    const NodeId self_;
    control::Store& store_;
    const std::function<std::vector<NodeId>()> silent_;
    const LeaseOptions options_;
    std::map<NodeId, Seen> seen_;
    bool is_stopping_ = false;
    runtime::Alarm renew_alarm_;
    runtime::Alarm follow_alarm_;
    runtime::Gate gate_;
};

}  // namespace peplos::fabric
