#include "attach/fuse_protocol.h"

#include <gtest/gtest.h>
#include <sys/stat.h>

namespace peplos::attach {
namespace {

template <typename Body>
std::vector<std::byte> request_of(uint32_t opcode, const Body& body, size_t payload = 0) {
    fuse_in_header header{};
    header.len = static_cast<uint32_t>(sizeof(header) + sizeof(body) + payload);
    header.opcode = opcode;
    header.unique = 42;
    header.nodeid = FUSE_ROOT_ID;
    std::vector<std::byte> out(header.len);
    std::memcpy(out.data(), &header, sizeof(header));
    std::memcpy(out.data() + sizeof(header), &body, sizeof(body));
    return out;
}

Result<FuseRequest> decode(const std::vector<std::byte>& bytes) {
    return decode_request(Bytes(bytes).first(std::min(bytes.size(), kRequestHeadBytes)),
                          bytes.size());
}

TEST(FuseProtocol, DecodesAWriteWithItsPayload) {
    fuse_write_in body{};
    body.offset = 4096;
    body.size = 512;
    auto request = decode(request_of(FUSE_WRITE, body, 512));
    ASSERT_TRUE(request);
    EXPECT_EQ(request->op, FuseOp::write);
    EXPECT_EQ(request->offset, 4096u);
    EXPECT_EQ(request->bytes, 512u);
    EXPECT_EQ(request->unique, 42u);
    EXPECT_FALSE(request->resent);
}

TEST(FuseProtocol, RefusesAWriteWhoseSizeIsNotItsPayload) {
    fuse_write_in body{};
    body.size = 4096;
    for (size_t payload : {0ul, 512ul, 4095ul, 4097ul}) {
        EXPECT_FALSE(decode(request_of(FUSE_WRITE, body, payload))) << payload;
    }
    body.size = kFuseIoBytesMax + 512;
    EXPECT_FALSE(decode(request_of(FUSE_WRITE, body, body.size)));
}

TEST(FuseProtocol, RefusesEveryTruncation) {
    fuse_read_in body{};
    body.size = 4096;
    std::vector<std::byte> whole = request_of(FUSE_READ, body);
    ASSERT_TRUE(decode(whole));
    for (size_t size = 0; size < whole.size(); ++size) {
        std::vector<std::byte> part(whole.begin(), whole.begin() + static_cast<ptrdiff_t>(size));
        EXPECT_FALSE(decode(part)) << size;
    }
}

TEST(FuseProtocol, SeesThatARequestWasResent) {
    fuse_read_in body{};
    std::vector<std::byte> bytes = request_of(FUSE_READ, body);
    uint64_t unique = 42 | kUniqueResend;
    std::memcpy(bytes.data() + offsetof(fuse_in_header, unique), &unique, sizeof(unique));
    auto request = decode(bytes);
    ASSERT_TRUE(request);
    EXPECT_TRUE(request->resent);
    EXPECT_EQ(request->unique, unique);  // answered as it came
}

TEST(FuseProtocol, UnknownOpcodesAreNotAnError) {
    auto request = decode(request_of(9999, fuse_read_in{}));
    ASSERT_TRUE(request);
    EXPECT_EQ(request->op, FuseOp::unsupported);
}

TEST(FuseProtocol, NegotiatesWhatBothSidesKnow) {
    fuse_init_in kernel{};
    kernel.major = 7;
    kernel.minor = 45;
    kernel.flags = 0xffffffff;
    kernel.flags2 = 0xffffffff;
    EXPECT_TRUE(offers_resend(kernel));
    auto out = negotiate(kernel);
    ASSERT_TRUE(out);
    EXPECT_EQ(out->minor, kMinorOfResend);
    EXPECT_EQ(out->max_write, kFuseIoBytesMax);
    EXPECT_EQ(out->max_pages, 256);
    EXPECT_NE(out->flags & FUSE_ASYNC_DIO, 0u);
    EXPECT_EQ(out->flags & FUSE_WRITEBACK_CACHE, 0u);
    EXPECT_EQ(uint64_t{out->flags2} << 32, kInitHasResend);

    kernel.minor = 38;  // Linux 6.1
    kernel.flags2 = 0;
    EXPECT_FALSE(offers_resend(kernel));
    ASSERT_TRUE(negotiate(kernel));
    EXPECT_EQ(negotiate(kernel)->minor, 38u);
    kernel.minor = 20;
    EXPECT_EQ(negotiate(kernel).error().code(), Code::unsupported);
}

TEST(FuseProtocol, TheFileIsARegularFileOfTheVolumesSize) {
    fuse_attr attr = file_attributes(1 << 30);
    EXPECT_TRUE(S_ISREG(attr.mode));
    EXPECT_EQ(attr.size, 1u << 30);
    EXPECT_EQ(attr.blocks, (1u << 30) / 512);
}

TEST(FuseProtocol, OnlyNoSpaceReachesFileSystemsAsNoSpace) {
    EXPECT_EQ(errno_of(Code::no_space), ENOSPC);
    EXPECT_EQ(errno_of(Code::corrupt), EIO);
    EXPECT_EQ(errno_of(Code::io_error), EIO);
    EXPECT_EQ(errno_of(Code::outcome_unknown), EIO);
    EXPECT_EQ(errno_of(Code::fenced), ESTALE);
}

}  // namespace
}  // namespace peplos::attach
