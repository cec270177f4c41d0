// attach-ram-server STATE_DIRECTORY IMAGE BYTES FS SECTOR_BYTES: for tests only. Attaches one
// volume whose bytes lie in shared memory (a file in /dev/shm survives kill -9 of this process),
// with a small delay in every operation, so that a kill always finds some in flight.
//
// Commands on stdin, an answer line on stdout for each: info, detach, force, grow BYTES, trim,
// stale, mend, refresh, attach, quit (pauses and exits).

#include <boost/asio/signal_set.hpp>
#include <boost/asio/steady_timer.hpp>
#include <cstdio>
#include <fcntl.h>
#include <iostream>
#include <linux/falloc.h>
#include <spdlog/sinks/stdout_sinks.h>
#include <spdlog/spdlog.h>
#include <sys/file.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <thread>
#include <unistd.h>

#include "attach/fuse_attachments.h"
#include "base/log.h"

namespace {

using namespace peplos;
using runtime::Task;

constexpr VolumeId kVolume{0x1122334455667788};

class TimerClock : public runtime::Clock {
  public:
    Time now() override { return Time(std::chrono::steady_clock::now().time_since_epoch()); }
    WallTime wall_now() override { return WallTime{}; }
    Task<void> sleep_until(Time deadline) override {
        boost::asio::basic_waitable_timer<std::chrono::steady_clock,
                                          boost::asio::wait_traits<std::chrono::steady_clock>,
                                          runtime::Executor>
            timer(co_await runtime::this_executor());
        timer.expires_at(deadline);
        co_await timer.async_wait(runtime::kUseTask);
    }
};

class RamDevice : public volume::BlockDevice {
  public:
    RamDevice(runtime::Clock& clock, int fd, uint64_t size, uint32_t sector, Duration delay)
        : clock_(clock), fd_(fd), size_(size), sector_(sector), delay_(delay) {}
    uint64_t size_bytes() const override { return size_; }
    uint32_t sector_bytes() const override { return sector_; }
    void grow(uint64_t size) {
        CHECK(::ftruncate(fd_, static_cast<off_t>(size)) == 0);
        size_ = size;
    }
    Task<Result<void>> read(uint64_t offset, Buffer into) override {
        CHECK(offset % sector_ == 0 && into.size() % sector_ == 0);
        CHECK(into.size() <= size_ - offset);
        co_await pause();
        if (::pread(fd_, into.data(), into.size(), static_cast<off_t>(offset)) !=
            static_cast<ssize_t>(into.size())) {
            co_return fail(Code::io_error, "short read");
        }
        co_return Result<void>();
    }
    Task<Result<void>> write(uint64_t offset, Buffer from) override {
        CHECK(offset % sector_ == 0 && from.size() % sector_ == 0);
        co_await pause();
        if (::pwrite(fd_, from.data(), from.size(), static_cast<off_t>(offset)) !=
            static_cast<ssize_t>(from.size())) {
            co_return fail(Code::no_space, "short write");
        }
        co_return Result<void>();
    }
    Task<Result<void>> zero(uint64_t offset, uint64_t bytes) override {
        CHECK(offset % sector_ == 0 && bytes % sector_ == 0);
        co_await pause();
        if (::fallocate(fd_, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, static_cast<off_t>(offset),
                        static_cast<off_t>(bytes)) != 0) {
            co_return fail(Code::io_error, "cannot punch");
        }
        co_return Result<void>();
    }
    Task<Result<void>> flush() override { co_return Result<void>(); }

