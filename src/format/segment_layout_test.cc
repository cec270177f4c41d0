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

Sample sample_layout(uint32_t count = 5) {
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
    const Sample s = sample_layout();
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
    Sample s = sample_layout();
    std::fill(s.front.begin() + kSegmentFooterOffset, s.front.end(), std::byte{0});
    EXPECT_EQ(decode_segment_front(s.front, s.footer.header.id).value(), std::nullopt);
    // The footer of the segment that had the place before.
    SegmentFooter old = s.footer;
    old.header.id.sequence = 6;
    encode_segment_footer(old, std::span(s.front).subspan(kSegmentFooterOffset));
    EXPECT_EQ(decode_segment_front(s.front, s.footer.header.id).value(), std::nullopt);
}

TEST(SegmentLayout, EveryFlippedByteIsFound) {
    const Sample s = sample_layout();
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
        Sample s = sample_layout();
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
    Sample s = sample_layout();
    const uint16_t version = 2;
    std::memcpy(s.front.data() + 12, &version, 2);
    const uint32_t zero = 0;
    std::memcpy(s.front.data() + 8, &zero, 4);
    const uint32_t crc = crc32c(Bytes(s.front).first(kBlockBytes));
    std::memcpy(s.front.data() + 8, &crc, 4);
    EXPECT_EQ(decode_segment_header(s.front).error().code(), Code::unsupported);
}

// Rewrites the CRC of the block at `offset` after a change to it.
void reseal(Sample& s, size_t offset) {
    const std::span block = std::span(s.front).subspan(offset, kBlockBytes);
    uint32_t crc = 0;
    std::memcpy(block.data() + 8, &crc, 4);
    crc = crc32c(block);
    std::memcpy(block.data() + 8, &crc, 4);
}
constexpr size_t kIdentity = 16;  // of header and footer

TEST(SegmentLayout, AnIdentityThatIsNoneOrUnknownIsRefused) {
    const auto refused = [](size_t field, auto value) {
        Sample s = sample_layout();
        std::memcpy(s.front.data() + kIdentity + field, &value, sizeof(value));
        reseal(s, 0);
        const auto header = decode_segment_header(s.front);
        return header.has_value() ? Code::busy : header.error().code();
    };
    EXPECT_EQ(refused(0, uint64_t{0}), Code::corrupt);      // writer
    EXPECT_EQ(refused(16, uint64_t{0}), Code::corrupt);     // volume
    EXPECT_EQ(refused(24, uint64_t{0}), Code::corrupt);     // lineage
    EXPECT_EQ(refused(40, uint8_t{0}), Code::unsupported);  // kind
    EXPECT_EQ(refused(40, uint8_t{5}), Code::unsupported);  //
    EXPECT_EQ(refused(41, kSegmentClassCount), Code::unsupported);
    EXPECT_EQ(refused(42, uint8_t{1}), Code::unsupported);   // codec
    EXPECT_EQ(refused(44, uint8_t{4}), Code::unsupported);   // data units of a coded segment
    EXPECT_EQ(refused(45, uint8_t{2}), Code::unsupported);   // its parity units
    EXPECT_EQ(refused(48, uint64_t{9}), Code::unsupported);  // key
}

