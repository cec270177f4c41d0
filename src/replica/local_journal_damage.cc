#include <algorithm>
#include <map>

#include "base/fault.h"
#include "base/log.h"
#include "replica/local_journal.h"

// What cannot be read back: whose it was, who still knows it, and what becomes of it.
namespace peplos::replica {

using format::Record;
using format::RecordType;
using media::RecordPosition;

namespace {

// A device may fail or garble a read and give the same bytes right the next time.
constexpr int kReadAttempts = 3;
// How long an owner that has in memory what became unreadable gets to drain it, before the ring's
// tail passes over it.
constexpr Duration kOwnerPatience = std::chrono::seconds(10);
constexpr Duration kLookAgainAfter = std::chrono::seconds(1);

}  // namespace

Task<Result<std::vector<media::Ring::FrameRecord>>> LocalJournal::read_patiently(
    uint64_t sequence) {
    auto frame = co_await ring_.read_frame(sequence);
    for (int attempt = 1; attempt < kReadAttempts; ++attempt) {
        bool is_good = frame && std::ranges::all_of(*frame, [](const auto& found) {
                           return found.payload_is_good;
                       });
        if (is_good || stopping_ || ring_.tail_sequence() > sequence) break;
        PROBE("replica.log.read_again");
        frame = co_await ring_.read_frame(sequence);
    }
    co_return frame;
}

// Of an open log: its owner still has what these records say, and is told to drain it. Nothing of
// this is durable: whether they can be read is seen anew at the next start.
bool LocalJournal::mark_bad(VolumeState& state, const IsLost& is_lost) {
    if (state.log == nullptr || state.is_dropped) return false;
    bool is_hurt = false;
    for (std::deque<Retained>* entries : {&state.data, &state.meta}) {
        for (Retained& entry : *entries) {
            if (!is_lost(entry)) continue;
            is_hurt = true;
            if (!entry.is_good) continue;
            entry.is_good = false;
            ++state.bad_count;
        }
    }
    if (is_hurt && state.log->endangered_) state.log->endangered_();
    return is_hurt;
}

bool LocalJournal::is_left_to_owner(uint64_t sequence) const {
    return suspect_.sequence == sequence && env_.clock.now() < suspect_.look_again;
}

// Whether the frame stays where it is until a drain, which is about to come, makes it needless.
bool LocalJournal::leave_to_owner(uint64_t sequence, const IsLost& is_lost) {
    bool is_hurt = false;
    for (const auto& [id, state] : volumes_)
        is_hurt |= mark_bad(*state, is_lost);
    if (!is_hurt) return false;
    Time now = env_.clock.now();
    if (suspect_.sequence != sequence) suspect_ = {sequence, now, now};
    if (now - suspect_.since >= kOwnerPatience) return false;
    PROBE("replica.log.left_to_owner");
    suspect_.look_again = now + kLookAgainAfter;
    if (!is_looking_again_) {
        is_looking_again_ = true;
        gate_.spawn(env_.executor, look_again_later());
    }
    return true;
}

Task<void> LocalJournal::look_again_later() {
    co_await look_again_soon_.wait(env_.clock, kLookAgainAfter);
    is_looking_again_ = false;
    ring_.nudge();
}

// Whether this device, as it is formatted now, was the one that the acknowledgements were given on.
bool LocalJournal::is_known_here(const OpenRequest& request) const {
    return request.recorded && request.recorded->incarnation == device_.incarnation();
}

// The log goes on behind everything that may have been lost, and stays damaged until a root says
// that everything up to there is covered.
Task<Result<void>> LocalJournal::write_off(VolumeState& state, std::string reason) {
    PROBE("replica.log.written_off");
    const Lsn end(state.last_lsn.value + write_off_lsns(ring_.ring_bytes()));
    LOG_WARN("journal's loss is accepted volume={} last_lsn={} goes_on_behind={} reason=\"{}\"",
             state.id, state.last_lsn, end, reason);
    CO_TRY(co_await write_damage(state, end, 0));
    if (state.damage.empty()) state.damage = std::move(reason);
    state.last_lsn = state.damage_lsn = end;
    co_return Result<void>{};
}

// Frames between the oldest needed record and the newest are never overwritten, needed or not.
Task<Result<std::vector<Record>>> LocalVolumeLog::find_drained() {
    CO_TRY(check());
    CO_TRY_ASSIGN(runtime::Gate::Pass pass, journal_->gate_.enter());
    std::map<Lsn, Record> found;
    const uint64_t end = journal_->ring_.newest_sequence() + 1;
    for (uint64_t sequence = journal_->ring_.tail_sequence(); sequence < end; ++sequence) {
        if (sequence < journal_->ring_.tail_sequence()) continue;
        auto frame = co_await journal_->ring_.read_frame(sequence);
        CO_TRY(check());
        if (!frame) continue;
        for (media::Ring::FrameRecord& one : *frame) {
            Record& record = one.record;
            if (record.volume != volume_ || !format::is_data(record.type)) continue;
            record.payload.clear();
            auto [place, is_new] = found.try_emplace(record.lsn, record);
            if (!is_new && place->second.epoch < record.epoch) place->second = std::move(record);
        }
    }
    std::vector<Record> out;
    out.reserve(found.size());
    for (auto& [lsn, record] : found)
        out.push_back(std::move(record));
    co_return out;
}

// What went bad while it lay there is let go. What memory still knows is written anew. Whoever else
// needs it is damaged, and says so durably before.
Task<Result<void>> LocalJournal::give_up(uint64_t sequence, IsLost is_lost) {
    std::vector<VolumeState*> hurt;
    std::deque<Use> uses;
    for (const auto& [id, state] : volumes_) {
        if (state->is_dropped) continue;
        bool is_hurt =
            std::ranges::any_of(state->data, is_lost) || std::ranges::any_of(state->meta, is_lost);
        for (const auto* single : {&state->root, &state->fence_record, &state->damage_record})
            is_hurt = is_hurt || (*single && is_lost(**single));
        for (const KeptRoot& older : state->older_roots)
            is_hurt = is_hurt || is_lost(older.entry);
        if (!is_hurt) continue;
        hurt.push_back(state.get());
        uses.emplace_back(this, *state);
    }
    for (VolumeState* state : hurt) {
        CO_TRY(co_await rewrite_states(*state, is_lost));
        bool is_damaged =
            std::ranges::any_of(state->data, is_lost) || std::ranges::any_of(state->meta, is_lost);
        if (is_damaged && !state->is_dropped)
            CO_TRY(co_await mark_damaged(*state, sequence, is_lost));
    }
    co_return Result<void>{};
}

// Fence, root and damage are known in memory.
Task<Result<void>> LocalJournal::rewrite_states(VolumeState& state, const IsLost& is_lost) {
    for (std::optional<Retained>* single :
         {&state.fence_record, &state.root, &state.damage_record}) {
        if (state.is_dropped || !*single || !is_lost(**single)) continue;
        PROBE("replica.log.rewrite");
        const Retained old = **single;
        Record record = state_record(state, old.type, {});
        record.epoch = old.epoch;
        record.lsn = old.lsn;
        // It is as old as it was: it cannot speak of what came later.
        if (format::has_lsn(old.type)) {
            record.settled_lsn = std::min(record.settled_lsn, old.lsn);
        }
        if (old.type == RecordType::fence) {
            record.body = fence_body(state);
        } else if (old.type == RecordType::root) {
            record.body = *state.root_body;
        } else {
            record.body = format::DamageBody{std::max(state.damage_lsn, state.last_lsn), 0};
        }
        Retained entry = make_retained(record, {});
        CO_TRY_ASSIGN(entry.position,
                      co_await append_state(state, std::move(record), media::Urgency::tail));
        // A newer one may have come meanwhile: then this is needless.
        bool is_newest = !state.is_dropped && *single && (*single)->position == old.position;
        if (is_newest) {
            hold(state, entry);
        } else {
            ring_.release(entry.position);
        }
    }
    co_return co_await rewrite_older_roots(state, is_lost);
}

Task<Result<void>> LocalJournal::rewrite_older_roots(VolumeState& state, const IsLost& is_lost) {
    std::vector<KeptRoot> lost;
    for (const KeptRoot& older : state.older_roots) {
        if (is_lost(older.entry)) lost.push_back(older);
    }
    for (KeptRoot& older : lost) {
        Record record = state_record(state, RecordType::root, older.body);
        record.epoch = older.entry.epoch;
        record.lsn = older.entry.lsn;
        record.settled_lsn = std::min(record.settled_lsn, record.lsn);
        RecordPosition old = older.entry.position;
        CO_TRY_ASSIGN(RecordPosition now,
                      co_await append_state(state, std::move(record), media::Urgency::tail));
        Retained* entry =
            state.is_dropped ? nullptr : state.find(RecordType::root, older.entry.lsn);
        bool is_needed = entry != nullptr && entry->position == old;
        ring_.release(is_needed ? old : now);
        if (is_needed) entry->position = now;
    }
    co_return Result<void>{};
}

Task<Result<void>> LocalJournal::mark_damaged(VolumeState& state, uint64_t sequence,
                                              const IsLost& is_lost) {
    PROBE("replica.log.damaged_late");
    const uint64_t device_offset = ring_.device_offset_of({sequence, 0, 0});
    state.damage_lsn = std::max(state.damage_lsn, state.last_lsn);
    for (const Retained& entry : state.meta) {
        if (is_lost(entry)) state.damage_meta_lsn = std::max(state.damage_meta_lsn, entry.lsn);
    }
    state.damage = fmt::format(
        "{} at offset {}: volume {}: journal frame {} with records up to LSN {} became unreadable",
        device_.name(), device_offset, state.id, sequence, state.last_lsn);
    LOG_ERROR("journal damaged volume={} reason=\"{}\"", state.id, state.damage);
    CO_TRY(co_await write_damage(state, state.damage_lsn, device_offset));
    if (state.is_dropped) co_return Result<void>{};
    auto release_lost = [&](std::deque<Retained>& entries) {
        std::erase_if(entries, [&](const Retained& entry) {
            if (!is_lost(entry)) return false;
            let_go(state, entry);
            return true;
        });
    };
    release_lost(state.data);
    release_lost(state.meta);
    if (state.log != nullptr && state.log->endangered_) state.log->endangered_();
    co_return Result<void>{};
}

// The owner still had in memory what was lost, and a root says that it is in segments now.
// LogRecovery decides the same from the records alone.
void LocalJournal::heal(VolumeState& state, const Record& record, const format::RootBody& root) {
    bool is_healed = state.damage_lsn && record.lsn > state.damage_lsn &&
                     root.drained_lsn >= state.damage_lsn && root.meta_lsn >= state.damage_meta_lsn;
    if (!is_healed) return;
    PROBE("replica.log.healed");
    LOG_INFO("journal healed volume={} device={}", state.id, device_.name());
    state.damage.clear();
    state.damage_lsn = state.damage_meta_lsn = Lsn(0);
    if (state.damage_record) let_go(state, *state.damage_record);
    state.damage_record.reset();
}

// ---- scrub ----

Task<bool> LocalJournal::scrub(JournalScrub& scrub, uint64_t bytes) {
    auto pass = gate_.enter();
    if (!pass || device_.is_failed()) co_return false;
    if (scrub.end == 0) scrub.end = ring_.newest_sequence() + 1;
    uint64_t stop_at = scrub.bytes_checked + bytes;
    while (scrub.bytes_checked < stop_at) {
        scrub.next = std::max(scrub.next, ring_.tail_sequence());
        if (scrub.next >= scrub.end || stopping_ || device_.is_failed()) co_return false;
        co_await scrub_frame(scrub.next, scrub);
        ++scrub.next;
    }
    co_return true;
}

Task<void> LocalJournal::scrub_frame(uint64_t sequence, JournalScrub& scrub) {
    const uint64_t device_offset = ring_.device_offset_of({sequence, 0, 0});
    auto frame = co_await read_patiently(sequence);
    auto problem = [&](const VolumeState& state, Lsn lsn) {
        scrub.problems.push_back(
            fmt::format("{} at offset {}: volume {}: journal frame {}: the record at LSN {} cannot "
                        "be read back{}",
                        device_.name(), device_offset, state.id, sequence, lsn,
                        state.log == nullptr ? "" : "; what it says is drained from memory now"));
    };
    std::vector<RecordPosition> bad;
    if (frame) {
        for (const media::Ring::FrameRecord& found : *frame) {
            scrub.bytes_checked += retained_bytes_of(found.record);
            if (found.payload_is_good) continue;
            const VolumeState* state = find_needed(found);
            if (state == nullptr) continue;
            problem(*state, found.record.lsn);
            bad.push_back(found.position);
        }
    } else {
        scrub.bytes_checked += kBlockBytes;
        for (const auto& [id, state] : volumes_) {
            auto look = [&](const Retained& entry) {
                if (entry.position.frame_sequence != sequence || state->is_dropped) return;
                problem(*state, entry.lsn);
                bad.push_back(entry.position);
            };
            std::ranges::for_each(state->data, look);
            std::ranges::for_each(state->meta, look);
            for (const auto* single : {&state->root, &state->fence_record, &state->damage_record}) {
                if (*single) look(**single);
            }
            for (const KeptRoot& older : state->older_roots)
                look(older.entry);
        }
    }
    if (bad.empty() || replays_ != 0) co_return;
    Moving moving(this);
    IsLost is_bad = [bad](const Retained& entry) {
        return std::ranges::find(bad, entry.position) != bad.end();
    };
    std::vector<VolumeState*> open_ones;
    std::deque<Use> uses;
    for (const auto& [id, state] : volumes_) {
        mark_bad(*state, is_bad);
        if (state->log == nullptr) continue;
        open_ones.push_back(state.get());
        uses.emplace_back(this, *state);
    }
    for (VolumeState* state : open_ones) {
        auto outcome = co_await rewrite_states(*state, is_bad);
        if (!outcome) scrub.problems.push_back(outcome.error().text());
    }
}

}  // namespace peplos::replica
