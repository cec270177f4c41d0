#include <algorithm>
#include <fmt/format.h>
#include <stdexcept>

#include "format/superblock.h"
#include "media/device.h"
#include "swarm/run.h"

// What breaks under a daemon that lives, and what is wrong when it starts.
namespace peplos::swarm {

namespace {

constexpr size_t kBackupsMax = 4;
constexpr uint32_t kBackupPermille = 300;
constexpr uint32_t kDamagePermille = 150;
constexpr uint64_t kMisplacedMax = 8 * kMiB;

std::string path_of(uint64_t disk) {
    return fmt::format("/disk{}", disk);
}

Task<Result<void>> format_anew(runtime::Env env, std::string path) {
    CO_TRY_ASSIGN(auto disk, co_await env.disks.open(path, {}));
    media::FormatOptions options{.ring_bytes = limits::kRingBytesMin};
    co_return co_await media::format_device(*disk, options, env.rng);
}

}  // namespace

sim::DiskMedia& Run::a_disk() {
    return world_.disk(path_of(random_.pick(plan_.device_count)));
}

void Run::add_fault(std::string_view kind, sim::DiskFault fault) {
    sim::DiskMedia& disk = a_disk();
    fault.skip = random_.pick(20);
    fault.count = random_.between(1, 3);
    disk.add_fault(fault);
    ++report_.counts.faults[std::string(kind)];
    note(fmt::format("{}: fault: {}", disk.name(), kind));
}

void Run::inject() {
    using sim::DiskEffect;
    using sim::DiskOperation;
    // What came with the second edition takes nothing of the stream of the first.
    auto is_due = [this](uint32_t permille) { return permille != 0 && random_.chance(permille); };
    if (random_.chance(plan_.read_error_permille))
        add_fault("read error", {DiskOperation::read, DiskEffect::io_error});
    if (random_.chance(plan_.write_error_permille))
        add_fault("write error", {DiskOperation::write, DiskEffect::io_error});
    if (random_.chance(plan_.garbled_read_permille))
        add_fault("garbled read", {DiskOperation::read, DiskEffect::garbled});
    if (random_.chance(plan_.slow_permille)) {
        DiskOperation operation = random_.chance(500) ? DiskOperation::read : DiskOperation::write;
        Duration delay = std::chrono::milliseconds(random_.between(100, 60'000));
        add_fault("slow", {.operation = operation, .effect = DiskEffect::slow, .delay = delay});
    }
    if (is_due(plan_.sync_error_permille))
        add_fault("sync error", {DiskOperation::sync, DiskEffect::io_error});
    if (is_due(plan_.full_permille))
        add_fault("disk full", {DiskOperation::write, DiskEffect::no_space});
    if (is_due(plan_.stall_permille)) {
        auto operation = static_cast<DiskOperation>(random_.pick(3));
        Duration delay = std::chrono::milliseconds(random_.between(1'000, 60'000));
        add_fault("stall", {.operation = operation, .effect = DiskEffect::slow, .delay = delay});
    }
    if (is_due(plan_.pause_permille)) stand_still();
    if (is_due(plan_.outage_permille)) start(outage());
    if (damage_count_ < plan_.damage_count_max && random_.chance(kDamagePermille)) inject_damage();
}

void Run::stand_still() {
    ++report_.counts.faults["pause"];
    std::chrono::milliseconds length(random_.between(100, 600'000));
    note(fmt::format("the process stands still for {} ms", length.count()));
    world_.pause(length);
}

Task<void> Run::outage() {
    ++report_.counts.faults["store outage"];
    note("the control store is away");
    store_.set_available(false);
    co_await world_.env().clock.sleep_for(std::chrono::milliseconds(random_.between(10, 30'000)));
    store_.set_available(true);
    note("the control store is back");
}

void Run::inject_damage() {
    uint64_t sum = plan_.latent_weight + plan_.lost_weight + plan_.misplaced_weight;
    if (sum == 0) return;
    uint64_t drawn = random_.pick(sum);
    ++damage_count_;
    if (drawn < plan_.latent_weight) return spoil_a_page(a_disk());
    drawn -= plan_.latent_weight;
    if (drawn < plan_.lost_weight) {
        return add_fault("lost write", {sim::DiskOperation::write, sim::DiskEffect::lost});
    }
    // Among segments only: what one into the journal destroys may be the journal's end, which
    // nothing tells from a torn one.
    sim::DiskFault fault{.operation = sim::DiskOperation::write,
                         .effect = sim::DiskEffect::misplaced};
    fault.offset = plan_.device_bytes / 2;
    fault.bytes = plan_.device_bytes / 2 - kMisplacedMax - 2 * kMiB;
    fault.delta = static_cast<int64_t>(random_.between(1, kMisplacedMax / kBlockBytes)) *
                  static_cast<int64_t>(kBlockBytes);
    if (random_.chance(500)) fault.delta = -fault.delta;
    add_fault("misdirected write", fault);
}

void Run::spoil_a_page(sim::DiskMedia& disk) {
    auto page = disk.find_page_in_use(random_.draw() >> 16, 0, 0);
    if (!page) return;
    ++report_.counts.faults["latent read error"];
    note(fmt::format("{}: {} cannot be read any more", disk.name(), *page * kBlockBytes));
    disk.spoil(*page * kBlockBytes, kBlockBytes);
}

// What cannot be read at the journal's end may have been acknowledged.
void Run::spoil_log_end(sim::DiskMedia& disk) {
    bool is_due = damage_count_ < plan_.damage_count_max && random_.chance(kDamagePermille);
    if (!is_due || !disk.log_end()) return;
    ++damage_count_;
    ++report_.counts.faults["unreadable journal end"];
    note(fmt::format("{}: the journal's end at {} cannot be read", disk.name(), *disk.log_end()));
    disk.spoil(*disk.log_end(), kBlockBytes);
}

// When a life begins, what earlier ones wrote is settled: a bit that flips in the newest writes
// before that makes them look torn. For the same reason none flips in the journal.
void Run::rot_a_page() {
    bool is_due = plan_.rot_weight != 0 && damage_count_ < plan_.damage_count_max &&
                  random_.chance(kDamagePermille);
    if (!is_due) return;
    ++damage_count_;
    sim::DiskMedia& disk = a_disk();
    auto [offset, bytes] = disk.log();
    auto page = disk.find_page_in_use(random_.draw() >> 16, offset, bytes);
    if (!page) return;
    // Now and then what there is least of: a superblock, the unit table.
    uint64_t how = random_.pick(10);
    if (how < 2) page = format::kSuperblockOffsets[how] / kBlockBytes;
    if (how == 2) page = unit_table_offset_ / kBlockBytes;
    ++report_.counts.faults["rot"];
    uint64_t at = *page * kBlockBytes + random_.pick(kBlockBytes);
    note(fmt::format("{}: a bit at {} flips", disk.name(), at));
    disk.corrupt(at);
}

void Run::end_faults_of_a_life() {
    store_.set_available(true);
    for (uint32_t i = 0; i < plan_.device_count; ++i) {
        sim::DiskMedia* disk = world_.find_disk(path_of(i));
        if (disk == nullptr) continue;
        disk->clear_faults();
        report_.counts.lost_ends += disk->land_lost_end();
        if (plan_.latent_weight != 0) spoil_log_end(*disk);
    }
}

void Run::find_logs() {
    for (uint32_t i = 0; i < plan_.device_count; ++i) {
        Buffer block = Buffer::allocate(format::kSuperblockBytes);
        world_.disk(path_of(i)).peek(0, block.bytes());
        auto superblock = format::decode_superblock(std::as_const(block).bytes());
        CHECK(superblock, "a device without a superblock");
        unit_table_offset_ = superblock->unit_table_offset;
        const format::RingPlace& ring = superblock->rings.front();
        world_.disk(path_of(i)).set_log(ring.offset, ring.bytes);
    }
}

// A start with a disk in another's place: nothing that is served may be wrong, and with the old
// disk back everything is there again.
void Run::visit_with_wrong_disk() {
    if (plan_.wrong_disk_permille == 0 || !random_.chance(plan_.wrong_disk_permille)) return;
    std::string path = path_of(random_.pick(plan_.device_count));
    std::unique_ptr<sim::DiskMedia::Platter> kept = world_.disk(path).exchange(nullptr);
    bool is_formatted = random_.chance(700);
    if (is_formatted && !world_.run(format_anew(world_.env(), path)))
        throw std::runtime_error("a disk cannot be formatted");
    ++report_.counts.faults[is_formatted ? "swapped disk" : "wiped disk"];
    note(fmt::format("{} is {}", path, is_formatted ? "another device" : "wiped"));
    is_wrong_disk_ = true;
    start_daemon();
    world_.run(read_what_is_served());
    end_life(EndOfLife::power_loss);
    is_wrong_disk_ = false;
    world_.disk(path).exchange(std::move(kept));
    note(fmt::format("{} is back", path));
}

Task<void> Run::read_what_is_served() {
    for (auto& disk : disks_) {
        auto found = co_await daemon_->node.volume(disk->name);
        if (!found || found->id != disk->id) continue;
        auto path = co_await daemon_->node.mount(disk->name, "container");
        if (!path) {
            judge(path.error(), "mount " + disk->name);
            continue;
        }
        for (uint64_t offset = 0; offset < disk->history->size_bytes(); offset += kMiB) {
            uint64_t bytes = std::min<uint64_t>(kMiB, disk->history->size_bytes() - offset);
            co_await read_some(*disk, offset, bytes);
        }
    }
}

// The control store as an old backup has it: what the devices know must not be lost by that.
void Run::maybe_roll_back() {
    if (plan_.rollback_permille == 0) return;
    if (random_.chance(kBackupPermille)) {
        backups_.push_back(store_.backup());
        if (backups_.size() > kBackupsMax) backups_.erase(backups_.begin());
    }
    if (backups_.empty() || !random_.chance(plan_.rollback_permille)) return;
    size_t chosen = random_.pick(backups_.size());
    store_.restore(backups_[chosen]);
    // What came after it never was.
    backups_.resize(chosen + 1);
    ++report_.counts.faults["store rollback"];
    is_rolled_back_ = true;
    note("the control store is restored from a backup");
}

// Volumes that the backup does not know are gone for their users; those that were removed since
// are back, and go again.
Task<void> Run::forget_rolled_back() {
    for (size_t i = 0; i < disks_.size();) {
        auto found = co_await daemon_->node.volume(disks_[i]->name);
        // One that was created and never opened is known by its name alone; an older one may have
        // had that, too.
        bool is_old = found && std::ranges::any_of(removed_, [&](const auto& disk) {
                          return disk->id == found->id;
                      });
        bool is_new = disks_[i]->id == VolumeId{} && !is_old;
        bool is_it = found && (found->id == disks_[i]->id || is_new);
        if (is_it && found->state != "deleting") {
            disks_[i++]->id = found->id;
            continue;
        }
        note(fmt::format("volume {} is not in the backup", disks_[i]->name));
        has_orphans_ = true;
        removed_.push_back(std::move(disks_[i]));
        disks_.erase(disks_.begin() + static_cast<ptrdiff_t>(i));
    }
    auto all = co_await daemon_->node.volumes();
    if (!all) co_return judge(all.error(), "listing volumes");
    for (const fabric::VolumeInfo& info : *all) {
        bool is_known =
            std::ranges::any_of(disks_, [&](const auto& d) { return d->id == info.id; });
        if (is_known) continue;
        has_orphans_ = true;
        auto removed = co_await daemon_->node.remove_volume(info.spec.name);
        note(fmt::format("remove {}, which was removed before: {}", info.spec.name,
                         removed ? "ok" : removed.error().text()));
    }
}

}  // namespace peplos::swarm
