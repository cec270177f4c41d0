#pragma once

#include <array>
#include <bit>
#include <cstdint>
#include <string>

#include "base/units.h"

namespace peplos::volume {

// Counts per power of two of microseconds: [0] below 1 us, [i] 2^(i-1) <= us < 2^i, the last one
// everything above.
struct LatencyHistogram {
    std::array<uint64_t, 24> counts{};
    uint64_t us_sum = 0;

    void add(Duration took) {
        auto ns = static_cast<uint64_t>(took.count() < 0 ? 0 : took.count());
        uint64_t us = ns / 1000;
        us_sum += us;
        size_t bucket = static_cast<size_t>(std::bit_width(us));
        ++counts[bucket < counts.size() ? bucket : counts.size() - 1];
    }
};

struct OperationStats {
    uint64_t count = 0;
    uint64_t bytes = 0;
    uint64_t errors = 0;
    LatencyHistogram latency;
};

// Since open, where nothing else is said.
struct VolumeStats {
    uint64_t live_bytes = 0;       // now: data a reader could get, in segments or undrained (thin)
    uint64_t stored_bytes = 0;     // now: units taken on devices, journal excluded
    uint64_t undrained_bytes = 0;  // now: payload in the overlay, ring or open segments
    uint64_t segment_count = 0;    // now
    uint64_t map_bytes = 0;        // now: RAM of the map that always stays, without cached leaves
    OperationStats read;
    OperationStats write;
    OperationStats zero;
    uint64_t corrupt_blocks = 0;  // found by reads, drains, cleaning
    uint64_t lost_blocks = 0;     // whose map leaf could not be read
    uint64_t drains = 0;
    uint64_t drained_bytes = 0;
    uint64_t relocated_bytes = 0;  // written by the cleaner; amplification = this / drained
    uint64_t checkpoints = 0;
    uint64_t checkpoint_bytes = 0;
    std::string waits_for;  // now: other nodes that operations wait for; empty: none does
};

}  // namespace peplos::volume
