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
    return bytes[0] == std::byte{0} &&
           std::memcmp(bytes.data(), bytes.data() + 1, bytes.size() - 1) == 0;
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
    CHECK(bytes % kBlockBytes == 0 && bytes >= size_bytes());
    Value initial;
    initial.zeros = true;
    initial.write_end = initial.first_end = 0;
    blocks_.resize(bytes / kBlockBytes, Block{Register{initial}});
}

void History::split(Block& block) {
    if (block.size() == 1) block.resize(kSectors, Register(block.front()));
}

void History::merge(Block& block) {
    bool is_same =
        std::ranges::all_of(block, [&](const Register& values) { return values == block.front(); });
    if (is_same) block.resize(1);
}

template <typename Use>
void History::for_registers(uint64_t offset, uint64_t bytes, Use use) {
    CHECK(offset % kSector == 0 && bytes % kSector == 0 && offset + bytes <= size_bytes());
    for (uint64_t at = offset; at < offset + bytes;) {
        Block& block = blocks_[at / kBlockBytes];
        uint64_t end = std::min(round_down(at, kBlockBytes) + kBlockBytes, offset + bytes);
        if (end - at != kBlockBytes) split(block);
        if (block.size() == 1) {
            use(block.front());
        } else {
            for (uint64_t i = at; i < end; i += kSector)
                use(block[i % kBlockBytes / kSector]);
        }
        at = end;
    }
}

uint32_t History::begin_write(uint64_t offset, uint64_t bytes, bool zeros) {
    ++operation_count_;
    Value value;
    value.version = ++version_;
    value.zeros = zeros;
    value.write_begin = value.last_begin = ++now_;
    for_registers(offset, bytes, [&](Register& values) { values.push_back(value); });
    return value.version;
}

void History::end_write(uint64_t offset, uint64_t bytes, uint32_t version) {
    Moment end = ++now_;
    for_registers(offset, bytes, [&](Register& values) {
        auto value = std::ranges::find(values, version, &Value::version);
        CHECK(value != values.end());
        value->write_end = end;
        value->first_end = std::min(value->first_end, end);
        value->seen = true;
    });
}

// The version in clear, then words that only this version of this place of this volume has.
void History::fill(MutableBytes out, uint64_t offset, uint32_t version) const {
    for (size_t at = 0; at < out.size(); at += kSector) {
        uint64_t seed = mix_bits(salt_ ^ mix_bits((offset + at) * 1'000'003 + version));
        uint64_t words[kSector / sizeof(uint64_t)];
        for (size_t i = 0; i < std::size(words); ++i)
            words[i] = seed + i * 0x9e37'79b9'7f4a'7c15;
        words[0] = version;
        std::memcpy(out.data() + at, words, kSector);
    }
}

std::string History::end_read(uint64_t offset, Bytes content, Moment began) {
    CHECK(offset % kSector == 0 && content.size() % kSector == 0 &&
          offset + content.size() <= size_bytes());
    ++operation_count_;
    Moment end = ++now_;
    for (uint64_t at = 0; at < content.size();) {
        uint64_t place = offset + at;
        uint64_t bytes = std::min(kBlockBytes - place % kBlockBytes, content.size() - at);
        std::string wrong =
            note_block(blocks_[place / kBlockBytes], place, content.subspan(at, bytes), began, end);
        if (!wrong.empty()) return wrong;
        at += bytes;
    }
    return "";
}

