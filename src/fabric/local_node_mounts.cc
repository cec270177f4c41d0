#include <set>
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
    CO_TRY_ASSIGN(EntryPtr entry, co_await look_up(std::move(name)));
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
    if (is_overtaken(entry)) {
        co_await give_up(entry, "another node took it over");
        if (entry.is_surviving) {
            co_return fail(Code::unavailable,
                           "this host still has an old state of volume {:?}, which another node "
                           "changed meanwhile: peplos volume detach {} --force",
                           entry.record().name, entry.record().name);
        }
    }
    bool is_served = entry.open != nullptr && !entry.open->faulted();
    if (entry.is_attached() && is_served) {
        // Not so when a detach that was refused half-way has taken the mount away.
        Result<AttachInfo> info = attachments_->info(id);
        bool is_alive = info && info->problem.empty() && info->path == entry.path;
        bool grows = is_alive && info->grows_at_mount && entry.mounts.holders.empty();
        if (is_alive && !grows) co_return Result<void>();
        // Nobody holds it: taken down and mounted anew, its file system follows the device. One
        // that the kernel still finds in use stays as it is.
        if (grows) (void)co_await take_down(entry);
    }
    // What the kernel has of a volume that lives is taken up again; a dead volume's goes first.
    if (!is_served) CO_TRY(co_await take_down(entry));
    entry.path.clear();
    CO_TRY(co_await open_volume(entry));
    AttachSpec spec = attach_spec(entry);
    if (spec.blank && entry.record().format_state == control::FormatState::blank) {
        control::VolumeRecord record = entry.record();
        record.format_state = control::FormatState::formatting;
        CO_TRY(co_await change_record(entry, std::move(record)));
    }
    Attachments::Formatted formatted = [this](VolumeId volume) { return record_formatted(volume); };
    Result<AttachInfo> attached =
        co_await attachments_->attach(std::move(spec), entry.open, std::move(formatted));
    entry.is_damaged = !attached && attached.error().code() == Code::corrupt;
    if (!attached) {
        entry.problem = attached.error().message();
        // Containers that had it mounted before may go on using it.
        Result<AttachInfo> left = attachments_->info(id);
        if (left) entry.path = left->path;
        release_alarm_.ring();
        co_return fail(std::move(attached).error());
    }
    entry.problem.clear();
    entry.is_surviving = entry.is_resuming = false;
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
    co_return co_await change_record(*entry, std::move(record));
}

// Errors: also unavailable (another node claimed the volume meanwhile).
Task<Result<void>> LocalNode::store_mounts(Entry& entry) {
    constexpr int kAttempts = 5;
    std::string key = control::mount_key(node_.id, entry.record().id);
    for (int attempt = 1;; ++attempt) {
        if (!entry.mounts.holders.empty() && is_overtaken(entry)) {
            co_return fail(Code::unavailable, "volume {:?} was claimed by {} meanwhile; repeat",
                           entry.record().name, cluster_->name_of(entry.record().owner));
        }
        control::Transaction change;
        const bool is_kept =
            cluster_ != nullptr && (entry.is_attached() || entry.is_surviving || is_on_host(entry));
        if (entry.mounts.holders.empty() && !is_kept) {
            entry.mounts.since_s = 0;
            change.push_back(control::remove(key, std::nullopt));
        } else {
            if (entry.mounts.since_s == 0)
                entry.mounts.since_s = unix_seconds(env_.clock.wall_now());
            // Whoever claims the volume from now on finds it mounted here, or this finds it
            // claimed.
            std::string volume = control::volume_key(entry.record().id);
            change.push_back(control::check(std::move(volume), entry.stored.revision));
            change.push_back(control::put(key, std::nullopt, control::encode_mount(entry.mounts)));
        }
        // The record of this node alone; an unknown outcome is mended by the next change.
        Result<control::Revision> stored = co_await store_.compare_and_set(std::move(change));
        entry.is_mount_stale = !stored;
        if (stored) co_return Result<void>();
        const Code code = stored.error().code();
        const Epoch epoch = entry.record().epoch;
        Error why = co_await look_again(entry, std::move(stored).error());
        bool is_ours = code == Code::conflict && entry.record().owner == node_.id &&
                       entry.record().epoch == epoch;
        if (!is_ours || attempt == kAttempts) co_return fail(std::move(why));
    }
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
    // Only what is held now: while this waits for one volume, the new dockerd mounts others.
    std::vector<std::pair<EntryPtr, control::MountRecord>> held;
    for (const auto& [id, entry] : entries_) {
        if (!entry->mounts.holders.empty()) held.emplace_back(entry, entry->mounts);
    }
    // What waits for other nodes keeps its lock for long.
    std::ranges::partition(held, [](const auto& one) { return !one.first->is_resuming; });
    Result<void> outcome;
    for (const auto& [entry, old] : held) {
        auto guard = co_await entry->lock.lock();
        if (entry->gone) continue;
        for (const auto& [holder, count] : old.holders) {
            auto found = entry->mounts.holders.find(holder);
            if (found == entry->mounts.holders.end()) continue;
            found->second -= std::min(found->second, count);
            if (found->second == 0) entry->mounts.holders.erase(found);
        }
        Result<void> stored = co_await store_mounts(*entry);
        if (!stored) outcome = std::move(stored);
    }
    release_alarm_.ring();
    co_return outcome;
}

