#include <algorithm>

#include "base/crc32c.h"
#include "volume/core.h"

namespace peplos::volume {

using format::Record;
using format::RecordType;
using format::SegmentKind;

namespace {

// Steps of a map change between which others run.
constexpr size_t kApplyStep = 2048;
// A durable change waits so long for leaves that are elsewhere; then only a new open can help.
constexpr Duration kLeafPatience = std::chrono::seconds(30);
constexpr Duration kLeafPauseMin = std::chrono::milliseconds(10);
constexpr Duration kLeafPauseMax = std::chrono::milliseconds(500);
// Entries of a dropped generation that are destroyed at a time.
constexpr size_t kDropStep = 4096;
// Blocks whose lifetime is predicted at a time.
constexpr size_t kPredictStep = 4096;
// Units that must be free for two parts, which may take one more than one part was promised.
constexpr uint64_t kSplitUnitsMin = 4;

}  // namespace

// One drain: the frozen generation becomes segments and a seal.
class Drain {
  public:
    explicit Drain(VolumeCore& core) : core_(core) {}

    // The generation is in the map afterwards, or nothing has changed.
    Task<Result<void>> run();

  private:
    struct Item {
        uint64_t lba;
        const OverlayEntry* entry;
        format::Place place;  // where the block ends up
    };
    struct Output {
        WrittenSegment segment;
        uint32_t index = 0;
        bool is_reserved = true;  // and not added yet
    };

    Task<Result<void>> write_all();
    void start_again();
    void set_aside_given_up();
    void collect();
    Task<void> split_by_lifetime();
    bool is_short_lived(const Item& item);
    Task<Result<void>> write_data();
    Task<Result<Output>> write_some(size_t first, size_t& taken);
    Task<Result<std::vector<SegmentBlock>>> load(size_t first, size_t count);
    Task<Result<void>> read_reference(SegmentHandle handle, format::Place place,
                                      SegmentBlock& block);
    Task<Result<void>> index_large();
    Task<Result<void>> make_durable();
    bool is_seal_needed() const;
    Task<Result<void>> seal();
    Task<void> undo();
    Task<void> finish();
    bool is_large_of_this_drain(format::Place place) const;

