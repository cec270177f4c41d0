#include "base/check.h"
#include "peer/frame_parser.h"

// The first byte chooses what the rest is: a hello, frames of the handshake, or frames after it,
// which come in pieces whose length it also chooses.
namespace {

using namespace peplos;

void try_hello(Bytes bytes) {
    auto hello = peer::decode_hello(bytes);
    if (!hello) return;
    auto again = peer::decode_hello(peer::encode_hello(*hello));
    CHECK(again.has_value() && *again == *hello);
    peer::Self self{.cluster = hello->cluster, .node = hello->target, .boot = NodeBoot(1)};
    auto agreed = peer::agree(self, *hello, "", NodeId{});
    CHECK(!agreed || (agreed->version == 1 && agreed->node == hello->node));
}

void try_frames(Bytes bytes, bool is_agreed, size_t piece) {
    peer::FrameParser parser;
    if (is_agreed) parser.agree_on(1);
    while (true) {
        while (true) {
            auto frame = parser.next();
            if (!frame) return;
            if (!frame->has_value()) break;
            const peer::Frame& whole = **frame;
            auto header = peer::decode_frame_header(peer::encode_frame_header(whole.header));
            CHECK(header.has_value() && *header == whole.header);
            CHECK(whole.message.body.size() == whole.header.body_bytes);
            CHECK(whole.message.payload_bytes() == whole.header.payload_bytes);
            if (whole.header.code != 0)
                CHECK(!peer::error_of(whole.header.code, whole.message.body).text().empty());
        }
        if (bytes.empty()) return;
        Buffer target = parser.target();
        size_t count = std::min({piece, target.size(), bytes.size()});
        std::memcpy(target.data(), bytes.data(), count);
        parser.put(count);
        bytes = bytes.subspan(count);
    }
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
    if (size == 0) return 0;
    uint8_t choice = data[0];
    Bytes rest = std::as_bytes(std::span(data + 1, size - 1));
    if (choice % 4 == 0) {
        try_hello(rest);
    } else {
        try_frames(rest, choice % 4 != 1, size_t{1} << (choice / 4 % 16));
    }
    return 0;
}
