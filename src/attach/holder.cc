#include "attach/holder.h"

#include <array>
#include <cerrno>
#include <cstring>
#include <fcntl.h>
#include <map>
#include <optional>
#include <poll.h>
#include <sys/file.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <sys/un.h>
#include <unistd.h>

#include "base/bytes.h"
#include "base/limits.h"

namespace peplos::attach {

namespace {

constexpr uint32_t kMagic = 0x484c5045;  // "EPLH"
constexpr size_t kIdsPerAnswer = 512;
constexpr size_t kClientsMax = 64;

enum class Op : uint32_t { put = 1, get = 2, drop = 3, list = 4 };

// Both ends are built together and run on one host; the magic refuses anything else.
struct Ask {
    uint32_t magic = kMagic;
    Op op = Op::list;
    uint64_t id = 0;  // list: only ids greater than this
};
static_assert(sizeof(Ask) == 16);

struct Answer {
    uint32_t magic = kMagic;
    int32_t error = 0;  // errno
    uint64_t id_count = 0;
    std::array<uint64_t, kIdsPerAnswer> ids{};
};
static_assert(sizeof(Answer) == 16 + 8 * kIdsPerAnswer);

Result<sockaddr_un> address_of(const std::string& path) {
    sockaddr_un address{};
    address.sun_family = AF_UNIX;
    if (path.empty() || path.size() >= sizeof(address.sun_path)) {
        return fail(Code::invalid_argument,
                    "the holder's socket path '{}' is longer than the {} bytes a socket address "
                    "allows: choose a shorter state directory",
                    path, sizeof(address.sun_path) - 1);
    }
    std::memcpy(address.sun_path, path.data(), path.size());
    return address;
}

bool send_message(int socket, Bytes body, int passed_fd) {
    iovec part{const_cast<std::byte*>(body.data()), body.size()};
    alignas(cmsghdr) std::array<char, CMSG_SPACE(sizeof(int))> control{};
    msghdr message{};
    message.msg_iov = &part;
    message.msg_iovlen = 1;
    if (passed_fd >= 0) {
        message.msg_control = control.data();
        message.msg_controllen = control.size();
        cmsghdr* header = CMSG_FIRSTHDR(&message);
        header->cmsg_level = SOL_SOCKET;
        header->cmsg_type = SCM_RIGHTS;
        header->cmsg_len = CMSG_LEN(sizeof(int));
        std::memcpy(CMSG_DATA(header), &passed_fd, sizeof(int));
    }
    return ::sendmsg(socket, &message, MSG_NOSIGNAL) == static_cast<ssize_t>(body.size());
}

// Returns the bytes received, 0 at the end, -1 on error; a descriptor that came along is owned.
ssize_t receive_message(int socket, MutableBytes body, Fd& passed) {
    iovec part{body.data(), body.size()};
    alignas(cmsghdr) std::array<char, CMSG_SPACE(sizeof(int))> control{};
    msghdr message{};
    message.msg_iov = &part;
    message.msg_iovlen = 1;
    message.msg_control = control.data();
    message.msg_controllen = control.size();
    ssize_t count = ::recvmsg(socket, &message, MSG_CMSG_CLOEXEC);
    if (count < 0) return count;
    for (cmsghdr* h = CMSG_FIRSTHDR(&message); h != nullptr; h = CMSG_NXTHDR(&message, h)) {
        if (h->cmsg_level != SOL_SOCKET || h->cmsg_type != SCM_RIGHTS) continue;
        int fd = -1;
        std::memcpy(&fd, CMSG_DATA(h), sizeof(int));
        passed.reset(fd);
    }
    return count;
}

bool is_fuse_device(int fd) {
    struct stat info{};
    return ::fstat(fd, &info) == 0 && S_ISCHR(info.st_mode) && major(info.st_rdev) == 10 &&
           minor(info.st_rdev) == 229;
}

// The holder's whole state.
class Holder {
  public:
    // Answers one message of `client`; false when the client is to be dropped.
    bool answer_one(int client) {
        Ask ask;
        Fd passed;
        ssize_t count = receive_message(client, std::as_writable_bytes(std::span(&ask, 1)), passed);
        if (count != static_cast<ssize_t>(sizeof(ask)) || ask.magic != kMagic) return false;
        Answer answer;
        int passed_back = -1;
        switch (ask.op) {
            case Op::put:
                if (!passed.valid() || !is_fuse_device(passed.get()) || ask.id == 0) {
                    answer.error = EINVAL;
                } else if (kept_.size() >= limits::kVolumeCountMax && !kept_.contains(ask.id)) {
                    answer.error = EMFILE;
                } else {
                    kept_[ask.id] = std::move(passed);
                }
                break;
            case Op::get:
                if (auto at = kept_.find(ask.id); at != kept_.end()) {
                    passed_back = at->second.get();
                } else {
                    answer.error = ENOENT;
                }
                break;
            case Op::drop:
                kept_.erase(ask.id);
                break;
            case Op::list:
                for (auto at = kept_.upper_bound(ask.id);
                     at != kept_.end() && answer.id_count < kIdsPerAnswer; ++at) {
                    answer.ids[answer.id_count++] = at->first;
                }
                break;
            default:
                return false;
        }
        return send_message(client, bytes_of(answer), passed_back);
    }

