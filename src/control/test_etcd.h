#pragma once

#include <algorithm>
#include <array>
#include <chrono>
#include <csignal>
#include <cstdlib>
#include <filesystem>
#include <fmt/format.h>
#include <gtest/gtest.h>
#include <memory>
#include <netinet/in.h>
#include <string>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <thread>
#include <unistd.h>
#include <vector>

#include "base/check.h"
#include "control/etcd_store.h"

// Real etcds for tests: on loopback, in a folder of their own, ended by their pids.
namespace peplos::control {

inline uint16_t free_port() {
    int fd = ::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    CHECK(fd >= 0);
    sockaddr_in address{};
    address.sin_family = AF_INET;
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    socklen_t size = sizeof(address);
    CHECK(::bind(fd, reinterpret_cast<sockaddr*>(&address), size) == 0);
    CHECK(::getsockname(fd, reinterpret_cast<sockaddr*>(&address), &size) == 0);
    ::close(fd);
    return ntohs(address.sin_port);
}

// Ends with its parent.
inline pid_t start_process(std::vector<std::string> words, const std::string& log) {
    std::vector<char*> argv;
    for (std::string& word : words)
        argv.push_back(word.data());
    argv.push_back(nullptr);
    pid_t pid = ::fork();
    CHECK(pid >= 0);
    if (pid != 0) return pid;
    ::prctl(PR_SET_PDEATHSIG, SIGKILL);
    if (std::freopen(log.c_str(), "a", stdout) == nullptr) std::_Exit(126);
    ::dup2(1, 2);
    ::execvp(argv[0], argv.data());
    std::_Exit(127);
}

inline int run_process(std::vector<std::string> words, const std::string& log) {
    pid_t pid = start_process(std::move(words), log);
    int status = 0;
    CHECK(::waitpid(pid, &status, 0) == pid);
    return WIFEXITED(status) ? WEXITSTATUS(status) : 128;
}

inline bool has_etcd() {
    return std::system("command -v etcd etcdctl >/dev/null 2>&1") == 0;
}

// The members of one etcd cluster.
class TestEtcd {
  public:
    explicit TestEtcd(size_t member_count, std::vector<std::string> flags = {})
        : flags_(std::move(flags)) {
        std::string pattern = testing::TempDir() + "peplos-etcd-XXXXXX";
        CHECK(::mkdtemp(pattern.data()) != nullptr);
        folder_ = pattern;
        for (size_t i = 0; i < member_count; ++i)
            members_.push_back({fmt::format("m{}", i), free_port(), free_port(), 0});
        for (size_t i = 0; i < member_count; ++i)
            start(i);
    }
    TestEtcd(const TestEtcd&) = delete;
    TestEtcd& operator=(const TestEtcd&) = delete;
    ~TestEtcd() {
        for (size_t i = 0; i < members_.size(); ++i)
            kill(i);
        std::filesystem::remove_all(folder_);
    }

    std::string endpoint(size_t member) const {
        bool is_tls = std::find(flags_.begin(), flags_.end(), "--cert-file") != flags_.end();
        return fmt::format("{}://127.0.0.1:{}", is_tls ? "https" : "http",
                           members_[member].client_port);
    }
    std::vector<std::string> endpoints() const {
        std::vector<std::string> out;
        for (size_t i = 0; i < members_.size(); ++i)
            out.push_back(endpoint(i));
        return out;
    }
    const std::string& folder() const { return folder_; }
    std::string data(size_t member) const { return folder_ + "/" + members_[member].name; }

    void start(size_t member) {
        Member& one = members_[member];
        std::vector<std::string> words = {"etcd",
                                          "--name",
                                          one.name,
                                          "--data-dir",
                                          data(member),
                                          "--log-level",
                                          "error",
                                          "--logger",
                                          "zap",
                                          "--initial-cluster-token",
                                          token_,
                                          "--initial-cluster",
                                          peers(),
                                          "--listen-client-urls",
                                          endpoint(member),
                                          "--advertise-client-urls",
                                          endpoint(member),
                                          "--listen-peer-urls",
                                          peer(one),
                                          "--initial-advertise-peer-urls",
                                          peer(one)};
        words.insert(words.end(), flags_.begin(), flags_.end());
        one.pid = start_process(std::move(words), folder_ + "/" + one.name + ".log");
    }
    void signal(size_t member, int number) { ::kill(members_[member].pid, number); }
    void kill(size_t member) {
        Member& one = members_[member];
        if (one.pid == 0) return;
        ::kill(one.pid, SIGKILL);
        ::waitpid(one.pid, nullptr, 0);
        one.pid = 0;
    }
    // etcdctl with the first member's endpoint; whether it succeeded.
    bool control(std::vector<std::string> words) {
        words.insert(words.begin(), {"env", "ETCDCTL_API=3", "etcdctl", "--command-timeout=10s",
                                     "--endpoints", endpoint(0)});
        return run_process(std::move(words), folder_ + "/etcdctl.log") == 0;
    }
    // Replaces the data of the only member, which is down, by those of a snapshot.
    bool restore(const std::string& snapshot, const std::string& token) {
        std::filesystem::remove_all(data(0));
        token_ = token;
        const Member& one = members_[0];
        return control({"snapshot", "restore", snapshot, "--data-dir", data(0), "--name", one.name,
                        "--initial-cluster", peers(), "--initial-cluster-token", token,
                        "--initial-advertise-peer-urls", peer(one)});
    }

  private:
    struct Member {
        std::string name;
        uint16_t client_port = 0;
        uint16_t peer_port = 0;
        pid_t pid = 0;
    };
    static std::string peer(const Member& one) {
        return fmt::format("http://127.0.0.1:{}", one.peer_port);
    }
    std::string peers() const {
        std::string out;
        for (const Member& one : members_)
            out += fmt::format("{}{}={}", out.empty() ? "" : ",", one.name, peer(one));
        return out;
    }

    std::vector<std::string> flags_;
    std::string folder_;
    std::string token_ = "etcd-cluster";
    std::vector<Member> members_;
};

// A store on an etcd that may still be starting.
inline runtime::Task<std::unique_ptr<EtcdStore>> connect_when_up(EtcdOptions options) {
    auto deadline = std::chrono::steady_clock::now() + std::chrono::seconds(30);
    while (true) {
        Result<std::unique_ptr<EtcdStore>> store = co_await EtcdStore::connect(options);
        if (store) co_return std::move(*store);
        CHECK(store.error().code() == Code::unavailable, "{}", store.error().text());
        CHECK(std::chrono::steady_clock::now() < deadline, "{}", store.error().text());
    }
}

}  // namespace peplos::control
