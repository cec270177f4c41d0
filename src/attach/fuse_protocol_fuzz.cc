#include "attach/fuse_protocol.h"
#include "base/check.h"

// Whatever the bytes: a request that decodes has ranges that the session may rely on.
extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
    using namespace peplos::attach;
    peplos::Bytes bytes(reinterpret_cast<const std::byte*>(data), size);
    auto request = decode_request(bytes.first(std::min(size, kRequestHeadBytes)), size);
    if (!request) return 0;
    if (request->op == FuseOp::read || request->op == FuseOp::write) {
        CHECK(request->bytes <= kFuseIoBytesMax);
    }
    if (request->op == FuseOp::write) CHECK(request->bytes + kRequestHeadBytes == size);
    if (request->op == FuseOp::init) {
        auto out = negotiate(request->init);
        if (out) CHECK(out->minor <= kMinorOfResend);
    }
    return 0;
}
