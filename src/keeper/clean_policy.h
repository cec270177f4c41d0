#pragma once

#include <optional>
#include <span>
#include <vector>

#include "volume/volume.h"

// Which segments to clean: plain decisions, no I/O.
namespace peplos::keeper {

// Segments are worth cleaning below this share of live blocks, given how full the devices are:
// little while there is room, much when it runs out (storage-engine note, section 8).
double live_share_max(double fullness);

// What to relocate together: into one segment of `lifetime_class`.
struct CleanChoice {
    std::vector<uint32_t> segments;
    uint8_t lifetime_class = 0;
    uint64_t live_blocks = 0;
    uint64_t gained_units = 0;
    double score = 0;  // age x (1-u)/(1+u), comparable within a volume
};
// The best choice by age x (1-u)/(1+u), lifetime classes kept apart, at most one segment's worth of
// live blocks and `output_units_max` units of output; none when nothing below `live_share_max`
// gains a unit.
std::optional<CleanChoice> choose_segments(std::span<const volume::SegmentView> segments,
                                           double live_share_max, uint64_t output_units_max);

// Units of segments in which nothing is alive any more. Where they are not removed at once they
// wait for a checkpoint.
uint64_t dead_units(std::span<const volume::SegmentView> segments);

// These, and the units that cleaning everything below `live_share_max` would gain.
uint64_t reclaimable_units(std::span<const volume::SegmentView> segments, double live_share_max);

}  // namespace peplos::keeper
