#pragma once

#include <algorithm>
#include <map>
#include <optional>
#include <set>
#include <span>
#include <unordered_map>
#include <unordered_set>
#include <vector>

#include "fabric/placement.h"

namespace peplos::fabric {

using control::GroupMember;
using control::GroupMemberState;
using control::GroupRecord;
using control::NodeState;

template <typename Range, typename Value>
bool has(const Range& range, const Value& value) {
    return std::ranges::find(range, value) != std::ranges::end(range);
}

// How much of its space is free.
uint32_t free_permille_of(const PlacementNode& node);

// Nodes and groups as the decisions of placement look at them: by index, with domains numbered, and
// with the groups counted. For placement*.cc alone.
class PlacementWorld {
  public:
    struct Node {
        PlacementNode node;
        uint32_t zone = 0;
        uint32_t rack = 0;  // different in different zones
        uint32_t free_permille = 0;
        bool takes_data = false;  // new groups and new segments
        // By copies: the groups that it is in to stay.
        std::map<uint32_t, uint32_t> group_counts = {};
        std::unordered_set<uint32_t> neighbours = {};  // indexes: who shares a group with it
    };
    using Indexes = std::vector<uint32_t>;

    PlacementWorld(std::span<const PlacementNode> nodes, const PlacementRules& rules);

    // Counts what the members of a group mean for the next choices.
    void add(const GroupRecord& group);
    // A group that was added becomes another.
    void change(const GroupRecord& from, const GroupRecord& to);

    const std::vector<Node>& nodes() const { return nodes_; }
    const Node* find(NodeId id) const;
    std::string name_of(NodeId id) const;
    // Answers, and was not declared gone.
    bool is_here(NodeId id) const;
    // It keeps what it has: not on its way out. So does a node of which nothing is known: that is
    // no reason to give up what it holds.
    bool may_stay(NodeId id) const;
    uint32_t takers() const { return takers_; }
    // Of nodes that take data, by number.
    const std::set<uint32_t>& taking_zones() const { return taking_zones_; }
    const std::set<uint32_t>& taking_racks() const { return taking_racks_; }
    uint32_t groups_of(uint32_t index, uint32_t copies) const;

    uint32_t zones_of(const Indexes& members) const;
    uint32_t racks_of(const Indexes& members) const;
    Indexes indexes_of(const std::vector<NodeId>& ids) const;

    // The best node that takes new data beside `members`, and is none of `excluded`; nullopt: none.
    // `copies` is that of the group.
    enum class Wanted : uint8_t {
        any,
        fresh,        // no set that exists already comes out
        fresh_roomy,  // nor does a crowded node
    };
    std::optional<uint32_t> best_beside(const Indexes& members, const Indexes& excluded,
                                        uint32_t copies, Wanted wanted = Wanted::any) const;
    bool is_crowded(uint32_t index) const {
        return nodes_[index].free_permille < rules_.crowded_permille;
    }
    bool has_set(uint32_t copies, Indexes members) const;

  private:
    std::vector<Node> nodes_;  // by id
    std::unordered_map<NodeId, uint32_t> index_;
    const PlacementRules& rules_;
    std::map<uint32_t, std::set<Indexes>> sets_;
    uint32_t takers_ = 0;
    std::set<uint32_t> taking_zones_;
    std::set<uint32_t> taking_racks_;
};

}  // namespace peplos::fabric
