#include "fabric/local_node.h"

// What the node says of itself: volumes, devices, health, metrics.
namespace peplos::fabric {
namespace {

void worsen(Health& worst, const Health& other) {
    if (static_cast<int>(other.light) > static_cast<int>(worst.light)) worst = other;
}

WallTime wall_time(int64_t seconds) {
    return WallTime(std::chrono::seconds(seconds));
}

}  // namespace

Health LocalNode::health_of(const Entry& entry) const {
    const std::string& name = entry.record().name;
    if (entry.claimer != nullptr) {
        const std::string why = entry.claimer->why();
        return {Light::yellow,
                fmt::format("this node is taking it over{}{}", why.empty() ? "" : ": ", why),
                "wait, or bring the nodes back that are named"};
    }
    if (entry.log != nullptr) {
        replica::EnsembleStatus status = entry.log->status();
        if (!status.why.empty() && entry.open != nullptr && !entry.open->faulted()) {
            return {Light::yellow, fmt::format("its journal: {}", status.why),
                    "peplos node ls names nodes that are away"};
        }
    }
    if (entry.open != nullptr) {
        if (auto fault = entry.open->faulted()) {
            return {Light::red, fault->message(), "peplos doctor"};
        }
    }
    if (entry.open != nullptr) {
        const std::string waits_for = entry.open->stats().waits_for;
        if (!waits_for.empty())
            return {Light::yellow, fmt::format("its containers wait: {}", waits_for),
                    "peplos node ls names nodes that are away"};
    }
    if (entry.is_damaged) {
        return {Light::red, entry.problem, "repair the file system as told, then mount it again"};
    }
    if (entry.is_attached()) {
        Result<AttachInfo> info = attachments_->info(entry.record().id);
        if (!info) return {Light::red, info.error().message(), "peplos doctor --fix"};
        if (!info->problem.empty()) return {Light::red, info->problem, "peplos doctor --fix"};
    }
    if (!entry.problem.empty()) {
        return {Light::red, entry.problem,
                fmt::format("peplos volume {} {}", entry.is_unreadable ? "recover" : "show", name)};
    }
    if (uint64_t lost = entry.open == nullptr ? 0 : entry.open->stats().lost_blocks; lost != 0) {
        return {Light::red,
                fmt::format("{} blocks (of 4 KiB) are lost, a part of the volume's map could not "
                            "be read: they read as errors until they are written again",
                            lost),
                "peplos scrub start names them; restore these files from a backup"};
    }
    if (entry.open != nullptr && entry.open->stats().corrupt_blocks != 0) {
        return {Light::yellow, "reads met blocks that do not match their checksums",
                "peplos scrub start"};
    }
    return {};
}

// Work behind the volumes that fails is repeated by itself; it is shown while it is recent.
Health LocalNode::background_health() const {
    constexpr Duration kRecent = std::chrono::minutes(15);
    if (scrubber_ == nullptr) return {};
    Node::ScrubReport report = scrubber_->scrub_report();
    if (!report.problems.empty()) {
        return {Light::red,
                fmt::format("a scrub found {} problem{}, the first: {}", report.problems.size(),
                            report.problems.size() == 1 ? "" : "s", report.problems.front()),
                "peplos scrub show"};
    }
    std::optional<Scrubber::Failure> failure = scrubber_->last_failure();
    if (failure && env_.clock.now() - failure->at < kRecent) {
        return {Light::yellow, fmt::format("background work failed: {}", failure->what),
                "it is repeated by itself; if this stays: peplos doctor, journalctl -u peplosd"};
    }
    return {};
}

VolumeInfo LocalNode::info_of(const Entry& entry) const {
    const control::VolumeRecord& record = entry.record();
    VolumeInfo info;
    info.id = record.id;
    info.spec.name = record.name;
    info.spec.size_bytes = record.size_bytes;
    info.spec.copies = record.copies;
    info.spec.sector_bytes = record.sector_bytes;
    info.spec.fs = record.fs == "xfs" ? FsType::xfs : FsType::ext4;
    info.spec.mkfs_options = record.mkfs_options;
    info.spec.uid = record.uid ? int64_t{*record.uid} : -1;
    info.spec.gid = record.gid ? int64_t{*record.gid} : -1;
    info.spec.mode = record.mode ? int64_t{*record.mode} : -1;
    info.spec.labels = record.labels;
    info.created_at = wall_time(record.created_at_s);
    info.host = is_elsewhere(entry) ? cluster_->name_of(record.owner) : node_.name;
    info.formatted = record.format_state == control::FormatState::formatted;
    info.state = entry.is_attached() ? "attached" : "available";
    info.used_bytes = entry.used_bytes_seen;
    if (entry.open != nullptr) info.used_bytes = entry.open->stats().live_bytes;
    for (const auto& member : devices_.members()) {
        if (!member->is_usable()) continue;
        info.stored_bytes += member->device->segments().stored_bytes(record.id);
    }
    if (info.used_bytes == 0 && entry.open == nullptr) info.used_bytes = info.stored_bytes;
    for (const auto& [holder, count] : entry.mounts.holders)
        info.holders.push_back(holder);
    if (attachments_ != nullptr) {
        Result<AttachInfo> attach = attachments_->info(record.id);
        if (attach) info.attach = std::move(*attach);
    }
    if (entry.loss) {
        info.recovered_at = wall_time(entry.loss->accepted_at_s);
        info.recovered_without = entry.loss->what;
        if (!entry.loss->is_done) info.recovered_without += " (under way, or cut short)";
    }
    info.health = health_of(entry);
    if (info.health.light == Light::red) info.state = "failed";
    return info;
}

Task<Result<VolumeInfo>> LocalNode::volume(std::string name) {
    CO_TRY_ASSIGN(auto pass, enter());
    want_fresh_sizes();
    CO_TRY_ASSIGN(EntryPtr entry, co_await look_up(std::move(name)));
    co_return info_of(*entry);
}

Task<Result<std::vector<VolumeInfo>>> LocalNode::volumes() {
    CO_TRY_ASSIGN(auto pass, enter());
    want_fresh_sizes();
    std::vector<VolumeInfo> all;
    all.reserve(names_.size());
    for (const auto& [name, entry] : names_)
        all.push_back(info_of(*entry));
    co_return all;
}

Task<Result<NodeStatus>> LocalNode::status() {
    CO_TRY_ASSIGN(auto pass, enter());
    NodeStatus status;
    status.id = node_.id;
    status.name = node_.name;
    status.version = PEPLOS_VERSION;
    status.started_at = started_at_;
    for (const auto& member : devices_.members()) {
        status.devices.push_back(devices_.info(*member));
        const DeviceInfo& device = status.devices.back();
        status.capacity_bytes += device.segment_bytes_total;
        status.free_bytes += device.segment_bytes_free;
        worsen(status.health, device.health);
    }
    if (status.devices.empty()) {
        worsen(status.health, {Light::red, "this node has no device, so it can hold no volume",
                               "peplos device add PATH"});
    }
    for (const auto& [name, entry] : names_) {
        ++status.volume_count;
        if (entry->is_attached()) ++status.attached_count;
        Health health = health_of(*entry);
        if (health.light != Light::green) {
            health.reason = fmt::format("volume {}: {}", name, health.reason);
        }
        worsen(status.health, health);
    }
    worsen(status.health, background_health());
    co_return status;
}

Task<Result<DeviceInfo>> LocalNode::add_device(std::string path, uint64_t create_bytes,
                                               std::string media_class) {
    CO_TRY_ASSIGN(auto pass, enter());
    DeviceSet::NewDevice wish;
    wish.path = std::move(path);
    wish.create_bytes = create_bytes;
    wish.node = node_.id;
    if (media_class.empty() || media_class == "ssd") {
        wish.media_class = control::MediaClass::ssd;
    } else if (media_class == "nvme") {
        wish.media_class = control::MediaClass::nvme;
    } else if (media_class == "hdd") {
        wish.media_class = control::MediaClass::hdd;
    } else {
        co_return fail(Code::invalid_argument, "media class {:?} is not one of nvme, ssd, hdd",
                       media_class);
    }
    if (wish.path.empty() || wish.path.front() != '/') {
        co_return fail(Code::invalid_argument, "a device's path is absolute; {:?} is not",
                       wish.path);
    }
    auto guard = co_await device_lock_.lock();
    CO_TRY_ASSIGN(control::DeviceRecord record, co_await devices_.make(std::move(wish)));
    CO_TRY_ASSIGN(std::string value, control::encode(record));
    control::Transaction birth;
    birth.push_back(control::create(control::device_key(record.id), std::move(value)));
    CO_TRY(co_await store_.compare_and_set(std::move(birth)));
    co_await devices_.open(record, background_);
    const DeviceSet::Member& member = *devices_.members().back();
    if (!member.is_usable()) co_return fail(Code::io_error, "{}", member.problem);
    if (cluster_ != nullptr) {
        member.resources->placement = cluster_.get();
        cluster_->add_device(member);
    }
    co_return devices_.info(member);
}

Task<Result<void>> LocalNode::start_scrub() {
    CO_TRY_ASSIGN(auto pass, enter());
    if (scrubber_ == nullptr) co_return fail(Code::unsupported, "this peplosd runs no scrubber");
    co_return scrubber_->start_scrub();
}

Task<Result<Node::ScrubReport>> LocalNode::scrub_report() {
    CO_TRY_ASSIGN(auto pass, enter());
    if (scrubber_ == nullptr) co_return fail(Code::unsupported, "this peplosd runs no scrubber");
    co_return scrubber_->scrub_report();
}

namespace {

using Labels = std::vector<std::pair<std::string, std::string>>;

void add(std::vector<Metric>& out, std::string name, std::string help, Labels labels,
         double value) {
    bool counter = name.ends_with("_total");
    out.push_back({std::move(name), std::move(help), counter, std::move(labels), value});
}

void add_operation(std::vector<Metric>& out, const std::string& volume, const char* operation,
                   const volume::OperationStats& stats) {
    Labels labels = {{"volume", volume}, {"operation", operation}};
    add(out, "peplos_volume_operations_total", "I/O operations served.", labels,
        static_cast<double>(stats.count));
    add(out, "peplos_volume_bytes_total", "Bytes of I/O served.", labels,
        static_cast<double>(stats.bytes));
    add(out, "peplos_volume_errors_total", "I/O operations that failed.", labels,
        static_cast<double>(stats.errors));
    add(out, "peplos_volume_latency_seconds_total", "Sum of the latencies of I/O operations.",
        labels, static_cast<double>(stats.latency.us_sum) / 1e6);
}

void add_volume(std::vector<Metric>& out, const std::string& name,
                const volume::VolumeStats& stats) {
    add_operation(out, name, "read", stats.read);
    add_operation(out, name, "write", stats.write);
    add_operation(out, name, "zero", stats.zero);
    Labels labels = {{"volume", name}};
    add(out, "peplos_volume_live_bytes", "Data that a reader could get.", labels,
        static_cast<double>(stats.live_bytes));
    add(out, "peplos_volume_undrained_bytes", "Acknowledged data not yet in sealed segments.",
        labels, static_cast<double>(stats.undrained_bytes));
    add(out, "peplos_volume_drained_bytes_total", "Bytes written to segments by drains.", labels,
        static_cast<double>(stats.drained_bytes));
    add(out, "peplos_volume_relocated_bytes_total", "Bytes written to segments by the cleaner.",
        labels, static_cast<double>(stats.relocated_bytes));
    add(out, "peplos_volume_corrupt_blocks_total", "Blocks that did not match their checksum.",
        labels, static_cast<double>(stats.corrupt_blocks));
}

}  // namespace

Task<std::vector<Metric>> LocalNode::metrics() {
    want_fresh_sizes();
    std::vector<Metric> out;
    for (const auto& member : devices_.members()) {
        DeviceInfo device = devices_.info(*member);
        Labels labels = {{"device", device.path}};
        add(out, "peplos_device_up", "1 while the device is in service.", labels,
            member->is_usable() ? 1 : 0);
        add(out, "peplos_device_read_errors_total", "Reads that failed.", labels,
            static_cast<double>(device.read_errors));
        add(out, "peplos_device_write_errors_total", "Writes and syncs that failed.", labels,
            static_cast<double>(device.write_errors));
        add(out, "peplos_device_corruptions_total",
            "Pieces that did not match their checksum or identity.", labels,
            static_cast<double>(device.corruptions));
        if (!member->is_usable()) continue;
        add(out, "peplos_device_bytes", "Segment space.", labels,
            static_cast<double>(device.segment_bytes_total));
        add(out, "peplos_device_free_bytes", "Free segment space.", labels,
            static_cast<double>(device.segment_bytes_free));
        add(out, "peplos_journal_used_bytes", "Journal space between tail and head.", labels,
            static_cast<double>(device.ring_bytes_used));
        replica::JournalStats journal = member->journal->stats();
        add(out, "peplos_journal_commits_total", "Group commits.", labels,
            static_cast<double>(journal.ring.commits));
        add(out, "peplos_journal_records_total", "Records appended.", labels,
            static_cast<double>(journal.ring.records));
        add(out, "peplos_journal_bytes_total", "Bytes appended.", labels,
            static_cast<double>(journal.ring.appended_bytes));
    }
    if (scrubber_ != nullptr) {
        Node::ScrubReport scrub = scrubber_->scrub_report();
        add(out, "peplos_scrub_running", "1 while a scrub runs.", {}, scrub.running ? 1 : 0);
        add(out, "peplos_scrub_checked_bytes", "Bytes that the present or last scrub checked.", {},
            static_cast<double>(scrub.bytes_checked));
        add(out, "peplos_scrub_problems", "Problems that the present or last scrub found.", {},
            static_cast<double>(scrub.problems.size()));
    }
    add(out, "peplos_overlay_used_bytes", "Undrained data held in memory.", {},
        static_cast<double>(devices_.overlay().used_bytes()));
    add(out, "peplos_volumes", "Volumes of the node.", {}, static_cast<double>(names_.size()));
    for (const auto& [name, entry] : names_) {
        bool attached = entry->is_attached();
        add(out, "peplos_volume_attached", "1 while the volume is mounted on this host.",
            {{"volume", name}}, attached ? 1 : 0);
        add(out, "peplos_volume_size_bytes", "The size users see.", {{"volume", name}},
            static_cast<double>(entry->record().size_bytes));
        if (entry->open != nullptr) add_volume(out, name, entry->open->stats());
        if (!attached) continue;
        Result<AttachInfo> info = attachments_->info(entry->record().id);
        if (!info || info->fs_bytes == 0) continue;
        add(out, "peplos_volume_fs_bytes", "Size of the file system.", {{"volume", name}},
            static_cast<double>(info->fs_bytes));
        add(out, "peplos_volume_fs_used_bytes", "Space taken in the file system.",
            {{"volume", name}}, static_cast<double>(info->fs_used_bytes));
    }
    co_return out;
}

}  // namespace peplos::fabric