// Whether the host still has what an earlier daemon attached; when nobody knows, it does.
Task<bool> LocalNode::survives(const Entry& entry) {
    if (!entry.is_surviving) co_return false;
    Result<std::vector<VolumeId>> found = co_await attachments_->find_surviving();
    co_return !found || std::ranges::find(*found, entry.record().id) != found->end();
}

// Requires: the entry's lock. Takes away whatever the host has of the volume, also what an attach
// or a resume that failed has left. Errors: as Attachments::detach, and everything stays.
Task<Result<void>> LocalNode::take_down(Entry& entry) {
    if (attachments_ == nullptr) co_return Result<void>();
    Result<void> detached = co_await attachments_->detach(entry.record().id);
    if (!detached && detached.error().code() != Code::not_found) {
        co_return fail(std::move(detached).error());
    }
    if (detached || !co_await survives(entry)) entry.is_surviving = false;
    entry.path.clear();
    entry.is_damaged = false;
    co_return Result<void>();
}

// Requires: the entry's lock. Detaches and closes; nothing happens to what is not open.
Task<Result<void>> LocalNode::release(Entry& entry) {
    CO_TRY(co_await take_down(entry));
    if (cluster_ != nullptr) CO_TRY(co_await store_mounts(entry));
    co_return co_await close_volume(entry);
}

