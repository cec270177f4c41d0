#include "http/listen.h"

#include <arpa/inet.h>
#include <cerrno>
#include <charconv>
#include <chrono>
#include <cstdlib>
#include <cstring>
#include <fcntl.h>
#include <filesystem>
#include <netinet/in.h>
#include <sys/file.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <system_error>
#include <thread>
#include <unistd.h>

namespace peplos::http {
namespace {

constexpr int kBacklog = 128;
constexpr int kLockTries = 200;
constexpr std::chrono::milliseconds kLockPause{10};
constexpr int kActivatedFirst = 3;  // SD_LISTEN_FDS_START
constexpr int kActivatedCountMax = 64;

std::string error_text(int number) {
    return std::generic_category().message(number);
}

Code code_of(int number) {
    if (number == EACCES || number == EPERM || number == EROFS) return Code::permission_denied;
    if (number == EADDRINUSE) return Code::busy;
    return Code::io_error;
}

Result<sockaddr_un> address_of(const std::string& path) {
    sockaddr_un address{};
    address.sun_family = AF_UNIX;
    if (path.empty() || path.size() >= sizeof(address.sun_path)) {
        return fail(Code::invalid_argument,
                    "socket path \"{}\" has {} bytes, 1 to {} are allowed: choose a shorter path",
                    path, path.size(), sizeof(address.sun_path) - 1);
    }
    std::memcpy(address.sun_path, path.data(), path.size());
    return address;
}

// Opens the directory of a socket, made when missing, and makes sure that it is safe.
Result<Fd> open_directory(const std::string& directory) {
    std::error_code error;
    std::filesystem::path above = std::filesystem::path(directory).parent_path();
    if (!above.empty()) std::filesystem::create_directories(above, error);
    if (::mkdir(directory.c_str(), 0700) != 0 && errno != EEXIST) {
        int number = errno;
        return fail(code_of(number), "cannot create the directory {} for a socket: {}", directory,
                    error_text(number));
    }
    Fd fd(::open(directory.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC));
    struct stat state{};
    if (fd.get() < 0 || ::fstat(fd.get(), &state) != 0) {
        int number = errno;
        return fail(code_of(number), "cannot open the directory {}: {}", directory,
                    error_text(number));
    }
    bool foreign = state.st_uid != 0 && state.st_uid != ::geteuid();
    if (foreign || (state.st_mode & (S_IWGRP | S_IWOTH)) != 0) {
        return fail(Code::permission_denied,
                    "the directory {} can be changed by other users (mode {:o}, owner {}), who "
                    "could replace our socket: chown it to root and chmod it to 0700",
                    directory, state.st_mode & 07777, state.st_uid);
    }
    return fd;
}

// Decides whether the name `path` may be taken over.
Result<void> check_free(const std::string& path, const sockaddr_un& address) {
    struct stat state{};
    if (::lstat(path.c_str(), &state) != 0) return {};
    if (!S_ISSOCK(state.st_mode)) {
        return fail(Code::invalid_argument,
                    "{} exists and is not a socket: move it away or choose another path", path);
    }
    Fd probe(::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0));
    if (probe.get() < 0) return fail(Code::io_error, "no socket: {}", error_text(errno));
    int answer =
        ::connect(probe.get(), reinterpret_cast<const sockaddr*>(&address), sizeof(address));
    // EAGAIN: somebody listens, with a full backlog.
    if (answer == 0 || errno == EAGAIN) {
        return fail(Code::busy, "another process serves {}: stop it first (see `fuser {}`)", path,
                    path);
    }
    return {};
}

}  // namespace

Fd::~Fd() {
    if (fd_ >= 0) ::close(fd_);
}

Result<Fd> listen_on_unix(const std::string& path) {
    TRY(address_of(path));
    // Bound under a private name, then renamed: the final name always is a socket that listens.
    std::string fresh = fmt::format("{}.{}", path, ::getpid());
    TRY_ASSIGN(sockaddr_un address, address_of(fresh));
    TRY_ASSIGN(sockaddr_un final_address, address_of(path));
    std::string directory = std::filesystem::path(path).parent_path().string();
    TRY_ASSIGN(Fd directory_fd, open_directory(directory.empty() ? "." : directory));
    // One starter at a time decides about the name; the lock goes with the descriptor, of which a
    // child that is just being started has a copy until its exec.
    for (int i = 0; ::flock(directory_fd.get(), LOCK_EX | LOCK_NB) != 0; ++i) {
        if (i == kLockTries) {
            return fail(Code::busy, "another process is just opening a socket in {}: try again",
                        directory);
        }
        std::this_thread::sleep_for(kLockPause);
    }
    TRY(check_free(path, final_address));

    Fd fd(::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0));
    if (fd.get() < 0) return fail(Code::io_error, "no socket: {}", error_text(errno));
    // On Linux the mode of an unbound socket is the mode of the file that bind() makes, so the
    // file is never open to others, not even between bind() and a chmod().
    ::unlink(fresh.c_str());
    if (::fchmod(fd.get(), 0600) != 0 ||
        ::bind(fd.get(), reinterpret_cast<const sockaddr*>(&address), sizeof(address)) != 0 ||
        ::chmod(fresh.c_str(), 0600) != 0 || ::listen(fd.get(), kBacklog) != 0 ||
        ::rename(fresh.c_str(), path.c_str()) != 0) {
        int number = errno;
        ::unlink(fresh.c_str());
        return fail(code_of(number), "cannot listen on {}: {}", path, error_text(number));
    }
    return fd;
}

