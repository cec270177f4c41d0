#include "format/map_page.h"

#include <array>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "base/crc32c.h"
#include "format/segment_layout.h"

namespace peplos::format {
namespace {

constexpr uint64_t kSequence = (uint64_t{1} << 32) + 5;

PageIdentity identity_of(PageKind kind, uint64_t key) {
    return {LineageId(0xb2), VolumeId(0xa1), kind, key, kSequence};
}

struct Page {
    std::vector<std::byte> bytes;
    PageSlot slot;
};
// Cuts the page that `encode(out, crc)` wrote, with the slot its parent would hold.
template <typename Encode>
Page make_page(Encode encode) {
    Page page;
    page.bytes.resize(kPageBytesMax, std::byte{0xee});
    const uint32_t size = encode(MutableBytes(page.bytes), page.slot.crc);
    page.bytes.resize(size);
    page.slot.place = Place::make(PlaceKind::page, 1, 16, size / kPlaceUnitBytes);
    page.slot.generation = static_cast<uint32_t>(kSequence);
    return page;
}

Page leaf_page(std::span<const LeafItem> items) {
    return make_page([&](MutableBytes out, uint32_t& crc) {
        return encode_leaf(identity_of(PageKind::leaf, 12), items, out, crc);
    });
}

std::vector<LeafItem> leaf_items(uint32_t count, uint32_t step, bool scattered) {
    std::vector<LeafItem> items;
    for (uint32_t i = 0; i < count; ++i) {
        const uint32_t position = scattered ? (i * 37) % 1024 : i;
        items.push_back({i * step, {Place::block(3, segment_block_offset(position)), i * 99, 0}});
    }
    return items;
}

TEST(LeafPage, RoundTripInTheSmallerForm) {
    const struct {
        uint32_t count, step;
        bool scattered;
        size_t bytes;
    } cases[] = {
        {1, 1, false, 512},       // 64 + 16 + 4
        {1024, 1, false, 4608},   // one extent: 64 + 16 + 4,096
        {512, 2, true, 10'752},   // 512 extents: 64 + 512 * 20 = 10,304
        {1024, 1, true, 16'896},  // a full array: 64 + 16,384
    };
    for (const auto& c : cases) {
        const auto items = leaf_items(c.count, c.step, c.scattered);
        const Page page = leaf_page(items);
        EXPECT_EQ(page.bytes.size(), c.bytes) << c.count;
        std::array<LeafItem, kLeafEntryCount> out;
        const auto count = decode_leaf(page.bytes, identity_of(PageKind::leaf, 12), page.slot, out);
        ASSERT_TRUE(count.has_value()) << count.error().text();
        ASSERT_EQ(*count, items.size());
        for (size_t i = 0; i < items.size(); ++i) {
            EXPECT_EQ(out[i].index, items[i].index);
            EXPECT_EQ(out[i].entry, items[i].entry);
        }
    }
}

TEST(LeafPage, EveryFlippedByteIsFound) {
    for (const bool scattered : {false, true}) {
        const Page page = leaf_page(leaf_items(1024, 1, scattered));
        std::array<LeafItem, kLeafEntryCount> out;
        uint32_t used = 0;
        std::memcpy(&used, page.bytes.data() + 12, 4);
        for (size_t i = 0; i < used; ++i) {
            Page bad = page;
            bad.bytes[i] ^= std::byte{0x10};
            const auto count =
                decode_leaf(bad.bytes, identity_of(PageKind::leaf, 12), bad.slot, out);
            ASSERT_FALSE(count.has_value()) << i;
            EXPECT_EQ(count.error().code(), Code::corrupt) << i;
        }
    }
}

TEST(LeafPage, AnotherPageIsRefusedByName) {
    const Page page = leaf_page(leaf_items(3, 5, false));
    std::array<LeafItem, kLeafEntryCount> out;
    const auto refused = [&](PageIdentity expected, PageSlot slot) {
        const auto count = decode_leaf(page.bytes, expected, slot, out);
        EXPECT_FALSE(count.has_value());
        return count.error().message();
    };
    PageIdentity identity = identity_of(PageKind::leaf, 12);
    identity.key = 13;
    EXPECT_THAT(refused(identity, page.slot), ::testing::HasSubstr("map leaf 13"));
    identity = identity_of(PageKind::leaf, 12);
    identity.volume = VolumeId(5);
    EXPECT_THAT(refused(identity, page.slot), ::testing::HasSubstr("another page"));
    identity = identity_of(PageKind::leaf, 12);
    identity.lineage = LineageId(5);
    EXPECT_THAT(refused(identity, page.slot), ::testing::HasSubstr("another page"));
    identity = identity_of(PageKind::leaf, 12);
    PageSlot slot = page.slot;
    slot.generation ^= 1;  // an older version of the same leaf
    EXPECT_THAT(refused(identity, slot), ::testing::HasSubstr("sequence"));
    slot = page.slot;
    slot.crc ^= 1;
    EXPECT_THAT(refused(identity, slot), ::testing::HasSubstr("CRC"));
    EXPECT_FALSE(decode_leaf(Bytes(page.bytes).first(40), identity, page.slot, out));
}

// Rewrites the header's CRC (and the slot's) after a change to the body.
void reseal(Page& page) {
    uint32_t bytes = 0, crc = 0;
    std::memcpy(&bytes, page.bytes.data() + 12, 4);
    std::memcpy(page.bytes.data() + 8, &crc, 4);
    crc = crc32c(Bytes(page.bytes).first(bytes));
    std::memcpy(page.bytes.data() + 8, &crc, 4);
    page.slot.crc = crc;
}
template <typename T>
void poke(Page& page, size_t offset, T value) {
    std::memcpy(page.bytes.data() + offset, &value, sizeof(value));
    reseal(page);
}

TEST(LeafPage, LostBlocksAreOfVersion2Only) {
    for (const bool all_lost : {false, true}) {
        std::vector<LeafItem> items = leaf_items(all_lost ? 1024 : 100, 1, false);
        for (LeafItem& item : items) {
            if (all_lost || item.index % 7 == 0) item.entry = {Place::lost(), 0, 0};
        }
        Page page = leaf_page(items);
        uint16_t version = 0;
        std::memcpy(&version, page.bytes.data() + 4, 2);
        EXPECT_EQ(version, kMapVersionLost);
        std::array<LeafItem, kLeafEntryCount> out;
        const PageIdentity identity = identity_of(PageKind::leaf, 12);
        auto count = decode_leaf(page.bytes, identity, page.slot, out);
        ASSERT_TRUE(count.has_value()) << count.error().text();
        ASSERT_EQ(*count, items.size());
        for (size_t i = 0; i < items.size(); ++i)
            EXPECT_EQ(out[i].entry, items[i].entry);
        // In a page of version 1 nothing is lost; and no other kind of page has version 2.
        poke(page, 4, kMapVersion);
        count = decode_leaf(page.bytes, identity, page.slot, out);
        ASSERT_FALSE(count.has_value());
        EXPECT_EQ(count.error().code(), Code::corrupt);
    }
    std::array<PageSlot, kInteriorSlotCount> slots{};
    Page page = make_page([&](MutableBytes out, uint32_t& crc) {
        return encode_interior(identity_of(PageKind::interior, 3), std::span(slots).first(1), out,
                               crc);
    });
    poke(page, 4, kMapVersionLost);
    const auto decoded =
        decode_interior(page.bytes, identity_of(PageKind::interior, 3), page.slot, slots);
    ASSERT_FALSE(decoded.has_value());
    EXPECT_EQ(decoded.error().code(), Code::unsupported);
}

TEST(LeafPage, FieldsAreCheckedUnderAGoodCrc) {
    std::array<LeafItem, kLeafEntryCount> out;
    const auto code = [&](const Page& page) {
        const auto count = decode_leaf(page.bytes, identity_of(PageKind::leaf, 12), page.slot, out);
        return count.has_value() ? Code::busy : count.error().code();
    };
    const Page good = leaf_page(leaf_items(4, 3, false));
    Page bad = good;
    poke<uint16_t>(bad, 4, 3);  // version
    EXPECT_EQ(code(bad), Code::unsupported);
    bad = good;
    poke<uint8_t>(bad, 7, 9);  // encoding
    EXPECT_EQ(code(bad), Code::unsupported);
    bad = good;
    poke<uint32_t>(bad, 16, 1025);  // extents
    EXPECT_EQ(code(bad), Code::corrupt);
    bad = good;
    poke<uint16_t>(bad, 64 + 16, 0);  // the second extent begins before the first ends
    EXPECT_EQ(code(bad), Code::corrupt);
    bad = good;
    poke<uint16_t>(bad, 64 + 48 + 2, 1024);  // the last one runs over the end
    EXPECT_EQ(code(bad), Code::corrupt);
    bad = good;
    poke<uint64_t>(bad, 64 + 8, ~uint64_t{0});  // a place that is none
    EXPECT_EQ(code(bad), Code::corrupt);
    bad = leaf_page(leaf_items(1024, 1, true));
    poke<uint32_t>(bad, 64 + 12, 1);  // an entry's reserved field
    EXPECT_EQ(code(bad), Code::corrupt);
}

TEST(LeafPage, ExtentsAreCheckedToTheirBounds) {
    std::array<LeafItem, kLeafEntryCount> out;
    const auto code = [&](const Page& page) {
        const auto count = decode_leaf(page.bytes, identity_of(PageKind::leaf, 12), page.slot, out);
        return count.has_value() ? Code::busy : count.error().code();
    };
    const Page good = leaf_page(leaf_items(4, 3, false));
    constexpr size_t kExtent = 64 + 16;  // the second
    const auto with = [&](size_t offset, auto value) {
        Page bad = good;
        poke(bad, offset, value);
        return code(bad);
    };
    EXPECT_EQ(code(good), Code::busy);
    EXPECT_EQ(with(6, uint8_t{2}), Code::corrupt);             // the kind of another page
    EXPECT_EQ(with(16, uint32_t{0}), Code::corrupt);           // no extents
    EXPECT_EQ(with(16, uint32_t{1000}), Code::corrupt);        // more than the page holds
    EXPECT_EQ(with(16, uint32_t{3}), Code::corrupt);           // CRCs of blocks that are not named
    EXPECT_EQ(with(56, uint64_t{1}), Code::unsupported);       // a key
    EXPECT_EQ(with(kExtent + 2, uint16_t{0}), Code::corrupt);  // an extent of no blocks
    EXPECT_EQ(with(kExtent + 2, uint16_t{2}), Code::corrupt);  // of more than there are CRCs
    EXPECT_EQ(with(kExtent + 4, uint32_t{1}), Code::corrupt);  // its reserved field
    // Blocks behind the end of the largest segment.
    const uint64_t last = limits::kSegmentBytesMax - kBlockBytes;
    Page bad = good;
    poke(bad, kExtent + 8, Place::block(3, last).bits);
    EXPECT_EQ(code(bad), Code::busy);
    poke<uint16_t>(bad, kExtent + 2, 2);
    EXPECT_EQ(code(bad), Code::corrupt);
}

TEST(LeafPage, PlacesAreCheckedToTheLastBit) {
    const uint64_t good = Place::block(3, 8192).bits;
    ASSERT_TRUE(Place{good}.is_valid_as(PlaceKind::block));
    EXPECT_FALSE(Place{good}.is_valid_as(PlaceKind::page));
    EXPECT_FALSE(Place{good}.is_valid_as(PlaceKind::none));
    EXPECT_FALSE(Place{good | uint64_t{1} << 58}.is_valid_as(PlaceKind::block));
    EXPECT_FALSE(Place{good | uint64_t{1} << 50}.is_valid_as(PlaceKind::block));
    EXPECT_FALSE(Place::make(PlaceKind::block, 3, 16, 7).is_valid_as(PlaceKind::block));
    EXPECT_FALSE(Place::make(PlaceKind::page, 3, 16, 0).is_valid_as(PlaceKind::page));
    const uint32_t end = limits::kSegmentBytesMax / kPlaceUnitBytes;
    EXPECT_TRUE(Place::make(PlaceKind::page, 3, end - 5, 5).is_valid_as(PlaceKind::page));
    EXPECT_FALSE(Place::make(PlaceKind::page, 3, end - 4, 5).is_valid_as(PlaceKind::page));
}

TEST(LeafPage, ALostExtentIsOneBlock) {
    std::vector<LeafItem> items = leaf_items(2, 3, false);
    items[1].entry = {Place::lost(), 0, 0};
    Page page = leaf_page(items);
    std::array<LeafItem, kLeafEntryCount> out;
    const PageIdentity identity = identity_of(PageKind::leaf, 12);
    ASSERT_TRUE(decode_leaf(page.bytes, identity, page.slot, out).has_value());
    poke<uint16_t>(page, 64 + 16 + 2, 2);
    EXPECT_EQ(decode_leaf(page.bytes, identity, page.slot, out).error().code(), Code::corrupt);
    // Nothing but that one value is lost.
    page = leaf_page(items);
    poke(page, 64 + 16 + 8, Place::lost().bits | 1);
    EXPECT_EQ(decode_leaf(page.bytes, identity, page.slot, out).error().code(), Code::corrupt);
}

TEST(LeafPage, AFullArraySaysHowManyBlocksItHas) {
    std::array<LeafItem, kLeafEntryCount> out;
    const PageIdentity identity = identity_of(PageKind::leaf, 12);
    const Page good = leaf_page(leaf_items(1024, 1, true));
    Page bad = good;
    poke<uint32_t>(bad, 16, 1023);
    EXPECT_EQ(decode_leaf(bad.bytes, identity, bad.slot, out).error().code(), Code::corrupt);
    bad = good;
    poke<uint32_t>(bad, 12, 64 + 16 * 1024 - 16);  // one entry short
    EXPECT_EQ(decode_leaf(bad.bytes, identity, bad.slot, out).error().code(), Code::corrupt);
    bad = good;
    poke<uint32_t>(bad, 12, 20);  // not even its own header
    const auto count = decode_leaf(bad.bytes, identity, bad.slot, out);
    EXPECT_EQ(count.error().code(), Code::corrupt);
}

// A block whose place follows in its bits but not in its offset begins an extent of its own: the
// offset runs over into the length.
TEST(LeafPage, AnExtentEndsWhereTheOffsetDoes) {
    const uint32_t last = kPlaceOffsetUnitsMax + 1 - kBlockUnits;
    const Place first = Place::make(PlaceKind::block, 3, last, kBlockUnits);
    const Place over{first.bits + (uint64_t{kBlockUnits} << 26)};
    ASSERT_EQ(over.offset_units(), 0u);
    const std::vector<LeafItem> items = {{4, {first, 1, 0}}, {5, {over, 2, 0}}};
    const Page page = leaf_page(items);
    uint32_t extents = 0;
    std::memcpy(&extents, page.bytes.data() + 16, 4);
    EXPECT_EQ(extents, 2u);
}

// Where no parent is known a page speaks for itself, and only as far as its CRC holds.
TEST(AnyPage, SaysWhoItIs) {
    Page page = leaf_page(leaf_items(4, 3, false));
    std::vector<std::byte> bytes = page.bytes;
    bytes.resize(bytes.size() + 512, std::byte{0xee});
    auto outline = outline_page(bytes);
    ASSERT_TRUE(outline.has_value()) << outline.error().text();
    EXPECT_EQ(outline->identity, identity_of(PageKind::leaf, 12));
    EXPECT_EQ(outline->crc, page.slot.crc);
    EXPECT_EQ(outline->bytes, page.bytes.size());
    const auto code = [](Bytes b) {
        const auto verified = verify_page(b);
        return verified.has_value() ? Code::busy : verified.error().code();
    };
    EXPECT_EQ(code(Bytes(bytes).first(63)), Code::corrupt);
    EXPECT_EQ(code(Bytes(bytes).first(page.bytes.size() - 1)), Code::corrupt);
    EXPECT_EQ(code(std::vector<std::byte>(64)), Code::not_found);
    for (size_t field : {0, 8, 12}) {  // magic, crc, bytes: what is not all zero is no free place
        std::vector<std::byte> rest(512);
        rest[field] = std::byte{1};
        EXPECT_EQ(code(rest), Code::corrupt) << field;
    }
    bytes[70] ^= std::byte{1};
    EXPECT_EQ(outline_page(bytes).error().code(), Code::corrupt);
    poke<uint32_t>(page, 12, 63);
    EXPECT_EQ(code(page.bytes), Code::corrupt);
}

TEST(InteriorPage, RoundTripAndRefusals) {
    std::array<PageSlot, kInteriorSlotCount> slots{}, out;
    slots[0] = {Place::make(PlaceKind::page, 4, 16, 1), 11, 5};
    slots[700] = {Place::make(PlaceKind::page, 4, 17, 33), 12, 5};
    const PageIdentity identity = identity_of(PageKind::interior, 2);
    const Page page = make_page([&](MutableBytes o, uint32_t& crc) {
        return encode_interior(identity, std::span(slots).first(701), o, crc);
    });
    ASSERT_TRUE(decode_interior(page.bytes, identity, page.slot, out).has_value());
    EXPECT_EQ(out, slots);
    Page bad = page;
    poke<uint64_t>(bad, 64, Place::block(4, 8192).bits);
    EXPECT_EQ(decode_interior(bad.bytes, identity, bad.slot, out).error().code(), Code::corrupt);
    bad = page;
    poke<uint32_t>(bad, 16, 700);
    EXPECT_EQ(decode_interior(bad.bytes, identity, bad.slot, out).error().code(), Code::corrupt);
    std::array<PageSlot, kInteriorSlotCount> full;
    full.fill(slots[0]);
    EXPECT_EQ(make_page([&](MutableBytes o, uint32_t& crc) {
                  return encode_interior(identity, full, o, crc);
              }).bytes.size(),
              kPageBytesMax);
}

TEST(InteriorPage, ElementsAreWhatTheHeaderSays) {
    std::array<PageSlot, kInteriorSlotCount> slots{}, out;
    slots[0] = {Place::make(PlaceKind::page, 4, 16, 1), 11, 5};
    const PageIdentity identity = identity_of(PageKind::interior, 2);
    const Page page = make_page([&](MutableBytes o, uint32_t& crc) {
        return encode_interior(identity, std::span(slots).first(2), o, crc);
    });
    const auto refused = [&](size_t offset, auto value) {
        Page bad = page;
        poke(bad, offset, value);
        const auto decoded = decode_interior(bad.bytes, identity, bad.slot, out);
        return decoded.has_value() ? Code::busy : decoded.error().code();
    };
    EXPECT_EQ(refused(7, uint8_t{2}), Code::unsupported);   // extents
    EXPECT_EQ(refused(16, uint32_t{1025}), Code::corrupt);  // more than a page has
    EXPECT_EQ(refused(16, uint32_t{1}), Code::corrupt);     // fewer than it has
    // A page of more than a page; an empty slot that says something all the same.
    EXPECT_EQ(refused(64, Place::make(PlaceKind::page, 4, 16, 34).bits), Code::corrupt);
    EXPECT_EQ(refused(64 + 16 + 8, uint32_t{1}), Code::corrupt);
    // None at all is an empty page.
    const Page empty = make_page(
        [&](MutableBytes o, uint32_t& crc) { return encode_interior(identity, {}, o, crc); });
    ASSERT_TRUE(decode_interior(empty.bytes, identity, empty.slot, out).has_value());
    EXPECT_EQ(out, (std::array<PageSlot, kInteriorSlotCount>{}));
}

SegmentEntry sample_entry(uint32_t sequence, SegmentKind kind = SegmentKind::data) {
    SegmentEntry entry;
    entry.id = {VolumeId(0xa1), 1, sequence};
    entry.sealed_lsn = Lsn(4);
    entry.block_count = 100;
    entry.live_count = 40;
    entry.kind = static_cast<uint8_t>(kind);
    entry.state = SegmentState::sealed;
    return entry;
}

TEST(SegmentsPage, RoundTripAndRefusals) {
    std::vector<SegmentEntry> entries(kSegmentPageEntryCount), out(kSegmentPageEntryCount);
    entries[0] = sample_entry(1);
    entries[255] = sample_entry(2, SegmentKind::relocated);
    const PageIdentity identity = identity_of(PageKind::segments, 7);
    const auto make = [&] {
        return make_page([&](MutableBytes o, uint32_t& crc) {
            return encode_segments(identity, entries, o, crc);
        });
    };
    Page page = make();
    EXPECT_EQ(page.bytes.size(), kPageBytesMax);
    ASSERT_TRUE(decode_segments(page.bytes, identity, page.slot, out).has_value());
    EXPECT_EQ(out, entries);
    entries[3] = sample_entry(3);
    entries[3].live_count = 101;
    page = make();
    EXPECT_EQ(decode_segments(page.bytes, identity, page.slot, out).error().code(), Code::corrupt);
    entries[3] = sample_entry(3, SegmentKind::map);
    page = make();
    EXPECT_FALSE(decode_segments(page.bytes, identity, page.slot, out));
    entries[3] = sample_entry(3);
    entries[3].kind = 77;
    page = make();
    EXPECT_FALSE(decode_segments(page.bytes, identity, page.slot, out));
}

TEST(SegmentsPage, EntriesAreCheckedToTheLastField) {
    std::vector<SegmentEntry> out(kSegmentPageEntryCount);
    const PageIdentity identity = identity_of(PageKind::segments, 7);
    const auto refused = [&](auto change) {
        std::vector<SegmentEntry> entries = {sample_entry(1)};
        change(entries[0]);
        const Page page = make_page([&](MutableBytes o, uint32_t& crc) {
            return encode_segments(identity, entries, o, crc);
        });
        return !decode_segments(page.bytes, identity, page.slot, out).has_value();
    };
    using E = SegmentEntry;
    EXPECT_FALSE(refused([](E&) {}));
    EXPECT_FALSE(refused([](E& e) { e = {}; }));
    EXPECT_TRUE(refused([](E& e) { e.state = SegmentState::none; }));  // unused, and says something
    EXPECT_TRUE(refused([](E& e) { e.state = SegmentState(3); }));
    EXPECT_TRUE(refused([](E& e) { e.id = {}; }));
    EXPECT_TRUE(refused([](E& e) { e.kind = 0; }));
    EXPECT_TRUE(refused([](E& e) { e.lifetime_class = kSegmentClassCount; }));
    EXPECT_TRUE(refused([](E& e) { e.media_class = 1; }));
    EXPECT_TRUE(refused([](E& e) { e.ec_data = 4; }));
    EXPECT_TRUE(refused([](E& e) { e.ec_parity = 2; }));
    EXPECT_TRUE(refused([](E& e) { e.reserved[5] = 1; }));
}

struct Root {
    RootPage root;
    RootRef ref;
    std::vector<std::byte> bytes;
};
Root sample_root() {
    Root r;
    r.root.drained_lsn = Lsn(90);
    r.root.meta_lsn = Lsn(95);
    r.root.block_count = uint64_t{3} << 30;
    r.root.mapped_count = 40;
    const PageSlot slot{Place::make(PlaceKind::page, 4, 16, 1), 11, 5};
    r.root.interiors = {{0, 0, slot}, {3071, 0, slot}};
    r.root.segment_pages = {{0, 0, slot}};
    r.root.map_segments = {{4, 0, sample_entry(9, SegmentKind::map)}};
    r.bytes.resize(root_page_bytes(r.root));
    encode_root(identity_of(PageKind::root, 0), r.root, r.bytes, r.ref.crc);
    r.ref.segment = {VolumeId(0xa1), 1, 9};
    r.ref.segment_index = 4;
    r.ref.bytes = static_cast<uint32_t>(r.bytes.size());
    r.ref.sequence = kSequence;
    return r;
}

TEST(RootPage, RoundTripAndEveryFlippedByte) {
    const Root r = sample_root();
    const PageIdentity identity = identity_of(PageKind::root, 0);
    const auto root = decode_root(r.bytes, identity, r.ref);
    ASSERT_TRUE(root.has_value()) << root.error().text();
    EXPECT_EQ(root->meta_lsn, Lsn(95));
    ASSERT_EQ(root->interiors.size(), 2u);
    EXPECT_EQ(root->interiors[1].key, 3071u);
    EXPECT_EQ(root->map_segments[0].entry, r.root.map_segments[0].entry);
    uint32_t used = 0;
    std::memcpy(&used, r.bytes.data() + 12, 4);
    for (size_t i = 0; i < used; ++i) {
        std::vector<std::byte> bytes = r.bytes;
        bytes[i] ^= std::byte{0x02};
        EXPECT_EQ(decode_root(bytes, identity, r.ref).error().code(), Code::corrupt) << i;
    }
}

TEST(RootPage, FieldsAreCheckedUnderAGoodCrc) {
    const PageIdentity identity = identity_of(PageKind::root, 0);
    const auto refused = [&](auto change) {
        Root r = sample_root();
        change(r.root);
        encode_root(identity, r.root, r.bytes, r.ref.crc);
        return !decode_root(r.bytes, identity, r.ref).has_value();
    };
    EXPECT_FALSE(refused([](RootPage&) {}));
    EXPECT_TRUE(refused([](RootPage& r) { r.block_count = uint64_t{1} << 40; }));
    EXPECT_TRUE(refused([](RootPage& r) { r.mapped_count = r.block_count + 1; }));
    EXPECT_TRUE(refused([](RootPage& r) { r.interiors[1].key = 3072; }));
    EXPECT_TRUE(refused([](RootPage& r) { r.interiors[1].key = 0; }));
    EXPECT_TRUE(refused([](RootPage& r) { r.interiors[0].slot = {}; }));
    EXPECT_TRUE(refused([](RootPage& r) { r.map_segments[0].entry.kind = 1; }));
    EXPECT_TRUE(refused([](RootPage& r) { r.map_segments[0].segment_index = 1 << 26; }));
}

TEST(RootPage, ChildrenAndSegmentsAreCheckedToTheLastField) {
    const PageIdentity identity = identity_of(PageKind::root, 0);
    const auto refused = [&](auto change) {
        Root r = sample_root();
        change(r.root);
        r.bytes.resize(root_page_bytes(r.root));
        encode_root(identity, r.root, r.bytes, r.ref.crc);
        return !decode_root(r.bytes, identity, r.ref).has_value();
    };
    using P = RootPage;
    EXPECT_TRUE(refused([](P& r) { r.interiors[0].reserved = 1; }));
    EXPECT_TRUE(refused([](P& r) { r.interiors[0].slot.place = Place::block(4, 8192); }));
    EXPECT_TRUE(refused([](P& r) { r.segment_pages[0].key = 1 << 18; }));
    EXPECT_TRUE(refused([](P& r) { r.map_segments.push_back(r.map_segments[0]); }));
    EXPECT_TRUE(refused([](P& r) { r.map_segments[0].reserved = 1; }));
    EXPECT_TRUE(refused([](P& r) { r.map_segments[0].entry = {}; }));
    EXPECT_TRUE(refused([](P& r) { r.map_segments[0].entry.ec_data = 1; }));
    EXPECT_TRUE(refused([](P& r) {
        r.mapped_count = 1;
        r.orphan_count_max = UINT64_MAX;
    }));
}

// Bytes of the page, under a CRC that holds and that the reference names.
TEST(RootPage, WhatLiesOrBelongsToALaterFormatIsRefused) {
    const PageIdentity identity = identity_of(PageKind::root, 0);
    const auto code = [&](size_t offset, auto value) {
        const Root r = sample_root();
        Page page{r.bytes, {}};
        poke(page, offset, value);
        RootRef ref = r.ref;
        ref.crc = page.slot.crc;
        const auto root = decode_root(page.bytes, identity, ref);
        return root.has_value() ? Code::busy : root.error().code();
    };
    constexpr size_t kRaw = 64;
    EXPECT_EQ(code(kRaw, uint64_t{1}), Code::busy);
    EXPECT_EQ(code(7, uint8_t{2}), Code::corrupt);           // encoding
    EXPECT_EQ(code(52, uint32_t{2}), Code::corrupt);         // the sequence's high half
    EXPECT_EQ(code(12, uint32_t{100}), Code::corrupt);       // not the whole root
    EXPECT_EQ(code(kRaw + 32, uint32_t{3}), Code::corrupt);  // more children than there are
    EXPECT_EQ(code(kRaw + 32, UINT32_MAX), Code::corrupt);
    EXPECT_EQ(code(kRaw + 44, uint32_t{1}), Code::unsupported);  // a birth interval
    EXPECT_EQ(code(kRaw + 48, uint64_t{1}), Code::unsupported);  // a clone's parent
    EXPECT_EQ(code(kRaw + 72, uint64_t{1}), Code::unsupported);  // a deadlist
    EXPECT_EQ(code(kRaw + 88, uint64_t{1}), Code::unsupported);  // lost blocks in version 1
    EXPECT_EQ(code(kRaw + 96, uint64_t{1}), Code::unsupported);  // orphans
    const std::vector<std::byte> large(kRootBytesMax + kPlaceUnitBytes);
    EXPECT_EQ(decode_root(large, identity, sample_root().ref).error().code(), Code::corrupt);
}

}  // namespace
}  // namespace peplos::format
