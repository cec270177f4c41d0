#include "replica/log_recovery.h"

#include <algorithm>
#include <map>
#include <set>

namespace peplos::replica {

using format::Record;
using format::RecordType;
using media::RecoveredRecord;

namespace {

constexpr Epoch kDroppedEpoch(UINT64_MAX);

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

LogRecovery::Volume LogRecovery::fold(VolumeId id, const Indices& indices) {
    Volume out;
    out.id = id;
    take_newest(indices, out);
    keep_needed(indices, out);
    if (out.is_dropped) return out;
    check_chains(indices, out);
    check_lost_frames(id, indices, out);
    return out;
}

// The states that the newest record of a kind decides: fence, root, what is drained.
void LogRecovery::take_newest(const Indices& indices, Volume& out) {
    const Record* root = nullptr;
    const Record* fence = nullptr;
    const format::DamageBody* damaged = nullptr;
    for (size_t i : indices) {
        const Record& record = at(i).record;
        out.lineage = record.lineage;
        out.last_lsn = std::max(out.last_lsn, record.lsn);
        out.fence = std::max(out.fence, record.epoch);
        out.settled_lsn = std::max(out.settled_lsn, record.settled_lsn);
        if (const auto* settle = std::get_if<format::SettleBody>(&record.body))
            out.voided.insert(out.voided.end(), settle->voided.begin(), settle->voided.end());
        if (record.type == RecordType::root && (root == nullptr || is_newer(record, *root)))
            root = &record;
        if (record.type == RecordType::fence && (fence == nullptr || record.epoch >= fence->epoch))
            fence = &record;
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
    if (fence != nullptr) out.tokens = std::get<format::FenceBody>(fence->body);
    out.is_dropped = out.fence == kDroppedEpoch;
    if (root == nullptr) return;
    out.root_body = std::get<format::RootBody>(root->body);
    out.drained_lsn = std::max(out.drained_lsn, out.root_body->drained_lsn);
    out.meta_lsn = out.root_body->meta_lsn;
}

// Of several copies with one LSN the newest epoch counts, then the readable one, then the later.
void LogRecovery::keep_needed(const Indices& indices, Volume& out) {
    std::map<Lsn, size_t> data, meta;
    std::optional<size_t> root, fence, damaged;
    auto rank = [this](size_t i) {
        return std::tuple(at(i).record.epoch, at(i).payload_is_good, i);
    };
    auto keep = [&](std::optional<size_t>& best, size_t i) {
        if (best) unneeded_.push_back(at(rank(*best) < rank(i) ? *best : i).position);
        if (!best || rank(*best) < rank(i)) best = i;
    };
    auto keep_by_lsn = [&](std::map<Lsn, size_t>& kept, size_t i) {
        auto [place, inserted] = kept.emplace(at(i).record.lsn, i);
        if (inserted) return;
        unneeded_.push_back(at(rank(place->second) < rank(i) ? place->second : i).position);
        if (rank(place->second) < rank(i)) place->second = i;
    };
    for (size_t i : indices) {
        const Record& record = at(i).record;
        bool is_needed = !out.is_dropped;
        if (format::is_data(record.type)) is_needed &= record.lsn > out.drained_lsn;
        if (format::is_meta(record.type)) is_needed &= record.lsn > out.meta_lsn;
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
        } else if (!root || at(*root).record.lsn == record.lsn) {
            keep(root, i);
        } else {
            bool is_later = at(*root).record.lsn < record.lsn;
            unneeded_.push_back(at(is_later ? *root : i).position);
            if (is_later) root = i;
        }
    }
    auto retained = [this](size_t i) {
        Retained entry = make_retained(at(i).record, at(i).position);
        entry.is_good = at(i).payload_is_good;
        return entry;
    };
    for (const auto& [lsn, i] : data)
        out.data.push_back(retained(i));
    for (const auto& [lsn, i] : meta)
        out.meta.push_back(retained(i));
    if (root) out.root = retained(*root);
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
        if (record.prev_data_lsn > out.drained_lsn && !has(out.data, record.prev_data_lsn))
            missing = record.prev_data_lsn;
        if (record.prev_meta_lsn > out.meta_lsn && !has(out.meta, record.prev_meta_lsn))
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

}  // namespace peplos::replica
