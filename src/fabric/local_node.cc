#include "fabric/local_node.h"

#include "base/fault.h"
#include "base/log.h"

namespace peplos::fabric {
namespace {

// How long a stop waits for requests that wait for room.
constexpr Duration kStopPatience = std::chrono::seconds(5);
// Pauses between attempts to serve again what containers wait for: doubled up to the second one.
constexpr Duration kResumeRetryMin = std::chrono::seconds(1);
constexpr Duration kResumeRetryMax = std::chrono::seconds(30);

// Whether an attempt later may do better, without anybody's hands.
bool may_pass(Code code) {
    return code == Code::unavailable || code == Code::busy || code == Code::outcome_unknown ||
           code == Code::stopping;
}

}  // namespace

LocalNode::LocalNode(runtime::Env env, control::Store& store, LocalNodeOptions options)
    : env_(env), store_(store), options_(std::move(options)), devices_(env, options_.devices) {
    if (options_.cluster) cluster_ = std::make_unique<Cluster>(env, store, *options_.cluster);
}

LocalNode::~LocalNode() {
    CHECK(gate_.inside_count() == 0, "stop() comes before destruction");
}

Result<runtime::Gate::Pass> LocalNode::enter() {
    Result<runtime::Gate::Pass> pass = gate_.enter();
    if (!pass) return fail(Code::stopping, "peplosd is stopping; repeat the call in a moment");
    return pass;
}

Result<LocalNode::EntryPtr> LocalNode::find(const std::string& name) const {
    auto found = names_.find(name);
    if (found == names_.end()) {
        return fail(Code::not_found, "no volume is called {:?}; see: peplos volume ls", name);
    }
    return found->second;
}

Task<Result<void>> LocalNode::start() {
    started_at_ = env_.clock.wall_now();
    CO_TRY(co_await load_cluster());
    CO_TRY(co_await load_devices());
    if (cluster_ != nullptr) CO_TRY(co_await start_cluster());
    CO_TRY(co_await load_volumes());
    CO_TRY(co_await resume_attached());
    gate_.spawn(env_.executor, recover_tails());
    gate_.spawn(env_.executor, release_loop());
    gate_.spawn(env_.executor, refresh_loop());
    if (options_.trim_interval.count() > 0) gate_.spawn(env_.executor, trim_loop());
    if (cluster_ != nullptr) gate_.spawn(env_.executor, follow_volumes(loaded_at_));
    co_return Result<void>();
}

Task<Result<void>> LocalNode::load_cluster() {
    CO_TRY_ASSIGN(std::optional<control::KeyValue> cluster,
                  co_await store_.get(std::string(control::kClusterKey)));
    if (cluster) {
        CO_TRY_ASSIGN(cluster_record_, control::decode<control::ClusterRecord>(cluster->value));
        if (cluster_record_.format_version != control::kClusterFormatVersion) {
            co_return fail(Code::unsupported,
                           "this cluster's format is {}, this peplosd knows {}: install the "
                           "version that wrote it",
                           cluster_record_.format_version, control::kClusterFormatVersion);
        }
        CO_TRY_ASSIGN(control::Page nodes,
                      co_await control::list_all(store_, std::string(control::kNodePrefix)));
        if (!options_.id && nodes.entries.size() != 1) {
            co_return fail(Code::corrupt, "a cluster of one node has {} node records",
                           nodes.entries.size());
        }
        for (const control::KeyValue& stored : nodes.entries) {
            CO_TRY_ASSIGN(node_, control::decode<control::NodeRecord>(stored.value));
            if (!options_.id || node_.id == options_.id) co_return Result<void>();
        }
        if (cluster_ == nullptr) {
            co_return fail(Code::already_exists,
                           "the control store belongs to the node {} ({}), this one is {}: two "
                           "nodes cannot share one yet. Give this node another one",
                           node_.id, node_.name, options_.id);
        }
        co_return fail(Code::not_found,
                       "node {} is not in cluster {}; it joins with: peplos join TOKEN",
                       options_.id, cluster_record_.id);
    }
    cluster_record_.id = ClusterId(env_.rng.next_id());
    cluster_record_.created_at_s = unix_seconds(env_.clock.wall_now());
    node_.id = options_.id ? options_.id : NodeId(env_.rng.next_id());
    node_.name = options_.name;
    node_.created_at_s = cluster_record_.created_at_s;
    CO_TRY_ASSIGN(std::string cluster_value, control::encode(cluster_record_));
    CO_TRY_ASSIGN(std::string node_value, control::encode(node_));
    control::Transaction birth;
    birth.push_back(control::create(std::string(control::kClusterKey), std::move(cluster_value)));
    birth.push_back(control::create(control::node_key(node_.id), std::move(node_value)));
    CO_TRY(co_await store_.compare_and_set(std::move(birth)));
    LOG_INFO("cluster created cluster={} node={} name={}", cluster_record_.id, node_.id,
             node_.name);
    co_return Result<void>();
}

Task<Result<void>> LocalNode::load_devices() {
    CO_TRY_ASSIGN(control::Page page,
                  co_await control::list_all(store_, std::string(control::kDevicePrefix)));
    for (const control::KeyValue& entry : page.entries) {
        CO_TRY_ASSIGN(control::DeviceRecord record,
                      control::decode<control::DeviceRecord>(entry.value));
        if (record.node == node_.id) co_await devices_.open(std::move(record), background_);
    }
    co_return Result<void>();
}

// Before this node opens a volume: others may ask for its members at once.
Task<Result<void>> LocalNode::start_cluster() {
    for (const auto& member : devices_.members()) {
        if (!member->is_usable()) continue;
        member->resources->placement = cluster_.get();
        cluster_->add_device(*member);
    }
    cluster_->ownership().set_condition(
        [this](const control::VolumeRecord& record, const replica::CompareAndSet& cas) {
            return condition_of(record, cas);
        });
    co_return co_await cluster_->start();
}

Task<Result<void>> LocalNode::load_volumes() {
    CO_TRY_ASSIGN(control::Page page,
                  co_await control::list_all(store_, std::string(control::kVolumePrefix)));
    loaded_at_ = page.revision;
    for (control::KeyValue& stored : page.entries) {
        Result<control::VolumeRecord> record = control::decode<control::VolumeRecord>(stored.value);
        if (!record) co_return fail(std::move(record).error().within(stored.key));
        StoredVolume volume{std::move(*record), stored.mod_revision};
        const control::VolumeRecord& known = volume.record;
        if (known.lifecycle == control::Lifecycle::live) {
            take_up(std::move(volume));
        } else if (!known.owner || known.owner == node_.id) {
            gate_.spawn(env_.executor, finish_deletion_later(std::move(volume)));
        }
    }
    CO_TRY_ASSIGN(control::Page mounts,
                  co_await control::list_all(store_, control::mount_prefix(node_.id)));
    for (const control::KeyValue& stored : mounts.entries) {
        auto found = entries_.find(control::volume_of_mount_key(stored.key));
        Result<control::MountRecord> record = control::decode_mount(stored.value);
        if (!record) co_return fail(std::move(record).error().within(stored.key));
        if (found == entries_.end()) continue;
        found->second->mounts = std::move(*record);
        // What a daemon left that died while it let go of the volume.
        found->second->is_mount_stale = found->second->mounts.holders.empty();
    }
    CO_TRY_ASSIGN(control::Page losses,
                  co_await control::list_all(store_, std::string(control::kLossPrefix)));
    for (const control::KeyValue& stored : losses.entries) {
        auto found = entries_.find(control::volume_of_loss_key(stored.key));
        Result<control::LossRecord> record = control::decode_loss(stored.value);
        if (!record) co_return fail(std::move(record).error().within(stored.key));
        if (found != entries_.end()) found->second->loss = std::move(*record);
    }
    co_return Result<void>();
}

// The kernel kept these mounted while no daemon ran; their I/O waits for us. Everything else has
// lost its mounts (a reboot), so nobody holds it any more, whatever the records say.
Task<Result<void>> LocalNode::resume_attached() {
    std::vector<VolumeId> surviving;
    if (attachments_ != nullptr) {
        Result<std::vector<VolumeId>> found = co_await attachments_->find_surviving();
        // Taken for nothing, an old state of this host might be served once others changed it.
        if (!found && cluster_ != nullptr) co_return fail(std::move(found).error());
        if (!found) {
            LOG_ERROR("attached volumes not found why=\"{}\"", found.error().text());
            co_return Result<void>();
        }
        if (!PLANTED("attach.forgets_survivors")) surviving = std::move(*found);
    }
    for (VolumeId id : surviving) {
        auto found = entries_.find(id);
        if (found == entries_.end()) {
            LOG_WARN("an unknown volume is attached volume={} next=\"peplos doctor --fix\"", id);
            continue;
        }
        EntryPtr entry = found->second;
        entry->is_surviving = entry->is_resuming = true;
        // A claim may wait for other nodes, and this one serves the rest meanwhile.
        const bool may_wait = cluster_ != nullptr;
        if (may_wait || !co_await try_to_resume(*entry))
            gate_.spawn(env_.executor,
                        resume_later(entry, may_wait ? Duration(0) : kResumeRetryMin));
    }
    std::map<VolumeId, EntryPtr> all = entries_;
    for (const auto& [id, entry] : all) {
        if (std::ranges::find(surviving, id) == surviving.end()) co_await forget_mounts(*entry);
    }
    co_return Result<void>();
}

// What the records say of mounts that the host no longer has.
Task<void> LocalNode::forget_mounts(Entry& entry) {
    bool is_known = !entry.mounts.holders.empty() || entry.is_mount_stale;
    if (entry.is_attached() || !is_known) co_return;
    entry.mounts.holders.clear();
    Result<void> stored = co_await store_mounts(entry);
    if (!stored) {
        LOG_WARN("mounts not stored volume={} why=\"{}\"", entry.record().id,
                 stored.error().text());
    }
}

// Until the volume is served again, or cannot be, or nobody waits for it.
Task<void> LocalNode::resume_later(EntryPtr entry, Duration first) {
    if (first.count() != 0) co_await entry->resume_delay.wait(env_.clock, first);
    Duration pause = kResumeRetryMin;
    while (!co_await try_to_resume(*entry)) {
        co_await entry->resume_delay.wait(env_.clock, pause);
        pause = std::min(pause * 2, kResumeRetryMax);
    }
}

// False: what was in the way may pass.
Task<bool> LocalNode::try_to_resume(Entry& entry) {
    auto guard = co_await entry.lock.lock();
    // It may have been mounted or detached meanwhile.
    if (entry.gone || entry.is_attached() || stopping_.is_set()) entry.is_resuming = false;
    if (!entry.is_resuming) co_return true;
    const VolumeId id = entry.record().id;
    if (is_overtaken(entry)) {
        co_await give_up(entry, "while this host was away, another one took it over");
        co_return !entry.is_surviving;
    }
    Result<void> opened = co_await open_volume(entry);
    if (!opened) {
        // What one copy has lost comes back by nobody's waiting.
        const bool is_lost = cluster_ == nullptr && entry.is_unreadable;
        entry.is_resuming = may_pass(opened.error().code()) && !is_lost;
        std::string problem = fmt::format(
            "its containers wait for I/O that nobody serves: {}; when that cannot "
            "be mended, `peplos volume detach {} --force` ends their waiting",
            opened.error().message(), entry.record().name);
        if (problem != entry.told_of_resuming)
            LOG_ERROR("attached volume not served volume={} why=\"{}\"", id, opened.error().text());
        entry.problem = entry.told_of_resuming = std::move(problem);
        co_return !entry.is_resuming;
    }
    // The host has been let go of already; the next daemon takes it up.
    if (stopping_.is_set()) co_return true;
    // Perhaps nobody holds it any more.
    release_alarm_.ring();
    Result<AttachInfo> resumed = co_await attachments_->resume(attach_spec(entry), entry.open);
    if (resumed) {
        entry.is_surviving = entry.is_resuming = false;
        entry.path = resumed->path;
        LOG_INFO("volume resumed volume={} name={} device={}", id, entry.record().name,
                 resumed->device);
    } else if (resumed.error().code() == Code::not_found) {
        // It was on its way up or down, and nobody uses it.
        entry.is_surviving = entry.is_resuming = false;
        co_await forget_mounts(entry);
    } else {
        entry.is_resuming = may_pass(resumed.error().code());
        entry.problem = resumed.error().message();
        LOG_ERROR("attached volume not resumed volume={} why=\"{}\"", id, resumed.error().text());
    }
    co_return !entry.is_resuming;
}

// A volume whose journal holds more than its last checkpoint is adopted and drained, mounted or
// not, so that no tail waits in the ring for somebody to come.
Task<void> LocalNode::recover_tails() {
    std::vector<VolumeId> wanted;
    for (const auto& member : devices_.members()) {
        if (!member->is_usable()) continue;
        for (const replica::RetainedVolume& retained : member->journal->volumes()) {
            // An empty log keeps a fence and a root, a few hundred bytes.
            if (retained.retained_bytes > 64 * kKiB) wanted.push_back(retained.volume);
        }
    }
    for (VolumeId id : wanted) {
        if (gate_.is_closed()) co_return;
        auto found = entries_.find(id);
        if (found == entries_.end()) continue;
        EntryPtr entry = found->second;
        auto guard = co_await entry->lock.lock();
        if (entry->gone || entry->open != nullptr || gate_.is_closed()) continue;
        if (entry->is_surviving) continue;
        if (is_elsewhere(*entry)) continue;
        Result<void> opened = co_await open_volume(*entry);
        if (opened) opened = co_await close_volume(*entry);
        if (!opened) {
            LOG_ERROR("volume not recovered volume={} why=\"{}\"", id, opened.error().text());
        }
    }
}

namespace {

// What a journal knows of the volume; nothing when it never held a log of it.
std::optional<replica::RetainedVolume> known_of(const replica::Journal& journal, VolumeId id) {
    for (const replica::RetainedVolume& retained : journal.volumes()) {
        if (retained.volume == id && retained.token) return retained;
    }
    return std::nullopt;
}

}  // namespace

// The device that holds the volume's log, or the one that will: a volume without a recorded home
// may have got one after the backup was made from which the control store was restored.
Result<DeviceSet::Member*> LocalNode::home_of(const Entry& entry) {
    if (!entry.record().ensemble.empty()) {
        return devices_.find(entry.record().ensemble.front().device);
    }
    for (const auto& member : devices_.members()) {
        if (!member->is_usable()) continue;
        if (member->journal->fence_of(entry.record().id) > entry.record().epoch) {
            return member.get();
        }
    }
    return devices_.choose_home();
}

// The first half of a takeover: the record says RECOVERING under a new epoch, which freezes the
// ensemble. The new epoch is above the record's and above every fence the device has seen, because
// a control store restored from a backup may have gone back.
//
// A claim is on record before its fence is on the device, so a fence above the record's epoch says
// that the store did go back. There is one node and one copy: the log on the recorded incarnation
// of the home device is then the volume's only one and has every acknowledged write, and its token,
// newer than the recorded one, takes that one's place. It was formatted before it held anything.
Task<Result<void>> LocalNode::claim(Entry& entry, DeviceSet::Member& home) {
    control::VolumeRecord record = entry.record();
    Epoch seen = std::max(record.epoch, home.journal->fence_of(record.id));
    if (PLANTED("claim.trusts_the_store")) seen = record.epoch;
    std::optional<replica::RetainedVolume> known;
    if (seen > record.epoch) known = known_of(*home.journal, record.id);
    if (known) {
        if (record.ensemble.empty()) {
            record.ensemble = {control::EnsembleMember{node_.id, home.record.id,
                                                       home.device->incarnation(), OpenToken(0)}};
        }
        LOG_WARN(
            "the control store is older than the device, whose log is taken volume={} name={} "
            "epoch={} fence={}",
            record.id, record.name, record.epoch, known->fence);
        record.ensemble.front().token = known->token;
        if (known->last_lsn) record.format_state = control::FormatState::formatted;
    }
    record.owner = node_.id;
    record.epoch = seen.next();
    record.state = control::OwnershipState::recovering;
    co_return co_await change_record(entry, std::move(record));
}

// Requires: the entry's lock. Every change of a volume's record that keeps the volume. In a cluster
// the journal's ensemble changes in the same record meanwhile: while this node owns the volume,
// what the record says of that stays as it is.
Task<Result<void>> LocalNode::change_record(Entry& entry, control::VolumeRecord record) {
    constexpr int kAttempts = 5;
    for (int attempt = 1;; ++attempt) {
        Result<StoredVolume> written = co_await write_volume(store_, record, entry.stored.revision);
        if (written) {
            entry.stored = std::move(*written);
            co_return Result<void>();
        }
        const Code code = written.error().code();
        Error why = co_await look_again(entry, std::move(written).error());
        const control::VolumeRecord& now = entry.record();
        bool is_ours = cluster_ != nullptr && code == Code::conflict && now.owner == node_.id &&
                       now.epoch == record.epoch && now.lifecycle == record.lifecycle;
        if (!is_ours || attempt == kAttempts) co_return fail(std::move(why));
        set_ownership(record, ownership_of(now, now.generation));
    }
}

// After a change that failed, or whose outcome stayed unknown while the store was away: what the
// store holds counts, so that the next attempt starts from there. Gives the error for the caller.
Task<Error> LocalNode::look_again(Entry& entry, Error why) {
    Result<StoredVolume> now = co_await read_volume(store_, entry.record().id);
    if (now) entry.stored = std::move(*now);
    if (why.code() != Code::conflict) co_return why;
    co_return Error(Code::unavailable,
                    fmt::format("the record of volume {:?} had changed meanwhile; repeat",
                                entry.record().name));
}

volume::VolumeParams LocalNode::params_of(const Entry& entry) {
    volume::VolumeParams params;
    if (!entry.record().ensemble.empty()) {
        const control::EnsembleMember& member = entry.record().ensemble.front();
        params.recorded = replica::Membership{member.incarnation, member.token};
    }
    params.id = entry.record().id;
    params.lineage = entry.record().lineage;
    params.size_bytes = entry.record().size_bytes;
    params.sector_bytes = entry.record().sector_bytes;
    params.epoch = entry.record().epoch;
    params.token = OpenToken(env_.rng.next_id());
    return params;
}

// Damage has a way out; whoever is told of it is told of that, too.
Error LocalNode::note_unopened(Entry& entry, Error why) const {
    // Of several nodes one that is away comes back, and nothing is lost by it.
    const bool is_away = why.code() == Code::unavailable && cluster_ == nullptr;
    entry.is_unreadable = is_away || why.code() == Code::corrupt || why.code() == Code::io_error ||
                          why.code() == Code::not_found;
    entry.problem = why.message();
    if (!entry.is_unreadable) return why;
    entry.problem +=
        fmt::format("; what is lost, and how to go on without it: peplos volume recover {}",
                    entry.record().name);
    return Error(why.code(), entry.problem);
}

// Requires: the entry's lock. Claim, fence and recover, record the ensemble, then serve.
Task<Result<void>> LocalNode::open_volume(Entry& entry) {
    if (entry.open != nullptr && !entry.open->faulted()) co_return Result<void>();
    if (entry.open != nullptr && is_on_host(entry)) {
        // Opened anew below a live attachment, the host would go on with the dead one.
        co_return fail(Code::io_error,
                       "volume {:?} has failed while it is mounted: {}; stop its containers, then "
                       "repeat",
                       entry.record().name, entry.open->faulted()->message());
    }
    if (entry.open != nullptr) co_await drop_faulted(entry);
    if (cluster_ != nullptr) co_return co_await open_replicated(entry);
    CO_TRY_ASSIGN(DeviceSet::Member * home, home_of(entry));
    Result<void> claimed = co_await claim(entry, *home);
    if (!claimed) {
        entry.problem = claimed.error().message();
        co_return fail(std::move(claimed).error());
    }
    volume::VolumeParams params = params_of(entry);
    OpenToken token = params.token;
    bool is_new = !params.recorded.has_value();
    Result<std::unique_ptr<volume::Volume>> opened =
        is_new ? co_await volume::Volume::create(*home->resources, std::move(params))
               : co_await volume::Volume::open(*home->resources, std::move(params));
    if (!opened) co_return fail(note_unopened(entry, std::move(opened).error()));
    replica::Membership membership = home->journal->membership_for(token);
    control::VolumeRecord record = entry.record();
    record.state = control::OwnershipState::open;
    record.version += 1;
    record.size_bytes = std::max(record.size_bytes, (*opened)->size_bytes());
    record.ensemble = {control::EnsembleMember{node_.id, home->record.id, membership.incarnation,
                                               membership.token}};
    Result<void> stored = co_await change_record(entry, std::move(record));
    if (!stored) {
        entry.problem = stored.error().message();
        co_await (*opened)->stop();
        co_return fail(std::move(stored).error());
    }
    entry.open = std::move(*opened);
    entry.home = home;
    entry.problem.clear();
    entry.is_unreadable = false;
    entry.shown.reset();
    if (background_ != nullptr) background_->opened(*entry.open);
    LOG_INFO("volume open volume={} name={} epoch={}", entry.record().id, entry.record().name,
             entry.record().epoch);
    co_return Result<void>();
}

// Requires: the entry's lock, and no attachment.
Task<Result<void>> LocalNode::close_volume(Entry& entry) {
    if (entry.open == nullptr) co_return Result<void>();
    if (auto fault = entry.open->faulted()) {
        // What was acknowledged is in the journal; nothing more can be written here.
        LOG_WARN("failed volume closed volume={} why=\"{}\"", entry.record().id, fault->text());
        entry.problem = fault->message();
        co_await drop_faulted(entry);
        co_return Result<void>();
    }
    if (background_ != nullptr) co_await background_->closing(*entry.open);
    entry.used_bytes_seen = entry.open->stats().live_bytes;
    Result<void> closed = co_await entry.open->close();
    if (entry.log != nullptr) co_await entry.log->release();
    entry.log = nullptr;
    entry.open.reset();
    entry.home = nullptr;
    if (!closed && closed.error().code() == Code::no_space) {
        // Nothing is lost: what could not be drained is in the journal.
        LOG_WARN("volume closed undrained volume={} why=\"{}\"", entry.record().id,
                 closed.error().text());
        co_return Result<void>();
    }
    co_return closed;
}

bool LocalNode::is_on_host(const Entry& entry) const {
    return attachments_ != nullptr && attachments_->info(entry.record().id).has_value();
}

Task<void> LocalNode::drop_faulted(Entry& entry) {
    if (background_ != nullptr) co_await background_->closing(*entry.open);
    co_await entry.open->stop();
    if (entry.log != nullptr) co_await entry.log->release();
    entry.log = nullptr;
    entry.open.reset();
    entry.home = nullptr;
}

// Requests under way may wait for a drain, so the background ends after them; but where it makes no
// room (all is full) they would wait for ever. Then they are refused with `stopping`, which a door
// leaves unanswered: the next daemon is asked again.
Task<void> LocalNode::stop_background(runtime::Alarm* is_quiet) {
    co_await is_quiet->wait(env_.clock, kStopPatience);
    co_await background_->stop();
}

// What waits for the journals of nodes that are away would wait for as long as they are. What it
// wrote and was not answered is asked again of the next daemon.
Task<void> LocalNode::give_up_logs(runtime::Alarm* is_stopped, const bool* has_stopped) {
    co_await is_stopped->wait(env_.clock, 2 * kStopPatience);
    if (*has_stopped) co_return;
    for (const auto& [id, entry] : entries_) {
        if (entry->open != nullptr) entry->open->refuse_waiting(volume::background_stopped());
    }
    cluster_->owners().begin_stop();
}

Task<void> LocalNode::stop() {
    stopping_.set();
    release_alarm_.ring();
    release_delay_.ring();
    trim_alarm_.ring();
    refresh_alarm_.ring();
    follow_delay_.ring();
    creating_changed_.wake_all();
    if (watch_ != nullptr) watch_->close();
    for (const auto& [id, entry] : entries_) {
        if (entry->claimer != nullptr) entry->claimer->cancel();
        entry->resume_delay.ring();
    }
    runtime::Alarm is_stopped;
    bool has_stopped = false;
    runtime::Gate patience_end;
    if (cluster_ != nullptr)
        patience_end.spawn(env_.executor, give_up_logs(&is_stopped, &has_stopped));
    runtime::Alarm is_quiet;
    runtime::Gate background_end;
    if (background_ != nullptr) background_end.spawn(env_.executor, stop_background(&is_quiet));
    // First, since it ends what takes long (a trim, a refresh) and waits only for what is short.
    if (attachments_ != nullptr) co_await attachments_->pause_all();
    co_await gate_.close();
    is_quiet.ring();
    co_await background_end.close();
    for (const auto& [id, entry] : entries_) {
        if (entry->open == nullptr) continue;
        co_await entry->open->stop();
        if (entry->log != nullptr) co_await entry->log->release();
        entry->log = nullptr;
        entry->open.reset();
    }
    has_stopped = true;
    is_stopped.ring();
    co_await patience_end.close();
    entries_.clear();
    names_.clear();
    if (cluster_ != nullptr) co_await cluster_->stop();
    co_await devices_.close();
}

}  // namespace peplos::fabric
