#include "base/check.h"
#include "format/superblock.h"

// Whatever decodes encodes to something that decodes to the same.
extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
    using namespace peplos;
    auto decoded = format::decode_superblock(std::as_bytes(std::span(data, size)));
    if (!decoded) return 0;
    std::vector<std::byte> block(format::kSuperblockBytes);
    format::encode_superblock(*decoded, block);
    auto again = format::decode_superblock(block);
    CHECK(again.has_value() && *again == *decoded);
    return 0;
}
