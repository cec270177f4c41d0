#pragma once

#include <algorithm>
#include <boost/container/small_vector.hpp>
#include <deque>
#include <map>
#include <memory>
#include <optional>
#include <vector>

#include "base/fault.h"
#include "base/log.h"
#include "runtime/alarm.h"
#include "runtime/gate.h"
#include "runtime/sync.h"
#include "volume/block_map.h"
#include "volume/lifetime.h"
#include "volume/map_pages.h"
#include "volume/overlay.h"
#include "volume/salvage.h"
#include "volume/segment_set.h"
#include "volume/segment_writer.h"
#include "volume/volume.h"

// The inside of a volume: its state, and the steps of its life by file.
//   volume.cc   create, open, close, destroy; the facade
//   replay.cc   from root and journal back to map and overlay
//   salvage.cc  the same in spite of damage
//   writer.cc   write, zero: room, LSN, journal, overlay
//   reader.cc   read: overlay, map, segment
//   drain.cc    overlay -> segments -> seal -> map
//   upkeep.cc   checkpoint, removal, relocation, scrub
namespace peplos::volume {

using runtime::Task;

// A record that has its LSN and is not applied yet: it, its payload, or what is ahead of it is not
// known to be durable.
struct InFlight {
    Lsn lsn;
    format::RecordType type = format::RecordType::noop;
    Lba lba;
    uint64_t block_count = 0;
    Buffer data;          // write: all blocks of the record
    format::Place place;  // write_ref: of the first block
    format::BlockCrcs crcs;
    bool is_durable = false;            // record and payload
    runtime::Event* applied = nullptr;  // of the task that waits for this one alone

    bool overlaps(uint64_t first, uint64_t end) const {
        return lba.value < end && first < lba.value + block_count;
    }
};

// Ranges of blocks that read-modify-writes hold. They never overlap. Few at a time, so a list does.
class BlockLocks {
  public:
    bool empty() const { return locked_.empty(); }
    bool overlaps(uint64_t first, uint64_t end) const {
        return std::ranges::any_of(
            locked_, [&](const Range& held) { return held.first < end && first < held.end; });
    }
    // Requires: nothing in it is locked.
    void lock(uint64_t first, uint64_t end) { locked_.push_back({first, end}); }
    void unlock(uint64_t first) {
        std::erase_if(locked_, [first](const Range& held) { return held.first == first; });
        changed_.wake_all();
    }
    Task<void> wait() { return changed_.wait(); }
    void wake() { changed_.wake_all(); }

  private:
    struct Range {
        uint64_t first;
        uint64_t end;
    };
    std::vector<Range> locked_;
    runtime::WaitList changed_;
};

inline constexpr Duration kCleanAgainAfter = std::chrono::minutes(10);

// A segment that takes payload of large writes until a drain seals it.
struct OpenSegment {
    SegmentHandle handle;
    uint32_t index = 0;
    uint32_t block_count = 0;  // handed out
    uint32_t block_count_max = 0;
    // Payloads on their way into it whose records have no LSN yet: only with copies on other nodes.
    uint32_t unnumbered = 0;
    // A copy of it is not what it should be: nothing more goes in, and no drain seals it.
    bool is_given_up = false;

    bool has_room(uint32_t blocks) const {
        return !is_given_up && block_count + blocks <= block_count_max;
    }
};

// One drain, some of whose segments have no readable index.
struct HurtSeal {
    std::vector<const format::SealedSegment*> hurt;
    std::vector<MapUpdate> updates;  // of the others
    // From which block to before which each of them may hold any.
    std::vector<std::pair<uint64_t, uint64_t>> bounds;
};

struct VolumeCore {
    VolumeCore(Resources& resources, VolumeParams params);
    ~VolumeCore();
    VolumeCore(const VolumeCore&) = delete;

    // ---- facts ----
    Resources& resources;
    const VolumeParams params;
    Volume* facade = nullptr;  // what Background is told about
    std::unique_ptr<replica::VolumeLog> log;
    SegmentSet segments;
    MapPages pages;
    std::unique_ptr<BlockMap> map;
    Overlay overlay;
    std::optional<Error> fault;
    bool stopping = false;
    VolumeStats counters;
    // Segments that cleaning could not empty, because of a damaged block or map leaf: it would try
    // for ever. A change of what is lost is worth another try, and so are some minutes.
    struct GivenUp {
        uint64_t loss_changes = 0;
        Time at{};
    };
    std::map<SegmentId, GivenUp> uncleanable;

