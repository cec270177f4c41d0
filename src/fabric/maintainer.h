#pragma once

#include "fabric/membership.h"

namespace peplos::fabric {

struct MaintainerOptions {
    // How often it looks when nothing changes: silences end and grow without a change.
    Duration period = std::chrono::seconds(2);
    // The maintainer is silent for so long: another node takes its place.
    Duration takeover_after = std::chrono::seconds(10);
    // And waits so much longer for each node that stands before it, by id.
    Duration takeover_step = std::chrono::seconds(2);
};

// Keeps the groups in order: one node of the cluster, chosen by compare-and-set, applies the plans
// of plan_changes(). It renews nothing: whether it lives is what Liveness says, so a cluster at
// rest writes nothing.
//
// Two that believe to be it do no harm. Every transaction compares the group that it was decided
// on, the records of the nodes that it adds, and the maintainer's own record.
class Maintainer {
  public:
    // Membership and store outlive it.
    Maintainer(runtime::Env env, control::Store& store, const Membership& membership,
               const Liveness& liveness, MaintainerOptions options = {});

    void start();
    Task<void> stop();

    // As this node saw last.
    bool is_maintainer() const;
    // What the last plan could not mend, for status. Empty unless is_maintainer().
    const std::vector<GroupWait>& waits() const { return waits_; }
    uint64_t edit_count() const { return edit_count_; }

  private:
    Task<void> run();
    // One look at the cluster; what fails is tried at the next one.
    Task<Result<void>> turn();
    bool should_take_over();
    Task<Result<void>> take_over();
    Task<Result<void>> apply(Plan plan);
    Task<Result<control::Revision>> apply_one(GroupEdit edit);
    Result<control::Transaction> transaction_of(GroupEdit& edit) const;
    int64_t wall_now_s() const;

    runtime::Env env_;
    control::Store& store_;
    const Membership& membership_;
    const Liveness& liveness_;
    MaintainerOptions options_;
    std::optional<Time> vacant_since_;
    std::vector<GroupWait> waits_;
    uint64_t edit_count_ = 0;
    bool is_stopping_ = false;
    runtime::Alarm alarm_;
    runtime::Gate gate_;
};

}  // namespace peplos::fabric
