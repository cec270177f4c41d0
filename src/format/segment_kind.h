#pragma once

#include <cstdint>

namespace peplos::format {

// What a segment holds: in its header, in the unit table and in the volume's segment table.
enum class SegmentKind : uint8_t {
    data = 1,       // a drain's output
    relocated = 2,  // the cleaner's output; index entries carry the old place
    large = 3,      // payload of large writes, referenced by write_ref records
    map = 4,        // map pages, no index
};
constexpr bool is_segment_kind(uint8_t value) {
    return value >= 1 && value <= 4;
}

}  // namespace peplos::format
