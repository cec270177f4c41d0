#pragma once

#include "format/segment_layout.h"
#include "media/segment_stores.h"
#include "replica/segment_client.h"

// A segment's copy, checked as a whole and made anew.
namespace peplos::replica {

// What a copy must be.
struct SegmentIdentity {
    SegmentId id;
    VolumeId volume;
    LineageId lineage;
};

// Checks a sealed segment from its first byte to the end of its index: header, footer, identity,
// index, every block's or page's checksum. `bytes` may be longer.
// Errors: corrupt (the first thing that is wrong, with its offset), unavailable (it was never
// sealed), unsupported.
Result<format::SegmentFooter> verify_segment(Bytes bytes, const SegmentIdentity& expected);

// The copy on this device, checked. Errors: as verify_segment(), io_error.
runtime::Task<Result<void>> check_copy(media::SegmentStore& store, media::SegmentPin pin);

// Makes a copy on `store` out of another node's, checked as a whole, and puts it in the place of
// `bad` (empty: there is none). A crash leaves the one or the other.
// Errors: those of the other node and of verify_segment(), no_space, not_found (`bad` was removed
// meanwhile), io_error (of this node's device).
runtime::Task<Result<media::SegmentPin>> make_copy_from(RemoteSegments& source,
                                                        media::SegmentStore& store,
                                                        media::SegmentInfo like,
                                                        media::SegmentPin bad);

}  // namespace peplos::replica
