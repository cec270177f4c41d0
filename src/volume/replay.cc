#include <algorithm>
#include <map>

#include "base/crc32c.h"
#include "volume/core.h"
#include "volume/patient_read.h"

namespace peplos::volume {

using format::Record;
using format::RecordType;

namespace {

class Replay final : public replica::RecordVisitor {
  public:
    explicit Replay(VolumeCore& core) : core_(core) {}
    Task<Result<void>> on_record(Record record) override {
        if (core_.salvage) return salvage(std::move(record));
        return core_.replay_record(std::move(record));
    }
    void on_unreadable(Lsn lsn, RecordType type, const Error& why) override {
        core_.salvage->find(why.message());
        if (format::is_meta(type)) core_.salvage->lose_meta(lsn);
        if (format::is_data(type)) core_.salvage->cut_behind(core_.salvage->before(lsn));
    }

  private:
    // A data record that cannot be carried out is a hole like one that cannot be read.
    Task<Result<void>> salvage(Record record) {
        if (!core_.salvage->admits(record, core_.log->tail())) co_return Result<void>{};
        const bool is_data = format::is_data(record.type);
        const Lsn before = core_.salvage->before(record.lsn);
        auto outcome = co_await core_.replay_record(std::move(record));
        if (outcome || !is_data || !is_damage(outcome.error().code())) co_return outcome;
        core_.salvage->find(outcome.error().message());
        core_.salvage->cut_behind(before);
        co_return Result<void>{};
    }

