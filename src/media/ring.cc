#include "media/ring.h"

#include <algorithm>

#include "base/fault.h"
#include "base/log.h"
#include "media/device.h"
#include "media/ring_scan.h"

namespace peplos::media {
namespace {

// What even meta records leave alone: the frames that begin and end a boot.
constexpr uint64_t kBootReserveBytes = 64 * kKiB;
constexpr uint64_t kReserveBytesMin = 2 * kMiB;
// Frames in flight at once: with one, a record that comes just after a frame went out waits for two
// of them. More than two gained nothing that could be measured, and made the frames smaller.
constexpr size_t kFramesInFlightMax = 2;
constexpr int kScansMax = 5;
// Log bytes of the frames in flight, padding included.
constexpr uint64_t kFlightBytesMax = 2 * limits::kFrameBytesMax;
constexpr uint64_t kReadWindowBytes = 1 * kMiB;
// What only the moving of the oldest frame may take: all of that frame at once, also where padding
// at the ring's end has just taken most of another one, and some more for copies that come out a
// block larger than what they free.
constexpr uint64_t kMoveReserveBytesMin = 3 * limits::kFrameBytesMax;
constexpr uint64_t kMoveReserveShare = 64;
// Of a frame, beside its records and payload, at most.
constexpr uint64_t kFrameCostBytes = format::kFrameOverheadBytes + kBlockBytes;

// Encodings of one frame's records.
constexpr uint32_t kRecordsBytesMax = format::kFrameMetadataBytesMax - format::kFrameOverheadBytes;

// One append that a task waits for, on the waiting task's stack.
class AppendWaiter final : public AppendSink {
  public:
    void on_append(Result<RecordPosition> result, format::Record&) override {
        promise_.set(std::move(result));
    }
    Task<Result<RecordPosition>> wait() { return promise_.take(); }

