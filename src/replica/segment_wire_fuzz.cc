#include "base/check.h"
#include "replica/segment_wire.h"

// The first byte says whether the rest is a call or an answer.
extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
    using namespace peplos;
    if (size == 0) return 0;
    Bytes bytes = std::as_bytes(std::span(data, size)).subspan(1);
    if ((data[0] & 1) == 0) {
        auto request = replica::decode_segment_request(bytes);
        if (!request) return 0;
        auto again = replica::decode_segment_request(replica::encode(*request));
        CHECK(again.has_value() && *again == *request);
    } else {
        auto answer = replica::decode_segment_answer(bytes);
        if (!answer) return 0;
        auto again = replica::decode_segment_answer(replica::encode(*answer));
        CHECK(again.has_value() && *again == *answer);
    }
    return 0;
}
