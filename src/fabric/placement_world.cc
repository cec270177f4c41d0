#include "fabric/placement_world.h"

#include <tuple>

#include "base/check.h"

namespace peplos::fabric {
namespace {

template <typename Project>
uint32_t count_different(const PlacementWorld::Indexes& members, Project project) {
    std::vector<uint32_t> seen;
    for (uint32_t member : members)
        seen.push_back(project(member));
    std::ranges::sort(seen);
    return static_cast<uint32_t>(std::ranges::unique(seen).begin() - seen.begin());
}

}  // namespace

uint32_t free_permille_of(const PlacementNode& node) {
    if (node.total_bytes == 0) return 0;
    uint64_t free = std::min(node.free_bytes, node.total_bytes);
    return static_cast<uint32_t>(static_cast<unsigned __int128>(free) * 1000 / node.total_bytes);
}

PlacementWorld::PlacementWorld(std::span<const PlacementNode> nodes, const PlacementRules& rules)
    : rules_(rules) {
    std::map<std::string, uint32_t> zones;
    std::map<std::pair<std::string, std::string>, uint32_t> racks;
    nodes_.reserve(nodes.size());
    for (const PlacementNode& node : nodes) {
        auto zone = static_cast<uint32_t>(zones.size());
        zone = zones.try_emplace(node.zone, zone).first->second;
        auto rack = static_cast<uint32_t>(racks.size());
        rack = racks.try_emplace({node.zone, node.rack}, rack).first->second;
        bool takes_data = why_not_taking(node, rules).empty();
        nodes_.push_back({node, zone, rack, free_permille_of(node), takes_data});
        if (!takes_data) continue;
        ++takers_;
        taking_zones_.insert(zone);
        taking_racks_.insert(rack);
    }
    std::ranges::sort(nodes_, {}, [](const Node& node) { return node.node.id; });
    for (uint32_t i = 0; i < nodes_.size(); ++i) {
        bool is_new = index_.try_emplace(nodes_[i].node.id, i).second;
        CHECK(is_new, "node {} is there twice", nodes_[i].node.id);
    }
}

void PlacementWorld::add(const GroupRecord& group) {
    Indexes members;
    for (const GroupMember& member : group.members) {
        auto index = index_.find(member.node);
        if (index == index_.end() || !takes_segments(member.state)) continue;
        members.push_back(index->second);
        if (member.state == GroupMemberState::leaving) continue;
        ++nodes_[index->second].group_counts[group.copies];
    }
    for (uint32_t member : members) {
        for (uint32_t other : members) {
            if (other != member) nodes_[member].neighbours.insert(other);
        }
    }
    std::ranges::sort(members);
    sets_[group.copies].insert(std::move(members));
}

void PlacementWorld::change(const GroupRecord& from, const GroupRecord& to) {
    for (const GroupMember& member : from.members) {
        auto index = index_.find(member.node);
        bool is_counted = takes_segments(member.state) && member.state != GroupMemberState::leaving;
        if (index == index_.end() || !is_counted) continue;
        --nodes_[index->second].group_counts[from.copies];
    }
    add(to);
}

uint32_t PlacementWorld::groups_of(uint32_t index, uint32_t copies) const {
    auto count = nodes_[index].group_counts.find(copies);
    return count == nodes_[index].group_counts.end() ? 0 : count->second;
}

const PlacementWorld::Node* PlacementWorld::find(NodeId id) const {
    auto index = index_.find(id);
    return index == index_.end() ? nullptr : &nodes_[index->second];
}

std::string PlacementWorld::name_of(NodeId id) const {
    const Node* node = find(id);
    return node == nullptr || node->node.name.empty() ? text_of(id) : node->node.name;
}

bool PlacementWorld::is_here(NodeId id) const {
    const Node* node = find(id);
    return node != nullptr && node->node.presence == Presence::present &&
           node->node.state != NodeState::lost && node->node.state != NodeState::removed;
}

bool PlacementWorld::may_stay(NodeId id) const {
    const Node* node = find(id);
    return node == nullptr || node->node.state == NodeState::active ||
           node->node.state == NodeState::cordoned;
}

uint32_t PlacementWorld::zones_of(const Indexes& members) const {
    return count_different(members, [this](uint32_t i) { return nodes_[i].zone; });
}

uint32_t PlacementWorld::racks_of(const Indexes& members) const {
    return count_different(members, [this](uint32_t i) { return nodes_[i].rack; });
}

PlacementWorld::Indexes PlacementWorld::indexes_of(const std::vector<NodeId>& ids) const {
    Indexes out;
    for (NodeId id : ids) {
        if (auto index = index_.find(id); index != index_.end()) out.push_back(index->second);
    }
    return out;
}

bool PlacementWorld::has_set(uint32_t copies, Indexes members) const {
    auto sets = sets_.find(copies);
    if (sets == sets_.end()) return false;
    std::ranges::sort(members);
    return sets->second.contains(members);
}

std::optional<uint32_t> PlacementWorld::best_beside(const Indexes& members, const Indexes& excluded,
                                                    uint32_t copies, Wanted wanted) const {
    // Smaller is better: domains first, then a bound on groups per node, then that few pairs of
    // nodes share two groups, then groups, then space. The last is a shuffle that is always the
    // same, or the first nodes by id would be everybody's neighbours.
    using Score = std::tuple<bool, bool, bool, uint32_t, uint32_t, uint32_t, uint64_t>;
    std::optional<Score> best_score;
    std::optional<uint32_t> best;
    uint32_t cap = rules_.quota(copies) * copies;
    uint64_t shuffle = copies;
    for (uint32_t member : members)
        shuffle = mix_bits(shuffle ^ nodes_[member].node.id.value);
    for (uint32_t i = 0; i < nodes_.size(); ++i) {
        const Node& node = nodes_[i];
        if (!node.takes_data || has(members, i)) continue;
        if (has(excluded, i)) continue;
        bool is_same_zone = false;
        bool is_same_rack = false;
        uint32_t overlap = 0;
        for (uint32_t member : members) {
            is_same_zone = is_same_zone || nodes_[member].zone == node.zone;
            is_same_rack = is_same_rack || nodes_[member].rack == node.rack;
            overlap += node.neighbours.contains(member) ? 1 : 0;
        }
        uint32_t groups = groups_of(i, copies);
        Score score{is_same_zone,
                    is_same_rack,
                    groups >= cap,
                    overlap,
                    groups,
                    1000 - node.free_permille,
                    mix_bits(shuffle ^ node.node.id.value)};
        if (best_score && *best_score <= score) continue;
        if (wanted == Wanted::fresh_roomy && is_crowded(i)) continue;
        if (wanted != Wanted::any) {
            Indexes whole = members;
            whole.push_back(i);
            if (whole.size() == copies && has_set(copies, std::move(whole))) continue;
        }
        best_score = score;
        best = i;
    }
    return best;
}

}  // namespace peplos::fabric
