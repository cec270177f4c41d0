#include "keeper/scrub.h"

#include "base/crc32c.h"
#include "volume/segment_writer.h"

namespace peplos::keeper {

using runtime::Task;

Task<void> scrub_unopened(media::SegmentStore& store, SegmentId id, ScrubReport& report) {
    volume::SegmentHandle handle{store.find(id), &store};
    if (!handle.pin) co_return;
    const media::SegmentInfo info = handle.pin.info();
    auto problem = [&report, &info](uint64_t offset, std::string_view what) {
        report.problems.push_back(fmt::format("volume {} segment {} (unit {}) offset {}: {}",
                                              info.volume, info.id, info.first_unit, offset, what));
    };
    Buffer front = Buffer::allocate(format::kSegmentDataOffset);
    auto read = co_await store.read(handle.pin, 0, front);
    if (!read) {
        problem(0, read.error().message());
        co_return;
    }
    auto seal = format::decode_segment_front(front.bytes(), id);
    if (!seal) {
        // A segment that a crash left without its first sector was never sealed either.
        problem(0, seal.error().message());
        co_return;
    }
    if (!seal->has_value()) co_return;
    auto sealed = co_await volume::read_index(handle);
    if (!sealed) {
        problem(0, sealed.error().message());
        co_return;
    }
    report.bytes_checked += format::kSegmentDataOffset + sealed->footer.index_bytes();
    Buffer block = Buffer::allocate(kBlockBytes);
    for (const format::SegmentIndexEntry& item : sealed->entries) {
        uint64_t offset = uint64_t{item.offset_units} * format::kPlaceUnitBytes;
        read = co_await store.read(handle.pin, offset, block);
        if (!read) {
            problem(offset, read.error().message());
        } else if (crc32c(block.bytes()) != item.crc) {
            problem(offset, fmt::format("block {} does not match its checksum", item.lba));
        }
        report.bytes_checked += kBlockBytes;
    }
}

}  // namespace peplos::keeper
