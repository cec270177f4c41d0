#include <array>

#include "base/crc32c.h"
#include "format/map_page.h"

// Input: one byte (low 2 bits: page kind; bit 2: mend the checksum and take the parent's word from
// the page), then a page.
extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
    using namespace peplos;
    using namespace peplos::format;
    if (size < 1 + kPageHeaderBytes) return 0;
    const auto kind = static_cast<PageKind>(1 + (data[0] & 3));
    const bool mended = (data[0] & 4) != 0;
    std::vector<std::byte> page(round_up(size - 1, kPlaceUnitBytes));
    std::memcpy(page.data(), data + 1, size - 1);
    PageIdentity identity{LineageId(0xb2), VolumeId(0xa1), kind, 0, 0};
    PageSlot slot{Place::make(PlaceKind::page, 1, 16, 1), 0, 0};
    std::memcpy(&identity.key, page.data() + 40, sizeof(identity.key));
    std::memcpy(&identity.sequence, page.data() + 48, sizeof(identity.sequence));
    slot.generation = static_cast<uint32_t>(identity.sequence);
    uint32_t bytes = 0;
    std::memcpy(&bytes, page.data() + 12, sizeof(bytes));
    if (mended && bytes >= kPageHeaderBytes && bytes <= page.size()) {
        std::memset(page.data() + 8, 0, sizeof(slot.crc));
        slot.crc = crc32c(Bytes(page).first(bytes));
        std::memcpy(page.data() + 8, &slot.crc, sizeof(slot.crc));
    } else {
        std::memcpy(&slot.crc, page.data() + 8, sizeof(slot.crc));
    }
    if (kind == PageKind::leaf) {
        std::array<LeafItem, kLeafEntryCount> items;
        const auto count = decode_leaf(page, identity, slot, items);
        for (uint32_t i = 0; count && i < *count; ++i) {
            CHECK(items[i].entry.place.is_valid_as(PlaceKind::block));
            CHECK(items[i].index < kLeafEntryCount);
            CHECK(i == 0 || items[i - 1].index < items[i].index);
        }
    } else if (kind == PageKind::interior) {
        std::array<PageSlot, kInteriorSlotCount> slots;
        (void)decode_interior(page, identity, slot, slots).has_value();
    } else if (kind == PageKind::segments) {
        std::vector<SegmentEntry> entries(kSegmentPageEntryCount);
        (void)decode_segments(page, identity, slot, entries).has_value();
    } else {
        RootRef ref;
        ref.crc = slot.crc;
        ref.sequence = identity.sequence;
        (void)decode_root(page, identity, ref).has_value();
    }
    return 0;
}
