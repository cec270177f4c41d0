#pragma once

#include <deque>
#include <memory>
#include <string>
#include <unordered_map>
#include <vector>

#include "replica/segment_service.h"
#include "runtime/env.h"
#include "runtime/gate.h"
#include "volume/background.h"
#include "volume/leaf_cache.h"
#include "volume/resources.h"
#include "volume/volume.h"

namespace peplos::keeper {

struct KeeperOptions {
    // Undrained data of a volume from which on it is drained.
    uint64_t drain_bytes = limits::kSegmentBytesMax;
    // What a restart may have to re-read before a checkpoint is due.
    uint64_t replay_bytes_max = 2 * kGiB;
    uint64_t replay_records_max = 2048;
    // Map leaves that it may have to read for that.
    uint64_t replay_leaves_max = 32'768;
    Duration checkpoint_interval = std::chrono::minutes(10);
    // The one timer of the node; it does nothing for idle volumes.
    Duration tick = std::chrono::milliseconds(500);
    // Cleaning begins when less than this share of the units is free.
    double free_share_min = 0.25;
    // Scrub rate.
    uint64_t scrub_bytes_per_second = 50 * kMiB;
    // Per tick in which nothing else is to do; 0: none.
    uint64_t prezero_bytes = 8 * kMiB;
};

struct ScrubReport {
    bool running = false;
    uint64_t segments_done = 0;
    uint64_t segments_total = 0;
    uint64_t bytes_checked = 0;
    std::vector<std::string> problems;  // each names device, offset, volume, and segment or frame
    // What was wrong with copies that have been made anew out of another node's.
    std::vector<std::string> repaired;
    WallTime finished_at{};
};

struct KeeperStats {
    uint64_t drains = 0;
    uint64_t checkpoints = 0;
    uint64_t cleanings = 0;
    uint64_t failures = 0;
    std::string last_failure;
    Time last_failure_at{};
};

// Everything that works behind the volumes of one node: drains, checkpoints, removal, cleaning,
// scrub, zeroing ahead.
//
// Invariants
//   1. At most one drain and one upkeep step run on the node; foreground I/O gets in between.
//   2. Volumes that nothing asked for cost nothing: no timers, no scans.
//   3. After closing(volume) has resolved nothing here touches the volume.
//
// Two loops, each woken by wants(): one drains, the other does the rest, so that a long cleaning
// never holds up the drain that writers wait for. Lives on the storage core.
class Keeper final : public volume::Background {
  public:
    // What the volumes share is learnt from the first that is opened, or from share().
    explicit Keeper(runtime::Env env, KeeperOptions options = {});
    ~Keeper() override;

    void start();
    // The budgets and devices of the node: for scrub and zeroing ahead before any volume is open.
    void share(volume::OverlayBudget& overlay, volume::SpaceBudget& space,
               volume::LeafCache& leaf_cache);
    // The journals of the node, for scrub; those of open volumes are known without.
    void share_journal(replica::Journal& journal);
    // Scrub makes this node's bad copies anew out of other nodes', also those of volumes that are
    // not open here. It outlives the keeper.
    void share_copies(replica::SegmentService& copies) { copies_ = &copies; }
    // Ends within a step and a tick. Volumes still open, and those opened later, are forgotten.
    runtime::Task<void> stop() override;
    bool is_stopped() const override { return stopping_; }

    void opened(volume::Volume& volume) override;
    runtime::Task<void> closing(volume::Volume& volume) override;
    void wants(volume::Volume& volume) override;
    runtime::Task<bool> make_room() override;

    // Checks every segment of the node in the background. Errors: busy (one runs).
    Result<void> start_scrub();
    const ScrubReport& scrub_report() const { return scrub_; }
    const KeeperStats& stats() const { return stats_; }

  private:
    struct Entry {
        volume::Volume* volume;
        bool drain_queued = false;
        bool for_journal = false;  // somebody else waits for the room that it holds in the journal
        bool upkeep_queued = false;
        bool closing = false;
        uint32_t busy = 0;
        bool touched = false;  // something happened since the last checkpoint
        Time touched_at{};
    };
    using EntryPtr = std::shared_ptr<Entry>;
    // Keeps an entry from being forgotten during a step.
    class Busy;

    runtime::Task<void> drain_loop();
    runtime::Task<void> upkeep_loop();
    runtime::Task<void> tick_loop();
    runtime::Task<void> tend(EntryPtr entry);
    runtime::Task<void> upkeep(EntryPtr entry);
    enum class Cleaning : uint8_t {
        moved,          // units were gained, or will be once removed
        short_of_room,  // what it chose needs more units than there are
        nothing,        // nothing can be gained
    };
    // Each halving halves what it may choose.
    runtime::Task<Cleaning> clean_some(double share_max, uint32_t halvings = 0);
    struct Checkpointable;
    runtime::Task<void> room_round();
    runtime::Task<bool> clean_until(int64_t headroom);
    uint64_t reclaimable() const;
    bool is_full() const;
    runtime::Task<void> release_dead(EntryPtr entry);
    runtime::Task<void> drain_one(EntryPtr entry);
    runtime::Task<void> checkpoint_one(EntryPtr entry);
    runtime::Task<void> scrub_all();
    runtime::Task<void> scrub_volume(EntryPtr entry);
    runtime::Task<void> scrub_other(media::SegmentStore& store, SegmentId id);
    runtime::Task<void> scrub_journals();
    runtime::Task<void> pace_scrub(uint64_t bytes);
    bool drain_due(const volume::Pressure& pressure) const;
    bool checkpoint_due(const Entry& entry, const volume::Pressure& pressure);
    bool is_short_of_space() const;
    double fullness() const;
    void queue_drain(const EntryPtr& entry);
    void queue_upkeep(const EntryPtr& entry);
    template <typename Held>
    EntryPtr find_most(Held held) const;
    void queue_largest();
    void queue_dirtiest(const EntryPtr& but);
    void queue_journal_holders(uint64_t bytes);
    void note(const char* what, const volume::Volume& volume, const Error& error);
    std::vector<EntryPtr> entries_now() const;

    runtime::Env env_;
    const KeeperOptions options_;
    volume::OverlayBudget* overlay_ = nullptr;
    volume::SpaceBudget* space_ = nullptr;
    volume::LeafCache* leaf_cache_ = nullptr;
    replica::SegmentService* copies_ = nullptr;
    std::vector<replica::Journal*> journals_;
    std::unordered_map<volume::Volume*, EntryPtr> entries_;
    std::unordered_map<volume::Volume*, EntryPtr> touched_;
    std::deque<EntryPtr> drain_queue_;
    std::deque<EntryPtr> upkeep_queue_;
    runtime::WaitList drain_work_;
    runtime::WaitList upkeep_work_;
    runtime::WaitList idle_;
    runtime::WaitList room_done_;
    uint64_t room_waiting_ = 0;
    uint64_t room_rounds_ = 0;
    bool room_gained_ = false;
    bool clean_wanted_ = false;
    bool stopping_ = false;
    ScrubReport scrub_;
    KeeperStats stats_;
    runtime::Gate gate_;
};

}  // namespace peplos::keeper
