#include <fmt/format.h>

#include "swarm/cluster_run.h"

// What breaks under a cluster.
namespace peplos::swarm {

namespace {

// Of a connection that is cut nobody knows when it will be well again.
constexpr Time kUntilHealed = Time::max();

}  // namespace

void ClusterRun::note(std::string line) {
    trace_.add(fmt::format("{:.6f} {}",
                           std::chrono::duration<double>(world_.now() - began_).count(), line));
}

// Something happened to the node just now.
void ClusterRun::disturb(Node& node) {
    if (node.calm_since != kUntilHealed) node.calm_since = world_.now();
}

void ClusterRun::heal() {
    note("network and store are well");
    world_.net().heal();
    store_.set_available(true);
    for (const auto& node : nodes_) {
        node->way.is_open = true;
        if (node->calm_since == kUntilHealed) node->calm_since = world_.now();
    }
}

void ClusterRun::cut_off(Node& node) {
    node.calm_since = kUntilHealed;
}

void ClusterRun::count(ClusterFault fault, const Node& node, std::string_view more) {
    ++report_.counts.faults[std::string(name_of(fault))];
    note(fmt::format("fault: {}: {}{}", name_of(fault), node.name, more));
}

void ClusterRun::inject() {
    uint64_t sum = 0;
    for (uint32_t weight : plan_.fault_weights)
        sum += weight;
    uint64_t drawn = random_.pick(sum);
    size_t chosen = 0;
    while (drawn >= plan_.fault_weights[chosen])
        drawn -= plan_.fault_weights[chosen++];
    auto fault = static_cast<ClusterFault>(chosen);
    Node& node = a_node();
    Node* other = &a_node();
    while (other == &node)
        other = &a_node();
    break_node(fault, node);
    break_way(fault, node, *other);
}

void ClusterRun::break_node(ClusterFault fault, Node& node) {
    switch (fault) {
        case ClusterFault::stop:
            if (node.state != Node::State::up) return;
            ++report_.counts.stops;
            disturb(node);
            node.state = Node::State::stopping;
            node.stops_by = Time::max();  // once it begins
            note(fmt::format("{} is stopped", node.name));
            runtime::spawn(node.process->executor(), stop_node(node, *node.daemon));
            break;
        case ClusterFault::kill:
            if (node.daemon == nullptr) return;
            ++report_.counts.kills;
            end_daemon(node, EndOfLife::kill);
            break;
        case ClusterFault::power_loss:
            ++report_.counts.power_losses;
            end_daemon(node, EndOfLife::power_loss);
            break;
        case ClusterFault::all_power_loss:
            for (const auto& one : nodes_) {
                ++report_.counts.power_losses;
                end_daemon(*one, EndOfLife::power_loss);
            }
            break;
        case ClusterFault::pause: {
            if (node.daemon == nullptr) return;
            Duration length = std::chrono::milliseconds(random_.between(1'000, 120'000));
            count(fault, node);
            world_.pause(*node.process, length);
            node.paused_until = std::max(node.paused_until, world_.now() + length);
            disturb(node);
            break;
        }
        case ClusterFault::store_away:
            count(fault, node);
            node.way.is_open = false;
            cut_off(node);
            break;
        case ClusterFault::store_outage:
            count(fault, node);
            store_.set_available(false);
            for (const auto& one : nodes_)
                cut_off(*one);
            break;
        default:
            break;
    }
}

void ClusterRun::break_way(ClusterFault fault, Node& node, Node& other) {
    switch (fault) {
        case ClusterFault::partition:
            count(fault, node, ", " + other.name);
            world_.net().partition(*node.process, *other.process);
            cut_off(node);
            cut_off(other);
            break;
        case ClusterFault::one_way:
            count(fault, node, ", " + other.name);
            world_.net().partition_one_way(*node.process, *other.process);
            cut_off(node);
            cut_off(other);
            break;
        case ClusterFault::isolation:
            count(fault, node, ", " + other.name);
            for (const auto& one : nodes_) {
                if (one.get() == &node) continue;
                world_.net().partition(*node.process, *one->process);
                cut_off(*one);
            }
            cut_off(node);
            break;
        case ClusterFault::reset:
            count(fault, node, ", " + other.name);
            world_.net().reset(*node.process, *other.process);
            break;
        case ClusterFault::half_open:
            count(fault, node, ", " + other.name);
            world_.net().half_open(*node.process, *other.process);
            break;
        default:
            break;
    }
}

}  // namespace peplos::swarm
