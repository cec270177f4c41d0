#include <fmt/chrono.h>

#include "base/fault.h"
#include "base/log.h"
#include "fabric/local_node.h"

// What other nodes of the cluster do to the volumes that this one knows.
namespace peplos::fabric {
namespace {

constexpr Duration kStoreRetry = std::chrono::seconds(1);
// How long somebody who wants a volume waits for a node that lets go of it.
constexpr Duration kLeavingPatience = std::chrono::seconds(5);
constexpr Duration kLeavingPause = std::chrono::milliseconds(50);

VolumeId volume_of_key(std::string_view key) {
    return VolumeId(parse_hex_id(key.substr(control::kVolumePrefix.size())));
}

// " since 2026-11-29 22:55:00 UTC"; nothing when that is not known.
std::string since(const control::MountRecord& mounts) {
    if (mounts.since_s == 0) return {};
    return fmt::format(" since {:%Y-%m-%d %H:%M:%S} UTC", fmt::gmtime(mounts.since_s));
}

std::string first_holder(const control::MountRecord& mounts) {
    return mounts.holders.empty() ? std::string() : mounts.holders.begin()->first.substr(0, 12);
}

}  // namespace

bool LocalNode::is_elsewhere(const Entry& entry) const {
    NodeId owner = entry.record().owner;
    return cluster_ != nullptr && owner && owner != node_.id;
}

bool LocalNode::is_overtaken(const Entry& entry) const {
    if (cluster_ == nullptr || PLANTED("attach.is_never_overtaken")) return false;
    if (entry.is_surviving && is_elsewhere(entry)) return true;
    const bool is_ours = entry.record().owner == node_.id;
    return entry.open != nullptr && (!is_ours || entry.record().epoch != entry.open->epoch());
}

// A volume that was just created by another node may not have been heard of yet.
Task<Result<LocalNode::EntryPtr>> LocalNode::look_up(std::string name) {
    Result<EntryPtr> known = find(name);
    if (known) co_return known;
    CO_TRY_ASSIGN(std::optional<control::KeyValue> named,
                  co_await store_.get(control::volume_name_key(name)));
    if (!named) co_return fail(std::move(known).error());
    CO_TRY_ASSIGN(control::VolumeNameRecord holder,
                  control::decode<control::VolumeNameRecord>(named->value));
    Result<StoredVolume> stored = co_await read_volume(store_, holder.id);
    if (!stored && stored.error().code() == Code::not_found)
        co_return fail(std::move(known).error());
    if (!stored) co_return fail(std::move(stored).error());
    if (stored->record.lifecycle != control::Lifecycle::live)
        co_return fail(std::move(known).error());
    co_return take_up(std::move(*stored));
}

// The one entry of a volume, made where there is none yet.
LocalNode::EntryPtr LocalNode::take_up(StoredVolume stored) {
    auto [place, is_new] = entries_.try_emplace(stored.record.id);
    if (!is_new) return place->second;
    place->second = std::make_shared<Entry>();
    place->second->stored = std::move(stored);
    names_[place->second->record().name] = place->second;
    return place->second;
}

// Requires: the entry's lock.
void LocalNode::forget(Entry& entry) {
    entry.gone = true;
    entry.resume_delay.ring();
    auto named = names_.find(entry.record().name);
    if (named != names_.end() && named->second.get() == &entry) names_.erase(named);
    entries_.erase(entry.record().id);
}

// Where the owner of that record has the volume mounted, as long as it lives: the mounts of a dead
// node do not count, its fences decide. `also` is what a claim has to compare besides the record.
Task<Result<LocalNode::Elsewhere>> LocalNode::mounts_elsewhere(
    const control::VolumeRecord& record) {
    Elsewhere out;
    const NodeId owner = record.owner;
    if (cluster_ == nullptr || !owner || owner == node_.id) co_return out;
    std::string key = control::mount_key(owner, record.id);
    CO_TRY_ASSIGN(std::optional<control::KeyValue> stored, co_await store_.get(key));
    control::Revision seen;
    if (stored) {
        seen = stored->mod_revision;
        CO_TRY_ASSIGN(control::MountRecord mounts, control::decode_mount(stored->value));
        if (!cluster_->is_dead(owner) && !PLANTED("claim.robs_the_living")) {
            out.is_leaving = mounts.holders.empty();
            out.where = fmt::format("{}{}{}", cluster_->name_of(owner), since(mounts),
                                    out.is_leaving ? std::string(", which lets go of it")
                                                   : " by " + first_holder(mounts));
        }
    }
    out.also.push_back(control::check(std::move(key), seen));
    co_return out;
}

// For who wants it here: waits a little where it is about to be let go. Errors: busy (says where it
// is mounted, since when), or the store's.
Task<Result<void>> LocalNode::check_unmounted(const Entry& entry) {
    const Time end = env_.clock.now() + kLeavingPatience;
    for (;;) {
        CO_TRY_ASSIGN(Elsewhere elsewhere, co_await mounts_elsewhere(entry.record()));
        if (elsewhere.where.empty()) co_return Result<void>();
        if (!elsewhere.is_leaving || env_.clock.now() >= end || stopping_.is_set()) {
            co_return fail(Code::busy, "volume {:?} is mounted on {}; stop these containers first",
                           entry.record().name, elsewhere.where);
        }
        co_await env_.clock.sleep_for(kLeavingPause);
    }
}

// A claim of this node's compares that the owner before has no mount.
Task<Result<std::optional<control::Transaction>>> LocalNode::condition_of(
    control::VolumeRecord record, replica::CompareAndSet cas) {
    std::optional<control::Transaction> out{control::Transaction{}};
    if (cas.desired.state != control::OwnershipState::recovering) co_return out;
    // Nor is it claimed back from who used it while this host kept an old state of it attached.
    auto known = entries_.find(record.id);
    if (known != entries_.end() && known->second->is_surviving && record.owner &&
        record.owner != node_.id)
        co_return std::optional<control::Transaction>();
    CO_TRY_ASSIGN(Elsewhere elsewhere, co_await mounts_elsewhere(record));
    if (!elsewhere.where.empty()) co_return std::optional<control::Transaction>();
    out = std::move(elsewhere.also);
    co_return out;
}

// ---- following the store ----

// Ends when the node stops. A store that is away changes nothing here: what is known stays.
Task<void> LocalNode::follow_volumes(control::Revision from) {
    control::Revision seen = from;
    while (!stopping_.is_set()) {
        Result<std::unique_ptr<control::Watch>> watch =
            co_await store_.watch(std::string(control::kVolumePrefix), seen.next());
        Result<void> outcome;
        if (watch) {
            watch_ = std::move(*watch);
            if (stopping_.is_set()) watch_->close();
            while (outcome) {
                Result<std::vector<control::Event>> events = co_await watch_->next();
                if (!events) {
                    outcome = fail(std::move(events).error());
                    break;
                }
                for (const control::Event& event : *events) {
                    note_event(event);
                    seen = std::max(seen, event.entry.mod_revision);
                }
            }
            watch_.reset();
        } else {
            outcome = fail(std::move(watch).error());
        }
        if (stopping_.is_set() || outcome.error().code() == Code::stopping) co_return;
        LOG_DEBUG("volumes not followed why=\"{}\"", outcome.error().text());
        if (outcome.error().code() == Code::conflict) {
            Result<control::Revision> listed = co_await list_anew();
            if (listed) seen = *listed;
            if (listed) continue;
        }
        co_await follow_delay_.wait(env_.clock, kStoreRetry);
    }
}

// The store no longer remembers what was missed: everything is compared.
Task<Result<control::Revision>> LocalNode::list_anew() {
    CO_TRY_ASSIGN(control::Page page,
                  co_await control::list_all(store_, std::string(control::kVolumePrefix)));
    std::map<VolumeId, control::Revision> listed;
    for (const control::KeyValue& stored : page.entries)
        listed[volume_of_key(stored.key)] = stored.mod_revision;
    std::vector<EntryPtr> changed;
    for (const auto& [id, entry] : entries_) {
        auto found = listed.find(id);
        if (found == listed.end() || found->second != entry->stored.revision)
            changed.push_back(entry);
    }
    for (const EntryPtr& entry : changed)
        note_stale(entry);
    for (const auto& [id, revision] : listed) {
        if (!entries_.contains(id)) gate_.spawn(env_.executor, take_up_later(id));
    }
    co_return page.revision;
}

void LocalNode::note_event(const control::Event& event) {
    VolumeId id = volume_of_key(event.entry.key);
    auto found = entries_.find(id);
    if (found == entries_.end()) {
        if (event.kind == control::Event::Kind::put) gate_.spawn(env_.executor, take_up_later(id));
        return;
    }
    if (found->second->stored.revision < event.entry.mod_revision) note_stale(found->second);
}

void LocalNode::note_stale(const EntryPtr& entry) {
    entry->is_stale = true;
    if (std::exchange(entry->is_refreshing, true)) return;
    gate_.spawn(env_.executor, refresh(entry));
}

Task<void> LocalNode::take_up_later(VolumeId id) {
    Result<StoredVolume> stored = co_await read_volume(store_, id);
    // Missed here, it is found by name when somebody asks for it.
    if (stored && stored->record.lifecycle == control::Lifecycle::live) take_up(std::move(*stored));
}

Task<void> LocalNode::refresh(EntryPtr entry) {
    while (entry->is_stale && !stopping_.is_set()) {
        Result<void> outcome;
        {
            auto guard = co_await entry->lock.lock();
            entry->is_stale = false;
            if (!entry->gone) outcome = co_await refresh_once(*entry);
        }
        if (outcome) continue;
        entry->is_stale = true;
        co_await env_.clock.sleep_for(kStoreRetry);
    }
    entry->is_refreshing = false;
}

// Requires: the entry's lock.
Task<Result<void>> LocalNode::refresh_once(Entry& entry) {
    Result<StoredVolume> now = co_await read_volume(store_, entry.record().id);
    bool is_gone = !now && now.error().code() == Code::not_found;
    if (!now && !is_gone) co_return fail(std::move(now).error());
    if (is_gone || now->record.lifecycle == control::Lifecycle::deleting) {
        co_await give_up(entry, "it was removed by another node");
        forget(entry);
        co_return Result<void>();
    }
    // Also an older one: a store that was put back counts as it is.
    entry.stored = std::move(*now);
    const bool is_ours = entry.record().owner == node_.id;
    if (!is_overtaken(entry)) co_return Result<void>();
    co_await give_up(entry,
                     fmt::format("{} took it over", is_ours || cluster_ == nullptr
                                                        ? "another daemon of this node"
                                                        : cluster_->name_of(entry.record().owner)));
    co_return Result<void>();
}

// Requires: the entry's lock. Another node serves the volume now, or nobody does: nothing that is
// written here counts any more, so its containers get errors, and the host lets go of it.
Task<void> LocalNode::give_up(Entry& entry, std::string why) {
    const bool was_used =
        entry.is_attached() || entry.is_surviving || is_on_host(entry) || entry.open != nullptr;
    if (!was_used && entry.mounts.holders.empty()) co_return;
    LOG_WARN("volume given up volume={} name={} why=\"{}\"", entry.record().id, entry.record().name,
             why);
    if (attachments_ != nullptr) {
        Result<void> detached = co_await attachments_->detach_forced(entry.record().id);
        if (!detached && detached.error().code() != Code::not_found) {
            LOG_WARN("volume not detached volume={} why=\"{}\"", entry.record().id,
                     detached.error().text());
        } else {
            entry.is_surviving = entry.is_resuming = false;
            entry.problem.clear();
        }
    }
    entry.path.clear();
    entry.is_damaged = false;
    entry.mounts.holders.clear();
    Result<void> stored = co_await store_mounts(entry);
    if (!stored)
        LOG_WARN("mounts not stored volume={} why=\"{}\"", entry.record().id,
                 stored.error().text());
    if (entry.open != nullptr) co_await drop_faulted(entry);
}

}  // namespace peplos::fabric
