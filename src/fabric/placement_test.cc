#include "fabric/placement.h"

#include <chrono>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "base/check.h"
#include "fabric/placement_world.h"
#include "sim/random.h"

namespace peplos::fabric {
namespace {

using State = control::GroupMemberState;

constexpr uint64_t kNodeBytes = 4 * kTiB;

PlacementNode make_node(uint64_t id, std::string zone = {}, std::string rack = {}) {
    PlacementNode node;
    node.id = NodeId(id);
    node.name = fmt::format("n{}", id);
    node.zone = std::move(zone);
    node.rack = std::move(rack);
    node.free_bytes = node.total_bytes = kNodeBytes;
    return node;
}

// Nodes and groups; applies plans, and does the work of those who fill groups.
struct Cluster {
    std::vector<PlacementNode> nodes;
    std::vector<GroupRecord> groups;
    PlacementRules rules;
    uint64_t next_group = 1;
    Plan last;

    PlacementNode& node(uint64_t id) {
        auto found = std::ranges::find(nodes, NodeId(id), &PlacementNode::id);
        CHECK(found != nodes.end());
        return *found;
    }
    GroupRecord& group(GroupId id) {
        auto found = std::ranges::find(groups, id, &GroupRecord::id);
        CHECK(found != groups.end());
        return *found;
    }
    void apply(const GroupEdit& edit) {
        EXPECT_FALSE(edit.reason.empty());
        GroupRecord next = edit.group;
        if (edit.is_new) next.id = GroupId(next_group++);
        EXPECT_TRUE(check_record(next)) << check_record(next).error().text();
        if (edit.is_new) {
            groups.push_back(next);
            return;
        }
        EXPECT_EQ(next.version, group(next.id).version + 1);
        group(next.id) = next;
    }
    // One plan, applied. How many edits it had.
    size_t step() {
        last = plan_changes(nodes, groups, rules);
        EXPECT_LE(last.edits.size(), rules.edits_max);
        for (const GroupEdit& edit : last.edits)
            apply(edit);
        return last.edits.size();
    }
    // Where a whole copy and the one that is to become one answer.
    void fill() {
        PlacementWorld world(nodes, rules);
        for (GroupRecord& group : groups) {
            auto is_source = [&world](const GroupMember& member) {
                return has_everything(member.state) && world.is_here(member.node);
            };
            if (std::ranges::none_of(group.members, is_source)) continue;
            for (size_t i = 0; i < group.members.size(); ++i) {
                const GroupMember member = group.members[i];
                if (member.state != State::filling || !world.is_here(member.node)) continue;
                group = *with_filled(group, member.node);
            }
        }
    }
    // Until nothing changes any more.
    void settle() {
        for (int i = 0; i < 3000; ++i) {
            fill();
            if (step() == 0) return;
        }
        ADD_FAILURE() << "plans never end: " << last.edits.front().reason;
    }
    std::vector<const GroupRecord*> groups_of(uint64_t id, uint32_t copies) const {
        std::vector<const GroupRecord*> out;
        for (const GroupRecord& group : groups) {
            if (group.copies == copies && group.find(NodeId(id)) != nullptr) out.push_back(&group);
        }
        return out;
    }
};

Cluster cluster_of(uint64_t count, uint64_t zones = 1, uint64_t racks = 1) {
    Cluster cluster;
    for (uint64_t i = 1; i <= count; ++i) {
        std::string zone = zones > 1 ? fmt::format("z{}", i % zones) : "";
        std::string rack = racks > 1 ? fmt::format("r{}", i / zones % racks) : "";
        cluster.nodes.push_back(make_node(i, zone, rack));
    }
    return cluster;
}

// What the header promises of a cluster in which nothing moves any more.
void expect_settled(const Cluster& cluster) {
    PlacementWorld world(cluster.nodes, cluster.rules);
    for (const GroupRecord& group : cluster.groups)
        world.add(group);
    for (const GroupRecord& group : cluster.groups) {
        PlacementWorld::Indexes good;
        PlacementWorld::Indexes all;
        for (const GroupMember& member : group.members) {
            bool is_good = member.state == State::full && world.is_here(member.node) &&
                           world.may_stay(member.node);
            for (uint32_t index : world.indexes_of({member.node})) {
                all.push_back(index);
                if (is_good) good.push_back(index);
            }
        }
        auto candidate = world.best_beside(good, all, group.copies);
        bool has_source = std::ranges::any_of(group.members, [&world](const GroupMember& member) {
            return has_everything(member.state) && world.is_here(member.node);
        });
        auto waits_for = [&group](const GroupWait& wait) {
            return wait.group == group.id && !wait.reason.empty();
        };
        if (good.size() < group.copies) {
            EXPECT_TRUE(std::ranges::any_of(cluster.last.waits, waits_for))
                << "a group is short and nobody says why";
            bool is_waiting = std::ranges::any_of(group.members, [&world](const auto& member) {
                const PlacementWorld::Node* node = world.find(member.node);
                return node->node.presence == Presence::silent;
            });
            EXPECT_TRUE(!candidate || !has_source || is_waiting) << text_of(group.id);
            continue;
        }
        EXPECT_EQ(group.members.size(), group.copies) << "somebody is left over";
        for (uint32_t leaving : good) {
            PlacementWorld::Indexes rest = good;
            std::erase(rest, leaving);
            auto coming = world.best_beside(rest, good, group.copies);
            if (!coming) continue;
            rest.push_back(*coming);
            EXPECT_LE(world.zones_of(rest), world.zones_of(good));
            if (world.zones_of(rest) == world.zones_of(good)) {
                EXPECT_LE(world.racks_of(rest), world.racks_of(good));
            }
        }
    }
}

TEST(Placement, GivesEachNodeItsGroups) {
    Cluster cluster = cluster_of(24, 3, 4);
    cluster.settle();
    expect_settled(cluster);
    for (const PlacementNode& node : cluster.nodes) {
        EXPECT_EQ(cluster.groups_of(node.id.value, 1).size(), 1u);
        for (uint32_t copies : {2u, 3u}) {
            auto groups = cluster.groups_of(node.id.value, copies);
            EXPECT_GE(groups.size(), cluster.rules.quota(copies));
            EXPECT_LE(groups.size(), cluster.rules.quota(copies) * copies);
            std::set<NodeId> others;
            for (const GroupRecord* group : groups) {
                for (const GroupMember& member : group->members)
                    others.insert(member.node);
            }
            EXPECT_GE(others.size() - 1, cluster.rules.scatter_width - 2) << "too few rebuild it";
        }
    }
    for (const GroupRecord& group : cluster.groups) {
        std::set<std::string> zones;
        for (const GroupMember& member : group.members)
            zones.insert(cluster.node(member.node.value).zone);
        EXPECT_EQ(zones.size(), group.copies);
    }
}

TEST(Placement, KnowsSmallClusters) {
    Cluster one = cluster_of(1);
    one.settle();
    ASSERT_EQ(one.groups.size(), 1u);
    one.nodes.push_back(make_node(2));
    one.settle();
    ASSERT_EQ(one.groups.size(), 3u);
    EXPECT_EQ(one.groups_of(1, 2).size(), 1u);
    one.nodes.push_back(make_node(3));
    one.settle();
    EXPECT_EQ(one.groups_of(1, 2).size(), 2u);
    EXPECT_EQ(one.groups_of(1, 3).size(), 1u);
    EXPECT_EQ(one.groups.size(), 3u + 3u + 1u);
    expect_settled(one);
}

TEST(Placement, RaisesTheCopiesOfTheGroupOfOneNode) {
    Cluster cluster = cluster_of(1);
    cluster.groups.push_back({GroupId(0), 1, {{NodeId(1), State::full}}, 1, 0});
    cluster.settle();
    EXPECT_EQ(cluster.groups.size(), 1u) << "group 0 is the node's group of one copy";
    cluster.nodes.push_back(make_node(2));
    cluster.group(GroupId(0)).copies = 2;
    cluster.step();
    const GroupMember* second = cluster.group(GroupId(0)).find(NodeId(2));
    ASSERT_NE(second, nullptr);
    EXPECT_EQ(second->state, State::filling);
    cluster.settle();
    EXPECT_EQ(cluster.group(GroupId(0)).members.size(), 2u);
    expect_settled(cluster);
}

TEST(Placement, GoesOnWithoutASilentNodeAndTakesItBack) {
    Cluster cluster = cluster_of(4);
    cluster.settle();
    std::vector<GroupRecord> before = cluster.groups;
    cluster.node(2).presence = Presence::silent;
    cluster.settle();
    expect_settled(cluster);
    for (const GroupRecord& group : cluster.groups) {
        const GroupMember* member = group.find(NodeId(2));
        bool was_there = member != nullptr;
        ASSERT_EQ(group.members.size(), group.copies) << "nobody takes its place yet";
        if (was_there) EXPECT_EQ(member->state, group.copies == 1 ? State::full : State::away);
    }
    cluster.node(2).presence = Presence::present;
    cluster.step();
    for (const GroupRecord* group : cluster.groups_of(2, 3))
        EXPECT_EQ(group->find(NodeId(2))->state, State::filling) << "it lacks what came meanwhile";
    cluster.settle();
    for (const GroupRecord& group : before)
        EXPECT_EQ(cluster.group(group.id).members, group.members);
}

TEST(Placement, ReplacesADeadNodeInItsGroupsOnly) {
    Cluster cluster = cluster_of(12, 3);
    cluster.settle();
    std::vector<GroupRecord> before = cluster.groups;
    cluster.node(5).presence = Presence::dead;
    cluster.settle();
    expect_settled(cluster);
    std::set<NodeId> helpers;
    for (const GroupRecord& group : before) {
        const GroupRecord& now = cluster.group(group.id);
        if (group.find(NodeId(5)) == nullptr || group.copies == 1) {
            EXPECT_EQ(now, group) << "it moved for nothing";
            continue;
        }
        EXPECT_EQ(now.find(NodeId(5)), nullptr);
        int kept = 0;
        for (const GroupMember& member : now.members)
            kept += group.find(member.node) != nullptr ? 1 : 0;
        EXPECT_EQ(kept, static_cast<int>(group.copies) - 1);
        for (const GroupMember& member : now.members) {
            if (group.find(member.node) == nullptr) helpers.insert(member.node);
        }
    }
    EXPECT_GE(helpers.size(), 3u) << "one node takes all the load of a rebuild";
}

TEST(Placement, TakesTheRiskiestGroupsFirst) {
    Cluster cluster = cluster_of(9);
    cluster.rules.copies_wanted = {3};
    cluster.settle();
    cluster.node(1).presence = Presence::dead;
    cluster.node(2).presence = Presence::dead;
    Plan plan = plan_changes(cluster.nodes, cluster.groups, cluster.rules);
    auto lost_copies = [](const GroupEdit& edit) {
        return (edit.group.find(NodeId(1)) != nullptr) + (edit.group.find(NodeId(2)) != nullptr);
    };
    std::vector<int> order;
    for (const GroupEdit& edit : plan.edits)
        order.push_back(lost_copies(edit));
    ASSERT_FALSE(order.empty());
    EXPECT_TRUE(std::ranges::is_sorted(order, std::greater<>())) << testing::PrintToString(order);
}

TEST(Placement, EvacuatesWithoutLosingACopyOnTheWay) {
    Cluster cluster = cluster_of(6);
    cluster.settle();
    cluster.node(3).state = NodeState::evacuating;
    cluster.step();
    for (const GroupRecord& group : cluster.groups) {
        auto whole = std::ranges::count_if(
            group.members, [](const auto& member) { return has_everything(member.state); });
        EXPECT_GE(whole, group.copies);
    }
    cluster.settle();
    for (const GroupRecord& group : cluster.groups)
        EXPECT_EQ(group.find(NodeId(3)), nullptr);
    expect_settled(cluster);
}

TEST(Placement, SaysWhatAnEvacuationWaitsFor) {
    Cluster cluster = cluster_of(2);
    cluster.settle();
    cluster.node(1).state = NodeState::evacuating;
    cluster.settle();
    ASSERT_EQ(cluster.groups_of(1, 2).size(), 1u);
    EXPECT_EQ(cluster.groups_of(1, 2).front()->find(NodeId(1))->state, State::leaving);
    ASSERT_FALSE(cluster.last.waits.empty());
    EXPECT_THAT(cluster.last.waits.back().reason, testing::HasSubstr("1 more node"));
    cluster.node(1).state = NodeState::active;
    cluster.settle();
    EXPECT_EQ(cluster.groups_of(1, 2).front()->find(NodeId(1))->state, State::full);
    expect_settled(cluster);
}

TEST(Placement, CordonsWithoutMovingAnything) {
    Cluster cluster = cluster_of(5);
    cluster.settle();
    std::vector<GroupRecord> before = cluster.groups;
    cluster.node(3).state = NodeState::cordoned;
    cluster.settle();
    EXPECT_EQ(cluster.groups, before);
    cluster.nodes.push_back(make_node(6));
    cluster.settle();
    EXPECT_EQ(cluster.groups_of(3, 2).size(),
              static_cast<size_t>(std::ranges::count_if(before, [](const GroupRecord& group) {
                  return group.copies == 2 && group.find(NodeId(3)) != nullptr;
              })));
}

TEST(Placement, KeepsTheLastCopyUntilItIsDeclaredLost) {
    Cluster cluster = cluster_of(3);
    cluster.settle();
    cluster.node(1).presence = Presence::dead;
    cluster.settle();
    const GroupRecord* single = cluster.groups_of(1, 1).front();
    EXPECT_EQ(single->find(NodeId(1))->state, State::full);
    EXPECT_TRUE(std::ranges::any_of(
        cluster.last.waits, [single](const GroupWait& wait) { return wait.group == single->id; }));
    cluster.node(1).state = NodeState::lost;
    cluster.settle();
    EXPECT_TRUE(cluster.groups_of(1, 2).empty());
    ASSERT_EQ(cluster.groups_of(1, 1).size(), 1u);
    EXPECT_THAT(cluster.last.waits.front().reason, testing::HasSubstr("backup"));
}

// Whoever sees nobody else must not give up what all others hold.
TEST(Placement, DoesNotTakeItsOwnIsolationForTheDeathOfAll) {
    Cluster cluster = cluster_of(5);
    cluster.settle();
    for (uint64_t id : {2, 3, 4})
        cluster.node(id).presence = Presence::dead;
    EXPECT_EQ(cluster.step(), 0u);
    cluster.node(4).presence = Presence::present;
    EXPECT_NE(cluster.step(), 0u);
}

TEST(Placement, KeepsAMemberOfWhichNothingIsKnown) {
    Cluster cluster = cluster_of(5);
    cluster.settle();
    std::vector<GroupRecord> before = cluster.groups;
    cluster.nodes.erase(cluster.nodes.begin());
    EXPECT_EQ(cluster.step(), 0u);
    EXPECT_EQ(cluster.groups, before);
}

TEST(Placement, SpreadsOverAZoneThatCameLater) {
    Cluster cluster = cluster_of(6, 2);
    cluster.settle();
    for (uint64_t id : {7, 8})
        cluster.nodes.push_back(make_node(id, "z9"));
    cluster.rules.moves_max = 2;
    cluster.step();
    int moving = 0;
    for (const GroupRecord& group : cluster.groups)
        moving += group.members.size() > group.copies ? 1 : 0;
    EXPECT_EQ(moving, 2);
    cluster.settle();
    expect_settled(cluster);
    for (const GroupRecord& group : cluster.groups) {
        std::set<std::string> zones;
        for (const GroupMember& member : group.members)
            zones.insert(cluster.node(member.node.value).zone);
        EXPECT_EQ(zones.size(), group.copies);
    }
}

TEST(Placement, RelievesACrowdedNode) {
    Cluster cluster = cluster_of(8);
    cluster.settle();
    size_t before = cluster.groups_of(2, 2).size();
    cluster.node(2).free_bytes = kNodeBytes / 10;
    cluster.settle();
    expect_settled(cluster);
    EXPECT_LT(cluster.groups_of(2, 2).size(), before);
    EXPECT_GE(cluster.groups_of(2, 2).size(), cluster.rules.quota(2) / 2);
    EXPECT_EQ(cluster.groups_of(2, 1).size(), 1u);
}

TEST(Placement, CannotEndWithoutSpace) {
    Cluster cluster = cluster_of(4);
    for (PlacementNode& node : cluster.nodes)
        node.free_bytes = 0;
    cluster.settle();
    EXPECT_TRUE(cluster.groups.empty());
    cluster.node(1).total_bytes = 0;
    EXPECT_THAT(why_not_taking(cluster.node(1), cluster.rules), testing::HasSubstr("no device"));
    EXPECT_EQ(why_not_taking(cluster.node(2), cluster.rules), "it is full");
}

// ---- any sequence of events ----

void befall(Cluster& cluster, sim::Random& random, uint64_t& next_node) {
    uint64_t what = random.pick(12);
    if (what == 0 && cluster.nodes.size() < 20) {
        cluster.nodes.push_back(make_node(next_node++, fmt::format("z{}", random.pick(4)),
                                          fmt::format("r{}", random.pick(3))));
        return;
    }
    PlacementNode& node = cluster.nodes[random.pick(cluster.nodes.size())];
    bool is_gone = node.state == NodeState::lost || node.state == NodeState::removed;
    if (is_gone) return;
    if (what <= 3) node.presence = Presence::present;
    if (what == 4) node.presence = Presence::silent;
    if (what == 5) node.presence = Presence::dead;
    if (what == 6) node.state = NodeState::cordoned;
    if (what == 7) node.state = NodeState::evacuating;
    if (what == 8) node.state = NodeState::active;
    if (what == 9) node.free_bytes = random.pick(node.total_bytes + 1);
    if (what == 10) node.free_bytes = node.total_bytes;
    bool may_lose = cluster.nodes.size() > 6 && random.chance(200);
    if (what == 11 && may_lose) node.state = NodeState::lost;
}

TEST(Placement, KeepsItsPromisesAfterAnySequenceOfEvents) {
    for (uint64_t seed = 1; seed <= 60; ++seed) {
        SCOPED_TRACE(seed);
        sim::Random random(seed);
        Cluster cluster = cluster_of(random.between(1, 9), random.between(1, 3));
        uint64_t next_node = 100;
        for (int event = 0; event < 40; ++event) {
            befall(cluster, random, next_node);
            // Some plans see a cluster in which the last one is half done.
            for (uint64_t i = random.pick(4); i != 0; --i) {
                cluster.step();
                if (random.chance(500)) cluster.fill();
            }
            if (!random.chance(250)) continue;
            cluster.settle();
            bool sees_enough =
                plan_changes(cluster.nodes, cluster.groups, cluster.rules).edits.empty();
            EXPECT_TRUE(sees_enough);
            auto here = std::ranges::count_if(cluster.nodes, [](const PlacementNode& node) {
                return node.presence == Presence::present;
            });
            if (static_cast<size_t>(here) * 2 > cluster.nodes.size()) expect_settled(cluster);
        }
        if (HasFailure()) break;
    }
}

TEST(Placement, GivesTheSamePlanWhateverTheOrder) {
    Cluster cluster = cluster_of(15, 3, 2);
    cluster.settle();
    cluster.node(4).presence = Presence::dead;
    Plan plan = plan_changes(cluster.nodes, cluster.groups, cluster.rules);
    std::ranges::reverse(cluster.nodes);
    std::ranges::reverse(cluster.groups);
    Plan again = plan_changes(cluster.nodes, cluster.groups, cluster.rules);
    ASSERT_EQ(plan.edits.size(), again.edits.size());
    for (size_t i = 0; i < plan.edits.size(); ++i)
        EXPECT_EQ(plan.edits[i].group, again.edits[i].group);
}

TEST(Placement, PlansThousandsOfNodesInTime) {
    auto start = std::chrono::steady_clock::now();
    Cluster cluster = cluster_of(2000, 5, 8);
    cluster.rules.copies_wanted = {2};
    cluster.step();
    EXPECT_EQ(cluster.groups.size(), cluster.rules.edits_max);
    // The rest as a plan would make it, in less time.
    for (uint64_t i = 1; i + 11 < 2000; ++i) {
        for (uint64_t j = 1; j <= 4; ++j) {
            if ((i + 2 * j) % 5 == i % 5) continue;
            cluster.groups.push_back({GroupId(cluster.next_group++),
                                      2,
                                      {{NodeId(i), State::full}, {NodeId(i + 2 * j), State::full}},
                                      1,
                                      0});
        }
    }
    cluster.node(7).presence = Presence::dead;
    EXPECT_NE(cluster.step(), 0u);
    EXPECT_LT(std::chrono::steady_clock::now() - start, std::chrono::seconds(60));
}

// ---- choices ----

TEST(ChooseGroup, PrefersTheOwnerAndWholeGroups) {
    Cluster cluster = cluster_of(5);
    cluster.settle();
    sim::Random random(3);
    std::set<GroupId> seen;
    for (int i = 0; i < 200; ++i) {
        auto choice =
            choose_group(cluster.nodes, cluster.groups, {NodeId(2), 2}, cluster.rules, random);
        ASSERT_TRUE(choice);
        EXPECT_TRUE(choice->has_owner);
        EXPECT_FALSE(choice->is_short);
        EXPECT_NE(cluster.group(choice->group).find(NodeId(2)), nullptr);
        seen.insert(choice->group);
    }
    EXPECT_EQ(seen.size(), cluster.groups_of(2, 2).size()) << "several share a later rebuild";
    // The owner's node takes nothing new: elsewhere is better than nowhere.
    cluster.node(2).free_bytes = 0;
    auto choice =
        choose_group(cluster.nodes, cluster.groups, {NodeId(2), 2}, cluster.rules, random);
    ASSERT_TRUE(choice);
    EXPECT_FALSE(choice->has_owner);
}

TEST(ChooseGroup, FollowsTheFreeSpace) {
    Cluster cluster = cluster_of(3);
    cluster.settle();
    cluster.node(3).free_bytes = kNodeBytes / 10;
    sim::Random random(5);
    int scarce = 0;
    for (int i = 0; i < 1000; ++i) {
        auto choice =
            choose_group(cluster.nodes, cluster.groups, {NodeId(1), 2}, cluster.rules, random);
        scarce += cluster.group(choice->group).find(NodeId(3)) != nullptr ? 1 : 0;
    }
    EXPECT_GT(scarce, 40);
    EXPECT_LT(scarce, 160) << "one part in eleven";
}

TEST(ChooseGroup, AvoidsWhomItIsTold) {
    Cluster cluster = cluster_of(3);
    cluster.settle();
    sim::Random random(5);
    std::vector<NodeId> avoid = {NodeId(3)};
    for (int i = 0; i < 50; ++i) {
        auto choice = choose_group(cluster.nodes, cluster.groups, {NodeId(1), 2, avoid},
                                   cluster.rules, random);
        ASSERT_TRUE(choice);
        EXPECT_EQ(cluster.group(choice->group).find(NodeId(3)), nullptr);
    }
    auto none =
        choose_group(cluster.nodes, cluster.groups, {NodeId(1), 3, avoid}, cluster.rules, random);
    ASSERT_FALSE(none);
    EXPECT_EQ(none.error().code(), Code::unavailable);
    EXPECT_THAT(none.error().message(), testing::HasSubstr("3 copies need as many nodes"));
}

TEST(ChooseGroup, IsShortOnlyWhenAllowed) {
    Cluster cluster = cluster_of(3);
    cluster.settle();
    cluster.node(3).presence = Presence::silent;
    cluster.settle();
    sim::Random random(5);
    PlacementWish wish{NodeId(1), 3};
    EXPECT_EQ(
        choose_group(cluster.nodes, cluster.groups, wish, cluster.rules, random).error().code(),
        Code::unavailable);
    wish.may_be_short = true;
    auto choice = choose_group(cluster.nodes, cluster.groups, wish, cluster.rules, random);
    ASSERT_TRUE(choice);
    EXPECT_TRUE(choice->is_short);
}

TEST(ChooseGroup, NamesAFullCluster) {
    Cluster cluster = cluster_of(3);
    cluster.settle();
    for (PlacementNode& node : cluster.nodes)
        node.free_bytes = kNodeBytes / 100;
    sim::Random random(5);
    auto choice =
        choose_group(cluster.nodes, cluster.groups, {NodeId(1), 2}, cluster.rules, random);
    ASSERT_FALSE(choice);
    EXPECT_EQ(choice.error().code(), Code::no_space);
}

TEST(ChooseEnsemble, IsAGroupAndKeepsWhoIsThere) {
    Cluster cluster = cluster_of(7);
    cluster.settle();
    const GroupRecord& group = *cluster.groups_of(2, 3).back();
    std::vector<NodeId> present;
    for (const GroupMember& member : group.members)
        present.push_back(member.node);
    std::vector<NodeId> chosen =
        choose_ensemble(cluster.nodes, cluster.groups, {NodeId(2), 3}, present, cluster.rules);
    EXPECT_EQ(chosen.front(), NodeId(2));
    EXPECT_THAT(chosen, testing::UnorderedElementsAreArray(present));
    // One of them is silent: another one comes, and those that are left stay wherever they can.
    NodeId bad = chosen.back();
    std::vector<NodeId> avoid = {bad};
    std::vector<NodeId> next = choose_ensemble(cluster.nodes, cluster.groups, {NodeId(2), 3, avoid},
                                               present, cluster.rules);
    ASSERT_EQ(next.size(), 3u);
    EXPECT_EQ(next.front(), NodeId(2));
    EXPECT_EQ(std::ranges::find(next, bad), next.end());
}

TEST(ChooseEnsemble, GivesNoneWhereNoneCanBe) {
    Cluster cluster = cluster_of(3);
    cluster.settle();
    std::vector<NodeId> avoid = {NodeId(2)};
    PlacementWish wish{NodeId(1), 3, avoid};
    EXPECT_TRUE(choose_ensemble(cluster.nodes, cluster.groups, wish, {}, cluster.rules).empty());
    wish.may_be_short = true;
    EXPECT_EQ(choose_ensemble(cluster.nodes, cluster.groups, wish, {}, cluster.rules),
              (std::vector<NodeId>{NodeId(1), NodeId(3)}));
    avoid = {NodeId(1)};
    wish.avoid = avoid;
    EXPECT_TRUE(choose_ensemble(cluster.nodes, cluster.groups, wish, {}, cluster.rules).empty())
        << "the owner is in every ensemble";
    avoid = {};
    wish.avoid = avoid;
    cluster.node(1).state = NodeState::evacuating;
    EXPECT_EQ(choose_ensemble(cluster.nodes, cluster.groups, wish, {}, cluster.rules).front(),
              NodeId(1))
        << "it serves until its volumes have moved";
    cluster.node(1).state = NodeState::active;
    // Groups that do not exist yet hold up no journal.
    EXPECT_EQ(choose_ensemble(cluster.nodes, {}, {NodeId(1), 3}, {}, cluster.rules).size(), 3u);
}

}  // namespace
}  // namespace peplos::fabric
