#include <algorithm>

#include "base/crc32c.h"
#include "volume/core.h"
#include "volume/patient_read.h"

namespace peplos::volume {

using format::Record;
using format::RecordType;
using format::SegmentKind;

namespace {

constexpr size_t kDeleteBatch = 4096;
// Bytes of one read of a relocation, the dead ones in it that are cheaper read than left out, and
// how many reads are in flight.
constexpr uint64_t kStretchBytes = 256 * kKiB;
constexpr uint64_t kGapBytes = 64 * kKiB;
constexpr size_t kLoadersMax = 8;

format::RootBody root_body_of(const RootRef& ref, Lsn drained_lsn, Lsn meta_lsn,
                              uint64_t size_blocks) {
    format::RootBody body;
    body.drained_lsn = drained_lsn;
    body.meta_lsn = meta_lsn;
    body.page_segment = ref.segment;
    body.page_segment_index = ref.segment_index;
    body.page_offset = uint64_t{ref.offset_units} * format::kPlaceUnitBytes;
    body.page_bytes = ref.bytes;
    body.page_crc = ref.crc;
    body.page_sequence = ref.sequence;
    body.size_blocks = size_blocks;
    return body;
}

}  // namespace

// ---- checkpoint ----

uint64_t VolumeCore::checkpoint_units(uint64_t leaves) const {
    uint64_t leaf_bytes = uint64_t{limits::kLeafBlocks} * sizeof(MapEntry);
    return 3 + 2 * div_up(resources.leaf_cache.dirty_bytes(), kMiB) +
           div_up(leaves * leaf_bytes, kMiB);
}

uint64_t VolumeCore::leaf_count(std::span<const SegmentBlock> ascending) {
    uint64_t count = 0;
    for (size_t i = 0; i < ascending.size(); ++i) {
        bool is_same = i != 0 && ascending[i].lba.value / limits::kLeafBlocks ==
                                     ascending[i - 1].lba.value / limits::kLeafBlocks;
        count += is_same ? 0 : 1;
    }
    return count;
}

Task<Result<void>> VolumeCore::checkpoint() {
    auto guard = co_await upkeep.lock();
    CO_TRY(healthy());
    auto outcome = co_await checkpoint_locked();
    if (!outcome) note_failure(outcome.error());
    co_return outcome;
}

Task<Result<void>> VolumeCore::checkpoint_locked() {
    uint64_t failures = segments.copy_failures();
    auto outcome = co_await checkpoint_once();
    for (int i = 1; i < kCopyAttempts && !outcome && healthy(); ++i) {
        // Another node could not do its part: the same once more in another group.
        const Code code = outcome.error().code();
        bool is_theirs = failures != segments.copy_failures() &&
                         (code == Code::unavailable || code == Code::no_space);
        if (!is_theirs) break;
        failures = segments.copy_failures();
        outcome = co_await checkpoint_once();
    }
    co_return outcome;
}

Task<Result<void>> VolumeCore::checkpoint_once() {
    bool is_covered = meta_lsn == map->durable_meta_lsn() && map->durable_root().has_value();
    if (is_covered && !log->is_endangered()) {
        co_return co_await remove_dead_locked();
    }
    Lsn cut_drained, cut_meta;
    uint64_t cut_bytes, cut_records, size_blocks;
    {
        auto no_change = co_await meta.lock();
        CO_TRY(co_await settle_unread_leaves());
        cut_drained = drained_lsn;
        cut_meta = meta_lsn;
        cut_bytes = replay_bytes;
        cut_records = replay_records;
        size_blocks = map->block_count();
        CO_TRY(map->begin_checkpoint(cut_drained, cut_meta));
    }
    uint64_t bytes_before = pages.appended_bytes();
    auto root = co_await map->write_checkpoint();
    if (!root) {
        if (is_final(root.error().code())) fail_for_good(root.error());
        co_return fail(std::move(root).error());
    }
    {
        auto no_change = co_await meta.lock();
        Record record = make_record(RecordType::root, Lba(0), 0);
        Lsn covered = PLANTED("checkpoint.claims_too_much") ? meta_lsn : cut_meta;
        record.body = root_body_of(*root, cut_drained, covered, size_blocks);
        auto appended = co_await append_meta(std::move(record));
        if (!appended && appended.error().code() == Code::busy) {
            // The journal had no room even for a root: nothing was appended.
            map->abort_checkpoint();
            co_return fail(std::move(appended).error());
        }
        if (!appended) {
            // Whether the root is durable is not known: only a new open can tell.
            fail_for_good(appended.error());
            co_return fail(std::move(appended).error());
        }
        map->commit_checkpoint();
        replay_bytes -= cut_bytes;
        replay_records -= std::min(replay_records, cut_records + 1);
    }
    ++counters.checkpoints;
    counters.checkpoint_bytes += pages.appended_bytes() - bytes_before;
    log->trim(drained_lsn, map->durable_meta_lsn());
    co_return co_await remove_dead_locked();
}

Task<Result<void>> VolumeCore::settle_unread_leaves() {
    auto settled = co_await map->settle_unread();
    if (settled || settled.error().code() != Code::unavailable) {
        unread_since.reset();
        co_return settled;
    }
    const Time now = resources.env.clock.now();
    if (!unread_since) unread_since = now;
    bool is_late = now - *unread_since >= kUnreadPatience ||
                   log->retained_meta_bytes() * 2 >= log->retained_bytes_max();
    if (!is_late && !salvage) co_return settled;
    map->lose_unread();
    unread_since.reset();
    co_return Result<void>{};
}

// ---- removal ----

Task<Result<void>> VolumeCore::remove_dead() {
    auto guard = co_await upkeep.lock();
    CO_TRY(healthy());
    co_return co_await remove_dead_locked();
}

Task<Result<void>> VolumeCore::remove_dead_locked() {
    if (segments.peers() != nullptr) segments.peers()->remove_again();
    std::vector<DeadSegment> dead = map->segments().take_deletable();
    for (size_t first = 0; first < dead.size(); first += kDeleteBatch) {
        size_t end = std::min(first + kDeleteBatch, dead.size());
        Record record = make_record(RecordType::delete_intent, Lba(0), 0);
        format::DeleteIntentBody body;
        for (size_t i = first; i < end; ++i)
            body.segments.push_back(dead[i].id);
        record.body = std::move(body);
        {
            auto no_change = co_await meta.lock();
            auto appended = co_await append_meta(std::move(record));
            if (!appended) {
                map->segments().hand_back(std::span(dead).subspan(first));
                co_return fail(std::move(appended).error());
            }
            meta_lsn = std::max(meta_lsn, *appended);
        }
        for (size_t i = first; i < end; ++i) {
            // Readers that pinned it keep its units until they are done.
            const SegmentHandle* found = segments.find(dead[i].index);
            const CopiesRef held = found == nullptr ? CopiesRef() : found->copies();
            segments.forget(dead[i].index, dead[i].id);
            auto removed = co_await segments.remove(dead[i].id);
            if (removed) continue;
            fail_for_good(removed.error());
            co_return removed;
        }
    }
    co_return Result<void>{};
}

// ---- relocation ----

// Moves the live blocks of some segments into new ones.
class Mover {
  public:
    Mover(VolumeCore& core, uint8_t lifetime_class)
        : core_(core), lifetime_class_(lifetime_class) {}
    Task<Result<void>> run(std::vector<uint32_t> indexes);

