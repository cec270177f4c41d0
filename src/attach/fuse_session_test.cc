#include "attach/fuse_session.h"

#include <cerrno>
#include <cstring>
#include <future>
#include <gtest/gtest.h>
#include <set>
#include <sys/socket.h>
#include <unistd.h>

#include "runtime/core.h"

namespace peplos::attach {
namespace {

using runtime::Task;

// Every byte of a block is the block's number; calls wait for open(), so that they overlap.
class FakeDevice : public volume::BlockDevice {
  public:
    uint64_t size_bytes() const override { return 256 * kBlockBytes; }
    uint32_t sector_bytes() const override { return 512; }
    Task<Result<void>> read(uint64_t offset, Buffer into) override {
        ++running;
        co_await opened.wait();
        --running;
        std::memset(into.data(), static_cast<int>(offset / kBlockBytes), into.size());
        co_return Result<void>();
    }
    Task<Result<void>> write(uint64_t, Buffer) override { co_return Result<void>(); }
    Task<Result<void>> zero(uint64_t, uint64_t) override { co_return Result<void>(); }
    Task<Result<void>> flush() override { co_return Result<void>(); }

    runtime::Event opened;
    int running = 0;
};

// The kernel's side is the other end of a socket that keeps messages apart, as /dev/fuse does.
class FuseSessionTest : public testing::Test {
  protected:
    void SetUp() override {
        int ends[2];
        ASSERT_EQ(socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, ends), 0);
        kernel_ = ends[1];
        auto core = runtime::Core::make({});
        ASSERT_TRUE(core);
        core_ = std::move(*core);
        core_->start();
        on_core([this, fd = ends[0]] {
            session_ = std::make_unique<FuseSession>(core_->executor(), VolumeId(1), device_,
                                                     std::make_shared<ReceiveBuffer>(), fd);
            session_->start();
        });
    }
    void TearDown() override {
        on_core([this] { session_.reset(); });
        core_->stop();
        close(kernel_);
    }
    void on_core(std::function<void()> work) {
        std::promise<void> done;
        boost::asio::post(core_->context(), [&] {
            work();
            done.set_value();
        });
        done.get_future().get();
    }
    void stop_session() {
        std::promise<void> done;
        auto stop = [](FuseSession& session, std::promise<void>& out) -> Task<void> {
            co_await session.stop();
            out.set_value();
        };
        runtime::spawn(core_->executor(), stop(*session_, done));
        done.get_future().get();
    }
    void ask_read(uint64_t unique, uint64_t block) {
        struct {
            fuse_in_header header;
            fuse_read_in body;
        } request{};
        request.header.len = sizeof(request);
        request.header.opcode = FUSE_READ;
        request.header.unique = unique;
        request.body.offset = block * kBlockBytes;
        request.body.size = kBlockBytes;
        ASSERT_EQ(write(kernel_, &request, sizeof(request)), ssize_t{sizeof(request)});
    }
    // The error of the answer to a truncate to `bytes`; when it is none, the size that it names.
    std::pair<int, uint64_t> truncate(uint64_t bytes) {
        struct {
            fuse_in_header header;
            fuse_setattr_in body;
        } request{};
        request.header.len = sizeof(request);
        request.header.opcode = FUSE_SETATTR;
        request.body.valid = FATTR_SIZE | FATTR_FH;
        request.body.size = bytes;
        EXPECT_EQ(write(kernel_, &request, sizeof(request)), ssize_t{sizeof(request)});
        struct {
            fuse_out_header header;
            fuse_attr_out body;
        } out{};
        EXPECT_EQ(read(kernel_, &out, sizeof(out)), static_cast<ssize_t>(out.header.len));
        return {-out.header.error, out.body.attr.size};
    }
    // The request answered; its block must have the bytes of `unique`.
    uint64_t answer() {
        std::vector<char> message(sizeof(fuse_out_header) + kBlockBytes);
        EXPECT_EQ(read(kernel_, message.data(), message.size()),
                  static_cast<ssize_t>(message.size()));
        fuse_out_header header;
        std::memcpy(&header, message.data(), sizeof(header));
        EXPECT_EQ(header.error, 0);
        EXPECT_EQ(static_cast<uint8_t>(message.back()), static_cast<uint8_t>(header.unique));
        return header.unique;
    }

    std::shared_ptr<FakeDevice> device_ = std::make_shared<FakeDevice>();
    std::unique_ptr<runtime::Core> core_;
    std::unique_ptr<FuseSession> session_;
    int kernel_ = -1;
};

TEST_F(FuseSessionTest, AnswersEachReadOnceWhateverServedItBefore) {
    on_core([this] { device_->opened.set(); });
    for (int round = 0; round < 100; ++round) {
        std::set<uint64_t> answered;
        for (uint64_t i = 0; i < 16; ++i)
            ask_read(i, i);
        for (int i = 0; i < 16; ++i)
            answered.insert(answer());
        EXPECT_EQ(answered.size(), 16u);
    }
    stop_session();
    EXPECT_EQ(session_->counters().requests, 1600u);
}

// After a grow the mounter truncates the file to the size that it has: only the answer to that is
// sure to become the kernel's size.
TEST_F(FuseSessionTest, TruncateIsAnsweredForTheDevicesOwnSizeOnly) {
    const uint64_t size = device_->size_bytes();
    EXPECT_EQ(truncate(size), std::pair(0, size));
    EXPECT_EQ(truncate(size - kBlockBytes).first, EPERM);
    EXPECT_EQ(truncate(size + kBlockBytes).first, EPERM);
    EXPECT_EQ(truncate(0).first, EPERM);
    EXPECT_EQ(truncate(size), std::pair(0, size));
    stop_session();
}

TEST_F(FuseSessionTest, StopsWhenWhatItReadIsAnswered) {
    on_core([this] { device_->opened.set(); });
    ask_read(1, 1);
    EXPECT_EQ(answer(), 1u);
    on_core([this] { device_->opened.reset(); });
    ask_read(2, 2);
    ask_read(3, 3);
    for (int running = 0; running < 2;)
        on_core([&] { running = device_->running; });
    std::thread opener([this] {
        bool stopping = false;
        while (!stopping)
            on_core([&] { stopping = session_->is_stopping(); });
        on_core([this] { device_->opened.set(); });
    });
    stop_session();
    opener.join();
    std::set<uint64_t> answered{answer(), answer()};
    EXPECT_EQ(answered, (std::set<uint64_t>{2, 3}));
}

}  // namespace
}  // namespace peplos::attach
