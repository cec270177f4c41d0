#pragma once

#include <vector>

#include "media/segment_store.h"

// Several devices of one node.
namespace peplos::media {

// What a new segment is to be.
struct SegmentWish {
    SegmentId id;
    LineageId lineage;
    VolumeId volume;
    GroupId group;
    format::SegmentKind kind = format::SegmentKind::data;
    uint64_t bytes = 0;
    Purpose purpose = Purpose::user;
};

struct PlacedSegment {
    SegmentPin pin;
    SegmentStore* store = nullptr;
};

// On the device with the most free units that has such a run.
// Errors: as SegmentStore::create(); no_space when none has it.
runtime::Task<Result<PlacedSegment>> create_on_emptiest(std::vector<SegmentStore*> stores,
                                                        SegmentWish wish);
// Empty when none has it.
PlacedSegment find_on(const std::vector<SegmentStore*>& stores, const SegmentId& id);

}  // namespace peplos::media
