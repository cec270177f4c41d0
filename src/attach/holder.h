#pragma once

#include <string>
#include <vector>

#include "base/ids.h"
#include "base/result.h"

// The holder keeps a duplicate of every FUSE session descriptor, so that the kernel does not end
// the connections when the daemon dies: I/O waits instead of failing. It does nothing else.
//
// One SEQPACKET message asks, one answers; descriptors travel by SCM_RIGHTS. Only root is served
// (SO_PEERCRED), and only /dev/fuse descriptors are kept. It outlives any number of daemons.
namespace peplos::attach {

// A file descriptor that closes itself.
class Fd {
  public:
    Fd() = default;
    explicit Fd(int fd) : fd_(fd) {}
    Fd(Fd&& other) noexcept : fd_(other.release()) {}
    Fd& operator=(Fd&& other) noexcept {
        if (this != &other) reset(other.release());
        return *this;
    }
    ~Fd() { reset(); }
    int get() const { return fd_; }
    bool valid() const { return fd_ >= 0; }
    int release() {
        int fd = fd_;
        fd_ = -1;
        return fd;
    }
    void reset(int fd = -1);

  private:
    int fd_ = -1;
};

// The client's side. Every call is one exchange and blocks for at most two seconds, so calls are
// made on a worker thread. Errors: unavailable (no holder answers).
class HolderClient {
  public:
    // Errors: unavailable, invalid_argument (the path does not fit a socket address).
    static Result<HolderClient> connect(const std::string& socket_path);

    // Keeps a duplicate of `fd` for the volume, in place of an earlier one.
    Result<void> put(VolumeId id, int fd);
    // Errors: not_found.
    Result<Fd> get(VolumeId id);
    // Closes the holder's duplicate; unknown volumes are fine.
    Result<void> drop(VolumeId id);
    // Sorted.
    Result<std::vector<VolumeId>> list();

    // Readable once the holder has gone; for watching.
    int fd() const { return socket_.get(); }

  private:
    explicit HolderClient(Fd socket) : socket_(std::move(socket)) {}
    Fd socket_;
};

// Serves `socket_path` until a signal ends the process. Returns at once with already_exists when
// another holder serves it. `ready` is called when clients can connect.
Result<void> run_holder(const std::string& socket_path, void (*ready)());

}  // namespace peplos::attach
