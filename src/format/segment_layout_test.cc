#include "format/segment_layout.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "base/buffer.h"
#include "base/crc32c.h"

namespace peplos::format {
namespace {

SegmentHeader sample_header() {
    return {SegmentId{VolumeId(0xa1), 3, 7},
            VolumeId(0xa1),
            LineageId(0xb2),
            Epoch(3),
            SegmentKind::data,
            2,
            Codec::none};
}

struct Sample {
    SegmentFooter footer;
    std::vector<SegmentIndexEntry> entries;
    std::vector<std::byte> front = std::vector<std::byte>(kSegmentDataOffset);
    std::vector<std::byte> index;
};

Sample sample(uint32_t count = 5) {
    Sample s;
    for (uint32_t i = 0; i < count; ++i) {
        SegmentIndexEntry entry;
        entry.lba = Lba(100 + i / 2);
        entry.lsn = Lsn(10 + i);
        entry.offset_units = static_cast<uint32_t>(segment_block_offset(i) / kPlaceUnitBytes);
        entry.crc = i * 77;
        s.entries.push_back(entry);
    }
    s.index.resize(segment_index_bytes(count));
    s.footer.header = sample_header();
    s.footer.lsn_min = Lsn(10);
    s.footer.lsn_max = Lsn(10 + count - 1);
    s.footer.entry_count = count;
    s.footer.data_bytes = uint64_t{count} * kBlockBytes;
    s.footer.index_crc = encode_segment_index(s.entries, s.index);
    encode_segment_header(s.footer.header, std::span(s.front).first(kBlockBytes));
    encode_segment_footer(s.footer, std::span(s.front).subspan(kSegmentFooterOffset));
    return s;
}

TEST(SegmentLayout, RoundTrip) {
    const Sample s = sample();
    EXPECT_EQ(*decode_segment_header(s.front), sample_header());
    const auto footer = decode_segment_front(s.front, s.footer.header.id);
    ASSERT_TRUE(footer.has_value() && footer->has_value());
    EXPECT_EQ(**footer, s.footer);
    EXPECT_EQ(footer->value().bytes(), 8192u + 5 * 4096 + 4096);
    EXPECT_EQ(*decode_segment_index(s.footer, s.index), s.entries);
    EXPECT_EQ(s.entries[1].map_entry(9).place, Place::block(9, segment_block_offset(1)));
}

TEST(SegmentLayout, CapacityFitsTheRun) {
    for (uint64_t run = limits::kSegmentBytesMin; run <= limits::kSegmentBytesMax; run *= 2) {
        const uint32_t count = segment_block_count_max(run);
        EXPECT_LE(segment_bytes_for(count), run);
        EXPECT_GT(segment_bytes_for(count + 1), run);
        EXPECT_EQ(segment_run_bytes(segment_bytes_for(count)), run);
    }
    EXPECT_EQ(kSegmentEntryCountMax, 8110u);
}

TEST(SegmentLayout, NeverSealedIsNotCorrupt) {
    Sample s = sample();
    std::fill(s.front.begin() + kSegmentFooterOffset, s.front.end(), std::byte{0});
    EXPECT_EQ(decode_segment_front(s.front, s.footer.header.id).value(), std::nullopt);
    // The footer of the segment that had the place before.
    SegmentFooter old = s.footer;
    old.header.id.sequence = 6;
    encode_segment_footer(old, std::span(s.front).subspan(kSegmentFooterOffset));
    EXPECT_EQ(decode_segment_front(s.front, s.footer.header.id).value(), std::nullopt);
}

TEST(SegmentLayout, EveryFlippedByteIsFound) {
    const Sample s = sample();
    for (size_t i = 0; i < s.front.size(); ++i) {
        std::vector<std::byte> front = s.front;
        front[i] ^= std::byte{0x40};
        const auto footer = decode_segment_front(front, s.footer.header.id);
        // A damaged footer magic reads as never sealed, which whoever knows better refuses.
        const bool magic = i >= kSegmentFooterOffset && i < kSegmentFooterOffset + 8;
        if (magic) {
            EXPECT_EQ(footer.value(), std::nullopt);
        } else {
            ASSERT_FALSE(footer.has_value()) << i;
            EXPECT_EQ(footer.error().code(), Code::corrupt) << i;
        }
    }
    for (size_t i = 0; i < s.entries.size() * sizeof(SegmentIndexEntry); ++i) {
        std::vector<std::byte> index = s.index;
        index[i] ^= std::byte{0x01};
        EXPECT_EQ(decode_segment_index(s.footer, index).error().code(), Code::corrupt) << i;
    }
    EXPECT_EQ(decode_segment_index(s.footer, Bytes(s.index).first(100)).error().code(),
              Code::corrupt);
}

// A checksum that holds does not make a field true.
TEST(SegmentLayout, FieldsAreCheckedUnderAGoodCrc) {
    const auto refused = [](auto change) {
        Sample s = sample();
        change(s.entries[2]);
        s.footer.index_crc = crc32c(std::as_bytes(std::span(s.entries)));
        std::memcpy(s.index.data(), s.entries.data(), 5 * sizeof(SegmentIndexEntry));
        const auto entries = decode_segment_index(s.footer, s.index);
        EXPECT_FALSE(entries.has_value());
        return entries.has_value() ? Code::busy : entries.error().code();
    };
    using E = SegmentIndexEntry;
    EXPECT_EQ(refused([](E& e) { e.lba = Lba(1); }), Code::corrupt);
    EXPECT_EQ(refused([](E& e) { e.lba = Lba(~uint64_t{0}); }), Code::corrupt);
    EXPECT_EQ(refused([](E& e) { e.lsn = Lsn(99); }), Code::corrupt);
    EXPECT_EQ(refused([](E& e) { e.offset_units = 8; }), Code::corrupt);
    EXPECT_EQ(refused([](E& e) { e.offset_units = 1 << 16; }), Code::corrupt);
    EXPECT_EQ(refused([](E& e) { e.length_units = 9; }), Code::corrupt);
    EXPECT_EQ(refused([](E& e) { e.birth = 1; }), Code::corrupt);
    EXPECT_EQ(refused([](E& e) { e.old_place = Place::block(1, 8192); }), Code::corrupt);
    EXPECT_EQ(refused([](E& e) { e.codec = Codec(1); }), Code::unsupported);
    EXPECT_EQ(refused([](E& e) { e.flags = 1; }), Code::unsupported);
}

TEST(SegmentLayout, AnUnknownVersionIsRefused) {
    Sample s = sample();
    const uint16_t version = 2;
    std::memcpy(s.front.data() + 12, &version, 2);
    const uint32_t zero = 0;
    std::memcpy(s.front.data() + 8, &zero, 4);
    const uint32_t crc = crc32c(Bytes(s.front).first(kBlockBytes));
    std::memcpy(s.front.data() + 8, &crc, 4);
    EXPECT_EQ(decode_segment_header(s.front).error().code(), Code::unsupported);
}

}  // namespace
}  // namespace peplos::format
