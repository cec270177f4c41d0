#include "app/node_identity.h"

#include <array>
#include <cerrno>
#include <charconv>
#include <cstring>
#include <fcntl.h>
#include <sys/file.h>
#include <unistd.h>

#include "runtime/system.h"

namespace peplos::app {
namespace {

constexpr size_t kTextBytes = 17;  // 16 hexadecimal digits and the end of the line

std::unexpected<Error> failed(int error, const std::string& path, const char* doing) {
    Code code = Code::io_error;
    if (error == EACCES || error == EPERM || error == EROFS) code = Code::permission_denied;
    if (error == ENOSPC || error == EDQUOT) code = Code::no_space;
    if (error == EWOULDBLOCK) code = Code::busy;
    return fail(code, "cannot {} {}: {}", doing, path,
                error == EWOULDBLOCK ? "another peplosd runs with it" : std::strerror(error));
}

}  // namespace

std::string NodeIdentity::path_in(const std::string& state_dir) {
    return state_dir + "/node-id";
}

Result<std::unique_ptr<NodeIdentity>> NodeIdentity::open(const std::string& state_dir,
                                                         NodeId wanted) {
    std::string path = path_in(state_dir);
    int fd = ::open(path.c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0600);
    if (fd < 0) return failed(errno, path, "open");
    std::unique_ptr<NodeIdentity> identity(new NodeIdentity(fd));
    if (::flock(fd, LOCK_EX | LOCK_NB) != 0) return failed(errno, path, "lock");
    TRY(identity->read_or_make(path, wanted));
    int folder = ::open(state_dir.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (folder < 0) return failed(errno, path, "open the folder of");
    int error = ::fsync(folder) == 0 ? 0 : errno;
    ::close(folder);
    if (error != 0) return failed(error, path, "sync the folder of");
    return identity;
}

// A file that a crash left empty was never relied on: the id counts once the file is durable.
Result<void> NodeIdentity::read_or_make(const std::string& path, NodeId wanted) {
    std::array<char, kTextBytes + 1> text{};
    ssize_t size = ::pread(fd_, text.data(), text.size(), 0);
    if (size < 0) return failed(errno, path, "read");
    if (size == 0) {
        runtime::SystemRng rng;
        id_ = wanted ? wanted : NodeId(rng.next_id());
        std::string made = fmt::format("{:016x}\n", id_.value);
        ssize_t written = ::pwrite(fd_, made.data(), made.size(), 0);
        if (written != static_cast<ssize_t>(made.size())) return failed(errno, path, "write");
        if (::fsync(fd_) != 0) return failed(errno, path, "sync");
        return {};
    }
    const char* end = text.data() + kTextBytes - 1;
    auto [parsed, error] = std::from_chars(text.data(), end, id_.value, 16);
    bool sound = size == kTextBytes && text[kTextBytes - 1] == '\n' && error == std::errc{} &&
                 parsed == end && id_;
    if (sound) return {};
    return fail(
        Code::corrupt,
        "{} is damaged: write this node's id, 16 hexadecimal digits (the node record in the "
        "control store has it), and a line's end into it",
        path);
}

NodeIdentity::~NodeIdentity() {
    ::close(fd_);
}

}  // namespace peplos::app
