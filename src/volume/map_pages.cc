#include "volume/map_pages.h"

#include <algorithm>

#include "base/fault.h"
#include "volume/segment_writer.h"

namespace peplos::volume {

using runtime::Durability;
using runtime::Task;

Task<Result<void>> MapPages::open_segment(uint64_t bytes) {
    CHECK(table_ != nullptr);
    uint64_t wanted = format::kSegmentDataOffset + std::max(bytes, expected_bytes_);
    uint64_t run = format::segment_run_bytes(std::min(wanted, limits::kSegmentBytesMax));
    uint64_t least = format::segment_run_bytes(format::kSegmentDataOffset + bytes);
    CO_TRY_ASSIGN(uint32_t index, table_->reserve());
    for (;;) {
        auto created =
            co_await set_.create(format::SegmentKind::map, 0, run, media::Purpose::maintenance);
        if (created) {
            open_ = std::move(*created);
            break;
        }
        if (created.error().code() != Code::no_space || run <= least) {
            table_->release(index);
            co_return fail(std::move(created).error());
        }
        run /= 2;
    }
    SegmentEntry entry;
    entry.id = open_.id();
    entry.group = open_.group();
    entry.kind = static_cast<uint8_t>(format::SegmentKind::map);
    entry.state = SegmentState::open;
    CO_TRY(table_->add(index, entry));
    set_.put(index, open_);
    open_index_ = index;
    open_offset_ = format::kSegmentDataOffset;
    co_return Result<void>{};
}

Task<Result<PageRun>> MapPages::append(Buffer pages) {
    CHECK(pages.size() % kBlockBytes == 0);
    if (open_ && open_offset_ + pages.size() > open_.bytes()) CO_TRY(co_await seal_open());
    if (!open_) CO_TRY(co_await open_segment(pages.size()));
    PageRun run{open_index_, open_offset_};
    uint64_t bytes = pages.size();
    std::vector<Buffer> from{std::move(pages)};
    SegmentHandle handle = open_;
    auto written = co_await handle.write_vector(run.offset, std::move(from), Durability::volatile_);
    if (!written) {
        if (handle.copies()) leave_open();
        co_return fail(std::move(written).error());
    }
    open_offset_ += bytes;
    appended_bytes_ += bytes;
    expected_bytes_ -= std::min(expected_bytes_, bytes);
    co_return run;
}

Task<Result<void>> MapPages::seal_copies() {
    WrittenSegment segment;
    segment.handle = open_;
    segment.footer.header = set_.header_of(open_.id(), format::SegmentKind::map, 0);
    segment.footer.data_bytes = open_offset_ - format::kSegmentDataOffset;
    std::vector<SegmentHandle> handles{open_};
    CO_TRY(co_await set_.sync(std::move(handles)));
    CO_TRY(co_await seal_segment(segment));
    co_return co_await give_back_unused(segment.handle, segment.footer);
}

Task<Result<void>> MapPages::seal_open() {
    auto sealed = co_await seal_copies();
    if (!sealed) {
        if (open_.copies()) leave_open();
        co_return sealed;
    }
    uint64_t data_bytes = open_offset_ - format::kSegmentDataOffset;
    table_->seal(open_index_, static_cast<uint32_t>(data_bytes / format::kPlaceUnitBytes));
    open_ = {};
    co_return Result<void>{};
}

// Pages in it that the map names already move out with the next checkpoint; then it is dead.
void MapPages::leave_open() {
    PROBE("volume.map_pages.left");
    std::erase_if(left_, [this](uint32_t index) { return table_->find(index) == nullptr; });
    left_.insert(open_index_);
    uint64_t data_bytes = open_offset_ - format::kSegmentDataOffset;
    table_->seal(open_index_, static_cast<uint32_t>(data_bytes / format::kPlaceUnitBytes));
    open_ = {};
}

Task<Result<void>> MapPages::sync() {
    if (!open_) co_return Result<void>{};
    co_return co_await seal_open();
}

Result<SegmentHandle> MapPages::locate(SegmentId segment) const {
    SegmentHandle handle = set_.locate(segment);
    if (handle) return handle;
    return fail(set_.not_located(Code::not_found, fmt::format("map segment {}", segment)));
}

Error MapPages::corrupt_at(SegmentId segment, uint64_t offset, Error error) {
    Result<SegmentHandle> handle = locate(segment);
    if (!handle || error.code() != Code::corrupt) return error;
    return handle->corrupt_at(offset, error.message());
}

Task<Result<void>> MapPages::read(SegmentId segment, uint64_t offset, Buffer into) {
    CO_TRY_ASSIGN(SegmentHandle handle, locate(segment));
    co_return co_await handle.read(offset, std::move(into));
}

uint32_t MapPages::copy_count(SegmentId segment) const {
    Result<SegmentHandle> handle = locate(segment);
    return handle ? handle->copy_count() : 0;
}

Task<Result<void>> MapPages::read_copy(SegmentId segment, uint32_t copy, uint64_t offset,
                                       Buffer into) {
    CO_TRY_ASSIGN(SegmentHandle handle, locate(segment));
    co_return co_await handle.read_copy(copy, offset, std::move(into));
}

void MapPages::note_bad(SegmentId segment, uint32_t copy) {
    Result<SegmentHandle> handle = locate(segment);
    if (handle && copy < handle->copy_count()) handle->note_bad(copy);
}

}  // namespace peplos::volume