// Of a block or a part of it. What one write put there as a whole is noted as a whole.
std::string History::note_block(Block& block, uint64_t offset, Bytes content, Moment began,
                                Moment end) {
    if (block.size() == 1 && content.size() == kBlockBytes) {
        if (is_all_zeros(content)) return note_zeros(block.front(), offset, began, end);
        std::array<std::byte, kBlockBytes> want;
        uint64_t version = word_at(content, 0);
        if (version <= version_) {
            fill(want, offset, static_cast<uint32_t>(version));
            if (std::memcmp(want.data(), content.data(), kBlockBytes) == 0)
                return note_version(block.front(), offset, version, began, end);
        }
    }
    split(block);
    for (size_t i = 0; i < content.size(); i += kSector) {
        std::string wrong = note_read(block[(offset + i) % kBlockBytes / kSector], offset + i,
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

std::string History::note_read(Register& values, uint64_t offset, Bytes content, Moment began,
                               Moment end) {
    if (is_all_zeros(content)) return note_zeros(values, offset, began, end);
    uint64_t version = word_at(content, 0);
    std::array<std::byte, kSector> want;
    if (version <= version_) fill(want, offset, static_cast<uint32_t>(version));
    if (version > version_ || std::memcmp(want.data(), content.data(), kSector) != 0) {
        return fmt::format("offset {}: bytes that begin with {:#x} {:#x} were never written; {}",
                           offset, version, word_at(content, 8), about(values));
    }
    return note_version(values, offset, version, began, end);
}

std::string History::note_version(Register& values, uint64_t offset, uint64_t version, Moment began,
                                  Moment end) {
    auto value = std::ranges::find_if(
        values, [version](const Value& v) { return v.version == version && !v.zeros; });
    if (value == values.end()) {
        return fmt::format("offset {}: version {} was never written there, or long overwritten; {}",
                           offset, version, about(values));
    }
    if (is_overwritten(values, *value, began)) {
        return fmt::format("offset {}: version {} is stale; {}", offset, version, about(values));
    }
    value->seen = true;
    value->first_end = std::min(value->first_end, end);
    value->last_begin = std::max(value->last_begin, began);
    return "";
}

std::string History::note_zeros(Register& values, uint64_t offset, Moment began, Moment end) {
    Value* fits = nullptr;
    int count = 0;
    for (Value& value : values) {
        if (!value.zeros || is_overwritten(values, value, began)) continue;
        fits = &value;
        ++count;
    }
    if (count == 0) {
        return fmt::format("offset {}: zeros, which are stale or were never written; {}", offset,
                           about(values));
    }
    if (count == 1) {
        fits->seen = true;
        fits->first_end = std::min(fits->first_end, end);
        fits->last_begin = std::max(fits->last_begin, began);
    }
    return "";
}

// Another value was written after this one ended, and had taken effect before `began`.
bool History::is_overwritten(const Register& values, const Value& value, Moment began) {
    return std::ranges::any_of(values, [&](const Value& other) {
        return &other != &value && other.write_begin > value.write_end && other.first_end < began;
    });
}

std::string History::settle() {
    Moment settled = ++now_;
    for (size_t i = 0; i < blocks_.size(); ++i) {
        Block& block = blocks_[i];
        for (size_t part = 0; part < block.size(); ++part) {
            if (block[part].size() == 1) continue;
            uint64_t offset = i * kBlockBytes + part * kSector;
            std::string wrong = settle_register(block[part], offset, settled);
            if (!wrong.empty()) return wrong;
        }
        if (block.size() > 1) merge(block);
    }
    return "";
}

std::string History::settle_register(Register& values, uint64_t offset, Moment settled) {
    for (Value& value : values)
        value.write_end = std::min(value.write_end, settled);
    struct Zone {
        Moment low;
        Moment high;
        uint32_t version;
    };
    std::vector<Zone> forward;
    std::vector<Zone> backward;
    for (const Value& value : values) {
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
                           forward[i - 1].version, forward[i].version, about(values));
    }
    for (const Zone& inner : backward) {
        for (const Zone& outer : forward) {
            if (inner.low <= outer.low || inner.high >= outer.high) continue;
            return fmt::format("offset {}: version {} was read before and after {} was written; {}",
                               offset, outer.version, inner.version, about(values));
        }
    }
    // From here on only these can be read: those that nothing certainly overwrote.
    Register kept;
    for (const Value& value : values) {
        if (!is_overwritten(values, value, settled)) kept.push_back(value);
    }
    values = std::move(kept);
    return "";
}

std::string History::about(const Register& values) const {
    std::string text = "written:";
    size_t first = values.size() > 6 ? values.size() - 6 : 0;
    for (size_t i = first; i < values.size(); ++i) {
        const Value& value = values[i];
        std::string end = value.write_end == kNever ? "unknown" : fmt::to_string(value.write_end);
        text += fmt::format(" {}{} [{}, {}]", value.zeros ? "zeros " : "", value.version,
                            value.write_begin, end);
    }
    return text + fmt::format("; now {}", now_);
}

}  // namespace peplos::swarm
