#include "base/check.h"
#include "base/crc32c.h"
#include "format/record.h"

// The checksum is mended first, so that the fuzzer reaches what lies behind it.
extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
    using namespace peplos;
    Bytes input = std::as_bytes(std::span(data, size));
    std::ignore = format::decode_record(input);
    if (size < 16) return 0;
    std::vector<std::byte> bytes(input.begin(), input.end());
    uint32_t length = 0;
    std::memcpy(&length, bytes.data() + 12, sizeof(length));
    if (length < 16 || length > size) return 0;
    uint32_t crc = crc32c(Bytes(bytes).first(length).subspan(8));
    std::memcpy(bytes.data() + 4, &crc, sizeof(crc));
    auto decoded = format::decode_record(bytes);
    if (!decoded) return 0;
    std::vector<std::byte> encoded(format::encoded_bytes(decoded->record));
    format::encode_record(decoded->record, encoded);
    auto again = format::decode_record(encoded);
    CHECK(again.has_value() && again->record.body == decoded->record.body &&
          again->record.crcs == decoded->record.crcs && again->record.lsn == decoded->record.lsn);
    return 0;
}
