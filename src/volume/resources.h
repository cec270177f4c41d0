#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "base/limits.h"
#include "media/segment_store.h"
#include "replica/journal.h"
#include "replica/placement.h"
#include "runtime/env.h"
#include "runtime/sync.h"

namespace peplos::volume {

class Background;
class LeafCache;

// Bounds what all volumes of a node hold in RAM that is not drained yet. A write that finds no
// room waits while drains run.
class OverlayBudget {
  public:
    explicit OverlayBudget(uint64_t bytes = limits::kOverlayBytesDefault) : total_(bytes) {}
    bool try_take(uint64_t bytes) {
        if (used_ + bytes > total_) return false;
        used_ += bytes;
        return true;
    }
    // Recovery takes what the journal holds, even beyond the bound: it cannot wait.
    void take_regardless(uint64_t bytes) { used_ += bytes; }
    void give_back(uint64_t bytes) {
        CHECK(bytes <= used_);
        used_ -= bytes;
        room_.wake_all();
    }
    // Resolves when room may have come, or when wake() was called: look again.
    runtime::Task<void> wait() { return room_.wait(); }
    // For a waiter whose reason to wait may be gone (its volume stops or failed).
    void wake() { room_.wake_all(); }
    // A drain or a checkpoint, which would have made room, failed: waiters hear why.
    void note_failure(Error why) {
        ++failures_;
        failure_ = std::move(why);
        wake();
    }
    uint64_t failures() const { return failures_; }
    // Requires: failures() != 0. The newest.
    const Error& failure() const { return *failure_; }
    uint64_t total_bytes() const { return total_; }
    uint64_t used_bytes() const { return used_; }
    size_t waiting() const { return room_.count(); }

  private:
    uint64_t total_;
    uint64_t used_ = 0;
    uint64_t failures_ = 0;
    std::optional<Error> failure_;
    runtime::WaitList room_;
};

// Which part of the devices' free units is promised to data that is acknowledged but not drained.
//
// Invariant: promised units + the stores' reserves <= free units, at every promise. Relax it and
// acknowledged data cannot be drained: the node wedges full (DESIGN P7).
class SpaceBudget {
  public:
    explicit SpaceBudget(std::vector<media::SegmentStore*> stores) : stores_(std::move(stores)) {}
    void add_store(media::SegmentStore* store) { stores_.push_back(store); }
    const std::vector<media::SegmentStore*>& stores() const { return stores_; }
    // A device of this node that is not in service, by name; empty: none is missing. While one is,
    // a segment that no store has may be there.
    void note_missing(std::string device) { missing_ = std::move(device); }
    const std::string& missing() const { return missing_; }

    // Promises `units` more. False: the devices are full (up to the reserve).
    bool try_promise(uint64_t units);
    // Recovery promises what it found, whatever is free.
    void promise_regardless(uint64_t units) { promised_units_ += units; }
    void give_back(uint64_t units) {
        CHECK(units <= promised_units_);
        promised_units_ -= units;
    }
    uint64_t promised_units() const { return promised_units_; }
    uint64_t free_units() const;  // on all stores, the reserve included
    uint64_t total_units() const;
    uint64_t reserve_units() const;
    // What user data may still take: free - reserve - promised. Below 0 where cleaning and
    // checkpoints took of the reserve.
    int64_t headroom_units() const;
    // The same; 0 when there is less.
    uint64_t available_units() const;

  private:
    std::vector<media::SegmentStore*> stores_;
    std::string missing_;
    uint64_t promised_units_ = 0;
};

// What the volumes of one node share; it outlives them. Lives on the storage core.
//
//     volume::LeafCache cache(limits::kLeafCacheBytesDefault);
//     volume::OverlayBudget overlay;
//     volume::SpaceBudget space({&device->segments()});
//     volume::Resources resources{env, *journal, cache, overlay, space, &keeper};
struct Resources {
    runtime::Env env;
    replica::Journal& journal;  // of the home device
    LeafCache& leaf_cache;
    OverlayBudget& overlay;
    SpaceBudget& space;  // and through it the segment stores; new segments go to the emptiest
    // Null: volumes drain and checkpoint by themselves, and nothing is cleaned (tests, tools).
    Background* background = nullptr;
    // Null: every segment lies on this node alone.
    replica::Placement* placement = nullptr;
};

}  // namespace peplos::volume
