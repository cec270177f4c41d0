#pragma once

#include <functional>
#include <map>
#include <memory>
#include <unordered_map>

#include "media/device.h"
#include "replica/journal.h"
#include "replica/member_calls.h"
#include "replica/member_log.h"
#include "replica/volume_state.h"
#include "runtime/alarm.h"

namespace peplos::replica {

class LogRecovery;

// Decides, before a record of the owner's log is submitted, whether it may be.
class AppendTaker {
  public:
    virtual bool takes(Lsn lsn) = 0;

  protected:
    ~AppendTaker() = default;
};

// The journal of one device: the log of every volume that logs there, in its ring.
//
// Invariants
//   1. A volume's fence never goes down and is durable before open() returns.
//   2. A record that a restart would need is pinned in the ring; one that is not, is not.
//   3. A log that lost an acknowledged record, or cannot tell, is never `complete` again; that
//      is itself a durable record (damage).
//   4. Re-appending changes where a record lies, never what it says.
// Relax 3 and a second restart serves a log whose hole the first one saw.
//
// Lives on the device's executor and ends before the device does: stop() it first.
class LocalJournal final : public Journal {
  public:
    // Takes over what the ring's recovery found: sorts it by volume, checks each log for holes,
    // makes damage durable and releases what nobody needs. Call it once per opened device.
    // Errors: io_error, busy (a ring too full even for that).
    static Task<Result<std::unique_ptr<LocalJournal>>> open(runtime::Env env,
                                                            media::Device& device);
    ~LocalJournal() override;

    Task<Result<std::unique_ptr<VolumeLog>>> open(OpenRequest request) override;
    Membership membership_for(OpenToken token) const override;
    Task<Result<void>> drop(VolumeId volume) override;
    std::vector<RetainedVolume> volumes() const override;
    Epoch fence_of(VolumeId volume) const override;
    JournalStats stats() const override;
    Task<bool> scrub(JournalScrub& scrub, uint64_t bytes) override;
    Task<void> stop() override;

    // ---- a member's logs: what a MemberLog wants written (local_journal_member.cc) ----
    //
    // Each submit_*() is done at once, in order; the writes end in that order too. Room is taken
    // before, so that none of them waits.

    // Told once how a write of the log's state ended, from the ring's commit loop.
    class WriteSink {
      public:
        virtual void on_written(const Result<void>& outcome) = 0;

      protected:
        ~WriteSink() = default;
    };
    // What the media hold, in a MemberLog's words; all none where nothing is held. A log that was
    // never a member's was opened by its own node, whose id it does not know.
    MemberLog::Stored stored_of(VolumeId volume) const;
    bool is_damaged(VolumeId volume) const;
    bool is_dropped(VolumeId volume) const;
    LineageId lineage_of(VolumeId volume) const;
    bool has_failed() const { return device_.is_failed(); }
    // The log's appends are told to `watch`, who outlives the journal's work or passes null.
    void watch(VolumeId volume, AppendWatch* watch);

    // Even of a full ring: the record takes the place of the one before. Errors: busy, io_error,
    // stopping.
    Result<media::Admission> admit_fence();
    // `planned` is what the media will hold then. Requires: not dropped.
    void submit_fence(VolumeId volume, LineageId lineage, const MemberLog::Stored& planned,
                      media::Admission admission, WriteSink* sink);

    // Whether what an open keeps and brings is a whole log up to its last LSN. Errors: corrupt.
    Result<void> check_open(VolumeId volume, const OpenCall& call) const;
    // Errors: busy (no room, or too many spans), io_error, stopping.
    Result<media::Admission> admit_open(VolumeId volume, const OpenCall& call);
    // Keeps records up to keep_lsn, forgets the others and takes those of the call, all at once
    // when its last record is durable. Requires: check_open().
    void submit_open(OpenCall call, const MemberLog::Stored& planned, media::Admission admission,
                     WriteSink* sink);

    // Errors: busy (urgencies other than `user`: no room), and of the ring.
    media::Admission try_admit_record(const format::Record& record, media::Urgency urgency);
    // Waits in line for room of `user`; stop_waiting() ends that with `why`.
    Task<Result<media::Admission>> admit_record(const format::Record& record, const void* owner);
    void stop_waiting(const void* owner, const Error& why);
    // Whether the record continues the log: its chains name what lies before it. Errors: corrupt.
    Result<void> check_append(VolumeId volume, const format::Record& record) const;
    // The watch is told. Requires: check_append().
    void submit_record(format::Record record, media::Admission admission);
    // Every record up to `lsn` was acknowledged: what seals and roots up to there make needless is
    // released, once that is on record; where it cannot wait for a record that says so.
    void note_settled(VolumeId volume, Lsn lsn);

