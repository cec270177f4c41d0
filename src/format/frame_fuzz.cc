#include "base/check.h"
#include "base/crc32c.h"
#include "format/frame.h"

// The checksums are mended first, so that the fuzzer reaches what lies behind them.
extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
    using namespace peplos;
    Bytes input = std::as_bytes(std::span(data, size));
    std::ignore = format::decode_frame(input);
    std::ignore = format::decode_frame_header(input);
    if (size < format::kFrameHeaderBytes) return 0;
    std::vector<std::byte> bytes(input.begin(), input.end());
    uint32_t area_bytes = 0;
    std::memcpy(&area_bytes, bytes.data() + 72, sizeof(area_bytes));
    if (area_bytes >= format::kFrameHeaderBytes && area_bytes <= size) {
        uint32_t crc = crc32c(Bytes(bytes).first(area_bytes).subspan(format::kFrameHeaderBytes));
        std::memcpy(bytes.data() + 12, &crc, sizeof(crc));
    }
    uint32_t crc = crc32c(Bytes(bytes).first(format::kFrameHeaderBytes).subspan(12));
    std::memcpy(bytes.data() + 8, &crc, sizeof(crc));
    auto decoded = format::decode_frame(bytes);
    if (!decoded) return 0;
    CHECK(decoded->metadata_bytes <= size && decoded->records_offset() <= size);
    CHECK(decoded->witnesses.size() <= format::kFrameWitnessCountMax);
    return 0;
}
