#include "fabric/device_set.h"

#include "base/fault.h"
#include "base/log.h"
#include "replica/local_journal.h"

namespace peplos::fabric {
namespace {

// Above this share of its space a device is reported, with what to do.
constexpr uint64_t kNearlyFullPercent = 80;
constexpr uint64_t kFullPercent = 95;

format::MediaClass to_format(control::MediaClass media_class) {
    switch (media_class) {
        case control::MediaClass::nvme:
            return format::MediaClass::nvme;
        case control::MediaClass::ssd:
            return format::MediaClass::ssd;
        case control::MediaClass::hdd:
            return format::MediaClass::hdd;
    }
    return format::MediaClass::ssd;
}

// A ring of a sixteenth of the device, within its bounds: small devices keep room for data.
uint64_t default_ring_bytes(uint64_t device_bytes) {
    uint64_t sixteenth = round_down(device_bytes / 16, kMiB);
    return std::clamp(sixteenth, limits::kRingBytesMin, limits::kRingBytesDefault);
}

// How long a killed daemon's last I/O may hold its files.
constexpr Duration kLockPatience = std::chrono::seconds(15);
constexpr Duration kLockPause = std::chrono::milliseconds(20);

}  // namespace

Task<Result<std::unique_ptr<runtime::Disk>>> open_disk(runtime::Env env, std::string path) {
    Time end = env.clock.now() + kLockPatience;
    while (true) {
        auto disk = co_await env.disks.open(path, runtime::DiskOptions{});
        bool held = !disk && disk.error().code() == Code::busy;
        if (!held || env.clock.now() >= end) co_return disk;
        co_await env.clock.sleep_for(kLockPause);
    }
}

DeviceSet::DeviceSet(runtime::Env env, Options options)
    : env_(env),
      leaf_cache_(options.leaf_cache_bytes),
      overlay_(options.overlay_bytes),
      space_({}) {}

Task<Result<void>> DeviceSet::open_member(Member& member, volume::Background* background) {
    CO_TRY_ASSIGN(std::unique_ptr<runtime::Disk> disk,
                  co_await open_disk(env_, member.record.path));
    CO_TRY_ASSIGN(std::unique_ptr<media::Device> device,
                  co_await media::Device::open(env_, std::move(disk)));
    bool is_ours =
        device->id() == member.record.id && device->incarnation() == member.record.incarnation;
    if (!is_ours && !PLANTED("device.any_will_do")) {
        co_await device->close();
        co_return fail(Code::corrupt,
                       "{} is device {} now, not {}: it was swapped or formatted again; put the "
                       "old device back, or remove this one with `peplos device rm`",
                       member.record.path, device->id(), member.record.id);
    }
    for (const std::string& line : device->report().corruptions) {
        LOG_ERROR("device damaged device={} path={} what=\"{}\"", member.record.id,
                  member.record.path, line);
    }
    CO_TRY_ASSIGN(member.journal, co_await replica::LocalJournal::open(env_, *device));
    member.device = std::move(device);
    space_.add_store(&member.device->segments());
    member.resources = std::make_unique<volume::Resources>(
        volume::Resources{env_, *member.journal, leaf_cache_, overlay_, space_, background});
    co_return Result<void>();
}

Task<void> DeviceSet::open(control::DeviceRecord record, volume::Background* background) {
    members_.push_back(std::make_unique<Member>());
    Member& member = *members_.back();
    member.record = std::move(record);
    Result<void> opened = co_await open_member(member, background);
    if (opened) {
        LOG_INFO("device in service device={} path={} boot={}", member.record.id,
                 member.record.path, member.device->boot());
        co_return;
    }
    member.problem = opened.error().message();
    space_.note_missing(member.record.path);
    LOG_ERROR("device not in service device={} path={} why=\"{}\"", member.record.id,
              member.record.path, opened.error().text());
}

Task<Result<control::DeviceRecord>> DeviceSet::make(NewDevice wish) {
    for (const auto& member : members_) {
        if (member->record.path == wish.path) {
            co_return fail(Code::already_exists, "{} is already a device of this node", wish.path);
        }
    }
    CO_TRY_ASSIGN(std::unique_ptr<runtime::Disk> disk,
                  co_await env_.disks.open(wish.path, runtime::DiskOptions{wish.create_bytes}));
    media::FormatOptions options;
    options.ring_bytes =
        wish.ring_bytes != 0 ? wish.ring_bytes : default_ring_bytes(disk->size_bytes());
    options.media_class = to_format(wish.media_class);
    CO_TRY(co_await media::format_device(*disk, options, env_.rng));
    uint64_t bytes = disk->size_bytes();
    CO_TRY_ASSIGN(std::unique_ptr<media::Device> device,
                  co_await media::Device::open(env_, std::move(disk)));
    control::DeviceRecord record;
    record.id = device->id();
    record.node = wish.node;
    record.path = wish.path;
    record.media_class = wish.media_class;
    record.bytes = bytes;
    record.incarnation = device->incarnation();
    co_await device->close();
    co_return record;
}

Result<DeviceSet::Member*> DeviceSet::choose_home() {
    Member* best = nullptr;
    uint32_t best_units = 0;
    for (const auto& member : members_) {
        if (!member->is_usable()) continue;
        uint32_t units = member->device->segments().space().free_units;
        if (best == nullptr || units > best_units) {
            best = member.get();
            best_units = units;
        }
    }
    if (best == nullptr) {
        return fail(Code::unavailable,
                    "this node has no device in service; add one with `peplos device add PATH`");
    }
    return best;
}

Result<DeviceSet::Member*> DeviceSet::find(const DeviceId& id) {
    for (const auto& member : members_) {
        if (member->record.id != id) continue;
        if (member->is_usable()) return member.get();
        std::string why =
            member->device == nullptr ? member->problem : member->device->failure().message();
        return fail(Code::unavailable, "device {} is out of service: {}", member->record.path, why);
    }
    return fail(Code::unavailable, "device {} is not on this node", id);
}

DeviceInfo DeviceSet::info(const Member& member) const {
    DeviceInfo info;
    info.id = member.record.id;
    info.path = member.record.path;
    info.media_class = control::name_of(member.record.media_class);
    info.bytes = member.record.bytes;
    media::DeviceErrors errors;
    if (member.device != nullptr) errors = member.device->errors();
    info.read_errors = errors.reads;
    info.write_errors = errors.writes;
    info.corruptions = errors.corruptions;
    if (!member.is_usable()) {
        info.health = {
            Light::red,
            member.device == nullptr ? member.problem : member.device->failure().message(),
            "check the disk and restart peplosd"};
        return info;
    }
    media::SegmentSpace space = member.device->segments().space();
    info.segment_bytes_total = space.total_units * limits::kSegmentUnitBytes;
    info.segment_bytes_free = space.free_units * limits::kSegmentUnitBytes;
    media::RingStats ring = member.device->ring().stats();
    info.ring_bytes = ring.ring_bytes;
    info.ring_bytes_used = ring.used_bytes;
    uint64_t used = space.total_units - space.free_units;
    uint64_t percent = space.total_units == 0 ? 100 : used * 100 / space.total_units;
    if (errors.count() != 0) {
        info.health = {
            Light::yellow,
            fmt::format("{}: {} failed read{} and {} corrupt piece{} since it was "
                        "opened, the last: {}",
                        info.path, errors.reads, errors.reads == 1 ? "" : "s", errors.corruptions,
                        errors.corruptions == 1 ? "" : "s", errors.last),
            "check the disk (smartctl, the kernel's log); peplos scrub start"};
    } else if (!member.device->report().corruptions.empty()) {
        info.health = {Light::yellow, member.device->report().corruptions.front(),
                       "peplos scrub start"};
    } else if (percent >= kFullPercent) {
        info.health = {Light::red, fmt::format("{} is {} % full", info.path, percent),
                       "remove or trim volumes, or peplos device add PATH"};
    } else if (percent >= kNearlyFullPercent) {
        info.health = {Light::yellow, fmt::format("{} is {} % full", info.path, percent),
                       "peplos device add PATH"};
    }
    return info;
}

Task<void> DeviceSet::close() {
    for (const auto& member : members_) {
        member->resources.reset();
        if (member->journal != nullptr) co_await member->journal->stop();
        if (member->device != nullptr) co_await member->device->close();
    }
    for (const auto& member : members_) {
        member->journal.reset();
        member->device.reset();
    }
}

}  // namespace peplos::fabric
