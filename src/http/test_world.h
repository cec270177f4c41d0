#pragma once

// For the tests of doors: two cores that really run, and a client that sends raw bytes.

#include <boost/asio/executor_work_guard.hpp>
#include <boost/asio/io_context.hpp>
#include <cstdlib>
#include <filesystem>
#include <future>
#include <netinet/in.h>
#include <poll.h>
#include <string>
#include <sys/socket.h>
#include <sys/un.h>
#include <thread>
#include <unistd.h>

#include "http/listen.h"
#include "runtime/task.h"

namespace peplos::http {

// One io_context and the thread that runs it.
class TestCore {
  public:
    TestCore() : work_(context_.get_executor()), thread_([this] { context_.run(); }) {}
    ~TestCore() { stop(); }
    runtime::Executor executor() { return context_.get_executor(); }
    void stop() {
        work_.reset();
        context_.stop();
        if (thread_.joinable()) thread_.join();
    }
    // Runs fn() on the core's thread and waits for its value.
    template <typename Fn>
    auto run(Fn fn) {
        std::packaged_task<std::invoke_result_t<Fn&>()> task(std::move(fn));
        auto future = task.get_future();
        boost::asio::post(context_, std::move(task));
        return future.get();
    }
    // Runs the task that make() returns and waits for its end.
    template <typename Make>
    void run_task(Make make) {
        std::promise<void> done;
        auto future = done.get_future();
        runtime::spawn(executor(), finish(make, &done));
        future.get();
    }

  private:
    template <typename Make>
    static runtime::Task<void> finish(Make make, std::promise<void>* done) {
        co_await make();
        done->set_value();
    }
    boost::asio::io_context context_;
    boost::asio::executor_work_guard<boost::asio::io_context::executor_type> work_;
    std::thread thread_;
};

// A directory of its own, mode 0700, removed at the end.
class TestDirectory {
  public:
    TestDirectory() {
        char name[] = "/tmp/peplos-test-XXXXXX";
        path_ = ::mkdtemp(name);
    }
    ~TestDirectory() { std::filesystem::remove_all(path_); }
    std::string file(const std::string& name) const { return path_ + "/" + name; }

  private:
    std::string path_;
};

struct RawAnswer {
    int status = 0;      // 0: the connection ended without an answer
    std::string header;  // everything before the blank line, as sent
    std::string body;
};

// A connection that sends exactly the bytes it is told.
class RawClient {
  public:
    explicit RawClient(const std::string& unix_path)
        : fd_(::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0)) {
        sockaddr_un address{};
        address.sun_family = AF_UNIX;
        unix_path.copy(address.sun_path, sizeof(address.sun_path) - 1);
        connected_ =
            ::connect(fd_.get(), reinterpret_cast<sockaddr*>(&address), sizeof(address)) == 0;
    }
    explicit RawClient(uint16_t port) : fd_(::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0)) {
        sockaddr_in address{};
        address.sin_family = AF_INET;
        address.sin_port = htons(port);
        address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
        connected_ =
            ::connect(fd_.get(), reinterpret_cast<sockaddr*>(&address), sizeof(address)) == 0;
    }
    bool connected() const { return connected_; }

    // False when the server closed the connection before it took everything.
    bool send(std::string_view bytes) {
        while (!bytes.empty()) {
            ssize_t sent = ::send(fd_.get(), bytes.data(), bytes.size(), MSG_NOSIGNAL);
            if (sent <= 0) return false;
            bytes.remove_prefix(static_cast<size_t>(sent));
        }
        return true;
    }
    void finish_sending() { ::shutdown(fd_.get(), SHUT_WR); }

    // Reads one answer; keeps what follows it.
    RawAnswer receive() {
        RawAnswer answer;
        size_t end = 0;
        while ((end = pending_.find("\r\n\r\n")) == std::string::npos) {
            if (!read_more()) return answer;
        }
        answer.header = pending_.substr(0, end);
        pending_.erase(0, end + 4);
        answer.status = std::atoi(answer.header.c_str() + sizeof("HTTP/1.1"));
        size_t at = answer.header.find("Content-Length: ");
        size_t length = at == std::string::npos
                            ? 0
                            : std::strtoul(answer.header.c_str() + at + 16, nullptr, 10);
        while (pending_.size() < length && read_more()) {
        }
        answer.body = pending_.substr(0, length);
        pending_.erase(0, length);
        return answer;
    }
    // True when the server has closed the connection (waits for it).
    bool at_end() { return pending_.empty() && !read_more(); }

    RawAnswer request(const std::string& bytes) {
        send(bytes);
        return receive();
    }

  private:
    bool read_more() {
        pollfd poll_fd{fd_.get(), POLLIN, 0};
        constexpr int kPatienceMs = 10'000;
        if (::poll(&poll_fd, 1, kPatienceMs) != 1) return false;
        char buffer[65536];
        ssize_t count = ::recv(fd_.get(), buffer, sizeof(buffer), 0);
        if (count <= 0) return false;
        pending_.append(buffer, static_cast<size_t>(count));
        return true;
    }
    Fd fd_;
    bool connected_ = false;
    std::string pending_;
};

}  // namespace peplos::http
