#include <algorithm>

#include "base/crc32c.h"
#include "volume/core.h"

namespace peplos::volume {

using format::Record;
using format::RecordType;
using runtime::Durability;

namespace {

// Blocks of one `write` record: small enough that several fit one commit.
constexpr uint32_t kPieceBlocks = 32;
static_assert(kPieceBlocks <= format::kWriteBlocksMax);
// How long a writer tries to get room while nothing that could make some succeeds, and its pause.
constexpr Duration kRoomPatience = std::chrono::seconds(30);
// The same while something does succeed, and others are always quicker to take it.
constexpr Duration kRoomPatienceMax = std::chrono::minutes(5);
constexpr Duration kRoomPause = std::chrono::milliseconds(20);

void compute_crcs(Bytes data, format::BlockCrcs& out) {
    out.resize(data.size() / kBlockBytes);
    for (size_t i = 0; i < out.size(); ++i) {
        out[i] = crc32c(data.subspan(i * kBlockBytes, kBlockBytes));
    }
}

void account(OperationStats& stats, uint64_t bytes, Duration took, bool is_good) {
    ++stats.count;
    stats.bytes += bytes;
    stats.latency.add(took);
    if (!is_good) ++stats.errors;
}

}  // namespace

// ---- room ----

uint64_t VolumeCore::needed_bytes() const {
    return (overlay.data_blocks() + in_flight_blocks) * kBlockBytes +
           overlay.reference_blocks() * kReferenceBytes;
}

uint64_t VolumeCore::needed_units(uint64_t more_blocks) const {
    uint64_t blocks = overlay.data_blocks() + in_flight_blocks + more_blocks;
    blocks -= std::min(blocks, frozen_written_blocks);
    // One more: a drain cuts the frozen and the active generation apart.
    return blocks == 0 ? 0 : units_for_blocks(blocks) + 1;
}

void VolumeCore::settle() {
    uint64_t bytes = needed_bytes();
    if (charged_bytes > bytes) {
        resources.overlay.give_back(charged_bytes - bytes);
        charged_bytes = bytes;
    }
    uint64_t units = needed_units(0);
    if (promised_units > units) {
        resources.space.give_back(promised_units - units);
        promised_units = units;
    }
}

bool VolumeCore::try_take_room(uint64_t blocks) {
    uint64_t bytes = blocks * kBlockBytes;
    if (!resources.overlay.try_take(bytes)) return false;
    uint64_t units = needed_units(blocks);
    if (units > promised_units) {
        if (!segments.try_promise(units - promised_units)) {
            resources.overlay.give_back(bytes);
            return false;
        }
        promised_units = units;
    }
    charged_bytes += bytes;
    in_flight_blocks += blocks;
    return true;
}

Task<Result<void>> VolumeCore::take_room(uint64_t blocks) {
    Patience patience;
    while (!try_take_room(blocks)) {
        CO_TRY(alive());
        if (resources.overlay.used_bytes() + blocks * kBlockBytes >
            resources.overlay.total_bytes()) {
            ++waiting;
            noticed = false;
            uint64_t failures = resources.overlay.failures();
            notice();
            if (resources.overlay.failures() == failures) co_await resources.overlay.wait();
            --waiting;
            if (resources.overlay.failures() == failures) continue;
            CO_TRY(alive());
            CO_TRY(co_await regain(resources.overlay.failure(), patience));
            continue;
        }
        // Not one of those who wait for a drain: what is promised is as good as drained, and many
        // small drains would leave small segments.
        Error full(
            Code::no_space,
            fmt::format("volume {}: the devices are full; delete data or add a device", params.id));
        CO_TRY(co_await regain(std::move(full), patience));
    }
    co_return Result<void>{};
}

// A writer finds no room because of `why`. Does what may help and returns when another attempt
// is worth it; once that was in vain, or went on for long, an honest answer: `why`.
Task<Result<void>> VolumeCore::regain(Error why, Patience& patience) {
    Time now = resources.env.clock.now();
    if (patience.end == Time{}) {
        patience.start = now;
        patience.end = now + kRoomPatience;
    }
    bool is_lasting = why.code() == Code::io_error || why.code() == Code::fenced ||
                      why.code() == Code::stopping || why.code() == Code::invalid_argument;
    if (is_lasting || now >= patience.end) co_return fail(std::move(why));
    bool is_gained = false;
    if (why.code() == Code::busy) {
        ++waiting;
        // Even the journal's reserve is used: drains free it, of this volume or of others.
        auto outcome = co_await drain();
        is_gained = outcome.has_value() || outcome.error().code() == Code::busy;
        if (!is_gained) why = std::move(outcome).error();
        co_await resources.env.clock.sleep_for(kRoomPause);
        --waiting;
    } else {
        is_gained = resources.background != nullptr ? co_await resources.background->make_room()
                                                    : co_await make_room_alone();
        // As long as units are gained there will be some for this writer, too.
        Time later = resources.env.clock.now() + kRoomPatience;
        if (is_gained) patience.end = std::min(later, patience.start + kRoomPatienceMax);
    }
    // Others may take what was gained; a few turns, then no more.
    if (is_gained) patience.fruitless = 0;
    if (!is_gained && ++patience.fruitless >= 2) co_return fail(std::move(why));
    co_return Result<void>{};
}

Task<bool> VolumeCore::make_room_alone() {
    uint64_t before = resources.space.available_units();
    if (!(co_await drain())) co_return false;
    if (!(co_await checkpoint())) co_return false;
    co_return resources.space.available_units() > before;
}

Task<Result<replica::Admission>> VolumeCore::admit(const Record& record) {
    replica::Admission admission = log->try_admit(record);
    if (admission) co_return admission;
    Patience patience;
    for (;;) {
        CO_TRY(alive());
        if (resources.background != nullptr && resources.background->is_stopped())
            co_return fail(background_stopped());
        ++waiting;
        noticed = false;
        notice();
        auto waited = co_await log->admit(record);
        --waiting;
        if (waited) co_return waited;
        CO_TRY(alive());
        CO_TRY(co_await regain(std::move(waited).error(), patience));
    }
}

// ---- the common end of every record ----

Record VolumeCore::make_record(RecordType type, Lba lba, uint64_t block_count) const {
    Record record;
    record.type = type;
    record.volume = params.id;
    record.lineage = params.lineage;
    record.epoch = params.epoch;
    record.lba = lba;
    record.block_count = block_count;
    return record;
}

// From the LSN to the queue nothing suspends: LSN order is queue order is overlay order.
replica::AppendTicket VolumeCore::submit(Record record, replica::Admission admission,
                                         InFlight entry) {
    CHECK(entry.lba.value + entry.block_count <= map->block_count());
    Lsn lsn = log->next_lsn();
    record.lsn = lsn;
    record.settled_lsn = applied_lsn;
    submitted_settled_lsn = std::max(submitted_settled_lsn, applied_lsn);
    if (record.type == RecordType::write_ref) newest_reference_lsn = lsn;
    entry.lsn = lsn;
    CHECK(in_flight.empty() || in_flight.back().lsn.next() == lsn);
    in_flight.push_back(std::move(entry));
    return log->submit(std::move(record), std::move(admission));
}

Task<Result<void>> VolumeCore::commit(Record record, replica::Admission admission, InFlight entry) {
    CO_TRY(healthy());
    replica::AppendTicket ticket =
        submit(std::move(record), std::move(admission), std::move(entry));
    Lsn lsn = in_flight.back().lsn;
    Result<void> outcome = co_await log->wait(std::move(ticket));
    co_return co_await complete(lsn, std::move(outcome));
}

Task<Result<void>> VolumeCore::complete(Lsn lsn, Result<void> outcome) {
    if (!outcome) {
        fail_for_good(outcome.error());
        co_return outcome;
    }
    CO_TRY(healthy());
    CHECK(!in_flight.empty() && in_flight.front().lsn <= lsn && lsn <= in_flight.back().lsn);
    InFlight& own = in_flight[lsn.value - in_flight.front().lsn.value];
    CHECK(own.lsn == lsn && !own.is_durable);
    own.is_durable = true;
    if (in_flight.front().lsn == lsn) {
        advance();
        co_return healthy();
    }
    // Something ahead, the payload of a large write most likely, is not durable yet.
    runtime::Event is_applied;
    own.applied = &is_applied;
    co_await is_applied.wait();
    co_return healthy();
}

// Applies what is durable without a gap, in LSN order.
void VolumeCore::advance() {
    bool has_reference = false;
    while (!in_flight.empty() && in_flight.front().is_durable) {
        InFlight& next = in_flight.front();
        apply(next);
        applied_lsn = next.lsn;
        has_reference = has_reference || next.type == RecordType::write_ref;
        if (next.applied != nullptr) next.applied->set();
        in_flight.pop_front();
        if (freeze_at == applied_lsn) freeze();
    }
    settle();
    if (applied.count() != 0) applied.wake_all();
    if (has_reference && !is_settling_soon && newest_reference_lsn > submitted_settled_lsn &&
        !background.is_closed()) {
        is_settling_soon = true;
        background.spawn(resources.env.executor, settle_when_idle());
    }
    if (overlay.active().data_blocks * kBlockBytes >=
            std::min(kDrainBytes, resources.overlay.total_bytes() / 4) ||
        overlay.active().reference_blocks() * kBlockBytes >= kDrainReferenceBytes ||
        overlay.zero_extents() >= kZeroExtentsMax / 2) {
        notice();
    }
}

void VolumeCore::freeze() {
    freeze_at.reset();
    overlay.freeze(applied_lsn);
}

// That a large write was acknowledged is said by the records after it. When none comes, one is
// made: otherwise a payload that rots meanwhile would pass for a torn write at the next open.
Task<void> VolumeCore::settle_when_idle() {
    co_await settle_soon.wait(resources.env.clock, kSettleDelay);
    is_settling_soon = false;
    if (fault.has_value() || submitted_settled_lsn >= newest_reference_lsn) co_return;
    Record record = make_record(RecordType::settle, Lba(0), 0);
    record.body = format::SettleBody{};
    replica::Admission admission = log->try_admit(record);
    if (!admission) co_return;
    InFlight entry;
    entry.type = RecordType::settle;
    std::ignore = co_await commit(std::move(record), std::move(admission), std::move(entry));
}

void VolumeCore::apply(InFlight& record) {
    uint64_t first = record.lba.value;
    switch (record.type) {
        case RecordType::write:
            for (uint64_t i = 0; i < record.block_count; ++i) {
                overlay.put(first + i,
                            OverlayEntry{.data = record.data.slice(i * kBlockBytes, kBlockBytes),
                                         .place = {},
                                         .lsn = record.lsn,
                                         .crc = record.crcs[i]});
            }
            CHECK(in_flight_blocks >= record.block_count);
            in_flight_blocks -= record.block_count;
            break;
        case RecordType::write_ref:
            for (uint64_t i = 0; i < record.block_count; ++i) {
                format::Place place = format::Place::block(
                    record.place.segment_index(), record.place.offset_bytes() + i * kBlockBytes);
                overlay.put(
                    first + i,
                    OverlayEntry{
                        .data = {}, .place = place, .lsn = record.lsn, .crc = record.crcs[i]});
            }
            resources.overlay.take_regardless(record.block_count * kReferenceBytes);
            charged_bytes += record.block_count * kReferenceBytes;
            break;
        case RecordType::zero:
            overlay.put_zero(first, record.block_count);
            break;
        default:
            break;
    }
}

Task<void> VolumeCore::wait_applied(Lsn lsn) {
    while (applied_lsn < lsn && !fault.has_value())
        co_await applied.wait();
}

Task<void> VolumeCore::enter_slot() {
    while (running >= limits::kVolumeIoCountMax)
        co_await slots.wait();
    ++running;
}

void VolumeCore::leave_slot() {
    --running;
    if (slots.count() != 0) slots.wake_one();
}

// ---- write ----

Task<Result<void>> VolumeCore::write(uint64_t offset, Buffer from) {
    auto pass = gate.enter();
    if (!pass) co_return fail(std::move(pass).error());
    CO_TRY(check_access(offset, from.size()));
    if (running >= limits::kVolumeIoCountMax) {
        co_await enter_slot();
    } else {
        ++running;
    }
    Time start = resources.env.clock.now();
    uint64_t bytes = from.size();
    if (reinterpret_cast<uintptr_t>(from.data()) % kBlockBytes != 0) {
        from = Buffer::copy_of(from.bytes());  // devices want aligned memory
    }
    Result<void> outcome = co_await write_once(offset, from);
    if (!outcome) [[unlikely]] {
        auto again = [this, offset, &from] { return write_once(offset, from); };
        outcome = co_await wait_for_nodes(std::move(outcome), again);
    }
    account(counters.write, bytes, resources.env.clock.now() - start, outcome.has_value());
    leave_slot();
    co_return outcome;
}

Task<Result<void>> VolumeCore::write_once(uint64_t offset, Buffer from) {
    if (offset % kBlockBytes != 0 || from.size() % kBlockBytes != 0)
        return write_partial(offset, std::move(from));
    Lba lba(offset / kBlockBytes);
    if (from.size() >= limits::kLargeWriteBytes) return write_large(lba, std::move(from));
    return write_blocks(lba, std::move(from));
}

// Returns what a writer took and did not put in flight.
class RoomTaken {
  public:
    RoomTaken(VolumeCore* core, uint64_t blocks) : core_(core), blocks_(blocks) {}
    RoomTaken(const RoomTaken&) = delete;
    ~RoomTaken() {
        if (blocks_ == 0) return;
        core_->in_flight_blocks -= blocks_;
        core_->settle();
    }
    void keep() { blocks_ = 0; }

