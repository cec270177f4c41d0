#include "runtime/uring_disk.h"

#include <fcntl.h>
#include <filesystem>
#include <fstream>
#include <future>
#include <gtest/gtest.h>
#include <sys/file.h>
#include <unistd.h>

#include "runtime/gate.h"

namespace peplos::runtime {
namespace {

constexpr uint64_t kFileBytes = 8 * kMiB;

Buffer filled(size_t bytes, int value) {
    Buffer buffer = Buffer::allocate(bytes);
    std::memset(buffer.data(), value, bytes);
    return buffer;
}

// A core, its disks and an empty directory on a file system with direct I/O (the build tree's).
class UringDiskTest : public testing::Test {
  protected:
    void SetUp() override {
        auto core = Core::make({.name = "disk"});
        ASSERT_TRUE(core) << core.error().text();
        core_ = std::move(*core);
        core_->start();
        disks_ = std::make_unique<UringDisks>(core_.get());
        directory_ = std::filesystem::current_path() /
                     fmt::format("uring_disk_test.{}.{}", getpid(),
                                 testing::UnitTest::GetInstance()->current_test_info()->name());
        std::filesystem::create_directories(directory_);
    }
    void TearDown() override {
        core_->stop();
        std::filesystem::remove_all(directory_);
    }
    std::string path(std::string name) { return directory_ / name; }

    template <typename T>
    T run(Task<T> task) {
        std::promise<std::unique_ptr<T>> promise;
        auto keep = [](Task<T> inner, std::promise<std::unique_ptr<T>>& out) -> Task<void> {
            auto value = std::make_unique<T>(co_await std::move(inner));
            out.set_value(std::move(value));
        };
        spawn(core_->executor(), keep(std::move(task), promise));
        return std::move(*promise.get_future().get());
    }
    std::unique_ptr<Disk> open(std::string name) {
        auto disk = run(disks_->open(path(name), {.create_bytes = kFileBytes}));
        if (!disk) throw std::runtime_error(disk.error().text());
        return std::move(*disk);
    }

