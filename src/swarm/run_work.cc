#include <algorithm>
#include <fmt/format.h>

#include "swarm/run.h"

// What users, the host's kernel and broken disks do during a life of the daemon.
namespace peplos::swarm {

namespace {

constexpr int kTriesMax = 200;

// The control store may answer otherwise at the next try.
bool is_passing(const Error& error) {
    return error.code() == Code::unavailable || error.code() == Code::outcome_unknown ||
           error.code() == Code::busy;
}

}  // namespace

// ---- After a start ----

Task<void> Run::pick_up_all() {
    if (std::exchange(is_rolled_back_, false)) co_await forget_rolled_back();
    for (size_t i = 0; i < disks_.size();) {
        Disk& disk = *disks_[i];
        co_await pick_up(disk);
        if (!problem_.empty()) co_return;
        if (disk.hurt) co_await give_up(disk);
        if (disk.history != nullptr) {
            ++i;
            continue;
        }
        disks_.erase(disks_.begin() + static_cast<ptrdiff_t>(i));
    }
}

// Finds out what became of what the last life was doing, and mounts the volume again.
Task<void> Run::pick_up(Disk& disk) {
    auto found = co_await daemon_->node.volume(disk.name);
    bool is_gone = !found && found.error().code() == Code::not_found;
    if (found && found->state == "deleting") is_gone = true;
    if (is_gone && disk.removal_asked) {
        removed_.push_back(std::make_unique<Disk>());
        removed_.back()->history = std::move(disk.history);
        co_return;
    }
    if (!found) {
        problem_ = fmt::format("volume {} is lost: {}", disk.name, found.error().text());
        co_return;
    }
    // Of an unmount that was never answered only the node knows whether it happened.
    bool is_mounted = disk.mounted && (!disk.leaving || !found->holders.empty());
    disk.leaving = disk.removal_asked = false;
    if (!is_mounted) {
        auto path = co_await daemon_->node.mount(disk.name, "container");
        if (!path) co_return find_closed(disk, "cannot be mounted", path.error());
        disk.mounted = true;
    }
    disk.id = found->id;
    auto device = host_.device(disk.id);
    if (device == nullptr) {
        Error why(Code::unavailable, found->health.reason);
        co_return find_closed(disk, "is mounted, but nobody serves it", why);
    }
    uint64_t bytes = device->size_bytes();
    uint64_t known = disk.history->size_bytes();
    if (bytes < known || bytes > std::max(known, disk.asked_bytes)) {
        problem_ = fmt::format("volume {} has {} bytes; it had {}, and at most {} were asked for",
                               disk.name, bytes, known, disk.asked_bytes);
        co_return;
    }
    disk.history->grow(bytes);
}

// Only damage may keep a volume closed.
void Run::find_closed(Disk& disk, const std::string& what, const Error& error) {
    note(fmt::format("volume {} {}: {}", disk.name, what, error.text()));
    bool is_damage = error.code() == Code::corrupt || error.code() == Code::io_error ||
                     error.code() == Code::unavailable || error.code() == Code::not_found;
    disk.hurt = is_damaged() && is_damage;
    if (disk.hurt) return;
    problem_ = fmt::format("volume {} {}: {}", disk.name, what, error.text());
}

// What a recovery that accepts loss leaves may be older than what was acknowledged, never other
// bytes; and the volume works again.
Task<void> Run::accept_loss(Disk& disk) {
    std::ignore = co_await daemon_->node.recover_volume(disk.name, fabric::Node::Loss::show);
    auto recovered = co_await daemon_->node.recover_volume(disk.name, fabric::Node::Loss::accept);
    note(fmt::format("recover {}: {}", disk.name,
                     recovered ? recovered->message : recovered.error().text()));
    if (!recovered || !(recovered->is_done || recovered->is_whole)) co_return;
    ++report_.counts.recoveries;
    auto path = co_await daemon_->node.mount(disk.name, "rescue");
    auto device = host_.device(disk.id);
    if (!path || device == nullptr) {
        // Another bad place may come to light.
        note(fmt::format("mount {}: {}", disk.name, path ? "not served" : path.error().text()));
        co_return;
    }
    uint64_t end = std::min(disk.history->size_bytes(), device->size_bytes());
    for (uint64_t offset = 0; offset < end && problem_.empty(); offset += 64 * kKiB) {
        Buffer into = Buffer::allocate(64 * kKiB);
        auto read = co_await device->read(offset, into);
        if (!read) {
            judge(read.error(), "read of recovered " + disk.name);
            continue;
        }
        std::string wrong = disk.history->check_origin(offset, std::as_const(into).bytes());
        if (!wrong.empty()) problem_ = fmt::format("volume {}: {}", disk.name, wrong);
    }
    std::ignore = co_await daemon_->node.unmount(disk.name, "rescue");
}

// It goes; its user has a backup.
Task<void> Run::give_up(Disk& disk) {
    ++report_.counts.volumes_hurt;
    std::ignore = co_await daemon_->node.detach_forced(disk.name);
    if (random_.chance(500)) co_await accept_loss(disk);
    auto removed = co_await daemon_->node.remove_volume(disk.name);
    note(fmt::format("give up {}: {}", disk.name, removed ? "ok" : removed.error().text()));
    removed_.push_back(std::make_unique<Disk>());
    removed_.back()->history = std::move(disk.history);
}

void Run::spawn_work() {
    for (auto& disk : disks_) {
        for (auto operation = disk->pending.begin(); operation != disk->pending.end();
             ++operation) {
            start(resend(*disk, operation));
        }
        for (uint32_t i = 0; i < plan_.workers_per_volume; ++i)
            start(worker(*disk));
    }
    start(user());
    start(injector());
}

void Run::start(Task<void> task) {
    ++task_count_;
    runtime::spawn(world_.env().executor, counted(std::move(task)));
}

Task<void> Run::counted(Task<void> task) {
    co_await std::move(task);
    --task_count_;
}

// ---- Reading and writing ----

Task<void> Run::resend(Disk& disk, Operations::iterator operation) {
    co_await perform(disk, operation);
}

Task<void> Run::worker(Disk& disk) {
    while (!closing_ && !disk.leaving) {
        ++disk.busy;
        bool asked = co_await one_operation(disk);
        --disk.busy;
        if (!asked || random_.chance(200)) co_await world_.env().clock.sleep_for(pause(1, 5'000));
    }
}

// False when nothing was asked.
Task<bool> Run::one_operation(Disk& disk) {
    Operation drawn = draw_operation(random_, plan_.work, disk.history->size_bytes());
    if (drawn.kind == Operation::Kind::read) {
        co_await read_some(disk, drawn.offset, drawn.bytes);
        co_return true;
    }
    if (is_repeated_later(disk, drawn)) co_return false;
    drawn.version =
        disk.history->begin_write(drawn.offset, drawn.bytes, drawn.kind == Operation::Kind::zero);
    auto operation = disk.pending.insert(disk.pending.end(), drawn);
    bool answered = co_await perform(disk, operation);
    if (!answered) closing_ = true;
    co_return true;
}

// What is unanswered at a kill is asked again, in any order: of two writes to one place either may
// come last then, again, which no kernel would let happen.
bool Run::is_repeated_later(const Disk& disk, const Operation& drawn) const {
    if (plan_.kill_weight + plan_.stop_weight == 0) return false;
    return std::ranges::any_of(disk.pending, [&](const Operation& o) { return o.overlaps(drawn); });
}

// False when nobody answered: the operation stays pending, for the next daemon.
Task<bool> Run::perform(Disk& disk, Operations::iterator operation) {
    // The list changes while this waits, but not this element.
    Operation o = *operation;
    std::shared_ptr<volume::BlockDevice> device = host_.device(disk.id);
    if (device == nullptr) co_return false;
    Result<void> outcome = co_await carry_out(*device, *disk.history, o);
    std::string what = describe(o, disk.name);
    if (!outcome && outcome.error().code() == Code::stopping) {
        note(what + ": unanswered");
        co_return false;
    }
    disk.pending.erase(operation);
    if (outcome) {
        note(what);
        disk.history->end_write(o.offset, o.bytes, o.version);
        co_return true;
    }
    judge(outcome.error(), what);
    // The volume may have failed; a user would restart what hangs on it.
    co_return outcome.error().code() == Code::no_space;
}

Task<void> Run::read_some(Disk& disk, uint64_t offset, uint64_t bytes) {
    std::shared_ptr<volume::BlockDevice> device = host_.device(disk.id);
    if (device == nullptr) {
        closing_ = true;
        co_return;
    }
    Buffer into = Buffer::allocate(bytes);
    Moment began = disk.history->begin_read();
    Result<void> outcome = co_await device->read(offset, into);
    std::string what = describe({Operation::Kind::read, offset, bytes, 0}, disk.name);
    if (!outcome) {
        judge(outcome.error(), what);
        if (outcome.error().code() == Code::stopping) closing_ = true;
        co_return;
    }
    note(what);
    std::string wrong = disk.history->end_read(offset, into.bytes(), began);
    if (!wrong.empty() && problem_.empty()) {
        problem_ = fmt::format("volume {}: {}", disk.name, wrong);
    }
}

// ---- Volumes come and go ----

Task<void> Run::user() {
    while (!closing_) {
        if (disks_.empty()) co_await create_one();
        co_await world_.env().clock.sleep_for(pause(100, 20'000));
        if (closing_) break;
        if (random_.chance(plan_.create_permille) && disks_.size() < plan_.volume_count_max) {
            co_await create_one();
        }
        if (closing_ || disks_.empty()) continue;
        size_t chosen = random_.pick(disks_.size());
        if (random_.chance(plan_.remove_permille)) co_await remove_one(*disks_[chosen]);
        if (closing_ || disks_.empty()) continue;
        chosen = random_.pick(disks_.size());
        if (random_.chance(plan_.grow_permille)) co_await grow_one(*disks_[chosen]);
        if (random_.chance(plan_.scrub_permille)) {
            Result<void> scrub = daemon_->keeper.start_scrub();
            note(fmt::format("scrub: {}", scrub ? "started" : scrub.error().text()));
        }
    }
}

Task<void> Run::create_one() {
    auto owned = std::make_unique<Disk>();
    Disk& disk = *owned;
    disk.number = disk_next_++;
    // Names come back after a removal, as with compose projects.
    disk.name = fmt::format("v{}", disk.number % 7);
    if (is_damaged() || has_orphans_) disk.name = fmt::format("w{}", disk.number);
    if (std::ranges::any_of(disks_, [&](const auto& d) { return d->name == disk.name; })) co_return;
    fabric::VolumeSpec spec;
    spec.name = disk.name;
    spec.size_bytes = random_.between(1, plan_.volume_bytes_max / kMiB) * kMiB;
    disk.history = std::make_unique<History>(disk.number, spec.size_bytes);
    disk.removal_asked = true;  // until it certainly exists
    disk.leaving = true;
    disks_.push_back(std::move(owned));
    for (int i = 0; i < kTriesMax && !closing_; ++i) {
        auto created = co_await daemon_->node.create_volume(spec);
        note(fmt::format("create {} of {} bytes: {}", disk.name, spec.size_bytes,
                         created ? "ok" : created.error().text()));
        if (!created && is_passing(created.error())) continue;
        if (!created) {
            judge(created.error(), "create " + disk.name);
            co_return;
        }
        auto path = co_await daemon_->node.mount(disk.name, "container");
        note(fmt::format("mount {}: {}", disk.name, path ? "ok" : path.error().text()));
        if (!path && is_passing(path.error())) continue;
        if (!path) {
            judge(path.error(), "mount " + disk.name);
            co_return;
        }
        disk.id = created->id;
        disk.mounted = true;
        disk.leaving = disk.removal_asked = false;
        if (closing_) co_return;
        for (uint32_t w = 0; w < plan_.workers_per_volume; ++w)
            start(worker(disk));
        co_return;
    }
}

Task<void> Run::remove_one(Disk& disk) {
    if (disk.leaving) co_return;
    disk.leaving = true;
    while (disk.busy != 0 && problem_.empty())
        co_await world_.env().clock.sleep_for(std::chrono::milliseconds(1));
    if (!disk.pending.empty() || !problem_.empty()) co_return;
    for (int i = 0; i < kTriesMax && problem_.empty(); ++i) {
        if (disk.mounted) {
            auto unmounted = co_await daemon_->node.unmount(disk.name, "container");
            note(fmt::format("unmount {}: {}", disk.name,
                             unmounted ? "ok" : unmounted.error().text()));
            if (!unmounted && is_passing(unmounted.error())) continue;
            if (!unmounted) {
                judge(unmounted.error(), "unmount " + disk.name);
                co_return;
            }
            disk.mounted = false;
        }
        disk.removal_asked = true;
        auto removed = co_await daemon_->node.remove_volume(disk.name);
        note(fmt::format("remove {}: {}", disk.name, removed ? "ok" : removed.error().text()));
        bool is_gone = removed || removed.error().code() == Code::not_found;
        if (!is_gone && is_passing(removed.error())) {
            co_await world_.env().clock.sleep_for(std::chrono::milliseconds(200));
            continue;
        }
        if (!is_gone) {
            judge(removed.error(), "remove " + disk.name);
            co_return;
        }
        auto position = std::ranges::find(disks_, &disk, &std::unique_ptr<Disk>::get);
        removed_.push_back(std::move(*position));
        disks_.erase(position);
        co_return;
    }
    if (problem_.empty() && !closing_) problem_ = "volume " + disk.name + " cannot be removed";
}

Task<void> Run::grow_one(Disk& disk) {
    if (disk.leaving) co_return;
    // One whose outcome stayed unknown may have happened.
    uint64_t known = std::max(disk.history->size_bytes(), disk.asked_bytes);
    uint64_t bytes = known + random_.between(1, 4) * kMiB;
    if (bytes > 2 * plan_.volume_bytes_max) co_return;
    disk.asked_bytes = bytes;
    auto grown = co_await daemon_->node.grow_volume(disk.name, bytes);
    note(fmt::format("grow {} to {}: {}", disk.name, bytes, grown ? "ok" : grown.error().text()));
    if (!grown) {
        if (!is_passing(grown.error())) judge(grown.error(), "grow " + disk.name);
        co_return;
    }
    disk.history->grow(bytes);
}

// ---- Broken disks ----

Task<void> Run::injector() {
    while (!closing_) {
        co_await world_.env().clock.sleep_for(pause(1'000, 100'000));
        if (!closing_) inject();
    }
}

}  // namespace peplos::swarm
