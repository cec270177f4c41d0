#include "volume/volume.h"

#include "volume/core.h"

namespace peplos::volume {

namespace {

constexpr uint64_t kReplayBytesAlone = 2 * kGiB;

Result<void> check_params(const VolumeParams& params) {
    if (params.size_bytes % kBlockBytes != 0 || params.size_bytes < limits::kVolumeBytesMin ||
        params.size_bytes > limits::kVolumeBytesMax) {
        return fail(
            Code::invalid_argument, "a volume has {} to {} bytes in multiples of {}, not {}",
            limits::kVolumeBytesMin, limits::kVolumeBytesMax, kBlockBytes, params.size_bytes);
    }
    if (params.sector_bytes != 512 && params.sector_bytes != kBlockBytes) {
        return fail(Code::invalid_argument, "a sector has 512 or {} bytes, not {}", kBlockBytes,
                    params.sector_bytes);
    }
    if (!params.id || !params.lineage || !params.token || params.epoch.value == 0 ||
        params.epoch.value > UINT32_MAX) {
        return fail(Code::invalid_argument,
                    "a volume needs an id, a lineage, an epoch and a token");
    }
    return {};
}

}  // namespace

// ---- core ----

namespace {

std::unique_ptr<SegmentPeers> make_peers(Resources& resources, const VolumeParams& params,
                                         runtime::Gate& background) {
    if (resources.placement == nullptr) return nullptr;
    replica::Placement& placement = *resources.placement;
    replica::SegmentActor actor{
        params.id, params.lineage, {placement.self(), params.epoch, params.token}};
    return std::make_unique<SegmentPeers>(resources.env, resources.space, placement, actor,
                                          params.copies, background);
}

}  // namespace

VolumeCore::VolumeCore(Resources& resources, VolumeParams params)
    : resources(resources),
      params(params),
      segments(resources.space, params.id, params.lineage, params.epoch,
               make_peers(resources, params, background)),
      pages(segments) {
    make_map();
}

void VolumeCore::make_map() {
    map = std::make_unique<BlockMap>(MapIdentity{params.id, params.lineage},
                                     params.size_bytes / kBlockBytes, resources.leaf_cache, pages,
                                     resources.env.executor);
    pages.set_table(&map->segments());
}

VolumeCore::~VolumeCore() {
    segments.clear();
    if (charged_bytes != 0) resources.overlay.give_back(charged_bytes);
    if (promised_units != 0) resources.space.give_back(promised_units);
}

Result<void> VolumeCore::healthy() const {
    if (fault.has_value()) [[unlikely]]
        return fail(*fault);
    return {};
}

Result<void> VolumeCore::alive() const {
    if (fault.has_value()) [[unlikely]]
        return fail(*fault);
    if (stopping) [[unlikely]]
        return fail(Code::stopping, "volume {} is stopping", params.id);
    return {};
}

bool VolumeCore::may_pass(const Error& error) const {
    bool is_away = error.code() == Code::unavailable || error.code() == Code::outcome_unknown;
    return is_away && resources.placement != nullptr && !fault.has_value();
}

Task<Result<void>> VolumeCore::wait_for_nodes_once(const Error& why) {
    PROBE("volume.waits_for_nodes");
    if (resources.background != nullptr && resources.background->is_stopped())
        co_return fail(background_stopped());
    CO_TRY(alive());
    waits_for = why.message();
    ++nodes_waiting;
    const uint64_t seen = refusals;
    co_await resources.env.clock.sleep_for(kNodesPause);
    if (--nodes_waiting == 0) waits_for.clear();
    if (refusals != seen) co_return fail(*refusal);
    co_return alive();
}

void VolumeCore::refuse_waiting(const Error& why) {
    refusal = why;
    ++refusals;
    if (log) log->refuse_waiting(why, replica::VolumeLog::Waiting::own);
}

Result<void> VolumeCore::check_access(uint64_t offset, uint64_t bytes) const {
    TRY(alive());
    uint64_t size = size_bytes();
    if (offset % params.sector_bytes != 0 || bytes % params.sector_bytes != 0 || offset > size ||
        bytes > size - offset) {
        return fail(Code::invalid_argument,
                    "volume {}: {} bytes at {} are not whole sectors of {} inside {}", params.id,
                    bytes, offset, params.sector_bytes, size);
    }
    return {};
}

void VolumeCore::fail_for_good(const Error& error) {
    if (fault.has_value()) return;
    fault.emplace(error.code(),
                  fmt::format("volume {} is out of service: {}", params.id, error.message()));
    LOG_ERROR("volume out of service volume={} why={}", params.id, error.text());
    // Nothing is served from now on, so the node need not hold memory for it. Space stays
    // promised: the journal still holds acknowledged data.
    if (!draining.is_locked()) overlay.clear();
    for (const InFlight& record : in_flight) {
        if (record.type == format::RecordType::write) in_flight_blocks -= record.block_count;
    }
    for (const InFlight& record : in_flight) {
        if (record.applied != nullptr) record.applied->set();
    }
    in_flight.clear();
    freeze_at.reset();
    settle();
    resources.overlay.wake();
    applied.wake_all();
    numbered.wake_all();
    drained.wake_all();
    if (log) log->refuse_waiting(*fault, replica::VolumeLog::Waiting::own);
}

void VolumeCore::note_failure(const Error& why) {
    if (fault.has_value()) return;
    resources.overlay.note_failure(why);
    log->refuse_waiting(why, replica::VolumeLog::Waiting::node);
}

Error VolumeCore::unproven(const replica::LogTail& tail) const {
    return Error(Code::unavailable,
                 fmt::format("volume {}: the journal cannot prove that it holds every "
                             "acknowledged write ({}); bring the missing device back, or restore a "
                             "backup, or go on with what can be read",
                             params.id, tail.reason));
}

Task<Result<void>> VolumeCore::start(bool is_new) {
    replica::OpenRequest request{.volume = params.id,
                                 .lineage = params.lineage,
                                 .epoch = params.epoch,
                                 .token = params.token,
                                 .recorded = params.recorded};
    if (log == nullptr) {
        CO_TRY_ASSIGN(log, co_await resources.journal.open(std::move(request)));
    }
    log->watch_endangered([this] {
        noticed = false;
        notice();
    });
    const replica::LogTail& tail = log->tail();
    if (tail.outcome != replica::LogOutcome::complete) co_return fail(unproven(tail));
    if (is_new && tail.last_lsn.value != 0) {
        co_return fail(Code::already_exists, "volume {} exists: its journal ends at LSN {}",
                       params.id, tail.last_lsn);
    }
    // Before anything of an earlier owner's is looked at, in the journal or beside it.
    if (segments.peers() != nullptr) CO_TRY(co_await segments.peers()->survey());
    CO_TRY(co_await replay());
    CO_TRY(co_await settle_log());
    std::vector<SegmentId> leftovers = find_leftovers();
    if (!leftovers.empty() || segments.peers() != nullptr)
        background.spawn(resources.env.executor, tidy_up(std::move(leftovers)));
    if (size_bytes() < params.size_bytes) CO_TRY(co_await grow(params.size_bytes));
    co_return Result<void>{};
}

Task<void> VolumeCore::stop(bool is_closing, Result<void>* outcome) {
    stopping = true;
    resources.overlay.wake();
    drained.wake_all();
    locks.wake();
    refuse_waiting(Error(Code::stopping, fmt::format("volume {} is stopping", params.id)));
    co_await gate.close();
    if (is_closing && !fault.has_value()) {
        *outcome = co_await drain();
        if (*outcome) *outcome = co_await checkpoint();
    }
    if (is_closing && fault.has_value()) *outcome = healthy();
    settle_soon.ring();
    co_await background.close();
    // Whoever still works inside ends first.
    {
        auto guard = co_await draining.lock();
    }
    {
        auto guard = co_await upkeep.lock();
    }
    {
        auto guard = co_await meta.lock();
    }
    co_await map->close();
    segments.clear();
    open_segment = nullptr;
    next_segment = nullptr;
    full_segments.clear();
    frozen_segments.clear();
    given_up_segments.clear();
}

void VolumeCore::notice() {
    if (noticed || stopping || fault.has_value()) return;
    noticed = true;
    if (resources.background != nullptr) {
        if (facade != nullptr) resources.background->wants(*facade);
    } else {
        background.spawn(resources.env.executor, maintain_alone());
    }
}

Task<void> VolumeCore::maintain_alone() {
    auto outcome = co_await drain();
    if (outcome && (replay_bytes >= kReplayBytesAlone || resources.leaf_cache.needs_checkpoint() ||
                    pressure().is_meta_heavy() || log->is_endangered())) {
        outcome = co_await checkpoint();
    }
    noticed = false;
    // A writer that waits notices again when it wakes; whoever waits for memory must wake.
    resources.overlay.wake();
    if (!outcome)
        LOG_WARN("volume maintenance volume={} why={}", params.id, outcome.error().text());
}

Pressure VolumeCore::pressure() const {
    noticed = false;
    Pressure out;
    out.undrained_bytes =
        (overlay.data_blocks() + in_flight_blocks + overlay.reference_blocks()) * kBlockBytes;
    out.undrained_extents = overlay.zero_extents();
    out.replay_bytes = replay_bytes;
    out.replay_records = replay_records;
    out.dirty_leaf_bytes = map->dirty_bytes();
    out.dirty_leaf_count = map->dirty_leaf_count();
    out.retained_bytes = log->retained_bytes();
    out.retained_meta_bytes = log->retained_meta_bytes();
    out.retained_bytes_max = log->retained_bytes_max();
    out.is_endangered = log->is_endangered();
    out.journal_is_short = log->is_short();
    out.writes_wait = waiting != 0;
    return out;
}

VolumeStats VolumeCore::stats() const {
    VolumeStats out = counters;
    out.undrained_bytes = (overlay.data_blocks() + overlay.reference_blocks()) * kBlockBytes;
    out.lost_blocks = map->lost_count();
    out.live_bytes = map->mapped_count() * kBlockBytes + out.undrained_bytes;
    out.stored_bytes = segments.stored_bytes();
    out.segment_count = map->segments().segment_count();
    out.map_bytes = map->memory_bytes();
    out.waits_for = waits_for;
    return out;
}

// ---- facade ----

Volume::Volume(std::unique_ptr<VolumeCore> core) : core_(std::move(core)) {
    core_->facade = this;
}

Volume::~Volume() = default;

namespace {

Task<Result<std::unique_ptr<VolumeCore>>> start_core(
    Resources& resources, VolumeParams params, bool is_new,
    std::unique_ptr<replica::VolumeLog> log = nullptr) {
    CO_TRY(check_params(params));
    auto core = std::make_unique<VolumeCore>(resources, params);
    core->log = std::move(log);
    auto started = co_await core->start(is_new);
    if (!started) {
        core->fault = started.error();
        co_await core->stop(false, nullptr);
        co_return fail(std::move(started).error());
    }
    co_return core;
}

}  // namespace

Task<Result<std::unique_ptr<Volume>>> Volume::create(Resources& resources, VolumeParams params) {
    CO_TRY_ASSIGN(auto core, co_await start_core(resources, params, true));
    co_return std::unique_ptr<Volume>(new Volume(std::move(core)));
}

Task<Result<std::unique_ptr<Volume>>> Volume::open(Resources& resources, VolumeParams params) {
    CO_TRY_ASSIGN(auto core, co_await start_core(resources, params, false));
    co_return std::unique_ptr<Volume>(new Volume(std::move(core)));
}

Task<Result<std::unique_ptr<Volume>>> Volume::open(Resources& resources, VolumeParams params,
                                                   std::unique_ptr<replica::VolumeLog> log) {
    CHECK(log != nullptr && log->volume() == params.id && log->epoch() == params.epoch);
    CO_TRY_ASSIGN(auto core, co_await start_core(resources, params, false, std::move(log)));
    co_return std::unique_ptr<Volume>(new Volume(std::move(core)));
}

Task<Result<LossReport>> Volume::recover(Resources& resources, VolumeParams params,
                                         replica::OnLoss on_loss,
                                         std::optional<LossReport> accepted) {
    CO_TRY(check_params(params));
    CHECK(on_loss != replica::OnLoss::refuse);
    auto core = std::make_unique<VolumeCore>(resources, params);
    auto outcome = co_await core->start_salvage(on_loss);
    if (outcome && accepted && core->salvage->report().is_worse_than(*accepted)) {
        outcome = fail(Code::busy,
                       "volume {}: more is lost now than was shown a moment before; look again",
                       params.id);
    }
    if (outcome && on_loss == replica::OnLoss::accept) outcome = co_await core->finish_salvage();
    LossReport report = core->salvage->take_report();
    if (!outcome && !core->fault.has_value()) core->fault = outcome.error();
    co_await core->stop(false, nullptr);
    if (!outcome) co_return fail(std::move(outcome).error());
    co_return report;
}

namespace {

Task<Result<void>> destroy_on(replica::RemoteSegments& remote, replica::SegmentActor actor) {
    CO_TRY_ASSIGN(replica::RemoteSegments::Listing listing, co_await remote.list(actor));
    bool is_leaving = listing.is_leaving;
    for (size_t first = 0; first < listing.copies.size(); first += replica::kSegmentListMax) {
        std::vector<SegmentId> ids;
        size_t end = std::min(first + replica::kSegmentListMax, listing.copies.size());
        for (size_t i = first; i < end; ++i)
            ids.push_back(listing.copies[i].id);
        CO_TRY_ASSIGN(bool is_gone, co_await remote.remove(actor, std::move(ids)));
        is_leaving = !is_gone;
    }
    if (!is_leaving) co_return Result<void>{};
    co_return fail(Code::busy, "a segment of volume {} is still being read on node {}",
                   actor.volume, remote.node());
}

}  // namespace

Task<Result<void>> Volume::destroy(Resources& resources, VolumeId volume, replica::Claim claim) {
    // The log goes first: segments without it are leftovers, a log without them would be a loss.
    CO_TRY(co_await resources.journal.drop(volume));
    std::vector<media::SegmentStore*> stores = resources.space.stores();
    for (media::SegmentStore* store : stores) {
        for (const media::SegmentInfo& info : store->list(volume)) {
            auto removed = co_await store->remove(info.id);
            if (!removed && removed.error().code() != Code::not_found) co_return removed;
        }
        if (store->is_leaving(volume)) {
            co_return fail(Code::busy, "a segment of volume {} is still being read", volume);
        }
    }
    if (resources.placement == nullptr) co_return Result<void>{};
    const std::vector<NodeId> others = resources.placement->others();
    for (NodeId node : others) {
        replica::RemoteSegments* remote = resources.placement->segments_on(node);
        if (remote == nullptr) {
            co_return fail(Code::unavailable,
                           "node {} may have segments of volume {} and is not known", node, volume);
        }
        CO_TRY(co_await destroy_on(*remote, {volume, {}, claim}));
    }
    co_return Result<void>{};
}

void Volume::refuse_waiting(const Error& why) {
    core_->refuse_waiting(why);
}

Task<Result<void>> Volume::close() {
    if (core_->stopping) co_return Result<void>{};
    Result<void> outcome;
    co_await core_->stop(true, &outcome);
    co_return outcome;
}

Task<void> Volume::stop() {
    if (core_->stopping) co_return;
    co_await core_->stop(false, nullptr);
}

VolumeId Volume::id() const {
    return core_->params.id;
}
Epoch Volume::epoch() const {
    return core_->params.epoch;
}
uint64_t Volume::size_bytes() const {
    return core_->size_bytes();
}
uint32_t Volume::sector_bytes() const {
    return core_->params.sector_bytes;
}

Task<Result<void>> Volume::read(uint64_t offset, Buffer into) {
    return core_->read(offset, std::move(into));
}
Task<Result<void>> Volume::write(uint64_t offset, Buffer from) {
    return core_->write(offset, std::move(from));
}
Task<Result<void>> Volume::zero(uint64_t offset, uint64_t bytes) {
    return core_->zero(offset, bytes);
}
Task<Result<void>> Volume::flush() {
    co_return core_->alive();
}
Task<Result<void>> Volume::grow(uint64_t size_bytes) {
    return core_->grow(size_bytes);
}

const Resources& Volume::resources() const {
    return core_->resources;
}

VolumeStats Volume::stats() const {
    return core_->stats();
}
std::optional<Error> Volume::faulted() const {
    return core_->fault;
}
Pressure Volume::pressure() const {
    return core_->pressure();
}

Task<Result<void>> Volume::drain() {
    return core_->drain();
}
Task<Result<void>> Volume::checkpoint() {
    return core_->checkpoint();
}
Task<Result<void>> Volume::remove_dead() {
    return core_->remove_dead();
}
Task<Result<void>> Volume::relocate(std::vector<uint32_t> indexes, uint8_t lifetime_class) {
    return core_->relocate(std::move(indexes), lifetime_class);
}
Task<Result<ScrubResult>> Volume::scrub(uint32_t index) {
    return core_->scrub(index);
}
Task<Result<std::string>> Volume::dump_map() {
    return core_->dump_map();
}

std::vector<SegmentView> Volume::segments() const {
    std::vector<SegmentView> out;
    const SegmentTable& table = core_->map->segments();
    for (uint32_t index = 0; index < table.index_end(); ++index) {
        const SegmentEntry* entry = table.find(index);
        const SegmentHandle* handle = core_->segments.find(index);
        if (entry == nullptr || handle == nullptr || entry->state != SegmentState::sealed) {
            continue;
        }
        // Of a record that is going into the map at this moment: what is not counted yet will be.
        bool is_going_in = entry->sealed_lsn > core_->meta_lsn;
        out.push_back({.index = index,
                       .id = entry->id,
                       .kind = static_cast<format::SegmentKind>(entry->kind),
                       .lifetime_class = entry->lifetime_class,
                       .age_lsn = entry->age_lsn,
                       .block_count = entry->block_count,
                       .live_count = is_going_in ? entry->block_count : entry->live_count,
                       .unit_count = handle->unit_count(),
                       .is_damaged = core_->is_uncleanable(entry->id)});
    }
    return out;
}

}  // namespace peplos::volume