  private:
    struct Output {
        WrittenSegment segment;
        uint32_t index = 0;
    };
    // Living blocks of one segment with few dead ones between: read at once.
    struct Stretch {
        SegmentHandle handle;
        std::vector<SegmentBlock> live;  // ascending by place
    };
    // A segment that counts more blocks alive than the map named.
    struct Suspect {
        uint32_t index = 0;
        SegmentId id;
        std::vector<format::SegmentIndexEntry> entries;
    };
    Task<Result<void>> collect(uint32_t index);
    // The entry of a block, or nothing: its leaf cannot be read or is lost.
    Task<Result<std::optional<MapEntry>>> find(Lba lba);
    Task<Result<void>> recount(const Suspect& suspect);
    void give_up_on(const SegmentId& id) {
        core_.uncleanable[id] = {core_.map->loss_changes(), core_.resources.env.clock.now()};
    }
    void cut(const SegmentHandle& handle, std::vector<SegmentBlock> live);
    Task<void> load();
    Task<void> load_some();
    Task<void> load_stretch(Stretch& stretch);
    Task<Result<void>> write();
    Task<Result<void>> write_all();
    Task<Result<void>> publish();
    Task<void> undo();

    VolumeCore& core_;
    const uint8_t lifetime_class_;
    std::vector<Stretch> stretches_;
    size_t next_stretch_ = 0;
    size_t loaders_ = 0;
    runtime::WaitList loaded_;
    std::vector<SegmentBlock> blocks_;
    std::vector<Output> outputs_;
    bool is_published_ = false;  // the record is durable
    std::vector<Relocation> relocations_;
    std::vector<Suspect> suspects_;
    std::optional<Error> damage_;  // a block or leaf that could not be read; the others are moved
    std::optional<uint64_t> unreadable_leaf_;  // the last one met
};

Task<Result<void>> Mover::collect(uint32_t index) {
    const SegmentEntry* entry = core_.map->segments().find(index);
    const SegmentHandle* found = core_.segments.find(index);
    if (entry == nullptr || found == nullptr || entry->state != SegmentState::sealed ||
        entry->live_count == 0 || entry->kind == static_cast<uint8_t>(SegmentKind::map)) {
        co_return Result<void>{};
    }
    // Of a drain that is going into the map at this moment: it only looks half dead.
    if (entry->sealed_lsn > core_.meta_lsn) co_return Result<void>{};
    SegmentHandle handle = *found;
    auto sealed = co_await read_index(handle);
    if (!sealed) {
        give_up_on(handle.id());
        co_return fail(std::move(sealed).error());
    }
    std::vector<SegmentBlock> live;
    bool has_lost = false;
    for (const format::SegmentIndexEntry& item : sealed->entries) {
        if (item.lba.value >= core_.map->block_count()) continue;
        CO_TRY_ASSIGN(std::optional<MapEntry> now, co_await find(item.lba));
        MapEntry here = item.map_entry(index);
        has_lost |= !now.has_value();
        if (!now || now->place != here.place) continue;
        live.push_back({item.lba, item.lsn, {}, here.crc, here.place});
    }
    entry = core_.map->segments().find(index);
    CHECK(entry != nullptr && entry->id == handle.id(), "the upkeep lock keeps it");
    if (has_lost) {
        // What a lost leaf named may be here: it stays until nothing is lost any more.
        give_up_on(handle.id());
    } else if (entry->live_count > live.size()) {
        suspects_.push_back({index, handle.id(), std::move(sealed->entries)});
    }
    cut(handle, std::move(live));
    co_return Result<void>{};
}

Task<Result<std::optional<MapEntry>>> Mover::find(Lba lba) {
    MapEntry entry;
    std::span<MapEntry> out(&entry, 1);
    if (!core_.map->lookup_cached(lba, out)) {
        uint64_t leaf = lba.value / limits::kLeafBlocks;
        if (unreadable_leaf_ == leaf) co_return std::nullopt;
        auto found = co_await core_.map->lookup(lba, out);
        if (!found && found.error().code() != Code::corrupt &&
            found.error().code() != Code::io_error) {
            co_return fail(std::move(found).error());
        }
        if (!found) {
            unreadable_leaf_ = leaf;
            damage_ = std::move(found).error();
            co_return std::nullopt;
        }
    }
    if (entry.is_lost()) co_return std::nullopt;
    co_return entry;
}

// A leaf that was lost left counts behind: what it named here, nobody can find any more, and every
// block in the index has been written or freed since. Otherwise the segment would stay for ever.
Task<Result<void>> Mover::recount(const Suspect& suspect) {
    auto no_change = co_await core_.meta.lock();
    CO_TRY(core_.healthy());
    uint32_t named = 0;
    for (const format::SegmentIndexEntry& item : suspect.entries) {
        if (item.lba.value >= core_.map->block_count()) continue;
        CO_TRY_ASSIGN(std::optional<MapEntry> now, co_await find(item.lba));
        if (!now) co_return Result<void>{};
        if (now->place == item.map_entry(suspect.index).place) ++named;
    }
    const SegmentEntry* entry = core_.map->segments().find(suspect.index);
    if (entry == nullptr || entry->id != suspect.id || entry->live_count <= named) {
        co_return Result<void>{};
    }
    PROBE("volume.relocate.recounted");
    LOG_INFO("segment recounted after lost map leaves volume={} segment={} counted={} named={}",
             core_.params.id, suspect.id, entry->live_count, named);
    core_.map->segments().correct_live(suspect.index, named);
    co_return Result<void>{};
}

void Mover::cut(const SegmentHandle& handle, std::vector<SegmentBlock> live) {
    auto offset = [](const SegmentBlock& block) { return block.old_place.offset_bytes(); };
    std::ranges::sort(live, {}, offset);
    for (size_t first = 0; first < live.size();) {
        size_t end = first + 1;
        while (end < live.size() && offset(live[end]) - offset(live[first]) < kStretchBytes &&
               offset(live[end]) - offset(live[end - 1]) <= kGapBytes) {
            ++end;
        }
        auto begin = live.begin();
        stretches_.push_back(
            {handle, std::vector(begin + ptrdiff_t(first), begin + ptrdiff_t(end))});
        first = end;
    }
}

Task<void> Mover::load_stretch(Stretch& stretch) {
    uint64_t begin = stretch.live.front().old_place.offset_bytes();
    uint64_t end = stretch.live.back().old_place.offset_bytes() + kBlockBytes;
    Buffer data = Buffer::allocate(end - begin);
    auto whole = co_await stretch.handle.read(begin, data);
    for (SegmentBlock& block : stretch.live) {
        uint64_t at = block.old_place.offset_bytes();
        block.data = data.slice(at - begin, kBlockBytes);
        bool is_good = whole && crc32c(block.data.bytes()) == block.crc;
        bool is_alone = stretch.handle.copy_count() <= 1;
        if (!is_good && (!whole || !is_alone)) {
            auto alone =
                co_await read_block(stretch.handle, block.old_place, block.crc, block.data);
            is_good = alone.has_value();
            if (!is_good && alone.error().code() != Code::corrupt) {
                give_up_on(stretch.handle.id());
                damage_ = std::move(alone).error();
                continue;
            }
        }
        if (is_good) {
            blocks_.push_back(std::move(block));
        } else {
            give_up_on(stretch.handle.id());
            damage_ = core_.corrupt_block(stretch.handle, block.old_place, block.lba);
        }
    }
}

Task<void> Mover::load_some() {
    while (next_stretch_ < stretches_.size())
        co_await load_stretch(stretches_[next_stretch_++]);
    if (--loaders_ == 0) loaded_.wake_all();
}

// A segment that is half dead is read in hundreds of pieces: several at a time.
Task<void> Mover::load() {
    loaders_ = std::min(kLoadersMax, stretches_.size());
    for (size_t i = loaders_; i > 0; --i)
        runtime::spawn(core_.resources.env.executor, load_some());
    while (loaders_ != 0)
        co_await loaded_.wait();
    stretches_.clear();
}

Task<Result<void>> Mover::write() {
    // A drain may have replaced a block between two looks at the map: then only its newer version,
    // out of the drain's segment, is still alive.
    std::ranges::sort(blocks_, [](const SegmentBlock& a, const SegmentBlock& b) {
        return a.lba != b.lba ? a.lba < b.lba : b.lsn < a.lsn;
    });
    auto older = std::ranges::unique(blocks_, {}, &SegmentBlock::lba);
    blocks_.erase(older.begin(), older.end());
    uint64_t leaves = VolumeCore::leaf_count(blocks_);
    for (size_t first = 0; first < blocks_.size();) {
        RunChoice run = choose_run(blocks_.size() - first, limits::kSegmentBytesMax);
        while (run.bytes > limits::kSegmentBytesMin &&
               !core_.segments.has_room(run.bytes, media::Purpose::maintenance)) {
            uint64_t half = run.bytes / 2;
            run = choose_run(std::min<uint64_t>(run.blocks, format::segment_block_count_max(half)),
                             half);
        }
        if (core_.segments.free_units() <
            units_for_blocks(blocks_.size() - first) + core_.checkpoint_units(leaves)) {
            co_return fail(Code::no_space,
                           "volume {} cannot be cleaned now: what is left is kept for checkpoints",
                           core_.params.id);
        }
        std::span<const SegmentBlock> part(blocks_.data() + first, run.blocks);
        auto written =
            co_await write_segment(core_.segments, SegmentKind::relocated, lifetime_class_, part,
                                   run.bytes, media::Purpose::maintenance);
        if (!written) co_return fail(std::move(written).error());
        Output output;
        output.segment = std::move(*written);
        CO_TRY_ASSIGN(output.index, core_.map->segments().reserve());
        for (size_t i = 0; i < run.blocks; ++i) {
            relocations_.push_back(
                {part[i].lba,
                 part[i].old_place,
                 {format::Place::block(output.index, format::segment_block_offset(i)), part[i].crc,
                  0}});
        }
        outputs_.push_back(std::move(output));
        first += run.blocks;
    }
    std::vector<SegmentHandle> handles;
    handles.reserve(outputs_.size());
    for (const Output& output : outputs_)
        handles.push_back(output.segment.handle);
    CO_TRY(co_await core_.segments.sync(std::move(handles)));
    for (Output& output : outputs_)
        CO_TRY(co_await seal_segment(output.segment));
    co_return Result<void>{};
}

// In another group when a node with a copy fails.
Task<Result<void>> Mover::write_all() {
    uint64_t failures = core_.segments.copy_failures();
    Result<void> outcome = co_await write();
    for (int i = 1; i < kCopyAttempts && !outcome && core_.healthy(); ++i) {
        const Code code = outcome.error().code();
        bool is_theirs = failures != core_.segments.copy_failures() &&
                         (code == Code::unavailable || code == Code::no_space);
        if (!is_theirs) break;
        failures = core_.segments.copy_failures();
        co_await undo();
        outcome = co_await write();
    }
    if (!outcome) co_await undo();
    co_return outcome;
}

Task<Result<void>> Mover::publish() {
    auto guard = co_await core_.meta.lock();
    Record record = core_.make_record(RecordType::relocate, Lba(0), 0);
    format::RelocateBody body;
    for (const Output& output : outputs_) {
        body.segments.push_back({.id = output.segment.handle.id(),
                                 .index = output.index,
                                 .group = output.segment.handle.group(),
                                 .block_count = output.segment.footer.entry_count,
                                 .segment_class = lifetime_class_});
    }
    record.body = std::move(body);
    CO_TRY_ASSIGN(Lsn lsn, co_await core_.append_meta(std::move(record)));
    is_published_ = true;
    for (Output& output : outputs_) {
        core_.segments.put(output.index, output.segment.handle);
        CO_TRY(core_.map->segments().add(output.index, entry_of(output.segment, lsn)));
        core_.replay_bytes += output.segment.written_bytes;
        core_.counters.relocated_bytes += output.segment.written_bytes;
    }
    co_return co_await core_.apply_change(lsn, {}, {}, relocations_);
}

Task<void> Mover::undo() {
    for (Output& output : outputs_) {
        auto removed = co_await core_.segments.remove(output.segment.handle.id());
        if (!removed)
            LOG_WARN("a segment of a failed relocation stays until the next open: {}",
                     removed.error().text());
        core_.map->segments().release(output.index);
    }
    outputs_.clear();
    relocations_.clear();
}

Task<Result<void>> Mover::run(std::vector<uint32_t> indexes) {
    for (uint32_t index : indexes)
        CO_TRY(co_await collect(index));
    co_await load();
    if (!blocks_.empty()) {
        Result<void> outcome = co_await write_all();
        if (!outcome && is_final(outcome.error().code())) core_.fail_for_good(outcome.error());
        if (!outcome) co_return outcome;
        outcome = co_await publish();
        if (!outcome && !is_published_ && outcome.error().code() == Code::busy) {
            // The journal had no room: nothing was appended.
            co_await undo();
            co_return outcome;
        }
        if (!outcome) {
            core_.fail_for_good(outcome.error());
            co_return outcome;
        }
    }
    for (const Suspect& suspect : suspects_)
        CO_TRY(co_await recount(suspect));
    if (damage_.has_value()) co_return fail(*damage_);
    co_return Result<void>{};
}

Task<Result<void>> VolumeCore::relocate(std::vector<uint32_t> indexes, uint8_t lifetime_class) {
    // No checkpoint and no removal meanwhile: an index that is looked at stays what it is.
    auto guard = co_await upkeep.lock();
    CO_TRY(healthy());
    Mover mover(*this, lifetime_class);
    co_return co_await mover.run(std::move(indexes));
}

// ---- scrub ----

Task<Result<ScrubResult>> VolumeCore::scrub(uint32_t index) {
    CO_TRY_ASSIGN(ScrubResult out, co_await check_segment(index));
    const SegmentHandle* found = segments.find(index);
    if (out.problems.empty() || found == nullptr || !found->copies() || !found->has_local())
        co_return out;
    const SegmentHandle handle = *found;
    auto mended = co_await segments.mend_here(handle);
    if (mended && *mended) {
        out.repaired = std::exchange(out.problems, {});
    } else if (!mended) {
        out.problems.push_back(mended.error().message());
    }
    co_return out;
}

Task<Result<ScrubResult>> VolumeCore::check_segment(uint32_t index) {
    ScrubResult out;
    const SegmentEntry* entry = map->segments().find(index);
    if (entry == nullptr || entry->state != SegmentState::sealed) co_return out;
    if (entry->kind == static_cast<uint8_t>(SegmentKind::map)) {
        // Pages move with checkpoints only.
        auto guard = co_await upkeep.lock();
        CO_TRY(healthy());
        co_await scrub_sealed(index, out);
        const SegmentHandle* found = segments.find(index);
        if (found != nullptr && !found->has_local()) co_return out;
        out.bytes_checked += co_await map->scrub_segment(index, out.problems);
    } else {
        co_await scrub_sealed(index, out);
    }
    co_return out;
}

// Header, footer, index and blocks of any segment.
Task<void> VolumeCore::scrub_sealed(uint32_t index, ScrubResult& out) {
    const SegmentHandle* found = segments.find(index);
    if (found == nullptr) {
        const SegmentEntry* entry = map->segments().find(index);
        if (entry == nullptr || entry->state != SegmentState::sealed) co_return;
        out.problems.push_back(
            fmt::format("volume {}: segment {} with {} live blocks is on none of this node's "
                        "devices",
                        params.id, entry->id, entry->live_count));
        co_return;
    }
    SegmentHandle handle = *found;
    // Each copy is checked by the node that has it.
    if (!handle.has_local()) co_return;
    auto sealed = co_await read_index_copy(handle, 0);
    if (!sealed) {
        out.problems.push_back(sealed.error().message());
        co_return;
    }
    const format::SegmentFooter& footer = sealed->footer;
    if (footer.header.volume != params.id || footer.header.lineage != params.lineage) {
        Error error = handle.corrupt_at(0, "it belongs to another volume");
        out.problems.push_back(error.message());
    }
    out.bytes_checked += format::kSegmentDataOffset + footer.index_bytes();
    Buffer block = Buffer::allocate(kBlockBytes);
    for (const format::SegmentIndexEntry& item : sealed->entries) {
        uint64_t offset = uint64_t{item.offset_units} * format::kPlaceUnitBytes;
        auto read = co_await handle.read(offset, block);
        if (!read) {
            out.problems.push_back(read.error().message());
        } else if (crc32c(block.bytes()) != item.crc) {
            Error error = corrupt_block(handle, format::Place::block(index, offset), item.lba);
            out.problems.push_back(error.message());
        }
        out.bytes_checked += kBlockBytes;
    }
}

Task<Result<std::string>> VolumeCore::dump_map() {
    std::string out;
    uint64_t end = map->block_count();
    std::vector<MapEntry> entries(limits::kLeafBlocks);
    for (uint64_t first = 0; first < end; first += entries.size()) {
        std::span<MapEntry> part(entries.data(), std::min<uint64_t>(entries.size(), end - first));
        CO_TRY(co_await map->lookup(Lba(first), part));
        for (size_t i = 0; i < part.size(); ++i) {
            if (!part[i]) continue;
            out += fmt::format("{} {:x} {:08x}\n", first + i, part[i].place.bits, part[i].crc);
        }
    }
    co_return out;
}

}  // namespace peplos::volume
