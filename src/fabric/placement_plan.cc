#include "base/check.h"
#include "base/limits.h"
#include "fabric/placement_world.h"

namespace peplos::fabric {
namespace {

using Indexes = PlacementWorld::Indexes;

// One call of plan_changes(). The world counts the groups as they will be.
class Planner {
  public:
    Planner(std::span<const PlacementNode> nodes, std::span<const GroupRecord> groups,
            const PlacementRules& rules)
        : rules_(rules), world_(nodes, rules), groups_(groups) {
        for (const GroupRecord& group : groups)
            world_.add(group);
    }

    Plan run() {
        may_judge_silence_ = sees_enough();
        mend_all();
        move_all();
        create_all();
        return std::move(plan_);
    }

  private:
    // A group while it is being edited.
    struct Draft {
        GroupRecord group;
        std::vector<NodeId> added = {};
        std::string reason = {};

        void because(std::string why) {
            if (!reason.empty()) reason += "; ";
            reason += why;
        }
    };

    bool sees_enough() const;
    bool has_room() const { return plan_.edits.size() < rules_.edits_max; }
    void wait(const Draft& draft, std::string reason) {
        plan_.waits.push_back({draft.group.id, std::move(reason)});
    }
    void finish(const GroupRecord& before, Draft draft);

    void mend_all();
    void mend(Draft& draft);
    void drop_the_lost(Draft& draft);
    void send_away_the_silent(Draft& draft);
    void let_go_the_evacuating(Draft& draft);
    void make_whole(Draft& draft);
    uint32_t bring_back(Draft& draft, uint32_t missing);
    void drop_the_needless(Draft& draft);

    bool is_settled(const GroupRecord& group) const;
    void move_all();
    bool spread(Draft& draft);
    bool relieve(Draft& draft);
    bool replace(Draft& draft, uint32_t leaving, uint32_t coming, std::string why);

    void create_all();
    bool create(uint32_t seed, uint32_t copies);

    uint32_t staying(const GroupRecord& group) const;
    uint32_t holders_here(const GroupRecord& group) const;
    Indexes indexes(const GroupRecord& group, bool (*is_wanted)(GroupMemberState)) const;