    Task<Result<LogRecords>> read_log(VolumeId volume, Lsn after, uint64_t bytes);
    // The log as its owner on this node sees it; earlier ones get `fenced`.
    std::unique_ptr<LocalVolumeLog> log_for_owner(VolumeId volume, Epoch epoch, AppendTaker* taker);
    // The owner's log gets `fenced` from now on.
    void end_log(VolumeId volume);

  private:
    friend class LocalVolumeLog;
    friend struct AppendTicket::State;
    friend struct AppendTicket::Drop;
    class MoveSink;
    // Keeps a volume's state in memory over a suspension, also when it is dropped meanwhile.
    class Use;
    class Moving;
    class Pins;
    // local_journal_member.cc
    class FenceWrite;
    class NoteWrite;
    class OpenWrite;
    class RecordWrite;
    struct Work {
        virtual ~Work() = default;
    };
    // Where the chains of a log end.
    struct Ends {
        Lsn data;
        Lsn meta;
        Lsn root;
    };
    static Ends ends_up_to(const VolumeState& state, Lsn lsn);
    static format::FenceBody fence_body(const VolumeState& state);
    // `keep_lsn` and the number of the open: what counts from then on. None: too many spans.
    static std::optional<std::vector<format::LogSpan>> spans_after(const VolumeState& state,
                                                                   uint64_t open_number,
                                                                   Lsn keep_lsn);
    void plan_state(VolumeState& state, const MemberLog::Stored& planned);
    static format::Record fence_record(const VolumeState& state);
    void settle_member(VolumeState& state, const format::Record& record);
    void release_settled(VolumeState& state);
    void settle_up_to(VolumeState& state, Lsn drained_lsn, Lsn meta_lsn);
    void cut_off(VolumeState& state, Lsn keep_lsn);
    Task<Result<void>> forget_opens(VolumeState& state);
    void end_work(const Work* work);
    const VolumeState* find_state(VolumeId volume) const;
    VolumeState* find_state(VolumeId volume);

    LocalJournal(runtime::Env env, media::Device& device);
    Task<Result<void>> adopt(media::RingRecovery recovery);
    VolumeState& state_for(VolumeId volume);
    LogOutcome judge(const VolumeState& state, const OpenRequest& request,
                     std::string* reason) const;
    Task<Result<void>> write_fence(VolumeState& state, const OpenRequest& request,
                                   LogOutcome outcome);
    Task<Result<media::RecordPosition>> append_state(VolumeState& state, format::Record record,
                                                     media::Urgency urgency = media::Urgency::meta);
    Task<Result<void>> write_damage(VolumeState& state, Lsn last_lsn, uint64_t device_offset);
    LogTail tail_of(const VolumeState& state) const;
    void settle(VolumeState& state, const format::Record& record, const Retained& entry);
    void hold(VolumeState& state, Retained entry);
    void let_go(VolumeState& state, const Retained& entry);
    void let_go_all(VolumeState& state);
    void trim(VolumeState& state);
    void end_flight(VolumeState& state);
    // Nothing of the volume moves or reads any more.
    Task<void> quiesce(VolumeState& state);
    void forget_dropped();
    AppendTicket::State* take_ticket();
    void recycle(AppendTicket::State* ticket);
    void note_latency(Time submitted);
    bool should_reappend() const;
    Task<void> reappend_loop();
    Task<Result<void>> reappend_tail();
    VolumeState* find_needed(const media::Ring::FrameRecord& found);
    Task<Result<void>> move_records(std::vector<media::Ring::FrameRecord> records);
    Task<Result<void>> settle_bad(const std::vector<media::Ring::FrameRecord>& records);
    media::Admission admit_move(std::vector<media::Ring::FrameRecord>& records);

    // local_journal_damage.cc
    // Which entries of one frame cannot be read back any more.
    using IsLost = std::function<bool(const Retained&)>;
    // A frame whose records only their owner's memory has: its drain makes them needless.
    struct Suspect {
        uint64_t sequence = 0;
        Time since{};
        Time look_again{};
    };
    Task<Result<std::vector<media::Ring::FrameRecord>>> read_patiently(uint64_t sequence);
    bool mark_bad(VolumeState& state, const IsLost& is_lost);
    bool leave_to_owner(uint64_t sequence, const IsLost& is_lost);
    bool is_left_to_owner(uint64_t sequence) const;
    Task<void> look_again_later();
    bool is_known_here(const OpenRequest& request) const;
    Task<Result<void>> write_off(VolumeState& state, std::string reason);
    Task<Result<void>> give_up(uint64_t sequence, IsLost is_lost);
    Task<Result<void>> rewrite_states(VolumeState& state, const IsLost& is_lost);
    Task<Result<void>> rewrite_older_roots(VolumeState& state, const IsLost& is_lost);
    Task<Result<void>> mark_damaged(VolumeState& state, uint64_t sequence, const IsLost& is_lost);
    Task<void> scrub_frame(uint64_t sequence, JournalScrub& scrub);
    void heal(VolumeState& state, const format::Record& record, const format::RootBody& root);

