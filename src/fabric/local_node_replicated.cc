#include "base/log.h"
#include "fabric/local_node.h"

// Volumes whose journal and segments have copies on several nodes.
namespace peplos::fabric {
namespace {

constexpr Duration kViewPause = std::chrono::milliseconds(20);

}  // namespace

// Requires: the entry's lock. Claims the volume, wherever it was, and serves it.
Task<Result<void>> LocalNode::open_replicated(Entry& entry) {
    Result<std::unique_ptr<replica::ReplicatedLog>> log = co_await claim_replicated(entry);
    Result<void> outcome;
    if (log) {
        outcome = co_await serve(entry, std::move(*log));
    } else {
        outcome = fail(std::move(log).error());
    }
    if (!outcome) entry.problem = outcome.error().message();
    co_return outcome;
}

// Requires: the entry's lock. Until this node knows the others. Errors: stopping.
Task<Result<void>> LocalNode::wait_for_view(const Entry& entry) {
    while (!cluster_->is_known()) {
        if (stopping_.is_set() || entry.detaches_waiting != 0)
            co_return fail(Code::stopping, "volume {:?} is given up", entry.record().name);
        co_await env_.clock.sleep_for(kViewPause);
    }
    co_return Result<void>();
}

// Errors: busy (it is mounted elsewhere), unavailable (says what it waits for), stopping.
Task<Result<std::unique_ptr<replica::ReplicatedLog>>> LocalNode::claim_replicated(Entry& entry) {
    CO_TRY(co_await wait_for_view(entry));
    CO_TRY(co_await check_unmounted(entry));
    // Its segments lie on the owner's node alone: another one could move the journal, not them.
    if (entry.record().copies == 1 && is_elsewhere(entry)) {
        co_return fail(Code::unavailable,
                       "the only copy of volume {:?} is on {}: use it there (a volume of 2 copies "
                       "follows its container)",
                       entry.record().name, cluster_->name_of(entry.record().owner));
    }
    if (stopping_.is_set()) co_return fail(Code::stopping, "peplosd is stopping");
    if (entry.detaches_waiting != 0) {
        co_return fail(Code::stopping, "volume {:?} is being detached by force",
                       entry.record().name);
    }
    replica::Claimer claimer(cluster_->owners());
    entry.claimer = &claimer;
    auto log = co_await claimer.claim({.volume = entry.record().id,
                                       .lineage = entry.record().lineage,
                                       .copies = entry.record().copies});
    entry.claimer = nullptr;
    if (log) co_return log;
    Error why = co_await look_again(entry, std::move(log).error());
    // Somebody was faster, or has mounted it meanwhile.
    if (why.code() == Code::unavailable) CO_TRY(co_await check_unmounted(entry));
    co_return fail(std::move(why));
}

Task<Result<void>> LocalNode::serve(Entry& entry, std::unique_ptr<replica::ReplicatedLog> log) {
    const replica::Claim claim = log->claim();
    replica::ReplicatedLog* owned = log.get();
    CO_TRY_ASSIGN(entry.stored, co_await read_volume(store_, entry.record().id));
    const control::VolumeRecord& record = entry.record();
    if (record.lifecycle != control::Lifecycle::live)
        co_return fail(Code::not_found, "volume {:?} was removed meanwhile", record.name);
    if (record.owner != node_.id || record.epoch != claim.epoch) {
        co_return fail(Code::unavailable, "volume {:?} was claimed by {} meanwhile; repeat",
                       record.name, cluster_->name_of(record.owner));
    }
    DeviceSet::Member* home = nullptr;
    for (const control::EnsembleMember& member : log->status().members) {
        if (member.node != node_.id) continue;
        CO_TRY_ASSIGN(home, devices_.find(member.device));
    }
    CHECK(home != nullptr, "an owner is a member of its ensemble");
    volume::VolumeParams params;
    params.id = record.id;
    params.lineage = record.lineage;
    params.size_bytes = record.size_bytes;
    params.sector_bytes = record.sector_bytes;
    params.epoch = claim.epoch;
    params.token = claim.token;
    params.copies = record.copies;
    Result<std::unique_ptr<volume::Volume>> opened =
        co_await volume::Volume::open(*home->resources, std::move(params), std::move(log));
    if (!opened) co_return fail(note_unopened(entry, std::move(opened).error()));
    entry.open = std::move(*opened);
    entry.log = owned;
    entry.home = home;
    entry.problem.clear();
    entry.is_unreadable = false;
    entry.shown.reset();
    if (background_ != nullptr) background_->opened(*entry.open);
    LOG_INFO("volume open volume={} name={} epoch={} copies={}", record.id, record.name,
             claim.epoch, owned->status().members.size());
    if (entry.open->size_bytes() > record.size_bytes) {
        control::VolumeRecord grown = record;
        grown.size_bytes = entry.open->size_bytes();
        CO_TRY(co_await change_record(entry, std::move(grown)));
    }
    co_return Result<void>();
}

// ---- removal ----

// Requires: the entry's lock, and that it is neither open nor mounted here. The record that says
// `deleting` is a claim as well: whoever owned the volume is fenced before anything is freed.
Task<Result<void>> LocalNode::prepare_deletion(Entry& entry, control::VolumeRecord& record,
                                               control::Transaction& also) {
    CO_TRY(co_await wait_for_view(entry));
    CO_TRY(co_await check_unmounted(entry));
    CO_TRY_ASSIGN(Elsewhere elsewhere, co_await mounts_elsewhere(record));
    also = std::move(elsewhere.also);
    record.owner = node_.id;
    record.epoch = std::max(record.epoch, cluster_->local().fence_of(record.id)).next();
    record.claim_token = OpenToken(env_.rng.next_id());
    record.state = control::OwnershipState::recovering;
    ++record.version;
    co_return Result<void>();
}

// Errors: unavailable (names the node that does not answer: repeated at the next start).
Task<Result<void>> LocalNode::finish_replicated_deletion(StoredVolume stored) {
    const control::VolumeRecord& record = stored.record;
    const replica::Claim claim{record.owner, record.epoch, record.claim_token};
    CO_TRY(co_await cluster_->fence_all(record.id, claim));
    CO_TRY(co_await cluster_->drop_log_here(record.id));
    CO_TRY_ASSIGN(DeviceSet::Member * home, devices_.choose_home());
    CO_TRY(co_await volume::Volume::destroy(*home->resources, record.id, claim));
    if (const std::string& missing = devices_.space().missing(); !missing.empty()) {
        co_return fail(Code::unavailable, "segments of it may be on {}, which is out of service",
                       missing);
    }
    CO_TRY(co_await cluster_->drop_logs(record.id, claim));
    control::Transaction forget = control::volume_forgetting(record.id, stored.revision);
    forget.push_back(control::remove(control::mount_key(node_.id, record.id), std::nullopt));
    forget.push_back(control::remove(control::loss_key(record.id), std::nullopt));
    CO_TRY(co_await store_.compare_and_set(std::move(forget)));
    LOG_INFO("volume's space freed volume={}", record.id);
    co_return Result<void>();
}

}  // namespace peplos::fabric
