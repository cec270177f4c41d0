#include "base/log.h"
#include "fabric/local_node.h"

// Creating, growing and removing volumes.
namespace peplos::fabric {
namespace {

std::optional<uint32_t> given(int64_t value) {
    if (value < 0) return std::nullopt;
    return static_cast<uint32_t>(value);
}

std::string shown(std::optional<uint32_t> value) {
    return value ? fmt::format("{}", *value) : "(not given)";
}

control::VolumeRecord record_of(const VolumeSpec& spec, runtime::Env& env) {
    control::VolumeRecord record;
    record.id = VolumeId(env.rng.next_id());
    record.name = spec.name;
    record.lineage = LineageId(env.rng.next_id());
    record.size_bytes = spec.size_bytes;
    record.copies = spec.copies;
    record.sector_bytes = spec.sector_bytes;
    record.labels = spec.labels;
    record.created_at_s = unix_seconds(env.clock.wall_now());
    record.fs = std::string(name_of(spec.fs));
    record.mkfs_options = spec.mkfs_options;
    record.uid = given(spec.uid);
    record.gid = given(spec.gid);
    record.mode = given(spec.mode);
    return record;
}

// The first option in which an existing volume differs from what is asked, for the message.
// The size may have grown since; an equal or smaller wish is met.
std::string difference(const control::VolumeRecord& has, const control::VolumeRecord& wants) {
    if (has.size_bytes < wants.size_bytes) {
        return fmt::format("size {} (asked: {}; peplos volume grow changes it)",
                           print_size(has.size_bytes), print_size(wants.size_bytes));
    }
    if (has.copies != wants.copies) return fmt::format("copies={}", has.copies);
    if (has.sector_bytes != wants.sector_bytes) {
        return fmt::format("sector-size={}", has.sector_bytes);
    }
    if (has.fs != wants.fs) return fmt::format("fs={}", has.fs);
    if (has.mkfs_options != wants.mkfs_options) {
        return fmt::format("mkfs-options={:?}", has.mkfs_options);
    }
    if (has.uid != wants.uid) return fmt::format("uid={}", shown(has.uid));
    if (has.gid != wants.gid) return fmt::format("gid={}", shown(has.gid));
    if (has.mode != wants.mode)
        return fmt::format("mode={}", has.mode ? fmt::format("{:o}", *has.mode) : "(not given)");
    if (has.labels != wants.labels) return "other labels";
    return {};
}

}  // namespace

Task<Result<VolumeInfo>> LocalNode::create_volume(VolumeSpec spec) {
    CO_TRY_ASSIGN(auto pass, enter());
    CO_TRY_ASSIGN(spec, validated(std::move(spec)));
    if (spec.copies != 1 && cluster_ == nullptr) {
        co_return fail(Code::unsupported,
                       "copies={} needs as many nodes and this cluster has one; use copies=1",
                       spec.copies);
    }
    // Of two creations of one name at once the second waits, and then finds the first's volume.
    while (creating_.contains(spec.name) && !stopping_.is_set())
        co_await creating_changed_.wait();
    if (stopping_.is_set()) co_return fail(Code::stopping, "peplosd is stopping");
    if (auto found = names_.find(spec.name); found != names_.end()) {
        EntryPtr entry = found->second;
        co_return co_await existing(std::move(spec), std::move(entry));
    }
    std::string name = spec.name;
    creating_[name] = 1;
    Result<VolumeInfo> created = co_await create_new(std::move(spec));
    creating_.erase(name);
    creating_changed_.wake_all();
    co_return created;
}

Task<Result<VolumeInfo>> LocalNode::existing(VolumeSpec spec, EntryPtr entry) {
    std::string differs = difference(entry->record(), record_of(spec, env_));
    if (!differs.empty()) {
        co_return fail(Code::already_exists,
                       "volume {:?} exists already with {}; choose another name or leave that "
                       "option as it is",
                       spec.name, differs);
    }
    co_return info_of(*entry);
}

Task<Result<VolumeInfo>> LocalNode::create_new(VolumeSpec spec) {
    if (entries_.size() >= limits::kVolumeCountMax) {
        co_return fail(Code::busy, "this cluster holds {} volumes, its bound; remove some",
                       entries_.size());
    }
    // Without a device the volume could never be mounted: better say so now.
    CO_TRY(devices_.choose_home());
    control::VolumeRecord record = record_of(spec, env_);
    CO_TRY_ASSIGN(control::Transaction transaction, control::volume_creation(record));
    control::Store& store = store_;
    VolumeId id = record.id;
    auto happened = [&store, id]() -> Task<Result<bool>> {
        return [](control::Store& s, VolumeId volume) -> Task<Result<bool>> {
            Result<StoredVolume> stored = co_await read_volume(s, volume);
            if (stored) co_return true;
            if (stored.error().code() == Code::not_found) co_return false;
            co_return fail(std::move(stored).error());
        }(store, id);
    };
    Result<void> created = co_await settle(store_, std::move(transaction), happened);
    if (!created && created.error().code() == Code::conflict) {
        // An earlier attempt has happened, although the store could not say so then.
        CO_TRY_ASSIGN(EntryPtr found, co_await look_up(spec.name));
        co_return co_await existing(std::move(spec), std::move(found));
    }
    CO_TRY(std::move(created));
    CO_TRY_ASSIGN(StoredVolume stored, co_await read_volume(store_, id));
    EntryPtr entry = take_up(std::move(stored));
    LOG_INFO("volume created volume={} name={} bytes={}", id, entry->record().name,
             entry->record().size_bytes);
    co_return info_of(*entry);
}

Task<Result<void>> LocalNode::remove_volume(std::string name) {
    CO_TRY_ASSIGN(auto pass, enter());
    CO_TRY_ASSIGN(EntryPtr entry, co_await look_up(std::move(name)));
    co_return co_await remove_entry(std::move(entry));
}

Task<Result<void>> LocalNode::remove_entry(EntryPtr entry) {
    auto guard = co_await entry->lock.lock();
    const std::string name = entry->record().name;
    if (entry->gone) {
        co_return fail(Code::not_found, "no volume is called {:?}; see: peplos volume ls", name);
    }
    if (!entry->mounts.holders.empty()) {
        std::string holders;
        for (const auto& [holder, count] : entry->mounts.holders) {
            if (!holders.empty()) holders += ", ";
            holders += holder.substr(0, 12);
        }
        co_return fail(Code::busy, "volume {:?} is in use on {} by {}; stop these containers first",
                       name, node_.name, holders);
    }
    CO_TRY(co_await take_down(*entry));
    Result<void> closed = co_await close_volume(*entry);
    if (!closed) {
        // What could not be written is about to be deleted.
        LOG_WARN("volume closed for its removal volume={} why=\"{}\"", entry->record().id,
                 closed.error().text());
    }
    control::VolumeRecord record = entry->record();
    control::Transaction also;
    if (cluster_ != nullptr) CO_TRY(co_await prepare_deletion(*entry, record, also));
    CO_TRY_ASSIGN(control::Transaction deletion,
                  control::volume_deletion(std::move(record), entry->stored.revision));
    for (control::Operation& operation : also)
        deletion.push_back(std::move(operation));
    control::Store& store = store_;
    VolumeId id = entry->record().id;
    auto happened = [&store, id]() -> Task<Result<bool>> {
        return [](control::Store& s, VolumeId volume) -> Task<Result<bool>> {
            CO_TRY_ASSIGN(StoredVolume stored, co_await read_volume(s, volume));
            co_return stored.record.lifecycle == control::Lifecycle::deleting;
        }(store, id);
    };
    Result<void> deleted = co_await settle(store_, std::move(deletion), happened);
    if (!deleted) {
        Error why = co_await look_again(*entry, std::move(deleted).error());
        if (entry->record().lifecycle != control::Lifecycle::deleting) co_return fail(why);
    }
    forget(*entry);
    LOG_INFO("volume removed volume={} name={}", id, name);
    // From here on the user's wish is on record. Freeing the space is our own business.
    Result<StoredVolume> stored = co_await read_volume(store_, id);
    if (stored) {
        gate_.spawn(env_.executor, finish_deletion_later(std::move(*stored)));
    } else {
        LOG_WARN("volume's space not freed yet volume={} why=\"{}\" next=\"at the next start\"", id,
                 stored.error().text());
    }
    co_return Result<void>();
}

Task<Result<void>> LocalNode::finish_deletion(StoredVolume stored) {
    if (cluster_ != nullptr) co_return co_await finish_replicated_deletion(std::move(stored));
    VolumeId id = stored.record.id;
    if (!stored.record.ensemble.empty()) {
        // Segments may lie on every device; the log is on its home.
        CO_TRY_ASSIGN(DeviceSet::Member * home,
                      devices_.find(stored.record.ensemble.front().device));
        CO_TRY(co_await volume::Volume::destroy(*home->resources, id));
        // Forgotten now, what lies on a device that is missing would take its space for ever.
        if (const std::string& missing = devices_.space().missing(); !missing.empty()) {
            co_return fail(Code::unavailable,
                           "segments of it may be on {}, which is out of service", missing);
        }
    }
    control::Transaction forget = control::volume_forgetting(id, stored.revision);
    forget.push_back(control::remove(control::mount_key(node_.id, id), std::nullopt));
    forget.push_back(control::remove(control::loss_key(id), std::nullopt));
    CO_TRY(co_await store_.compare_and_set(std::move(forget)));
    LOG_INFO("volume's space freed volume={}", id);
    co_return Result<void>();
}

Task<void> LocalNode::finish_deletion_later(StoredVolume stored) {
    VolumeId id = stored.record.id;
    Result<void> done = co_await finish_deletion(stored);
    for (int i = 0; i < 50 && !done && done.error().code() == Code::busy; ++i) {
        if (gate_.is_closed()) break;
        co_await env_.clock.sleep_for(std::chrono::milliseconds(100));
        done = co_await finish_deletion(stored);
    }
    // A node that is away comes back, or is declared lost.
    while (cluster_ != nullptr && !done && !stopping_.is_set()) {
        LOG_INFO("volume's space not freed yet volume={} why=\"{}\"", id, done.error().text());
        for (int i = 0; i < 50 && !stopping_.is_set(); ++i)
            co_await env_.clock.sleep_for(std::chrono::milliseconds(100));
        if (!stopping_.is_set()) done = co_await finish_deletion(stored);
    }
    if (!done) {
        LOG_WARN("volume's space not freed yet volume={} why=\"{}\" next=\"at the next start\"", id,
                 done.error().text());
    }
}

Task<Result<std::string>> LocalNode::grow_volume(std::string name, uint64_t size_bytes) {
    CO_TRY_ASSIGN(auto pass, enter());
    CO_TRY_ASSIGN(EntryPtr entry, co_await look_up(std::move(name)));
    co_return co_await grow_entry(std::move(entry), size_bytes);
}

Task<Result<std::string>> LocalNode::grow_entry(EntryPtr entry, uint64_t size_bytes) {
    auto guard = co_await entry->lock.lock();
    if (entry->gone) co_return fail(Code::not_found, "the volume was removed meanwhile");
    uint64_t old_bytes = entry->record().size_bytes;
    if (size_bytes % kBlockBytes != 0 || size_bytes > limits::kVolumeBytesMax) {
        co_return fail(Code::invalid_argument,
                       "the new size must be a multiple of 4 KiB and at most {}",
                       print_size(limits::kVolumeBytesMax));
    }
    if (size_bytes < old_bytes) {
        co_return fail(Code::invalid_argument,
                       "volume {:?} has {} and volumes never shrink; a smaller one is a new volume",
                       entry->record().name, print_size(old_bytes));
    }
    CO_TRY(co_await open_volume(*entry));
    // Whatever comes of it: a volume that nobody holds is closed again.
    release_alarm_.ring();
    if (entry->is_attached() && entry->mounts.holders.empty()) {
        // It only waits for its detach. Gone now, the next mount is one that the file system grows
        // at; somebody whom the kernel knows and Docker does not keeps it attached.
        (void)co_await take_down(*entry);
    }
    CO_TRY(co_await entry->open->grow(size_bytes));
    control::VolumeRecord record = entry->record();
    record.size_bytes = size_bytes;
    CO_TRY(co_await change_record(*entry, std::move(record)));
    if (entry->is_attached()) co_return co_await attachments_->grow(entry->record().id);
    co_return fmt::format("the volume has {} now; its file system follows at the next mount",
                          print_size(size_bytes));
}

}  // namespace peplos::fabric
