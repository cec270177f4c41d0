#include "fabric/placement.h"

#include "fabric/placement_world.h"

namespace peplos::fabric {
namespace {

using Indexes = PlacementWorld::Indexes;

// A group as a place for the next segment.
struct Place {
    const GroupRecord* group;
    uint64_t scarcest_bytes;
    bool has_owner;
    bool is_short;
    bool is_settled;

    // Smaller is better.
    auto rank() const { return std::tuple(is_short, !has_owner, !is_settled); }
};

// nullopt: a new segment cannot be written there now. `is_full` is set where space alone is
// missing.
std::optional<Place> place_in(const GroupRecord& group, const PlacementWorld& world,
                              const PlacementWish& wish, const PlacementRules& rules,
                              bool* is_full) {
    Place place{&group, UINT64_MAX, false, false, true};
    uint32_t staying = 0;
    bool lacks_space = false;
    for (const GroupMember& member : group.members) {
        place.is_settled = place.is_settled && member.state == GroupMemberState::full;
        if (!takes_segments(member.state)) continue;
        if (!world.is_here(member.node) || has(wish.avoid, member.node)) {
            return std::nullopt;
        }
        const PlacementWorld::Node& node = *world.find(member.node);
        lacks_space = lacks_space || node.free_permille < rules.full_permille;
        place.scarcest_bytes = std::min(place.scarcest_bytes, node.node.free_bytes);
        place.has_owner = place.has_owner || member.node == wish.owner;
        staying += member.state != GroupMemberState::leaving ? 1 : 0;
    }
    if (lacks_space) {
        *is_full = true;
        return std::nullopt;
    }
    if (place.scarcest_bytes == UINT64_MAX) return std::nullopt;
    place.is_short = staying < wish.copies;
    if (place.is_short && !wish.may_be_short) return std::nullopt;
    return place;
}

std::string why_none(const PlacementWorld& world, const PlacementWish& wish) {
    uint32_t takers = 0;
    for (const PlacementWorld::Node& node : world.nodes()) {
        takers += node.takes_data && !has(wish.avoid, node.node.id) ? 1 : 0;
    }
    if (takers < wish.copies) {
        return fmt::format(
            "{} copies need as many nodes that answer and take data, and there {} "
            "{}: add or start one, or ask for fewer copies",
            wish.copies, takers == 1 ? "is" : "are", takers);
    }
    return fmt::format("no group of {} nodes takes data just now: it is made within seconds",
                       wish.copies);
}

// Whether a journal may have a member there.
bool is_good(const PlacementWorld& world, const PlacementWish& wish, NodeId id) {
    const PlacementWorld::Node* node = world.find(id);
    return node != nullptr && world.is_here(id) && world.may_stay(id) &&
           node->node.total_bytes != 0 && !has(wish.avoid, id);
}

}  // namespace

std::string why_not_taking(const PlacementNode& node, const PlacementRules& rules) {
    if (node.state != NodeState::active) return fmt::format("it is {}", name_of(node.state));
    if (node.presence != Presence::present) return "it does not answer";
    if (node.total_bytes == 0) return "it has no device that takes data";
    if (free_permille_of(node) < rules.full_permille) return "it is full";
    return {};
}

Result<GroupChoice> choose_group(std::span<const PlacementNode> nodes,
                                 std::span<const control::GroupRecord> groups,
                                 const PlacementWish& wish, const PlacementRules& rules,
                                 runtime::Rng& rng) {
    PlacementWorld world(nodes, rules);
    std::vector<Place> places;
    bool is_full = false;
    for (const GroupRecord& group : groups) {
        if (group.copies != wish.copies) continue;
        if (auto place = place_in(group, world, wish, rules, &is_full)) places.push_back(*place);
    }
    if (places.empty()) {
        if (is_full) {
            return fail(Code::no_space,
                        "every group of {} nodes has a node that is full: free space, or add a "
                        "device or a node",
                        wish.copies);
        }
        return fail(Code::unavailable, "{}", why_none(world, wish));
    }
    auto best = std::ranges::min(places, {}, &Place::rank).rank();
    std::erase_if(places, [&best](const Place& place) { return place.rank() != best; });
    std::ranges::sort(places, {}, [](const Place& place) { return place.group->id; });
    // In MiB, so that the sum of thousands of large devices has room in 64 bits.
    uint64_t sum = 0;
    for (const Place& place : places)
        sum += place.scarcest_bytes / kMiB + 1;
    uint64_t drawn = rng.below(sum);
    size_t chosen = 0;
    for (; drawn >= places[chosen].scarcest_bytes / kMiB + 1; ++chosen)
        drawn -= places[chosen].scarcest_bytes / kMiB + 1;
    const Place& place = places[chosen];
    return GroupChoice{place.group->id, place.has_owner, place.is_short};
}

std::vector<NodeId> choose_ensemble(std::span<const PlacementNode> nodes,
                                    std::span<const control::GroupRecord> groups,
                                    const PlacementWish& wish, std::span<const NodeId> present,
                                    const PlacementRules& rules) {
    PlacementWorld world(nodes, rules);
    // A node that is being emptied serves its volumes all the same, until they move.
    if (!world.is_here(wish.owner) || has(wish.avoid, wish.owner)) return {};
    std::vector<NodeId> best = {};
    std::tuple<uint32_t, uint64_t> best_score = {0, 0};
    for (const GroupRecord& group : groups) {
        if (group.copies != wish.copies || group.find(wish.owner) == nullptr) continue;
        std::vector<NodeId> members = {wish.owner};
        uint32_t kept = 0;
        uint64_t scarcest = UINT64_MAX;
        for (const GroupMember& member : group.members) {
            bool stays =
                member.state == GroupMemberState::full || member.state == GroupMemberState::filling;
            if (!stays || !is_good(world, wish, member.node)) continue;
            if (member.node != wish.owner) members.push_back(member.node);
            kept += has(present, member.node) ? 1 : 0;
            scarcest = std::min(scarcest, world.find(member.node)->node.free_bytes);
        }
        if (members.size() < wish.copies) continue;
        members.resize(wish.copies);
        std::tuple score(kept, scarcest);
        if (!best.empty() && score <= best_score) continue;
        best = std::move(members);
        best_score = score;
    }
    if (!best.empty()) return best;
    // No group is whole just now. The journal need not lie in one.
    best = {wish.owner};
    for (NodeId node : present) {
        bool fits = node != wish.owner && best.size() < wish.copies && is_good(world, wish, node);
        if (fits) best.push_back(node);
    }
    Indexes avoid = world.indexes_of({wish.avoid.begin(), wish.avoid.end()});
    while (best.size() < wish.copies) {
        auto next = world.best_beside(world.indexes_of(best), avoid, wish.copies);
        if (!next) break;
        best.push_back(world.nodes()[*next].node.id);
    }
    if (best.size() < wish.copies && !wish.may_be_short) return {};
    return best;
}

}  // namespace peplos::fabric
