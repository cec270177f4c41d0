#pragma once

#include <algorithm>
#include <deque>
#include <optional>
#include <string>
#include <vector>

#include "replica/journal.h"
#include "runtime/sync.h"

// What a member keeps in memory of a volume's log. No I/O here.
namespace peplos::replica {

class LocalVolumeLog;

// A volume's part of a journal: what it retains and what was admitted for it. Who asks for more
// than the rest of the part waits in line.
class Share {
  public:
    explicit Share(uint64_t bytes_max) : bytes_max_(bytes_max) {}
    Share(const Share&) = delete;
    Share& operator=(const Share&) = delete;

    // On the stack of who waits. A core that shuts down destroys that stack first: it leaves the
    // line by itself.
    struct Waiter {
        uint64_t cost = 0;
        bool is_granted = false;
        std::optional<Error> refusal;  // why there will be no room; none: the log ends
        runtime::Event decided;
        std::deque<Waiter*>* line = nullptr;  // where it stands

        Waiter() = default;
        Waiter(const Waiter&) = delete;
        ~Waiter() {
            if (line != nullptr) std::erase(*line, this);
        }
        void decide() {
            line = nullptr;
            decided.set();
        }
    };

    uint64_t bytes_max() const { return bytes_max_; }
    uint64_t retained_bytes() const { return retained_bytes_; }
    bool has_room(uint64_t cost) const {
        // A single record always fits an empty part.
        uint64_t taken = retained_bytes_ + admitted_bytes_;
        return taken == 0 || taken + cost <= bytes_max_;
    }
    bool try_take(uint64_t cost) {
        if (!waiters_.empty() || !has_room(cost)) return false;
        admitted_bytes_ += cost;
        return true;
    }
    // Beyond the limit: for what must not wait.
    void take(uint64_t cost) { admitted_bytes_ += cost; }
    void wait_in_line(Waiter* waiter) {
        waiter->line = &waiters_;
        waiters_.push_back(waiter);
    }
    size_t waiting() const { return waiters_.size(); }
    void give_back(uint64_t cost) {
        CHECK(admitted_bytes_ >= cost);
        admitted_bytes_ -= cost;
        serve();
    }
    void retain(uint64_t bytes) { retained_bytes_ += bytes; }
    void release(uint64_t bytes) {
        CHECK(retained_bytes_ >= bytes);
        retained_bytes_ -= bytes;
        serve();
    }
    // Everybody in line is told that there will be no room.
    void refuse_all() {
        for (; !waiters_.empty(); waiters_.pop_front())
            waiters_.front()->decide();
    }
    void refuse_all(const Error& why) {
        for (Waiter* waiter : waiters_)
            waiter->refusal = why;
        refuse_all();
        refusal_ = why;
        ++refusals_;
    }
    // How often everybody was refused, and why the last time. Who was granted room before that and
    // runs only now goes on to wait for the ring, where nobody would refuse it any more.
    uint64_t refusals() const { return refusals_; }
    const Error& refusal() const {
        CHECK(refusal_);
        return *refusal_;
    }
    // Nobody refers to it: neither an admission nor a waiter.
    bool is_idle() const { return admitted_bytes_ == 0 && waiters_.empty(); }

  private:
    void serve() {
        while (!waiters_.empty() && has_room(waiters_.front()->cost)) {
            Waiter* waiter = waiters_.front();
            waiters_.pop_front();
            admitted_bytes_ += waiter->cost;
            waiter->is_granted = true;
            waiter->decide();
        }
    }

    const uint64_t bytes_max_;
    uint64_t retained_bytes_ = 0;
    uint64_t admitted_bytes_ = 0;
    std::deque<Waiter*> waiters_;
    uint64_t refusals_ = 0;
    std::optional<Error> refusal_;
};

// A durable record that is still needed.
struct Retained {
    Lsn lsn;
    Epoch epoch;
    format::RecordType type = format::RecordType::noop;
    bool is_good = true;  // false: it could not be read back when that was tried last
    uint32_t digest = 0;  // tells a repeat from another record with its LSN
    uint32_t bytes = 0;   // about what it takes of the ring
    uint32_t payload_bytes = 0;
    media::RecordPosition position;
};

// A root with what it says.
struct KeptRoot {
    Retained entry;
    format::RootBody body;
};
// What a seal or a root makes needless.
struct Trimming {
    Lsn lsn;  // of that record
    Lsn drained_lsn;
    Lsn meta_lsn;  // of a root
};
// What a `settle` record names.
struct Voiding {
    Lsn lsn;  // of that record
    std::vector<Lsn> voided;
};

// The limit of a span of a member's log that nothing cut off.
inline constexpr Lsn kNoLimit{UINT64_MAX};

// Told how each append of a member's log ended, in their order, from the ring's commit loop.
class AppendWatch {
  public:
    virtual void on_appended(Lsn lsn, const Result<void>& outcome) = 0;

