#include <gtest/gtest.h>

#include "base/buffer.h"
#include "base/crc32c.h"
#include "base/ids.h"
#include "base/result.h"

namespace peplos {
namespace {

TEST(Crc32c, MatchesTheStandardVectors) {
    EXPECT_EQ(crc32c(bytes_of_text("123456789")), 0xe3069283u);
    EXPECT_EQ(crc32c({}), 0u);
    Buffer zeros = Buffer::zeroed(kBlockBytes);
    EXPECT_EQ(crc32c(std::as_const(zeros).bytes()), kZeroBlockCrc);
}

TEST(Crc32c, ChainsOverParts) {
    std::string text = "the cloth that was woven for the Acropolis";
    Bytes all = bytes_of_text(text);
    EXPECT_EQ(crc32c(all.subspan(7), crc32c(all.first(7))), crc32c(all));
}

TEST(Buffer, IsAlignedAndSharesSlices) {
    for (size_t bytes : {1ul, 4096ul, 4097ul, 1ul << 20, (1ul << 20) + 1, 3ul << 20}) {
        Buffer buffer = Buffer::allocate(bytes);
        EXPECT_EQ(reinterpret_cast<uintptr_t>(buffer.data()) % kBlockBytes, 0u);
        EXPECT_EQ(buffer.size(), bytes);
        std::memset(buffer.data(), 7, bytes);
    }
    Buffer whole = Buffer::zeroed(8192);
    Buffer second = whole.slice(4096, 4096);
    whole.bytes()[4096] = std::byte{9};
    whole = {};
    EXPECT_EQ(second.bytes()[0], std::byte{9});
}

TEST(Ids, ParseWhatTheyPrint) {
    VolumeId id(0x0123456789abcdef);
    EXPECT_EQ(fmt::format("{}", id), "0123456789abcdef");
    EXPECT_EQ(parse_hex_id("0123456789abcdef"), id.value);
    EXPECT_EQ(parse_hex_id("0123456789abcdeg"), 0u);
    EXPECT_EQ(parse_hex_id("0123"), 0u);
}

Result<int> half(int value) {
    if (value % 2 != 0) return fail(Code::invalid_argument, "{} is odd", value);
    return value / 2;
}
Result<int> quarter(int value) {
    TRY_ASSIGN(int once, half(value));
    TRY_ASSIGN(int twice, half(once));
    return twice;
}

TEST(Result, TryPassesTheErrorOn) {
    EXPECT_EQ(quarter(8).value(), 2);
    ASSERT_FALSE(quarter(6));
    EXPECT_EQ(quarter(6).error().text(), "3 is odd (invalid_argument)");
}

}  // namespace
}  // namespace peplos
