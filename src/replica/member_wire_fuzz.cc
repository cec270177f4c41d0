#include <algorithm>
#include <cstring>

#include "base/check.h"
#include "base/crc32c.h"
#include "replica/member_wire.h"

namespace {

using namespace peplos;

// Records whose checksums hold, so that what is behind them is reached.
void seal_records(std::vector<std::byte>& body) {
    constexpr size_t kCrcAt = 4, kCrcStart = 8, kBytesAt = 12;
    for (size_t at = 0; at + format::kRecordHeaderBytes <= body.size();) {
        uint32_t bytes = 0;
        std::memcpy(&bytes, body.data() + at + kBytesAt, sizeof(bytes));
        bool is_one = std::memcmp(body.data() + at, "PREC", 4) == 0 &&
                      bytes >= format::kRecordHeaderBytes && bytes <= body.size() - at;
        if (is_one) {
            uint32_t crc = crc32c(Bytes(body).subspan(at + kCrcStart, bytes - kCrcStart));
            std::memcpy(body.data() + at + kCrcAt, &crc, sizeof(crc));
        }
        at += is_one ? bytes : 1;
    }
}

// `blocks` blocks in buffers of `each`, filled with what the bytes say.
std::vector<Buffer> payload_of(Bytes bytes, size_t blocks, size_t each) {
    std::vector<Buffer> out;
    while (blocks != 0) {
        Buffer buffer = Buffer::zeroed(std::min(blocks, each) * kBlockBytes);
        size_t count = std::min(bytes.size(), buffer.size());
        if (count != 0) std::memcpy(buffer.data(), bytes.data(), count);
        blocks -= std::min(blocks, each);
        out.push_back(std::move(buffer));
    }
    return out;
}

bool is_same(const peer::Message& a, const peer::Message& b) {
    auto flat = [](const peer::Message& message) {
        std::vector<std::byte> out;
        for (const Buffer& buffer : message.payload)
            out.insert(out.end(), buffer.bytes().begin(), buffer.bytes().end());
        return out;
    };
    return a.body == b.body && flat(a) == flat(b);
}

template <typename Decode>
void try_decode(Decode decode, peer::Message message) {
    auto first = decode(std::move(message));
    if (!first) return;
    peer::Message sent = encode(*first);
    auto again = decode(sent);
    CHECK(again.has_value() && is_same(encode(*again), sent));
}

}  // namespace

// The first byte says which decoder (bits 0 to 2), and of how many blocks a payload buffer is (bits
// 4, 5); its highest bit: with checksums of records that hold. The second says how many blocks of
// payload there are, the rest is the body, and fills the payload.
extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
    if (size < 2) return 0;
    Bytes rest = std::as_bytes(std::span(data, size)).subspan(2);
    peer::Message message;
    message.body.assign(rest.begin(), rest.end());
    if ((data[0] & 0x80) != 0) seal_records(message.body);
    message.payload = payload_of(rest, data[1] % 64, 1 + ((data[0] >> 4) & 3));
    switch (data[0] & 7) {
        case 0:
            try_decode(replica::decode_call<replica::FenceCall>, std::move(message));
            break;
        case 1:
            try_decode(replica::decode_call<replica::OpenCall>, std::move(message));
            break;
        case 2:
            try_decode(replica::decode_call<replica::AppendCall>, std::move(message));
            break;
        case 3:
            try_decode(replica::decode_call<replica::RenewCall>, std::move(message));
            break;
        case 4:
            try_decode(replica::decode_call<replica::ReleaseCall>, std::move(message));
            break;
        case 5:
            try_decode(replica::decode_call<replica::ReadLogCall>, std::move(message));
            break;
        case 6:
            try_decode(replica::decode_word, std::move(message));
            break;
        default:
            try_decode(replica::decode_records, std::move(message));
            break;
    }
    return 0;
}
