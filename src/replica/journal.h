#pragma once

#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "format/record.h"
#include "media/ring.h"
#include "replica/protocol.h"
#include "runtime/task.h"

// The journal as a volume sees it: one log per volume, fenced by epochs, whoever keeps the copies.
namespace peplos::replica {

using runtime::Task;

class Share;

// What the control store knows of a volume's log on this member.
struct Membership {
    Incarnation incarnation;  // of the device
    OpenToken token;
    bool operator==(const Membership&) const = default;
};

// What an open may do about a log that cannot prove itself.
enum class OnLoss : uint8_t {
    refuse,  // nothing
    look,    // give what can be read of it, to be looked at
    // Give what can be read of it, to be gone on with: what is missing is gone for good, on record
    // and beyond recall, once a root covers tail().last_lsn. Until then the log stays `unknown`.
    accept,
};

struct OpenRequest {
    VolumeId volume;
    LineageId lineage;
    Epoch epoch;      // the claimed one; higher than every epoch seen
    OpenToken token;  // new, random
    // As recorded before this claim; none: this volume never had a log anywhere.
    std::optional<Membership> recorded;
    OnLoss on_loss = OnLoss::refuse;
};

// What a log holds when it is opened; the records themselves come by replay().
struct LogTail {
    LogOutcome outcome = LogOutcome::unknown;
    std::string reason;  // for a person, when unknown: device, offset, volume, LSN
    // Unknown, and asked for all the same: replay() leaves out what cannot be read.
    bool is_salvaged = false;
    Lsn last_lsn;     // of the newest record ever; 0: an empty log
    Lsn drained_lsn;  // the newest of root and seals
    Lsn meta_lsn;     // of the newest root
    // Of the newest meta record that was there and could not be read any more; 0: none. What it
    // drained counts in drained_lsn.
    Lsn lost_meta_lsn;
    // Every record up to here is whole, its payload too, or its LSN is in `voided`, which ascends.
    Lsn settled_lsn;
    std::vector<Lsn> voided;
    // The newest checkpoint, to be loaded before the replay; none: start from the empty map.
    std::optional<format::RootBody> root;
    Epoch fence_before;  // the epoch before this open
    uint64_t record_count = 0;
    uint64_t payload_bytes = 0;
};

// Takes the retained records in LSN order.
class RecordVisitor {
  public:
    // An error ends the replay, which returns it.
    virtual Task<Result<void>> on_record(format::Record record) = 0;
    // A record that is known to be there and cannot be read; only of a salvaged log.
    virtual void on_unreadable(Lsn lsn, format::RecordType type, const Error& why) {
        std::ignore = std::tie(lsn, type, why);
    }

  protected:
    ~RecordVisitor() = default;
};

// Room for one append, taken before its LSN is: see VolumeLog::admit().
class [[nodiscard]] Admission {
  public:
    Admission() = default;
    Admission(Admission&& other) noexcept
        : share_(std::exchange(other.share_, nullptr)),
          bytes_(std::exchange(other.bytes_, 0)),
          ring_(std::move(other.ring_)) {}
    Admission& operator=(Admission&& other) noexcept {
        std::swap(share_, other.share_);
        std::swap(bytes_, other.bytes_);
        ring_ = std::move(other.ring_);
        return *this;
    }
    ~Admission();
    explicit operator bool() const { return share_ != nullptr; }

  private:
    friend class Share;
    friend class LocalVolumeLog;
    Share* share_ = nullptr;
    uint64_t bytes_ = 0;
    media::Admission ring_;
};

// One append under way. Move-only; wait on it once, or drop it (the append goes on).
class [[nodiscard]] AppendTicket {
  public:
    struct State;
    struct Drop {
        void operator()(State* state) const noexcept;
    };
    AppendTicket() = default;
    explicit AppendTicket(State* state) : state_(state) {}
    explicit operator bool() const { return state_ != nullptr; }

  private:
    friend class LocalVolumeLog;
    friend class LogOwner;
    // Why it failed already; null: it did not.
    const Error* failure() const;
    std::unique_ptr<State, Drop> state_;
    Lsn lsn_;  // for a log with several members
};

// A volume's log while one owner holds it under one epoch. Lives on one executor; it is destroyed
// before its journal, and when no call of it is under way.
//
// How to append: (1) admit() a record while it has no LSN yet (this is the back-pressure);
// (2) without suspension give it lsn = next_lsn() and submit() it; (3) wait() for durability.
// Records become durable in LSN order. A record that was submitted never waits for space, so a
// drain is never stuck behind the writes that wait for it.
//
// Errors of every call: fenced (a newer epoch opened this log: stop), io_error (the member's
// device failed for good), stopping.
class VolumeLog {
  public:
    virtual ~VolumeLog() = default;

    virtual VolumeId volume() const = 0;
    virtual Epoch epoch() const = 0;
    virtual const LogTail& tail() const = 0;

    // Hands the records of tail() to `visitor` in LSN order, payloads read lazily and verified.
    // Call it before the first submit, or never. Errors: corrupt (names device, offset and LSN),
    // io_error, or what the visitor says. Of a salvaged log it gives what can be read; the visitor
    // finds the holes by the records' chains.
    virtual Task<Result<void>> replay(RecordVisitor& visitor) = 0;

    // Data-like records of the volume, in LSN order and without payloads, that the journal still
    // happens to hold between its oldest needed record and its end, drained ones too: to find out
    // again what a drain wrote. Reads all of that. Errors: io_error, stopping, fenced.
    virtual Task<Result<std::vector<format::Record>>> find_drained() = 0;