    VolumeCore& core_;
    std::vector<Item> items_;  // ascending by LBA
    // Of items_: those that must be written. The short-lived ones come first.
    std::vector<size_t> written_;
    size_t short_lived_count_ = 0;
    std::vector<Output> outputs_;
    bool is_sealed_ = false;                           // the record is durable
    std::vector<std::shared_ptr<OpenSegment>> empty_;  // large segments that lost every block
};

bool Drain::is_large_of_this_drain(format::Place place) const {
    return std::ranges::any_of(core_.frozen_segments, [&](const auto& segment) {
        return segment->index == place.segment_index();
    });
}

// What cannot be sealed in every copy is written anew.
void Drain::set_aside_given_up() {
    for (const std::shared_ptr<OpenSegment>& segment : core_.frozen_segments) {
        if (segment->is_given_up) core_.given_up_segments.push_back(segment);
    }
    std::erase_if(core_.frozen_segments, [](const auto& segment) { return segment->is_given_up; });
}

void Drain::collect() {
    set_aside_given_up();
    const OverlayGeneration& frozen = core_.overlay.frozen();
    items_.reserve(frozen.blocks.size());
    for (const auto& [lba, entry] : frozen.blocks) {
        // After a drain that failed: what was overwritten or freed since needs no space, so that
        // deleting helps a full device. The newer record is durable and stays in the journal.
        if (core_.overlay.is_superseded(lba)) continue;
        items_.push_back({lba, &entry, entry.place});
    }
    std::ranges::sort(items_, {}, &Item::lba);
    for (size_t i = 0; i < items_.size(); ++i) {
        // References into segments that this drain does not seal are written anew.
        if (!items_[i].place || !is_large_of_this_drain(items_[i].place)) written_.push_back(i);
    }
}

// By how long the version lived that this one replaces, which it tells the predictor. Leaves that
// are not in memory are not read for it.
bool Drain::is_short_lived(const Item& item) {
    uint64_t lifespan = item.entry->lifespan;
    if (lifespan == 0) {
        MapEntry old;
        if (!core_.map->lookup_cached(Lba(item.lba), std::span(&old, 1)) || !old.is_block()) {
            return false;
        }
        const SegmentEntry* segment = core_.map->segments().find(old.place.segment_index());
        if (segment == nullptr || segment->age_lsn >= item.entry->lsn) return false;
        lifespan = item.entry->lsn.value - segment->age_lsn.value;
    }
    bool is_short = core_.lifetimes.is_short(lifespan);
    core_.lifetimes.observe(lifespan);
    return is_short;
}

Task<void> Drain::split_by_lifetime() {
    std::vector<size_t> parts[2];
    for (size_t i = 0; i < written_.size(); ++i) {
        parts[is_short_lived(items_[written_[i]]) ? 0 : 1].push_back(written_[i]);
        if (i % kPredictStep == kPredictStep - 1) co_await runtime::yield();
    }
    uint64_t long_lived_count = own_blocks(parts[1].size());
    bool is_worth_it = core_.lifetimes.has_signal() && !parts[0].empty() && long_lived_count != 0 &&
                       core_.segments.headroom_units() >= static_cast<int64_t>(kSplitUnitsMin);
    if (!is_worth_it || FAULT("volume.drain.one_stream")) co_return;
    PROBE("volume.drain.split");
    auto rest = parts[1].begin() + static_cast<ptrdiff_t>(long_lived_count);
    parts[0].insert(parts[0].end(), rest, parts[1].end());
    parts[1].erase(rest, parts[1].end());
    std::ranges::sort(parts[0]);
    short_lived_count_ = parts[0].size();
    written_ = std::move(parts[0]);
    written_.insert(written_.end(), parts[1].begin(), parts[1].end());
}

Task<Result<std::vector<SegmentBlock>>> Drain::load(size_t first, size_t count) {
    std::vector<SegmentBlock> blocks(count);
    for (size_t i = 0; i < count; ++i) {
        const Item& item = items_[written_[first + i]];
        SegmentBlock& block = blocks[i];
        block.lba = Lba(item.lba);
        block.lsn = item.entry->lsn;
        block.crc = item.entry->crc;
        if (!item.entry->is_reference()) {
            block.data = item.entry->data;
            continue;
        }
        // The overlay still has the reference, so the ordinary read checks it.
        block.data = Buffer::allocate(kBlockBytes);
        const SegmentHandle* found = core_.segments.find(item.entry->place.segment_index());
        CHECK(found != nullptr);
        SegmentHandle handle = *found;
        const format::Place place = item.entry->place;
        auto read = co_await read_reference(handle, place, block);
        if (!read) co_return fail(std::move(read).error());
    }
    co_return blocks;
}

// A payload whose checksum proves that it is bad stays so, and stops nothing: zeros go to the new
// place under the checksum of what was there, so that reads of it go on failing until it is written
// again. What the device does not give now is asked for again by the next drain, for a while.
Task<Result<void>> Drain::read_reference(SegmentHandle handle, format::Place place,
                                         SegmentBlock& block) {
    auto read =
        co_await read_patiently([&] { return read_block(handle, place, block.crc, block.data); });
    // No memory, no space for a stall's retry, a daemon that stops: nothing about the bytes.
    if (read.outcome || !is_damage(read.outcome.error().code())) co_return std::move(read.outcome);
    bool is_given_up = read.is_proven;
    if (core_.salvage) {
        // Whoever accepts a loss has waited long enough, and gives up what was shown, no more.
        is_given_up = core_.salvage->gives_up_payload(block.lba.value);
    } else if (!is_given_up) {
        const Time now = core_.resources.env.clock.now();
        auto [since, is_new] = core_.unread_references.try_emplace(block.lba.value, now);
        is_given_up = now - since->second >= kUnreadPatience;
    }
    // One block that cannot be read is no reason to take the volume out of service.
    if (!is_given_up) co_return fail(Code::corrupt, "{}", read.outcome.error().message());
    PROBE("volume.drain.bad_reference");
    LOG_ERROR("block lost volume={} lba={} why=\"{}\"", core_.params.id, block.lba,
              core_.corrupt_block(handle, place, block.lba).message());
    core_.unread_references.erase(block.lba.value);
    block.data = Buffer::zeroed(kBlockBytes);
    co_return Result<void>{};
}

Task<Result<Drain::Output>> Drain::write_some(size_t first, size_t& taken) {
    bool is_short_lived = first < short_lived_count_;
    size_t end = is_short_lived ? short_lived_count_ : written_.size();
    RunChoice run = choose_run(end - first, limits::kSegmentBytesMax);
    while (run.bytes > limits::kSegmentBytesMin &&
           !core_.segments.has_room(run.bytes, media::Purpose::user)) {
        run = choose_run(
            std::min<uint64_t>(run.blocks, format::segment_block_count_max(run.bytes / 2)),
            run.bytes / 2);
    }
    if (FAULT("volume.drain.no_space")) {
        co_return fail(Code::no_space, "volume {} cannot be drained: as a test wishes",
                       core_.params.id);
    }
    auto blocks = co_await load(first, run.blocks);
    if (!blocks) co_return fail(std::move(blocks).error());
    if (core_.segments.free_units() <
        run.bytes / kMiB + core_.checkpoint_units(VolumeCore::leaf_count(*blocks))) {
        co_return fail(Code::no_space,
                       "volume {} cannot be drained: what is left is kept for the cleaner",
                       core_.params.id);
    }
    // The space was promised when the writes were accepted; the reserve covers what fragmentation
    // took of it.
    media::Purpose purpose = core_.segments.has_room(run.bytes, media::Purpose::user)
                                 ? media::Purpose::user
                                 : media::Purpose::maintenance;
    uint8_t lifetime_class = is_short_lived ? kShortLivedClass : kLongLivedClass;
    auto written = co_await write_segment(core_.segments, SegmentKind::data, lifetime_class,
                                          *blocks, run.bytes, purpose);
    if (!written) co_return fail(std::move(written).error());
    Output output;
    output.segment = std::move(*written);
    CO_TRY_ASSIGN(output.index, core_.map->segments().reserve());
    taken = run.blocks;
    co_return output;
}

Task<Result<void>> Drain::write_data() {
    for (size_t first = 0; first < written_.size();) {
        size_t taken = 0;
        CO_TRY_ASSIGN(Output output, co_await write_some(first, taken));
        for (size_t i = 0; i < taken; ++i) {
            items_[written_[first + i]].place =
                format::Place::block(output.index, format::segment_block_offset(i));
        }
        core_.frozen_written_blocks += taken;
        core_.settle();
        outputs_.push_back(std::move(output));
        first += taken;
    }
    co_return Result<void>{};
}

Task<Result<void>> Drain::index_large() {
    std::vector<std::shared_ptr<OpenSegment>> large = core_.frozen_segments;
    for (const std::shared_ptr<OpenSegment>& segment : large) {
        std::vector<format::SegmentIndexEntry> entries;
        for (const Item& item : items_) {
            if (!item.entry->is_reference() || item.place.segment_index() != segment->index) {
                continue;
            }
            if (item.place != item.entry->place) continue;
            format::SegmentIndexEntry entry;
            entry.lba = Lba(item.lba);
            entry.lsn = item.entry->lsn;
            entry.offset_units = item.place.offset_units();
            entry.crc = item.entry->crc;
            entries.push_back(entry);
        }
        if (entries.empty()) {
            empty_.push_back(segment);
            continue;
        }
        // A node with a copy may have begun anew since: what it has is durable, its grant is gone.
        auto adopted = co_await core_.segments.adopt(segment->handle);
        if (!adopted) {
            segment->is_given_up = true;
            co_return adopted;
        }
        Output output;
        output.index = segment->index;
        auto indexed = co_await write_index(core_.segments, segment->handle, SegmentKind::large,
                                            kLongLivedClass, entries, segment->block_count);
        if (!indexed && segment->handle.copies()) segment->is_given_up = true;
        if (!indexed) co_return fail(std::move(indexed).error());
        output.segment = std::move(*indexed);
        outputs_.push_back(std::move(output));
    }
    co_return Result<void>{};
}

Task<Result<void>> Drain::make_durable() {
    // Payload and index of large writes are durable as they are written.
    bool is_synced = written_.empty() || PLANTED("drain.seals_before_sync");
    if (!is_synced) {
        std::vector<SegmentHandle> handles;
        for (const Output& output : outputs_) {
            bool is_large = output.segment.footer.header.kind == SegmentKind::large;
            if (!is_large) handles.push_back(output.segment.handle);
        }
        CO_TRY(co_await core_.segments.sync(std::move(handles)));
    }
    for (Output& output : outputs_) {
        auto sealed = co_await seal_segment(output.segment);
        if (sealed) continue;
        for (const std::shared_ptr<OpenSegment>& segment : core_.frozen_segments) {
            if (segment->handle.copies() && segment->index == output.index)
                segment->is_given_up = true;
        }
        co_return sealed;
    }
    co_return Result<void>{};
}

Task<Result<void>> Drain::seal() {
    const OverlayGeneration& frozen = core_.overlay.frozen();
    format::SealBody body;
    body.drained_lsn = PLANTED("drain.claims_too_much") ? core_.applied_lsn : frozen.last_lsn;
    for (const Output& output : outputs_) {
        body.segments.push_back({.id = output.segment.handle.id(),
                                 .index = output.index,
                                 .group = output.segment.handle.group(),
                                 .block_count = output.segment.footer.entry_count,
                                 .segment_class = output.segment.footer.header.lifetime_class});
    }
    std::vector<ZeroExtent> zeros;
    for (auto [first, end] : frozen.zeros.ranges()) {
        if (PLANTED("trim.is_not_sealed")) break;
        body.zeros.push_back({Lba(first), end - first});
        zeros.push_back({Lba(first), end - first});
    }
    auto guard = co_await core_.meta.lock();
    Record record = core_.make_record(RecordType::seal, Lba(0), 0);
    record.body = std::move(body);
    CO_TRY_ASSIGN(Lsn lsn, co_await core_.append_meta(std::move(record)));
    is_sealed_ = true;
    for (Output& output : outputs_) {
        core_.segments.put(output.index, output.segment.handle);
        CO_TRY(core_.map->segments().add(output.index, entry_of(output.segment, lsn)));
        output.is_reserved = false;
        core_.replay_bytes += output.segment.written_bytes;
        core_.counters.drained_bytes += output.segment.written_bytes;
    }
    std::vector<MapUpdate> updates;
    updates.reserve(items_.size());
    for (const Item& item : items_) {
        updates.push_back({Lba(item.lba), {item.place, item.entry->crc, 0}});
    }
    CO_TRY(co_await core_.apply_change(lsn, zeros, updates, {}));
    co_return Result<void>{};
}

Task<void> Drain::undo() {
    for (Output& output : outputs_) {
        if (output.segment.footer.header.kind != SegmentKind::data) continue;
        auto removed = co_await core_.segments.remove(output.segment.handle.id());
        if (!removed)
            LOG_WARN("a segment of a failed drain stays until the next open: {}",
                     removed.error().text());
        core_.map->segments().release(output.index);
    }
    outputs_.clear();
    core_.frozen_written_blocks = 0;
    uint64_t units = core_.needed_units(0);
    if (units > core_.promised_units) {
        core_.resources.space.promise_regardless(units - core_.promised_units);
        core_.promised_units = units;
    }
}

Task<void> Drain::finish() {
    core_.drained_lsn = core_.overlay.frozen().last_lsn;
    core_.frozen_segments.clear();
    std::vector<std::shared_ptr<OpenSegment>> needless = std::move(empty_);
    needless.insert(needless.end(), core_.given_up_segments.begin(), core_.given_up_segments.end());
    core_.given_up_segments.clear();
    core_.frozen_written_blocks = 0;
    items_.clear();
    OverlayGeneration old = core_.overlay.drop_frozen();
    core_.settle();
    core_.settle_open_segments();
    core_.log->trim(core_.drained_lsn, core_.map->durable_meta_lsn());
    for (const Output& output : outputs_) {
        auto shorter = co_await give_back_unused(output.segment.handle, output.segment.footer);
        if (!shorter) {
            LOG_WARN("a sealed segment keeps units that it does not need: {}",
                     shorter.error().text());
        }
    }
    for (std::shared_ptr<OpenSegment>& segment : needless) {
        // One of an earlier epoch is in the table, and dead by now.
        if (core_.map->segments().find(segment->index) != nullptr) continue;
        SegmentId id = segment->handle.id();
        core_.segments.forget(segment->index, id);
        core_.map->segments().release(segment->index);
        auto removed = co_await core_.segments.remove(id);
        if (!removed)
            LOG_WARN("a segment without blocks stays until the next open: {}",
                     removed.error().text());
    }
    size_t step = 0;
    for (auto it = old.blocks.begin(); it != old.blocks.end(); ++it) {
        it->second.data = Buffer();
        if (++step % kDropStep == 0) co_await runtime::yield();
    }
    ++core_.counters.drains;
}

// Also when everything was superseded meanwhile: before a segment of large writes goes, a record
// must say that nothing up to here is needed. A replay takes references at their word until then.
bool Drain::is_seal_needed() const {
    return !items_.empty() || !core_.overlay.frozen().zeros.empty() ||
           !core_.frozen_segments.empty() || !core_.given_up_segments.empty() ||
           !core_.unsealed_at_open.empty();
}

Task<Result<void>> Drain::write_all() {
    CO_TRY(co_await write_data());
    CO_TRY(co_await index_large());
    co_return co_await make_durable();
}

void Drain::start_again() {
    PROBE("volume.drain.other_group");
    items_.clear();
    written_.clear();
    short_lived_count_ = 0;
    empty_.clear();
    collect();
}

Task<Result<void>> Drain::run() {
    collect();
    co_await split_by_lifetime();
    uint64_t failures = core_.segments.copy_failures();
    Result<void> outcome = co_await write_all();
    for (int i = 1; i < kCopyAttempts && !outcome && core_.healthy(); ++i) {
        // Another node could not do its part: the same once more in another group.
        const Code code = outcome.error().code();
        bool is_theirs = failures != core_.segments.copy_failures() &&
                         (code == Code::unavailable || code == Code::no_space);
        if (!is_theirs) break;
        failures = core_.segments.copy_failures();
        co_await undo();
        start_again();
        outcome = co_await write_all();
    }
    if (!outcome) {
        co_await undo();
        co_return outcome;
    }
    if (is_seal_needed()) {
        outcome = co_await seal();
        if (!outcome && !is_sealed_ && outcome.error().code() == Code::busy) {
            // The journal had no room even for a seal: nothing was appended.
            co_await undo();
            co_return outcome;
        }
        // The seal may or may not be durable: only a new open can tell.
        if (!outcome) core_.fail_for_good(outcome.error());
        if (!outcome) co_return outcome;
    }
    co_await finish();
    co_return outcome;
}

// The generation ends with the last LSN that is taken now. Every block in the segments that it
// takes along has an LSN up to there, and no other has: so none is written twice.
Task<Result<void>> VolumeCore::freeze_generation() {
    if (open_segment) full_segments.push_back(std::exchange(open_segment, nullptr));
    frozen_segments.insert(frozen_segments.end(), full_segments.begin(), full_segments.end());
    full_segments.clear();
    is_freezing = true;  // and no other payload begins meanwhile
    auto is_awaited = [this] {
        return std::ranges::any_of(frozen_segments,
                                   [](const auto& segment) { return segment->unnumbered != 0; });
    };
    while (is_awaited() && !fault.has_value())
        co_await numbered.wait();
    is_freezing = false;
    numbered.wake_all();
    CO_TRY(healthy());
    if (in_flight.empty()) {
        freeze();
        co_return Result<void>{};
    }
    Lsn last = in_flight.back().lsn;
    freeze_at = last;
    co_await wait_applied(last);
    CO_TRY(healthy());
    CHECK(overlay.has_frozen());
    co_return Result<void>{};
}

Task<Result<void>> VolumeCore::drain() {
    auto guard = co_await draining.lock();
    CO_TRY(healthy());
    Result<void> outcome;
    if (!overlay.has_frozen()) outcome = co_await freeze_generation();
    if (outcome) {
        Drain work(*this);
        outcome = co_await work.run();
    }
    if (!open_segment && next_segment) co_await drop_next_segment();
    if (!outcome && is_final(outcome.error().code())) fail_for_good(outcome.error());
    if (fault.has_value()) {
        // The failure could not do this while the drain held on to the entries.
        overlay.clear();
        settle();
    }
    if (!outcome) note_failure(outcome.error());
    drained.wake_all();
    co_return outcome;
}

SegmentEntry entry_of(const WrittenSegment& segment, Lsn sealed_lsn) {
    return entry_of(segment.footer, segment.handle.group(), segment.footer.entry_count, sealed_lsn);
}

SegmentEntry entry_of(const format::SegmentFooter& footer, GroupId group, uint32_t block_count,
                      Lsn sealed_lsn) {
    SegmentEntry entry;
    entry.id = footer.header.id;
    entry.group = group;
    entry.sealed_lsn = sealed_lsn;
    entry.age_lsn = footer.lsn_max;
    entry.block_count = block_count;
    entry.kind = static_cast<uint8_t>(footer.header.kind);
    entry.lifetime_class = footer.header.lifetime_class;
    entry.state = SegmentState::sealed;
    return entry;
}

// The record is durable: the change must come. Leaves that another node, or a full queue, does not
// give at this moment are asked for again.
Task<Result<void>> VolumeCore::apply_patiently(MapChange change) {
    const Time end = resources.env.clock.now() + kLeafPatience;
    for (Duration pause = kLeafPauseMin;; pause = std::min(2 * pause, kLeafPauseMax)) {
        Result<void> outcome = co_await map->apply(change);
        if (outcome || resources.env.clock.now() >= end || !healthy()) co_return outcome;
        const Code code = outcome.error().code();
        if (code != Code::busy && code != Code::unavailable) co_return outcome;
        PROBE("volume.change.waits_for_leaves");
        co_await resources.env.clock.sleep_for(pause);
    }
}

Task<Result<void>> VolumeCore::apply_change(Lsn lsn, std::span<const ZeroExtent> zeros,
                                            std::span<const MapUpdate> updates,
                                            std::span<const Relocation> relocations) {
    CO_TRY(co_await apply_patiently(MapChange{lsn, zeros, {}, {}}));
    for (size_t i = 0; i < updates.size(); i += kApplyStep) {
        auto step = updates.subspan(i, std::min(kApplyStep, updates.size() - i));
        CO_TRY(co_await apply_patiently(MapChange{lsn, {}, step, {}}));
        co_await runtime::yield();
    }
    for (size_t i = 0; i < relocations.size(); i += kApplyStep) {
        auto step = relocations.subspan(i, std::min(kApplyStep, relocations.size() - i));
        CO_TRY(co_await apply_patiently(MapChange{lsn, {}, {}, step}));
        co_await runtime::yield();
    }
    meta_lsn = std::max(meta_lsn, lsn);
    co_return Result<void>{};
}

Task<Result<Lsn>> VolumeCore::append_meta(Record record) {
    CO_TRY_ASSIGN(replica::Admission admission, co_await log->admit(record));
    CO_TRY(healthy());
    Lsn lsn = log->next_lsn();  // what commit() takes, without a suspension before
    InFlight entry{.lsn = {},
                   .type = record.type,
                   .lba = Lba(0),
                   .block_count = 0,
                   .data = {},
                   .place = {},
                   .crcs = {}};
    CO_TRY(co_await commit(std::move(record), std::move(admission), std::move(entry)));
    ++replay_records;
    co_return lsn;
}

}  // namespace peplos::volume