    VolumeCore& core_;
};

RootRef root_ref_of(const format::RootBody& body) {
    RootRef ref;
    ref.segment = body.page_segment;
    ref.segment_index = body.page_segment_index;
    ref.offset_units = static_cast<uint32_t>(body.page_offset / format::kPlaceUnitBytes);
    ref.bytes = body.page_bytes;
    ref.crc = body.page_crc;
    ref.sequence = body.page_sequence;
    return ref;
}

}  // namespace

Task<Result<void>> VolumeCore::replay() {
    const replica::LogTail& tail = log->tail();
    if (tail.root.has_value() && tail.root->page_segment) {
        CO_TRY(co_await load_map(root_ref_of(*tail.root)));
        drained_lsn = tail.root->drained_lsn;
        meta_lsn = tail.root->meta_lsn;
    }
    CO_TRY(co_await attach_segments());
    Replay visitor(*this);
    CO_TRY(co_await log->replay(visitor));
    drained_lsn = std::max(drained_lsn, tail.drained_lsn);
    applied_lsn = tail.last_lsn;
    charged_bytes = needed_bytes();
    resources.overlay.take_regardless(charged_bytes);
    promised_units = needed_units(overlay.reference_blocks());
    resources.space.promise_regardless(promised_units);
    if (!found_reference) {
        settle_open_segments();
    } else {
        co_await adopt_open_segments();
    }
    co_return Result<void>{};
}

Task<Result<void>> VolumeCore::load_map(RootRef ref) {
    Result<void> loaded = co_await map->load(ref);
    if (loaded || !is_damage(loaded.error().code())) co_return loaded;
    if (salvage) co_return co_await salvage_map(ref, loaded.error());
    co_return fail(std::move(loaded).error().within(
        fmt::format("volume {}: its map cannot be read, so nothing of it is served", params.id)));
}

// Pins what the root's table lists. A segment that is gone was deleted after the root: then nothing
// of it is alive once the replay is done; a read that meets it anyway says corrupt.
Task<Result<void>> VolumeCore::attach_segments() {
    const SegmentTable& table = map->segments();
    for (uint32_t index = 0; index < table.index_end(); ++index) {
        const SegmentEntry* entry = table.find(index);
        if (entry == nullptr) continue;
        if (entry->state == SegmentState::open) unsealed_at_open.push_back(index);
        if (SegmentHandle handle = segments.locate(entry->id, entry->group)) {
            segments.put(index, std::move(handle));
        }
        if (index % 4096 == 4095) co_await runtime::yield();
    }
    co_return Result<void>{};
}

Task<Result<void>> VolumeCore::replay_record(Record record) {
    const replica::LogTail& tail = log->tail();
    if (format::is_data(record.type)) {
        if (record.lsn <= tail.drained_lsn) co_return Result<void>{};
        if (record.block_count > map->block_count() ||
            record.lba.value > map->block_count() - record.block_count) {
            co_return fail(Code::corrupt, "volume {} LSN {}: a record for blocks {} to {} of {}",
                           params.id, record.lsn, record.lba, record.lba.value + record.block_count,
                           map->block_count());
        }
        if (record.type == RecordType::write) co_return replay_write(record);
        if (record.type == RecordType::write_ref) {
            co_return co_await replay_write_ref(std::move(record));
        }
        if (record.type == RecordType::zero && !PLANTED("recovery.skips_trims")) {
            overlay.put_zero(record.lba.value, record.block_count);
        }
        co_return Result<void>{};
    }
    if (!format::is_meta(record.type) || record.lsn <= tail.meta_lsn) co_return Result<void>{};
    ++replay_records;
    if (auto* seal = std::get_if<format::SealBody>(&record.body)) {
        co_return co_await replay_seal(record.lsn, *seal);
    }
    if (auto* relocate = std::get_if<format::RelocateBody>(&record.body)) {
        co_return co_await replay_relocate(record.lsn, *relocate);
    }
    if (auto* resize = std::get_if<format::ResizeBody>(&record.body)) {
        if (resize->size_blocks >= map->block_count() &&
            resize->size_blocks <= limits::kVolumeBytesMax / kBlockBytes) {
            map->grow(record.lsn, resize->size_blocks);
        }
    }
    if (auto* intent = std::get_if<format::DeleteIntentBody>(&record.body)) {
        deleted_in_replay.insert(deleted_in_replay.end(), intent->segments.begin(),
                                 intent->segments.end());
    }
    meta_lsn = record.lsn;
    co_return Result<void>{};
}

Result<void> VolumeCore::replay_write(Record& record) {
    if (record.payload.size() != 1 || record.payload[0].size() != record.payload_bytes() ||
        record.crcs.size() != record.block_count) {
        return fail(Code::corrupt, "volume {} LSN {}: a write of {} blocks with another payload",
                    params.id, record.lsn, record.block_count);
    }
    for (uint64_t i = 0; i < record.block_count; ++i) {
        overlay.put(record.lba.value + i,
                    OverlayEntry{.data = record.payload[0].slice(i * kBlockBytes, kBlockBytes),
                                 .place = {},
                                 .lsn = record.lsn,
                                 .crc = record.crcs[i]});
    }
    return {};
}

namespace {

// Errors: corrupt (a block does not match its checksum), those of the copy.
Task<Result<void>> read_payload(const SegmentHandle& handle, uint32_t copy, uint64_t offset,
                                const Record& record, Buffer into) {
    CO_TRY(co_await handle.read_copy(copy, offset, into));
    for (size_t i = 0; i < record.block_count; ++i) {
        Bytes block = std::as_const(into).bytes().subspan(i * kBlockBytes, kBlockBytes);
        if (crc32c(block) != record.crcs[i])
            co_return fail(Code::corrupt, "a block of LSN {} does not match", record.lsn);
    }
    co_return Result<void>{};
}

}  // namespace

// Reads a payload back that no record vouches for. A segment that is gone was let go after its
// references were voided, and the record of that was lost with the power: so nobody was told. But
// one that may be on a device that is missing proves nothing.
Task<Result<bool>> VolumeCore::is_reference_whole(const Record& record) {
    const auto& body = std::get<format::WriteRefBody>(record.body);
    SegmentHandle handle = segments.locate(body.segment);
    uint64_t offset = uint64_t{body.block_offset} * kBlockBytes;
    uint64_t bytes = record.block_count * kBlockBytes;
    if (!handle && !resources.space.missing().empty()) {
        PROBE("volume.replay.reference_on_missing_device");
        std::string what = fmt::format(
            "volume {} LSN {}: segment {} with the data of a write that may have been acknowledged "
            "is on none of this node's devices, and {} is out of service: bring it back",
            params.id, record.lsn, body.segment, resources.space.missing());
        if (!salvage) co_return fail(Code::unavailable, "{}", what);
        salvage->find(std::move(what));
        salvage->lose(fmt::format("{} blocks from block {} on, of a large write on {}",
                                  record.block_count, record.lba, resources.space.missing()));
        co_return false;
    }
    if (!handle && segments.peers() != nullptr && !segments.peers()->unanswered().empty()) {
        co_return fail(segments.not_located(
            Code::unavailable,
            fmt::format("volume {} LSN {}: segment {} with the data of a write that may have been "
                        "acknowledged",
                        params.id, record.lsn, body.segment)));
    }
    if (!handle || offset + bytes > handle.bytes()) co_return false;
    Buffer payload = Buffer::allocate(bytes);
    auto read = [&](uint32_t copy) { return read_payload(handle, copy, offset, record, payload); };
    auto outcome = co_await from_any_copy(handle, read);
    if (outcome) co_return true;
    if (outcome.error().code() == Code::corrupt) co_return false;
    co_return fail(std::move(outcome).error());
}

// What the replay found torn stays so, and what it found whole was there for good: both become
// durable before anything is served or written. Otherwise a later record would vouch for the torn
// ones, and a block that rots would turn a write that was read into one that never was.
Task<Result<void>> VolumeCore::settle_log() {
    if (!found_unsettled) co_return Result<void>{};
    for (Lsn lsn : torn_references) {
        LOG_INFO("a torn write is dropped, it was never acknowledged volume={} lsn={}", params.id,
                 lsn);
    }
    Record record = make_record(RecordType::settle, Lba(0), 0);
    record.body = format::SettleBody{std::exchange(torn_references, {})};
    CO_TRY_ASSIGN(replica::Admission admission, co_await log->admit(record));
    InFlight entry;
    entry.type = RecordType::settle;
    co_return co_await commit(std::move(record), std::move(admission), std::move(entry));
}

Task<Result<void>> VolumeCore::replay_write_ref(Record record) {
    auto* body = std::get_if<format::WriteRefBody>(&record.body);
    if (body == nullptr) {
        co_return fail(Code::corrupt, "volume {} LSN {}: a reference without a place", params.id,
                       record.lsn);
    }
    found_reference = true;
    const replica::LogTail& tail = log->tail();
    if (std::ranges::binary_search(tail.voided, record.lsn)) co_return Result<void>{};
    if (record.lsn > tail.settled_lsn) {
        found_unsettled = true;
        CO_TRY_ASSIGN(bool is_whole, co_await is_reference_whole(record));
        if (!is_whole && !PLANTED("recovery.believes_torn_reference")) {
            PROBE("volume.replay.torn_reference");
            torn_references.push_back(record.lsn);
            co_return Result<void>{};
        }
        PROBE("volume.replay.whole_reference");
    }
    if (segments.find(body->segment_index) == nullptr ||
        segments.find(body->segment_index)->id() != body->segment) {
        SegmentHandle handle = segments.locate(body->segment);
        uint64_t end = (uint64_t{body->block_offset} + record.block_count) * kBlockBytes;
        if (!handle || end > handle.bytes()) {
            co_return fail(segments.not_located(
                Code::corrupt,
                fmt::format("volume {} LSN {}: segment {} that holds the data of an acknowledged "
                            "write",
                            params.id, record.lsn, body->segment)));
        }
        SegmentEntry entry;
        entry.id = body->segment;
        entry.group = handle.group();
        entry.kind = static_cast<uint8_t>(format::SegmentKind::large);
        entry.state = SegmentState::open;
        entry.sealed_lsn = record.lsn;
        CO_TRY(map->segments().add(body->segment_index, entry));
        unsealed_at_open.push_back(body->segment_index);
        segments.put(body->segment_index, std::move(handle));
    }
    for (uint64_t i = 0; i < record.block_count; ++i) {
        overlay.put(record.lba.value + i,
                    OverlayEntry{.data = {},
                                 .place = format::Place::block(
                                     body->segment_index, (body->block_offset + i) * kBlockBytes),
                                 .lsn = record.lsn,
                                 .crc = record.crcs[i]});
    }
    co_return Result<void>{};
}

Task<Result<std::vector<format::SegmentIndexEntry>>> VolumeCore::replay_segment(
    Lsn lsn, const format::SealedSegment& sealed) {
    SegmentHandle handle = segments.locate(sealed.id, sealed.group);
    if (!handle) {
        co_return fail(segments.not_located(
            Code::corrupt, fmt::format("volume {} LSN {}: segment {} with acknowledged data",
                                       params.id, lsn, sealed.id)));
    }
    auto index = co_await read_index(handle);
    if (!index) co_return fail(std::move(index).error());
    if (index->entries.size() != sealed.block_count) {
        co_return fail(Code::corrupt, "volume {} LSN {}: segment {} holds {} blocks, not {}",
                       params.id, lsn, sealed.id, index->entries.size(), sealed.block_count);
    }
    CO_TRY(map->segments().add(sealed.index,
                               entry_of(index->footer, sealed.group, sealed.block_count, lsn)));
    replay_bytes += index->footer.bytes();
    // The power may have gone between the drain's record and this.
    if (!salvage) {
        auto shorter = co_await give_back_unused(handle, index->footer);
        if (!shorter) co_return fail(std::move(shorter).error());
    }
    segments.put(sealed.index, std::move(handle));
    co_return std::move(index->entries);
}

Task<Result<void>> VolumeCore::replay_seal(Lsn lsn, const format::SealBody& body) {
    if (salvage) co_return co_await salvage_seal(lsn, body);
    std::vector<MapUpdate> updates;
    for (const format::SealedSegment& sealed : body.segments) {
        auto entries = co_await replay_segment(lsn, sealed);
        if (!entries) co_return fail(std::move(entries).error());
        for (const format::SegmentIndexEntry& item : *entries) {
            updates.push_back({item.lba, item.map_entry(sealed.index)});
        }
    }
    std::ranges::sort(updates, {}, &MapUpdate::lba);
    std::vector<ZeroExtent> zeros;
    zeros.reserve(body.zeros.size());
    for (const format::ZeroExtent& zero : body.zeros) {
        zeros.push_back({zero.lba, zero.block_count});
    }
    co_return co_await apply_change(lsn, zeros, updates, {});
}

Task<Result<void>> VolumeCore::replay_relocate(Lsn lsn, const format::RelocateBody& body) {
    std::vector<Relocation> relocations;
    for (const format::SealedSegment& sealed : body.segments) {
        auto entries = salvage ? co_await replay_segment_patiently(lsn, sealed)
                               : co_await replay_segment(lsn, sealed);
        if (!entries && salvage && is_damage(entries.error().code())) {
            // What it moved is still where it was: no checkpoint has covered the move.
            salvage->find(entries.error().message());
            continue;
        }
        if (!entries) co_return fail(std::move(entries).error());
        for (const format::SegmentIndexEntry& item : *entries) {
            relocations.push_back({item.lba, item.old_place, item.map_entry(sealed.index)});
        }
    }
    std::ranges::sort(relocations, {}, &Relocation::lba);
    co_return co_await apply_change(lsn, {}, {}, relocations);
}

// Segments of earlier epochs that were never sealed: once no undrained record refers to them, not
// even one that later records made needless, they hold nothing, and so are dead.
void VolumeCore::settle_open_segments() {
    SegmentTable& table = map->segments();
    for (uint32_t index : unsealed_at_open) {
        const SegmentEntry* entry = table.find(index);
        if (entry != nullptr && entry->state == SegmentState::open) table.seal(index, 0);
    }
    unsealed_at_open.clear();
}

// Segments of earlier epochs that hold undrained blocks are sealed in place by the next drain:
// writing the blocks anew would take as much space again, which a full device does not have.
Task<void> VolumeCore::adopt_open_segments() {
    std::map<uint32_t, uint64_t> block_ends;
    for (const auto& [lba, entry] : overlay.active().blocks) {
        if (!entry.is_reference()) continue;
        uint64_t bytes = entry.place.offset_bytes() + kBlockBytes - format::kSegmentDataOffset;
        uint64_t& end = block_ends[entry.place.segment_index()];
        end = std::max(end, bytes / kBlockBytes);
    }
    for (const auto& [index, end] : block_ends) {
        const SegmentHandle* handle = segments.find(index);
        if (handle == nullptr || format::segment_bytes_for(end) > handle->bytes()) continue;
        auto segment = std::make_shared<OpenSegment>();
        segment->handle = *handle;
        auto adopted = co_await segments.adopt(segment->handle);
        if (!adopted) {
            LOG_INFO("an open segment is written anew volume={} segment={} why={}", params.id,
                     segment->handle.id(), adopted.error().text());
            continue;
        }
        segment->index = index;
        segment->block_count = segment->block_count_max = static_cast<uint32_t>(end);
        full_segments.push_back(std::move(segment));
    }
}

std::vector<SegmentId> VolumeCore::find_leftovers() const {
    boost::unordered_flat_map<SegmentId, bool, std::hash<SegmentId>> known;
    const SegmentTable& table = map->segments();
    for (uint32_t index = 0; index < table.index_end(); ++index) {
        if (const SegmentEntry* entry = table.find(index)) known.emplace(entry->id, true);
    }
    for (const SegmentId& id : deleted_in_replay)
        known.erase(id);
    std::vector<SegmentId> out;
    for (media::SegmentStore* store : resources.space.stores()) {
        for (const media::SegmentInfo& info : store->list(params.id)) {
            if (!known.contains(info.id)) out.push_back(info.id);
        }
    }
    if (segments.peers() == nullptr) return out;
    for (const SegmentId& id : segments.peers()->surveyed()) {
        if (!known.contains(id)) out.push_back(id);
    }
    std::ranges::sort(out);
    auto again = std::ranges::unique(out);
    out.erase(again.begin(), again.end());
    return out;
}

// Sealed segments that a node of their group lacks.
Task<void> VolumeCore::mend_missing_copies() {
    std::vector<std::pair<SegmentId, GroupId>> sealed;
    for (uint32_t index = 0; index < map->segments().index_end(); ++index) {
        const SegmentEntry* entry = map->segments().find(index);
        if (entry == nullptr || !entry->group || entry->state != SegmentState::sealed) continue;
        sealed.emplace_back(entry->id, entry->group);
    }
    co_await segments.peers()->mend_missing(std::move(sealed));
}

// What an open found and nobody waits for.
Task<void> VolumeCore::tidy_up(std::vector<SegmentId> leftovers) {
    co_await remove_leftovers(std::move(leftovers));
    if (segments.peers() != nullptr) co_await mend_missing_copies();
}

Task<void> VolumeCore::remove_leftovers(std::vector<SegmentId> ids) {
    for (const SegmentId& id : ids) {
        if (fault.has_value() || stopping) co_return;
        auto removed = co_await segments.remove(id);
        if (!removed) {
            LOG_WARN("a leftover segment cannot be removed now segment={} why={}", id,
                     removed.error().text());
            co_return;
        }
    }
}

}  // namespace peplos::volume
