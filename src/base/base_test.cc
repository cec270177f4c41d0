#include <atomic>
#include <fstream>
#include <gtest/gtest.h>
#include <mutex>
#include <thread>
#include <vector>

#include "base/buffer.h"
#include "base/crc32c.h"
#include "base/ids.h"
#include "base/result.h"

namespace peplos {
namespace {

// Sanitizers keep shadows of memory.
#if __has_feature(address_sanitizer) || __has_feature(thread_sanitizer)
constexpr bool kSanitized = true;
#else
constexpr bool kSanitized = false;
#endif

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

size_t resident_bytes() {
    std::ifstream statm("/proc/self/statm");
    size_t total = 0, resident = 0;
    statm >> total >> resident;
    return resident * kBlockBytes;
}

TEST(Buffer, ABlockTakesOnePage) {
    constexpr size_t kCount = 16'384;
    size_t before = resident_bytes();
    std::vector<Buffer> buffers;
    buffers.reserve(kCount);
    for (size_t i = 0; i < kCount; ++i)
        buffers.push_back(Buffer::zeroed(kBlockBytes));
    if (!kSanitized) EXPECT_LT(resident_bytes() - before, kCount * (kBlockBytes + 256));
    size_t peak = resident_bytes();
    buffers.clear();
    if (!kSanitized) EXPECT_LT(resident_bytes(), peak - kCount * kBlockBytes / 2);
}

// Writes its number into blocks of all sizes, hands them to the next thread, and checks what it
// gets from the one before.
TEST(Buffer, MayBeReleasedByAnotherThread) {
    constexpr int kThreads = 4;
    constexpr int kRounds = 300;
    struct Box {
        std::mutex mutex;
        std::vector<Buffer> buffers;
    };
    std::array<Box, kThreads> boxes;
    std::atomic<int> wrong = 0;
    auto work = [&](int self) {
        for (int round = 0; round < kRounds; ++round) {
            for (size_t bytes : {4096ul, 5000ul, 65536ul, 1ul << 20, (1ul << 20) + 1}) {
                Buffer buffer = Buffer::allocate(bytes);
                buffer.data()[0] = buffer.data()[bytes - 1] = static_cast<std::byte>(bytes >> 4);
                Box& next = boxes[(self + 1) % kThreads];
                std::lock_guard lock(next.mutex);
                next.buffers.push_back(std::move(buffer));
            }
            std::vector<Buffer> mine;
            {
                std::lock_guard lock(boxes[self].mutex);
                mine.swap(boxes[self].buffers);
            }
            for (Buffer& buffer : mine) {
                auto mark = static_cast<std::byte>(buffer.size() >> 4);
                if (buffer.bytes().front() != mark || buffer.bytes().back() != mark) ++wrong;
            }
        }
    };
    std::vector<std::thread> threads;
    for (int i = 0; i < kThreads; ++i)
        threads.emplace_back(work, i);
    for (std::thread& thread : threads)
        thread.join();
    EXPECT_EQ(wrong, 0);
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