  protected:
    ~AppendWatch() = default;
};

// Invariants: data and meta are sorted by LSN; every entry pins its place in the ring; last_lsn
// covers every entry.
//
// A member's log (`member` is there) may lose its last records again: those that its owner, or a
// claimer, could not bring to all members. So what a seal or a root makes needless is released
// only when that record itself cannot be undone any more, that is, when a durable record says that
// it was acknowledged (settled_lsn). Until then it is in `unsettled`.
struct VolumeState {
    VolumeState(VolumeId id, uint64_t share_bytes_max) : id(id), share(share_bytes_max) {}

    VolumeId id;
    LineageId lineage;
    Epoch fence;
    OpenToken token;           // of the newest open
    OpenToken recorded_token;  // what the control store knew then
    Lsn last_lsn;              // submitted
    Lsn last_data_lsn;
    Lsn last_meta_lsn;
    Lsn last_root_lsn;
    Lsn drained_lsn;  // as durable roots and seals say
    Lsn meta_lsn;     // as durable roots say
    Lsn settled_lsn;  // as durable records say
    std::vector<Lsn> voided;
    Lsn trimmed_drained_lsn;
    Lsn trimmed_meta_lsn;
    std::optional<format::RootBody> root_body;

    std::deque<Retained> data;
    std::deque<Retained> meta;
    uint64_t meta_bytes = 0;  // of `meta`
    uint64_t bad_count = 0;   // entries that are not good
    std::optional<Retained> root;
    std::deque<KeptRoot> older_roots;  // of a member's log: the newest settled one and what follows
    std::deque<Trimming> unsettled;    // of a member's log, ascending
    std::vector<Voiding> voidings;     // of a member's log: where `voided` comes from
    std::optional<Retained> fence_record;
    std::optional<Retained> damage_record;
    std::string damage;  // why the log cannot be trusted; empty: it can
    // What was lost while this process held the log lies at or below these. An owner that still has
    // it in memory heals the log: a root above them that covers it all.
    Lsn damage_lsn;
    Lsn damage_meta_lsn;

    // What the newest fence record says of a member's log, from when it was submitted. None: this
    // copy is the only one.
    std::optional<format::MemberBody> member;
    uint64_t open_number = 0;  // of the newest open
    uint64_t open_number_seen =
        0;                     // the highest of any record, also of an open that came to nothing
    bool is_replaced = false;  // by an open that is under way and keeps nothing
    bool is_noting = false;    // a record of what is released is under way
    AppendWatch* watch = nullptr;

    Share share;
    LocalVolumeLog* log = nullptr;  // the one that is not fenced
    uint32_t in_flight = 0;
    uint32_t replays = 0;  // that know the records by their places
    uint32_t uses = 0;     // calls that hold on to this object over a suspension
    bool is_dropped = false;
    runtime::Mutex opening;
    runtime::WaitList idle;  // in_flight or replays became 0

    // The entry of a durable record: by type and LSN. Null when it is needed no more.
    Retained* find(format::RecordType type, Lsn lsn);
    // Entries in LSN order, as a replay wants them.
    std::vector<const Retained*> in_order() const;
    uint64_t record_count() const { return data.size() + meta.size() + (root ? 1 : 0); }
};

// More LSNs than frames that nobody can read may have held, were they the whole ring and full of
// the smallest records: who goes on behind this meets none of them, should the device give them
// again.
constexpr uint64_t write_off_lsns(uint64_t ring_bytes) {
    constexpr uint64_t kLeast = 1 << 20;
    return std::max(kLeast, ring_bytes / format::kRecordHeaderBytes);
}

// What a record may take of a ring that runs short. Trims have a part of the reserve to themselves:
// a flood of them must not take what seals need to free space.
media::Urgency urgency_of(format::RecordType type);

// A record of that state: fence, root or damage.
format::Record state_record(const VolumeState& state, format::RecordType type,
                            format::RecordBody body);
// Tells records with one LSN apart (DESIGN section 5: idempotent on epoch, LSN, CRC).
uint32_t digest_of(const format::Record& record);
// What a retained record is counted with.
uint32_t retained_bytes_of(const format::Record& record);
Retained make_retained(const format::Record& record, media::RecordPosition position);

}  // namespace peplos::replica