TEST(SegmentLayout, AFooterThatContradictsItselfIsRefused) {
    const auto refused = [](size_t field, auto value) {
        Sample s = sample_layout();
        std::memcpy(s.front.data() + kSegmentFooterOffset + field, &value, sizeof(value));
        reseal(s, kSegmentFooterOffset);
        const auto footer = decode_segment_front(s.front, s.footer.header.id);
        EXPECT_FALSE(footer.has_value()) << field;
        return footer.has_value() ? Code::busy : footer.error().code();
    };
    EXPECT_EQ(refused(kIdentity + 42, uint8_t{1}), Code::unsupported);  // codec
    EXPECT_EQ(refused(104, uint64_t{15}), Code::corrupt);               // lsn_min above lsn_max
    EXPECT_EQ(refused(120, uint32_t{1}), Code::corrupt);                // birth_min
    EXPECT_EQ(refused(128, kSegmentEntryCountMax + 1), Code::corrupt);
    EXPECT_EQ(refused(136, limits::kSegmentBytesMax + kBlockBytes), Code::corrupt);  // data_bytes
    EXPECT_EQ(refused(136, uint64_t{5} * kBlockBytes + 512), Code::corrupt);
    EXPECT_EQ(refused(144, uint64_t{4096}), Code::corrupt);  // index_offset
    // Data that fit, with an index that no segment has room for behind them.
    Sample s = sample_layout();
    const uint64_t data = limits::kSegmentBytesMax - kSegmentDataOffset;
    const uint64_t index = kSegmentDataOffset + data;
    std::memcpy(s.front.data() + kSegmentFooterOffset + 136, &data, 8);
    std::memcpy(s.front.data() + kSegmentFooterOffset + 144, &index, 8);
    reseal(s, kSegmentFooterOffset);
    EXPECT_EQ(decode_segment_front(s.front, s.footer.header.id).error().code(), Code::corrupt);
}

TEST(SegmentLayout, AHeaderOfAnotherSegmentOrUnlikeItsFooterIsRefused) {
    Sample s = sample_layout();
    SegmentId other = s.footer.header.id;
    ++other.sequence;
    auto front = decode_segment_front(s.front, other);
    ASSERT_FALSE(front.has_value());
    EXPECT_THAT(front.error().message(), ::testing::HasSubstr("the header says"));
    SegmentFooter unlike = s.footer;
    unlike.header.lifetime_class = 3;
    encode_segment_footer(unlike, std::span(s.front).subspan(kSegmentFooterOffset));
    front = decode_segment_front(s.front, s.footer.header.id);
    ASSERT_FALSE(front.has_value());
    EXPECT_THAT(front.error().message(), ::testing::HasSubstr("header and footer"));
}

TEST(SegmentLayout, EntriesAreCheckedToTheirBounds) {
    const auto refused = [](auto change) {
        Sample s = sample_layout();
        change(s);
        s.footer.index_crc = crc32c(std::as_bytes(std::span(s.entries)));
        std::memcpy(s.index.data(), s.entries.data(), 5 * sizeof(SegmentIndexEntry));
        const auto entries = decode_segment_index(s.footer, s.index);
        return entries.has_value() ? Code::busy : entries.error().code();
    };
    EXPECT_EQ(refused([](Sample&) {}), Code::busy);
    EXPECT_EQ(refused([](Sample& s) { s.entries[2].block_in_chunk = 1; }), Code::corrupt);
    EXPECT_EQ(refused([](Sample& s) { s.entries[2].offset_units += 1; }), Code::corrupt);
    EXPECT_EQ(refused([](Sample& s) { s.footer.lsn_min = Lsn(11); }), Code::corrupt);
    EXPECT_EQ(refused([](Sample& s) { s.footer.birth_min = s.footer.birth_max = 1; }),
              Code::corrupt);
    EXPECT_EQ(refused([](Sample& s) { std::swap(s.entries[1], s.entries[2]); }), Code::corrupt);
    Sample s = sample_layout();
    s.footer.entry_count = kSegmentEntryCountMax + 1;
    EXPECT_EQ(decode_segment_index(s.footer, s.index).error().code(), Code::corrupt);
}

TEST(SegmentLayout, AMapSegmentHasNoIndex) {
    Sample s = sample_layout(1);
    s.footer.header.kind = SegmentKind::map;
    s.footer.entry_count = 0;
    s.footer.index_crc = encode_segment_index({}, s.index);
    const auto entries = decode_segment_index(s.footer, {});
    ASSERT_TRUE(entries.has_value()) << entries.error().text();
    EXPECT_TRUE(entries->empty());
    s.footer.index_crc = 1;
    EXPECT_EQ(decode_segment_index(s.footer, {}).error().code(), Code::corrupt);
}

}  // namespace
}  // namespace peplos::format
