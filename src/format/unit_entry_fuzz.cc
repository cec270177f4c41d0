#include "base/check.h"
#include "format/unit_entry.h"

// The unit's number and the incarnation are those of the seeds.
extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
    using namespace peplos;
    constexpr uint32_t kUnit = 8;
    constexpr Incarnation kIncarnation(0x1122334455667788);
    auto decoded =
        format::decode_unit_entry(std::as_bytes(std::span(data, size)), kUnit, kIncarnation);
    if (!decoded || !*decoded) return 0;
    auto bytes = format::encode_unit_entry(**decoded, kUnit, kIncarnation);
    auto again = format::decode_unit_entry(bytes, kUnit, kIncarnation);
    CHECK(again.has_value() && *again == *decoded);
    return 0;
}
