#pragma once

#include <deque>
#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <vector>

#include "format/frame.h"
#include "format/record.h"
#include "runtime/env.h"
#include "runtime/gate.h"

namespace peplos::media {

using runtime::Task;

class DeviceState;
class Ring;
class RingScan;

// Where a record lies in its ring, until it is released.
struct RecordPosition {
    uint64_t frame_sequence = 0;   // 0: nowhere
    uint32_t metadata_offset = 0;  // bytes from the frame's start to the record's encoding
    uint32_t payload_offset = 0;   // bytes from the frame's start to the record's payload
    bool operator==(const RecordPosition&) const = default;
};

// Who may take how much of a ring that runs short.
enum class Urgency : uint8_t {
    user,      // data: leaves the reserve alone
    zero,      // trims: a quarter of the reserve, so that freeing space works when writing waits
    reappend,  // moving old records so that the tail goes on: half of the reserve
    meta,      // seals, roots, fences, by which space becomes free: all of it
    tail,      // moving all that is needed of the oldest frame when even the reserve is used up: it
               // gives back what it takes, and without it nothing would ever become free again;
               // also what says that something of a frame is lost, before the frame may go
};

// A right to append: `bytes` of the ring are set aside until the append is committed or the
// admission is destroyed. So a record that has its LSN never waits for space.
class [[nodiscard]] Admission {
  public:
    Admission() = default;
    Admission(Admission&& other) noexcept
        : ring_(std::exchange(other.ring_, nullptr)), bytes_(std::exchange(other.bytes_, 0)) {}
    Admission& operator=(Admission&& other) noexcept {
        std::swap(ring_, other.ring_);
        std::swap(bytes_, other.bytes_);
        return *this;
    }
    ~Admission();
    uint64_t bytes() const { return bytes_; }
    explicit operator bool() const { return ring_ != nullptr; }

  private:
    friend class Ring;
    Admission(Ring* ring, uint64_t bytes) : ring_(ring), bytes_(bytes) {}
    // A part of it. Requires: it has as much.
    Admission split(uint64_t bytes) {
        CHECK(ring_ != nullptr && bytes <= bytes_);
        bytes_ -= bytes;
        return Admission(ring_, bytes);
    }
    Ring* ring_ = nullptr;
    uint64_t bytes_ = 0;
};

// Told once how an append ended, from the ring's commit loop, in submit order. It must not submit
// from inside; it may release. `record` is the ring's and may be moved from. It outlives the
// append.
class AppendSink {
  public:
    virtual void on_append(Result<RecordPosition> result, format::Record& record) = 0;

  protected:
    ~AppendSink() = default;
};

// A record that the scan at open found, in ring order. Released ones may be among them: the
// journal knows which are still needed and releases the others.
struct RecoveredRecord {
    format::Record record;  // without payload
    RecordPosition position;
    bool payload_is_good = true;
};
// A frame that was acknowledged and cannot be read.
struct LostFrame {
    uint64_t sequence = 0;
    uint64_t device_offset = 0;
    // What the next frame says was in it. Not known: any volume may have lost its last record.
    bool witnesses_known = false;
    std::vector<format::FrameWitness> witnesses;
    uint64_t position_in_order = 0;  // how many recovered records precede it
};
struct RingRecovery {
    std::vector<RecoveredRecord> records;
    std::vector<LostFrame> lost_frames;
    bool torn_tail = false;
    uint64_t torn_tail_offset = 0;  // device offset
    uint64_t frames_scanned = 0;
};

struct RingStats {
    uint64_t ring_bytes = 0;
    uint64_t used_bytes = 0;  // between tail and head
    uint64_t admitted_bytes = 0;
    uint64_t appended_bytes = 0;  // since open, frames as written
    uint64_t commits = 0;
    uint64_t records = 0;
    uint64_t user_waits = 0;  // admissions that had to wait
};

// The journal ring of a device: all volumes' records, one group commit for all of them.
//
// Invariants
//   1. Some commits are in flight at once, each an RWF_DSYNC write; an append ends well only when
//      its frame and every frame before it are durable. A frame says up to where that was so when
//      it began (settled). So after a power cut only frames behind the highest settled one can be
//      torn, and any other unreadable frame is corruption.
//   2. Frames between tail and head are never overwritten; the tail is the oldest frame that
//      holds a record not yet released. Nor do the frames in flight, at most kFlightBytesMax,
//      reach what any older frame names as needed.
//   3. Admitted, queued and used bytes never exceed the ring; a queued record always has room.
//   4. After a failed write nothing new is written: every append gives io_error.
// Relax 1 and a corrupt acknowledged record passes for a torn one and is silently dropped; relax 2
// and a torn frame takes an older one, still needed, with it.
//
// Lives on one executor. Format: docs/formats/ring.md.
class Ring {
  public:
    Ring(DeviceState& device, uint64_t offset, uint64_t bytes);
    ~Ring();
    Ring(const Ring&) = delete;
    Ring& operator=(const Ring&) = delete;