    // ---- writer ----
    std::deque<InFlight> in_flight;      // by LSN
    uint64_t in_flight_blocks = 0;       // of data in RAM, in in_flight or before
    uint64_t charged_bytes = 0;          // of the overlay budget
    uint64_t promised_units = 0;         // of the space budget
    uint64_t frozen_written_blocks = 0;  // of the frozen generation, already in segments
    Lsn applied_lsn;                     // all records up to here are in overlay or map
    BlockLocks locks;
    runtime::WaitList applied;
    runtime::WaitList drained;  // a drain ended, well or not
    runtime::WaitList slots;
    uint32_t running = 0;
    uint32_t waiting = 0;  // writers that wait for room of any kind
    // A large write takes its place in here and its LSN without a suspension between: so what is
    // in the segments up to a moment is what has an LSN up to a moment.
    std::shared_ptr<OpenSegment> open_segment;
    std::shared_ptr<OpenSegment> next_segment;  // made ahead, so that no write waits for it
    bool is_opening_ahead = false;
    std::vector<std::shared_ptr<OpenSegment>> full_segments;  // taken all they can, not sealed
    uint64_t large_run_bytes = 4 * kMiB;                      // of the next open segment
    runtime::Mutex opening;
    // The active generation is frozen when this LSN is applied, before the next one is.
    std::optional<Lsn> freeze_at;
    Lsn newest_reference_lsn;    // submitted
    Lsn submitted_settled_lsn;   // the highest that a record has carried
    runtime::Alarm settle_soon;  // rings when it should be now
    bool is_settling_soon = false;

    // ---- drain and upkeep ----
    std::map<uint64_t, Time> unread_references;  // blocks of large writes, since when
    std::vector<std::shared_ptr<OpenSegment>> frozen_segments;  // refs of the frozen generation
    // Of these, those that cannot be sealed in every copy: their blocks are written anew.
    std::vector<std::shared_ptr<OpenSegment>> given_up_segments;
    bool is_freezing = false;
    runtime::WaitList numbered;  // a payload's record got its LSN, or will get none
    runtime::Mutex draining;     // drain as a whole
    runtime::Mutex meta;         // append a meta record and apply it
    runtime::Mutex upkeep;       // checkpoint, removal, relocation
    LifetimePredictor lifetimes;
    Lsn drained_lsn;
    Lsn meta_lsn;  // newest meta record applied
    uint64_t replay_bytes = 0;
    uint64_t replay_records = 0;
    mutable bool noticed = false;
    runtime::Gate gate;        // I/O and calls
    runtime::Gate background;  // own detached work

    // ---- volume.cc ----
    Task<Result<void>> start(bool is_new);
    Error unproven(const replica::LogTail& tail) const;
    Task<void> stop(bool is_closing, Result<void>* outcome);
    void fail_for_good(const Error& error);
    // What would have made room failed: who waits for room hears of it, and tries what else helps.
    void note_failure(const Error& why);
    // An error once the volume has failed; alive(): also once it stops.
    Result<void> healthy() const;
    Result<void> alive() const;
    Result<void> check_access(uint64_t offset, uint64_t bytes) const;
    uint64_t size_bytes() const { return map->block_count() * kBlockBytes; }
    Pressure pressure() const;
    // An operation that other nodes keep from ending is tried again until they answer: a container
    // waits for them, and gets no error. `outcome` is that of the first attempt, which failed.
    // Errors: those of `attempt` that will not pass; stopping.
    template <typename Attempt>
    Task<Result<void>> wait_for_nodes(Result<void> outcome, Attempt attempt) {
        while (!outcome && may_pass(outcome.error())) {
            CO_TRY(co_await wait_for_nodes_once(outcome.error()));
            outcome = co_await attempt();
        }
        // Its log was ended under it: who asked is left without an answer.
        if (!outcome && outcome.error().code() == Code::outcome_unknown && refusal)
            co_return fail(*refusal);
        co_return outcome;
    }
    bool may_pass(const Error& error) const;
    Task<Result<void>> wait_for_nodes_once(const Error& why);
    void refuse_waiting(const Error& why);
    std::string waits_for;  // what operations wait for now
    uint32_t nodes_waiting = 0;
    std::optional<Error> refusal;  // of the last refuse_waiting()
    uint64_t refusals = 0;
    bool is_uncleanable(const SegmentId& id) const {
        auto at = uncleanable.find(id);
        return at != uncleanable.end() && at->second.loss_changes == map->loss_changes() &&
               resources.env.clock.now() - at->second.at < kCleanAgainAfter;
    }
    VolumeStats stats() const;
    // Tells the background once that a bound was crossed; alone, starts the work itself.
    void notice();
    Task<void> maintain_alone();