  private:
    VolumeCore* core_;
    uint64_t blocks_;
};

Task<Result<void>> VolumeCore::write_blocks(Lba lba, Buffer data) {
    uint64_t block_count = data.size() / kBlockBytes;
    CHECK(block_count <= kPieceBlocks);
    if (!try_take_room(block_count)) CO_TRY(co_await take_room(block_count));
    RoomTaken room(this, block_count);
    Record record = make_record(RecordType::write, lba, block_count);
    compute_crcs(data.bytes(), record.crcs);
    record.payload.push_back(data);
    replica::Admission admission = log->try_admit(record);
    if (!admission) {
        CO_TRY_ASSIGN(admission, co_await admit(record));
    }
    while (!locks.empty() && locks.overlaps(lba.value, lba.value + block_count)) {
        co_await locks.wait();
    }
    CO_TRY(alive());
    InFlight entry{.lsn = {},
                   .type = RecordType::write,
                   .lba = lba,
                   .block_count = block_count,
                   .data = std::move(data),
                   .place = {},
                   .crcs = record.crcs};
    room.keep();
    co_return co_await commit(std::move(record), std::move(admission), std::move(entry));
}

Task<Result<void>> VolumeCore::write_pieces(Lba lba, Buffer data) {
    for (uint64_t done = 0; done < data.size();) {
        uint64_t bytes = std::min<uint64_t>(data.size() - done, kPieceBlocks * kBlockBytes);
        Buffer piece = data.slice(done, bytes);
        CO_TRY(co_await write_blocks(Lba(lba.value + done / kBlockBytes), std::move(piece)));
        done += bytes;
    }
    co_return Result<void>{};
}

// ---- large writes ----

Task<Result<std::shared_ptr<OpenSegment>>> VolumeCore::make_open_segment(uint32_t block_count) {
    uint64_t run = large_run_bytes;
    uint64_t least = format::segment_run_bytes(format::segment_bytes_for(block_count));
    run = std::max(run, least);
    // A stream may not take what small writes were promised, nor most of a small device.
    const auto available = static_cast<uint64_t>(std::max<int64_t>(segments.headroom_units(), 0));
    while (run > least && run / limits::kSegmentUnitBytes * 8 > available)
        run /= 2;
    if (run / limits::kSegmentUnitBytes > available) {
        co_return fail(Code::no_space, "no room for a segment of large writes");
    }
    auto created = co_await segments.create(format::SegmentKind::large, kLongLivedClass, run,
                                            media::Purpose::user);
    if (!created) co_return fail(std::move(created).error());
    CO_TRY_ASSIGN(uint32_t index, map->segments().reserve());
    segments.put(index, *created);
    auto segment = std::make_shared<OpenSegment>();
    segment->handle = std::move(*created);
    segment->index = index;
    segment->block_count_max = format::segment_block_count_max(run);
    large_run_bytes = std::min<uint64_t>(run * 2, limits::kSegmentBytesMax);
    co_return segment;
}

// Whether the open segment, or the one made ahead that then takes its place, has room.
bool VolumeCore::have_open_segment(uint32_t block_count) {
    if (open_segment && open_segment->has_room(block_count)) return true;
    if (!next_segment || !next_segment->has_room(block_count)) return false;
    if (open_segment) full_segments.push_back(std::move(open_segment));
    open_segment = std::exchange(next_segment, nullptr);
    return true;
}

Task<Result<void>> VolumeCore::create_open_segment(uint32_t block_count) {
    auto guard = co_await opening.lock();
    if (have_open_segment(block_count)) co_return Result<void>{};  // somebody made one meanwhile
    CO_TRY_ASSIGN(std::shared_ptr<OpenSegment> segment, co_await make_open_segment(block_count));
    if (open_segment) full_segments.push_back(std::move(open_segment));
    open_segment = std::move(segment);
    co_return Result<void>{};
}

Task<void> VolumeCore::open_ahead() {
    auto guard = co_await opening.lock();
    if (!next_segment && open_segment && alive()) {
        // Without room the writers find out for themselves.
        auto made = co_await make_open_segment(limits::kIoBytesMax / kBlockBytes);
        if (made) next_segment = std::move(*made);
    }
    is_opening_ahead = false;
}

Task<void> VolumeCore::drop_next_segment() {
    auto guard = co_await opening.lock();
    if (!next_segment || open_segment) co_return;
    std::shared_ptr<OpenSegment> segment = std::exchange(next_segment, nullptr);
    SegmentId id = segment->handle.id();
    segments.forget(segment->index, id);
    map->segments().release(segment->index);
    auto removed = co_await segments.remove(id);
    if (!removed)
        LOG_WARN("an unused segment stays until the next open: {}", removed.error().text());
}

// False: it has no room, and none can be made. After true nothing suspends until the caller does.
Task<Result<bool>> VolumeCore::find_open_segment(Lba lba, uint32_t block_count) {
    while (true) {
        while (!locks.empty() && locks.overlaps(lba.value, lba.value + block_count)) {
            co_await locks.wait();
        }
        CO_TRY(alive());
        if (is_freezing) {
            co_await numbered.wait();
            continue;
        }
        if (have_open_segment(block_count)) co_return true;
        auto made = co_await create_open_segment(block_count);
        if (made) continue;
        const Code code = made.error().code();
        // Of other nodes: what cannot be put there goes through the journal.
        if (code == Code::no_space || code == Code::unavailable) co_return false;
        co_return fail(std::move(made).error());
    }
}

void VolumeCore::open_ahead_of(const OpenSegment& segment) {
    if (next_segment || is_opening_ahead || background.is_closed() ||
        segment.block_count < segment.block_count_max / 2) {
        return;
    }
    is_opening_ahead = true;
    background.spawn(resources.env.executor, open_ahead());
}

// The payload goes into the open segment and its record into the journal at the same time. The
// record is believed only with the payload: the write is acknowledged when both are durable, and
// no later record says it was (settled_lsn) before.
Task<Result<void>> VolumeCore::write_large(Lba lba, Buffer data) {
    auto block_count = static_cast<uint32_t>(data.size() / kBlockBytes);
    CHECK(block_count <= format::kWriteRefBlocksMax);
    Record record = make_record(RecordType::write_ref, lba, block_count);
    record.body = format::WriteRefBody{};
    compute_crcs(data.bytes(), record.crcs);
    replica::Admission admission = log->try_admit(record);
    if (!admission) {
        CO_TRY_ASSIGN(admission, co_await admit(record));
    }
    CO_TRY_ASSIGN(bool has_room, co_await find_open_segment(lba, block_count));
    if (!has_room) {
        admission = {};
        co_return co_await write_pieces(lba, std::move(data));
    }
    if (open_segment->handle.copies()) {
        co_return co_await write_large_first(std::move(record), std::move(admission),
                                             std::move(data));
    }
    CO_TRY(healthy());
    // From here to submit() nothing suspends.
    OpenSegment& segment = *open_segment;
    uint64_t offset = format::segment_block_offset(segment.block_count);
    segment.block_count += block_count;
    SegmentHandle handle = segment.handle;
    replica::AppendTicket ticket =
        submit_reference(std::move(record), std::move(admission), segment, offset);
    Lsn lsn = in_flight.back().lsn;
    open_ahead_of(segment);
    std::vector<Buffer> from{std::move(data)};
    Durability durability =
        PLANTED("write.volatile_payload") ? Durability::volatile_ : Durability::durable;
    auto written = co_await handle.write_vector(offset, std::move(from), durability);
    if (!written) co_return co_await complete(lsn, std::move(written));
    Result<void> outcome = co_await log->wait(std::move(ticket));
    co_return co_await complete(lsn, std::move(outcome));
}

replica::AppendTicket VolumeCore::submit_reference(Record record, replica::Admission admission,
                                                   const OpenSegment& segment, uint64_t offset) {
    record.body = format::WriteRefBody{.segment = segment.handle.id(),
                                       .segment_index = segment.index,
                                       .block_offset = static_cast<uint32_t>(offset / kBlockBytes)};
    InFlight entry{.lsn = {},
                   .type = RecordType::write_ref,
                   .lba = record.lba,
                   .block_count = record.block_count,
                   .data = {},
                   .place = format::Place::block(segment.index, offset),
                   .crcs = record.crcs};
    return submit(std::move(record), std::move(admission), std::move(entry));
}

// Nothing more goes into it. What it has is acknowledged: a drain writes it anew.
void VolumeCore::give_up(const std::shared_ptr<OpenSegment>& segment) {
    segment->is_given_up = true;
    if (open_segment != segment) return;
    full_segments.push_back(std::move(open_segment));
    open_segment = nullptr;
}

Task<Result<void>> VolumeCore::write_large_first(Record record, replica::Admission admission,
                                                 Buffer data) {
    const auto block_count = static_cast<uint32_t>(record.block_count);
    const Lba lba = record.lba;
    for (int i = 0; i < kCopyAttempts; ++i) {
        if (is_freezing || !have_open_segment(block_count)) {
            CO_TRY_ASSIGN(bool has_room, co_await find_open_segment(lba, block_count));
            if (!has_room) break;
        }
        const std::shared_ptr<OpenSegment> segment = open_segment;
        if (!segment->handle.copies()) break;
        const uint64_t offset = format::segment_block_offset(segment->block_count);
        segment->block_count += block_count;
        // A drain that takes the segment along waits for the LSN.
        ++segment->unnumbered;
        open_ahead_of(*segment);
        std::vector<Buffer> from{data};
        auto written =
            co_await segment->handle.write_vector(offset, std::move(from), Durability::durable);
        while (written && !fault && locks.overlaps(lba.value, lba.value + block_count))
            co_await locks.wait();
        --segment->unnumbered;
        numbered.wake_all();
        CO_TRY(alive());
        if (!written) {
            const Code code = written.error().code();
            if (is_final(code)) fail_for_good(written.error());
            CO_TRY(healthy());
            PROBE("volume.write.other_group");
            give_up(segment);
            continue;
        }
        replica::AppendTicket ticket =
            submit_reference(std::move(record), std::move(admission), *segment, offset);
        const Lsn lsn = in_flight.back().lsn;
        Result<void> outcome = co_await log->wait(std::move(ticket));
        co_return co_await complete(lsn, std::move(outcome));
    }
    admission = {};
    co_return co_await write_pieces(lba, std::move(data));
}

// ---- parts of blocks ----

namespace {

class HeldBlocks {
  public:
    HeldBlocks(BlockLocks& locks, uint64_t first, uint64_t end) : locks_(locks), first_(first) {
        locks_.lock(first, end);
    }
    HeldBlocks(const HeldBlocks&) = delete;
    ~HeldBlocks() { locks_.unlock(first_); }