    // Reads the whole ring, finds tail and head and begins this boot with a frame of its own, so
    // that what was found is settled: it neither comes nor goes any more. Call once, first.
    // Errors: io_error, corrupt (frames that contradict each other), unsupported.
    Task<Result<void>> recover();
    // What recover() found; empty afterwards.
    RingRecovery take_recovery() { return std::move(recovery_); }

    // Sets room aside at once, or gives an empty Admission (short of space, or others wait).
    Admission try_admit(uint64_t cost_bytes, Urgency urgency);
    // The same, waiting in line for `user`. Errors: busy (kRingQueueCountMax wait already; or
    // other urgencies find no room), io_error, stopping, invalid_argument (can never fit), and
    // what refuse_waiting() says. `owner` is whatever the caller is known by there.
    Task<Result<Admission>> admit(uint64_t cost_bytes, Urgency urgency,
                                  const void* owner = nullptr);
    // Those of `owner` (null: all) that wait in line get `why` instead of room.
    void refuse_waiting(const Error& why, const void* owner);

    // Queues the record at once, in call order; never suspends. The frame goes out at once while
    // fewer than kFramesInFlightMax are in flight, otherwise with what gathers until then.
    // Requires: validate(record); admission.bytes() >= ring_cost_bytes(record).
    void submit(format::Record record, Admission admission, AppendSink* sink);
    // submit() and wait. Errors of the device: io_error (for good); stopping.
    Task<Result<RecordPosition>> append(format::Record record, Admission admission);

    // The record needs its place no more. Requires: a position not released before.
    void release(RecordPosition position);

    // Reads a record back, its payload in one buffer of its own. Requires: not released.
    // Errors: corrupt (names device and offset), io_error.
    Task<Result<format::Record>> read(RecordPosition position);
    // Several, in order, with few large reads; each fails alone. `positions` ascending reads best.
    Task<std::vector<Result<format::Record>>> read_many(std::vector<RecordPosition> positions);

    // All records of a frame, in order, payloads verified one by one. Requires: the frame is held.
    // Errors: corrupt (the metadata as a whole), io_error.
    struct FrameRecord {
        format::Record record;  // without payload when !payload_is_good
        RecordPosition position;
        bool payload_is_good = true;
    };
    Task<Result<std::vector<FrameRecord>>> read_frame(uint64_t sequence);

    // Records of whole frames or parts of them, in ring order and with their payload, are to be
    // written again: what that may take at most, and doing it, with one sink for each. Together
    // they need little more than the frames they came from had; each by itself would take a frame's
    // overhead. Requires: admission.bytes() >= move_cost_bytes(records).
    static uint64_t move_cost_bytes(std::span<const FrameRecord> records);
    void submit_moved(std::vector<FrameRecord> found, Admission admission,
                      std::span<AppendSink* const> sinks);

    // Several records at once, for whom room is needed all together or not at all: what that may
    // take at most, and doing it, in order, with one sink for each.
    // Requires: validate(record) of each; admission.bytes() >= cost_together(records).
    static uint64_t cost_together(std::span<const format::Record> records);
    void submit_together(std::vector<format::Record> records, Admission admission,
                         std::span<AppendSink* const> sinks);

    // Keeps the record's place, whoever releases it meanwhile, until a release() of its own.
    // Requires: not released.
    void pin(RecordPosition position) { ++frame_at(position.frame_sequence).pins; }

    // Device offset of the record's frame, for messages. Requires: not released.
    uint64_t device_offset_of(RecordPosition position) const;
    // The oldest frame that holds a needed record; above newest_sequence() when no settled one
    // does.
    uint64_t tail_sequence() const;
    // The newest frame of which all appends have ended.
    uint64_t newest_sequence() const { return settled_sequence_; }
    // Bytes a user admission could still take now.
    uint64_t free_bytes(Urgency urgency) const;
    uint64_t ring_bytes() const { return ring_bytes_; }
    // True when four fifths of what users may take are: time to move or drain what the tail holds.
    bool is_short() const;
    // Resolves when is_short() may have become true, on nudge() and on close().
    Task<void> wait_short();
    void nudge() { short_.wake_all(); }
    RingStats stats() const;
    bool is_closing() const { return closing_; }

