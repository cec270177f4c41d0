#include "format/record.h"

#include <gtest/gtest.h>

#include "base/crc32c.h"
#include "format/frame.h"
#include "sim/random.h"

namespace peplos::format {
namespace {

SegmentId segment(uint32_t n) {
    return {VolumeId(0x1111), 2, n};
}

Record with(RecordType type, RecordBody body) {
    Record record;
    record.type = type;
    record.volume = VolumeId(0xaaaa);
    record.lineage = LineageId(0xbbbb);
    record.epoch = Epoch(3);
    record.lsn = Lsn(17);
    record.prev_data_lsn = Lsn(16);
    record.prev_meta_lsn = Lsn(12);
    record.root_lsn = Lsn(9);
    record.settled_lsn = Lsn(14);
    record.open_number = 5;
    record.body = std::move(body);
    return record;
}

Record write_record(uint32_t blocks) {
    Record record = with(RecordType::write, std::monostate{});
    record.lba = Lba(1000);
    record.block_count = blocks;
    for (uint32_t i = 0; i < blocks; ++i) {
        record.payload.push_back(Buffer::zeroed(kBlockBytes));
        record.crcs.push_back(kZeroBlockCrc);
    }
    return record;
}

MemberBody member_body() {
    MemberBody out;
    out.number = 7;
    out.fence = {NodeId(11), Epoch(12), OpenToken(13)};
    out.opened_by = {NodeId(14), Epoch(10), OpenToken(15)};
    out.version = 16;
    out.drained_lsn = Lsn(17);
    out.meta_lsn = Lsn(18);
    out.spans = {{1, 2, Lsn(40)}, {4, 4, Lsn(40)}, {6, 9, Lsn(UINT64_MAX)}};
    return out;
}

// One record of every type.
std::vector<Record> samples() {
    std::vector<Record> out;
    out.push_back(write_record(1));
    out.push_back(write_record(kWriteBlocksMax));
    out.push_back(with(RecordType::write_ref, WriteRefBody{segment(1), 4, 5}));
    out.back().block_count = 2;
    out.back().crcs = {1, 2};
    out.push_back(with(RecordType::zero, std::monostate{}));
    out.back().block_count = uint64_t{1} << 33;
    out.push_back(with(RecordType::noop, std::monostate{}));
    out.push_back(with(RecordType::settle, SettleBody{{Lsn(3), Lsn(5), Lsn(16)}}));
    out.push_back(with(RecordType::seal,
                       SealBody{Lsn(15),
                                {{segment(1), 1, GroupId(7), 100, 2}, {segment(2), 2, {}, 3, 0}},
                                {{Lba(4), 5}, {Lba(6), 7}, {Lba(8), 9}}}));
    out.push_back(with(RecordType::relocate, RelocateBody{{{segment(3), 3, GroupId(7), 1, 5}}}));
    out.push_back(with(RecordType::resize, ResizeBody{12345}));
    out.push_back(with(RecordType::delete_intent, DeleteIntentBody{{segment(1), segment(2)}}));
    RootBody root;
    root.drained_lsn = Lsn(10);
    root.meta_lsn = Lsn(11);
    root.page_segment = segment(9);
    root.page_offset = 4096;
    root.page_bytes = 8192;
    root.page_crc = 0xdeadbeef;
    root.size_blocks = 99;
    root.page_segment_index = 5;
    root.page_sequence = 6;
    out.push_back(with(RecordType::root, root));
    out.push_back(with(RecordType::fence, FenceBody{OpenToken(1), OpenToken(2)}));
    out.push_back(with(RecordType::fence, FenceBody{OpenToken(1), OpenToken(2), member_body()}));
    out.push_back(with(RecordType::damage, DamageBody{Lsn(1), 2}));
    return out;
}

std::vector<std::byte> encoded(const Record& record) {
    std::vector<std::byte> bytes(encoded_bytes(record));
    encode_record(record, bytes);
    return bytes;
}

TEST(Record, EveryTypeComesBack) {
    for (const Record& record : samples()) {
        ASSERT_TRUE(validate(record)) << name_of(record.type);
        std::vector<std::byte> bytes = encoded(record);
        bytes.resize(bytes.size() + 100, std::byte{0xff});
        auto decoded = decode_record(bytes);
        ASSERT_TRUE(decoded) << name_of(record.type) << decoded.error().text();
        EXPECT_EQ(decoded->encoded_bytes, encoded_bytes(record));
        const Record& back = decoded->record;
        EXPECT_EQ(back.type, record.type);
        EXPECT_EQ(back.volume, record.volume);
        EXPECT_EQ(back.lineage, record.lineage);
        EXPECT_EQ(back.epoch, record.epoch);
        EXPECT_EQ(back.lsn, record.lsn);
        EXPECT_EQ(back.prev_data_lsn, record.prev_data_lsn);
        EXPECT_EQ(back.prev_meta_lsn, record.prev_meta_lsn);
        EXPECT_EQ(back.root_lsn, record.root_lsn);
        EXPECT_EQ(back.settled_lsn, record.settled_lsn);
        EXPECT_EQ(back.open_number, record.open_number);
        EXPECT_EQ(back.lba, record.lba);
        EXPECT_EQ(back.block_count, record.block_count);
        EXPECT_EQ(back.crcs, record.crcs);
        EXPECT_EQ(back.body, record.body);
    }
}

TEST(Record, AnyFlippedBitIsFound) {
    for (const Record& record : samples()) {
        std::vector<std::byte> bytes = encoded(record);
        for (size_t i = 0; i < bytes.size(); ++i) {
            bytes[i] ^= std::byte{0x10};
            EXPECT_FALSE(decode_record(bytes)) << name_of(record.type) << " byte " << i;
            bytes[i] ^= std::byte{0x10};
        }
        for (size_t size = 0; size < bytes.size(); ++size) {
            EXPECT_FALSE(decode_record(Bytes(bytes).first(size)));
        }
    }
}

std::vector<std::byte> as_version(const Record& record, uint8_t version) {
    std::vector<std::byte> bytes = encoded(record);
    bytes[8] = std::byte{version};
    uint32_t crc = crc32c(Bytes(bytes).subspan(8));
    std::memcpy(bytes.data() + 4, &crc, sizeof(crc));
    return bytes;
}

TEST(Record, ANewerVersionIsRefusedAsUnsupported) {
    auto decoded = decode_record(as_version(samples().front(), 4));
    ASSERT_FALSE(decoded);
    EXPECT_EQ(decoded.error().code(), Code::unsupported);
}

// A log that was written before there were members is read as one that never was a member's.
TEST(Record, AFenceOfTheSecondVersionIsRead) {
    Record fence = with(RecordType::fence, FenceBody{OpenToken(1), OpenToken(2), std::nullopt});
    auto decoded = decode_record(as_version(fence, 2));
    ASSERT_TRUE(decoded) << decoded.error().text();
    EXPECT_EQ(decoded->record.body, fence.body);
    EXPECT_EQ(decoded->record.open_number, 0u) << "reserved bytes say nothing";
    EXPECT_EQ(decoded->record.settled_lsn, fence.settled_lsn);
}

TEST(Record, SpansThatContradictEachOtherAreNotRead) {
    auto fence_with = [](std::vector<LogSpan> spans) {
        MemberBody member = member_body();
        member.spans = std::move(spans);
        return with(RecordType::fence, FenceBody{OpenToken(1), OpenToken(2), member});
    };
    EXPECT_TRUE(validate(fence_with({})));
    EXPECT_TRUE(validate(fence_with({{0, 0, Lsn(4)}, {1, 3, Lsn(4)}})));
    EXPECT_FALSE(validate(fence_with({{2, 1, Lsn(4)}})));
    EXPECT_FALSE(validate(fence_with({{1, 2, Lsn(4)}, {2, 3, Lsn(4)}})));
    EXPECT_FALSE(validate(fence_with({{1, 1, Lsn(4)}, {2, 2, Lsn(3)}})));
    std::vector<LogSpan> many;
    for (uint64_t i = 0; i < kLogSpanCountMax; ++i)
        many.push_back({2 * i, 2 * i, Lsn(i)});
    EXPECT_TRUE(validate(fence_with(many)));
    many.push_back({1 << 20, 1 << 20, Lsn(1 << 20)});
    EXPECT_FALSE(validate(fence_with(many)));
}

// Version 1 took an LSN for a reference only when its payload was durable.
TEST(Record, InTheFirstVersionARecordSettlesItself) {
    auto decoded = decode_record(as_version(samples()[2], 1));
    ASSERT_TRUE(decoded) << decoded.error().text();
    EXPECT_EQ(decoded->record.settled_lsn, Lsn(17));
}

TEST(Record, RulesAreKeptOnTheWayIn) {
    Record record = write_record(2);
    record.payload.pop_back();
    EXPECT_FALSE(validate(record));
    record = write_record(2);
    record.crcs.pop_back();
    EXPECT_FALSE(validate(record));
    EXPECT_FALSE(validate(write_record(0)));
    EXPECT_FALSE(validate(write_record(kWriteBlocksMax + 1)));
    record = with(RecordType::zero, std::monostate{});
    record.block_count = UINT64_MAX;
    EXPECT_FALSE(validate(record));
    EXPECT_FALSE(validate(with(RecordType::seal, ResizeBody{1})));
    record = with(RecordType::noop, std::monostate{});
    record.settled_lsn = record.lsn.next();
    EXPECT_FALSE(validate(record));
    EXPECT_FALSE(validate(with(RecordType::settle, SettleBody{{Lsn(5), Lsn(3)}})));
    SealBody large;
    large.zeros.resize(limits::kRecordBodyBytesMax / kZeroExtentBytes);
    EXPECT_FALSE(validate(with(RecordType::seal, large)));
    large.zeros.pop_back();
    EXPECT_TRUE(validate(with(RecordType::seal, large)));
}

TEST(Record, PayloadIsVerifiedBlockByBlock) {
    Record record = write_record(3);
    Buffer payload = Buffer::zeroed(3 * kBlockBytes);
    EXPECT_TRUE(verify_payload(record, payload.bytes()));
    payload.bytes()[2 * kBlockBytes + 5] = std::byte{1};
    auto verified = verify_payload(record, payload.bytes());
    ASSERT_FALSE(verified);
    EXPECT_NE(verified.error().message().find("LBA 1002"), std::string::npos);
}

// ---- frames ----

FrameHeader header_of(uint32_t metadata_bytes) {
    FrameHeader header;
    header.incarnation = Incarnation(5);
    header.boot = Boot(6);
    header.sequence = 100;
    header.settled_sequence = 97;
    header.log_offset = 8192;
    header.tail_log_offset = 4096;
    header.tail_sequence = 99;
    header.metadata_bytes = metadata_bytes;
    header.payload_bytes = 12288;
    header.record_count = 3;
    header.witnesses = {{VolumeId(1), Lsn(2)}, {VolumeId(3), Lsn(4), true}};
    return header;
}

TEST(Frame, ComesBackAndNoticesEveryFlippedByte) {
    std::vector<std::byte> area(4096, std::byte{0x5a});
    encode_frame(header_of(4096), area);
    auto decoded = decode_frame(area);
    ASSERT_TRUE(decoded) << decoded.error().text();
    EXPECT_EQ(decoded->sequence, 100u);
    EXPECT_EQ(decoded->settled_sequence, 97u);
    EXPECT_EQ(decoded->payload_bytes, 12288u);
    EXPECT_EQ(decoded->records_offset(), 160u);
    ASSERT_EQ(decoded->witnesses.size(), 2u);
    EXPECT_EQ(decoded->witnesses[1], (FrameWitness{VolumeId(3), Lsn(4), true}));
    EXPECT_FALSE(decoded->witnesses[0].had_fence);
    for (size_t i = 0; i < area.size(); ++i) {
        area[i] ^= std::byte{1};
        EXPECT_FALSE(decode_frame(area)) << i;
        area[i] ^= std::byte{1};
    }
    EXPECT_FALSE(decode_frame(Bytes(area).first(4095)));
    EXPECT_TRUE(has_frame_magic(area));
}

// With one frame in flight, what came before was settled.
TEST(Frame, VersionOneIsReadAndUnknownOnesAreRefused) {
    std::vector<std::byte> area(4096);
    encode_frame(header_of(4096), area);
    auto as_version = [&area](std::byte version) {
        area[16] = version;
        uint32_t crc = crc32c(Bytes(area).subspan(12, kFrameHeaderBytes - 12));
        std::memcpy(area.data() + 8, &crc, sizeof(crc));
        return decode_frame(area);
    };
    auto first = as_version(std::byte{1});
    ASSERT_TRUE(first) << first.error().text();
    EXPECT_EQ(first->settled_sequence, 99u);
    auto unknown = as_version(std::byte{4});
    ASSERT_FALSE(unknown);
    EXPECT_EQ(unknown.error().code(), Code::unsupported);
}

// The example of docs/formats/ring.md, byte for byte: the format does not change unnoticed.
TEST(Frame, IsAsDocumented) {
    Record record;
    record.type = RecordType::write;
    record.volume = VolumeId(0xaaaaaaaaaaaaaaaa);
    record.lineage = LineageId(0xbbbbbbbbbbbbbbbb);
    record.epoch = Epoch(2);
    record.lsn = Lsn(7);
    record.prev_data_lsn = record.settled_lsn = Lsn(6);
    record.prev_meta_lsn = Lsn(4);
    record.root_lsn = Lsn(5);
    record.open_number = 3;
    record.lba = Lba(1000);
    record.block_count = 1;
    record.payload.push_back(Buffer::zeroed(kBlockBytes));
    record.crcs.push_back(crc32c(record.payload.front().bytes()));
    FrameHeader header;
    header.incarnation = Incarnation(0x1122334455667788);
    header.boot = Boot(3);
    header.sequence = 12;
    header.settled_sequence = 10;
    header.log_offset = 98304;
    header.tail_log_offset = 65536;
    header.tail_sequence = 9;
    header.metadata_bytes = header.payload_bytes = 4096;
    header.record_count = 1;
    header.witnesses = {{record.volume, Lsn(6), true}};
    std::vector<std::byte> area(4096);
    encode_record(record,
                  MutableBytes(area).subspan(header.records_offset(), encoded_bytes(record)));
    encode_frame(header, area);
    std::string hex;
    for (std::byte byte : Bytes(area).first(header.records_offset() + encoded_bytes(record)))
        hex += fmt::format("{:02x}", static_cast<int>(byte));
    EXPECT_EQ(hex,
              "5045504652414d452307d14a1ecf727103000000010000008877665544332211"
              "03000000000000000c0000000000000000800100000000000000010000000000"
              "0900000000000000001000000010000001000000000000000a00000000000000"
              "0000000000000000000000000000000000000000000000000000000000000000"
              "aaaaaaaaaaaaaaaa060000000000008050524543d719409c03000100a8000000"
              "aaaaaaaaaaaaaaaabbbbbbbbbbbbbbbb02000000000000000700000000000000"
              "060000000000000004000000000000000500000000000000e803000000000000"
              "0100000000000000010000000000000000000000000000000000000000000000"
              "0000000001000000000000000000000000000000000000000600000000000000"
              "030000000000000000000000000000008941f99800000000");
}

TEST(Frame, RandomBytesAreNotAFrame) {
    sim::Random random(1);
    std::vector<std::byte> area(4096);
    for (int i = 0; i < 200; ++i) {
        random.fill(area);
        EXPECT_FALSE(decode_frame(area));
        EXPECT_FALSE(decode_record(area));
    }
}

}  // namespace
}  // namespace peplos::format