Result<Fd> listen_on_loopback(uint16_t port) {
    Fd fd(::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0));
    if (fd.get() < 0) return fail(Code::io_error, "no TCP socket: {}", error_text(errno));
    int on = 1;
    ::setsockopt(fd.get(), SOL_SOCKET, SO_REUSEADDR, &on, sizeof(on));
    sockaddr_in address{};
    address.sin_family = AF_INET;
    address.sin_port = htons(port);
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    if (::bind(fd.get(), reinterpret_cast<const sockaddr*>(&address), sizeof(address)) != 0 ||
        ::listen(fd.get(), kBacklog) != 0) {
        int number = errno;
        return fail(code_of(number),
                    "cannot listen on 127.0.0.1:{}: {}; free the port or configure another one",
                    port, error_text(number));
    }
    return fd;
}

uint16_t port_of(const Fd& fd) {
    sockaddr_in address{};
    socklen_t size = sizeof(address);
    if (::getsockname(fd.get(), reinterpret_cast<sockaddr*>(&address), &size) != 0) return 0;
    return address.sin_family == AF_INET ? ntohs(address.sin_port) : 0;
}

std::string path_of(const Fd& fd) {
    sockaddr_un address{};
    socklen_t size = sizeof(address);
    if (::getsockname(fd.get(), reinterpret_cast<sockaddr*>(&address), &size) != 0) return {};
    if (address.sun_family != AF_UNIX || size <= offsetof(sockaddr_un, sun_path)) return {};
    return std::string(address.sun_path,
                       ::strnlen(address.sun_path, size - offsetof(sockaddr_un, sun_path)));
}

void remove_socket_file(const std::string& path) {
    auto address = address_of(path);
    if (!address) return;
    Fd probe(::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0));
    if (probe.get() < 0) return;
    if (::connect(probe.get(), reinterpret_cast<const sockaddr*>(&*address), sizeof(*address)) !=
        0) {
        return;
    }
    ucred peer{};
    socklen_t size = sizeof(peer);
    if (::getsockopt(probe.get(), SOL_SOCKET, SO_PEERCRED, &peer, &size) != 0) return;
    if (peer.pid == ::getpid()) ::unlink(path.c_str());
}

Result<std::vector<ActivatedSocket>> take_activated_sockets() {
    const char* pid_text = ::getenv("LISTEN_PID");
    const char* count_text = ::getenv("LISTEN_FDS");
    const char* names_text = ::getenv("LISTEN_FDNAMES");
    std::string pid = pid_text == nullptr ? "" : pid_text;
    std::string count_string = count_text == nullptr ? "" : count_text;
    std::string names = names_text == nullptr ? "" : names_text;
    for (const char* name : {"LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES"})
        ::unsetenv(name);

    std::vector<ActivatedSocket> out;
    if (pid != fmt::format("{}", ::getpid())) return out;
    int count = 0;
    auto [end, error] =
        std::from_chars(count_string.data(), count_string.data() + count_string.size(), count);
    if (error != std::errc() || *end != '\0' || count < 0 || count > kActivatedCountMax) {
        return fail(Code::invalid_argument,
                    "LISTEN_FDS=\"{}\" is not a number of sockets: start peplosd through its "
                    "systemd units",
                    count_string);
    }
    for (int index = 0; index < count; ++index) {
        int fd = kActivatedFirst + index;
        size_t colon = names.find(':');
        std::string name = names.substr(0, colon);
        names = colon == std::string::npos ? "" : names.substr(colon + 1);
        ::fcntl(fd, F_SETFD, FD_CLOEXEC);
        ::fcntl(fd, F_SETFL, ::fcntl(fd, F_GETFL) | O_NONBLOCK);
        out.push_back({name.empty() ? "unknown" : name, Fd(fd)});
    }
    return out;
}

}  // namespace peplos::http
