#pragma once

#include <algorithm>
#include <cstdint>

#include "format/segment_layout.h"

namespace peplos::volume {

// Tells blocks that will be overwritten soon from those that will stay, so that a drain puts them
// into different segments: a segment of short-lived blocks dies as a whole and costs the cleaner
// nothing, and the others are not copied again and again with them (after SepBIT, FAST '22: a block
// lives about as long as the version that it replaces lived).
//
// Where all blocks are overwritten alike, how long one lived says nothing about the next: lifespans
// are then at most exponentially distributed, whose mean square is twice the square of their mean.
// Blocks of different heat mix to more than that. So the spread tells whether a prediction is worth
// anything; where it is not, has_signal() is false and a drain keeps its blocks together.
//
// Time is counted in LSNs of the volume. It is a hint: nothing of it is kept over a restart.
class LifetimePredictor {
  public:
    // A block was written again after `lifespan`.
    void observe(uint64_t lifespan) {
        // Means of about the last kWindow of them.
        if (count_ < kWindow) ++count_;
        auto value = static_cast<double>(lifespan);
        mean_ += (value - mean_) / static_cast<double>(count_);
        mean_square_ += (value * value - mean_square_) / static_cast<double>(count_);
    }
    bool has_signal() const {
        return count_ >= kLearnt && mean_square_ > kSpreadMin * mean_ * mean_;
    }
    // Whether a block whose last version lived for `lifespan` will be short-lived.
    bool is_short(uint64_t lifespan) const { return static_cast<double>(lifespan) < mean_; }

  private:
    static constexpr uint64_t kWindow = 65'536;
    static constexpr uint64_t kLearnt = 4096;
    static constexpr double kSpreadMin = 2.5;
    double mean_ = 0;
    double mean_square_ = 0;
    uint64_t count_ = 0;
};

// Classes of segments (format::kSegmentClassCount of them): what a drain takes for short-lived,
// what it does not, and then what survived one cleaning, two ...
inline constexpr uint8_t kShortLivedClass = 0;
inline constexpr uint8_t kLongLivedClass = 1;
// The class of what survives the cleaning of segments of class `from`.
constexpr uint8_t survivor_class(uint8_t from) {
    uint8_t next = static_cast<uint8_t>(std::max(from, kLongLivedClass) + 1);
    return std::min<uint8_t>(next, format::kSegmentClassCount - 1);
}
// Of `block_count` long-lived blocks, those that get segments of their own: as many as fill units,
// or nearly do. The others go along with the short-lived ones: half-empty units would be cleaned
// soon, which costs more than is gained.
constexpr uint64_t own_blocks(uint64_t block_count) {
    constexpr uint64_t kUnitBlocks = format::segment_block_count_max(limits::kSegmentUnitBytes);
    uint64_t rest = block_count % kUnitBlocks;
    return rest * 8 >= kUnitBlocks * 7 ? block_count : block_count - rest;
}

}  // namespace peplos::volume
