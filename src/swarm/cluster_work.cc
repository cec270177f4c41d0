#include <algorithm>
#include <fmt/format.h>

#include "swarm/cluster_run.h"

// What containers and who starts them do.
namespace peplos::swarm {

namespace {

// A start that takes longer may be given up for another host.
constexpr Duration kStartPatience = std::chrono::seconds(30);
// A host to which nothing has happened for so long is not taken for dead.
constexpr Duration kCalm = std::chrono::seconds(60);
constexpr uint32_t kGiveUpPermille = 20;
// Of 1,000 steps in which a container that was left behind could be ended, so many do it.
constexpr uint32_t kEndPermille = 50;
constexpr Duration kSpacePatience = std::chrono::minutes(20);

// It may go better at the next try.
bool may_be_repeated(const Error& error) {
    return error.code() == Code::unavailable || error.code() == Code::outcome_unknown ||
           error.code() == Code::busy || error.code() == Code::stopping ||
           error.code() == Code::fenced || error.code() == Code::conflict;
}

}  // namespace

ClusterRun::Node* ClusterRun::any_node_up() {
    std::vector<Node*> up;
    for (const auto& node : nodes_) {
        if (node->state == Node::State::up) up.push_back(node.get());
    }
    return up.empty() ? nullptr : up[random_.pick(up.size())];
}

bool ClusterRun::is_calm(const Node& node) const {
    return node.state == Node::State::up && node.paused_until < world_.now() &&
           world_.now() - kCalm > node.calm_since;
}

void ClusterRun::tend(Volume& volume) {
    tend_left(volume);
    std::erase_if(volume.attempts, [](const auto& attempt) {
        return attempt->is_over || !attempt->process->is_alive();
    });
    if (volume.is_gone) return;
    if (!volume.is_created) {
        if (!volume.is_creating) create(volume);
        return;
    }
    if (AttemptPtr attempt = volume.attempt; attempt != nullptr) {
        bool is_late = world_.now() - attempt->began > kStartPatience;
        if (!attempt->process->is_alive()) {
            // Whoever started it clears away what may have come of it.
            auto rest = std::make_shared<Mounting>();
            *rest = {.volume = &volume, .node = attempt->node, .holder = attempt->holder};
            rest->leaving = rest->left_behind = true;
            volume.left.push_back(std::move(rest));
            volume.attempt = nullptr;
        } else if (is_late && !closing_ && random_.chance(kGiveUpPermille)) {
            note(fmt::format("{} is started elsewhere", volume.name));
            attempt->given_up = true;
            volume.attempt = nullptr;
        }
    }
    if (volume.current != nullptr) tend_current(volume);
    if (volume.current == nullptr && volume.attempt == nullptr) start_container(volume);
}

void ClusterRun::tend_current(Volume& volume) {
    MountingPtr mounting = volume.current;
    if (mounting->ended) {
        volume.current = nullptr;
        return;
    }
    if (mounting->failed) {
        mounting->left_behind = true;
        return leave(volume);
    }
    serve_again(mounting);
    if (closing_) return;
    const Node& node = *mounting->node;
    bool seems_dead = node.state != Node::State::up || node.calm_since == Time::max() ||
                      node.paused_until > world_.now();
    if (seems_dead && random_.chance(plan_.rescue_permille)) {
        note(fmt::format("{} is given up on {}", volume.name, node.name));
        mounting->left_behind = true;
        volume.left.push_back(std::move(volume.current));
        volume.current = nullptr;
        do {
            volume.wanted = &a_node();
        } while (volume.wanted == &node);
    } else if (node.state == Node::State::up && random_.chance(plan_.move_permille)) {
        leave(volume);
    }
}

// Its container ends, and lets go of the volume.
void ClusterRun::leave(Volume& volume) {
    if (volume.current == nullptr) return;
    volume.current->leaving = true;
    volume.left.push_back(std::move(volume.current));
    volume.current = nullptr;
}

void ClusterRun::tend_left(Volume& volume) {
    for (const MountingPtr& mounting : volume.left) {
        Node& node = *mounting->node;
        if (mounting->ended || node.state != Node::State::up) continue;
        if (!node.host.is_attached(volume.id)) {
            // What was not answered never will be.
            if (mounting->busy == 0) mounting->ended = true;
            continue;
        }
        serve_again(mounting);
        if (!mounting->leaving && (closing_ || random_.chance(kEndPermille)))
            mounting->leaving = true;
        bool is_idle = mounting->busy == 0 && mounting->pending.empty();
        if (!mounting->leaving || !is_idle || mounting->unmounting) continue;
        mounting->unmounting = true;
        runtime::spawn(node.process->executor(), unmount(mounting, *node.daemon));
    }
    std::erase_if(volume.left, [](const MountingPtr& mounting) { return mounting->ended; });
}

// With a daemon that serves it: the kernel asks again, the container goes on.
void ClusterRun::serve_again(const MountingPtr& mounting) {
    Node& node = *mounting->node;
    bool is_served =
        node.state == Node::State::up && node.host.device(mounting->volume->id) != nullptr;
    if (!is_served || mounting->workers != 0 || mounting->busy != 0) return;
    for (const Operation& operation : mounting->pending) {
        ++mounting->busy;
        runtime::spawn(node.process->executor(), resend(mounting, operation));
    }
    if (closing_ || mounting->leaving || mounting->failed) return;
    for (uint32_t i = 0; i < plan_.workers_per_volume; ++i) {
        ++mounting->workers;
        runtime::spawn(node.process->executor(), worker(mounting));
    }
}

// ---- coming and going ----

void ClusterRun::create(Volume& volume) {
    Node* node = any_node_up();
    if (node == nullptr) return;
    volume.is_creating = true;
    runtime::spawn(node->process->executor(), create_on(volume, *node, *node->daemon));
}

Task<void> ClusterRun::create_on(Volume& volume, Node& node, SimDaemon& daemon) {
    fabric::VolumeSpec spec;
    spec.name = volume.name;
    spec.size_bytes = volume.bytes;
    spec.copies = volume.copies;
    auto created = co_await daemon.node.create_volume(spec);
    note(fmt::format("create {} on {}: {}", volume.name, node.name,
                     created ? "ok" : created.error().text()));
    if (created) {
        volume.id = created->id;
        volume.is_created = true;
    } else if (!may_be_repeated(created.error())) {
        fail_with("create " + volume.name + ": " + created.error().text());
    }
    volume.is_creating = false;
}

void ClusterRun::start_container(Volume& volume) {
    Node* node = volume.wanted;
    if (node == nullptr || (node->state != Node::State::up && !closing_)) node = any_node_up();
    if (node == nullptr || node->state != Node::State::up) return;
    volume.attempt = std::make_shared<Attempt>();
    *volume.attempt = {.node = node,
                       .process = node->process,
                       .holder = fmt::format("container{}", holder_next_++),
                       .began = world_.now()};
    volume.attempts.push_back(volume.attempt);
    runtime::spawn(node->process->executor(), mount_on(volume, volume.attempt, *node->daemon));
}

Task<void> ClusterRun::mount_on(Volume& volume, AttemptPtr attempt, SimDaemon& daemon) {
    while (!attempt->given_up) {
        auto path = co_await daemon.node.mount(volume.name, attempt->holder);
        note(fmt::format("mount {} on {}: {}", volume.name, attempt->node->name,
                         path ? "ok" : path.error().text()));
        if (path) {
            attempt->is_over = true;
            mounted(volume, attempt);
            co_return;
        }
        if (!may_be_repeated(path.error())) {
            fail_with(fmt::format("mount {} on {}: {}", volume.name, attempt->node->name,
                                  path.error().text()));
            break;
        }
        co_await attempt->process->env().clock.sleep_for(std::chrono::milliseconds(500));
    }
    attempt->is_over = true;
    if (volume.attempt == attempt) volume.attempt = nullptr;
}

void ClusterRun::mounted(Volume& volume, const AttemptPtr& attempt) {
    check_alone(volume, *attempt->node);
    // What others had under way has happened or never will.
    auto is_here = [&](const MountingPtr& mounting) {
        return mounting != nullptr && mounting->node == attempt->node && !mounting->ended;
    };
    if (volume.latest != attempt->node ||
        (!is_here(volume.current) && std::ranges::none_of(volume.left, is_here))) {
        std::string wrong = volume.history->settle();
        if (!wrong.empty()) fail_with(fmt::format("volume {}: {}", volume.name, wrong));
        ++volume.starts;
    }
    volume.latest = attempt->node;
    auto mounting = std::make_shared<Mounting>();
    *mounting = {
        .volume = &volume, .node = attempt->node, .holder = attempt->holder, .began = world_.now()};
    if (attempt->given_up) {
        mounting->leaving = mounting->left_behind = true;
        volume.left.push_back(std::move(mounting));
        return;
    }
    if (volume.current != nullptr) {
        volume.current->left_behind = true;
        leave(volume);
    }
    volume.current = std::move(mounting);
    volume.attempt = nullptr;
    volume.wanted = nullptr;
}

// Nobody whose host works is robbed.
void ClusterRun::check_alone(const Volume& volume, const Node& node) {
    auto has_it = [&](const MountingPtr& mounting) {
        const Node& other = *mounting->node;
        return &other != &node && !mounting->ended && !mounting->unmounting && is_calm(other) &&
               mounting->began != Time{} && world_.now() - kCalm > mounting->began &&
               other.host.device(volume.id) != nullptr;
    };
    std::vector<MountingPtr> all = volume.left;
    if (volume.current != nullptr) all.push_back(volume.current);
    for (const MountingPtr& mounting : all) {
        if (!has_it(mounting)) continue;
        fail_with(fmt::format("volume {} was mounted on {} although {} had it and was well",
                              volume.name, node.name, mounting->node->name));
    }
}

Task<void> ClusterRun::unmount(MountingPtr mounting, SimDaemon& daemon) {
    const Volume& volume = *mounting->volume;
    auto unmounted = co_await daemon.node.unmount(volume.name, mounting->holder);
    note(fmt::format("unmount {} on {}: {}", volume.name, mounting->node->name,
                     unmounted ? "ok" : unmounted.error().text()));
    mounting->unmounting = false;
    if (unmounted || unmounted.error().code() == Code::not_found) {
        mounting->ended = true;
    } else if (!may_be_repeated(unmounted.error())) {
        fail_with(fmt::format("unmount {}: {}", volume.name, unmounted.error().text()));
    }
}

// ---- reading and writing ----

Task<void> ClusterRun::worker(MountingPtr mounting) {
    runtime::Clock& clock = mounting->node->process->env().clock;
    while (!closing_ && !mounting->leaving && !mounting->failed) {
        Operation drawn = draw_operation(random_, plan_.work, mounting->volume->bytes);
        ++mounting->busy;
        bool is_read = drawn.kind == Operation::Kind::read;
        bool is_answered =
            is_read ? co_await read_some(mounting, drawn) : co_await perform(mounting, drawn);
        --mounting->busy;
        if (!is_answered) break;
        co_await clock.sleep_for(pause(plan_.pace));
    }
    --mounting->workers;
}

Task<void> ClusterRun::resend(MountingPtr mounting, Operation operation) {
    std::ignore = co_await perform(mounting, operation);
    --mounting->busy;
}

bool ClusterRun::is_repeated_later(const Mounting& mounting, const Operation& drawn) {
    auto overlaps = [&](const MountingPtr& other) {
        return other != nullptr && other->node == mounting.node &&
               std::ranges::any_of(other->pending,
                                   [&](const Operation& o) { return o.overlaps(drawn); });
    };
    const Volume& volume = *mounting.volume;
    return overlaps(volume.current) || std::ranges::any_of(volume.left, overlaps);
}

// A write or a zero, also one that is asked again. False when nobody answered, or with an error.
Task<bool> ClusterRun::perform(MountingPtr mounting, Operation operation) {
    Volume& volume = *mounting->volume;
    std::shared_ptr<volume::BlockDevice> device = mounting->node->host.device(volume.id);
    if (device == nullptr) co_return false;
    const bool is_new = operation.version == 0;
    // A host that was overtaken acknowledges nothing any more.
    const bool is_late = volume.latest != mounting->node;
    if (is_new) {
        // What is asked again comes in any order: two writes to one place must not be among it.
        if (is_repeated_later(*mounting, operation)) co_return true;
        operation.version =
            is_late ? volume.history->refuse_write()
                    : volume.history->begin_write(operation.offset, operation.bytes,
                                                  operation.kind == Operation::Kind::zero);
        if (!is_late) mounting->pending.push_back(operation);
    }
    const uint64_t starts = volume.starts;
    Result<void> outcome = co_await carry_out(*device, *volume.history, operation);
    std::string what = describe(operation, volume.name) + " on " + mounting->node->name;
    note(fmt::format("{}: {}", what, outcome ? "ok" : outcome.error().text()));
    if (!outcome && outcome.error().code() == Code::stopping) co_return false;
    std::erase_if(mounting->pending,
                  [&](const Operation& o) { return o.version == operation.version; });
    if (!outcome) {
        note_error(*mounting, outcome.error(), what);
        co_return false;
    }
    if (is_late && is_new) fail_with(what + " was acknowledged, but the volume is elsewhere");
    if (!is_late && starts == volume.starts)
        volume.history->end_write(operation.offset, operation.bytes, operation.version);
    co_return true;
}

Task<bool> ClusterRun::read_some(MountingPtr mounting, Operation operation) {
    Volume& volume = *mounting->volume;
    std::shared_ptr<volume::BlockDevice> device = mounting->node->host.device(volume.id);
    if (device == nullptr) co_return false;
    Buffer into = Buffer::allocate(operation.bytes);
    const uint64_t starts = volume.starts;
    Moment began = volume.history->begin_read();
    Result<void> outcome = co_await device->read(operation.offset, into);
    std::string what = describe(operation, volume.name) + " on " + mounting->node->name;
    note(fmt::format("{}: {}", what, outcome ? "ok" : outcome.error().text()));
    if (!outcome) {
        if (outcome.error().code() != Code::stopping) note_error(*mounting, outcome.error(), what);
        co_return false;
    }
    // What began before a container was started elsewhere may show what was before.
    if (starts != volume.starts) co_return true;
    std::string wrong = volume.history->end_read(operation.offset, into.bytes(), began);
    if (!wrong.empty()) fail_with(fmt::format("{}: {}", what, wrong));
    co_return true;
}

// The container ends. Only one that somebody started elsewhere may get an error.
void ClusterRun::note_error(Mounting& mounting, const Error& error, const std::string& what) {
    const Volume& volume = *mounting.volume;
    mounting.failed = true;
    if (mounting.left_behind || volume.latest != mounting.node) return;
    // A FAULT says so.
    if (error.code() == Code::no_space && plan_.site_permille != 0) return;
    auto is_rival = [&](const AttemptPtr& attempt) { return attempt->node != mounting.node; };
    bool is_contested =
        &mounting != volume.current.get() || std::ranges::any_of(volume.attempts, is_rival);
    if (is_contested && !is_calm(*mounting.node)) return;
    fail_with(fmt::format("{} failed although nobody took {} away, which has it since {:.3f}: {}",
                          what, mounting.holder,
                          std::chrono::duration<double>(mounting.began - began_).count(),
                          error.text()));
}

// ---- the end ----

Task<void> ClusterRun::check_all(MountingPtr mounting) {
    const uint64_t bytes = mounting->volume->bytes;
    for (uint64_t offset = 0; offset < bytes && problem_.empty(); offset += kMiB) {
        Operation read{Operation::Kind::read, offset, std::min<uint64_t>(kMiB, bytes - offset), 0};
        if (!co_await read_some(mounting, read)) fail_with("the last look at the volume failed");
    }
}

void ClusterRun::check_on(Volume& volume, Node& node) {
    note(fmt::format("{} is read on {}", volume.name, node.name));
    world_.run(*node.process, check_all(volume.current));
    if (!problem_.empty()) throw std::runtime_error(problem_);
}

Task<void> ClusterRun::remove_on(Volume& volume, SimDaemon& daemon) {
    for (int i = 0; i < 200; ++i) {
        auto removed = co_await daemon.node.remove_volume(volume.name);
        note(fmt::format("remove {}: {}", volume.name, removed ? "ok" : removed.error().text()));
        if (removed || removed.error().code() == Code::not_found) co_return;
        if (!may_be_repeated(removed.error())) break;
        co_await world_.env().clock.sleep_for(std::chrono::milliseconds(500));
    }
    fail_with(volume.name + " cannot be removed");
}

Task<void> ClusterRun::wait_for_space(Node& node, SimDaemon& daemon) {
    runtime::Clock& clock = node.process->env().clock;
    const Time end = clock.now() + kSpacePatience;
    while (problem_.empty()) {
        auto status = co_await daemon.node.status();
        uint64_t used = status ? 0 : UINT64_MAX;
        if (status) {
            for (const fabric::DeviceInfo& device : status->devices)
                used += device.segment_bytes_total - device.segment_bytes_free;
        }
        if (used == 0) co_return;
        if (clock.now() > end) {
            fail_with(
                fmt::format("{} bytes stay on {} after every volume is gone", used, node.name));
        }
        co_await clock.sleep_for(std::chrono::seconds(1));
    }
}

}  // namespace peplos::swarm
