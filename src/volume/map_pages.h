#pragma once

#include "volume/page_store.h"
#include "volume/segment_set.h"
#include "volume/segment_table.h"

namespace peplos::volume {

// The block map's pages in map segments of the volume. A map segment takes one checkpoint's pages
// and is sealed by sync(); so none is ever appended to after a restart.
class MapPages final : public PageStore {
  public:
    explicit MapPages(SegmentSet& set) : set_(set) {}
    // The table in which map segments get their index. Call it before the first append.
    void set_table(SegmentTable* table) { table_ = table; }

    void expect(uint64_t bytes) override { expected_bytes_ = bytes; }
    runtime::Task<Result<PageRun>> append(Buffer pages) override;
    runtime::Task<Result<void>> sync() override;
    runtime::Task<Result<void>> read(SegmentId segment, uint64_t offset, Buffer into) override;
    Error corrupt_at(SegmentId segment, uint64_t offset, Error error) override;

    uint64_t appended_bytes() const { return appended_bytes_; }

  private:
    runtime::Task<Result<void>> open_segment(uint64_t bytes);
    runtime::Task<Result<void>> seal_open();

    SegmentSet& set_;
    SegmentTable* table_ = nullptr;
    SegmentHandle open_;
    uint32_t open_index_ = 0;
    uint64_t open_offset_ = 0;
    uint64_t expected_bytes_ = 0;
    uint64_t appended_bytes_ = 0;
};

}  // namespace peplos::volume