  private:
    BlockLocks& locks_;
    uint64_t first_;
};

}  // namespace

Task<Result<void>> VolumeCore::write_partial(uint64_t offset, Buffer from) {
    for (uint64_t done = 0; done < from.size();) {
        uint64_t start = offset + done;
        uint64_t end = std::min(round_down(start, kBlockBytes) + kPieceBlocks * kBlockBytes,
                                offset + from.size());
        Buffer piece = from.slice(done, end - start);
        CO_TRY(co_await write_partial_piece(start, std::move(piece)));
        done = end - offset;
    }
    co_return Result<void>{};
}

// The blocks at the ends are read, changed and written while no other write may take an LSN for
// them: otherwise the neighbours' sectors of a write in flight would be undone. The blocks between
// them are held as well: another read-modify-write of one of those would undo this one's.
Task<Result<void>> VolumeCore::write_partial_piece(uint64_t offset, Buffer from) {
    uint64_t first = offset / kBlockBytes;
    uint64_t end = div_up(offset + from.size(), kBlockBytes);
    uint64_t block_count = end - first;
    bool head = offset % kBlockBytes != 0 || from.size() < kBlockBytes;
    bool tail = (offset + from.size()) % kBlockBytes != 0 && block_count > 1;
    if (!try_take_room(block_count)) CO_TRY(co_await take_room(block_count));
    RoomTaken room(this, block_count);
    Record record = make_record(RecordType::write, Lba(first), block_count);
    Buffer data = Buffer::allocate(block_count * kBlockBytes);
    record.payload.push_back(data);
    record.crcs.resize(block_count);
    CO_TRY_ASSIGN(replica::Admission admission, co_await admit(record));
    while (locks.overlaps(first, end))
        co_await locks.wait();
    HeldBlocks held(locks, first, end);
    Lsn before;
    for (const InFlight& other : in_flight) {
        if (other.overlaps(first, end)) before = other.lsn;
    }
    co_await wait_applied(before);
    CO_TRY(alive());
    if (head) {
        Buffer block = data.slice(0, kBlockBytes);
        CO_TRY(co_await read_blocks(Lba(first), std::move(block)));
    }
    if (tail) {
        Buffer block = data.slice((block_count - 1) * kBlockBytes, kBlockBytes);
        CO_TRY(co_await read_blocks(Lba(end - 1), std::move(block)));
    }
    std::memcpy(data.data() + offset % kBlockBytes, from.data(), from.size());
    compute_crcs(data.bytes(), record.crcs);
    InFlight entry{.lsn = {},
                   .type = RecordType::write,
                   .lba = Lba(first),
                   .block_count = block_count,
                   .data = std::move(data),
                   .place = {},
                   .crcs = record.crcs};
    CO_TRY(alive());
    room.keep();
    co_return co_await commit(std::move(record), std::move(admission), std::move(entry));
}

// ---- zero, grow ----

Task<Result<void>> VolumeCore::zero_blocks(Lba lba, uint64_t block_count) {
    while (overlay.zero_extents() >= kZeroExtentsMax) {
        CO_TRY(alive());
        CO_TRY(co_await drain());
    }
    Record record = make_record(RecordType::zero, lba, block_count);
    CO_TRY_ASSIGN(replica::Admission admission, co_await admit(record));
    while (!locks.empty() && locks.overlaps(lba.value, lba.value + block_count)) {
        co_await locks.wait();
    }
    CO_TRY(alive());
    InFlight entry{.lsn = {},
                   .type = RecordType::zero,
                   .lba = lba,
                   .block_count = block_count,
                   .data = {},
                   .place = {},
                   .crcs = {}};
    co_return co_await commit(std::move(record), std::move(admission), std::move(entry));
}

Task<Result<void>> VolumeCore::zero_once(uint64_t offset, uint64_t bytes) {
    uint64_t first = round_up(offset, kBlockBytes);
    uint64_t end = round_down(offset + bytes, kBlockBytes);
    if (first >= end) {
        Buffer zeros = Buffer::zeroed(bytes);
        co_return co_await write_partial(offset, std::move(zeros));
    }
    if (first > offset) {
        Buffer zeros = Buffer::zeroed(first - offset);
        CO_TRY(co_await write_partial(offset, std::move(zeros)));
    }
    CO_TRY(co_await zero_blocks(Lba(first / kBlockBytes), (end - first) / kBlockBytes));
    if (end < offset + bytes) {
        Buffer zeros = Buffer::zeroed(offset + bytes - end);
        CO_TRY(co_await write_partial(end, std::move(zeros)));
    }
    co_return Result<void>{};
}

Task<Result<void>> VolumeCore::zero(uint64_t offset, uint64_t bytes) {
    auto pass = gate.enter();
    if (!pass) co_return fail(std::move(pass).error());
    if (bytes == 0) co_return Result<void>{};
    CO_TRY(check_access(offset, bytes));
    co_await enter_slot();
    Time start = resources.env.clock.now();
    Result<void> outcome = co_await zero_once(offset, bytes);
    if (!outcome) [[unlikely]] {
        auto again = [this, offset, bytes] { return zero_once(offset, bytes); };
        outcome = co_await wait_for_nodes(std::move(outcome), again);
    }
    account(counters.zero, bytes, resources.env.clock.now() - start, outcome.has_value());
    leave_slot();
    co_return outcome;
}

Task<Result<void>> VolumeCore::grow(uint64_t size_bytes) {
    auto pass = gate.enter();
    if (!pass) co_return fail(std::move(pass).error());
    CO_TRY(alive());
    if (size_bytes % kBlockBytes != 0 || size_bytes > limits::kVolumeBytesMax) {
        co_return fail(Code::invalid_argument,
                       "a volume's size is a multiple of {} and at most {} bytes, not {}",
                       kBlockBytes, limits::kVolumeBytesMax, size_bytes);
    }
    auto guard = co_await meta.lock();
    if (size_bytes < this->size_bytes()) {
        co_return fail(Code::invalid_argument, "volume {} has {} bytes and never shrinks to {}",
                       params.id, this->size_bytes(), size_bytes);
    }
    if (size_bytes == this->size_bytes()) co_return Result<void>{};
    Record record = make_record(RecordType::resize, Lba(0), 0);
    record.body = format::ResizeBody{size_bytes / kBlockBytes};
    Lsn lsn = meta_lsn;
    if (!PLANTED("grow.is_not_journaled")) {
        CO_TRY_ASSIGN(lsn, co_await append_meta(std::move(record)));
    }
    meta_lsn = std::max(meta_lsn, lsn);
    map->grow(lsn, size_bytes / kBlockBytes);
    co_return Result<void>{};
}

}  // namespace peplos::volume