    runtime::Env env_;
    media::Device& device_;
    media::Ring& ring_;
    std::unordered_map<VolumeId, std::unique_ptr<VolumeState>> volumes_;
    std::vector<std::unique_ptr<AppendTicket::State>> tickets_;  // all of them
    std::vector<AppendTicket::State*> idle_tickets_;
    std::unordered_map<const Work*, std::unique_ptr<Work>> work_;  // of members' logs, under way
    std::vector<uint64_t> latency_us_;
    uint64_t reappended_records_ = 0;
    uint64_t reappended_bytes_ = 0;
    Suspect suspect_;                // the last one met by the ring's tail
    bool is_looking_again_ = false;  // soon, by itself
    runtime::Alarm look_again_soon_;
    uint32_t replays_ = 0;  // while one runs, no move begins
    uint32_t moves_ = 0;    // a replay waits for those under way
    runtime::WaitList moved_;
    std::vector<VolumeId> dropped_;  // whose state somebody may still refer to
    bool stopping_ = false;
    runtime::Gate gate_;
};

class LocalJournal::Use {
  public:
    Use(LocalJournal* journal, VolumeState& state) : journal_(journal), state_(state) {
        ++state_.uses;
    }
    Use(const Use&) = delete;
    ~Use() {
        CHECK(state_.uses > 0);
        if (--state_.uses == 0 && state_.is_dropped) journal_->forget_dropped();
    }

  private:
    LocalJournal* journal_;
    VolumeState& state_;
};

// Places of records change, or are released, while one lives. Begins when no replay runs.
class LocalJournal::Moving {
  public:
    explicit Moving(LocalJournal* journal) : journal_(journal) { ++journal_->moves_; }
    Moving(const Moving&) = delete;
    ~Moving() {
        if (--journal_->moves_ == 0) journal_->moved_.wake_all();
    }

  private:
    LocalJournal* journal_;
};

// Places stay readable, whoever releases them, while one lives.
class LocalJournal::Pins {
  public:
    explicit Pins(LocalJournal* journal) : journal_(journal) {}
    Pins(const Pins&) = delete;
    ~Pins() {
        for (media::RecordPosition position : positions_)
            journal_->ring_.release(position);
    }
    void add(media::RecordPosition position) {
        journal_->ring_.pin(position);
        positions_.push_back(position);
    }

  private:
    LocalJournal* journal_;
    std::vector<media::RecordPosition> positions_;
};

// A volume's log on this device alone.
class LocalVolumeLog final : public VolumeLog {
  public:
    LocalVolumeLog(LocalJournal* journal, VolumeState* state, Epoch epoch, LogTail tail);
    ~LocalVolumeLog() override;

    VolumeId volume() const override { return volume_; }
    Epoch epoch() const override { return epoch_; }
    const LogTail& tail() const override { return tail_; }
    Task<Result<void>> replay(RecordVisitor& visitor) override;
    Task<Result<std::vector<format::Record>>> find_drained() override;
    Lsn next_lsn() const override;
    Admission try_admit(const format::Record& record) override;
    Task<Result<Admission>> admit(const format::Record& record) override;
    AppendTicket submit(format::Record record, Admission admission) override;
    Task<Result<void>> wait(AppendTicket ticket) override;
    Task<Result<Lsn>> append(format::Record record) override;
    void trim(Lsn drained_lsn, Lsn meta_lsn) override;
    uint64_t retained_bytes() const override;
    uint64_t retained_meta_bytes() const override;
    uint64_t retained_bytes_max() const override;
    bool is_short() const override;
    bool is_endangered() const override;
    void watch_endangered(std::function<void()> tell) override { endangered_ = std::move(tell); }
    void refuse_waiting(const Error& why, Waiting who) override;

    // Gives the record what submit() would give it now; nothing to one of a fenced log.
    void stamp(format::Record& record) const;

  private:
    friend class LocalJournal;
    // fenced, stopping or io_error, when the log takes no more.
    Result<void> check() const;
    Result<void> place_in_sequence(format::Record& record, bool* is_repeat);

    LocalJournal* journal_;
    VolumeState* state_;  // null once the log is fenced
    const VolumeId volume_;
    const Epoch epoch_;
    const LogTail tail_;
    std::function<void()> endangered_;
    AppendTaker* taker_ = nullptr;
};

}  // namespace peplos::replica
