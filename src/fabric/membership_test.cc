#include "fabric/membership.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "control/memory_store.h"
#include "fabric/maintainer.h"
#include "sim/world.h"

namespace peplos::fabric {
namespace {

using control::GroupRecord;
using control::MemoryStore;
using control::NodeState;
using State = control::GroupMemberState;
using std::chrono::milliseconds;
using std::chrono::minutes;
using std::chrono::seconds;

MembershipOptions test_options() {
    MembershipOptions options;
    options.silent_after = seconds(10);
    options.dead_after = seconds(60);
    return options;
}

// One simulated daemon, as far as it takes part here.
struct TestNode {
    TestNode(sim::Process& of, NodeId as, control::Store& store)
        : process(of),
          id(as),
          liveness(of.env().clock),
          membership(of.env(), as, store, liveness, test_options()),
          maintainer(of.env(), store, membership, liveness) {}

    sim::Process& process;
    NodeId id;
    LivenessTable liveness;
    Membership membership;
    Maintainer maintainer;
};

class MembershipTest : public testing::Test {
  public:
    MembershipTest() : world(7) {}
    ~MembershipTest() override {
        for (auto& node : nodes) {
            if (node->process.is_alive()) world.kill(node->process);
        }
        nodes.clear();
    }

    void set(control::Transaction transaction) {
        auto applied = world.run(store.compare_and_set(std::move(transaction)));
        ASSERT_TRUE(applied) << applied.error().text();
    }
    static control::NodeRecord node_record(uint64_t id) {
        return {NodeId(id), fmt::format("n{}", id), {fmt::format("10.0.0.{}:7400", id)}, 1};
    }
    static control::DeviceRecord device_record(uint64_t id) {
        control::DeviceRecord device;
        device.id.bytes = {static_cast<uint8_t>(id), 1};
        device.node = NodeId(id);
        device.path = "/dev/x";
        device.bytes = kTiB;
        device.incarnation = Incarnation(100 + id);
        return device;
    }
    void record_node(uint64_t id) {
        set({control::create(control::node_key(NodeId(id)), *encode(node_record(id))),
             control::create(control::device_key(device_record(id).id),
                             *encode(device_record(id)))});
    }
    void record_group(GroupRecord group) {
        set({control::put(control::group_key(group.id), std::nullopt, *encode(group))});
    }
    void set_state(uint64_t id, NodeState state) {
        control::NodeRecord record = node_record(id);
        record.state = state;
        set({control::put(control::node_key(NodeId(id)), std::nullopt, *encode(record))});
    }
    // Starts the daemon of a node that is on record.
    TestNode& boot(uint64_t id) {
        sim::Process& process = world.start(fmt::format("n{}", id));
        nodes.push_back(std::make_unique<TestNode>(process, NodeId(id), store));
        nodes.back()->membership.start();
        return *nodes.back();
    }
    void boot_cluster(uint64_t count) {
        for (uint64_t id = 1; id <= count; ++id)
            record_node(id);
        for (uint64_t id = 1; id <= count; ++id)
            boot(id).maintainer.start();
    }
    // Time passes; whoever lives hears whoever lives, but for one pair.
    void advance(Duration duration, NodeId deaf = {}, NodeId mute = {}) {
        for (Time end = world.now() + duration; world.now() < end;) {
            for (auto& to : nodes) {
                for (auto& from : nodes) {
                    bool is_cut = (to->id == deaf && from->id == mute) ||
                                  (to->id == mute && from->id == deaf);
                    if (from->process.is_alive() && !is_cut) to->liveness.heard(from->id);
                }
            }
            world.run_for(seconds(1));
        }
    }
    std::vector<GroupRecord> stored_groups() {
        auto page = world.run(control::list_all(store, std::string(control::kGroupPrefix)));
        std::vector<GroupRecord> out;
        for (const control::KeyValue& entry : page->entries)
            out.push_back(*control::decode<GroupRecord>(entry.value));
        return out;
    }
    // What the keeper does: copies whatever is missing.
    void fill_groups() {
        for (const GroupRecord& group : stored_groups()) {
            GroupRecord filled = group;
            for (const control::GroupMember& member : group.members) {
                if (member.state == State::filling) filled = *with_filled(filled, member.node);
            }
            if (filled != group) record_group(filled);
        }
    }
    size_t maintainers() {
        return static_cast<size_t>(std::ranges::count_if(nodes, [](const auto& node) {
            return node->process.is_alive() && node->maintainer.is_maintainer();
        }));
    }
    void expect_all_see_the_store() {
        std::vector<GroupRecord> groups = stored_groups();
        for (auto& node : nodes) {
            if (!node->process.is_alive()) continue;
            EXPECT_TRUE(node->membership.is_current()) << node->membership.why_not_current();
            EXPECT_EQ(node->membership.placement_groups(), groups);
        }
    }