  private:
    Task<void> pause() {
        if (delay_ != Duration::zero()) co_await clock_.sleep_for(delay_);
    }
    runtime::Clock& clock_;
    int fd_;
    uint64_t size_;
    uint32_t sector_;
    Duration delay_;
};

struct Server {
    attach::FuseAttachments& attachments;
    std::shared_ptr<RamDevice> device;
    fabric::AttachSpec spec;
    std::string formatted_path;
    boost::asio::io_context& io;
    attach::AttachOptions options;
};

void say(const std::string& text) {
    std::cout << text << std::endl;
}

void say_info(const Result<fabric::AttachInfo>& info) {
    if (!info) return say("error " + info.error().text());
    say(fmt::format("ok {} {} {} {} {}", info->device, info->path, info->fs_bytes,
                    info->fs_used_bytes, info->problem.empty() ? "healthy" : info->problem));
}

Task<Result<void>> record_formatted(std::string path, VolumeId) {
    int fd = ::open(path.c_str(), O_CREAT | O_WRONLY | O_CLOEXEC, 0600);
    ::close(fd);
    co_return Result<void>();
}

Task<void> do_attach(Server& server) {
    server.spec.blank = ::access(server.formatted_path.c_str(), F_OK) != 0;
    std::string path = server.formatted_path;
    fabric::Attachments::Formatted formatted = [path](VolumeId id) {
        return record_formatted(path, id);
    };
    say_info(co_await server.attachments.attach(server.spec, server.device, formatted));
}

Task<void> start(Server& server) {
    auto opened = co_await server.attachments.open();
    if (!opened) {
        say("error " + opened.error().text());
        std::_Exit(1);
    }
    auto surviving = co_await server.attachments.find_surviving();
    if (surviving && !surviving->empty()) {
        auto resumed = co_await server.attachments.resume(server.spec, server.device);
        if (resumed) {
            say_info(resumed);
            co_return;
        }
        LOG_WARN("not resumed: {}", resumed.error().text());
    }
    co_await do_attach(server);
}

std::string describe(const std::vector<fabric::Leftover>& stale) {
    std::string text = fmt::format("ok {}", stale.size());
    for (const auto& one : stale)
        text += "; " + one.what;
    return text;
}

Task<void> run_command(Server& server, std::string line) {
    if (line == "info") {
        say_info(server.attachments.info(kVolume));
    } else if (line == "refresh") {
        co_await server.attachments.refresh();
        say_info(server.attachments.info(kVolume));
    } else if (line == "counters") {
        auto c = server.attachments.counters(kVolume);
        say(c ? fmt::format("ok {} {} {}", c->requests, c->resent, c->errors) : c.error().text());
    } else if (line == "detach" || line == "force") {
        auto done = line == "force" ? co_await server.attachments.detach_forced(kVolume)
                                    : co_await server.attachments.detach(kVolume);
        say(done ? "ok" : "error " + done.error().text());
    } else if (line.starts_with("grow ")) {
        server.device->grow(std::strtoull(line.c_str() + 5, nullptr, 10));
        auto done = co_await server.attachments.grow(kVolume);
        say(done ? "ok " + *done : "error " + done.error().text());
    } else if (line == "trim") {
        auto done = co_await server.attachments.trim(kVolume);
        say(done ? fmt::format("ok {}", *done) : "error " + done.error().text());
    } else if (line == "stale" || line == "mend") {
        auto found = co_await server.attachments.leftovers();
        for (const fabric::Leftover& one : found) {
            if (line == "stale") break;
            auto mended = co_await server.attachments.mend_leftovers(one.id);
            if (!mended) say("error " + mended.error().text());
        }
        say(describe(found));
    } else if (line == "attach") {
        co_await do_attach(server);
    } else if (line == "quit") {
        co_await server.attachments.pause_all();
        say("ok");
        std::_Exit(0);
    } else {
        say("error unknown command");
    }
}

void read_commands(Server& server) {
    for (std::string line; std::getline(std::cin, line);) {
        runtime::spawn(server.io.get_executor(), run_command(server, line));
    }
}

}  // namespace

int main(int argc, char** argv) {
    if (argc < 6) return 2;
    // stdout carries the answers.
    spdlog::set_default_logger(spdlog::stderr_logger_mt("server"));
    boost::asio::io_context io(1);
    auto work = boost::asio::make_work_guard(io);
    TimerClock clock;
    int fd = ::open(argv[2], O_RDWR | O_CREAT | O_CLOEXEC, 0600);
    // As the daemon does with its devices: the predecessor is dead once this succeeds.
    CHECK(fd >= 0 && ::flock(fd, LOCK_EX) == 0);
    struct stat info{};
    ::fstat(fd, &info);
    uint64_t size = std::max<uint64_t>(std::strtoull(argv[3], nullptr, 10),
                                       static_cast<uint64_t>(info.st_size));
    CHECK(::ftruncate(fd, static_cast<off_t>(size)) == 0);
    uint32_t sector = static_cast<uint32_t>(std::strtoul(argv[5], nullptr, 10));
    Duration delay = std::chrono::microseconds(argc > 6 ? std::atoi(argv[6]) : 0);
    fabric::AttachSpec spec;
    spec.id = kVolume;
    spec.name = "test";
    spec.fs = std::string_view(argv[4]) == "xfs" ? fabric::FsType::xfs : fabric::FsType::ext4;
    spec.uid = 1000;
    spec.gid = 1001;
    spec.mode = 0750;
    attach::AttachOptions options{argv[1], ""};
    attach::FuseAttachments attachments(io.get_executor(), clock, options);
    Server server{attachments, std::make_shared<RamDevice>(clock, fd, size, sector, delay),
                  spec,        std::string(argv[1]) + "/formatted",
                  io,          options};
    server.spec.blank = ::access(server.formatted_path.c_str(), F_OK) != 0;
    runtime::spawn(io.get_executor(), start(server));
    std::thread reader([&server] { read_commands(server); });
    io.run();
    reader.join();
    return 0;
}