  private:
    runtime::Promise<Result<RecordPosition>> promise_;
};

}  // namespace

Admission::~Admission() {
    if (ring_ != nullptr) ring_->give_back(bytes_);
}

Ring::Ring(DeviceState& device, uint64_t offset, uint64_t bytes)
    : device_(device), ring_offset_(offset), ring_bytes_(bytes) {
    CHECK(ring_bytes_ >= limits::kRingBytesMin);
    counters_.ring_bytes = bytes;
}

Ring::~Ring() {
    // Admissions of work that will not run any more find no ring.
    for (Pending& pending : queue_)
        pending.admission.ring_ = nullptr;
}

// ---- space ----

uint64_t Ring::tail_log_offset() const {
    return frames_.empty() ? head_ : frames_.front().log_offset;
}

uint64_t Ring::tail_sequence() const {
    return sequence_first_;
}

// Bytes that this urgency must leave free: what may be in flight behind the last of it, and the
// padding at the ring's end.
uint64_t Ring::kept_back(Urgency urgency) const {
    uint64_t reserve = std::max(ring_bytes_ / 16, kReserveBytesMin);
    uint64_t kept = kFlightBytesMax + limits::kFrameBytesMax + kBootReserveBytes;
    if (urgency == Urgency::tail) return kept;
    kept += std::max(ring_bytes_ / kMoveReserveShare, kMoveReserveBytesMin);
    if (urgency == Urgency::user) return kept + reserve;
    if (urgency == Urgency::zero) return kept + reserve / 4 * 3;
    if (urgency == Urgency::reappend) return kept + reserve / 2;
    return kept;
}

uint64_t Ring::free_bytes(Urgency urgency) const {
    uint64_t taken = used_bytes() + admitted_bytes_ + kept_back(urgency);
    return taken < ring_bytes_ ? ring_bytes_ - taken : 0;
}

bool Ring::is_short() const {
    return used_bytes() + admitted_bytes_ > (ring_bytes_ - kept_back(Urgency::user)) / 5 * 4;
}

Admission Ring::grant(uint64_t bytes) {
    admitted_bytes_ += bytes;
    return Admission(this, bytes);
}

Admission Ring::try_admit(uint64_t cost_bytes, Urgency urgency) {
    if (device_.is_failed() || closing_) return {};
    if (urgency == Urgency::user && !waiters_.empty()) return {};
    if (free_bytes(urgency) < cost_bytes) return {};
    return grant(cost_bytes);
}

Task<Result<Admission>> Ring::admit(uint64_t cost_bytes, Urgency urgency, const void* owner) {
    if (Admission now = try_admit(cost_bytes, urgency)) co_return now;
    if (device_.is_failed()) co_return fail(device_.failure());
    if (closing_) co_return fail(Code::stopping, "{} is being closed", device_.disk->name());
    if (cost_bytes > limits::kFrameBytesMax)
        co_return fail(Code::invalid_argument, "an append of {} bytes is larger than a frame",
                       cost_bytes);
    if (urgency != Urgency::user) {
        co_return fail(Code::busy,
                       "the journal of {} is full, its reserve too ({} of {} bytes used): it goes "
                       "on when volumes have drained",
                       device_.disk->name(), used_bytes(), ring_bytes_);
    }
    if (waiters_.size() >= limits::kRingQueueCountMax) {
        co_return fail(Code::busy, "the journal of {} is full and {} writes wait already",
                       device_.disk->name(), waiters_.size());
    }
    AdmitWaiter waiter;
    waiter.cost = cost_bytes;
    waiter.owner = owner;
    waiter.line = &waiters_;
    waiters_.push_back(&waiter);
    ++counters_.user_waits;
    short_.wake_all();
    co_await waiter.decided.wait();
    if (waiter.admission) co_return std::move(waiter.admission);
    if (device_.is_failed()) co_return fail(device_.failure());
    if (waiter.refusal) co_return fail(std::move(*waiter.refusal));
    co_return fail(Code::stopping, "{} is being closed", device_.disk->name());
}

void Ring::refuse_waiting(const Error& why, const void* owner) {
    std::erase_if(waiters_, [&](AdmitWaiter* waiter) {
        if (owner != nullptr && waiter->owner != owner) return false;
        waiter->refusal = why;
        waiter->decide();
        return true;
    });
    // Who came first may have been the one that asked for most.
    serve_waiters();
}

void Ring::give_back(uint64_t bytes) {
    CHECK(admitted_bytes_ >= bytes);
    admitted_bytes_ -= bytes;
    serve_waiters();
    // A move may have found no room because of it.
    if (is_short()) short_.wake_all();
}

// Grants in the order of arrival; on failure or close everybody hears of it.
void Ring::serve_waiters() {
    bool is_over = device_.is_failed() || closing_;
    while (!waiters_.empty()) {
        AdmitWaiter* waiter = waiters_.front();
        if (!is_over) {
            if (free_bytes(Urgency::user) < waiter->cost) return;
            waiter->admission = grant(waiter->cost);
        }
        waiters_.pop_front();
        waiter->decide();
    }
}

void Ring::release(RecordPosition position) {
    Frame& frame = frame_at(position.frame_sequence);
    CHECK(frame.pins > 0, "a record is released once");
    --frame.pins;
    if (frame.pins == 0 && position.frame_sequence == sequence_first_) advance_tail();
}

void Ring::advance_tail() {
    while (!frames_.empty() && frames_.front().pins == 0) {
        frames_.pop_front();
        ++sequence_first_;
    }
    serve_waiters();
    // A move that gave way to a reader of the oldest frame goes on.
    if (is_short()) short_.wake_all();
}

Ring::Frame& Ring::frame_at(uint64_t sequence) {
    CHECK(sequence >= sequence_first_ && sequence - sequence_first_ < frames_.size(),
          "frame {} is not held", sequence);
    return frames_[sequence - sequence_first_];
}

const Ring::Frame& Ring::frame_at(uint64_t sequence) const {
    return const_cast<Ring*>(this)->frame_at(sequence);
}

uint64_t Ring::device_offset_of(RecordPosition position) const {
    return ring_offset_ + frame_at(position.frame_sequence).log_offset % ring_bytes_;
}

Task<void> Ring::wait_short() {
    if (!closing_) co_await short_.wait();
}

RingStats Ring::stats() const {
    RingStats out = counters_;
    out.used_bytes = used_bytes();
    out.admitted_bytes = admitted_bytes_;
    return out;
}

// ---- commit ----

void Ring::submit(format::Record record, Admission admission, AppendSink* sink) {
    CHECK(admission.ring_ == this && admission.bytes_ >= format::ring_cost_bytes(record));
    enqueue(std::move(record), std::move(admission), sink);
}

void Ring::enqueue(format::Record record, Admission admission, AppendSink* sink) {
    Pending pending;
    pending.encoded_bytes = format::encoded_bytes(record);
    pending.record = std::move(record);
    pending.admission = std::move(admission);
    pending.sink = sink;
    queue_.push_back(std::move(pending));
    call_lane();
}

// What came from k frames fits k + 1: the first of these may be begun by others' records already,
// and from any record on, a frame holds at least the rest of the frame that this one came from.
uint64_t Ring::move_cost_bytes(std::span<const FrameRecord> records) {
    uint64_t bytes = kFrameCostBytes;
    uint64_t frame = 0;
    for (const FrameRecord& found : records) {
        if (found.position.frame_sequence != frame) bytes += kFrameCostBytes;
        frame = found.position.frame_sequence;
        bytes += format::encoded_bytes(found.record) + found.record.payload_bytes();
    }
    return bytes;
}

void Ring::submit_moved(std::vector<FrameRecord> found, Admission admission,
                        std::span<AppendSink* const> sinks) {
    CHECK(admission.ring_ == this && admission.bytes_ >= move_cost_bytes(found));
    std::vector<format::Record> records;
    std::vector<uint64_t> frames;
    for (FrameRecord& one : found) {
        records.push_back(std::move(one.record));
        frames.push_back(one.position.frame_sequence);
    }
    submit_in_frames(records, frames, std::move(admission), sinks);
}

// Each record has its own bytes set aside, the first of each frame a frame's overhead, and the last
// one another: so at any moment what is still queued has enough for the frames that it needs.
void Ring::submit_in_frames(std::span<format::Record> records, std::span<const uint64_t> frames,
                            Admission admission, std::span<AppendSink* const> sinks) {
    CHECK(records.size() == sinks.size() && records.size() == frames.size());
    uint64_t frame = 0;
    for (size_t i = 0; i < records.size(); ++i) {
        uint64_t bytes = format::encoded_bytes(records[i]) + records[i].payload_bytes();
        if (frames[i] != frame) bytes += kFrameCostBytes;
        frame = frames[i];
        if (i + 1 == records.size()) bytes = admission.bytes_;
        enqueue(std::move(records[i]), admission.split(bytes), sinks[i]);
    }
}

namespace {

// In which of the fewest frames, taken one after another, each record would lie, from 1.
std::vector<uint64_t> frames_of(std::span<const format::Record> records) {
    std::vector<uint64_t> out;
    out.reserve(records.size());
    uint64_t frame = 1;
    uint64_t record_bytes = 0;
    uint64_t payload_bytes = 0;
    for (const format::Record& record : records) {
        record_bytes += format::encoded_bytes(record);
        payload_bytes += record.payload_bytes();
        if (record_bytes > kRecordsBytesMax || payload_bytes > limits::kCommitPayloadBytesMax) {
            ++frame;
            record_bytes = format::encoded_bytes(record);
            payload_bytes = record.payload_bytes();
        }
        out.push_back(frame);
    }
    return out;
}

}  // namespace

uint64_t Ring::cost_together(std::span<const format::Record> records) {
    if (records.empty()) return 0;
    uint64_t bytes = kFrameCostBytes * (frames_of(records).back() + 1);
    for (const format::Record& record : records)
        bytes += format::encoded_bytes(record) + record.payload_bytes();
    return bytes;
}

void Ring::submit_together(std::vector<format::Record> records, Admission admission,
                           std::span<AppendSink* const> sinks) {
    CHECK(admission.ring_ == this && admission.bytes_ >= cost_together(records));
    std::vector<uint64_t> frames = frames_of(records);
    submit_in_frames(records, frames, std::move(admission), sinks);
}

Task<Result<RecordPosition>> Ring::append(format::Record record, Admission admission) {
    AppendWaiter waiter;
    submit(std::move(record), std::move(admission), &waiter);
    co_return co_await waiter.wait();
}

bool Ring::can_begin_frame() const {
    if (queue_.empty()) return false;
    if (in_flight_.empty()) return true;
    uint64_t flying = head_ - in_flight_.front().log_begin;
    uint64_t left = ring_bytes_ - head_ % ring_bytes_;
    uint64_t padding = left < limits::kFrameBytesMax ? left : 0;
    return !device_.is_failed() && flying + padding + limits::kFrameBytesMax <= kFlightBytesMax;
}

// Wakes one lane when there is something to do for it and none is waking yet: so what is submitted
// in one turn goes out as one frame.
void Ring::call_lane() {
    if (is_lane_called_ || work_.count() == 0 || !can_begin_frame()) return;
    is_lane_called_ = true;
    work_.wake_one();
}

// Writes one frame after the other; as many run as frames may be in flight.
Task<void> Ring::commit_lane() {
    Buffer area = Buffer::allocate(format::kFrameMetadataBytesMax);
    while (true) {
        while (!can_begin_frame() && !(closing_ && queue_.empty())) {
            co_await work_.wait();
            is_lane_called_ = false;
        }
        if (queue_.empty()) break;
        if (device_.is_failed()) {
            fail_queued();
            continue;
        }
        Batch& batch = in_flight_.emplace_back();
        gather(batch);
        batch.outcome = co_await write_batch(batch, area);
        settle_in_order();
    }
    --lanes_;
    if (lanes_ == 0 && !device_.is_failed()) std::ignore = co_await write_empty_frame();
}

// Moves what fits one frame from the queue into the batch, in order.
void Ring::gather(Batch& batch) {
    while (!queue_.empty()) {
        Pending& next = queue_.front();
        auto payload_bytes = static_cast<uint32_t>(next.record.payload_bytes());
        if (batch.record_bytes + next.encoded_bytes > kRecordsBytesMax) break;
        if (batch.payload_bytes + payload_bytes > limits::kCommitPayloadBytesMax) break;
        batch.record_bytes += next.encoded_bytes;
        batch.payload_bytes += payload_bytes;
        batch.records.push_back(std::move(next));
        queue_.pop_front();
    }
    CHECK(!batch.records.empty(), "every valid record fits an empty frame");
}

uint64_t Ring::log_offset_for(uint64_t frame_bytes) const {
    uint64_t left = ring_bytes_ - head_ % ring_bytes_;
    return frame_bytes <= left ? head_ : head_ + left;
}

// The header of the frame that holds the batch, possibly none of records.
format::FrameHeader Ring::next_header(const Batch& batch) const {
    format::FrameHeader header;
    header.incarnation = device_.superblock.incarnation;
    header.boot = device_.superblock.boot;
    header.sequence = sequence_next_;
    header.settled_sequence =
        PLANTED("journal.settles_too_early") ? sequence_next_ - 1 : settled_sequence_;
    header.witnesses = witnesses_;
    header.witnesses_are_complete = witnesses_complete_;
    header.metadata_bytes =
        static_cast<uint32_t>(round_up(header.records_offset() + batch.record_bytes, kBlockBytes));
    header.payload_bytes = batch.payload_bytes;
    header.record_count = static_cast<uint32_t>(batch.records.size());
    header.log_offset = log_offset_for(header.bytes());
    header.tail_sequence = sequence_first_;
    header.tail_log_offset = frames_.empty() ? header.log_offset : tail_log_offset();
    return header;
}

// Builds the metadata area in place and gathers the payload as it lies.
std::vector<Buffer> Ring::encode_batch(Batch& batch, const format::FrameHeader& header,
                                       Buffer area) {
    size_t offset = header.records_offset();
    uint32_t payload_offset = header.metadata_bytes;
    std::vector<Buffer> out;
    out.reserve(1 + batch.payload_bytes / kBlockBytes);
    out.push_back(area);
    for (Pending& pending : batch.records) {
        format::encode_record(pending.record, area.bytes().subspan(offset, pending.encoded_bytes));
        batch.positions.push_back({header.sequence, static_cast<uint32_t>(offset), payload_offset});
        offset += pending.encoded_bytes;
        payload_offset += static_cast<uint32_t>(pending.record.payload_bytes());
        for (const Buffer& payload : pending.record.payload)
            out.push_back(payload);
    }
    std::memset(area.data() + offset, 0, area.size() - offset);
    format::encode_frame(header, area.bytes());
    return out;
}

Task<Result<void>> Ring::write_batch(Batch& batch, Buffer area) {
    format::FrameHeader header = next_header(batch);
    Buffer metadata = area.slice(0, header.metadata_bytes);
    std::vector<Buffer> buffers = encode_batch(batch, header, std::move(metadata));
    uint64_t place = ring_offset_ + header.log_offset % ring_bytes_;
    begin_frame(batch, header);
    runtime::Durability durability = PLANTED("journal.volatile_commit")
                                         ? runtime::Durability::volatile_
                                         : runtime::Durability::durable;
    Result<void> written =
        co_await device_.disk->write_vector(place, std::move(buffers), durability);
    if (!written) {
        device_.fail_for_good(written.error());
        co_return fail(device_.failure());
    }
    co_return Result<void>{};
}

// From here on the frame has its place and its sequence, and the next one may begin.
void Ring::begin_frame(Batch& batch, const format::FrameHeader& header) {
    batch.sequence = header.sequence;
    batch.log_begin = head_;
    frames_.push_back({header.log_offset, static_cast<uint32_t>(header.bytes()),
                       header.metadata_bytes, header.record_count});
    ++sequence_next_;
    head_ = header.log_offset + header.bytes();
    uint64_t others = header.record_count == 0 ? 0 : kFlightBytesMax;
    CHECK(head_ - header.tail_log_offset + others <= ring_bytes_, "the ring overruns its tail");
    begin_witnesses();
    for (Pending& pending : batch.records) {
        add_witness(pending.record);
        // The frame counts as used itself; what was set aside for it is not needed beside it.
        admitted_bytes_ -= pending.admission.bytes_;
        pending.admission.ring_ = nullptr;
    }
    ++counters_.commits;
    counters_.records += header.record_count;
    counters_.appended_bytes += header.bytes();
    call_lane();
}

void Ring::begin_witnesses() {
    witnesses_.clear();
    witnesses_complete_ = true;
}

void Ring::add_witness(const format::Record& record) {
    auto same = [&record](const format::FrameWitness& w) { return w.volume == record.volume; };
    // Most often the volume is that of the record before.
    auto found = !witnesses_.empty() && same(witnesses_.back())
                     ? witnesses_.end() - 1
                     : std::ranges::find_if(witnesses_, same);
    if (found != witnesses_.end()) {
        found->last_lsn = std::max(found->last_lsn, record.lsn);
        found->had_fence |= record.type == format::RecordType::fence;
    } else if (witnesses_.size() < format::kFrameWitnessCountMax) {
        witnesses_.push_back({record.volume, record.lsn, record.type == format::RecordType::fence});
    } else {
        witnesses_complete_ = false;
    }
}

// Ends the appends of the frames that are over, up to the first that is not: a frame counts only
// when all before it do.
void Ring::settle_in_order() {
    while (!in_flight_.empty() && in_flight_.front().outcome) {
        Batch batch = std::move(in_flight_.front());
        in_flight_.pop_front();
        // Behind one that failed nothing is sure, even what has reached the device.
        if (settled_sequence_ + 1 != batch.sequence) batch.outcome = fail(device_.failure());
        if (*batch.outcome) settled_sequence_ = batch.sequence;
        end_appends(std::move(batch));
    }
    if (!frames_.empty() && frames_.front().pins == 0) advance_tail();
    serve_waiters();
    call_lane();
    if (is_short() || !waiters_.empty()) short_.wake_all();
}

void Ring::end_appends(Batch batch) {
    for (size_t i = 0; i < batch.records.size(); ++i) {
        Pending& pending = batch.records[i];
        if (*batch.outcome) {
            pending.sink->on_append(batch.positions[i], pending.record);
        } else {
            pending.sink->on_append(fail(batch.outcome->error()), pending.record);
        }
    }
}

void Ring::fail_queued() {
    while (!queue_.empty()) {
        Pending pending = std::move(queue_.front());
        queue_.pop_front();
        admitted_bytes_ -= pending.admission.bytes_;
        pending.admission.ring_ = nullptr;
        pending.sink->on_append(fail(device_.failure()), pending.record);
    }
    serve_waiters();
}

// Alone in flight, so that with it everything before it is settled.
Task<Result<void>> Ring::write_empty_frame() {
    CHECK(in_flight_.empty() && settled_sequence_ + 1 == sequence_next_);
    if (used_bytes() + limits::kFrameBytesMax > ring_bytes_) {
        co_return fail(Code::no_space, "the journal of {} has no room to begin a boot",
                       device_.disk->name());
    }
    Batch empty;
    Buffer area = Buffer::allocate(kBlockBytes);
    Result<void> written = co_await write_batch(empty, std::move(area));
    if (!written) co_return written;
    settled_sequence_ = empty.sequence;
    if (frames_.front().pins == 0) advance_tail();
    co_return written;
}

Task<void> Ring::close() {
    if (!closing_) {
        closing_ = true;
        work_.wake_all();
        short_.wake_all();
        serve_waiters();
    }
    co_await gate_.close();
}

// ---- recovery ----

// What the scan takes for torn or lost is given up with the first frame of this boot. So a read
// that was garbled on its way must not say it: where two reads differ, all is read anew.
Task<Result<void>> Ring::scan_all() {
    for (int i = 0; i < kScansMax; ++i) {
        RingScan scan(device_, ring_offset_, ring_bytes_);
        CO_TRY(co_await scan.read());
        Result<void> resolved = scan.resolve();
        CO_TRY_ASSIGN(bool is_proven, co_await scan.reads_the_same());
        if (is_proven) {
            CO_TRY(std::move(resolved));
            adopt(scan);
            co_return Result<void>{};
        }
        PROBE("media.ring.scanned_anew");
        LOG_WARN("the journal reads differently a second time disk={}", device_.disk->name());
    }
    co_return fail(Code::io_error,
                   "{}: its journal reads differently each time ({} times); nothing was given up; "
                   "check the disk and its cables, then restart peplosd",
                   device_.disk->name(), kScansMax);
}

Task<Result<void>> Ring::recover() {
    CO_TRY(co_await scan_all());
    // What was read may still sit in the device's cache: settle it before anyone sees it.
    Result<void> synced = co_await device_.disk->sync();
    if (!synced) {
        device_.fail_for_good(synced.error());
        co_return fail(device_.failure());
    }
    CO_TRY(co_await write_empty_frame());
    lanes_ = kFramesInFlightMax;
    for (size_t i = 0; i < lanes_; ++i)
        gate_.spawn(device_.env.executor, commit_lane());
    co_return Result<void>{};
}

void Ring::report_findings(RingScan& scan) {
    OpenReport& report = device_.report;
    const std::string& name = device_.disk->name();
    report.torn_tail = scan.torn_tail();
    for (const LostFrame& lost : scan.lost()) {
        PROBE("media.ring.lost_frame");
        std::string volumes = lost.witnesses_known ? "" : " records of unknown volumes";
        for (const format::FrameWitness& witness : lost.witnesses) {
            volumes += fmt::format(" volume {} up to LSN {}", witness.volume, witness.last_lsn);
        }
        report.corruptions.push_back(fmt::format(
            "{} at offset {}: journal frame {} cannot be read; it held{}; a volume that "
            "needs it says so when it is opened, and is restored from a backup",
            name, lost.device_offset, lost.sequence, volumes));
    }
    for (const RingScan::Frame& frame : scan.frames()) {
        for (const RecoveredRecord& found : frame.records) {
            if (found.payload_is_good) continue;
            PROBE("media.ring.bad_payload");
            report.corruptions.push_back(fmt::format(
                "{} at offset {}: the payload of volume {} at LSN {} does not match its checksum",
                name,
                ring_offset_ + frame.header.log_offset % ring_bytes_ +
                    found.position.payload_offset,
                found.record.volume, found.record.lsn));
        }
    }
}

void Ring::adopt(RingScan& scan) {
    recovery_.torn_tail = scan.torn_tail();
    recovery_.torn_tail_offset = scan.torn_tail_offset();
    recovery_.frames_scanned = scan.frames_seen();
    recovery_.lost_frames = scan.lost();
    report_findings(scan);
    sequence_first_ = scan.tail_sequence();
    sequence_next_ = sequence_first_;
    head_ = scan.tail_log_offset();
    // Lost frames keep their place in the order and hold nothing.
    auto skip_lost = [this](uint64_t end) {
        for (; sequence_next_ < end; ++sequence_next_)
            frames_.push_back({head_, 0, 0, 0});
    };
    for (RingScan::Frame& found : scan.frames()) {
        const format::FrameHeader& header = found.header;
        skip_lost(header.sequence);
        frames_.push_back({header.log_offset, static_cast<uint32_t>(header.bytes()),
                           header.metadata_bytes, header.record_count});
        ++sequence_next_;
        head_ = header.log_offset + header.bytes();
        begin_witnesses();
        for (RecoveredRecord& record : found.records) {
            add_witness(record.record);
            recovery_.records.push_back(std::move(record));
        }
        found.records.clear();
    }
    // A lost end keeps its place, too, and the next frame says that nobody knows what it held: a
    // boot that ends before the damage is on record finds it lost again.
    uint64_t next_before = sequence_next_;
    skip_lost(scan.settled_sequence() + 1);
    skip_lost(scan.lost_end_sequence() + 1);
    if (sequence_next_ != next_before) {
        begin_witnesses();
        witnesses_complete_ = false;
    }
    settled_sequence_ = sequence_next_ - 1;
    CHECK(used_bytes() <= ring_bytes_);
}

// ---- reading back ----

Result<format::Record> Ring::extract(RecordPosition position, Bytes window,
                                     uint64_t window_offset) {
    const Frame& frame = frame_at(position.frame_sequence);
    uint64_t start = frame.log_offset % ring_bytes_ - window_offset;
    auto at = [this, position] {
        return fmt::format("{} at offset {}", device_.disk->name(), device_offset_of(position));
    };
    Bytes bytes = window.subspan(start, frame.bytes);
    auto decoded =
        format::decode_record(bytes.first(frame.metadata_bytes).subspan(position.metadata_offset));
    if (!decoded) return fail(std::move(decoded).error().within(at()));
    format::Record record = std::move(decoded->record);
    uint64_t payload_bytes = record.payload_bytes();
    if (payload_bytes == 0) return record;
    if (payload_bytes > bytes.size() - position.payload_offset)
        return fail(Code::corrupt, "{}: a record with more payload than its frame holds", at());
    Bytes payload = bytes.subspan(position.payload_offset, payload_bytes);
    auto verified = format::verify_payload(record, payload);
    if (!verified) return fail(std::move(verified).error().within(at()));
    record.payload.push_back(Buffer::copy_of(payload));
    return record;
}

Task<std::vector<Result<format::Record>>> Ring::read_many(std::vector<RecordPosition> positions) {
    std::vector<Result<format::Record>> out;
    out.reserve(positions.size());
    Buffer window;
    uint64_t window_offset = 0;
    uint64_t window_first = 0;  // frame sequences that the window holds: [first, end)
    uint64_t window_end = 0;
    Result<void> read;
    for (size_t i = 0; i < positions.size(); ++i) {
        uint64_t sequence = positions[i].frame_sequence;
        if (sequence < window_first || sequence >= window_end) {
            const Frame& first = frame_at(sequence);
            window_first = sequence;
            window_end = sequence + 1;
            window_offset = first.log_offset % ring_bytes_;
            uint64_t bytes = first.bytes;
            // Take along the frames behind it that the caller wants too.
            for (size_t j = i + 1; j < positions.size(); ++j) {
                uint64_t next = positions[j].frame_sequence;
                if (next < window_first || next > window_end) break;
                if (next < window_end) continue;
                const Frame& frame = frame_at(next);
                if (frame.log_offset != first.log_offset + bytes ||
                    bytes + frame.bytes > kReadWindowBytes ||
                    window_offset + bytes + frame.bytes > ring_bytes_)
                    break;
                bytes += frame.bytes;
                ++window_end;
            }
            window = Buffer::allocate(bytes);
            read = co_await device_.disk->read(ring_offset_ + window_offset, window);
            if (!read) device_.note_failed_read(read.error());
        }
        if (!read) {
            out.push_back(fail(read.error()));
        } else {
            out.push_back(extract(positions[i], std::as_const(window).bytes(), window_offset));
            if (!out.back()) device_.note_corruption(out.back().error().message());
        }
    }
    co_return out;
}

Task<Result<std::vector<Ring::FrameRecord>>> Ring::read_frame(uint64_t sequence) {
    Frame held = frame_at(sequence);
    std::vector<FrameRecord> out;
    if (held.bytes == 0) co_return out;
    uint64_t offset = ring_offset_ + held.log_offset % ring_bytes_;
    Buffer frame = Buffer::allocate(held.bytes);
    // Nothing is written over it meanwhile.
    ++frame_at(sequence).pins;
    Result<void> read = co_await device_.read_salvaging(offset, frame, nullptr);
    release({sequence, 0, 0});
    CO_TRY(read);
    Bytes bytes = std::as_const(frame).bytes();
    auto header = format::decode_frame(bytes.first(held.metadata_bytes));
    bool is_ours = header && header->sequence == sequence && header->bytes() == held.bytes;
    if (!is_ours) {
        std::string what = fmt::format("{} at offset {}: journal frame {} cannot be read",
                                       device_.disk->name(), offset, sequence);
        device_.note_corruption(what);
        co_return fail(Code::corrupt, "{}", what);
    }
    uint64_t metadata_offset = header->records_offset();
    uint64_t payload_offset = held.metadata_bytes;
    for (uint32_t i = 0; i < header->record_count; ++i) {
        CO_TRY_ASSIGN(
            format::DecodedRecord decoded,
            format::decode_record(bytes.first(held.metadata_bytes).subspan(metadata_offset)));
        FrameRecord& found = out.emplace_back();
        found.record = std::move(decoded.record);
        found.position = {sequence, static_cast<uint32_t>(metadata_offset),
                          static_cast<uint32_t>(payload_offset)};
        uint64_t payload_bytes = found.record.payload_bytes();
        if (payload_bytes > bytes.size() - payload_offset)
            co_return fail(Code::corrupt, "{} at offset {}: journal frame {} is cut off",
                           device_.disk->name(), offset, sequence);
        Bytes payload = bytes.subspan(payload_offset, payload_bytes);
        found.payload_is_good = format::verify_payload(found.record, payload).has_value();
        if (!found.payload_is_good) {
            device_.note_corruption(fmt::format(
                "{} at offset {}: journal frame {}: the payload of volume {} at LSN {} does not "
                "match its checksum",
                device_.disk->name(), offset + payload_offset, sequence, found.record.volume,
                found.record.lsn));
        }
        if (found.payload_is_good && payload_bytes != 0)
            found.record.payload.push_back(frame.slice(payload_offset, payload_bytes));
        metadata_offset += decoded.encoded_bytes;
        payload_offset += payload_bytes;
    }
    co_return out;
}

Task<Result<format::Record>> Ring::read(RecordPosition position) {
    std::vector<RecordPosition> positions{position};
    auto records = co_await read_many(std::move(positions));
    co_return std::move(records.front());
}

}  // namespace peplos::media
