#pragma once

#include <span>
#include <string>
#include <vector>

#include "control/cluster_records.h"

// What people do to nodes, and what each of it waits for. Plain functions.
//
//   active <-> cordoned                 cordon, uncordon
//   active, cordoned -> evacuating      evacuate; uncordon takes it back, cordon stops it half way
//   evacuating -> removed               remove, once nothing is left on it
//   any but removed -> lost             lost: the node is declared gone, with what it held
//
// `removed` and `lost` are for ever: a machine that comes back joins as a new node. Otherwise its
// old copies could pass for new ones.
namespace peplos::fabric {

enum class NodeVerb : uint8_t { cordon, uncordon, evacuate, remove, lose };

// What of the cluster lies on one node.
struct NodeUse {
    bool is_alive = true;
    uint32_t groups = 0;            // in which it is a member, whatever its state there
    uint32_t groups_only_here = 0;  // of these, no other member has everything
    uint32_t volumes_owned = 0;
    uint32_t journals = 0;            // ensembles that it is a member of
    uint32_t journals_only_here = 0;  // of these, it is the only member
    uint32_t other_nodes = 0;         // that are neither removed nor lost

    bool is_empty() const { return groups == 0 && volumes_owned == 0 && journals == 0; }
};

NodeUse use_of(NodeId node, std::span<const control::NodeRecord> nodes,
               std::span<const control::GroupRecord> groups,
               std::span<const control::VolumeRecord> volumes);

enum class Consent : uint8_t {
    none,
    given,  // the person was told what it costs, and said yes
};

// The state after the verb, which may be the one before: then there is nothing to record.
// Errors: conflict (not from this state), busy (something is left on it: says what, and what to
// do), permission_denied (it costs data: repeat with consent). The messages are for people.
Result<control::NodeState> after_verb(NodeVerb verb, const control::NodeRecord& node,
                                      const NodeUse& use, Consent consent);

// The change of a node's record that was read at `expected`. What `use` was counted from must have
// been read after the node's record: a group that gets the node as a member compares that record.
Result<control::Transaction> verb_transaction(NodeVerb verb, control::NodeRecord node,
                                              control::Revision expected, const NodeUse& use,
                                              Consent consent);

struct NodeProgress {
    bool is_done = false;
    uint32_t left = 0;      // things that still lie there: groups, journals, volumes served
    uint32_t total = 0;     // as many as there were when it began, as far as is known
    std::string waits_for;  // a sentence; empty when it is done
};

// How far an evacuation is. `began_with` is `left` at its begin, where somebody remembers.
// `group_waits` are the reasons of the groups that cannot be mended now (plan_changes()).
NodeProgress evacuation_progress(const control::NodeRecord& node, const NodeUse& use,
                                 uint32_t began_with, std::span<const std::string> group_waits);

std::string_view name_of(NodeVerb verb);

}  // namespace peplos::fabric
