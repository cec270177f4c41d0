#pragma once

#include <cstdint>
#include <functional>
#include <vector>

#include "base/bytes.h"
#include "base/result.h"
#include "format/map_page.h"
#include "runtime/gate.h"
#include "runtime/task.h"
#include "volume/page_store.h"
#include "volume/segment_table.h"

namespace peplos::volume {

// A page to read: where its parent says it is, and a number of the caller's.
struct PageRead {
    format::PageSlot slot;
    uint64_t key = 0;
};

// Reads map pages: turns segment indexes into ids, aligns to 4 KiB, merges neighbours.
class PageReader {
  public:
    // Called once per page, in no particular order, with exactly the bytes of the slot's length;
    // they are not verified. An error ends the whole reading.
    using Handler = std::function<Result<void>(const PageRead&, Bytes)>;

    PageReader(const SegmentTable& segments, PageStore& store, runtime::Gate& gate,
               runtime::Executor executor)
        : segments_(segments), store_(store), gate_(gate), executor_(std::move(executor)) {}

    // Errors: corrupt (the place names no map segment of the table), and PageStore::read's.
    runtime::Task<Result<Buffer>> read(format::PageSlot slot);
    // Up to 16 reads of at most 1 MiB in flight. Resolves when none is left in flight, also after
    // an error. Errors: as read, the handler's, stopping (the gate is closed).
    runtime::Task<Result<void>> read_all(std::vector<PageRead> pages, Handler handler);

    // An error found in the bytes of that page, with its place in front.
    Error corrupt_at(const format::PageSlot& slot, Error error) const;

  private:
    struct Reading;
    // The same out of another copy, when this one is not what the slot says. Gives `first` again
    // when there is no better one.
    runtime::Task<Result<Buffer>> read_better(format::PageSlot slot, Result<Buffer> first);
    runtime::Task<Result<Buffer>> read_copy(format::PageSlot slot, uint32_t copy);
    bool has_copies(const SegmentId& id) const { return store_.copy_count(id) > 1; }
    runtime::Task<Result<void>> hand_over(const PageRead& page, Bytes at, Reading& reading);
    runtime::Task<void> work(std::shared_ptr<Reading> reading);
    runtime::Task<Result<void>> read_window(std::shared_ptr<Reading> reading, size_t window);
    Result<SegmentId> segment_of(format::Place place) const;

    const SegmentTable& segments_;
    PageStore& store_;
    runtime::Gate& gate_;
    runtime::Executor executor_;
};

}  // namespace peplos::volume
