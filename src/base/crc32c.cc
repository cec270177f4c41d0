#include "base/crc32c.h"

#include <isa-l/crc.h>

namespace peplos {

uint32_t crc32c(Bytes bytes, uint32_t seed) {
    // ISA-L takes an int length and neither inverts its input nor its output.
    uint32_t state = ~seed;
    while (!bytes.empty()) {
        size_t count = std::min<size_t>(bytes.size(), 1u << 30);
        auto* data =
            const_cast<unsigned char*>(reinterpret_cast<const unsigned char*>(bytes.data()));
        state = crc32_iscsi(data, static_cast<int>(count), state);
        bytes = bytes.subspan(count);
    }
    return ~state;
}

}  // namespace peplos
