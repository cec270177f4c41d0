#include <sstream>

#include "base/log.h"
#include "fabric/local_node.h"

// Mounting volumes for containers, and letting go of them.
namespace peplos::fabric {
namespace {

// A volume that nobody holds stays attached this long: Docker mounts a new volume twice in a row
// (once to copy the image's files into it).
constexpr Duration kReleaseDelay = std::chrono::seconds(1);
// How often a detach that the kernel refused is tried again.
constexpr Duration kReleaseRetry = std::chrono::seconds(10);

std::vector<std::string> words_of(const std::string& text) {
    std::istringstream stream(text);
    std::vector<std::string> words;
    for (std::string word; stream >> word;)
        words.push_back(word);
    return words;
}

}  // namespace

AttachSpec LocalNode::attach_spec(const Entry& entry) const {
    const control::VolumeRecord& record = entry.record();
    AttachSpec spec;
    spec.id = record.id;
    spec.name = record.name;
    spec.fs = record.fs == "xfs" ? FsType::xfs : FsType::ext4;
    spec.mkfs_options = words_of(record.mkfs_options);
    spec.uid = record.uid ? int64_t{*record.uid} : -1;
    spec.gid = record.gid ? int64_t{*record.gid} : -1;
    spec.mode = record.mode ? int64_t{*record.mode} : -1;
    spec.blank = record.format_state != control::FormatState::formatted;
    return spec;
}

Task<Result<std::string>> LocalNode::mount(std::string name, std::string holder) {
    CO_TRY_ASSIGN(auto pass, enter());
    if (holder.empty() || holder.size() > 256) {
        co_return fail(Code::invalid_argument, "a mount needs its caller's id, 1 to 256 bytes");
    }
    CO_TRY_ASSIGN(EntryPtr entry, find(name));
    co_return co_await mount_entry(std::move(entry), std::move(holder));
}

Task<Result<std::string>> LocalNode::mount_entry(EntryPtr entry, std::string holder) {
    auto guard = co_await entry->lock.lock();
    if (entry->gone) co_return fail(Code::not_found, "the volume was removed meanwhile");
    CO_TRY(co_await attach_entry(*entry));
    ++entry->mounts.holders[holder];
    Result<void> stored = co_await store_mounts(*entry);
    if (!stored) {
        auto found = entry->mounts.holders.find(holder);
        if (--found->second == 0) entry->mounts.holders.erase(found);
        release_alarm_.ring();
        co_return fail(std::move(stored).error());
    }
    co_return entry->path;
}

Task<Result<void>> LocalNode::attach_entry(Entry& entry) {
    if (attachments_ == nullptr) {
        co_return fail(Code::unsupported, "this peplosd serves no volumes to its host");
    }
    VolumeId id = entry.record().id;
    bool alive = false;
    if (entry.is_attached() && entry.open != nullptr && !entry.open->faulted()) {
        Result<AttachInfo> info = attachments_->info(id);
        alive = info && info->problem.empty();
        // A release that found the volume in use elsewhere has unmounted it here all the same:
        // then attach() mounts it again.
        if (alive && !info->path.empty()) co_return Result<void>();
    }
    // An attachment whose volume or kernel side is gone is made anew.
    if (entry.is_attached() && !alive) {
        CO_TRY(co_await attachments_->detach(id));
        entry.path.clear();
    }
    CO_TRY(co_await open_volume(entry));
    AttachSpec spec = attach_spec(entry);
    if (spec.blank && entry.record().format_state == control::FormatState::blank) {
        control::VolumeRecord record = entry.record();
        record.format_state = control::FormatState::formatting;
        CO_TRY_ASSIGN(entry.stored,
                      co_await write_volume(store_, std::move(record), entry.stored.revision));
    }
    Attachments::Formatted formatted = [this](VolumeId volume) { return record_formatted(volume); };
    Result<AttachInfo> attached =
        co_await attachments_->attach(std::move(spec), entry.open, std::move(formatted));
    if (!attached) {
        entry.problem = attached.error().message();
        release_alarm_.ring();
        co_return fail(std::move(attached).error());
    }
    entry.problem.clear();
    entry.path = attached->path;
    co_return Result<void>();
}

// Called by attach with the entry's lock held by mount_entry().
Task<Result<void>> LocalNode::record_formatted(VolumeId id) {
    auto found = entries_.find(id);
    if (found == entries_.end()) co_return fail(Code::not_found, "volume {} is gone", id);
    EntryPtr entry = found->second;
    control::VolumeRecord record = entry->record();
    record.format_state = control::FormatState::formatted;
    CO_TRY_ASSIGN(entry->stored,
                  co_await write_volume(store_, std::move(record), entry->stored.revision));
    co_return Result<void>();
}

Task<Result<void>> LocalNode::store_mounts(Entry& entry) {
    std::string key = control::mount_key(node_.id, entry.record().id);
    control::Transaction change;
    if (entry.mounts.holders.empty()) {
        change.push_back(control::remove(std::move(key), std::nullopt));
    } else {
        change.push_back(
            control::put(std::move(key), std::nullopt, control::encode_mount(entry.mounts)));
    }
    // The record of this node alone; an unknown outcome is mended by the next change.
    Result<control::Revision> stored = co_await store_.compare_and_set(std::move(change));
    if (!stored) co_return fail(std::move(stored).error());
    co_return Result<void>();
}

Task<Result<void>> LocalNode::unmount(std::string name, std::string holder) {
    CO_TRY_ASSIGN(auto pass, enter());
    CO_TRY_ASSIGN(EntryPtr entry, find(name));
    auto guard = co_await entry->lock.lock();
    auto found = entry->mounts.holders.find(holder);
    if (found != entry->mounts.holders.end()) {
        if (--found->second == 0) entry->mounts.holders.erase(found);
        Result<void> stored = co_await store_mounts(*entry);
        if (!stored) {
            LOG_WARN("mounts not stored volume={} why=\"{}\"", entry->record().id,
                     stored.error().text());
        }
    }
    if (entry->mounts.holders.empty()) release_alarm_.ring();
    co_return Result<void>();
}

Task<Result<void>> LocalNode::forget_holders() {
    CO_TRY_ASSIGN(auto pass, enter());
    std::vector<EntryPtr> held;
    for (const auto& [id, entry] : entries_) {
        if (!entry->mounts.holders.empty()) held.push_back(entry);
    }
    for (const EntryPtr& entry : held) {
        auto guard = co_await entry->lock.lock();
        if (entry->gone) continue;
        entry->mounts.holders.clear();
        CO_TRY(co_await store_mounts(*entry));
    }
    release_alarm_.ring();
    co_return Result<void>();
}

// Requires: the entry's lock. Detaches and closes; nothing happens to what is not open.
Task<Result<void>> LocalNode::release(Entry& entry) {
    if (entry.is_attached()) {
        Result<void> detached = co_await attachments_->detach(entry.record().id);
        if (!detached) co_return fail(std::move(detached).error());
        entry.path.clear();
    }
    co_return co_await close_volume(entry);
}

Task<void> LocalNode::release_loop() {
    while (!stopping_.is_set()) {
        bool again = false;
        std::vector<EntryPtr> idle;
        for (const auto& [id, entry] : entries_) {
            if (entry->open != nullptr && entry->mounts.holders.empty()) idle.push_back(entry);
        }
        for (const EntryPtr& entry : idle) {
            if (stopping_.is_set()) co_return;
            auto guard = co_await entry->lock.lock();
            if (entry->gone || entry->open == nullptr || !entry->mounts.holders.empty()) continue;
            Result<void> released = co_await release(*entry);
            if (!released) {
                again = true;
                LOG_DEBUG("volume not released volume={} why=\"{}\"", entry->record().id,
                          released.error().text());
            }
        }
        if (again) {
            co_await release_alarm_.wait(env_.clock, kReleaseRetry);
        } else {
            co_await release_alarm_.wait();
        }
        if (!stopping_.is_set()) co_await release_delay_.wait(env_.clock, kReleaseDelay);
    }
}

// Space that containers freed comes back by itself, one volume after the other.
Task<void> LocalNode::trim_loop() {
    while (!stopping_.is_set()) {
        co_await trim_alarm_.wait(env_.clock, options_.trim_interval);
        std::vector<EntryPtr> attached;
        for (const auto& [id, entry] : entries_) {
            if (entry->is_attached()) attached.push_back(entry);
        }
        for (const EntryPtr& entry : attached) {
            if (stopping_.is_set()) co_return;
            // Without the lock: a trim may take long, and Docker's calls must not wait for it.
            if (entry->gone || !entry->is_attached()) continue;
            Result<uint64_t> trimmed = co_await attachments_->trim(entry->record().id);
            if (!trimmed) {
                LOG_DEBUG("volume not trimmed volume={} why=\"{}\"", entry->record().id,
                          trimmed.error().text());
            }
        }
    }
}

Task<Result<uint64_t>> LocalNode::trim_volume(std::string name) {
    CO_TRY_ASSIGN(auto pass, enter());
    CO_TRY_ASSIGN(EntryPtr entry, find(name));
    if (!entry->is_attached()) {
        co_return fail(Code::busy,
                       "volume {:?} is not mounted; only a mounted file system knows what is free",
                       name);
    }
    co_return co_await attachments_->trim(entry->record().id);
}

Task<Result<void>> LocalNode::detach_forced(std::string name) {
    CO_TRY_ASSIGN(auto pass, enter());
    CO_TRY_ASSIGN(EntryPtr entry, find(name));
    auto guard = co_await entry->lock.lock();
    if (attachments_ == nullptr) co_return Result<void>();
    CO_TRY(co_await attachments_->detach_forced(entry->record().id));
    entry->path.clear();
    entry->mounts.holders.clear();
    CO_TRY(co_await store_mounts(*entry));
    co_return co_await close_volume(*entry);
}

}  // namespace peplos::fabric
