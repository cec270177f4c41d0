#include "replica/volume_state.h"

#include <algorithm>

#include "base/crc32c.h"

namespace peplos::replica {

using format::RecordType;

namespace {

Retained* find_in(std::deque<Retained>& entries, Lsn lsn) {
    auto found = std::ranges::lower_bound(entries, lsn, {}, &Retained::lsn);
    return found != entries.end() && found->lsn == lsn ? &*found : nullptr;
}

}  // namespace

Retained* VolumeState::find(RecordType type, Lsn lsn) {
    if (format::is_data(type)) return find_in(data, lsn);
    if (format::is_meta(type)) return find_in(meta, lsn);
    std::optional<Retained>& single = type == RecordType::root    ? root
                                      : type == RecordType::fence ? fence_record
                                                                  : damage_record;
    if (single && single->lsn == lsn) return &*single;
    if (type != RecordType::root) return nullptr;
    auto older = std::ranges::find(older_roots, lsn, [](const KeptRoot& r) { return r.entry.lsn; });
    return older == older_roots.end() ? nullptr : &older->entry;
}

std::vector<const Retained*> VolumeState::in_order() const {
    std::vector<const Retained*> out;
    out.reserve(record_count());
    for (const Retained& entry : data)
        out.push_back(&entry);
    for (const Retained& entry : meta)
        out.push_back(&entry);
    if (root) out.push_back(&*root);
    std::ranges::sort(out, {}, &Retained::lsn);
    return out;
}

media::Urgency urgency_of(RecordType type) {
    using media::Urgency;
    if (type == RecordType::write || type == RecordType::write_ref) return Urgency::user;
    if (type == RecordType::settle) return Urgency::meta;  // an open must not wait for a drain
    return format::is_data(type) ? Urgency::zero : Urgency::meta;
}

format::Record state_record(const VolumeState& state, RecordType type, format::RecordBody body) {
    format::Record record;
    record.type = type;
    record.volume = state.id;
    record.lineage = state.lineage;
    record.epoch = state.fence;
    record.prev_data_lsn = state.last_data_lsn;
    record.prev_meta_lsn = state.last_meta_lsn;
    record.root_lsn = state.last_root_lsn;
    record.settled_lsn = state.settled_lsn;
    record.open_number = state.open_number;
    record.body = std::move(body);
    return record;
}

uint32_t digest_of(const format::Record& record) {
    uint32_t seed = crc32c(bytes_of(record.type));
    seed = crc32c(bytes_of(record.epoch), seed);
    seed = crc32c(bytes_of(record.lba), seed);
    seed = crc32c(bytes_of(record.block_count), seed);
    return crc32c(std::as_bytes(std::span(record.crcs.data(), record.crcs.size())), seed);
}

uint32_t retained_bytes_of(const format::Record& record) {
    return static_cast<uint32_t>(format::encoded_bytes(record) + record.payload_bytes());
}

Retained make_retained(const format::Record& record, media::RecordPosition position) {
    Retained out;
    out.lsn = record.lsn;
    out.epoch = record.epoch;
    out.type = record.type;
    out.digest = digest_of(record);
    out.bytes = retained_bytes_of(record);
    out.payload_bytes = static_cast<uint32_t>(record.payload_bytes());
    out.position = position;
    return out;
}

}  // namespace peplos::replica
