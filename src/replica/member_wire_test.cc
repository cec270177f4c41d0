#include "replica/member_wire.h"

#include <gtest/gtest.h>

#include "base/crc32c.h"

namespace peplos::replica {
namespace {

using format::Record;
using format::RecordType;

constexpr VolumeId kWireVolume(0xa1a2a3a4a5a6a7a8);
constexpr LineageId kWireLineage(0xb1b2b3b4b5b6b7b8);
constexpr Claim kWireClaim{NodeId(0xc1), Epoch(5), OpenToken(0xd1d2)};

Time time_of(int64_t count) {
    return Time(Time::duration(count));
}

Record record_of(RecordType type, uint64_t lsn) {
    Record record;
    record.type = type;
    record.volume = kWireVolume;
    record.lineage = kWireLineage;
    record.epoch = kWireClaim.epoch;
    record.lsn = Lsn(lsn);
    record.prev_data_lsn = Lsn(lsn - 1);
    record.settled_lsn = Lsn(lsn - 1);
    return record;
}

// Of blocks that hold their number, in buffers of two blocks.
Record write_of(uint64_t lsn, uint32_t blocks) {
    Record record = record_of(RecordType::write, lsn);
    record.lba = Lba(1000);
    record.block_count = blocks;
    for (uint32_t at = 0; at < blocks; at += 2) {
        uint32_t count = std::min(2u, blocks - at);
        Buffer buffer = Buffer::allocate(count * kBlockBytes);
        for (uint32_t i = 0; i < count; ++i) {
            MutableBytes block = buffer.bytes().subspan(i * kBlockBytes, kBlockBytes);
            std::memset(block.data(), static_cast<int>(lsn + at + i), kBlockBytes);
            record.crcs.push_back(crc32c(block));
        }
        record.payload.push_back(std::move(buffer));
    }
    return record;
}

std::vector<Record> some_records() {
    std::vector<Record> out;
    out.push_back(write_of(7, 5));
    Record zero = record_of(RecordType::zero, 8);
    zero.block_count = 99;
    out.push_back(zero);
    out.push_back(write_of(9, 1));
    Record seal = record_of(RecordType::seal, 10);
    seal.body = format::SealBody{Lsn(6), {}, {{Lba(3), 4}}};
    out.push_back(seal);
    return out;
}

OpenCall open_call() {
    OpenCall call{kWireVolume, kWireLineage, {}, 1, 3, {Lsn(2), Lsn(1)}, some_records()};
    call.message = {kWireClaim,     4,      Incarnation(6), OpenToken(7),
                    OpenToken(0x8), Lsn(6), Lsn(10),        time_of(123456789)};
    return call;
}
AppendCall append_call() {
    return {kWireVolume, {kWireClaim, OpenToken(7), Lsn(9), time_of(12)}, write_of(9, 3)};
}

std::vector<std::byte> bytes_of_payload(const std::vector<Buffer>& payload) {
    std::vector<std::byte> out;
    for (const Buffer& buffer : payload)
        out.insert(out.end(), buffer.bytes().begin(), buffer.bytes().end());
    return out;
}

// As it arrives: in buffers that know nothing of records.
peer::Message arrived(const peer::Message& sent, size_t buffer_blocks = 4) {
    peer::Message out;
    out.body = sent.body;
    std::vector<std::byte> bytes = bytes_of_payload(sent.payload);
    for (size_t at = 0; at < bytes.size(); at += buffer_blocks * kBlockBytes) {
        size_t count = std::min(buffer_blocks * kBlockBytes, bytes.size() - at);
        out.payload.push_back(Buffer::copy_of(Bytes(bytes).subspan(at, count)));
    }
    return out;
}

template <typename Decode>
Code code_of(Decode decode, const peer::Message& message) {
    auto decoded = decode(message);
    return decoded ? Code{} : decoded.error().code();
}

// Every call and answer, with what decodes it and encodes what that found.
struct Case {
    const char* name;
    peer::Message message;
    std::function<Result<peer::Message>(peer::Message)> again;
};

template <typename Call>
Case case_of(const char* name, const Call& call) {
    return {name, arrived(encode(call)), [](peer::Message message) -> Result<peer::Message> {
                TRY_ASSIGN(Call decoded, decode_call<Call>(std::move(message)));
                return encode(decoded);
            }};
}
Case word_case(const char* name, const replica::Message& word) {
    return {name, encode(word), [](const peer::Message& message) -> Result<peer::Message> {
                TRY_ASSIGN(replica::Message decoded, decode_word(message));
                return encode(decoded);
            }};
}

std::vector<Case> all_cases() {
    LogRecords records{some_records(), true, {Lsn(5), Lsn(4)}};
    return {
        case_of("fence",
                FenceCall{kWireVolume, kWireLineage, {kWireClaim, Incarnation(6), OpenToken(7)}}),
        case_of("open", open_call()),
        case_of("append", append_call()),
        case_of("renew", RenewCall{kWireVolume, {kWireClaim, OpenToken(7), time_of(12)}}),
        case_of("release", ReleaseCall{kWireVolume, {kWireClaim}}),
        case_of("read_log", ReadLogCall{kWireVolume, kWireClaim, Incarnation(6), Lsn(8), 4096}),
        word_case("fence_answer", FenceAnswer{kWireClaim, NodeId(2), Incarnation(3),
                                              LogOutcome::complete, Lsn(4), Epoch(5)}),
        word_case("member_answer",
                  MemberAnswer{kWireClaim, NodeId(2), OpenToken(7), Lsn(4), true, time_of(5)}),
        word_case("refusal",
                  Refusal{kWireClaim, NodeId(2), OpenToken(7), Refusal::Reason::failed, Epoch(9)}),
        {"records", arrived(encode(records)),
         [](peer::Message message) -> Result<peer::Message> {
             TRY_ASSIGN(LogRecords decoded, decode_records(std::move(message)));
             return encode(decoded);
         }},
    };
}

TEST(MemberWire, EverythingComesBack) {
    for (const Case& each : all_cases()) {
        Result<peer::Message> again = each.again(each.message);
        ASSERT_TRUE(again) << each.name << again.error().text();
        EXPECT_EQ(again->body, each.message.body) << each.name;
        EXPECT_EQ(bytes_of_payload(again->payload), bytes_of_payload(each.message.payload))
            << each.name;
        EXPECT_EQ(again->payload_check, peer::PayloadCheck::by_caller);
    }
}

TEST(MemberWire, FieldsComeBackWhereTheyWere) {
    auto open = decode_call<OpenCall>(arrived(encode(open_call())));
    ASSERT_TRUE(open) << open.error().text();
    EXPECT_EQ(open->volume, kWireVolume);
    EXPECT_EQ(open->lineage, kWireLineage);
    EXPECT_EQ(open->message, open_call().message);
    EXPECT_EQ(open->part, 1u);
    EXPECT_EQ(open->part_count, 3u);
    EXPECT_EQ(open->base, (LogBase{Lsn(2), Lsn(1)}));
    ASSERT_EQ(open->records.size(), 4u);
    EXPECT_EQ(open->records[3].body, some_records()[3].body);
    for (const Record& record : open->records) {
        ASSERT_TRUE(format::validate(record));
        std::vector<Buffer> payload(record.payload.begin(), record.payload.end());
        EXPECT_TRUE(format::verify_payload(record, bytes_of_payload(payload)));
    }
    auto append = decode_call<AppendCall>(arrived(encode(append_call())));
    ASSERT_TRUE(append) << append.error().text();
    EXPECT_EQ(append->message, append_call().message);
    EXPECT_EQ(append->record.crcs, append_call().record.crcs);
    Refusal said{kWireClaim, NodeId(2), OpenToken(7), Refusal::Reason::stranger, Epoch(9)};
    auto word = decode_word(encode(replica::Message(said)));
    ASSERT_TRUE(word) << word.error().text();
    EXPECT_EQ(*word, replica::Message(said));
    auto read = decode_call<ReadLogCall>(
        encode(ReadLogCall{kWireVolume, kWireClaim, Incarnation(6), Lsn(8), 4097}));
    ASSERT_TRUE(read) << read.error().text();
    EXPECT_EQ(read->claim, kWireClaim);
    EXPECT_EQ(read->incarnation, Incarnation(6));
    EXPECT_EQ(read->after, Lsn(8));
    EXPECT_EQ(read->bytes, 4097u);
}

TEST(MemberWire, CutOffOrTooLongIsRefused) {
    for (const Case& each : all_cases()) {
        for (size_t length = 0; length < each.message.body.size(); ++length) {
            peer::Message cut = each.message;
            cut.body.resize(length);
            EXPECT_EQ(code_of(each.again, cut), Code::corrupt) << each.name << " at " << length;
        }
        peer::Message longer = each.message;
        longer.body.push_back(std::byte{0});
        EXPECT_EQ(code_of(each.again, longer), Code::corrupt) << each.name;
    }
}

TEST(MemberWire, AnotherVersionIsUnsupported) {
    for (Case& each : all_cases()) {
        for (uint8_t version : {0, 2, 255}) {
            each.message.body[0] = std::byte{version};
            EXPECT_EQ(code_of(each.again, each.message), Code::unsupported) << each.name;
        }
    }
}

TEST(MemberWire, PayloadThatTheRecordsDoNotNameIsRefused) {
    for (const Case& each : all_cases()) {
        peer::Message longer = each.message;
        longer.payload.push_back(Buffer::zeroed(kBlockBytes));
        EXPECT_EQ(code_of(each.again, longer), Code::corrupt) << each.name;
        peer::Message empty_buffer = each.message;
        empty_buffer.payload.emplace_back();
        EXPECT_EQ(code_of(each.again, empty_buffer), Code::corrupt) << each.name;
        if (each.message.payload.empty()) continue;
        peer::Message shorter = each.message;
        Buffer& last = shorter.payload.back();
        last = last.slice(0, last.size() - kBlockBytes);
        EXPECT_EQ(code_of(each.again, shorter), Code::corrupt) << each.name;
        peer::Message none = each.message;
        none.payload.clear();
        EXPECT_EQ(code_of(each.again, none), Code::corrupt) << each.name;
        // As many bytes as are due, cut up where no block ends.
        peer::Message odd = each.message;
        Buffer first = odd.payload.front();
        odd.payload.front() = first.slice(100, first.size() - 100);
        odd.payload.insert(odd.payload.begin(), first.slice(0, 100));
        EXPECT_EQ(code_of(each.again, odd), Code::corrupt) << each.name;
    }
}

TEST(MemberWire, UnknownNumbersAreRefused) {
    auto with = [](const replica::Message& word, size_t at, uint8_t value) {
        peer::Message message = encode(word);
        message.body[at] = std::byte{value};
        return code_of(decode_word, message);
    };
    // Version 2, kind 1, claim 24, node 8, incarnation or token 8, then the number.
    FenceAnswer fenced{.claim = kWireClaim};
    EXPECT_EQ(with(fenced, 43, 1), Code{});
    EXPECT_EQ(with(fenced, 43, 2), Code::corrupt);
    Refusal refusal{.claim = kWireClaim};
    EXPECT_EQ(with(refusal, 43, 2), Code{});
    EXPECT_EQ(with(refusal, 43, 3), Code::corrupt);
    MemberAnswer answer{.claim = kWireClaim};
    EXPECT_EQ(with(answer, 51, 1), Code{});
    EXPECT_EQ(with(answer, 51, 2), Code::corrupt);
    EXPECT_EQ(with(fenced, 2, 0), Code::corrupt);
    EXPECT_EQ(with(fenced, 2, 4), Code::corrupt);
    // A time that no clock reads would make a promise without end.
    EXPECT_EQ(with(answer, 59, 0x3f), Code{});
    EXPECT_EQ(with(answer, 59, 0x41), Code::corrupt);
    EXPECT_EQ(with(answer, 59, 0x80), Code::corrupt);
}

TEST(MemberWire, PartsOfAnOpenAreCounted) {
    auto with = [](uint32_t part, uint32_t count) {
        OpenCall call = open_call();
        call.part = part;
        call.part_count = count;
        return code_of(decode_call<OpenCall>, arrived(encode(call)));
    };
    EXPECT_EQ(with(0, 1), Code{});
    EXPECT_EQ(with(4095, 4096), Code{});
    EXPECT_EQ(with(0, 0), Code::corrupt);
    EXPECT_EQ(with(3, 3), Code::corrupt);
    EXPECT_EQ(with(4, 3), Code::corrupt);
    EXPECT_EQ(with(0, 4097), Code::corrupt);
    EXPECT_EQ(with(0, 0xffffffff), Code::corrupt);
}

// Where the record of an append starts: version 2, volume 8, claim 24, token 8, LSN 8, time 8,
// count 4, length 4.
constexpr size_t kCountAt = 58;
constexpr size_t kRecordAt = kCountAt + 8;

Code code_with(size_t at, uint32_t value, bool is_sealed = false) {
    peer::Message message = arrived(encode(append_call()));
    std::memcpy(message.body.data() + at, &value, sizeof(value));
    if (is_sealed) {
        uint32_t crc = crc32c(Bytes(message.body).subspan(kRecordAt + 8));
        std::memcpy(message.body.data() + kRecordAt + 4, &crc, sizeof(crc));
    }
    return code_of(decode_call<AppendCall>, message);
}

TEST(MemberWire, RecordsThatAreNotValidAreRefused) {
    for (uint32_t count : {0u, 2u, 0xffffu, 0xffffffffu})
        EXPECT_EQ(code_with(kCountAt, count), Code::corrupt) << count;
    for (uint32_t bytes : {0u, 8u, 168u, 184u, 0xfffffff8u})
        EXPECT_EQ(code_with(kCountAt + 4, bytes), Code::corrupt) << bytes;
    EXPECT_EQ(code_with(kRecordAt, 0), Code::corrupt);        // magic
    EXPECT_EQ(code_with(kRecordAt + 40, 10), Code::corrupt);  // LSN; the checksum does not hold
    EXPECT_EQ(code_with(kRecordAt + 40, 10, true), Code{});   // it does
    EXPECT_EQ(code_with(kRecordAt + 80, 0, true), Code::corrupt);     // blocks of the extent
    EXPECT_EQ(code_with(kRecordAt + 80, 4, true), Code::corrupt);     //
    EXPECT_EQ(code_with(kRecordAt + 136, 99, true), Code::corrupt);   // settled above its LSN
    EXPECT_EQ(code_with(kRecordAt + 116, 2, true), Code::corrupt);    // blocks of payload
    EXPECT_EQ(code_with(kRecordAt + 8, 4, true), Code::unsupported);  // version
}

// The example of docs/formats/peer-journal.md, byte for byte.
TEST(MemberWire, IsAsDocumented) {
    AppendCall call;
    call.volume = VolumeId(0xaaaaaaaaaaaaaaaa);
    call.message = {{NodeId(0xcccccccccccccccc), Epoch(2), OpenToken(0xdddddddddddddddd)},
                    OpenToken(0xeeeeeeeeeeeeeeee),
                    Lsn(7),
                    time_of(1'000'000'000)};
    Record& record = call.record;
    record.type = RecordType::write;
    record.volume = call.volume;
    record.lineage = LineageId(0xbbbbbbbbbbbbbbbb);
    record.epoch = Epoch(2);
    record.lsn = Lsn(7);
    record.prev_data_lsn = record.settled_lsn = Lsn(6);
    record.prev_meta_lsn = Lsn(4);
    record.root_lsn = Lsn(5);
    record.lba = Lba(1000);
    record.block_count = 1;
    record.payload.push_back(Buffer::zeroed(kBlockBytes));
    record.crcs.push_back(crc32c(record.payload.front().bytes()));
    std::string hex;
    for (std::byte byte : encode(call).body)
        hex += fmt::format("{:02x}", static_cast<int>(byte));
    EXPECT_EQ(hex,
              "0100aaaaaaaaaaaaaaaacccccccccccccccc0200000000000000dddddddddddd"
              "ddddeeeeeeeeeeeeeeee070000000000000000ca9a3b0000000001000000a800"
              "000050524543b4287c5703000100a8000000aaaaaaaaaaaaaaaabbbbbbbbbbbb"
              "bbbb020000000000000007000000000000000600000000000000040000000000"
              "00000500000000000000e8030000000000000100000000000000010000000000"
              "0000000000000000000000000000000000000000000001000000000000000000"
              "0000000000000000000006000000000000000000000000000000000000000000"
              "00008941f99800000000");
}

}  // namespace
}  // namespace peplos::replica