    std::unique_ptr<Core> core_;
    std::unique_ptr<UringDisks> disks_;
    std::filesystem::path directory_;
};

Task<Result<void>> write_at(Disk& disk, uint64_t offset, Buffer from, Durability durability) {
    return disk.write(offset, std::move(from), durability);
}
Task<Result<int>> read_at(Disk& disk, uint64_t offset) {
    Buffer buffer = Buffer::allocate(kBlockBytes);
    CO_TRY(co_await disk.read(offset, buffer));
    co_return static_cast<int>(buffer.bytes()[kBlockBytes - 1]);
}

TEST_F(UringDiskTest, ReadsWhatItWrote) {
    auto disk = open("a");
    EXPECT_EQ(disk->size_bytes(), kFileBytes);
    EXPECT_EQ(std::filesystem::file_size(path("a")), kFileBytes);
    EXPECT_FALSE(std::filesystem::exists(path("a.making")));
    EXPECT_EQ(run(read_at(*disk, 0)).value(), 0);
    ASSERT_TRUE(run(write_at(*disk, 4096, filled(8192, 7), Durability::durable)));
    ASSERT_TRUE(run(write_at(*disk, 0, filled(4096, 9), Durability::volatile_)));
    ASSERT_TRUE(run(disk->sync()));
    EXPECT_EQ(run(read_at(*disk, 0)).value(), 9);
    EXPECT_EQ(run(read_at(*disk, 8192)).value(), 7);
    disk.reset();
    disk = open("a");
    EXPECT_EQ(run(read_at(*disk, 8192)).value(), 7);
    ASSERT_TRUE(run(disk->zero(0, kFileBytes)));
    EXPECT_EQ(run(read_at(*disk, 8192)).value(), 0);
}

TEST_F(UringDiskTest, GathersAndScatters) {
    auto disk = open("a");
    std::vector<Buffer> parts;
    for (int i = 0; i < 1024; ++i)
        parts.push_back(filled(kBlockBytes, i & 0x7f));
    ASSERT_TRUE(run(disk->write_vector(kBlockBytes, parts, Durability::durable)));
    std::vector<Buffer> back;
    for (int i = 0; i < 512; ++i)
        back.push_back(filled(2 * kBlockBytes, 0xff));
    ASSERT_TRUE(run(disk->read_vector(kBlockBytes, back)));
    for (int i = 0; i < 1024; ++i) {
        EXPECT_EQ(int(back[i / 2].bytes()[(i % 2) * kBlockBytes]), i & 0x7f);
    }
}

TEST_F(UringDiskTest, SaysWhyItDoesNotOpen) {
    EXPECT_EQ(run(disks_->open(path("none"), {})).error().code(), Code::not_found);
    EXPECT_EQ(run(disks_->open(path("no/dir"), {.create_bytes = 4096})).error().code(),
              Code::not_found);
    EXPECT_EQ(run(disks_->open(directory_, {})).error().code(), Code::invalid_argument);
    EXPECT_EQ(run(disks_->open("/dev/null", {})).error().code(), Code::invalid_argument);
    std::ofstream(path("tiny")) << "x";
    EXPECT_EQ(run(disks_->open(path("tiny"), {})).error().code(), Code::invalid_argument);
    auto vast = run(disks_->open(path("vast"), {.create_bytes = 1ull << 50}));
    ASSERT_FALSE(vast);
    EXPECT_EQ(vast.error().code(), Code::no_space) << vast.error().text();
    EXPECT_FALSE(std::filesystem::exists(path("vast")));
    EXPECT_FALSE(std::filesystem::exists(path("vast.making")));
}

TEST_F(UringDiskTest, NamesTheProcessThatHoldsAFile) {
    auto disk = open("a");
    auto second = run(disks_->open(path("a"), {}));
    ASSERT_FALSE(second);
    EXPECT_EQ(second.error().code(), Code::busy);
    EXPECT_NE(second.error().message().find(std::to_string(getpid())), std::string::npos)
        << second.error().text();
    disk.reset();
    EXPECT_TRUE(run(disks_->open(path("a"), {})));
}

TEST_F(UringDiskTest, RefusesWhatLiesOutside) {
    auto disk = open("a");
    EXPECT_EQ(run(read_at(*disk, kFileBytes)).error().code(), Code::invalid_argument);
    EXPECT_EQ(run(write_at(*disk, kFileBytes - 4096, filled(8192, 1), Durability::volatile_))
                  .error()
                  .code(),
              Code::invalid_argument);
}

TEST_F(UringDiskTest, ReportsAFileThatShrank) {
    auto disk = open("a");
    ASSERT_EQ(truncate(path("a").c_str(), 4096), 0);
    auto result = run(read_at(*disk, 8192));
    ASSERT_FALSE(result);
    EXPECT_EQ(result.error().code(), Code::io_error);
}

Task<void> write_slots(Disk& disk, uint64_t first, uint64_t step, int rounds, int* failures) {
    for (int round = 0; round < rounds; ++round) {
        for (uint64_t block = first; block < kFileBytes / kBlockBytes; block += step) {
            Buffer buffer = Buffer::allocate(kBlockBytes);
            std::memcpy(buffer.data(), &block, sizeof(block));
            auto result = co_await disk.write(block * kBlockBytes, buffer, Durability::volatile_);
            if (!result) ++*failures;
        }
    }
}
Task<bool> write_and_verify(Executor executor, Disk& disk) {
    Gate gate;
    int failures = 0;
    // More than the ring has entries.
    constexpr uint64_t kWriters = 1000;
    for (uint64_t i = 0; i < kWriters; ++i) {
        gate.spawn(executor, write_slots(disk, i, kWriters, 2, &failures));
    }
    co_await gate.close();
    for (uint64_t block = 0; block < kFileBytes / kBlockBytes; ++block) {
        Buffer buffer = Buffer::allocate(kBlockBytes);
        auto result = co_await disk.read(block * kBlockBytes, buffer);
        uint64_t found = 0;
        std::memcpy(&found, buffer.data(), sizeof(found));
        if (!result || found != block) ++failures;
    }
    co_return failures == 0;
}

TEST_F(UringDiskTest, ManyOperationsInFlight) {
    auto disk = open("a");
    EXPECT_TRUE(run(write_and_verify(core_->executor(), *disk)));
}

Task<void> read_once(Disk& disk, std::shared_ptr<int> witness) {
    Buffer buffer = Buffer::allocate(kBlockBytes);
    auto result = co_await disk.read(0, buffer);
    ++*witness;
}

TEST_F(UringDiskTest, ACoreEndsWithOperationsInFlight) {
    auto disk = open("a");
    auto witness = std::make_shared<int>(0);
    for (int i = 0; i < 2000; ++i)
        spawn(core_->executor(), read_once(*disk, witness));
    asio::post(core_->executor(), [this] { core_->stop(); });
    core_->stop();
    disk.reset();
    disks_.reset();
    core_.reset();
    EXPECT_EQ(witness.use_count(), 1);
    auto again = Core::make({});
    core_ = std::move(*again);
}

}  // namespace
}  // namespace peplos::runtime
