#include <algorithm>

#include "base/crc32c.h"
#include "format/segment_layout.h"

// Input: 8 KiB of front, then an index; shorter input is padded with zeros. The first byte's low
// bits choose which checksums are mended, so that the checks behind them are reached.
extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
    using namespace peplos;
    using namespace peplos::format;
    if (size == 0) return 0;
    const uint8_t mode = data[0];
    std::vector<std::byte> front(kSegmentDataOffset);
    std::memcpy(front.data(), data + 1, std::min(size - 1, front.size()));
    const auto mend = [&](size_t at) {
        const uint32_t zero = 0;
        std::memcpy(front.data() + at + 8, &zero, sizeof(zero));
        const uint32_t crc = crc32c(Bytes(front).subspan(at, kBlockBytes));
        std::memcpy(front.data() + at + 8, &crc, sizeof(crc));
    };
    if (mode & 1) mend(kSegmentHeaderOffset);
    if (mode & 2) mend(kSegmentFooterOffset);
    const auto header = decode_segment_header(front);
    if (!header) return 0;
    const auto sealed = decode_segment_front(front, header->id);
    if (!sealed || !*sealed) return 0;
    SegmentFooter footer = **sealed;
    CHECK(footer.header == *header && footer.bytes() <= limits::kSegmentBytesMax);
    std::vector<std::byte> index(segment_index_bytes(footer.entry_count));
    const size_t used = std::min(size - 1, front.size());
    const size_t rest = std::min(size - 1 - used, index.size());
    if (rest != 0) std::memcpy(index.data(), data + 1 + used, rest);
    const size_t bytes = footer.entry_count * sizeof(SegmentIndexEntry);
    if (mode & 4) footer.index_crc = bytes == 0 ? 0 : crc32c(Bytes(index).first(bytes));
    const auto entries = decode_segment_index(footer, index);
    if (!entries) return 0;
    std::vector<std::byte> again(index.size());
    CHECK(encode_segment_index(*entries, again) == footer.index_crc);
    for (const SegmentIndexEntry& entry : *entries) {
        CHECK(entry.map_entry(1).place.is_valid_as(PlaceKind::block));
    }
    return 0;
}
