#include "fabric/node_verbs.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

namespace peplos::fabric {
namespace {

using control::NodeState;
using State = control::GroupMemberState;

control::NodeRecord node_in(NodeState state) {
    control::NodeRecord node{NodeId(1), "n1", {}, 1};
    node.state = state;
    return node;
}

// A node that is empty, answers, and has others beside it.
NodeUse nothing() {
    NodeUse use;
    use.other_nodes = 3;
    return use;
}

constexpr NodeState kStates[] = {NodeState::active, NodeState::cordoned, NodeState::evacuating,
                                 NodeState::removed, NodeState::lost};

TEST(NodeVerbs, FollowTheTable) {
    NodeUse dead = nothing();
    dead.is_alive = false;
    struct Line {
        NodeVerb verb;
        // For each of kStates; nullopt: refused.
        std::optional<NodeState> after[5];
    };
    constexpr auto kNo = std::nullopt;
    const Line lines[] = {
        {NodeVerb::cordon,
         {NodeState::cordoned, NodeState::cordoned, NodeState::cordoned, kNo, kNo}},
        {NodeVerb::uncordon, {NodeState::active, NodeState::active, NodeState::active, kNo, kNo}},
        {NodeVerb::evacuate,
         {NodeState::evacuating, NodeState::evacuating, NodeState::evacuating, kNo, kNo}},
        {NodeVerb::remove, {kNo, kNo, NodeState::removed, NodeState::removed, kNo}},
        {NodeVerb::lose, {NodeState::lost, NodeState::lost, NodeState::lost, kNo, NodeState::lost}},
    };
    for (const Line& line : lines) {
        for (size_t i = 0; i < std::size(kStates); ++i) {
            SCOPED_TRACE(fmt::format("{} of a node that is {}", name_of(line.verb),
                                     control::name_of(kStates[i])));
            auto after = after_verb(line.verb, node_in(kStates[i]), dead, Consent::none);
            ASSERT_EQ(after.has_value(), line.after[i].has_value());
            if (after) {
                EXPECT_EQ(*after, *line.after[i]);
            } else {
                EXPECT_EQ(after.error().code(), Code::conflict);
                EXPECT_THAT(after.error().message(), testing::HasSubstr("n1"));
            }
        }
    }
}

TEST(NodeVerbs, RemoveOnlyWhatIsEmpty) {
    NodeUse use = nothing();
    use.groups = 2;
    use.volumes_owned = 1;
    auto refused =
        after_verb(NodeVerb::remove, node_in(NodeState::evacuating), use, Consent::given);
    EXPECT_EQ(refused.error().code(), Code::busy);
    EXPECT_THAT(refused.error().message(), testing::HasSubstr("2 groups, 1 volume that it serves"));
}

TEST(NodeVerbs, LoseNothingThatLives) {
    NodeUse use = nothing();
    auto alive = after_verb(NodeVerb::lose, node_in(NodeState::active), use, Consent::given);
    EXPECT_EQ(alive.error().code(), Code::busy);
    use.is_alive = false;
    use.groups = use.groups_only_here = 1;
    auto costly = after_verb(NodeVerb::lose, node_in(NodeState::active), use, Consent::none);
    EXPECT_EQ(costly.error().code(), Code::permission_denied);
    EXPECT_EQ(after_verb(NodeVerb::lose, node_in(NodeState::active), use, Consent::given),
              NodeState::lost);
    use.other_nodes = 0;
    EXPECT_FALSE(after_verb(NodeVerb::lose, node_in(NodeState::active), use, Consent::given));
    EXPECT_FALSE(after_verb(NodeVerb::evacuate, node_in(NodeState::active), use, Consent::given));
}

TEST(NodeVerbs, CountWhatLiesOnANode) {
    std::vector<control::NodeRecord> nodes = {
        node_in(NodeState::active), {NodeId(2), "n2", {}, 1}, {NodeId(3), "n3", {}, 1}};
    nodes[2].state = NodeState::lost;
    std::vector<control::GroupRecord> groups = {
        {GroupId(1), 1, {{NodeId(1), State::full}}, 1, 0},
        {GroupId(2), 2, {{NodeId(1), State::full}, {NodeId(2), State::filling}}, 1, 0},
        {GroupId(3), 2, {{NodeId(1), State::away}, {NodeId(2), State::full}}, 1, 0},
        {GroupId(4), 1, {{NodeId(2), State::full}}, 1, 0}};
    control::VolumeRecord volume;
    volume.owner = NodeId(1);
    volume.ensemble = {{NodeId(1), {}, {}, {}}};
    control::VolumeRecord other;
    other.owner = NodeId(2);
    other.ensemble = {{NodeId(2), {}, {}, {}}, {NodeId(1), {}, {}, {}}};
    std::vector<control::VolumeRecord> volumes = {volume, other};
    NodeUse use = use_of(NodeId(1), nodes, groups, volumes);
    EXPECT_EQ(use.groups, 3u);
    EXPECT_EQ(use.groups_only_here, 2u);
    EXPECT_EQ(use.volumes_owned, 1u);
    EXPECT_EQ(use.journals, 2u);
    EXPECT_EQ(use.journals_only_here, 1u);
    EXPECT_EQ(use.other_nodes, 1u);
    EXPECT_FALSE(use.is_empty());
}

TEST(NodeVerbs, SayHowFarAnEvacuationIs) {
    NodeUse use = nothing();
    use.groups = 3;
    use.journals = 1;
    control::NodeRecord node = node_in(NodeState::evacuating);
    NodeProgress half = evacuation_progress(node, use, 10, {});
    EXPECT_EQ(half.left, 4u);
    EXPECT_EQ(half.total, 10u);
    EXPECT_EQ(half.waits_for, "3 groups, 1 journal are moving away");
    std::vector<std::string> waits = {"1 more node is needed"};
    EXPECT_EQ(evacuation_progress(node, use, 0, waits).waits_for, waits[0]);
    EXPECT_EQ(evacuation_progress(node, use, 0, {}).total, 4u);
    use.is_alive = false;
    use.groups_only_here = 1;
    EXPECT_THAT(evacuation_progress(node, use, 0, waits).waits_for,
                testing::HasSubstr("does not answer"));
    EXPECT_TRUE(evacuation_progress(node, nothing(), 10, {}).is_done);
    EXPECT_FALSE(evacuation_progress(node_in(NodeState::active), nothing(), 0, {}).is_done);
}

TEST(NodeVerbs, ChangeTheRecordThatTheySaw) {
    auto transaction = verb_transaction(NodeVerb::cordon, node_in(NodeState::active),
                                        control::Revision(4), nothing(), Consent::none);
    ASSERT_TRUE(transaction);
    ASSERT_EQ(transaction->size(), 1u);
    EXPECT_EQ(transaction->front().expected, control::Revision(4));
    auto record = control::decode<control::NodeRecord>(transaction->front().value);
    EXPECT_EQ(record->state, NodeState::cordoned);
}

}  // namespace
}  // namespace peplos::fabric
