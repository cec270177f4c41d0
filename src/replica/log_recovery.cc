#include "replica/log_recovery.h"

#include <algorithm>

#include "base/fault.h"

namespace peplos::replica {

using format::Record;
using format::RecordType;
using media::RecoveredRecord;

namespace {

bool is_newer(const Record& a, const Record& b) {
    return std::pair(a.lsn, a.epoch) > std::pair(b.lsn, b.epoch);
}

}  // namespace

LogRecovery::LogRecovery(std::string device, const media::RingRecovery& recovery,
                         std::function<uint64_t(media::RecordPosition)> offset_of)
    : device_(std::move(device)), recovery_(recovery), offset_of_(std::move(offset_of)) {
    std::map<VolumeId, Indices> by_volume;
    for (size_t i = 0; i < recovery_.records.size(); ++i) {
        by_volume[at(i).record.volume].push_back(i);
    }
    // A volume may be known only from what a neighbour frame says of a lost one.
    for (const media::LostFrame& lost : recovery_.lost_frames) {
        for (const format::FrameWitness& witness : lost.witnesses)
            by_volume[witness.volume];
    }
    for (const auto& [id, indices] : by_volume)
        volumes_.push_back(fold(id, indices));
}

void LogRecovery::damage(Volume& out, uint64_t device_offset, std::string why) const {
    if (!out.damage.empty()) return;
    out.damage = fmt::format("{} at offset {}: volume {}: {}", device_, device_offset, out.id, why);
    out.damage_offset = device_offset;
}

LogRecovery::Volume LogRecovery::fold(VolumeId id, const Indices& all) {
    Volume out;
    out.id = id;
    take_fence(all, out);
    Indices indices = keep_counting(all, out);
    take_newest(indices, out);
    settle_trims(indices, out);
    keep_needed(indices, out);
    if (out.is_dropped) return out;
    check_chains(indices, out);
    check_lost_frames(id, indices, out);
    check_lost_fence(id, all, out);
    return out;
}

// The newest fence record says what the log is.
void LogRecovery::take_fence(const Indices& indices, Volume& out) {
    const Record* fence = nullptr;
    auto order = [](const Record& record) {
        const auto& body = std::get<format::FenceBody>(record.body);
        return std::pair(record.epoch, body.member ? body.member->number : 0);
    };
    for (size_t i : indices) {
        const Record& record = at(i).record;
        out.open_number_seen = std::max(out.open_number_seen, record.open_number);
        if (record.type != RecordType::fence) continue;
        if (fence == nullptr || order(record) >= order(*fence)) fence = &record;
    }
    if (fence == nullptr) return;
    out.lineage = fence->lineage;
    out.fence = fence->epoch;
    out.settled_lsn = fence->settled_lsn;
    out.tokens = std::get<format::FenceBody>(fence->body);
    out.is_dropped = out.fence == kDroppedEpoch;
    if (out.tokens.member && !out.tokens.member->spans.empty())
        out.open_number = out.tokens.member->spans.back().last_open;
}

// Those that are part of the log; see above. The others are needed by nobody, and what they name as
// before them says nothing: a member's fence of the past may name what was cut off since.
LogRecovery::Indices LogRecovery::keep_counting(const Indices& indices, Volume& out) {
    std::vector<format::LogSpan> spans{{0, 0, kNoLimit}};
    if (out.tokens.member) spans = out.tokens.member->spans;
    auto counts = [&](const Record& record) {
        if (PLANTED("member.half_an_open_counts")) return true;
        if (const auto* fence = std::get_if<format::FenceBody>(&record.body))
            return !out.tokens.member || (record.epoch == out.fence && *fence == out.tokens);
        return std::ranges::any_of(spans, [&record](const format::LogSpan& span) {
            return span.first_open <= record.open_number && record.open_number <= span.last_open &&
                   record.lsn <= span.limit_lsn;
        });
    };
    Indices out_indices;
    for (size_t i : indices) {
        if (out.is_dropped || counts(at(i).record)) {
            out_indices.push_back(i);
        } else {
            PROBE("replica.log.not_counted");
            unneeded_.push_back(at(i).position);
        }
    }
    return out_indices;
}

// State of this one log is no part of the chains.
void LogRecovery::take_named(const Record& record, Volume& out) {
    if (record.type == RecordType::fence || record.type == RecordType::damage) return;
    Lsn data = format::is_data(record.type) ? record.lsn : record.prev_data_lsn;
    Lsn meta = format::is_meta(record.type) ? record.lsn : record.prev_meta_lsn;
    out.newest_data_lsn = std::max(out.newest_data_lsn, data);
    out.newest_meta_lsn = std::max(out.newest_meta_lsn, meta);
}

// The states that the newest record of a kind decides: root, what is drained.
void LogRecovery::take_newest(const Indices& indices, Volume& out) {
    const Record* root = nullptr;
    const format::DamageBody* damaged = nullptr;
    for (size_t i : indices) {
        const Record& record = at(i).record;
        out.lineage = record.lineage;
        out.last_lsn = std::max(out.last_lsn, record.lsn);
        out.fence = std::max(out.fence, record.epoch);
        out.settled_lsn = std::max(out.settled_lsn, record.settled_lsn);
        take_named(record, out);
        if (const auto* settle = std::get_if<format::SettleBody>(&record.body))
            take_voided(record.lsn, settle->voided, out);
        if (record.type == RecordType::root && (root == nullptr || is_newer(record, *root)))
            root = &record;
        if (const auto* seal = std::get_if<format::SealBody>(&record.body))
            out.drained_lsn = std::max(out.drained_lsn, seal->drained_lsn);
        if (const auto* lost = std::get_if<format::DamageBody>(&record.body)) {
            out.last_lsn = std::max(out.last_lsn, lost->last_lsn);
            if (damaged == nullptr || lost->last_lsn > damaged->last_lsn) damaged = lost;
        }
    }
    // An owner that had it all in memory went on, and a later root covers what was lost: only the
    // chains speak of what is above it.
    const auto* body = root == nullptr ? nullptr : std::get_if<format::RootBody>(&root->body);
    bool is_healed = damaged != nullptr && body != nullptr && root->lsn > damaged->last_lsn &&
                     body->drained_lsn >= damaged->last_lsn;
    out.is_healed = is_healed;
    if (damaged != nullptr && !is_healed) {
        out.is_damage_durable = true;
        damage(out, damaged->device_offset,
               fmt::format("a record up to LSN {} was lost there earlier", damaged->last_lsn));
    }
    std::ranges::sort(out.voided);
    if (root == nullptr) return;
    out.root_body = std::get<format::RootBody>(root->body);
    out.drained_lsn = std::max(out.drained_lsn, out.root_body->drained_lsn);
    out.meta_lsn = out.root_body->meta_lsn;
}

void LogRecovery::take_voided(Lsn lsn, const std::vector<Lsn>& voided, Volume& out) {
    out.voided.insert(out.voided.end(), voided.begin(), voided.end());
    if (!out.tokens.member) return;
    auto same = std::ranges::find(out.voidings, lsn, &Voiding::lsn);
    if (same == out.voidings.end()) out.voidings.push_back({lsn, voided});
}

// What a log that has no other copies was told is done. A member's seals and roots count from when
// the log itself says that they were acknowledged.
void LogRecovery::settle_trims(const Indices& indices, Volume& out) const {
    out.trimmed_drained_lsn = out.drained_lsn;
    out.trimmed_meta_lsn = out.meta_lsn;
    if (!out.tokens.member || PLANTED("member.trims_what_may_be_undone")) return;
    out.trimmed_drained_lsn = out.tokens.member->drained_lsn;
    out.trimmed_meta_lsn = out.tokens.member->meta_lsn;
    std::map<Lsn, Trimming> trims;  // copies of one record say the same
    for (size_t i : indices) {
        const Record& record = at(i).record;
        if (const auto* seal = std::get_if<format::SealBody>(&record.body))
            trims[record.lsn] = {record.lsn, seal->drained_lsn, Lsn(0)};
        if (const auto* root = std::get_if<format::RootBody>(&record.body))
            trims[record.lsn] = {record.lsn, root->drained_lsn, root->meta_lsn};
    }
    for (const auto& [lsn, trim] : trims) {
        if (lsn > out.settled_lsn) {
            out.unsettled.push_back(trim);
            continue;
        }
        out.trimmed_drained_lsn = std::max(out.trimmed_drained_lsn, trim.drained_lsn);
        out.trimmed_meta_lsn = std::max(out.trimmed_meta_lsn, trim.meta_lsn);
    }
}

// The newest root; of a member's log also those that it may come back to.
void LogRecovery::keep_roots(const Indices& roots, Volume& out) {
    std::map<Lsn, size_t> best;
    for (size_t i : roots)
        keep_by_lsn(best, i);
    auto first = best.empty() ? best.end() : std::prev(best.end());
    while (out.tokens.member && first != best.begin() && first->first > out.settled_lsn)
        --first;
    for (auto place = best.begin(); place != best.end(); ++place) {
        bool is_older = std::next(place) != best.end();
        const media::RecoveredRecord& found = at(place->second);
        if (place->first < first->first) {
            unneeded_.push_back(found.position);
        } else if (is_older) {
            out.older_roots.push_back(
                {retained(place->second), std::get<format::RootBody>(found.record.body)});
        } else {
            out.root = retained(place->second);
        }
    }
}

// Of copies of one record the one that was taken last counts, then the readable one.
std::tuple<uint64_t, Epoch, bool, size_t> LogRecovery::rank(size_t index) const {
    const media::RecoveredRecord& found = at(index);
    return {found.record.open_number, found.record.epoch, found.payload_is_good, index};
}

void LogRecovery::keep_by_lsn(std::map<Lsn, size_t>& kept, size_t index) {
    auto [place, inserted] = kept.emplace(at(index).record.lsn, index);
    if (inserted) return;
    bool is_better = rank(place->second) < rank(index);
    unneeded_.push_back(at(is_better ? place->second : index).position);
    if (is_better) place->second = index;
}

Retained LogRecovery::retained(size_t index) const {
    Retained entry = make_retained(at(index).record, at(index).position);
    entry.is_good = at(index).payload_is_good;
    return entry;
}

void LogRecovery::keep_needed(const Indices& indices, Volume& out) {
    std::map<Lsn, size_t> data, meta;
    std::optional<size_t> fence, damaged;
    Indices roots;
    auto order = [this](size_t i) {
        const auto* body = std::get_if<format::FenceBody>(&at(i).record.body);
        uint64_t number = body != nullptr && body->member ? body->member->number : 0;
        return std::tuple(at(i).record.epoch, number, at(i).payload_is_good, i);
    };
    auto keep = [&](std::optional<size_t>& best, size_t i) {
        if (best) unneeded_.push_back(at(order(*best) < order(i) ? *best : i).position);
        if (!best || order(*best) < order(i)) best = i;
    };
    for (size_t i : indices) {
        const Record& record = at(i).record;
        bool is_needed = !out.is_dropped;
        if (format::is_data(record.type)) is_needed &= record.lsn > out.trimmed_drained_lsn;
        if (format::is_meta(record.type)) is_needed &= record.lsn > out.trimmed_meta_lsn;
        if (record.type == RecordType::damage) is_needed &= !out.is_healed;
        if (!is_needed) {
            unneeded_.push_back(at(i).position);
        } else if (format::is_data(record.type)) {
            keep_by_lsn(data, i);
        } else if (format::is_meta(record.type)) {
            keep_by_lsn(meta, i);
        } else if (record.type == RecordType::fence) {
            keep(fence, i);
        } else if (record.type == RecordType::damage) {
            keep(damaged, i);
        } else {
            roots.push_back(i);
        }
    }
    keep_roots(roots, out);
    for (const auto& [lsn, i] : data)
        out.data.push_back(retained(i));
    for (const auto& [lsn, i] : meta)
        out.meta.push_back(retained(i));
    if (fence) out.fence_record = retained(*fence);
    if (damaged) out.damage_record = retained(*damaged);
}

// Every record names the newest data, meta and root record before it: what one names and is needed
// must be here.
void LogRecovery::check_chains(const Indices& indices, Volume& out) const {
    auto has = [](const std::vector<Retained>& entries, Lsn lsn) {
        return std::ranges::binary_search(entries, lsn, {}, &Retained::lsn);
    };
    Lsn root_lsn = out.root ? out.root->lsn : Lsn(0);
    for (size_t i : indices) {
        const Record& record = at(i).record;
        Lsn missing;
        if (record.prev_data_lsn > out.trimmed_drained_lsn && !has(out.data, record.prev_data_lsn))
            missing = record.prev_data_lsn;
        if (record.prev_meta_lsn > out.trimmed_meta_lsn && !has(out.meta, record.prev_meta_lsn))
            missing = record.prev_meta_lsn;
        if (record.root_lsn > root_lsn) missing = record.root_lsn;
        if (missing)
            damage(out, offset_of_(at(i).position),
                   fmt::format("the record at LSN {} is missing, which the one at LSN {} names",
                               missing, record.lsn));
    }
    for (const Retained& entry : out.data) {
        if (entry.is_good) continue;
        damage(out, offset_of_(entry.position),
               fmt::format("the payload at LSN {} does not match its checksum", entry.lsn));
    }
}

// A lost frame hurts a volume unless a later LSN of it is here: then the chains decide.
void LogRecovery::check_lost_frames(VolumeId id, const Indices& indices, Volume& out) const {
    Lsn max_lsn;
    size_t max_index = 0;
    for (size_t i : indices) {
        if (at(i).record.lsn >= max_lsn) {
            max_lsn = at(i).record.lsn;
            max_index = i;
        }
    }
    for (const media::LostFrame& lost : recovery_.lost_frames) {
        for (const format::FrameWitness& witness : lost.witnesses) {
            if (witness.volume != id) continue;
            if (!indices.empty() && witness.last_lsn <= max_lsn) continue;
            out.last_lsn = std::max(out.last_lsn, witness.last_lsn);
            damage(out, lost.device_offset,
                   fmt::format("journal frame {} with records up to LSN {} cannot be read",
                               lost.sequence, witness.last_lsn));
        }
        if (lost.witnesses_known || (!indices.empty() && max_index >= lost.position_in_order))
            continue;
        damage(out, lost.device_offset,
               fmt::format("journal frame {} cannot be read, and nothing after it says whether "
                           "records of this volume were in it",
                           lost.sequence));
    }
}

// A fence of a member's log may have been lost, with an open or without: then what is found here is
// the log of the past. A fence record that lies behind the lost frame is newer than what was in it.
void LogRecovery::check_lost_fence(VolumeId id, const Indices& indices, Volume& out) const {
    bool is_member = out.tokens.member || out.open_number_seen != 0;
    if (!is_member || PLANTED("member.believes_an_old_fence")) return;
    size_t fence_end = 0;
    for (size_t i : indices) {
        if (at(i).record.type == RecordType::fence) fence_end = i + 1;
    }
    for (const media::LostFrame& lost : recovery_.lost_frames) {
        if (fence_end > lost.position_in_order) continue;
        bool had_fence = !lost.witnesses_known;
        for (const format::FrameWitness& witness : lost.witnesses)
            had_fence |= witness.volume == id && witness.had_fence;
        if (!had_fence) continue;
        PROBE("replica.log.fence_lost");
        out.is_fence_lost = true;
        out.tokens.token = out.tokens.recorded_token = OpenToken(0);
        damage(
            out, lost.device_offset,
            fmt::format("journal frame {} cannot be read, which may say that this log was fenced "
                        "or opened anew",
                        lost.sequence));
    }
}

}  // namespace peplos::replica
