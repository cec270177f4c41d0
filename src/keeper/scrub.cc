#include "keeper/scrub.h"

#include "base/crc32c.h"
#include "volume/segment_writer.h"

namespace peplos::keeper {

using runtime::Task;

namespace {

// A map segment without its map: every page vouches for itself.
Task<void> scrub_pages(volume::SegmentHandle handle, uint64_t data_bytes, ScrubReport& report) {
    uint64_t end = format::kSegmentDataOffset + data_bytes;
    Buffer data = Buffer::allocate(std::max<uint64_t>(data_bytes, kBlockBytes));
    if (data_bytes == 0 || end > handle.bytes()) co_return;
    auto read = co_await handle.read(format::kSegmentDataOffset, data);
    if (!read) {
        report.problems.push_back(read.error().message());
        co_return;
    }
    report.bytes_checked += data_bytes;
    Bytes bytes = std::as_const(data).bytes().first(data_bytes);
    for (uint64_t at = 0; at < data_bytes;) {
        auto page = format::verify_page(bytes.subspan(at));
        if (page) {
            at += *page;
            continue;
        }
        if (page.error().code() == Code::not_found) {  // padding behind a batch
            at = round_up(at + 1, kBlockBytes);
            continue;
        }
        Error error = handle.corrupt_at(format::kSegmentDataOffset + at, page.error().message());
        report.problems.push_back(error.message());
        at = round_up(at + 1, kBlockBytes);
    }
}

}  // namespace

Task<void> scrub_unopened(media::SegmentStore& store, SegmentId id, ScrubReport& report) {
    volume::SegmentHandle handle(store.find(id), &store);
    if (!handle) co_return;
    Buffer front = Buffer::allocate(format::kSegmentDataOffset);
    auto read = co_await handle.read(0, front);
    if (!read) {
        report.problems.push_back(read.error().message());
        co_return;
    }
    auto seal = format::decode_segment_front(front.bytes(), id);
    // A segment that a crash left without its first sector was never sealed either.
    if (seal && !seal->has_value()) co_return;
    auto sealed = co_await volume::read_index(handle);
    if (!sealed) {
        report.problems.push_back(sealed.error().message());
        co_return;
    }
    report.bytes_checked += format::kSegmentDataOffset + sealed->footer.index_bytes();
    if (sealed->footer.header.kind == format::SegmentKind::map) {
        co_await scrub_pages(handle, sealed->footer.data_bytes, report);
        co_return;
    }
    Buffer block = Buffer::allocate(kBlockBytes);
    for (const format::SegmentIndexEntry& item : sealed->entries) {
        uint64_t offset = uint64_t{item.offset_units} * format::kPlaceUnitBytes;
        read = co_await handle.read(offset, block);
        if (!read) {
            report.problems.push_back(read.error().message());
        } else if (crc32c(block.bytes()) != item.crc) {
            Error error = handle.corrupt_at(
                offset, fmt::format("block {} does not match its checksum", item.lba));
            report.problems.push_back(error.message());
        }
        report.bytes_checked += kBlockBytes;
    }
}

}  // namespace peplos::keeper
