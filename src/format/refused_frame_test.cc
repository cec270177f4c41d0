#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "base/crc32c.h"
#include "format/frame.h"
#include "format/record.h"

// Frames and records whose checksums hold and whose fields cannot be true: each is refused by what
// is wrong with it, before anything follows from the field.
namespace peplos::format {
namespace {

using testing::HasSubstr;

template <typename T>
void put(std::vector<std::byte>& bytes, size_t offset, T value) {
    std::memcpy(bytes.data() + offset, &value, sizeof(value));
}

// ---- frames ----

std::vector<std::byte> good_frame() {
    FrameHeader header;
    header.incarnation = Incarnation(5);
    header.boot = Boot(6);
    header.sequence = 100;
    header.settled_sequence = 97;
    header.log_offset = 8192;
    header.tail_log_offset = 4096;
    header.tail_sequence = 99;
    header.metadata_bytes = 4096;
    header.payload_bytes = 12288;
    header.record_count = 3;
    std::vector<std::byte> area(4096);
    encode_frame(header, area);
    return area;
}

// Of a frame with one field changed under checksums that hold.
template <typename T>
Result<FrameHeader> frame_with(size_t offset, T value) {
    std::vector<std::byte> area = good_frame();
    put(area, offset, value);
    put(area, 8, crc32c(Bytes(area).subspan(12, kFrameHeaderBytes - 12)));
    return decode_frame(area);
}

template <typename T>
void expect_impossible(const char* field, size_t offset, T value) {
    auto decoded = frame_with(offset, value);
    ASSERT_FALSE(decoded) << field << " " << value;
    EXPECT_EQ(decoded.error().code(), Code::corrupt) << field;
    EXPECT_THAT(decoded.error().message(), HasSubstr("impossible fields")) << field;
}

TEST(RefusedFrame, ImpossibleFieldsUnderAGoodChecksum) {
    ASSERT_TRUE(frame_with<uint64_t>(40, 100));
    expect_impossible<uint64_t>("sequence", 40, 0);
    expect_impossible<uint64_t>("log offset", 48, 8192 + 512);
    expect_impossible<uint64_t>("tail's log offset", 56, 12288);
    expect_impossible<uint64_t>("tail's sequence", 64, 0);
    expect_impossible<uint64_t>("tail's sequence", 64, 101);
    expect_impossible<uint32_t>("metadata", 72, 0);
    expect_impossible<uint32_t>("metadata", 72, 4095);
    expect_impossible<uint32_t>("metadata", 72, kFrameMetadataBytesMax + kBlockBytes);
    expect_impossible<uint32_t>("payload", 76, 512);
    expect_impossible<uint32_t>("payload", 76, limits::kCommitPayloadBytesMax + kBlockBytes);
    expect_impossible<uint32_t>("witnesses", 80, kFrameWitnessCountMax + 1);
    expect_impossible<uint64_t>("settled sequence", 88, 100);
}

TEST(RefusedFrame, OneThatIsCutOff) {
    const std::vector<std::byte> area = good_frame();
    EXPECT_FALSE(decode_frame_header(Bytes(area).first(kFrameHeaderBytes - 1)));
    auto longer = frame_with<uint32_t>(72, 8192);
    ASSERT_FALSE(longer);
    EXPECT_THAT(longer.error().message(), HasSubstr("cut off"));
    EXPECT_TRUE(has_frame_magic(Bytes(area).first(8)));
    EXPECT_FALSE(has_frame_magic(Bytes(area).first(7)));
}

// ---- records ----

Record record_of(RecordType type, RecordBody body = std::monostate{}) {
    Record record;
    record.type = type;
    record.volume = VolumeId(0xaaaa);
    record.lineage = LineageId(0xbbbb);
    record.epoch = Epoch(3);
    record.lsn = Lsn(17);
    record.body = std::move(body);
    return record;
}

Record write_of(uint32_t blocks) {
    Record record = record_of(RecordType::write);
    record.block_count = blocks;
    record.crcs.assign(blocks, kZeroBlockCrc);
    return record;
}

std::vector<std::byte> encoded_frame(const Record& record) {
    std::vector<std::byte> bytes(encoded_bytes(record));
    encode_record(record, bytes);
    return bytes;
}

void seal(std::vector<std::byte>& bytes) {
    put(bytes, 4, crc32c(Bytes(bytes).subspan(8)));
}

// Of a record with one field changed under a checksum that holds.
template <typename T>
Error refusal(const Record& record, size_t offset, T value) {
    std::vector<std::byte> bytes = encoded_frame(record);
    EXPECT_TRUE(decode_record(bytes)) << name_of(record.type);
    put(bytes, offset, value);
    seal(bytes);
    auto decoded = decode_record(bytes);
    EXPECT_FALSE(decoded) << name_of(record.type) << " at " << offset << ": " << value;
    return decoded ? Error(Code::busy, "") : decoded.error();
}

template <typename T>
void expect_corrupt(const Record& record, size_t offset, T value, const char* why) {
    Error error = refusal(record, offset, value);
    EXPECT_EQ(error.code(), Code::corrupt) << error.text();
    EXPECT_THAT(error.message(), HasSubstr(why));
}

constexpr size_t kLba = 72, kBlockCount = 80, kCrcCount = 88, kBodyBytes = 92;
constexpr uint64_t kVolumeBlocksMax = limits::kVolumeBytesMax / kBlockBytes;

TEST(RefusedRecord, LengthsThatCannotBe) {
    const Record record = write_of(3);
    for (uint32_t bytes : {0u, kRecordHeaderBytes - 8, kRecordHeaderBytes + 12 + 1, 1u << 31}) {
        std::vector<std::byte> wire = encoded_frame(record);
        put(wire, 12, bytes);
        auto decoded = decode_record(wire);
        ASSERT_FALSE(decoded) << bytes;
        EXPECT_THAT(decoded.error().message(), HasSubstr("impossible length"));
    }
    expect_corrupt<uint32_t>(record, kCrcCount, 100, "do not add up");
    expect_corrupt<uint32_t>(record, kCrcCount, UINT32_MAX, "do not add up");
    expect_corrupt<uint32_t>(record, kBodyBytes, UINT32_MAX, "do not add up");
    // The padding's bytes are part of the length, and no part of the body.
    expect_corrupt<uint32_t>(record, kBodyBytes, 4, "body has the wrong length");
    expect_corrupt<uint32_t>(record, 116, 2, "wrong payload length");
}

TEST(RefusedRecord, WhatThisBuildDoesNotKnow) {
    const Record record = write_of(1);
    for (uint8_t type : {0, 6, 15, 20, 31, 33, 50, 255})
        EXPECT_EQ(refusal(record, 10, type).code(), Code::unsupported);
    EXPECT_EQ(refusal<uint8_t>(record, 11, 1).code(), Code::unsupported);   // codec
    EXPECT_EQ(refusal<uint64_t>(record, 96, 1).code(), Code::unsupported);  // key
    EXPECT_EQ(name_of(RecordType(0)), "unknown");
}

TEST(RefusedRecord, ExtentsThatAreNone) {
    const Record zero = [] {
        Record out = record_of(RecordType::zero);
        out.block_count = 5;
        return out;
    }();
    expect_corrupt<uint64_t>(zero, kBlockCount, 0, "an empty extent");
    expect_corrupt<uint64_t>(zero, kBlockCount, kVolumeBlocksMax + 1, "beyond the largest");
    expect_corrupt<uint64_t>(zero, kLba, kVolumeBlocksMax - 4, "beyond the largest");
    expect_corrupt<uint64_t>(zero, kLba, kVolumeBlocksMax, "beyond the largest");
    expect_corrupt<uint64_t>(zero, kLba, UINT64_MAX, "beyond the largest");
    const Record noop = record_of(RecordType::noop);
    expect_corrupt<uint64_t>(noop, kLba, 1, "where none belongs");
    expect_corrupt<uint64_t>(noop, kBlockCount, 1, "where none belongs");
    expect_corrupt<uint64_t>(write_of(2), kBlockCount, 3, "one checksum per block");
}

TEST(RefusedRecord, MoreBlocksThanOneReferenceTakes) {
    Record record = record_of(RecordType::write_ref, WriteRefBody{{VolumeId(1), 2, 3}, 4, 5});
    record.block_count = kWriteRefBlocksMax;
    record.crcs.assign(kWriteRefBlocksMax, 0);
    EXPECT_TRUE(validate(record));
    ++record.block_count;
    record.crcs.push_back(0);
    auto valid = validate(record);
    ASSERT_FALSE(valid);
    EXPECT_THAT(valid.error().message(), HasSubstr("more blocks than one reference takes"));
}

// A count is believed only as far as the body is long.
TEST(RefusedRecord, CountsThatTheBodyDoesNotHold) {
    const SegmentId id{VolumeId(1), 2, 3};
    SealBody seal_body{Lsn(15), {{id, 1, GroupId(7), 100, 2}}, {{Lba(4), 5}}};
    const Record seal_record = record_of(RecordType::seal, seal_body);
    const size_t body = kRecordHeaderBytes;
    for (uint32_t count : {0u, 2u, 1000u, UINT32_MAX}) {
        expect_corrupt(seal_record, body + 8, count, "body has the wrong length");   // segments
        expect_corrupt(seal_record, body + 12, count, "body has the wrong length");  // zeros
        expect_corrupt(record_of(RecordType::relocate, RelocateBody{{{id, 1, {}, 100, 2}}}), body,
                       count, "body has the wrong length");
        expect_corrupt(record_of(RecordType::delete_intent, DeleteIntentBody{{id}}), body, count,
                       "body has the wrong length");
        expect_corrupt(record_of(RecordType::settle, SettleBody{{Lsn(3)}}), body, count,
                       "body has the wrong length");
    }
}

// A record's body belongs to its type, whoever made it.
TEST(RefusedRecord, ABodyOfAnotherType) {
    const WriteRefBody other;
    for (RecordType type :
         {RecordType::write, RecordType::zero, RecordType::noop, RecordType::settle,
          RecordType::seal, RecordType::relocate, RecordType::resize, RecordType::delete_intent,
          RecordType::root, RecordType::fence, RecordType::damage}) {
        Record record = record_of(type, other);
        record.block_count = type <= RecordType::zero ? 1 : 0;
        auto valid = validate(record);
        ASSERT_FALSE(valid) << name_of(type);
        EXPECT_THAT(valid.error().message(), HasSubstr("a body of another type"));
    }
    EXPECT_FALSE(validate(record_of(RecordType::write_ref)));
    EXPECT_FALSE(validate(record_of(RecordType(99))));
}

TEST(RefusedRecord, PayloadInPartsOfBlocks) {
    for (size_t bytes : {size_t{512}, size_t{0}, size_t{kBlockBytes} + 512}) {
        Record record = write_of(1);
        record.payload.push_back(Buffer::allocate(2 * kBlockBytes).slice(0, bytes));
        auto valid = validate(record);
        ASSERT_FALSE(valid) << bytes;
        EXPECT_THAT(valid.error().message(), HasSubstr("not whole blocks"));
    }
}

}  // namespace
}  // namespace peplos::format