    MemoryStore store;
    sim::World world;
    std::vector<std::unique_ptr<TestNode>> nodes;
};

TEST_F(MembershipTest, KeepsItsViewWhileTheStoreIsAway) {
    record_node(1);
    record_node(2);
    Membership& view = boot(1).membership;
    EXPECT_FALSE(view.is_known());
    EXPECT_EQ(view.choose_group(VolumeId(1), 1, {}).error().code(), Code::unavailable);
    world.run_for(seconds(1));
    EXPECT_TRUE(view.is_current());
    EXPECT_EQ(view.others(), std::vector<NodeId>{NodeId(2)});
    store.set_available(false);
    world.run_for(minutes(10));
    EXPECT_FALSE(view.is_current());
    EXPECT_TRUE(view.is_known());
    EXPECT_THAT(view.why_not_current(), testing::HasSubstr("control store"));
    EXPECT_EQ(view.nodes().rows().size(), 2u);
    store.set_available(true);
    record_node(3);
    world.run_for(seconds(5));
    EXPECT_TRUE(view.is_current());
    EXPECT_EQ(view.nodes().rows().size(), 3u);
    uint64_t seen = view.change_count();
    set_state(3, NodeState::removed);
    world.run_for(milliseconds(100));
    EXPECT_NE(view.change_count(), seen);
    EXPECT_EQ(view.others(), std::vector<NodeId>{NodeId(2)});
    EXPECT_TRUE((world.run(nodes[0]->process, view.stop()), true));
}

TEST_F(MembershipTest, SeesAStoreThatWasPutBack) {
    record_node(1);
    record_group({GroupId(5), 1, {{NodeId(1), State::full}}, 1, 0});
    Membership& view = boot(1).membership;
    world.run_for(seconds(1));
    MemoryStore::Backup backup = store.backup();
    record_node(2);
    GroupRecord changed{GroupId(5), 2, {{NodeId(1), State::full}, {NodeId(2), State::full}}, 2, 0};
    record_group(changed);
    record_group({GroupId(6), 1, {{NodeId(2), State::full}}, 1, 0});
    world.run_for(seconds(1));
    EXPECT_EQ(view.placement_groups().size(), 2u);
    store.set_available(false);
    world.run_for(seconds(5));
    store.restore(backup);
    store.set_available(true);
    world.run_for(seconds(5));
    ASSERT_TRUE(view.is_current());
    ASSERT_EQ(view.placement_groups().size(), 1u);
    EXPECT_EQ(view.placement_groups()[0].version, 1u);
    EXPECT_TRUE(view.others().empty());
    // Its revisions come a second time, and count.
    record_node(2);
    world.run_for(seconds(1));
    EXPECT_EQ(view.others().size(), 1u);
}

TEST_F(MembershipTest, ListsAnewWhenItFellBehind) {
    record_node(1);
    Membership& view = boot(1).membership;
    world.run_for(seconds(1));
    auto flood = [](control::Store& to) -> Task<void> {
        uint32_t count = limits::kStoreHistoryEventsMax / limits::kStoreTransactionKeysMax + 1;
        for (uint32_t i = 0; i < count; ++i) {
            control::Transaction transaction;
            for (uint32_t j = 0; j < limits::kStoreTransactionKeysMax; ++j)
                transaction.push_back(control::put(fmt::format("x/{}", j), std::nullopt, ""));
            Result<control::Revision> set = co_await to.compare_and_set(std::move(transaction));
            CHECK(set.has_value());
        }
        std::string record = *encode(node_record(2));
        control::Transaction last = {control::create(control::node_key(NodeId(2)), record)};
        CHECK((co_await to.compare_and_set(std::move(last))).has_value());
    };
    world.run(flood(store));
    world.run_for(seconds(2));
    EXPECT_TRUE(view.is_current());
    EXPECT_EQ(view.others().size(), 1u);
}

TEST_F(MembershipTest, KeepsWhatItKnewOfARecordThatItCannotRead) {
    record_node(1);
    record_node(2);
    Membership& view = boot(1).membership;
    world.run_for(seconds(1));
    std::string key = control::node_key(NodeId(2));
    set({control::put(key, std::nullopt, R"({"record_version":99})")});
    set({control::put(control::node_key(NodeId(3)), std::nullopt, "what")});
    set({control::put(control::node_key(NodeId(4)), std::nullopt, *encode(node_record(5)))});
    world.run_for(seconds(1));
    ASSERT_EQ(view.nodes().rows().size(), 2u);
    EXPECT_EQ(view.nodes().find(key)->record, node_record(2));
    store.set_available(false);
    world.run_for(seconds(3));
    store.set_available(true);
    world.run_for(seconds(3));
    EXPECT_NE(view.nodes().find(key), nullptr);
    set_state(2, NodeState::cordoned);
    world.run_for(seconds(1));
    EXPECT_EQ(view.nodes().find(key)->record.state, NodeState::cordoned);
}

TEST_F(MembershipTest, ChoosesForSegmentsAndJournals) {
    for (uint64_t id : {1, 2, 3})
        record_node(id);
    Membership& view = boot(1).membership;
    EXPECT_TRUE(view.nodes_of(GroupId(0)).empty());
    world.run_for(seconds(1));
    EXPECT_TRUE(view.nodes_of(GroupId(0)).empty()) << "it is not alone";
    record_group({GroupId(5),
                  2,
                  {{NodeId(3), State::filling}, {NodeId(2), State::away}, {NodeId(1), State::full}},
                  1,
                  0});
    world.run_for(seconds(1));
    EXPECT_EQ(view.nodes_of(GroupId(5)), (std::vector<NodeId>{NodeId(1), NodeId(3)}));
    auto group = view.choose_group(VolumeId(1), 2, {});
    ASSERT_TRUE(group) << group.error().text();
    EXPECT_EQ(*group, GroupId(5));
    replica::Members members = view.choose(VolumeId(1), 2, {}, {});
    ASSERT_EQ(members.size(), 2u);
    EXPECT_EQ(members[0].node, NodeId(1));
    EXPECT_EQ(members[0].device, device_record(1).id);
    EXPECT_EQ(members[1].node, NodeId(3));
    members[1].token = OpenToken(9);
    EXPECT_EQ(view.choose(VolumeId(1), 2, members, {})[1], members[1]) << "it stays as it is";
    members[1].incarnation = Incarnation(1);
    EXPECT_EQ(view.choose(VolumeId(1), 2, members, {})[1].incarnation, Incarnation(103));
    std::vector<NodeId> avoid = {NodeId(2), NodeId(3)};
    EXPECT_TRUE(view.choose(VolumeId(1), 2, members, avoid).empty());
    control::DeviceRecord device = device_record(1);
    for (auto [state, size] : {std::pair(control::DeviceState::draining, 2u),
                               std::pair(control::DeviceState::failed, 0u)}) {
        device.state = state;
        set({control::put(control::device_key(device.id), std::nullopt, *encode(device))});
        world.run_for(seconds(1));
        EXPECT_EQ(view.choose(VolumeId(1), 2, {}, {}).size(), size);
    }
}

TEST_F(MembershipTest, IsAloneAtFirst) {
    record_node(1);
    Membership& view = boot(1).membership;
    world.run_for(seconds(1));
    EXPECT_EQ(view.nodes_of(GroupId(0)), std::vector<NodeId>{NodeId(1)});
    EXPECT_TRUE(view.nodes_of(GroupId(7)).empty());
}

// ---- the maintainer ----

TEST_F(MembershipTest, MakesGroupsAndReplacesTheDead) {
    boot_cluster(5);
    advance(seconds(30));
    EXPECT_EQ(maintainers(), 1u);
    expect_all_see_the_store();
    PlacementRules rules;
    for (auto& node : nodes) {
        std::map<uint32_t, uint32_t> counts;
        for (const GroupRecord& group : stored_groups())
            counts[group.copies] += group.find(node->id) != nullptr ? 1 : 0;
        EXPECT_EQ(counts[1], 1u);
        EXPECT_EQ(counts[2], 4u) << "every pair of five nodes";
        EXPECT_GE(counts[3], rules.quota(3));
    }
    // The maintainer itself dies.
    NodeId dead;
    for (auto& node : nodes) {
        if (!node->maintainer.is_maintainer()) continue;
        dead = node->id;
        world.kill(node->process);
    }
    advance(seconds(40));
    EXPECT_EQ(maintainers(), 1u);
    for (const GroupRecord& group : stored_groups()) {
        EXPECT_EQ(group.members.size(), group.copies) << "its places are kept for it";
        const control::GroupMember* member = group.find(dead);
        State expected = group.copies == 1 ? State::full : State::away;
        if (member != nullptr) EXPECT_EQ(member->state, expected);
    }
    advance(seconds(40));
    fill_groups();
    advance(seconds(10));
    fill_groups();
    advance(seconds(10));
    for (const GroupRecord& group : stored_groups()) {
        auto full = std::ranges::count(group.members, State::full, &control::GroupMember::state);
        EXPECT_EQ(full, group.copies);
        EXPECT_EQ(group.members.size(), group.copies);
    }
    expect_all_see_the_store();
}

TEST_F(MembershipTest, SettlesAfterAnyWeather) {
    store.set_weather(
        {.unavailable_permille = 150, .unknown_permille = 150, .delay_max = milliseconds(50)},
        world.random(), world.env().clock);
    for (uint64_t id = 1; id <= 6; ++id) {
        std::string node = *encode(node_record(id));
        std::string device = *encode(device_record(id));
        bool is_there = false;
        while (!is_there) {
            (void)world.run(store.compare_and_set(
                {control::put(control::node_key(NodeId(id)), std::nullopt, node),
                 control::put(control::device_key(device_record(id).id), std::nullopt, device)}));
            auto entry = world.run(store.get(control::node_key(NodeId(id))));
            is_there = entry && entry->has_value();
        }
        boot(id).maintainer.start();
    }
    advance(minutes(3));
    world.kill(nodes[0]->process);
    advance(minutes(3));
    store.set_weather({}, world.random(), world.env().clock);
    for (int i = 0; i < 10; ++i) {
        fill_groups();
        advance(seconds(10));
    }
    EXPECT_EQ(maintainers(), 1u);
    expect_all_see_the_store();
    auto& survivor = *nodes[3];
    Plan plan = plan_changes(survivor.membership.placement_nodes(),
                             survivor.membership.placement_groups(), PlacementRules{});
    EXPECT_TRUE(plan.edits.empty()) << plan.edits.front().reason;
}

// Two nodes that do not hear each other take the office from each other, again and again.
TEST_F(MembershipTest, TwoMaintainersDoNoHarm) {
    boot_cluster(4);
    advance(minutes(5), NodeId(1), NodeId(2));
    record_node(5);
    boot(5).maintainer.start();
    advance(minutes(5), NodeId(1), NodeId(2));
    fill_groups();
    advance(minutes(5));
    fill_groups();
    advance(seconds(30));
    EXPECT_EQ(maintainers(), 1u);
    std::set<std::set<NodeId>> sets;
    for (const GroupRecord& group : stored_groups()) {
        std::set<NodeId> set;
        for (const control::GroupMember& member : group.members)
            set.insert(member.node);
        EXPECT_EQ(set.size(), group.copies);
        sets.insert(set);
    }
    EXPECT_EQ(sets.size(), stored_groups().size()) << "no set was made twice";
    expect_all_see_the_store();
}

TEST_F(MembershipTest, EmptiesANodeThatIsEvacuated) {
    boot_cluster(5);
    advance(seconds(20));
    set_state(4, NodeState::evacuating);
    for (int i = 0; i < 4; ++i) {
        advance(seconds(10));
        fill_groups();
    }
    advance(seconds(10));
    for (const GroupRecord& group : stored_groups())
        EXPECT_EQ(group.find(NodeId(4)), nullptr);
    expect_all_see_the_store();
}

TEST_F(MembershipTest, FiftyNodesAtRestWriteNothing) {
    boot_cluster(50);
    advance(seconds(60));
    EXPECT_EQ(maintainers(), 1u);
    expect_all_see_the_store();
    control::Revision before = store.revision();
    advance(minutes(10));
    EXPECT_EQ(store.revision(), before);
    EXPECT_EQ(maintainers(), 1u);
}

}  // namespace
}  // namespace peplos::fabric
