#include "volume/salvage.h"

#include <algorithm>
#include <map>
#include <ranges>

#include "base/crc32c.h"
#include "volume/core.h"
#include "volume/map_salvage.h"

namespace peplos::volume {

using format::Record;
using format::RecordType;
using format::SealBody;
using format::SealedSegment;

namespace {

// Blocks of which at most one drain may leave unknown which it wrote: 64 GiB. All of them are lost
// then, and every lost block has an entry.
constexpr uint64_t kLossBlocksMax = 64 * kGiB / kBlockBytes;

std::string describe(uint64_t first, uint64_t end) {
    return fmt::format("blocks {} to {} (bytes {} to {})", first, end - 1, first * kBlockBytes,
                       end * kBlockBytes - 1);
}

}  // namespace

// ---- decisions ----

void Salvage::cut_behind(Lsn lsn) {
    if (!cut_) cut_ = lsn;
}

bool Salvage::admits(const Record& record, const replica::LogTail& tail) {
    if (record.prev_data_lsn > std::max(tail.drained_lsn, last_data_)) cut_behind(last_taken_);
    if (record.prev_meta_lsn > std::max(tail.meta_lsn, last_meta_)) lose_meta(record.prev_meta_lsn);
    if (format::is_meta(record.type)) last_meta_ = record.lsn;
    prev_data_of_seal = record.prev_data_lsn;
    if (!format::is_data(record.type)) return true;
    last_data_ = record.lsn;
    if (record.lsn <= tail.drained_lsn) return true;
    if (cut_) {
        ++report_.dropped_records;
        report_.dropped_blocks += record.block_count;
        return false;
    }
    before_last_ = std::exchange(last_taken_, record.lsn);
    return true;
}

void Salvage::sum_up(const replica::LogTail& tail) {
    if (!is_cut(tail)) return;
    report_.kept_lsn = last(tail);
    std::string what = fmt::format(
        "the newest writes: the volume goes back to what it was after its record {}", last(tail));
    if (report_.dropped_records != 0) {
        what += fmt::format(
            "; {} later records of {} blocks can be read, but follow one that cannot and are "
            "dropped with it",
            report_.dropped_records, report_.dropped_blocks);
    }
    what +=
        "; what the unreadable part of the journal held is not known, at most the writes of "
        "the last moment before the crash where nothing readable follows it";
    report_.losses.push_back(std::move(what));
}

namespace {

// Data segments of the volume that the map does not know, with what they say they hold.
Task<std::vector<FoundSegment>> find_segments(VolumeCore& core, Lsn sealed_lsn) {
    std::vector<FoundSegment> out;
    for (const SegmentId& id : core.find_leftovers()) {
        SegmentHandle handle = core.segments.locate(id);
        if (!handle || handle.kind() == format::SegmentKind::map) continue;
        auto read = co_await read_patiently([&] { return read_index(handle); });
        if (!read.outcome) continue;
        SealedIndex& sealed = *read.outcome;
        out.push_back(
            {entry_of(sealed.footer, handle.group(), sealed.footer.entry_count, sealed_lsn),
             std::move(sealed.entries)});
    }
    co_return out;
}

}  // namespace

// ---- a whole volume ----

Task<Result<void>> VolumeCore::start_salvage(replica::OnLoss on_loss) {
    salvage = std::make_unique<Salvage>(on_loss);
    replica::OpenRequest request{.volume = params.id,
                                 .lineage = params.lineage,
                                 .epoch = params.epoch,
                                 .token = params.token,
                                 .recorded = params.recorded,
                                 .on_loss = on_loss};
    CO_TRY_ASSIGN(log, co_await resources.journal.open(std::move(request)));
    const replica::LogTail& tail = log->tail();
    if (tail.outcome != replica::LogOutcome::complete) {
        if (!tail.is_salvaged) co_return fail(unproven(tail));
        salvage->find(tail.reason);
    }
    if (tail.root) salvage->drained_before = tail.root->drained_lsn;
    if (segments.peers() != nullptr) CO_TRY(co_await segments.peers()->survey());
    CO_TRY(co_await replay());
    if (tail.lost_meta_lsn) salvage->lose_meta(tail.lost_meta_lsn);
    if (salvage->lost_meta()) {
        co_return fail(Code::unavailable,
                       "volume {}: the journal lost the record at LSN {}, which said where drained "
                       "data lie; they cannot be put together again without it: restore a backup",
                       params.id, salvage->lost_meta());
    }
    if (auto settled = co_await map->settle_unread(); !settled) {
        salvage->find(settled.error().message());
        const uint64_t lost = map->lose_unread();
        salvage->lose(fmt::format("{} blocks of map leaves that cannot be read", lost));
    }
    CO_TRY(co_await check_payloads());
    salvage->sum_up(tail);
    if (salvage->is_cut(tail)) CO_TRY(co_await name_unplaced_segments(tail));
    salvage->count_lost(map->lost_count());
    co_return Result<void>{};
}

// A drain's record may have been in what the journal lost: then its segments are there, and nothing
// says any more that they count.
Task<Result<void>> VolumeCore::name_unplaced_segments(const replica::LogTail& tail) {
    const Lsn last = salvage->last(tail);
    uint64_t segment_count = 0;
    uint64_t block_count = 0;
    Lsn newest;
    std::vector<FoundSegment> found = co_await find_segments(*this, tail.meta_lsn);
    for (const FoundSegment& segment : found) {
        if (segment.entry.age_lsn <= last) continue;
        ++segment_count;
        block_count += segment.entry.block_count;
        newest = std::max(newest, segment.entry.age_lsn);
    }
    if (segment_count == 0) co_return Result<void>{};
    salvage->give_up(block_count);
    salvage->lose(
        fmt::format("more than the last moment: {} segments with {} blocks of writes up to record "
                    "{} lie on the "
                    "devices, but no record that can be read says that they were drained; going on "
                    "gives them up",
                    segment_count, block_count, newest));
    co_return Result<void>{};
}

// Large writes of which the segment cannot be sealed where it is: the drain that this ends with has
// to write them anew. What of them cannot be read, now and after as many attempts as anywhere,
// would keep the volume closed for ever.
Task<Result<void>> VolumeCore::check_payloads() {
    std::map<uint64_t, OverlayEntry> references;
    for (const auto& [lba, entry] : overlay.active().blocks) {
        bool is_adopted = std::ranges::any_of(full_segments, [&entry](const auto& segment) {
            return segment->index == entry.place.segment_index();
        });
        if (entry.is_reference() && !is_adopted) references.emplace(lba, entry);
    }
    Buffer into = Buffer::allocate(kBlockBytes);
    for (const auto& [lba, entry] : references) {
        const SegmentHandle* found = segments.find(entry.place.segment_index());
        CHECK(found != nullptr);
        const SegmentHandle handle = *found;
        auto read = co_await read_patiently(
            [&] { return read_block(handle, entry.place, entry.crc, into); });
        if (read.outcome) continue;
        if (!is_damage(read.outcome.error().code())) co_return std::move(read.outcome);
        salvage->find(corrupt_block(handle, entry.place, Lba(lba)).message());
        salvage->lose(fmt::format("{}, of a large write: {}", describe(lba, lba + 1),
                                  read.outcome.error().message()));
        salvage->lose_payload(lba);
    }
    co_return Result<void>{};
}

// The root that this ends with is what makes the loss final, and the log whole again.
Task<Result<void>> VolumeCore::finish_salvage() {
    torn_references.clear();
    CO_TRY(co_await drain());
    meta_lsn = std::max(meta_lsn, applied_lsn);
    CO_TRY(co_await checkpoint());
    LOG_WARN("volume recovered with what could be read volume={} epoch={} lost_blocks={}",
             params.id, params.epoch, map->lost_count());
    co_return Result<void>{};
}

// ---- the map ----

Task<Result<void>> VolumeCore::salvage_map(RootRef ref, const Error& why) {
    const format::RootBody& body = *log->tail().root;
    std::vector<std::pair<SegmentId, uint64_t>> map_segments;
    for (media::SegmentStore* store : resources.space.stores()) {
        for (const media::SegmentInfo& info : store->list(params.id)) {
            if (info.kind == format::SegmentKind::map)
                map_segments.emplace_back(info.id, info.bytes());
        }
    }
    co_await map->close();
    make_map();
    format::RootPage from_record;
    from_record.drained_lsn = body.drained_lsn;
    from_record.meta_lsn = body.meta_lsn;
    from_record.block_count = body.size_blocks;
    MapSalvage work(*map, std::move(map_segments));
    CO_TRY(co_await work.load(ref, std::move(from_record)));
    if (work.has_missing()) {
        std::vector<FoundSegment> found = co_await find_segments(*this, body.meta_lsn);
        work.match(std::move(found));
    }
    CO_TRY(co_await work.prove());
    if (work.findings().empty()) salvage->find(why.message());
    for (const std::string& finding : work.findings())
        salvage->find(finding);
    uint64_t before = map->lost_count();
    for (const ZeroExtent& loss : work.losses()) {
        const std::array<ZeroExtent, 1> one{loss};
        CO_TRY(co_await map->apply(MapChange{map->applied_lsn(), {}, {}, {}, one}));
    }
    if (uint64_t lost = map->lost_count() - before; lost != 0) {
        salvage->lose(
            fmt::format("{} blocks between {} and {}: where they lie cannot be proven any more",
                        lost, work.losses().front().first.value,
                        work.losses().back().first.value + work.losses().back().block_count - 1));
    }
    co_return Result<void>{};
}

// ---- segments that a replay needs ----

Task<Result<std::vector<format::SegmentIndexEntry>>> VolumeCore::replay_segment_patiently(
    Lsn lsn, const SealedSegment& sealed) {
    auto read = co_await read_patiently([&] { return replay_segment(lsn, sealed); });
    co_return std::move(read.outcome);
}

namespace {

// What a drain took: the newest version of each block, zeros left out.
using Taken = std::map<uint64_t, SegmentBlock>;

void take(const Record& record, Taken& taken) {
    if (record.type == RecordType::zero) {
        uint64_t end = record.lba.value + record.block_count;
        taken.erase(taken.lower_bound(record.lba.value), taken.lower_bound(end));
    }
    if (record.type != RecordType::write && record.type != RecordType::write_ref) return;
    const auto* place = std::get_if<format::WriteRefBody>(&record.body);
    for (uint64_t i = 0; i < record.block_count && i < record.crcs.size(); ++i) {
        SegmentBlock block;
        block.lba = Lba(record.lba.value + i);
        block.lsn = record.lsn;
        block.crc = record.crcs[i];
        if (place != nullptr) {
            block.old_place =
                format::Place::block(place->segment_index, (place->block_offset + i) * kBlockBytes);
        }
        taken.insert_or_assign(block.lba.value, std::move(block));
    }
}

// The records of one drain, none missing; nothing where that cannot be shown.
std::optional<Taken> taken_by(const Salvage& salvage, Lsn drained, const std::vector<Lsn>& voided) {
    Taken taken;
    Lsn last = salvage.drained_before;
    for (const Record& record : *salvage.drained) {
        if (record.lsn <= salvage.drained_before) continue;
        bool is_next = record.prev_data_lsn <= salvage.drained_before
                           ? last == salvage.drained_before
                           : record.prev_data_lsn == last;
        if (!is_next) return std::nullopt;
        if (record.lsn > drained) return taken;
        last = record.lsn;
        if (!std::ranges::binary_search(voided, record.lsn)) take(record, taken);
    }
    if (salvage.prev_data_of_seal != last && salvage.prev_data_of_seal > salvage.drained_before)
        return std::nullopt;
    return taken;
}

}  // namespace

// Keeps the blocks that are what they should be; says which are not.
Task<Result<void>> VolumeCore::verify_blocks(const SegmentHandle& handle,
                                             std::vector<SegmentBlock>* blocks) {
    std::vector<SegmentBlock> good;
    for (SegmentBlock& block : *blocks) {
        block.data = Buffer::allocate(kBlockBytes);
        Result<void> read = fail(Code::not_found, "its segment is gone");
        if (handle) {
            auto tried = co_await read_patiently(
                [&] { return read_block(handle, block.old_place, block.crc, block.data); });
            read = std::move(tried.outcome);
        }
        if (read) {
            good.push_back(std::move(block));
        } else if (!is_damage(read.error().code())) {
            co_return read;
        } else {
            salvage->lose(fmt::format("{}: {}", describe(block.lba.value, block.lba.value + 1),
                                      read.error().message()));
        }
    }
    *blocks = std::move(good);
    co_return Result<void>{};
}

// A segment whose index is gone, and the journal's word on what it holds. What is verified goes
// into a new segment: one without an index could never be cleaned or checked.
Task<Result<void>> VolumeCore::salvage_segment(Lsn lsn, const SealedSegment& sealed,
                                               std::vector<SegmentBlock> wanted,
                                               std::vector<MapUpdate>* updates) {
    SegmentHandle handle = segments.locate(sealed.id, sealed.group);
    CO_TRY(co_await verify_blocks(handle, &wanted));
    if (wanted.empty()) co_return Result<void>{};
    SegmentEntry entry;
    entry.id = sealed.id;
    entry.group = sealed.group;
    entry.kind = static_cast<uint8_t>(format::SegmentKind::data);
    entry.state = SegmentState::sealed;
    entry.block_count = static_cast<uint32_t>(wanted.size());
    entry.sealed_lsn = lsn;
    std::vector<format::Place> places;
    places.reserve(wanted.size());
    for (size_t i = 0; i < wanted.size(); ++i)
        places.push_back(
            salvage->is_final()
                ? format::Place::block(sealed.index, format::segment_block_offset(i))
                : format::Place::block(sealed.index, wanted[i].old_place.offset_bytes()));
    if (salvage->is_final()) {
        for (SegmentBlock& block : wanted)
            block.old_place = {};
        const uint64_t run = format::segment_run_bytes(format::segment_bytes_for(wanted.size()));
        CO_TRY_ASSIGN(
            WrittenSegment written,
            co_await write_segment(segments, format::SegmentKind::data, sealed.segment_class,
                                   wanted, run, media::Purpose::maintenance));
        std::vector<SegmentHandle> handles{written.handle};
        CO_TRY(co_await segments.sync(std::move(handles)));
        CO_TRY(co_await seal_segment(written));
        entry = entry_of(written, lsn);
        handle = written.handle;
    }
    CO_TRY(map->segments().add(sealed.index, entry));
    segments.put(sealed.index, std::move(handle));
    for (size_t i = 0; i < wanted.size(); ++i)
        updates->push_back({wanted[i].lba, {places[i], wanted[i].crc, 0}});
    co_return Result<void>{};
}

namespace {

// What the hurt segments held, in order: those by themselves that references name, and the rest.
struct Held {
    std::vector<std::vector<SegmentBlock>> by_segment;
    bool is_divided = true;  // by_segment says which holds what, and where
};

// References say where they are. The other blocks are those of data segments, which a drain fills
// by lifetime class and in order of LBA: of one class each block's rank is its place.
Held divide(const HurtSeal& seal, Taken taken) {
    for (const MapUpdate& update : seal.updates)
        taken.erase(update.lba.value);
    Held out;
    out.by_segment.resize(seal.hurt.size());
    std::vector<SegmentBlock> rest;
    for (auto& [lba, block] : taken) {
        auto in = std::ranges::find_if(seal.hurt, [&block](const SealedSegment* sealed) {
            return block.old_place && block.old_place.segment_index() == sealed->index;
        });
        if (in != seal.hurt.end()) {
            out.by_segment[static_cast<size_t>(in - seal.hurt.begin())].push_back(std::move(block));
        } else {
            rest.push_back(std::move(block));
        }
    }
    size_t next = 0;
    std::optional<uint8_t> ranked_class;
    for (size_t i = 0; i < seal.hurt.size(); ++i) {
        const SealedSegment& sealed = *seal.hurt[i];
        std::vector<SegmentBlock>& blocks = out.by_segment[i];
        const bool is_ranked = blocks.empty();
        if (is_ranked && ranked_class && *ranked_class != sealed.segment_class)
            out.is_divided = false;
        if (is_ranked) ranked_class = sealed.segment_class;
        for (uint64_t rank = 0;
             is_ranked && blocks.size() < sealed.block_count && next < rest.size(); ++rank) {
            rest[next].old_place =
                format::Place::block(sealed.index, format::segment_block_offset(rank));
            blocks.push_back(std::move(rest[next++]));
        }
        out.is_divided = out.is_divided && blocks.size() == sealed.block_count;
    }
    out.is_divided = out.is_divided && next == rest.size();
    while (next < rest.size())
        out.by_segment.back().push_back(std::move(rest[next++]));
    return out;
}

// The other data segments of its class bound what a data segment may have held.
void bound(HurtSeal& seal, const SealBody& body, uint64_t block_count, auto kind_of,
           const std::map<uint32_t, std::pair<uint64_t, uint64_t>>& ranges) {
    for (const SealedSegment* hurt : seal.hurt) {
        std::pair<uint64_t, uint64_t> limits{0, block_count};
        bool is_behind = false;
        for (const SealedSegment& other : body.segments) {
            if (&other == hurt) is_behind = true;
            auto range = ranges.find(other.index);
            if (range == ranges.end() || other.segment_class != hurt->segment_class) continue;
            if (!is_behind) limits.first = std::max(limits.first, range->second.second);
            if (is_behind) limits.second = std::min(limits.second, range->second.first);
        }
        const bool is_data = kind_of(hurt->id) == format::SegmentKind::data;
        seal.bounds.push_back(is_data && limits.first <= limits.second
                                  ? limits
                                  : std::pair<uint64_t, uint64_t>{0, block_count});
    }
}

}  // namespace

// What is in segments whose index is gone: again in others where it is known, else lost.
Task<Result<std::vector<ZeroExtent>>> VolumeCore::salvage_hurt(Lsn lsn, Lsn drained,
                                                               HurtSeal& seal) {
    std::vector<ZeroExtent> losses;
    if (!salvage->drained) {
        CO_TRY_ASSIGN(salvage->drained, co_await log->find_drained());
    }
    auto taken = taken_by(*salvage, drained, log->tail().voided);
    Held held;
    if (taken) held = divide(seal, std::move(*taken));
    for (size_t i = 0; i < seal.hurt.size(); ++i) {
        const SealedSegment& sealed = *seal.hurt[i];
        const auto [first, end] = seal.bounds[i];
        if (taken) {
            for (const SegmentBlock& block : held.by_segment[i])
                losses.push_back({block.lba, 1});
        }
        if (taken && held.is_divided) {
            CO_TRY(co_await salvage_segment(lsn, sealed, std::move(held.by_segment[i]),
                                            &seal.updates));
        } else if (taken) {
            salvage->lose(fmt::format("{} blocks of segment {}, whose places in it cannot be told",
                                      held.by_segment[i].size(), sealed.id));
        } else if (end - first > kLossBlocksMax) {
            co_return fail(Code::unavailable,
                           "volume {}: which {} blocks segment {} held cannot be told, any of {} "
                           "may be among them; restore a backup",
                           params.id, sealed.block_count, sealed.id, end - first);
        } else if (end > first) {
            losses.push_back({Lba(first), end - first});
            salvage->lose(
                fmt::format("{}: {} of them were in segment {}, and which ones cannot be "
                            "told",
                            describe(first, end), sealed.block_count, sealed.id));
        }
    }
    // Of several hurt segments the bounds may overlap.
    std::ranges::sort(losses, {}, &ZeroExtent::first);
    co_return losses;
}

Task<Result<void>> VolumeCore::salvage_seal(Lsn lsn, const format::SealBody& body) {
    HurtSeal seal;
    std::map<uint32_t, std::pair<uint64_t, uint64_t>> ranges;  // of the readable data segments
    for (const SealedSegment& sealed : body.segments) {
        auto entries = co_await replay_segment_patiently(lsn, sealed);
        if (!entries && !is_damage(entries.error().code()))
            co_return fail(std::move(entries).error());
        if (!entries) {
            salvage->find(entries.error().message());
            seal.hurt.push_back(&sealed);
            continue;
        }
        for (const format::SegmentIndexEntry& item : *entries)
            seal.updates.push_back({item.lba, item.map_entry(sealed.index)});
        const SegmentEntry* entry = map->segments().find(sealed.index);
        if (entries->empty() || entry->kind != static_cast<uint8_t>(format::SegmentKind::data))
            continue;
        ranges[sealed.index] = {entries->front().lba.value, entries->back().lba.value + 1};
    }
    auto kind_of = [this](const SegmentId& id) {
        SegmentHandle handle = segments.locate(id);
        return handle ? handle.kind() : format::SegmentKind::large;
    };
    bound(seal, body, map->block_count(), kind_of, ranges);
    std::vector<ZeroExtent> losses;
    if (!seal.hurt.empty()) {
        CO_TRY_ASSIGN(losses, co_await salvage_hurt(lsn, body.drained_lsn, seal));
    }
    salvage->drained_before = std::max(salvage->drained_before, body.drained_lsn);
    for (const ZeroExtent& loss : losses) {
        const std::array<ZeroExtent, 1> one{loss};
        CO_TRY(co_await map->apply(MapChange{lsn, {}, {}, {}, one}));
    }
    std::ranges::sort(seal.updates, {}, &MapUpdate::lba);
    std::vector<ZeroExtent> zeros;
    zeros.reserve(body.zeros.size());
    for (const format::ZeroExtent& zero : body.zeros)
        zeros.push_back({zero.lba, zero.block_count});
    co_return co_await apply_change(lsn, zeros, seal.updates, {});
}

}  // namespace peplos::volume