    // Ends the boot: no new admissions, what is queued is committed, then a last frame that makes
    // any later damage to the others distinguishable from a torn tail.
    Task<void> close();

  private:
    friend class Admission;
    struct Pending {
        format::Record record;
        Admission admission;
        AppendSink* sink = nullptr;
        uint32_t encoded_bytes = 0;
    };
    // A frame between tail and head. One that was lost has no bytes of its own.
    struct Frame {
        uint64_t log_offset = 0;
        uint32_t bytes = 0;
        uint32_t metadata_bytes = 0;
        uint32_t pins = 0;
    };
    // The records of a frame, from gathering to the end of their appends.
    struct Batch {
        std::vector<Pending> records;
        std::vector<RecordPosition> positions;
        uint32_t record_bytes = 0;
        uint32_t payload_bytes = 0;
        uint64_t sequence = 0;
        uint64_t log_begin = 0;               // the head before it, padding not taken off
        std::optional<Result<void>> outcome;  // of its write; empty while in flight
    };
    // Someone who waits in line for room; on the stack of admit(). A core that shuts down destroys
    // that stack first: it leaves the line by itself.
    struct AdmitWaiter {
        uint64_t cost = 0;
        const void* owner = nullptr;
        Admission admission;
        std::optional<Error> refusal;
        runtime::Event decided;
        std::deque<AdmitWaiter*>* line = nullptr;  // where it stands

        AdmitWaiter() = default;
        AdmitWaiter(const AdmitWaiter&) = delete;
        ~AdmitWaiter() {
            if (line != nullptr) std::erase(*line, this);
        }
        void decide() {
            line = nullptr;
            decided.set();
        }
    };

    Admission grant(uint64_t bytes);
    void enqueue(format::Record record, Admission admission, AppendSink* sink);
    void submit_in_frames(std::span<format::Record> records, std::span<const uint64_t> frames,
                          Admission admission, std::span<AppendSink* const> sinks);
    void give_back(uint64_t bytes);
    void serve_waiters();
    bool can_begin_frame() const;
    void call_lane();
    Task<void> commit_lane();
    void gather(Batch& batch);
    Task<Result<void>> write_batch(Batch& batch, Buffer area);
    std::vector<Buffer> encode_batch(Batch& batch, const format::FrameHeader& header, Buffer area);
    format::FrameHeader next_header(const Batch& batch) const;
    void begin_frame(Batch& batch, const format::FrameHeader& header);
    void begin_witnesses();
    void add_witness(const format::Record& record);
    void settle_in_order();
    void end_appends(Batch batch);
    void fail_queued();
    Task<Result<void>> write_empty_frame();
    void advance_tail();
    void report_findings(RingScan& scan);
    Task<Result<void>> scan_all();
    void adopt(RingScan& scan);
    Frame& frame_at(uint64_t sequence);
    const Frame& frame_at(uint64_t sequence) const;
    uint64_t log_offset_for(uint64_t frame_bytes) const;
    uint64_t tail_log_offset() const;
    uint64_t used_bytes() const { return head_ - tail_log_offset(); }
    uint64_t kept_back(Urgency urgency) const;
    Result<format::Record> extract(RecordPosition position, Bytes window, uint64_t window_offset);

    DeviceState& device_;
    const uint64_t ring_offset_;
    const uint64_t ring_bytes_;

    std::deque<Pending> queue_;
    std::deque<Frame> frames_;  // tail first; sequences sequence_first_ .. sequence_next_ - 1
    uint64_t sequence_first_ = 1;
    uint64_t sequence_next_ = 1;
    uint64_t settled_sequence_ = 0;  // up to here every frame is durable
    uint64_t head_ = 0;              // log offset behind the newest frame
    uint64_t admitted_bytes_ = 0;
    bool closing_ = false;
    std::vector<format::FrameWitness> witnesses_;  // of the newest frame
    bool witnesses_complete_ = true;
    std::deque<Batch> in_flight_;  // by sequence; the first not over yet
    size_t lanes_ = 0;             // commit lanes that run
    bool is_lane_called_ = false;  // one wakes, and has not looked at the queue yet
    RingRecovery recovery_;
    RingStats counters_;
    std::deque<AdmitWaiter*> waiters_;
    runtime::WaitList work_;
    runtime::WaitList short_;
    runtime::Gate gate_;
};

}  // namespace peplos::media
