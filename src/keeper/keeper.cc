#include "keeper/keeper.h"

#include <algorithm>

#include "base/log.h"
#include "keeper/clean_policy.h"
#include "keeper/scrub.h"

namespace peplos::keeper {

using runtime::Task;
using volume::Pressure;
using volume::Volume;

namespace {

// What is moved when somebody waits for it. Nearly anything that gains.
constexpr double kShareToGain = 0.97;
// What a round gains before it lets the waiting writers go on, and how often it tries.
constexpr int64_t kUnitsPerRound = 8;
constexpr int kCleaningsPerRound = 16;
// See is_full().
constexpr uint64_t kFullShare = 50;
constexpr uint64_t kFullUnitsMin = 4;

}  // namespace

class Keeper::Busy {
  public:
    Busy(Keeper& keeper, EntryPtr entry) : keeper_(keeper), entry_(std::move(entry)) {
        ++entry_->busy;
    }
    Busy(const Busy&) = delete;
    ~Busy() {
        if (--entry_->busy == 0) keeper_.idle_.wake_all();
    }

  private:
    Keeper& keeper_;
    EntryPtr entry_;
};

Keeper::Keeper(runtime::Env env, KeeperOptions options) : env_(env), options_(options) {}

void Keeper::share(volume::OverlayBudget& overlay, volume::SpaceBudget& space,
                   volume::LeafCache& leaf_cache) {
    overlay_ = &overlay;
    space_ = &space;
    leaf_cache_ = &leaf_cache;
}

void Keeper::share_journal(replica::Journal& journal) {
    if (std::ranges::find(journals_, &journal) == journals_.end()) journals_.push_back(&journal);
}

Keeper::~Keeper() = default;

void Keeper::start() {
    gate_.spawn(env_.executor, drain_loop());
    gate_.spawn(env_.executor, upkeep_loop());
    gate_.spawn(env_.executor, tick_loop());
}

Task<void> Keeper::stop() {
    stopping_ = true;
    // Nothing drains any more: whoever waits for that hears so.
    const Error why = volume::background_stopped();
    if (overlay_ != nullptr) overlay_->note_failure(why);
    for (const EntryPtr& entry : entries_now())
        entry->volume->refuse_waiting(why);
    drain_work_.wake_all();
    upkeep_work_.wake_all();
    ++room_rounds_;
    room_gained_ = false;
    room_done_.wake_all();
    co_await gate_.close();
    entries_.clear();
    touched_.clear();
    drain_queue_.clear();
    upkeep_queue_.clear();
}

// ---- what volumes and fabric say ----

void Keeper::opened(Volume& volume) {
    // Nothing works behind it any more, and nobody says when it goes.
    if (stopping_) return;
    const volume::Resources& shared = volume.resources();
    if (space_ == nullptr) share(shared.overlay, shared.space, shared.leaf_cache);
    share_journal(shared.journal);
    auto entry = std::make_shared<Entry>();
    entry->volume = &volume;
    entries_[&volume] = entry;
    // What it said while it was being opened may be forgotten.
    queue_drain(entry);
}

Task<void> Keeper::closing(Volume& volume) {
    auto it = entries_.find(&volume);
    if (it == entries_.end()) co_return;
    EntryPtr entry = it->second;
    entry->closing = true;
    entries_.erase(it);
    touched_.erase(&volume);
    while (entry->busy != 0)
        co_await idle_.wait();
}

void Keeper::wants(Volume& volume) {
    auto it = entries_.find(&volume);
    if (stopping_ && overlay_ != nullptr) {
        overlay_->note_failure(volume::background_stopped());
        return;
    }
    if (it == entries_.end()) return;
    queue_drain(it->second);
    if (overlay_->waiting() != 0 || overlay_->used_bytes() * 2 > overlay_->total_bytes()) {
        queue_largest();
    }
}

void Keeper::queue_drain(const EntryPtr& entry) {
    if (entry->drain_queued || entry->closing) return;
    entry->drain_queued = true;
    drain_queue_.push_back(entry);
    drain_work_.wake_all();
}

void Keeper::queue_upkeep(const EntryPtr& entry) {
    if (entry->upkeep_queued || entry->closing) return;
    entry->upkeep_queued = true;
    upkeep_queue_.push_back(entry);
    upkeep_work_.wake_all();
}

// The volume of which `held` says most; none when it says 0 of each. Visits every open volume.
template <typename Held>
Keeper::EntryPtr Keeper::find_most(Held held) const {
    EntryPtr most;
    uint64_t bytes = 0;
    for (const auto& [volume, entry] : entries_) {
        uint64_t of_this = held(*volume);
        if (of_this > bytes) {
            bytes = of_this;
            most = entry;
        }
    }
    return most;
}

// Memory runs short: whoever holds most of it goes first.
void Keeper::queue_largest() {
    auto undrained = [](const Volume& volume) { return volume.stats().undrained_bytes; };
    if (EntryPtr largest = find_most(undrained)) queue_drain(largest);
}

// Changed map leaves take too much memory: whoever holds most of them goes first, idle or not.
void Keeper::queue_dirtiest(const EntryPtr& but) {
    auto dirty = [](const Volume& volume) { return volume.pressure().dirty_leaf_bytes; };
    EntryPtr dirtiest = find_most(dirty);
    if (dirtiest && dirtiest != but) queue_upkeep(dirtiest);
}

// The journal is full and somebody waits: idle volumes may hold the rest of it, and nothing else
// would ever make them drain. Those that hold most go first, until `bytes` come free. Visits every
// open volume, only then.
void Keeper::queue_journal_holders(uint64_t bytes) {
    std::vector<std::pair<uint64_t, EntryPtr>> holders;
    for (const auto& [volume, entry] : entries_) {
        Pressure pressure = volume->pressure();
        if (pressure.is_meta_heavy()) queue_upkeep(entry);
        if (pressure.undrained_bytes == 0 && pressure.undrained_extents == 0) continue;
        holders.emplace_back(pressure.retained_bytes, entry);
    }
    std::ranges::sort(holders, [](const auto& a, const auto& b) {
        return std::pair(b.first, a.second->volume->id().value) <
               std::pair(a.first, b.second->volume->id().value);
    });
    uint64_t covered = 0;
    for (const auto& [retained, entry] : holders) {
        if (covered >= bytes) break;
        covered += retained;
        entry->for_journal = true;
        queue_drain(entry);
    }
}

std::vector<Keeper::EntryPtr> Keeper::entries_now() const {
    std::vector<EntryPtr> out;
    out.reserve(entries_.size());
    for (const auto& [volume, entry] : entries_)
        out.push_back(entry);
    std::ranges::sort(out, {}, [](const EntryPtr& entry) { return entry->volume->id().value; });
    return out;
}

// ---- decisions ----

bool Keeper::drain_due(const Pressure& pressure) const {
    uint64_t bound = std::min(options_.drain_bytes, overlay_->total_bytes() / 4);
    if (pressure.undrained_bytes == 0 && pressure.undrained_extents == 0) return false;
    return pressure.undrained_bytes >= bound || pressure.is_endangered ||
           pressure.undrained_extents >= 4096 || pressure.writes_wait ||
           overlay_->used_bytes() * 2 > overlay_->total_bytes() ||
           pressure.retained_bytes * 2 > pressure.retained_bytes_max ||
           (pressure.journal_is_short && pressure.retained_bytes > kMiB);
}

bool Keeper::checkpoint_due(const Entry& entry, const Pressure& pressure) {
    if (pressure.is_endangered) return true;
    if (pressure.replay_records == 0) return false;
    return pressure.replay_bytes >= options_.replay_bytes_max ||
           pressure.replay_records >= options_.replay_records_max ||
           pressure.dirty_leaf_count >= options_.replay_leaves_max ||
           leaf_cache_->needs_checkpoint() || pressure.is_meta_heavy() ||
           (entry.touched && env_.clock.now() - entry.touched_at >= options_.checkpoint_interval);
}

double Keeper::fullness() const {
    uint64_t total = space_ == nullptr ? 0 : space_->total_units();
    if (total == 0) return 0;
    // What is promised to acknowledged data is as good as taken.
    uint64_t taken = total - space_->free_units() + space_->promised_units();
    return std::min(1.0, double(taken) / double(total));
}

bool Keeper::is_short_of_space() const {
    return 1.0 - fullness() < options_.free_share_min;
}

void Keeper::note(const char* what, const Volume& volume, const Error& error) {
    ++stats_.failures;
    stats_.last_failure_at = env_.clock.now();
    stats_.last_failure = fmt::format("{} of volume {}: {}", what, volume.id(), error.text());
    LOG_WARN("background work failed what={} volume={} why={}", what, volume.id(), error.text());
}

// ---- draining ----

Task<void> Keeper::drain_one(EntryPtr entry) {
    auto outcome = co_await entry->volume->drain();
    ++stats_.drains;
    if (!outcome) {
        note("drain", *entry->volume, outcome.error());
        co_return;
    }
    if (!entry->touched) {
        entry->touched = true;
        entry->touched_at = env_.clock.now();
        if (!entry->closing) touched_[entry->volume] = entry;
    }
    queue_upkeep(entry);
}

Task<void> Keeper::tend(EntryPtr entry) {
    Busy busy(*this, entry);
    Pressure pressure = entry->volume->pressure();
    bool for_journal = std::exchange(entry->for_journal, false);
    if (pressure.journal_is_short && pressure.writes_wait && !for_journal) {
        // Half of the journal: then moving the rest out of the way pays.
        queue_journal_holders(2 * pressure.retained_bytes_max);
    }
    bool holds_some = pressure.undrained_bytes != 0 || pressure.undrained_extents != 0;
    if (drain_due(pressure) || (for_journal && holds_some)) {
        co_await drain_one(entry);
    } else if (checkpoint_due(*entry, pressure)) {
        // Nothing to drain, and what is drained already fills the journal.
        queue_upkeep(entry);
    }
    // A failed drain must not keep those asleep who wait for its end.
    overlay_->wake();
}

Task<void> Keeper::drain_loop() {
    while (!stopping_) {
        if (drain_queue_.empty()) {
            co_await drain_work_.wait();
            continue;
        }
        EntryPtr entry = std::move(drain_queue_.front());
        drain_queue_.pop_front();
        entry->drain_queued = false;
        if (!entry->closing) co_await tend(entry);
        co_await runtime::yield();
    }
}

// ---- upkeep ----

Task<void> Keeper::checkpoint_one(EntryPtr entry) {
    auto outcome = co_await entry->volume->checkpoint();
    ++stats_.checkpoints;
    if (!outcome) {
        note("checkpoint", *entry->volume, outcome.error());
        co_return;
    }
    entry->touched = false;
    touched_.erase(entry->volume);
}

Task<void> Keeper::release_dead(EntryPtr entry) {
    auto removed = co_await entry->volume->remove_dead();
    if (!removed) note("removal", *entry->volume, removed.error());
}

Task<void> Keeper::upkeep(EntryPtr entry) {
    Busy busy(*this, entry);
    if (leaf_cache_->needs_checkpoint()) queue_dirtiest(entry);
    if (checkpoint_due(*entry, entry->volume->pressure())) {
        co_await checkpoint_one(entry);
    } else {
        co_await release_dead(entry);
    }
}

// What a checkpoint gains: what died young goes only with a root that covers its seal.
struct Keeper::Checkpointable {
    EntryPtr entry;
    double gain = 0;  // units per MiB to write
};

// One step that gains units: a cleaning on the volume that gains most, or a checkpoint where that
// costs less.
Task<Keeper::Cleaning> Keeper::clean_some(double share_max, uint32_t halvings) {
    EntryPtr best_entry;
    CleanChoice best;
    Checkpointable root;
    // The last units belong to checkpoints: without them nothing that dies is ever removed.
    uint64_t free = space_->free_units();
    uint64_t kept = 4 + 2 * div_up(leaf_cache_->dirty_bytes(), kMiB);
    if (free <= kept) co_return Cleaning::nothing;
    uint64_t output_units_max = std::max<uint64_t>(1, (free - kept) >> halvings);
    std::vector<EntryPtr> entries = entries_now();
    for (const EntryPtr& entry : entries) {
        if (entry->volume->faulted().has_value()) continue;
        std::vector<volume::SegmentView> segments = entry->volume->segments();
        std::optional<CleanChoice> choice = choose_segments(segments, share_max, output_units_max);
        if (choice && choice->gained_units > best.gained_units) {
            best = std::move(*choice);
            best_entry = entry;
        }
        double mib = 1 + double(entry->volume->pressure().dirty_leaf_bytes) / kMiB;
        double gain = double(dead_units(segments)) / mib;
        if (gain > root.gain) root = {entry, gain};
    }
    // Neither closes meanwhile.
    std::optional<Busy> busy_best;
    if (best_entry) busy_best.emplace(*this, best_entry);
    double moved_mib = 1 + double(best.live_blocks * kBlockBytes) / kMiB;
    if (root.entry && root.gain >= double(best.gained_units) / moved_mib) {
        Busy busy(*this, root.entry);
        co_await release_dead(root.entry);
        if (space_->free_units() <= free) co_await checkpoint_one(root.entry);
        if (space_->free_units() > free) co_return Cleaning::moved;
    }
    if (!best_entry) co_return Cleaning::nothing;
    std::vector<uint32_t> indexes = std::move(best.segments);
    auto moved = co_await best_entry->volume->relocate(std::move(indexes), best.lifetime_class);
    ++stats_.cleanings;
    if (!moved) {
        // A drain was quicker to take the units: the next round chooses by what is left.
        bool is_short = moved.error().code() == Code::no_space;
        if (!is_short) note("cleaning", *best_entry->volume, moved.error());
        co_return is_short ? Cleaning::short_of_room : Cleaning::nothing;
    }
    co_await release_dead(best_entry);
    co_return Cleaning::moved;
}

uint64_t Keeper::reclaimable() const {
    uint64_t units = 0;
    for (const auto& [volume, entry] : entries_) {
        if (entry->closing || volume->faulted().has_value()) continue;
        std::vector<volume::SegmentView> segments = volume->segments();
        units += reclaimable_units(segments, kShareToGain);
    }
    return units;
}

// Below this much that is free for user data or dead the devices are full. The nearer to it, the
// more must be moved for every unit gained: at this share some fifty units.
bool Keeper::is_full() const {
    uint64_t margin = std::max(kFullUnitsMin, space_->total_units() / kFullShare);
    return space_->headroom_units() + static_cast<int64_t>(reclaimable()) <
           static_cast<int64_t>(margin);
}

// Cleans until `headroom` units are free for user data. False: nothing was gained.
Task<bool> Keeper::clean_until(int64_t headroom) {
    bool is_gained = false;
    uint32_t halvings = 0;
    for (int i = 0; i < kCleaningsPerRound && !stopping_; ++i) {
        if (space_->headroom_units() >= headroom || is_full()) break;
        Cleaning cleaning = co_await clean_some(kShareToGain, halvings);
        if (cleaning == Cleaning::nothing) break;
        if (cleaning == Cleaning::short_of_room) ++halvings;
        is_gained |= cleaning == Cleaning::moved;
    }
    co_return is_gained;
}

// Somebody waits for space: everything that may gain units, in the order of its cost. Cleaning that
// moved something has gained, even where a checkpoint or another writer took it at once: as long as
// the devices are not full by is_full(), the next round gains more.
Task<void> Keeper::room_round() {
    const int64_t before = std::max<int64_t>(space_->headroom_units(), 0);
    const int64_t goal = before + kUnitsPerRound;
    std::vector<EntryPtr> entries = entries_now();
    for (const EntryPtr& entry : entries) {
        if (entry->closing || entry->volume->faulted().has_value()) continue;
        Busy busy(*this, entry);
        co_await release_dead(entry);
    }
    bool is_gained = co_await clean_until(goal);
    if (space_->headroom_units() <= before) {
        for (const EntryPtr& entry : entries) {
            if (entry->closing || entry->volume->faulted().has_value()) continue;
            Busy busy(*this, entry);
            Pressure pressure = entry->volume->pressure();
            if (pressure.undrained_bytes != 0 || pressure.undrained_extents != 0) {
                co_await drain_one(entry);
            }
            if (entry->volume->pressure().replay_records != 0) co_await checkpoint_one(entry);
        }
        is_gained |= co_await clean_until(goal);
    }
    room_gained_ = is_gained || space_->headroom_units() > before;
    ++room_rounds_;
    room_done_.wake_all();
}

Task<bool> Keeper::make_room() {
    if (stopping_ || space_ == nullptr) co_return false;
    ++room_waiting_;
    uint64_t round = room_rounds_;
    upkeep_work_.wake_all();
    while (room_rounds_ == round)
        co_await room_done_.wait();
    --room_waiting_;
    co_return room_gained_;
}

Task<void> Keeper::upkeep_loop() {
    while (!stopping_) {
        // A round gains by itself; what else is due, checkpoints above all, gets its turn between.
        bool is_awaited = room_waiting_ != 0;
        if (is_awaited) co_await room_round();
        if (!upkeep_queue_.empty()) {
            EntryPtr entry = std::move(upkeep_queue_.front());
            upkeep_queue_.pop_front();
            entry->upkeep_queued = false;
            clean_wanted_ = true;
            if (!entry->closing) co_await upkeep(entry);
        } else if (is_awaited) {
            clean_wanted_ = true;
        } else if (clean_wanted_ && is_short_of_space()) {
            Time start = env_.clock.now();
            Cleaning cleaning = co_await clean_some(live_share_max(fullness()));
            clean_wanted_ = cleaning == Cleaning::moved;
            Duration took = env_.clock.now() - start;
            // The fuller, the less it rests; foreground I/O has the device meanwhile.
            if (fullness() < 0.8 && !stopping_) co_await env_.clock.sleep_for(took * 2);
        } else {
            co_await upkeep_work_.wait();
        }
        co_await runtime::yield();
    }
}

Task<void> Keeper::tick_loop() {
    while (!stopping_) {
        co_await env_.clock.sleep_for(options_.tick);
        if (stopping_) break;
        Time now = env_.clock.now();
        for (const auto& [volume, entry] : touched_) {
            if (now - entry->touched_at >= options_.checkpoint_interval) queue_upkeep(entry);
        }
        bool is_idle = drain_queue_.empty() && upkeep_queue_.empty() && room_waiting_ == 0;
        if (!is_idle || options_.prezero_bytes == 0 || space_ == nullptr) continue;
        std::vector<media::SegmentStore*> stores = space_->stores();
        for (media::SegmentStore* store : stores) {
            if (store->space().unwritten_units == 0) continue;
            auto zeroed = co_await store->prezero(options_.prezero_bytes);
            if (!zeroed) LOG_WARN("zeroing ahead failed why={}", zeroed.error().text());
        }
    }
}

// ---- scrub ----

Result<void> Keeper::start_scrub() {
    if (scrub_.running) return fail(Code::busy, "a scrub runs already; see its report");
    if (stopping_) return fail(Code::stopping, "the node is stopping");
    if (space_ == nullptr) {
        return fail(Code::unavailable, "no device is known yet; open a volume first");
    }
    scrub_ = ScrubReport{};
    scrub_.running = true;
    gate_.spawn(env_.executor, scrub_all());
    return {};
}

Task<void> Keeper::scrub_volume(EntryPtr entry) {
    Busy busy(*this, entry);
    std::vector<volume::SegmentView> segments = entry->volume->segments();
    for (const volume::SegmentView& segment : segments) {
        if (entry->closing || stopping_) co_return;
        auto result = co_await entry->volume->scrub(segment.index);
        ++scrub_.segments_done;
        if (!result) {
            scrub_.problems.push_back(result.error().text());
            continue;
        }
        scrub_.bytes_checked += result->bytes_checked;
        for (std::string& problem : result->problems)
            scrub_.problems.push_back(problem);
        for (std::string& problem : result->repaired)
            scrub_.repaired.push_back(problem);
        co_await pace_scrub(result->bytes_checked);
    }
}

// Of a volume that is not open here: each copy is checked by the node that has it.
Task<void> Keeper::scrub_other(media::SegmentStore& store, SegmentId id) {
    const media::SegmentPin pin = store.find(id);
    if (!pin) co_return;
    const media::SegmentInfo info = pin.info();
    const size_t known = scrub_.problems.size();
    co_await scrub_unopened(store, id, scrub_);
    if (scrub_.problems.size() == known || !info.group || copies_ == nullptr) co_return;
    const replica::SegmentCopy copy{info.id, info.lineage, info.group, info.kind, info.unit_count};
    auto mended = co_await copies_->mend(info.volume, info.lineage, copy);
    if (!mended) scrub_.problems.push_back(mended.error().message());
    if (!mended || !*mended) co_return;
    auto found = scrub_.problems.begin() + static_cast<ptrdiff_t>(known);
    scrub_.repaired.insert(scrub_.repaired.end(), found, scrub_.problems.end());
    scrub_.problems.erase(found, scrub_.problems.end());
}

Task<void> Keeper::pace_scrub(uint64_t bytes) {
    auto pause = std::chrono::nanoseconds(bytes * 1'000'000'000 / options_.scrub_bytes_per_second);
    co_await env_.clock.sleep_for(std::min<Duration>(pause, std::chrono::milliseconds(200)));
}

Task<void> Keeper::scrub_journals() {
    std::vector<replica::Journal*> journals = journals_;
    for (replica::Journal* journal : journals) {
        replica::JournalScrub scrub;
        bool is_more = true;
        while (is_more && !stopping_) {
            uint64_t before = scrub.bytes_checked;
            is_more = co_await journal->scrub(scrub, kMiB);
            scrub_.bytes_checked += scrub.bytes_checked - before;
            if (is_more) co_await pace_scrub(scrub.bytes_checked - before);
        }
        for (std::string& problem : scrub.problems)
            scrub_.problems.push_back(std::move(problem));
    }
}

Task<void> Keeper::scrub_all() {
    std::vector<EntryPtr> entries = entries_now();
    std::unordered_map<VolumeId, bool> is_open;
    for (const EntryPtr& entry : entries)
        is_open[entry->volume->id()] = true;
    std::vector<media::SegmentStore*> stores = space_->stores();
    std::vector<std::pair<media::SegmentStore*, SegmentId>> others;
    for (media::SegmentStore* store : stores) {
        for (const media::SegmentInfo& info : store->list()) {
            if (!is_open.contains(info.volume)) others.emplace_back(store, info.id);
        }
    }
    scrub_.segments_total = others.size();
    for (const EntryPtr& entry : entries)
        scrub_.segments_total += entry->volume->segments().size();
    for (const EntryPtr& entry : entries) {
        if (!entry->closing) co_await scrub_volume(entry);
    }
    for (auto& [store, id] : others) {
        if (stopping_) break;
        uint64_t before = scrub_.bytes_checked;
        co_await scrub_other(*store, id);
        ++scrub_.segments_done;
        co_await pace_scrub(scrub_.bytes_checked - before);
    }
    co_await scrub_journals();
    scrub_.running = false;
    scrub_.finished_at = env_.clock.wall_now();
}

}  // namespace peplos::keeper
