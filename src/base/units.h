#pragma once

#include <chrono>
#include <cstdint>

namespace peplos {

inline constexpr uint64_t kKiB = 1024;
inline constexpr uint64_t kMiB = 1024 * kKiB;
inline constexpr uint64_t kGiB = 1024 * kMiB;
inline constexpr uint64_t kTiB = 1024 * kGiB;

// The unit of the map, of checksums, of linearizability and of device I/O.
inline constexpr uint32_t kBlockBytes = 4096;

// Time of the Clock seam: nanoseconds of CLOCK_BOOTTIME (or of simulated time).
using Duration = std::chrono::nanoseconds;
using Time = std::chrono::time_point<std::chrono::steady_clock, Duration>;
// Civil time, for people and records only: never for a decision of the protocol.
using WallTime = std::chrono::time_point<std::chrono::system_clock, Duration>;

// Whole seconds since 1970-01-01 UTC, as records store time.
constexpr int64_t unix_seconds(WallTime time) {
    return std::chrono::duration_cast<std::chrono::seconds>(time.time_since_epoch()).count();
}

constexpr uint64_t round_up(uint64_t value, uint64_t unit) {
    return (value + unit - 1) / unit * unit;
}
constexpr uint64_t round_down(uint64_t value, uint64_t unit) {
    return value / unit * unit;
}
constexpr uint64_t div_up(uint64_t value, uint64_t unit) {
    return (value + unit - 1) / unit;
}

}  // namespace peplos