    // The LSN that the next submitted record must carry (0-LSN types excepted).
    virtual Lsn next_lsn() const = 0;

    // Room for the record; lsn, volume and epoch in it are not looked at. try_admit() gives an
    // empty Admission where admit() would wait. Writes of a volume that holds its
    // share (a quarter) of the journal wait until trim(), as do all when the ring is full.
    // `zero` draws on a reserve and waits when that is used up; meta records have one of their
    // own and never wait.
    // Errors: busy (too many wait; or even the reserve is used up), invalid_argument, and what
    // refuse_waiting() says.
    virtual Admission try_admit(const format::Record& record) = 0;
    virtual Task<Result<Admission>> admit(const format::Record& record) = 0;

    // Queues the record, at once and in call order; fills in volume, lineage, epoch and the
    // chains. settled_lsn in it is the caller's word, for which it answers. An error comes out of
    // wait(): fenced, io_error, invalid_argument (a gap in LSNs). A repeat of a record already
    // submitted, same LSN and content, succeeds without effect.
    virtual AppendTicket submit(format::Record record, Admission admission) = 0;
    // Resolves when the record is durable on every member. outcome_unknown: neither yes nor no.
    virtual Task<Result<void>> wait(AppendTicket ticket) = 0;
    // admit, lsn = next_lsn(), submit and wait. Gives the LSN.
    virtual Task<Result<Lsn>> append(format::Record record) = 0;

    // Data-like records <= drained_lsn and meta records <= meta_lsn are needed no more; of roots
    // the newest durable one stays. Never goes back. Takes effect as far as a durable seal or root
    // says the same, because a restart learns it from there.
    virtual void trim(Lsn drained_lsn, Lsn meta_lsn) = 0;

    // Bytes of the journal that this volume pins, and the most it may.
    virtual uint64_t retained_bytes() const = 0;
    // Of these, what only a checkpoint frees.
    virtual uint64_t retained_meta_bytes() const = 0;
    virtual uint64_t retained_bytes_max() const = 0;
    // The journal as a whole runs short: drain, even below one's own share.
    virtual bool is_short() const = 0;

    // Whether what was read of the volume may be answered: nobody else can have written it since.
    // Ask it after the data were fetched, with no suspension between this and the answer.
    virtual bool may_read() const { return true; }
    // Waits until may_read(), or says why not: fenced, or unavailable (a member is silent).
    virtual Task<Result<void>> renew_promises() { co_return Result<void>{}; }

    // Retained records became unreadable, and only the owner's memory still has what they said: as
    // long as this is so a restart loses it. A drain and then a checkpoint heal the log.
    virtual bool is_endangered() const = 0;
    // `tell` is called when that becomes true.
    virtual void watch_endangered(std::function<void()> tell) = 0;

    enum class Waiting : uint8_t {
        own,   // in this log's admit()
        node,  // and in those of others that wait for the same ring
    };
    // Who waits in admit() now gets `why` instead: nothing is coming that would free room.
    virtual void refuse_waiting(const Error& why, Waiting who) = 0;
};

struct RetainedVolume {
    VolumeId volume;
    LineageId lineage;
    Epoch fence;
    OpenToken token;
    Lsn last_lsn;
    uint64_t retained_bytes = 0;
    bool is_damaged = false;
    bool is_open = false;
};

struct JournalStats {
    media::RingStats ring;
    uint64_t volumes = 0;
    uint64_t reappended_records = 0;
    uint64_t reappended_bytes = 0;
    // Submit to durable: count per power-of-two microseconds: [i] counts 2^(i-1) <= us < 2^i,
    // [0] below 1 us.
    std::vector<uint64_t> append_latency_us;
};

// How far a check of a journal is, and what it found.
struct JournalScrub {
    uint64_t next = 0;  // where to go on; from the start at first
    uint64_t end = 0;   // beyond what was there when it began
    uint64_t bytes_checked = 0;
    std::vector<std::string> problems;  // each names device, offset, volume and LSN
};

class Journal {
  public:
    virtual ~Journal() = default;

    // Durably raises the volume's fence to request.epoch, then returns its log. Earlier logs of
    // the volume get `fenced` from then on. The outcome is in tail(): the caller decides what to
    // do with `unknown` (never: treat it as empty).
    // Errors: fenced (request.epoch is not above the fence), invalid_argument, io_error, busy.
    virtual Task<Result<std::unique_ptr<VolumeLog>>> open(OpenRequest request) = 0;
    // What to record in the control store after open().
    virtual Membership membership_for(OpenToken token) const = 0;
    // The volume is deleted: releases all it holds, durably. An open log gets `fenced`.
    // Does nothing when there is no such volume.
    virtual Task<Result<void>> drop(VolumeId volume) = 0;
    // Every volume this journal holds records of, opened or not.
    virtual std::vector<RetainedVolume> volumes() const = 0;
    // The highest epoch that the volume was ever opened with here; 0: no records of it.
    virtual Epoch fence_of(VolumeId volume) const = 0;
    virtual JournalStats stats() const = 0;
    // Reads back about `bytes` of retained records and checks them; false: all is checked. Open
    // logs that need what went bad become `endangered`.
    virtual Task<bool> scrub(JournalScrub& scrub, uint64_t bytes) = 0;
    // Stops background work; open logs get `stopping`. Waits.
    virtual Task<void> stop() = 0;
};

}  // namespace peplos::replica