    const PlacementRules& rules_;
    PlacementWorld world_;
    std::span<const GroupRecord> groups_;
    Plan plan_;
    bool may_judge_silence_ = true;
    uint32_t moving_ = 0;
};

bool takes_and_stays(GroupMemberState state) {
    return state == GroupMemberState::full || state == GroupMemberState::filling;
}
bool is_any(GroupMemberState) {
    return true;
}

// Whoever hears less than half of the others is rather alone than all of them gone.
bool Planner::sees_enough() const {
    uint32_t members = 0;
    uint32_t here = 0;
    for (const PlacementWorld::Node& node : world_.nodes()) {
        NodeState state = node.node.state;
        if (state == NodeState::lost || state == NodeState::removed) continue;
        ++members;
        here += node.node.presence == Presence::present ? 1 : 0;
    }
    return here * 2 >= members;
}

Indexes Planner::indexes(const GroupRecord& group, bool (*is_wanted)(GroupMemberState)) const {
    std::vector<NodeId> ids;
    for (const GroupMember& member : group.members) {
        if (is_wanted(member.state)) ids.push_back(member.node);
    }
    return world_.indexes_of(ids);
}

// Members that are, or become, the group's copies.
uint32_t Planner::staying(const GroupRecord& group) const {
    return static_cast<uint32_t>(
        std::ranges::count_if(group.members, [this](const GroupMember& member) {
            return takes_and_stays(member.state) && world_.may_stay(member.node);
        }));
}

uint32_t Planner::holders_here(const GroupRecord& group) const {
    return static_cast<uint32_t>(
        std::ranges::count_if(group.members, [this](const GroupMember& member) {
            return has_everything(member.state) && world_.is_here(member.node);
        }));
}

void Planner::finish(const GroupRecord& before, Draft draft) {
    CHECK(!draft.reason.empty());
    ++draft.group.version;
    CHECK(check_record(draft.group).has_value());
    world_.change(before, draft.group);
    plan_.edits.push_back(
        {std::move(draft.group), false, std::move(draft.added), std::move(draft.reason)});
}

// ---- groups that lack something, or have too much ----

void Planner::mend_all() {
    struct Rank {
        bool is_whole;
        uint32_t holders;
        GroupId id;
        const GroupRecord* group;
        auto key() const { return std::tuple(is_whole, holders, id); }
    };
    std::vector<Rank> order;
    for (const GroupRecord& group : groups_) {
        uint32_t holders = holders_here(group);
        order.push_back({holders >= group.copies, holders, group.id, &group});
    }
    std::ranges::sort(order, {}, &Rank::key);
    for (const Rank& rank : order) {
        Draft draft{*rank.group};
        if (!has_room()) return;
        mend(draft);
        if (draft.group != *rank.group) finish(*rank.group, std::move(draft));
    }
}

void Planner::mend(Draft& draft) {
    drop_the_lost(draft);
    send_away_the_silent(draft);
    let_go_the_evacuating(draft);
    make_whole(draft);
    drop_the_needless(draft);
}

void Planner::drop_the_lost(Draft& draft) {
    auto is_gone = [this](const GroupMember& member) {
        const PlacementWorld::Node* node = world_.find(member.node);
        return node != nullptr &&
               (node->node.state == NodeState::lost || node->node.state == NodeState::removed);
    };
    auto& members = draft.group.members;
    bool survives = std::ranges::any_of(members, [&is_gone](const GroupMember& member) {
        return has_everything(member.state) && !is_gone(member);
    });
    for (size_t i = members.size(); i-- > 0;) {
        if (!is_gone(members[i])) continue;
        std::string name = world_.name_of(members[i].node);
        if (!survives && has_everything(members[i].state)) {
            wait(draft, fmt::format("the last whole copy of this group was on {}, which is lost; "
                                    "restore what was on it from a backup",
                                    name));
            continue;
        }
        draft.because(fmt::format("{} is lost", name));
        members.erase(members.begin() + static_cast<long>(i));
    }
}

void Planner::send_away_the_silent(Draft& draft) {
    if (!may_judge_silence_) return;
    for (GroupMember& member : draft.group.members) {
        const PlacementWorld::Node* node = world_.find(member.node);
        bool is_silent = node != nullptr && node->node.presence != Presence::present;
        if (!is_silent || !takes_segments(member.state)) continue;
        // Whoever goes on without it needs a copy to go on with.
        if (holders_here(draft.group) == 0) {
            wait(draft, fmt::format("{} does not answer, and no other node has all of this group; "
                                    "start it again",
                                    world_.name_of(member.node)));
            continue;
        }
        member.state = GroupMemberState::away;
        draft.because(fmt::format("{} does not answer", world_.name_of(member.node)));
    }
}

void Planner::let_go_the_evacuating(Draft& draft) {
    for (GroupMember& member : draft.group.members) {
        const PlacementWorld::Node* node = world_.find(member.node);
        bool is_going = node != nullptr && node->node.state == NodeState::evacuating;
        if (!is_going || member.state != GroupMemberState::full) continue;
        member.state = GroupMemberState::leaving;
        draft.because(fmt::format("{} is being evacuated", world_.name_of(member.node)));
    }
}

// Members that are there already are cheaper than new ones: those on their way out, then those that
// were away and lack only the difference. Returns how many are still missing.
uint32_t Planner::bring_back(Draft& draft, uint32_t missing) {
    struct Way {
        GroupMemberState from;
        GroupMemberState to;
        const char* what;
    };
    constexpr Way kWays[] = {
        {GroupMemberState::leaving, GroupMemberState::full, "stays"},
        {GroupMemberState::away, GroupMemberState::filling, "is back"},
    };
    for (const Way& way : kWays) {
        for (GroupMember& member : draft.group.members) {
            bool fits = member.state == way.from && world_.may_stay(member.node) &&
                        world_.is_here(member.node);
            if (missing == 0 || !fits) continue;
            member.state = way.to;
            --missing;
            draft.because(fmt::format("{} {}", world_.name_of(member.node), way.what));
        }
    }
    return missing;
}

void Planner::make_whole(Draft& draft) {
    GroupRecord& group = draft.group;
    uint32_t present = staying(group);
    if (present >= group.copies) return;
    uint32_t missing = bring_back(draft, group.copies - present);
    for (const GroupMember& member : group.members) {
        const PlacementWorld::Node* node = world_.find(member.node);
        bool holds_its_place = member.state == GroupMemberState::away && node != nullptr &&
                               node->node.presence == Presence::silent &&
                               world_.may_stay(member.node);
        if (missing == 0 || !holds_its_place) continue;
        --missing;
        wait(draft, fmt::format("{} does not answer; it is replaced when that lasts",
                                world_.name_of(member.node)));
    }
    // Without a copy that answers there is nothing to fill another node from.
    if (missing != 0 && holders_here(group) == 0) return;
    for (; missing != 0; --missing) {
        Indexes beside = indexes(group, takes_and_stays);
        std::optional<uint32_t> best =
            world_.best_beside(beside, indexes(group, is_any), group.copies);
        if (!best || group.members.size() >= limits::kGroupMembersMax) {
            wait(draft, fmt::format("{} more node{} that take{} data needed for {} copies: add, "
                                    "start or uncordon one, or free space",
                                    missing, missing == 1 ? "" : "s",
                                    missing == 1 ? "s is" : " are", group.copies));
            return;
        }
        const PlacementNode& node = world_.nodes()[*best].node;
        group.members.push_back({node.id, GroupMemberState::filling});
        draft.added.push_back(node.id);
        draft.because(fmt::format("{} takes a copy", world_.name_of(node.id)));
    }
}

void Planner::drop_the_needless(Draft& draft) {
    auto& members = draft.group.members;
    auto is_whole = [this](const GroupMember& member) {
        return member.state == GroupMemberState::full && world_.is_here(member.node) &&
               world_.may_stay(member.node);
    };
    auto whole = static_cast<uint32_t>(std::ranges::count_if(members, is_whole));
    if (whole < draft.group.copies) return;
    // One more than wished leaves only now: which one, the domains decide, then the space.
    while (whole > draft.group.copies) {
        std::optional<size_t> worst;
        auto worth = [&](size_t i) {
            Indexes rest;
            for (size_t j = 0; j < members.size(); ++j) {
                if (j != i && is_whole(members[j])) {
                    for (uint32_t index : world_.indexes_of({members[j].node}))
                        rest.push_back(index);
                }
            }
            const PlacementWorld::Node* node = world_.find(members[i].node);
            return std::tuple(world_.zones_of(rest), world_.racks_of(rest),
                              1000 - node->free_permille);
        };
        for (size_t i = 0; i < members.size(); ++i) {
            if (is_whole(members[i]) && (!worst || worth(i) > worth(*worst))) worst = i;
        }
        members[*worst].state = GroupMemberState::leaving;
        --whole;
    }
    for (size_t i = members.size(); i-- > 0;) {
        if (is_whole(members[i])) continue;
        const char* what = has_everything(members[i].state) ? "has left" : "is not needed";
        draft.because(fmt::format("{} {}", world_.name_of(members[i].node), what));
        members.erase(members.begin() + static_cast<long>(i));
    }
}

// ---- groups that could lie better ----

bool Planner::is_settled(const GroupRecord& group) const {
    return group.members.size() == group.copies &&
           std::ranges::all_of(group.members, [this](const GroupMember& member) {
               return member.state == GroupMemberState::full && world_.is_here(member.node) &&
                      world_.may_stay(member.node);
           });
}

void Planner::move_all() {
    for (const GroupRecord& group : groups_) {
        moving_ += std::ranges::any_of(group.members, [this](const GroupMember& member) {
            return member.state == GroupMemberState::leaving && world_.may_stay(member.node);
        });
    }
    // Balance waits until nothing has to be spread.
    for (auto better : {&Planner::spread, &Planner::relieve}) {
        bool any = false;
        for (const GroupRecord& group : groups_) {
            if (!has_room() || moving_ >= rules_.moves_max) return;
            Draft draft{group};
            if (!is_settled(group) || !(this->*better)(draft)) continue;
            any = true;
            ++moving_;
            finish(group, std::move(draft));
        }
        if (any) return;
    }
}

bool Planner::replace(Draft& draft, uint32_t leaving, uint32_t coming, std::string why) {
    const PlacementNode& from = world_.nodes()[leaving].node;
    const PlacementNode& to = world_.nodes()[coming].node;
    auto member = std::ranges::find(draft.group.members, from.id, &GroupMember::node);
    member->state = GroupMemberState::leaving;
    draft.group.members.push_back({to.id, GroupMemberState::filling});
    draft.added.push_back(to.id);
    draft.because(
        fmt::format("{}: from {} to {}", why, world_.name_of(from.id), world_.name_of(to.id)));
    return true;
}

bool Planner::spread(Draft& draft) {
    Indexes members = indexes(draft.group, is_any);
    uint32_t zones = world_.zones_of(members);
    uint32_t racks = world_.racks_of(members);
    uint32_t copies = draft.group.copies;
    auto is_elsewhere = [&members](const std::set<uint32_t>& taking, auto domain_of) {
        std::set<uint32_t> here;
        for (uint32_t member : members)
            here.insert(domain_of(member));
        return !std::ranges::includes(here, taking);
    };
    const std::vector<PlacementWorld::Node>& nodes = world_.nodes();
    auto zone_of = [&nodes](uint32_t i) { return nodes[i].zone; };
    auto rack_of = [&nodes](uint32_t i) { return nodes[i].rack; };
    bool may_gain = (zones < copies && is_elsewhere(world_.taking_zones(), zone_of)) ||
                    (racks < copies && is_elsewhere(world_.taking_racks(), rack_of));
    if (!may_gain) return false;
    for (uint32_t leaving : members) {
        Indexes rest = members;
        std::erase(rest, leaving);
        std::optional<uint32_t> coming = world_.best_beside(rest, members, copies);
        if (!coming) continue;
        rest.push_back(*coming);
        auto after = std::pair(world_.zones_of(rest), world_.racks_of(rest));
        if (after <= std::pair(zones, racks)) continue;
        return replace(draft, leaving, *coming,
                       after.first > zones ? "spread over zones" : "spread over racks");
    }
    return false;
}

bool Planner::relieve(Draft& draft) {
    Indexes members = indexes(draft.group, is_any);
    auto domains = std::pair(world_.zones_of(members), world_.racks_of(members));
    for (uint32_t leaving : members) {
        const PlacementWorld::Node& node = world_.nodes()[leaving];
        // An owner there goes on finding groups with itself in them.
        uint32_t copies = draft.group.copies;
        uint32_t kept = std::max(rules_.quota(copies) / 2, 1U);
        if (!world_.is_crowded(leaving)) continue;
        if (world_.groups_of(leaving, copies) <= kept) continue;
        Indexes rest = members;
        std::erase(rest, leaving);
        std::optional<uint32_t> coming;
        for (uint32_t i = 0; i < world_.nodes().size(); ++i) {
            const PlacementWorld::Node& other = world_.nodes()[i];
            if (!other.takes_data || other.free_permille <= rules_.roomy_permille) continue;
            if (has(members, i)) continue;
            Indexes after = rest;
            after.push_back(i);
            if (std::pair(world_.zones_of(after), world_.racks_of(after)) < domains) continue;
            if (!coming || other.free_permille > world_.nodes()[*coming].free_permille) coming = i;
        }
        if (!coming) continue;
        return replace(draft, leaving, *coming,
                       fmt::format("{} has {} % of its space left", world_.name_of(node.node.id),
                                   node.free_permille / 10));
    }
    return false;
}

// ---- groups that are missing ----

void Planner::create_all() {
    for (uint32_t copies : rules_.copies_wanted) {
        if (copies > world_.takers()) continue;
        std::set<uint32_t> exhausted;
        while (has_room()) {
            std::optional<uint32_t> seed;
            uint32_t seed_groups = rules_.quota(copies);
            for (uint32_t i = 0; i < world_.nodes().size(); ++i) {
                const PlacementWorld::Node& node = world_.nodes()[i];
                if (!node.takes_data || exhausted.contains(i)) continue;
                uint32_t groups = world_.groups_of(i, copies);
                // A crowded node's groups move away: another one for it would, too.
                bool is_crowded = world_.is_crowded(i);
                if (groups >= seed_groups || (is_crowded && groups != 0)) continue;
                seed = i;
                seed_groups = groups;
            }
            if (!seed) break;
            if (!create(*seed, copies)) exhausted.insert(*seed);
        }
    }
}

bool Planner::create(uint32_t seed, uint32_t copies) {
    Indexes members = {seed};
    if (copies == 1 && world_.has_set(1, members)) return false;
    // The first group is needed wherever it lies.
    auto wanted = world_.groups_of(seed, copies) == 0 ? PlacementWorld::Wanted::fresh
                                                      : PlacementWorld::Wanted::fresh_roomy;
    while (members.size() < copies) {
        std::optional<uint32_t> best = world_.best_beside(members, {}, copies, wanted);
        if (!best) return false;
        members.push_back(*best);
    }
    auto taking_zones = static_cast<uint32_t>(world_.taking_zones().size());
    auto taking_racks = static_cast<uint32_t>(world_.taking_racks().size());
    if (world_.zones_of(members) < std::min(copies, taking_zones) ||
        world_.racks_of(members) < std::min(copies, taking_racks)) {
        return false;
    }
    GroupEdit edit;
    edit.is_new = true;
    edit.group.copies = copies;
    for (uint32_t member : members) {
        edit.group.members.push_back({world_.nodes()[member].node.id, GroupMemberState::full});
        edit.added.push_back(world_.nodes()[member].node.id);
    }
    edit.reason =
        fmt::format("{} is in too few groups of {} cop{}", world_.name_of(edit.added.front()),
                    copies, copies == 1 ? "y" : "ies");
    world_.add(edit.group);
    plan_.edits.push_back(std::move(edit));
    return true;
}

}  // namespace

Plan plan_changes(std::span<const PlacementNode> nodes,
                  std::span<const control::GroupRecord> groups, const PlacementRules& rules) {
    return Planner(nodes, groups, rules).run();
}

Result<control::GroupRecord> with_filled(control::GroupRecord group, NodeId node) {
    auto member = std::ranges::find(group.members, node, &GroupMember::node);
    if (member == group.members.end() || member->state != GroupMemberState::filling) {
        return fail(Code::conflict, "node {} does not fill a place in group {} any more", node,
                    group.id);
    }
    member->state = GroupMemberState::full;
    ++group.version;
    return group;
}

}  // namespace peplos::fabric
