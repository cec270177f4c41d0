#pragma once

#include <cstdint>
#include <string>
#include <sys/types.h>
#include <utility>
#include <vector>

#include "base/result.h"

// Listening sockets that nobody but their owner can use by accident.
namespace peplos::http {

// Owns a file descriptor; -1 means none.
class Fd {
  public:
    Fd() = default;
    explicit Fd(int fd) : fd_(fd) {}
    Fd(Fd&& other) noexcept : fd_(std::exchange(other.fd_, -1)) {}
    Fd& operator=(Fd&& other) noexcept {
        std::swap(fd_, other.fd_);
        return *this;
    }
    ~Fd();
    int get() const { return fd_; }
    int release() { return std::exchange(fd_, -1); }

  private:
    int fd_ = -1;
};

// Listens on the Unix socket `path`, mode 0600. A missing directory is created with mode 0700; one
// that others may write to is refused, because they could put their own socket in our place.
// A socket file that nobody serves any more is replaced atomically (clients never see a gap).
// Errors: busy (another process serves it), invalid_argument (too long, or not a socket),
// permission_denied, io_error.
Result<Fd> listen_on_unix(const std::string& path);

// Listens on 127.0.0.1 only; port 0 lets the kernel choose. Errors: busy, permission_denied.
Result<Fd> listen_on_loopback(uint16_t port);
// The port of a TCP listener; 0 for other sockets.
uint16_t port_of(const Fd& fd);

// The path that a Unix listener is bound to; empty for other sockets.
std::string path_of(const Fd& fd);

// Removes the socket file `path` if this process is the one that listens on it: another may have
// taken the name over. Call it before the listener is closed.
void remove_socket_file(const std::string& path);

// What systemd handed over (sd_listen_fds(3)): call once, before threads start; it clears the
// environment. Empty when the process was not started by a socket unit.
// Errors: invalid_argument (LISTEN_FDS is not a sensible number).
struct ActivatedSocket {
    std::string name;  // FileDescriptorName= of the unit, "unknown" when it has none
    Fd fd;
};
Result<std::vector<ActivatedSocket>> take_activated_sockets();

}  // namespace peplos::http
