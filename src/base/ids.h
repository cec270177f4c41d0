#pragma once

#include <array>
#include <compare>
#include <concepts>
#include <cstdint>
#include <fmt/format.h>
#include <functional>
#include <string>

namespace peplos {

// A 64-bit number that cannot be mistaken for another kind of number.
template <typename Tag>
struct StrongId {
    uint64_t value = 0;

    constexpr StrongId() = default;
    constexpr explicit StrongId(uint64_t v) : value(v) {}
    constexpr auto operator<=>(const StrongId&) const = default;
    constexpr explicit operator bool() const { return value != 0; }
    constexpr StrongId next() const { return StrongId(value + 1); }
};

// Random and nonzero, unique in a cluster; 0 means none. Printed as 16 hexadecimal digits.
using VolumeId = StrongId<struct VolumeTag>;
using LineageId = StrongId<struct LineageTag>;
using NodeId = StrongId<struct NodeTag>;
using ClusterId = StrongId<struct ClusterTag>;
// Made anew by every start of a node's daemon.
using NodeBoot = StrongId<struct NodeBootTag>;
using GroupId = StrongId<struct GroupTag>;
// A member's right to a place in an ensemble; random, new with every open.
using OpenToken = StrongId<struct OpenTokenTag>;
// Made anew when a device is formatted: a wiped device cannot pass for the old one.
using Incarnation = StrongId<struct IncarnationTag>;

// Counters; 0 means none yet.
using Lsn = StrongId<struct LsnTag>;      // per volume, contiguous from 1
using Epoch = StrongId<struct EpochTag>;  // per volume, raised by every claim
using Boot = StrongId<struct BootTag>;    // per device, raised by every open

// A volume's logical block address in units of kBlockBytes (from 0).
using Lba = StrongId<struct LbaTag>;

struct DeviceId {
    std::array<uint8_t, 16> bytes{};
    constexpr auto operator<=>(const DeviceId&) const = default;
    // 32 hexadecimal digits.
    std::string text() const;
};

// Unique without coordination: only one writer holds (volume, epoch), and it counts.
struct SegmentId {
    VolumeId writer;
    uint32_t epoch = 0;
    uint32_t sequence = 0;
    constexpr auto operator<=>(const SegmentId&) const = default;
    constexpr explicit operator bool() const { return writer.value != 0; }
    // "writer-epoch-sequence", hexadecimal.
    std::string text() const;
};

// As users and logs see it: counters in decimal, names as 16 hexadecimal digits.
template <typename Tag>
std::string text_of(StrongId<Tag> id) {
    return fmt::format("{:016x}", id.value);
}
inline std::string text_of(Lsn lsn) {
    return fmt::format("{}", lsn.value);
}
inline std::string text_of(Epoch epoch) {
    return fmt::format("{}", epoch.value);
}
inline std::string text_of(Boot boot) {
    return fmt::format("{}", boot.value);
}
inline std::string text_of(Lba lba) {
    return fmt::format("{}", lba.value);
}
inline std::string text_of(const DeviceId& id) {
    return id.text();
}
inline std::string text_of(const SegmentId& id) {
    return id.text();
}

// Parses 16 hexadecimal digits; 0 when the text is anything else.
uint64_t parse_hex_id(std::string_view text);

// A finalizer that spreads every input bit (MurmurHash3, public domain constants).
constexpr uint64_t mix_bits(uint64_t x) {
    x ^= x >> 33;
    x *= 0xff51afd7ed558ccdULL;
    x ^= x >> 33;
    x *= 0xc4ceb9fe1a85ec53ULL;
    x ^= x >> 33;
    return x;
}

}  // namespace peplos

template <typename Tag>
struct std::hash<peplos::StrongId<Tag>> {
    size_t operator()(peplos::StrongId<Tag> id) const noexcept {
        return peplos::mix_bits(id.value);
    }
};
template <>
struct std::hash<peplos::SegmentId> {
    size_t operator()(const peplos::SegmentId& id) const noexcept {
        return peplos::mix_bits(id.writer.value ^
                                peplos::mix_bits((uint64_t{id.epoch} << 32) | id.sequence));
    }
};
template <>
struct std::hash<peplos::DeviceId> {
    size_t operator()(const peplos::DeviceId& id) const noexcept {
        uint64_t x = 0;
        for (uint8_t byte : id.bytes)
            x = peplos::mix_bits(x ^ byte);
        return x;
    }
};

template <typename Id>
    requires requires(const Id& id) {
        { peplos::text_of(id) } -> std::same_as<std::string>;
    }
struct fmt::formatter<Id> : fmt::formatter<std::string> {
    auto format(const Id& id, fmt::format_context& context) const {
        return fmt::formatter<std::string>::format(peplos::text_of(id), context);
    }
};