Task<void> LocalNode::release_loop() {
    while (!stopping_.is_set()) {
        bool again = false;
        std::vector<EntryPtr> idle;
        for (const auto& [id, entry] : entries_) {
            bool is_kept = !entry->mounts.holders.empty() || entry->is_damaged;
            bool is_here = entry->open != nullptr || (cluster_ != nullptr && entry->is_mount_stale);
            if (is_here && !is_kept) idle.push_back(entry);
        }
        for (const EntryPtr& entry : idle) {
            if (stopping_.is_set()) co_return;
            // A claim may hold the lock for long, and the other volumes do not wait for it.
            if (entry->is_resuming || entry->claimer != nullptr) {
                again = true;
                continue;
            }
            auto guard = co_await entry->lock.lock();
            bool is_kept = !entry->mounts.holders.empty() || entry->is_damaged;
            bool is_here = entry->open != nullptr || (cluster_ != nullptr && entry->is_mount_stale);
            if (entry->gone || !is_here || is_kept) continue;
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
            Result<uint64_t> trimmed = co_await trim_entry(*entry);
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
    co_return co_await trim_entry(*entry);
}

// What the file system gave back is space again only once it is drained: an idle volume would keep
// it for as long as it stays idle.
Task<Result<uint64_t>> LocalNode::trim_entry(Entry& entry) {
    CO_TRY_ASSIGN(uint64_t bytes, co_await attachments_->trim(entry.record().id));
    std::shared_ptr<volume::Volume> open = entry.open;
    if (open == nullptr || bytes == 0) co_return bytes;
    Result<void> drained = co_await open->drain();
    if (!drained) {
        LOG_DEBUG("trimmed space not drained volume={} why=\"{}\"", entry.record().id,
                  drained.error().text());
    }
    co_return bytes;
}

Task<Result<void>> LocalNode::detach_forced(std::string name) {
    CO_TRY_ASSIGN(auto pass, enter());
    CO_TRY_ASSIGN(EntryPtr entry, find(name));
    // A claim holds the lock as long as other nodes let it wait.
    ++entry->detaches_waiting;
    if (entry->claimer != nullptr) entry->claimer->cancel();
    auto guard = co_await entry->lock.lock();
    --entry->detaches_waiting;
    if (entry->gone) co_return fail(Code::not_found, "the volume was removed meanwhile");
    if (attachments_ == nullptr) co_return Result<void>();
    CO_TRY(co_await attachments_->detach_forced(entry->record().id));
    entry->is_surviving = entry->is_resuming = false;
    entry->resume_delay.ring();
    entry->path.clear();
    entry->is_damaged = false;
    entry->problem.clear();
    entry->mounts.holders.clear();
    Result<void> stored = co_await store_mounts(*entry);
    Result<void> closed = co_await close_volume(*entry);
    co_return stored ? closed : stored;
}

// The sizes of file systems, read in the background when somebody has looked at the old ones.
Task<void> LocalNode::refresh_loop() {
    while (!stopping_.is_set()) {
        co_await refresh_alarm_.wait();
        if (stopping_.is_set() || attachments_ == nullptr) co_return;
        co_await attachments_->refresh();
        refreshed_at_ = env_.clock.now();
    }
}

void LocalNode::want_fresh_sizes() {
    if (env_.clock.now() - refreshed_at_ >= options_.refresh_interval) refresh_alarm_.ring();
}

Task<Result<std::vector<Leftover>>> LocalNode::leftovers() {
    CO_TRY_ASSIGN(auto pass, enter());
    if (attachments_ == nullptr) co_return std::vector<Leftover>();
    std::vector<Leftover> all = co_await attachments_->leftovers();
    for (Leftover& one : all) {
        auto found = entries_.find(one.id);
        if (found == entries_.end()) continue;
        one.volume = found->second->record().name;
        one.has_holders = !found->second->mounts.holders.empty();
    }
    co_return all;
}

Task<Result<std::vector<Leftover>>> LocalNode::mend_leftovers() {
    CO_TRY_ASSIGN(auto pass, enter());
    CO_TRY_ASSIGN(std::vector<Leftover> all, co_await leftovers());
    std::set<VolumeId> ids;
    for (const Leftover& one : all)
        ids.insert(one.id);
    std::vector<Leftover> mended;
    for (VolumeId id : ids)
        co_await mend_one(id, &all, &mended);
    co_return mended;
}

Task<void> LocalNode::mend_one(VolumeId id, std::vector<Leftover>* all,
                               std::vector<Leftover>* mended) {
    EntryPtr entry;
    std::optional<runtime::Mutex::Guard> guard;
    if (auto found = entries_.find(id); found != entries_.end()) {
        // Under its lock nobody can mount the volume meanwhile, and what is on record counts now.
        entry = found->second;
        guard.emplace(co_await entry->lock.lock());
        if (entry->is_attached() || !entry->mounts.holders.empty()) co_return;
        // It is served again soon, and what it has not written yet is not lost then.
        if (entry->is_resuming) co_return;
    }
    Result<void> done = co_await attachments_->mend_leftovers(id);
    if (!done) {
        LOG_WARN("leftovers not taken away volume={} why=\"{}\"", id, done.error().text());
        co_return;
    }
    if (entry != nullptr && entry->is_surviving && !co_await survives(*entry)) {
        entry->is_surviving = false;
        Result<void> stored = co_await store_mounts(*entry);
        if (!stored) LOG_WARN("mounts not stored volume={} why=\"{}\"", id, stored.error().text());
    }
    for (const Leftover& one : *all) {
        if (one.id == id) mended->push_back(one);
    }
}

}  // namespace peplos::fabric
