#include "fabric/node_verbs.h"

#include <algorithm>

#include "base/check.h"

namespace peplos::fabric {
namespace {

using control::NodeState;

std::string counted(uint32_t count, const char* one, const char* many) {
    return fmt::format("{} {}", count, count == 1 ? one : many);
}

// "3 groups, 1 journal": what lies on a node.
std::string listed(const NodeUse& use) {
    std::string out;
    auto add = [&out](uint32_t count, const char* one, const char* many) {
        if (count == 0) return;
        if (!out.empty()) out += ", ";
        out += counted(count, one, many);
    };
    add(use.groups, "group", "groups");
    add(use.journals, "journal", "journals");
    add(use.volumes_owned, "volume that it serves", "volumes that it serves");
    return out;
}

std::unexpected<Error> not_from(NodeVerb verb, const control::NodeRecord& node,
                                std::string_view advice) {
    return fail(Code::conflict, "node {} is {}: {} does nothing to it; {}", node.name,
                name_of(node.state), name_of(verb), advice);
}

Result<NodeState> after_remove(const control::NodeRecord& node, const NodeUse& use) {
    if (node.state != NodeState::evacuating) {
        return fail(Code::conflict,
                    "node {} is {}, and only an evacuated node can be removed: peplos node "
                    "evacuate {}",
                    node.name, name_of(node.state), node.name);
    }
    if (!use.is_empty()) {
        return fail(Code::busy,
                    "node {} still has {}: wait for its evacuation (peplos node show {})",
                    node.name, listed(use), node.name);
    }
    return NodeState::removed;
}

Result<NodeState> after_lose(const control::NodeRecord& node, const NodeUse& use, Consent consent) {
    if (use.other_nodes == 0) {
        return fail(Code::conflict, "node {} is the only one of this cluster", node.name);
    }
    if (use.is_alive) {
        return fail(Code::busy,
                    "node {} answers: nothing of it is lost; peplos node evacuate {} empties it, "
                    "or stop its peplosd first",
                    node.name, node.name);
    }
    bool costs_data = use.groups_only_here != 0 || use.journals_only_here != 0;
    if (costs_data && consent != Consent::given) {
        return fail(Code::permission_denied,
                    "{} and {} have their only copy on node {}: declared lost, these data are gone "
                    "for ever; start the node again, or repeat with --accept-loss",
                    counted(use.groups_only_here, "group", "groups"),
                    counted(use.journals_only_here, "journal", "journals"), node.name);
    }
    return NodeState::lost;
}

}  // namespace

std::string_view name_of(NodeVerb verb) {
    switch (verb) {
        case NodeVerb::cordon:
            return "cordon";
        case NodeVerb::uncordon:
            return "uncordon";
        case NodeVerb::evacuate:
            return "evacuate";
        case NodeVerb::remove:
            return "remove";
        case NodeVerb::lose:
            return "lost";
    }
    CHECK(false, "an unknown verb: {}", static_cast<int>(verb));
    return {};
}

NodeUse use_of(NodeId node, std::span<const control::NodeRecord> nodes,
               std::span<const control::GroupRecord> groups,
               std::span<const control::VolumeRecord> volumes) {
    NodeUse use;
    for (const control::NodeRecord& other : nodes) {
        bool is_member = other.state != NodeState::lost && other.state != NodeState::removed;
        use.other_nodes += other.id != node && is_member ? 1 : 0;
    }
    for (const control::GroupRecord& group : groups) {
        const control::GroupMember* member = group.find(node);
        if (member == nullptr) continue;
        ++use.groups;
        bool is_elsewhere =
            std::ranges::any_of(group.members, [node](const control::GroupMember& other) {
                return other.node != node && has_everything(other.state);
            });
        use.groups_only_here += is_elsewhere ? 0 : 1;
    }
    for (const control::VolumeRecord& volume : volumes) {
        use.volumes_owned += volume.owner == node ? 1 : 0;
        auto member = std::ranges::find(volume.ensemble, node, &control::EnsembleMember::node);
        if (member == volume.ensemble.end()) continue;
        ++use.journals;
        use.journals_only_here += volume.ensemble.size() == 1 ? 1 : 0;
    }
    return use;
}

Result<NodeState> after_verb(NodeVerb verb, const control::NodeRecord& node, const NodeUse& use,
                             Consent consent) {
    if (node.state == NodeState::removed || node.state == NodeState::lost) {
        bool is_repeat = (verb == NodeVerb::remove && node.state == NodeState::removed) ||
                         (verb == NodeVerb::lose && node.state == NodeState::lost);
        if (is_repeat) return node.state;
        return not_from(verb, node, "that is for ever: the machine can join as a new node");
    }
    switch (verb) {
        case NodeVerb::cordon:
            return NodeState::cordoned;
        case NodeVerb::uncordon:
            return NodeState::active;
        case NodeVerb::evacuate:
            if (use.other_nodes == 0) {
                return fail(Code::conflict,
                            "node {} is the only one of this cluster: its data have nowhere to go; "
                            "add a node first (peplos join)",
                            node.name);
            }
            return NodeState::evacuating;
        case NodeVerb::remove:
            return after_remove(node, use);
        case NodeVerb::lose:
            return after_lose(node, use, consent);
    }
    CHECK(false, "an unknown verb: {}", static_cast<int>(verb));
    return node.state;
}

Result<control::Transaction> verb_transaction(NodeVerb verb, control::NodeRecord node,
                                              control::Revision expected, const NodeUse& use,
                                              Consent consent) {
    TRY_ASSIGN(node.state, after_verb(verb, node, use, consent));
    TRY_ASSIGN(std::string value, encode(node));
    return control::Transaction{
        control::put(control::node_key(node.id), expected, std::move(value))};
}

NodeProgress evacuation_progress(const control::NodeRecord& node, const NodeUse& use,
                                 uint32_t began_with, std::span<const std::string> group_waits) {
    NodeProgress progress;
    progress.left = use.groups + use.journals + use.volumes_owned;
    progress.total = std::max(began_with, progress.left);
    if (node.state == NodeState::removed) {
        progress.is_done = true;
        return progress;
    }
    if (node.state != NodeState::evacuating) {
        progress.waits_for = fmt::format("node {} is {}, not being evacuated", node.name,
                                         control::name_of(node.state));
    } else if (progress.left == 0) {
        progress.is_done = true;
    } else if (!use.is_alive && use.groups_only_here != 0) {
        progress.waits_for =
            fmt::format("node {} does not answer, and {} only it has: start it", node.name,
                        counted(use.groups_only_here, "group", "groups"));
    } else if (!group_waits.empty()) {
        progress.waits_for = group_waits.front();
    } else {
        progress.waits_for = fmt::format("{} are moving away", listed(use));
    }
    return progress;
}

}  // namespace peplos::fabric