    // ---- replay.cc ----
    Task<Result<void>> replay();
    Task<Result<void>> replay_record(format::Record record);
    Task<Result<void>> replay_seal(Lsn lsn, const format::SealBody& body);
    Task<Result<void>> replay_relocate(Lsn lsn, const format::RelocateBody& body);
    Result<void> replay_write(format::Record& record);
    Task<Result<void>> replay_write_ref(format::Record record);
    Task<Result<bool>> is_reference_whole(const format::Record& record);
    Task<Result<void>> settle_log();
    std::vector<Lsn> torn_references;  // found by the replay
    bool found_unsettled = false;
    bool found_reference = false;  // to a segment, in a record that is not drained
    Task<Result<std::vector<format::SegmentIndexEntry>>> replay_segment(
        Lsn lsn, const format::SealedSegment& sealed);
    Task<Result<void>> attach_segments();
    void settle_open_segments();
    Task<void> adopt_open_segments();
    Task<void> tidy_up(std::vector<SegmentId> leftovers);
    Task<void> mend_missing_copies();
    Task<void> remove_leftovers(std::vector<SegmentId> ids);
    std::vector<SegmentId> find_leftovers() const;
    std::vector<SegmentId> deleted_in_replay;
    std::vector<uint32_t> unsealed_at_open;  // table indexes of open segments of earlier epochs

    // ---- salvage.cc ----
    std::unique_ptr<Salvage> salvage;  // only in Volume::recover()
    Task<Result<void>> start_salvage(replica::OnLoss on_loss);
    Task<Result<void>> name_unplaced_segments(const replica::LogTail& tail);
    Task<Result<void>> check_payloads();
    Task<Result<void>> finish_salvage();
    Task<Result<void>> load_map(RootRef ref);
    void make_map();
    Task<Result<void>> salvage_map(RootRef ref, const Error& why);
    Task<Result<void>> salvage_seal(Lsn lsn, const format::SealBody& body);
    Task<Result<std::vector<ZeroExtent>>> salvage_hurt(Lsn lsn, Lsn drained, HurtSeal& seal);
    Task<Result<void>> salvage_segment(Lsn lsn, const format::SealedSegment& sealed,
                                       std::vector<SegmentBlock> wanted,
                                       std::vector<MapUpdate>* updates);
    Task<Result<void>> verify_blocks(const SegmentHandle& handle,
                                     std::vector<SegmentBlock>* blocks);
    Task<Result<std::vector<format::SegmentIndexEntry>>> replay_segment_patiently(
        Lsn lsn, const format::SealedSegment& sealed);

    // ---- writer.cc ----
    Task<Result<void>> write(uint64_t offset, Buffer from);
    Task<Result<void>> write_once(uint64_t offset, Buffer from);
    Task<Result<void>> zero_once(uint64_t offset, uint64_t bytes);
    Task<Result<void>> zero(uint64_t offset, uint64_t bytes);
    Task<Result<void>> grow(uint64_t size_bytes);
    Task<Result<void>> write_blocks(Lba lba, Buffer data);
    Task<Result<void>> write_large(Lba lba, Buffer data);
    // With copies on other nodes: the payload is durable in all of them before the record gets its
    // LSN, so that a node which fails meanwhile costs another attempt, not the volume.
    Task<Result<void>> write_large_first(format::Record record, replica::Admission admission,
                                         Buffer data);
    Task<Result<bool>> find_open_segment(Lba lba, uint32_t block_count);
    replica::AppendTicket submit_reference(format::Record record, replica::Admission admission,
                                           const OpenSegment& segment, uint64_t offset);
    void give_up(const std::shared_ptr<OpenSegment>& segment);
    void open_ahead_of(const OpenSegment& segment);
    Task<Result<void>> write_pieces(Lba lba, Buffer data);
    Task<Result<void>> write_partial(uint64_t offset, Buffer from);
    Task<Result<void>> write_partial_piece(uint64_t offset, Buffer from);
    Task<Result<void>> zero_blocks(Lba lba, uint64_t block_count);
    bool have_open_segment(uint32_t block_count);
    Task<Result<std::shared_ptr<OpenSegment>>> make_open_segment(uint32_t block_count);
    Task<Result<void>> create_open_segment(uint32_t block_count);
    Task<void> open_ahead();
    Task<void> drop_next_segment();
    Task<void> settle_when_idle();
    bool try_take_room(uint64_t blocks);
    Task<Result<void>> take_room(uint64_t blocks);
    // What a writer remembers of its attempts to get room.
    struct Patience {
        Time start{};
        Time end{};
        uint32_t fruitless = 0;
    };
    Task<Result<void>> regain(Error why, Patience& patience);
    Task<bool> make_room_alone();
    Task<Result<replica::Admission>> admit(const format::Record& record);
    Task<Result<void>> commit(format::Record record, replica::Admission admission,
                              InFlight in_flight);
    replica::AppendTicket submit(format::Record record, replica::Admission admission,
                                 InFlight in_flight);
    // Record and payload of this LSN are durable, or `outcome` says why not. Resolves when it is
    // applied; until then nobody may be told.
    Task<Result<void>> complete(Lsn lsn, Result<void> outcome);
    format::Record make_record(format::RecordType type, Lba lba, uint64_t block_count) const;
    void advance();
    void freeze();
    void apply(InFlight& record);
    Task<void> wait_applied(Lsn lsn);
    Task<void> enter_slot();
    void leave_slot();
    // Gives back what budget and promise hold beyond the need.
    void settle();
    uint64_t needed_bytes() const;
    uint64_t needed_units(uint64_t more_blocks) const;

