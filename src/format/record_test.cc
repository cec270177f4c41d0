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

TEST(Record, ANewerVersionIsRefusedAsUnsupported) {
    std::vector<std::byte> bytes = encoded(samples().front());
    bytes[8] = std::byte{3};
    uint32_t crc = crc32c(Bytes(bytes).subspan(8));
    std::memcpy(bytes.data() + 4, &crc, sizeof(crc));
    auto decoded = decode_record(bytes);
    ASSERT_FALSE(decoded);
    EXPECT_EQ(decoded.error().code(), Code::unsupported);
}

// Version 1 took an LSN for a reference only when its payload was durable.
TEST(Record, InTheFirstVersionARecordSettlesItself) {
    std::vector<std::byte> bytes = encoded(samples()[2]);
    bytes[8] = std::byte{1};
    uint32_t crc = crc32c(Bytes(bytes).subspan(8));
    std::memcpy(bytes.data() + 4, &crc, sizeof(crc));
    auto decoded = decode_record(bytes);
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
    header.witnesses = {{VolumeId(1), Lsn(2)}, {VolumeId(3), Lsn(4)}};
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
    EXPECT_EQ(decoded->witnesses[1], (FrameWitness{VolumeId(3), Lsn(4)}));
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
    auto unknown = as_version(std::byte{3});
    ASSERT_FALSE(unknown);
    EXPECT_EQ(unknown.error().code(), Code::unsupported);
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
