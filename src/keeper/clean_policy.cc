#include "keeper/clean_policy.h"

#include <algorithm>

#include "format/segment_layout.h"
#include "volume/lifetime.h"
#include "volume/segment_writer.h"

namespace peplos::keeper {

using format::SegmentKind;
using volume::SegmentView;

namespace {

struct Scored {
    const SegmentView* segment;
    double age;
    double score;
};

// Against what its units could hold: a small segment in a large run is also waste.
double live_share(const SegmentView& segment) {
    double room =
        segment.unit_count * double(format::segment_block_count_max(limits::kSegmentUnitBytes));
    return std::min(1.0, segment.live_count / room);
}

bool is_cleanable(const SegmentView& segment, double live_share_max) {
    return segment.kind != SegmentKind::map && segment.live_count != 0 && !segment.is_damaged &&
           live_share(segment) <= live_share_max;
}

std::optional<CleanChoice> take_class(std::span<const Scored> scored, uint8_t lifetime_class,
                                      uint64_t blocks_max) {
    CleanChoice choice;
    choice.lifetime_class = volume::survivor_class(lifetime_class);
    uint64_t units = 0;
    double unit_ages = 0;
    for (const Scored& item : scored) {
        const SegmentView& segment = *item.segment;
        if (segment.lifetime_class != lifetime_class) continue;
        if (choice.live_blocks + segment.live_count > blocks_max) continue;
        choice.segments.push_back(segment.index);
        choice.live_blocks += segment.live_count;
        units += segment.unit_count;
        unit_ages += item.age * segment.unit_count;
    }
    uint64_t needed = volume::run_units_for_blocks(choice.live_blocks);
    if (choice.segments.empty() || units <= needed) return std::nullopt;
    choice.gained_units = units - needed;
    // The score of all of them together.
    double age = unit_ages / double(units);
    choice.score = age * double(choice.gained_units) / double(units + needed);
    return choice;
}

}  // namespace

double live_share_max(double fullness) {
    // What is left alone loses more of its blocks meanwhile: with room to spare only what is nearly
    // dead is moved. The reserve begins at 95 %; shortly before that anything that gains goes.
    struct Point {
        double fullness, share;
    };
    constexpr Point kCurve[] = {{0.75, 0.25}, {0.87, 0.5}, {0.91, 0.65}, {0.94, 0.97}};
    if (fullness <= kCurve[0].fullness) return kCurve[0].share;
    for (size_t i = 1; i < std::size(kCurve); ++i) {
        const Point &low = kCurve[i - 1], &high = kCurve[i];
        if (fullness > high.fullness) continue;
        double part = (fullness - low.fullness) / (high.fullness - low.fullness);
        return low.share + part * (high.share - low.share);
    }
    return kCurve[std::size(kCurve) - 1].share;
}

std::optional<CleanChoice> choose_segments(std::span<const SegmentView> segments,
                                           double live_share_max, uint64_t output_units_max) {
    uint64_t blocks_max = std::min<uint64_t>(
        format::kSegmentEntryCountMax,
        output_units_max * format::segment_block_count_max(limits::kSegmentUnitBytes));
    uint64_t now = 1;
    for (const SegmentView& segment : segments)
        now = std::max(now, segment.age_lsn.value + 1);
    std::vector<Scored> scored;
    for (const SegmentView& segment : segments) {
        if (!is_cleanable(segment, live_share_max)) continue;
        double share = live_share(segment);
        double age = double(now - segment.age_lsn.value);
        scored.push_back({&segment, age, age * (1 - share) / (1 + share)});
    }
    std::ranges::sort(scored, [](const Scored& a, const Scored& b) {
        return a.score != b.score ? a.score > b.score : a.segment->index < b.segment->index;
    });
    std::optional<CleanChoice> best;
    for (uint8_t c = 0; c < format::kSegmentClassCount; ++c) {
        std::optional<CleanChoice> choice = take_class(scored, c, blocks_max);
        // By age, too: what is short-lived will be free soon without being copied.
        if (choice && (!best || choice->score > best->score)) best = choice;
    }
    return best;
}

uint64_t dead_units(std::span<const SegmentView> segments) {
    uint64_t units = 0;
    for (const SegmentView& segment : segments) {
        if (segment.kind != SegmentKind::map && segment.live_count == 0)
            units += segment.unit_count;
    }
    return units;
}

uint64_t reclaimable_units(std::span<const SegmentView> segments, double live_share_max) {
    double units = dead_units(segments);
    for (const SegmentView& segment : segments) {
        if (is_cleanable(segment, live_share_max)) {
            units += segment.unit_count * (1 - live_share(segment));
        }
    }
    return static_cast<uint64_t>(units);
}

}  // namespace peplos::keeper
