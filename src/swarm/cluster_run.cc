#include "swarm/cluster_run.h"

#include <fmt/format.h>
#include <stdexcept>

namespace peplos::swarm {

namespace {

constexpr uint64_t kClusterWorkStream = 0x3042;
constexpr ClusterId kCluster{7};
// With the faults over, whatever is pending ends within this much simulated time.
constexpr Duration kClusterPatience = std::chrono::minutes(20);
constexpr Duration kStopMax = std::chrono::minutes(10);
constexpr Duration kBootDelayMax = std::chrono::seconds(40);
constexpr int kStepsMax = 40'000;

sim::WorldOptions world_options_of(const ClusterPlan& plan) {
    sim::WorldOptions options;
    options.order = plan.order;
    options.disk = plan.disk;
    options.net = plan.net;
    return options;
}

std::string address_of(const std::string& name) {
    return name + ":7668";
}

}  // namespace

// Ends a run from anywhere outside coroutines.
class ClusterRun::Failed : public std::runtime_error {
  public:
    using std::runtime_error::runtime_error;
};

ClusterRun::ClusterRun(uint64_t seed, ClusterPlan plan, Trace& trace)
    : plan_(std::move(plan)),
      trace_(trace),
      world_(seed, world_options_of(plan_)),
      random_(seed, kClusterWorkStream),
      began_(world_.now()) {
    prepare_sites(world_.faults(), plan_.planted, plan_.site_permille);
}

// Frames before the objects that they use.
ClusterRun::~ClusterRun() {
    for (const auto& node : nodes_) {
        if (node->daemon == nullptr) continue;
        if (node->process->is_alive()) world_.kill(*node->process);
        node->host.lose_daemon();
        node->daemon.reset();
    }
}

RunReport ClusterRun::execute() {
    try {
        give_birth();
        live();
        finish();
    } catch (const std::exception& error) {
        report_.problem = error.what();
        note(state());
    }
    report_.event_hash = world_.event_hash();
    report_.counts.events = world_.event_count();
    report_.counts.simulated = world_.now() - began_;
    report_.counts.operations = operation_count();
    report_.counts.probes = world_.faults().probes();
    report_.counts.passes = world_.faults().passes();
    return report_;
}

// ---- nodes ----

void ClusterRun::give_birth() {
    control::ClusterRecord cluster;
    cluster.id = kCluster;
    control::Transaction birth{
        control::create(std::string(control::kClusterKey), *control::encode(cluster))};
    for (uint64_t i = 1; i <= plan_.node_count; ++i) {
        auto node = std::make_unique<Node>(NodeId(i), fmt::format("node{}", i),
                                           sim::Random(world_.seed(), 0x5000 + i));
        control::NodeRecord record;
        record.id = node->id;
        record.name = node->name;
        record.addresses = {address_of(node->name)};
        birth.push_back(control::create(control::node_key(record.id), *control::encode(record)));
        nodes_.push_back(std::move(node));
    }
    if (!world_.run(store_.compare_and_set(std::move(birth)))) throw Failed("no cluster is born");
    for (const auto& node : nodes_)
        boot(*node);
    wait_until("the first start of every node", [this] {
        return are_all_up() &&
               std::ranges::all_of(nodes_, [](const auto& node) { return node->has_device; });
    });
    for (uint64_t i = 1; i <= plan_.volume_count; ++i) {
        auto volume = std::make_unique<Volume>();
        volume->number = i;
        volume->name = fmt::format("v{}", i);
        volume->bytes = random_.between(1, plan_.volume_bytes_max / kMiB) * kMiB;
        volume->copies = static_cast<uint32_t>(random_.between(2, plan_.copies_max));
        volume->history = std::make_unique<History>(i, volume->bytes);
        volumes_.push_back(std::move(volume));
    }
    for (const auto& node : nodes_) {
        node->way.unavailable_permille = plan_.store_unavailable_permille;
        node->way.unknown_permille = plan_.store_unknown_permille;
        node->way.delay_max = plan_.store_delay_max;
        node->way.watch_lag_max = plan_.watch_lag_max;
    }
}

fabric::LocalNodeOptions ClusterRun::options_of(const Node& node, sim::Process& process) const {
    fabric::LocalNodeOptions options;
    options.name = node.name;
    options.id = node.id;
    options.devices.overlay_bytes = plan_.overlay_bytes;
    options.devices.leaf_cache_bytes = plan_.leaf_cache_bytes;
    options.cluster = fabric::ClusterOptions();
    options.cluster->self = {
        .cluster = kCluster, .node = node.id, .boot = NodeBoot(process.env().rng.next_id())};
    options.cluster->listen = address_of(node.name);
    return options;
}

void ClusterRun::boot(Node& node) {
    node.process = &world_.start(node.name);
    runtime::Env& env = node.process->env();
    node.store = std::make_unique<ReachableStore>(env, store_, node.way);
    node.daemon = std::make_unique<SimDaemon>(env, *node.store, options_of(node, *node.process),
                                              plan_.keeper, node.host);
    node.state = Node::State::starting;
    runtime::spawn(node.process->executor(), start_node(node, *node.daemon));
}

Task<void> ClusterRun::start_node(Node& node, SimDaemon& daemon) {
    Result<void> started = co_await daemon.node.start();
    note(fmt::format("{} started: {}", node.name, started ? "ok" : started.error().text()));
    if (started && !node.has_device) co_await add_device(node, daemon);
    if (started && node.state == Node::State::starting) {
        node.state = Node::State::up;
        node.calm_since = world_.now();
        co_return;
    }
    bool is_store = started || started.error().code() == Code::unavailable ||
                    started.error().code() == Code::outcome_unknown;
    if (!is_store) fail_with(node.name + " does not start: " + started.error().text());
    if (node.state == Node::State::starting) co_await stop_node(node, daemon);
}

Task<void> ClusterRun::add_device(Node& node, SimDaemon& daemon) {
    auto added = co_await daemon.node.add_device("/disk-" + node.name, plan_.device_bytes, "ssd");
    if (!added) co_return fail_with("adding a device: " + added.error().text());
    node.has_device = true;
}

Task<void> ClusterRun::stop_node(Node& node, SimDaemon& daemon) {
    node.state = Node::State::stopping;
    node.stops_by = world_.now() + kStopMax;
    co_await daemon.stop();
    co_await node.host.pause_all();
    node.state = Node::State::stopped;
}

// The frames of its process go first.
void ClusterRun::end_daemon(Node& node, EndOfLife end) {
    note(fmt::format("{}: {}", node.name, name_of(end)));
    disturb(node);
    if (node.daemon != nullptr && node.process->is_alive()) {
        end == EndOfLife::power_loss ? world_.crash(*node.process) : world_.kill(*node.process);
    }
    node.host.lose_daemon();
    if (end == EndOfLife::power_loss) node.host.lose_host();
    for (const auto& volume : volumes_) {
        volume->is_creating = false;
        std::vector<MountingPtr> here = volume->left;
        if (volume->current != nullptr) here.push_back(volume->current);
        for (const MountingPtr& mounting : here) {
            if (mounting->node != &node) continue;
            mounting->busy = mounting->workers = 0;
            mounting->unmounting = false;
            // The kernel asks again for what was not answered, but for that it has to live.
            if (end != EndOfLife::power_loss) continue;
            mounting->pending.clear();
            mounting->ended = true;
        }
    }
    node.daemon.reset();
    node.store.reset();
    node.state = Node::State::down;
    node.paused_until = Time{};
    node.boot_at = world_.now() + (closing_ ? Duration(0) : pause(kBootDelayMax));
}

void ClusterRun::tend(Node& node) {
    switch (node.state) {
        case Node::State::down:
            if (world_.now() >= node.boot_at) boot(node);
            break;
        case Node::State::starting:
        case Node::State::up:
            break;
        case Node::State::stopping:
            if (world_.now() > std::max(node.stops_by, node.paused_until + kStopMax))
                throw Failed(node.name + " does not stop");
            break;
        case Node::State::stopped:
            end_daemon(node, EndOfLife::stop);
            break;
    }
}

uint64_t ClusterRun::operation_count() const {
    uint64_t sum = 0;
    for (const auto& volume : volumes_)
        sum += volume->history->operation_count();
    return sum;
}

bool ClusterRun::are_all_up() const {
    return std::ranges::all_of(nodes_,
                               [](const auto& node) { return node->state == Node::State::up; });
}

// ---- the course of a run ----

void ClusterRun::step(Duration least, Duration most) {
    world_.run_for(least + pause(most - least));
    if (!problem_.empty()) throw Failed(problem_);
    for (const auto& node : nodes_)
        tend(*node);
    for (const auto& volume : volumes_)
        tend(*volume);
    if (!problem_.empty()) throw Failed(problem_);
}

void ClusterRun::live() {
    for (int i = 0; i < kStepsMax; ++i) {
        if (operation_count() >= plan_.operations && report_.counts.fault_count() >= plan_.faults)
            break;
        step(std::chrono::milliseconds(10), std::chrono::milliseconds(300));
        if (random_.chance(plan_.fault_permille)) inject();
        if (random_.chance(plan_.heal_permille)) heal();
    }
}

void ClusterRun::wait_until(std::string_view what, const std::function<bool()>& done) {
    const Time end = world_.now() + kClusterPatience;
    while (!done()) {
        if (world_.now() > end) {
            for (const auto& volume : volumes_) {
                for (const AttemptPtr& attempt : volume->attempts)
                    world_.run(*attempt->process, say_why(*volume, *attempt->node));
            }
            throw Failed(
                fmt::format("{} does not come although nothing is broken; {}", what, state()));
        }
        step(std::chrono::milliseconds(10), std::chrono::milliseconds(300));
    }
}

// What the node says of a volume that it does not come to serve.
Task<void> ClusterRun::say_why(const Volume& volume, Node& node) {
    auto info = co_await node.daemon->node.volume(volume.name);
    note(fmt::format("{} on {}: {}", volume.name, node.name,
                     info ? info->health.reason : info.error().text()));
}

// Who has what, for a failure's report.
std::string ClusterRun::state() const {
    std::string out;
    for (const auto& node : nodes_) {
        if (node->state != Node::State::up)
            out += fmt::format("{} is not up ({}); ", node->name, static_cast<int>(node->state));
    }
    for (const auto& volume : volumes_) {
        auto add = [&](std::string_view what, const Mounting& mounting) {
            out += fmt::format("{} {} {} on {}: {} busy, {} pending{}{}{}; ", volume->name, what,
                               mounting.holder, mounting.node->name, mounting.busy,
                               mounting.pending.size(),
                               mounting.node->host.is_attached(volume->id) ? ", attached" : "",
                               mounting.node->host.device(volume->id) ? ", served" : "",
                               mounting.unmounting ? ", unmounting" : "");
        };
        if (volume->current) add("used by", *volume->current);
        for (const MountingPtr& mounting : volume->left)
            add("left by", *mounting);
        for (const AttemptPtr& attempt : volume->attempts)
            out += fmt::format("{} wanted by {} on {}; ", volume->name, attempt->holder,
                               attempt->node->name);
    }
    for (const auto& node : nodes_) {
        if (node->state != Node::State::up) continue;
        for (const auto& member : node->daemon->node.devices().members()) {
            if (!member->is_usable()) continue;
            for (const replica::RetainedVolume& log : member->journal->volumes())
                out += fmt::format("{} keeps {} bytes of {}; ", node->name, log.retained_bytes,
                                   log.volume);
        }
    }
    return out;
}

// The faults are over: what is pending ends, every byte is right wherever it is read, and all space
// comes back.
void ClusterRun::finish() {
    note("the faults are over");
    for (const auto& [name, count] : world_.faults().passes())
        world_.faults().disarm(name);
    for (const auto& [name, count] : world_.faults().faults())
        report_.counts.faults["FAULT site"] += count;
    heal();
    for (const auto& node : nodes_) {
        node->way.unavailable_permille = node->way.unknown_permille = 0;
        node->way.delay_max = node->way.watch_lag_max = Duration(0);
        node->boot_at = std::min(node->boot_at, world_.now());
    }
    closing_ = true;
    wait_until("the start of every node", [this] { return are_all_up(); });
    for (const auto& volume : volumes_) {
        wait_until(fmt::format("the end of what is pending on {}", volume->name), [&] {
            return volume->is_created && volume->left.empty() && volume->attempt == nullptr &&
                   volume->current != nullptr && volume->current->pending.empty() &&
                   volume->current->busy == 0;
        });
    }
    // Once where it is, once elsewhere.
    for (int round = 0; round < 2; ++round) {
        for (const auto& volume : volumes_) {
            check_on(*volume, *volume->current->node);
            if (round == 0) {
                size_t other = random_.pick(nodes_.size() - 1);
                Node* target = nodes_[other].get() == volume->current->node ? nodes_.back().get()
                                                                            : nodes_[other].get();
                volume->wanted = target;
                leave(*volume);
                wait_until(fmt::format("the move of {}", volume->name), [&, target] {
                    return volume->current != nullptr && volume->left.empty() &&
                           volume->current->node == target;
                });
            }
        }
    }
    for (const auto& volume : volumes_) {
        std::string wrong = volume->history->settle();
        if (!wrong.empty()) throw Failed(fmt::format("volume {}: {}", volume->name, wrong));
        volume->is_gone = true;
        leave(*volume);
        wait_until(fmt::format("the unmount of {}", volume->name),
                   [&] { return volume->left.empty(); });
        Node& node = a_node();
        world_.run(*node.process, remove_on(*volume, *node.daemon));
        if (!problem_.empty()) throw Failed(problem_);
    }
    for (const auto& node : nodes_) {
        world_.run(*node->process, wait_for_space(*node, *node->daemon));
        if (!problem_.empty()) throw Failed(problem_);
    }
    for (const auto& node : nodes_) {
        world_.run(*node->process, node->daemon->stop());
        end_daemon(*node, EndOfLife::stop);
    }
}

}  // namespace peplos::swarm
