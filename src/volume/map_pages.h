#pragma once

#include <set>

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
    uint32_t copy_count(SegmentId segment) const override;
    runtime::Task<Result<void>> read_copy(SegmentId segment, uint32_t copy, uint64_t offset,
                                          Buffer into) override;
    void note_bad(SegmentId segment, uint32_t copy) override;
    bool is_to_be_left(uint32_t segment_index) const override {
        return left_.contains(segment_index);
    }
    Error corrupt_at(SegmentId segment, uint64_t offset, Error error) override;

    uint64_t appended_bytes() const { return appended_bytes_; }

  private:
    runtime::Task<Result<void>> open_segment(uint64_t bytes);
    runtime::Task<Result<void>> seal_open();
    runtime::Task<Result<void>> seal_copies();
    Result<SegmentHandle> locate(SegmentId segment) const;
    // A copy of the open segment could not be written: no root will rest on it.
    void leave_open();

    SegmentSet& set_;
    SegmentTable* table_ = nullptr;
    SegmentHandle open_;
    uint32_t open_index_ = 0;
    uint64_t open_offset_ = 0;
    uint64_t expected_bytes_ = 0;
    uint64_t appended_bytes_ = 0;
    std::set<uint32_t> left_;  // by index
};

}  // namespace peplos::volume
