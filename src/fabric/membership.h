#pragma once

#include <functional>
#include <map>
#include <memory>

#include "control/cluster_records.h"
#include "control/store.h"
#include "fabric/liveness.h"
#include "fabric/placement.h"
#include "replica/ensemble_chooser.h"
#include "runtime/alarm.h"
#include "runtime/env.h"
#include "runtime/gate.h"

namespace peplos::fabric {

using runtime::Task;

// One kind of record as the control store has it.
template <typename Record>
class RecordTable {
  public:
    struct Row {
        Record record;
        control::Revision revision;
    };

    explicit RecordTable(std::string prefix) : prefix_(std::move(prefix)) {}

    const std::string& prefix() const { return prefix_; }
    // By key.
    const std::map<std::string, Row>& rows() const { return rows_; }
    const Row* find(const std::string& key) const {
        auto row = rows_.find(key);
        return row == rows_.end() ? nullptr : &row->second;
    }

    // Everything that there is. A record that cannot be read leaves what was known of its key.
    void replace(const std::vector<control::KeyValue>& entries);
    // Ignored when it is not newer than what is known.
    void apply(const control::Event& event);

  private:
    void put(const control::KeyValue& entry, std::map<std::string, Row>& to);

    std::string prefix_;
    std::map<std::string, Row> rows_;
};

struct MembershipOptions {
    PlacementRules rules;
    // Silent for so long: groups go on without the node; others take its place.
    Duration silent_after = std::chrono::seconds(30);
    Duration dead_after = std::chrono::minutes(10);
    // Whether a volume goes on with fewer copies than it is to have; null: none does.
    std::function<bool(VolumeId)> may_degrade;
};

// This node's view of the cluster: nodes, devices, groups, as last seen in the control store, and
// what follows from them for ensembles and segments. Lives on one executor.
//
// Invariants
//   1. The view never shrinks because the store is out of reach: what was seen last stays (P9).
//   2. It holds whole transactions only of one kind of record: a group may be seen before the node
//      that it names.
//   3. Whenever a watch ends, for whatever reason, its records are listed anew: so a store that was
//      put back to an older state is seen as it is, whatever its revisions say.
class Membership final : public replica::EnsembleChooser {
  public:
    using Nodes = RecordTable<control::NodeRecord>;
    using Devices = RecordTable<control::DeviceRecord>;
    using Groups = RecordTable<control::GroupRecord>;
    using Maintainers = RecordTable<control::MaintainerRecord>;

    // Store and liveness outlive it.
    Membership(runtime::Env env, NodeId self, control::Store& store, const Liveness& liveness,
               MembershipOptions options = {});

    // Begins to list and watch; returns at once.
    void start();
    Task<void> stop();

    // Everything was listed and is being watched. Not a promise: news may be on their way.
    bool is_current() const;
    // Everything was listed at least once.
    bool is_known() const;
    // Empty while is_current().
    std::string why_not_current() const;

    NodeId self() const { return self_; }
    const Nodes& nodes() const { return nodes_; }
    const Devices& devices() const { return devices_; }
    const Groups& groups() const { return groups_; }
    const Maintainers& maintainers() const { return maintainers_; }

    // Raised by every change of the view.
    uint64_t change_count() const { return change_count_; }
    // Returns once change_count() is not `seen` any more, or stop() was called.
    Task<void> changed(uint64_t seen);

    // ---- what follows from the view ----

    std::vector<PlacementNode> placement_nodes() const;
    std::vector<control::GroupRecord> placement_groups() const;
    const PlacementRules& rules() const { return options_.rules; }

    // Where a group's segments are written, those first that have all of them; this node too where
    // it is one. Empty: not known. Group 0 without a record is this node's, while it is alone.
    std::vector<NodeId> nodes_of(GroupId group) const;
    // For a volume's next segments; see fabric::choose_group(). Errors: no_space, unavailable.
    Result<GroupId> choose_group(VolumeId volume, uint32_t copies, std::span<const NodeId> avoid);
    // Every other node that may hold segments.
    std::vector<NodeId> others() const;

    replica::Members choose(VolumeId volume, uint32_t copies, const replica::Members& present,
                            std::span<const NodeId> avoid) override;

  private:
    // How one table is kept up to date.
    struct Follower {
        control::Watch* watch = nullptr;  // while next() is in flight
        runtime::Alarm alarm;
        bool is_listed = false;
        bool is_current = false;
        std::string why = "it was not read yet";
    };

    template <typename Table>
    Task<void> follow(Table& table, Follower& follower);
    template <typename Table>
    Task<Error> follow_once(Table& table, Follower& follower);
    template <typename Table>
    Task<Error> take_news(Table& table, Follower& follower, control::Watch& watch);
    void note_change();
    bool may_degrade(VolumeId volume) const {
        return options_.may_degrade && options_.may_degrade(volume);
    }
    Presence presence_of(NodeId node) const;
    // The device of a node for a journal; nullptr: none takes one.
    const control::DeviceRecord* best_device(NodeId node) const;

    runtime::Env env_;
    NodeId self_;
    control::Store& store_;
    const Liveness& liveness_;
    MembershipOptions options_;
    Nodes nodes_;
    Devices devices_;
    Groups groups_;
    Maintainers maintainers_;
    std::array<Follower, 4> followers_;
    uint64_t change_count_ = 0;
    bool is_stopping_ = false;
    runtime::WaitList changed_;
    runtime::Gate gate_;
};

}  // namespace peplos::fabric
