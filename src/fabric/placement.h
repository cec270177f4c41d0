#pragma once

#include <span>
#include <string>
#include <vector>

#include "control/cluster_records.h"
#include "runtime/rng.h"

// Where data go: groups over failure domains, and which of them a volume uses. Plain functions of
// what is known; no I/O. Reasons are sentences for people.
//
// Groups are copysets (Cidon et al., "Copysets: Reducing the Frequency of Data Loss in Cloud
// Storage", 2013): were every segment placed anywhere, then any RF nodes that die at once would
// hold the last copies of something. With few groups few such sets exist, at the price that fewer
// nodes share a rebuild. See docs/decisions/20261130-groups.md for the numbers.
//
// What plan_changes() promises of the groups that it leaves behind, once nothing moves any more:
//   1. As many full members as copies, on nodes that answer, are not being evacuated, not lost.
//   2. As many different zones as there are copies, or as zones exist; then racks; never one node
//      twice.
//   3. Each node that takes new data is in its quota of groups for every number of copies, or in
//      every different set that 2 allows.
// And on the way there:
//   4. Some member has everything, as long as nobody declared it lost.
//   5. A node that comes or goes changes no group that it is not in, except to keep 2.
namespace peplos::fabric {

enum class Presence : uint8_t {
    present,
    silent,  // for so long that others go on without it, and keep its place
    dead,    // for so long that others take its place
};

struct PlacementNode {
    NodeId id;
    std::string name;
    std::string zone;
    std::string rack;  // within its zone
    control::NodeState state = control::NodeState::active;
    Presence presence = Presence::present;
    // Of the devices that take new data.
    uint64_t free_bytes = 0;
    uint64_t total_bytes = 0;
};

struct PlacementRules {
    // So many other nodes share the data of each: a dead node is rebuilt by so many at once.
    uint32_t scatter_width = 8;
    std::vector<uint32_t> copies_wanted = {1, 2, 3};
    // A node with less free space than this takes no more groups, and no more segments.
    uint32_t full_permille = 50;
    // Groups move from a node with less free space than the first to one with more than the second.
    uint32_t crowded_permille = 150;
    uint32_t roomy_permille = 300;
    // Groups that move at once for balance or spread; those at risk are not counted.
    uint32_t moves_max = 4;
    uint32_t edits_max = 256;

    // Groups that a node is to be in.
    uint32_t quota(uint32_t copies) const {
        return copies <= 1 ? 1 : (scatter_width + copies - 2) / (copies - 1);
    }
};

struct GroupEdit {
    // As it becomes. Of a new one id and created_at_s are the caller's to give.
    control::GroupRecord group;
    bool is_new = false;
    // It was decided because these take new data: their records must not have changed.
    std::vector<NodeId> added;
    std::string reason;
};

struct GroupWait {
    GroupId group;
    std::string reason;
};

struct Plan {
    std::vector<GroupEdit> edits;  // highest risk first
    std::vector<GroupWait> waits;  // what cannot be mended now, and what would help
};

// The next changes. Call it again with what became of them: it remembers nothing.
Plan plan_changes(std::span<const PlacementNode> nodes,
                  std::span<const control::GroupRecord> groups, const PlacementRules& rules);

// The group once `node` has everything; invariant 2 of GroupRecord is the caller's to keep.
// Errors: conflict (it is not filling there any more).
Result<control::GroupRecord> with_filled(control::GroupRecord group, NodeId node);

// Whether a node takes new data. `why` of one that does not: empty for one that does.
std::string why_not_taking(const PlacementNode& node, const PlacementRules& rules);

struct PlacementWish {
    NodeId owner;
    uint32_t copies = 1;
    std::span<const NodeId> avoid = {};
    // Fewer copies than wished are better than none.
    bool may_be_short = false;
};

struct GroupChoice {
    GroupId group;
    bool has_owner = false;
    bool is_short = false;
};

// The group for a next segment: one that contains the owner before any other one, a whole one
// before a short one; of equals each as often as its scarcest member has space.
// Errors: no_space (they are full), unavailable (says how many nodes are missing).
Result<GroupChoice> choose_group(std::span<const PlacementNode> nodes,
                                 std::span<const control::GroupRecord> groups,
                                 const PlacementWish& wish, const PlacementRules& rules,
                                 runtime::Rng& rng);

// The nodes of a journal's next ensemble, the owner first: those of a group, so that what is
// drained lies where its journal lay; of several groups the one that keeps the most of `present`.
// Empty: none can be had.
std::vector<NodeId> choose_ensemble(std::span<const PlacementNode> nodes,
                                    std::span<const control::GroupRecord> groups,
                                    const PlacementWish& wish, std::span<const NodeId> present,
                                    const PlacementRules& rules);

}  // namespace peplos::fabric
