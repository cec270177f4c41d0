#pragma once

#include "base/buffer.h"
#include "base/ids.h"
#include "base/result.h"
#include "runtime/task.h"

namespace peplos::volume {

// Where a run of pages went.
struct PageRun {
    uint32_t segment_index = 0;  // a map segment that the volume's SegmentTable knows
    uint64_t offset = 0;         // bytes from the segment's first byte, a multiple of 4 KiB
};

// What the block map asks of the segments below it; the volume implements it over its SegmentStore.
// It opens map segments as it needs them: SegmentTable::reserve and add (kind map, state open,
// counts 0), and seal when it will append to one no more. The block map counts their pages.
class PageStore {
  public:
    virtual ~PageStore() = default;

    // About `bytes` of pages follow: lets the store choose the run of the next map segment.
    virtual void expect(uint64_t bytes) = 0;
    // Writes `pages` (a multiple of 4 KiB, at most format::kRootBytesMax) in one piece into one
    // map segment. Once it resolves read() serves them; durability is sync()'s promise.
    // One append at a time. Errors: no_space, io_error.
    virtual runtime::Task<Result<PageRun>> append(Buffer pages) = 0;
    // Every page appended before the call survives power loss and is readable after a restart
    // (so: the open map segment is sealed, or can be read without a seal). Errors: io_error.
    virtual runtime::Task<Result<void>> sync() = 0;
    // Fills `into` (a multiple of 4 KiB) from `offset` (a multiple of 4 KiB) of map segment
    // `segment`. The bytes are not verified. The end of a read may lie behind the last page, never
    // behind the end of what append wrote, rounded up to 4 KiB. Concurrent reads are allowed.
    // Errors: io_error, not_found (no such segment), unavailable.
    virtual runtime::Task<Result<void>> read(SegmentId segment, uint64_t offset, Buffer into) = 0;
    // How many copies of that segment there are to read; what read() gives first is number 0.
    virtual uint32_t copy_count(SegmentId segment) const = 0;
    // As read(), out of one of them.
    virtual runtime::Task<Result<void>> read_copy(SegmentId segment, uint32_t copy, uint64_t offset,
                                                  Buffer into) = 0;
    // That copy turned out to be bad, and another one good.
    virtual void note_bad(SegmentId segment, uint32_t copy) = 0;
    // Pages in that map segment are to be moved at the next occasion.
    virtual bool is_to_be_left(uint32_t segment_index) const = 0;
    // The bytes of a page there turned out to be corrupt: the error with the place, device
    // included, in front.
    virtual Error corrupt_at(SegmentId segment, uint64_t offset, Error error) = 0;
};

}  // namespace peplos::volume
