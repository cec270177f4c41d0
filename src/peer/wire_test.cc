#include "peer/wire.h"

#include <gtest/gtest.h>

#include "base/crc32c.h"
#include "peer/frame_parser.h"
#include "peer/link.h"
#include "sim/random.h"

namespace peplos::peer {
namespace {

FrameHeader request_header() {
    return {.kind = FrameKind::request,
            .payload_is_checked = true,
            .method = 258,
            .id = 0x10001,
            .body_bytes = 5,
            .payload_bytes = kBlockBytes,
            .body_crc = 1,
            .payload_crc = 2};
}

TEST(Wire, AHeaderComesBack) {
    FrameHeader header = request_header();
    auto decoded = decode_frame_header(encode_frame_header(header));
    ASSERT_TRUE(decoded);
    EXPECT_EQ(*decoded, header);
}

TEST(Wire, EveryDamagedByteOfAHeaderIsFound) {
    FrameHeaderBytes good = encode_frame_header(request_header());
    for (size_t i = 0; i < good.size(); ++i) {
        FrameHeaderBytes bad = good;
        bad[i] ^= std::byte{0x40};
        EXPECT_FALSE(decode_frame_header(bad)) << i;
    }
}

// A header that lies under a good checksum.
FrameHeaderBytes with(size_t offset, uint32_t value, size_t bytes) {
    FrameHeaderBytes header = encode_frame_header(request_header());
    std::memcpy(header.data() + offset, &value, bytes);
    uint32_t crc = crc32c(Bytes(header).subspan(8));
    std::memcpy(header.data() + 4, &crc, sizeof(crc));
    return header;
}

TEST(Wire, ImpossibleFieldsAreRefused) {
    EXPECT_TRUE(decode_frame_header(with(12, 7, 2)));                               // method
    EXPECT_FALSE(decode_frame_header(with(10, 0, 1)));                              // kind
    EXPECT_FALSE(decode_frame_header(with(10, 10, 1)));                             //
    EXPECT_FALSE(decode_frame_header(with(10, 5, 1)));                              // has a method
    EXPECT_FALSE(decode_frame_header(with(10, 8, 1)));                              // has an id
    EXPECT_FALSE(decode_frame_header(with(11, 3, 1)));                              // flags
    EXPECT_FALSE(decode_frame_header(with(11, 0, 1)));                              // a CRC of none
    EXPECT_FALSE(decode_frame_header(with(14, 1, 2)));                              // code
    EXPECT_FALSE(decode_frame_header(with(16, 0, 4)));                              // id 0
    EXPECT_FALSE(decode_frame_header(with(24, limits::kPeerBodyBytesMax + 1, 4)));  //
    EXPECT_FALSE(decode_frame_header(with(28, 4097, 4)));                           //
    EXPECT_FALSE(decode_frame_header(with(28, limits::kPeerPayloadBytesMax + 4096, 4)));
    EXPECT_FALSE(decode_frame_header(with(28, 0xfffff000, 4)));
}

TEST(Wire, EveryCodeHasANumber) {
    for (int i = 0; i <= static_cast<int>(Code::stopping); ++i) {
        auto code = static_cast<Code>(i);
        EXPECT_EQ(code_of_wire(wire_of(code)), code);
        EXPECT_NE(wire_of(code), 0);
    }
    EXPECT_EQ(code_of_wire(999), Code::outcome_unknown);
}

TEST(Wire, ALongErrorIsCutAtACharacter) {
    std::string text(limits::kPeerErrorBytesMax - 1, 'a');
    EXPECT_EQ(error_text(text + "\u00e9 more"), text);
    EXPECT_EQ(error_text("short"), "short");
}

Self self_of(uint64_t node, VersionRange versions = {1, 1}) {
    return {
        .cluster = ClusterId(1), .node = NodeId(node), .boot = NodeBoot(9), .versions = versions};
}

Hello hello_from(uint64_t node, uint64_t target, VersionRange versions = {1, 1}) {
    return {ClusterId(1), NodeId(node), NodeId(target), NodeBoot(8), versions, Role::node};
}

TEST(Wire, AHelloComesBack) {
    Hello hello = hello_from(1, 2, {3, 4});
    HelloBytes bytes = encode_hello(hello);
    EXPECT_EQ(decode_hello(bytes).value(), hello);
    std::vector<std::byte> longer(bytes.begin(), bytes.end());
    longer.resize(100);
    EXPECT_EQ(decode_hello(longer).value(), hello);
    EXPECT_FALSE(decode_hello(Bytes(bytes).first(63)));
    for (size_t field : {0, 8, 24, 32, 36}) {
        HelloBytes bad = bytes;
        std::memset(bad.data() + field, 0, field < 32 ? 8 : 2);
        EXPECT_FALSE(decode_hello(bad)) << field;
    }
}

TEST(Wire, TheHighestCommonVersionIsUsed) {
    auto version = [](VersionRange ours, VersionRange theirs) {
        auto agreed = agree(self_of(1, ours), hello_from(2, 1, theirs), "", NodeId{});
        return agreed ? agreed->version : 0;
    };
    EXPECT_EQ(version({1, 1}, {1, 1}), 1);
    EXPECT_EQ(version({1, 2}, {2, 3}), 2);
    EXPECT_EQ(version({2, 3}, {1, 2}), 2);
    EXPECT_EQ(version({1, 5}, {2, 3}), 3);
    EXPECT_EQ(version({1, 1}, {2, 3}), 0);
    auto none = agree(self_of(1, {1, 2}), hello_from(2, 1, {3, 4}), "", NodeId{});
    ASSERT_FALSE(none);
    EXPECT_EQ(none.error().code(), Code::unsupported);
    EXPECT_NE(none.error().message().find("1 to 2"), std::string::npos);
    EXPECT_NE(none.error().message().find("3 to 4"), std::string::npos);
}

TEST(Wire, WhoIsNotMeantIsRefusedByName) {
    auto refusal = [](Hello hello, std::string_view identity, uint64_t wanted) {
        auto agreed = agree(self_of(1), hello, identity, NodeId(wanted));
        if (agreed) return std::string();
        EXPECT_EQ(agreed.error().code(), Code::permission_denied);
        return agreed.error().message();
    };
    EXPECT_EQ(refusal(hello_from(2, 1), "0000000000000002", 2), "");
    Hello stranger = hello_from(2, 1);
    stranger.cluster = ClusterId(7);
    EXPECT_NE(refusal(stranger, "", 0).find("0000000000000007"), std::string::npos);
    EXPECT_NE(refusal(hello_from(2, 3), "", 0).find("0000000000000003"), std::string::npos);
    EXPECT_NE(refusal(hello_from(2, 1), "", 4).find("0000000000000004"), std::string::npos);
    EXPECT_NE(refusal(hello_from(1, 1), "", 0), "");
    EXPECT_NE(refusal(hello_from(2, 1), "0000000000000003", 2), "");
    EXPECT_NE(refusal(hello_from(2, 1), "someone", 2), "");
}

// ---- the parser ----

struct Sent {
    FrameHeader header;
    Message message;
};

std::vector<Sent> some_frames(sim::Random& random, size_t count) {
    std::vector<Sent> frames;
    for (size_t i = 0; i < count; ++i) {
        Sent sent;
        sent.header = {.version = 1, .kind = FrameKind::request, .method = 3, .id = i + 1};
        sent.message.body.resize(random.pick(4) == 0 ? random.pick(300'000) : random.pick(200));
        random.fill(sent.message.body);
        for (uint64_t j = random.pick(3); j != 0; --j) {
            size_t blocks = 1 + (random.pick(4) == 0 ? random.pick(700) : random.pick(3));
            Buffer buffer = Buffer::allocate(blocks * kBlockBytes);
            random.fill(buffer.bytes());
            sent.message.payload.push_back(buffer);
        }
        bool is_checked = random.chance(500);
        sent.message.payload_check = is_checked ? PayloadCheck::by_link : PayloadCheck::by_caller;
        frames.push_back(std::move(sent));
    }
    return frames;
}

std::vector<std::byte> flat(const std::vector<Buffer>& parts) {
    std::vector<std::byte> bytes;
    for (const Buffer& part : parts)
        bytes.insert(bytes.end(), part.data(), part.data() + part.size());
    return bytes;
}

std::vector<std::byte> stream_of(const std::vector<Sent>& frames) {
    Batch batch;
    for (const Sent& sent : frames)
        batch.add(sent.header, sent.message);
    return flat(batch.take());
}

FrameParser agreed_parser() {
    FrameParser parser;
    parser.agree_on(1);
    return parser;
}

// Feeds `stream` in pieces of random length.
Result<std::vector<Frame>> parse(FrameParser& parser, Bytes stream, sim::Random& random) {
    std::vector<Frame> frames;
    while (true) {
        while (true) {
            TRY_ASSIGN(std::optional<Frame> frame, parser.next());
            if (!frame) break;
            frames.push_back(std::move(*frame));
        }
        if (stream.empty()) return frames;
        Buffer target = parser.target();
        size_t room = std::min(target.size(), stream.size());
        size_t count = random.pick(2) == 0 ? room : 1 + random.pick(room);
        std::memcpy(target.data(), stream.data(), count);
        parser.put(count);
        stream = stream.subspan(count);
    }
}

TEST(FrameParser, FramesComeBackHoweverTheBytesCome) {
    for (uint64_t seed = 0; seed < 6; ++seed) {
        sim::Random random(seed);
        std::vector<Sent> sent = some_frames(random, 15);
        std::vector<std::byte> stream = stream_of(sent);
        FrameParser parser = agreed_parser();
        auto frames = parse(parser, stream, random);
        ASSERT_TRUE(frames) << frames.error().text();
        ASSERT_EQ(frames->size(), sent.size());
        for (size_t i = 0; i < sent.size(); ++i) {
            const Message& got = (*frames)[i].message;
            EXPECT_EQ((*frames)[i].header.id, sent[i].header.id);
            EXPECT_EQ(got.body, sent[i].message.body);
            EXPECT_EQ(flat(got.payload), flat(sent[i].message.payload));
            for (const Buffer& buffer : got.payload) {
                EXPECT_EQ(reinterpret_cast<uintptr_t>(buffer.data()) % kBlockBytes, 0u);
                EXPECT_EQ(buffer.size() % kBlockBytes, 0u);
                EXPECT_LE(buffer.size(), limits::kPeerPayloadBufferBytes);
            }
        }
    }
}

TEST(FrameParser, DamageIsFoundWhereItMatters) {
    sim::Random random(5);
    Sent sent;
    sent.header = {.version = 1, .kind = FrameKind::answer, .id = 1};
    sent.message.body.resize(10);
    sent.message.payload = {Buffer::zeroed(3 * kBlockBytes)};
    for (PayloadCheck check : {PayloadCheck::by_link, PayloadCheck::by_caller}) {
        sent.message.payload_check = check;
        std::vector<std::byte> stream = stream_of({sent});
        for (size_t at : {size_t{0}, size_t{30}, size_t{50}, size_t{60}, stream.size() - 1}) {
            std::vector<std::byte> bad = stream;
            bad[at] ^= std::byte{1};
            FrameParser parser = agreed_parser();
            auto frames = parse(parser, bad, random);
            bool is_payload = at >= kFrameHeaderBytes + 10;
            // Whoever carries checksums of its own wants to see for itself.
            EXPECT_EQ(frames.has_value(), is_payload && check == PayloadCheck::by_caller) << at;
        }
    }
}

TEST(FrameParser, AFrameOutOfTurnIsRefused) {
    sim::Random random(6);
    auto parse_one = [&](FrameHeader header, bool is_agreed, uint16_t version) {
        Batch batch;
        batch.add(header, Bytes{});
        std::vector<std::byte> stream = flat(batch.take());
        FrameParser parser;
        if (is_agreed) parser.agree_on(version);
        auto frames = parse(parser, stream, random);
        return frames.has_value() ? Code::conflict : frames.error().code();
    };
    FrameHeader ping{.version = 2, .kind = FrameKind::ping};
    FrameHeader hello{.kind = FrameKind::hello};
    EXPECT_EQ(parse_one(hello, false, 0), Code::conflict);
    EXPECT_EQ(parse_one(ping, true, 2), Code::conflict);
    EXPECT_EQ(parse_one(ping, true, 1), Code::unsupported);
    EXPECT_EQ(parse_one({.kind = FrameKind::ping}, false, 0), Code::corrupt);
    EXPECT_EQ(parse_one(hello, true, 1), Code::corrupt);
}

// The example of docs/formats/peer.md.
TEST(Wire, TheExampleInTheDocumentHolds) {
    Batch batch;
    std::string_view text = "hello";
    batch.add({.version = 1, .kind = FrameKind::request, .method = 1, .id = 0x10000},
              bytes_of_text(text));
    std::string hex;
    for (std::byte byte : flat(batch.take()))
        hex += fmt::format("{:02x}", static_cast<unsigned>(byte));
    EXPECT_EQ(hex,
              "50455043e3a1f4ed0100040001000000"
              "00000100000000000500000000000000"
              "4cbb719a000000000000000000000000"
              "68656c6c6f");
}

}  // namespace
}  // namespace peplos::peer
