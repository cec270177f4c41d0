#pragma once

#include "replica/ensemble_chooser.h"
#include "replica/member_port.h"
#include "replica/ownership_store.h"
#include "runtime/env.h"
#include "runtime/gate.h"

namespace peplos::replica {

struct OwnerTiming {
    Timing protocol;
    // Asks for promises so often.
    Duration renew = std::chrono::milliseconds(500);
    // A member with records to confirm is silent after so long, or after three times what 999 of
    // 1,000 of its acknowledgements took.
    Duration silence_min = std::chrono::milliseconds(200);
    Duration silence_max = std::chrono::seconds(10);
    // With nothing but a heartbeat to answer: before its promise ends.
    Duration silence_at_rest = std::chrono::milliseconds(1500);
    // A new member that makes no progress for so long is given up.
    Duration open_patience = std::chrono::seconds(3);
    // A claimer waits so long for the other members once one has proven its log complete.
    Duration fence_grace = std::chrono::milliseconds(500);
    // A member that was left out, or failed to become one, is not asked again so soon.
    Duration avoid = std::chrono::seconds(10);
};

// What the owners on one node share. Lives on one executor.
//
// Stopping: stop the claimers and release or destroy the logs, then stop() this, then whatever the
// references lead to.
class OwnerContext {
  public:
    OwnerContext(runtime::Env env, NodeId self, OwnershipStore& store, EnsembleChooser& chooser,
                 MemberPorts& ports, OwnerTiming timing = {})
        : env(env), self(self), store(store), chooser(chooser), ports(ports), timing(timing) {}
    OwnerContext(const OwnerContext&) = delete;

    // Claims end with `stopping`, as do writes: soon.
    void begin_stop() { is_stopping = true; }
    // The same, and waits for what runs behind logs and claims.
    Task<void> stop() {
        begin_stop();
        co_await gate.close();
    }

    runtime::Env env;
    const NodeId self;
    OwnershipStore& store;
    EnsembleChooser& chooser;
    MemberPorts& ports;
    const OwnerTiming timing;

    // Of all that runs behind logs and claims.
    runtime::Gate gate;
    bool is_stopping = false;
};

}  // namespace peplos::replica
