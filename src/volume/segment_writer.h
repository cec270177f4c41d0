#pragma once

#include <span>
#include <vector>

#include "volume/segment_set.h"

namespace peplos::volume {

// One block on its way into a segment.
struct SegmentBlock {
    Lba lba;
    Lsn lsn;
    Buffer data;
    uint32_t crc = 0;
    format::Place old_place;  // relocated segments only
};

// A segment whose data and index are written; sealed once its footer is durable.
struct WrittenSegment {
    SegmentHandle handle;
    format::SegmentFooter footer;
    uint64_t written_bytes = 0;
};

// The run that holds the most of `block_count` blocks without waste: full when there are enough
// blocks, else the smallest run that is well used: a run that is left a quarter empty takes as much
// as cleaning a segment that is a quarter dead gains. How many blocks go in is in `blocks`.
struct RunChoice {
    uint64_t bytes = 0;
    uint32_t blocks = 0;
};
RunChoice choose_run(uint64_t block_count, uint64_t run_bytes_max);
// Units of the runs that choose_run() cuts `block_count` blocks into.
uint64_t run_units_for_blocks(uint64_t block_count);
// Units that `block_count` blocks take without waste.
constexpr uint64_t units_for_blocks(uint64_t block_count) {
    return div_up(block_count, format::segment_block_count_max(limits::kSegmentUnitBytes));
}

// Creates a segment of `run_bytes` and writes the blocks (ascending by LBA) and the index into it.
// Not durable yet: sync, then seal_segment().
// Errors: no_space (nothing was created), io_error.
runtime::Task<Result<WrittenSegment>> write_segment(SegmentSet& set, format::SegmentKind kind,
                                                    uint8_t lifetime_class,
                                                    std::span<const SegmentBlock> blocks,
                                                    uint64_t run_bytes, media::Purpose purpose);
// For a segment whose blocks are in place already: writes the index behind `block_end` blocks.
// Entries strictly ascend by (LBA, LSN); at least one. A `large` segment's is durable on return.
runtime::Task<Result<WrittenSegment>> write_index(
    SegmentSet& set, SegmentHandle handle, format::SegmentKind kind, uint8_t lifetime_class,
    std::span<const format::SegmentIndexEntry> entries, uint32_t block_end);
// Writes the footer durably, and with it the header of a `large` segment: that one was written long
// ago, by another epoch perhaps, and may never have been durable. Requires: data and index are
// durable.
runtime::Task<Result<void>> seal_segment(WrittenSegment& segment);

// Shortens the segment to what its footer says it needs. Requires: no record of the journal that
// is still replayed refers to what lies behind that. A `large` segment that a later epoch seals
// ends with its last living block, and until the record of the drain is durable a replay meets
// references behind it.
runtime::Task<Result<void>> give_back_unused(SegmentHandle handle, format::SegmentFooter footer);

// The seal of a segment and its index, read back and verified.
// Errors: corrupt (named; also when it was never sealed), io_error, unsupported.
struct SealedIndex {
    format::SegmentFooter footer;
    std::vector<format::SegmentIndexEntry> entries;
};
runtime::Task<Result<SealedIndex>> read_index(SegmentHandle handle);
// The same out of one of its copies.
runtime::Task<Result<SealedIndex>> read_index_copy(SegmentHandle handle, uint32_t copy);

}  // namespace peplos::volume