    // ---- reader.cc ----
    Task<Result<void>> read(uint64_t offset, Buffer into);
    Task<Result<void>> read_once(uint64_t offset, Buffer into);
    Task<Result<void>> read_partial(uint64_t offset, Buffer into);
    // With the promises renewed that it lacks.
    Task<Result<void>> read_again(uint64_t offset, Buffer into);
    // Whole blocks; no accounting.
    Task<Result<void>> read_blocks(Lba first, Buffer into);
    Error corrupt_block(const SegmentHandle& handle, format::Place place, Lba lba,
                        uint32_t copy = 0);
    Error lost_block(Lba lba) const;

    // ---- drain.cc ----
    Task<Result<void>> drain();
    Task<Result<void>> freeze_generation();

    // ---- upkeep.cc ----
    Task<Result<void>> checkpoint();
    Task<Result<void>> checkpoint_locked();
    Task<Result<void>> checkpoint_once();
    // Before a checkpoint: leaves that could not be read are read now, or given up after long.
    Task<Result<void>> settle_unread_leaves();
    std::optional<Time> unread_since;
    // Free units that only checkpoints, of any volume, may take: without them nothing that died is
    // ever removed. `leaves` more will have changed by then. Look right before a segment is
    // created: what was free before a suspension may not be any more.
    uint64_t checkpoint_units(uint64_t leaves) const;
    // Distinct leaves that a change of these blocks touches.
    static uint64_t leaf_count(std::span<const SegmentBlock> ascending);
    Task<Result<void>> remove_dead();
    Task<Result<void>> remove_dead_locked();
    Task<Result<void>> relocate(std::vector<uint32_t> indexes, uint8_t lifetime_class);
    Task<Result<ScrubResult>> scrub(uint32_t index);
    Task<Result<ScrubResult>> check_segment(uint32_t index);
    Task<void> scrub_sealed(uint32_t index, ScrubResult& out);
    Task<Result<std::string>> dump_map();
    // Appends a meta record and, once durable, runs nothing: the caller applies. Requires: meta
    // is locked. Gives the LSN.
    Task<Result<Lsn>> append_meta(format::Record record);
    Task<Result<void>> apply_patiently(MapChange change);
    // Applies in steps that let others run.
    Task<Result<void>> apply_change(Lsn lsn, std::span<const ZeroExtent> zeros,
                                    std::span<const MapUpdate> updates,
                                    std::span<const Relocation> relocations);
};

// What the segment table says of a sealed data segment.
SegmentEntry entry_of(const WrittenSegment& segment, Lsn sealed_lsn);
SegmentEntry entry_of(const format::SegmentFooter& footer, GroupId group, uint32_t block_count,
                      Lsn sealed_lsn);

// Memory that one block's reference costs, as the overlay budget counts it.
inline constexpr uint64_t kReferenceBytes = 64;
inline constexpr uint64_t kZeroExtentsMax = 8192;
// A leaf that its device did not give for so long, while it gave the rest of that segment, will not
// come back, and the journal cannot keep its changes for ever.
inline constexpr Duration kUnreadPatience = std::chrono::hours(1);
// The volume cannot go on: this node's device failed, or another owner has it.
constexpr bool is_final(Code code) {
    return code == Code::io_error || code == Code::fenced;
}
// Between two attempts of an operation that waits for other nodes.
inline constexpr Duration kNodesPause = std::chrono::milliseconds(200);
// How often what failed by another node's copy is tried with other nodes before it has failed.
inline constexpr int kCopyAttempts = 3;
// How long a large write may be acknowledged without a record that says so.
inline constexpr Duration kSettleDelay = std::chrono::milliseconds(50);
// Undrained data from which on a drain is worth its while.
inline constexpr uint64_t kDrainBytes = limits::kSegmentBytesMax;
inline constexpr uint64_t kDrainReferenceBytes = 128 * kMiB;

}  // namespace peplos::volume
