#include "base/ids.h"

namespace peplos {

std::string DeviceId::text() const {
    std::string out;
    for (uint8_t byte : bytes)
        out += fmt::format("{:02x}", byte);
    return out;
}

std::string SegmentId::text() const {
    return fmt::format("{:016x}-{:x}-{:x}", writer.value, epoch, sequence);
}

uint64_t parse_hex_id(std::string_view text) {
    if (text.size() != 16) return 0;
    uint64_t value = 0;
    for (char c : text) {
        uint64_t digit = 0;
        if (c >= '0' && c <= '9') {
            digit = static_cast<uint64_t>(c - '0');
        } else if (c >= 'a' && c <= 'f') {
            digit = static_cast<uint64_t>(c - 'a') + 10;
        } else {
            return 0;
        }
        value = value * 16 + digit;
    }
    return value;
}

}  // namespace peplos
