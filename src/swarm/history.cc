#include "swarm/history.h"

#include <algorithm>
#include <array>
#include <cstring>
#include <fmt/format.h>

#include "base/check.h"
#include "base/ids.h"

namespace peplos::swarm {

namespace {

bool is_all_zeros(Bytes bytes) {
    return std::ranges::all_of(bytes, [](std::byte b) { return b == std::byte{0}; });
}

uint64_t word_at(Bytes bytes, size_t offset) {
    uint64_t word = 0;
    std::memcpy(&word, bytes.data() + offset, sizeof(word));
    return word;
}

}  // namespace

History::History(uint64_t salt, uint64_t bytes) : salt_(mix_bits(salt)) {
    grow(bytes);
}

void History::grow(uint64_t bytes) {
    CHECK(bytes % kSector == 0 && bytes >= size_bytes());
    Value initial;
    initial.zeros = true;
    initial.write_end = initial.first_end = 0;
    sectors_.resize(bytes / kSector, Sector{initial});
}

uint32_t History::begin_write(uint64_t offset, uint64_t bytes, bool zeros) {
    CHECK(offset % kSector == 0 && bytes % kSector == 0 && offset + bytes <= size_bytes());
    ++operation_count_;
    uint32_t version = ++version_;
    Moment begin = ++now_;
    for (uint64_t i = offset / kSector; i < (offset + bytes) / kSector; ++i) {
        Value value;
        value.version = version;
        value.zeros = zeros;
        value.write_begin = value.last_begin = begin;
        sectors_[i].push_back(value);
    }
    return version;
}

void History::end_write(uint64_t offset, uint64_t bytes, uint32_t version) {
    Moment end = ++now_;
    for (uint64_t i = offset / kSector; i < (offset + bytes) / kSector; ++i) {
        auto value = std::ranges::find(sectors_[i], version, &Value::version);
        CHECK(value != sectors_[i].end());
        value->write_end = end;
        value->first_end = std::min(value->first_end, end);
        value->seen = true;
    }
}

// The version in clear, then words that only this version of this place of this volume has.
void History::fill(MutableBytes out, uint64_t offset, uint32_t version) const {
    for (size_t i = 0; i < out.size(); i += sizeof(uint64_t)) {
        uint64_t word = mix_bits(salt_ ^ mix_bits((offset + i) * 1'000'003 + version));
        if (i % kSector == 0) word = version;
        std::memcpy(out.data() + i, &word, sizeof(word));
    }
}

std::string History::end_read(uint64_t offset, Bytes content, Moment began) {
    ++operation_count_;
    Moment end = ++now_;
    for (size_t i = 0; i < content.size(); i += kSector) {
        std::string wrong = note_read(sectors_[(offset + i) / kSector], offset + i,
                                      content.subspan(i, kSector), began, end);
        if (!wrong.empty()) return wrong;
    }
    return "";
}

std::string History::check_origin(uint64_t offset, Bytes content) const {
    std::array<std::byte, kSector> want;
    for (size_t i = 0; i < content.size(); i += kSector) {
        Bytes sector = content.subspan(i, kSector);
        if (is_all_zeros(sector)) continue;
        uint64_t version = word_at(sector, 0);
        if (version <= version_) fill(want, offset + i, static_cast<uint32_t>(version));
        if (version <= version_ && std::memcmp(want.data(), sector.data(), kSector) == 0) continue;
        return fmt::format("offset {}: bytes that were never written there", offset + i);
    }
    return "";
}

std::string History::note_read(Sector& sector, uint64_t offset, Bytes content, Moment began,
                               Moment end) {
    if (is_all_zeros(content)) return note_zeros(sector, offset, began, end);
    uint64_t version = word_at(content, 0);
    auto value = std::ranges::find_if(
        sector, [version](const Value& v) { return v.version == version && !v.zeros; });
    std::array<std::byte, kSector> want;
    if (value != sector.end()) fill(want, offset, value->version);
    if (value == sector.end() || std::memcmp(want.data(), content.data(), kSector) != 0) {
        return fmt::format(
            "offset {}: bytes that begin with {:#x} {:#x} were never written there, "
            "or long overwritten; {}",
            offset, version, word_at(content, 8), about(sector));
    }
    if (is_overwritten(sector, *value, began)) {
        return fmt::format("offset {}: version {} is stale; {}", offset, version, about(sector));
    }
    value->seen = true;
    value->first_end = std::min(value->first_end, end);
    value->last_begin = std::max(value->last_begin, began);
    return "";
}

std::string History::note_zeros(Sector& sector, uint64_t offset, Moment began, Moment end) {
    Value* fits = nullptr;
    int count = 0;
    for (Value& value : sector) {
        if (!value.zeros || is_overwritten(sector, value, began)) continue;
        fits = &value;
        ++count;
    }
    if (count == 0) {
        return fmt::format("offset {}: zeros, which are stale or were never written; {}", offset,
                           about(sector));
    }
    if (count == 1) {
        fits->seen = true;
        fits->first_end = std::min(fits->first_end, end);
        fits->last_begin = std::max(fits->last_begin, began);
    }
    return "";
}

// Another value was written after this one ended, and had taken effect before `began`.
bool History::is_overwritten(const Sector& sector, const Value& value, Moment began) {
    return std::ranges::any_of(sector, [&](const Value& other) {
        return &other != &value && other.write_begin > value.write_end && other.first_end < began;
    });
}

std::string History::settle() {
    Moment settled = ++now_;
    for (size_t i = 0; i < sectors_.size(); ++i) {
        if (sectors_[i].size() == 1) continue;
        std::string wrong = settle_sector(sectors_[i], i * kSector, settled);
        if (!wrong.empty()) return wrong;
    }
    return "";
}

std::string History::settle_sector(Sector& sector, uint64_t offset, Moment settled) {
    for (Value& value : sector)
        value.write_end = std::min(value.write_end, settled);
    struct Zone {
        Moment low;
        Moment high;
        uint32_t version;
    };
    std::vector<Zone> forward;
    std::vector<Zone> backward;
    for (const Value& value : sector) {
        if (!value.seen && value.version != 0) continue;
        Moment first_end = std::min(value.first_end, value.write_end);
        if (first_end < value.last_begin) {
            forward.push_back({first_end, value.last_begin, value.version});
        } else {
            backward.push_back({value.last_begin, first_end, value.version});
        }
    }
    std::ranges::sort(forward, {}, &Zone::low);
    for (size_t i = 1; i < forward.size(); ++i) {
        if (forward[i].low >= forward[i - 1].high) continue;
        return fmt::format("offset {}: versions {} and {} each read after the other; {}", offset,
                           forward[i - 1].version, forward[i].version, about(sector));
    }
    for (const Zone& inner : backward) {
        for (const Zone& outer : forward) {
            if (inner.low <= outer.low || inner.high >= outer.high) continue;
            return fmt::format("offset {}: version {} was read before and after {} was written; {}",
                               offset, outer.version, inner.version, about(sector));
        }
    }
    // From here on only these can be read: those that nothing certainly overwrote.
    Sector kept;
    for (const Value& value : sector) {
        if (!is_overwritten(sector, value, settled)) kept.push_back(value);
    }
    sector = std::move(kept);
    return "";
}

std::string History::about(const Sector& sector) const {
    std::string text = "written:";
    size_t first = sector.size() > 6 ? sector.size() - 6 : 0;
    for (size_t i = first; i < sector.size(); ++i) {
        const Value& value = sector[i];
        std::string end = value.write_end == kNever ? "unknown" : fmt::to_string(value.write_end);
        text += fmt::format(" {}{} [{}, {}]", value.zeros ? "zeros " : "", value.version,
                            value.write_begin, end);
    }
    return text + fmt::format("; now {}", now_);
}

}  // namespace peplos::swarm