  private:
    std::map<uint64_t, Fd> kept_;
};

bool is_root(int client) {
    ucred peer{};
    socklen_t size = sizeof(peer);
    return ::getsockopt(client, SOL_SOCKET, SO_PEERCRED, &peer, &size) == 0 && peer.uid == 0;
}

Result<Fd> listen_on(const std::string& path) {
    TRY_ASSIGN(sockaddr_un address, address_of(path));
    Fd socket(::socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0));
    // The caller holds the lock file: nobody serves this path, so a file there is a leftover.
    ::unlink(path.c_str());
    mode_t before = ::umask(0177);
    int bound = ::bind(socket.get(), reinterpret_cast<sockaddr*>(&address), sizeof(address));
    int error = errno;
    ::umask(before);
    if (bound != 0 || ::listen(socket.get(), 16) != 0) {
        return fail(Code::unavailable, "the holder cannot listen on {}: {}", path,
                    std::strerror(bound != 0 ? error : errno));
    }
    return socket;
}

}  // namespace

void Fd::reset(int fd) {
    if (fd_ >= 0) ::close(fd_);
    fd_ = fd;
}

Result<HolderClient> HolderClient::connect(const std::string& socket_path) {
    TRY_ASSIGN(sockaddr_un address, address_of(socket_path));
    Fd socket(::socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0));
    timeval limit{2, 0};
    ::setsockopt(socket.get(), SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof(limit));
    ::setsockopt(socket.get(), SOL_SOCKET, SO_SNDTIMEO, &limit, sizeof(limit));
    if (::connect(socket.get(), reinterpret_cast<sockaddr*>(&address), sizeof(address)) != 0) {
        return fail(Code::unavailable, "no holder answers on {}: {}", socket_path,
                    std::strerror(errno));
    }
    return HolderClient(std::move(socket));
}

namespace {

Result<Answer> exchange(int socket, Op op, VolumeId id, int passed_fd, Fd& passed_back) {
    Ask ask;
    ask.op = op;
    ask.id = id.value;
    Answer answer;
    if (!send_message(socket, bytes_of(ask), passed_fd) ||
        receive_message(socket, std::as_writable_bytes(std::span(&answer, 1)), passed_back) !=
            static_cast<ssize_t>(sizeof(answer)) ||
        answer.magic != kMagic || answer.id_count > kIdsPerAnswer) {
        return fail(Code::unavailable, "the holder of FUSE descriptors does not answer");
    }
    return answer;
}

}  // namespace

Result<void> HolderClient::put(VolumeId id, int fd) {
    Fd none;
    TRY_ASSIGN(Answer answer, exchange(socket_.get(), Op::put, id, fd, none));
    if (answer.error != 0) {
        return fail(Code::unavailable, "the holder refuses volume {}: {}", id,
                    std::strerror(answer.error));
    }
    return {};
}

Result<Fd> HolderClient::get(VolumeId id) {
    Fd fd;
    TRY_ASSIGN(Answer answer, exchange(socket_.get(), Op::get, id, -1, fd));
    if (answer.error == ENOENT)
        return fail(Code::not_found, "the holder keeps nothing of volume {}", id);
    // It keeps it, and this process has no descriptor left for it, say.
    if (answer.error != 0 || !fd.valid())
        return fail(Code::unavailable, "the holder's descriptor of volume {} did not arrive", id);
    return fd;
}

Result<void> HolderClient::drop(VolumeId id) {
    Fd none;
    TRY(exchange(socket_.get(), Op::drop, id, -1, none));
    return {};
}

Result<std::vector<VolumeId>> HolderClient::list() {
    std::vector<VolumeId> ids;
    VolumeId last;
    while (true) {
        Fd none;
        TRY_ASSIGN(Answer answer, exchange(socket_.get(), Op::list, last, -1, none));
        for (uint64_t i = 0; i < answer.id_count; ++i)
            ids.emplace_back(answer.ids[i]);
        if (answer.id_count < kIdsPerAnswer) return ids;
        last = ids.back();
    }
}

Result<void> run_holder(const std::string& socket_path, void (*ready)()) {
    rlimit files{};
    if (::getrlimit(RLIMIT_NOFILE, &files) == 0) {
        files.rlim_cur = files.rlim_max;
        ::setrlimit(RLIMIT_NOFILE, &files);
    }
    std::string lock_path = socket_path + ".lock";
    Fd lock(::open(lock_path.c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0600));
    if (!lock.valid()) {
        return fail(Code::unavailable, "the holder cannot open {}: {}", lock_path,
                    std::strerror(errno));
    }
    if (::flock(lock.get(), LOCK_EX | LOCK_NB) != 0) {
        return fail(Code::already_exists, "another holder serves {}", socket_path);
    }
    TRY_ASSIGN(Fd listener, listen_on(socket_path));
    ready();

    Holder holder;
    std::vector<Fd> clients;
    while (true) {
        std::vector<pollfd> polls;
        polls.push_back({listener.get(), POLLIN, 0});
        for (const Fd& client : clients)
            polls.push_back({client.get(), POLLIN, 0});
        if (::poll(polls.data(), polls.size(), -1) < 0) continue;
        for (size_t i = polls.size() - 1; i > 0; --i) {
            if (polls[i].revents == 0) continue;
            if (!holder.answer_one(clients[i - 1].get())) {
                clients.erase(clients.begin() + static_cast<ptrdiff_t>(i - 1));
            }
        }
        if (polls[0].revents != 0) {
            Fd client(::accept4(listener.get(), nullptr, nullptr, SOCK_CLOEXEC));
            if (client.valid() && is_root(client.get()) && clients.size() < kClientsMax) {
                timeval limit{2, 0};
                ::setsockopt(client.get(), SOL_SOCKET, SO_SNDTIMEO, &limit, sizeof(limit));
                clients.push_back(std::move(client));
            }
        }
    }
}

}  // namespace peplos::attach
