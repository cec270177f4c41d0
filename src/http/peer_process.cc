#include "http/peer_process.h"

#include <array>
#include <charconv>
#include <fcntl.h>
#include <fmt/format.h>
#include <sstream>
#include <sys/socket.h>
#include <unistd.h>

#include "http/listen.h"

namespace peplos::http {

// By system calls: a stream throws where a read fails, and the process may end before that.
uint64_t read_started_ticks(const std::string& path) {
    Fd file(::open(path.c_str(), O_RDONLY | O_CLOEXEC));
    std::array<char, 4096> text;  // a line of some 300 bytes
    ssize_t size = file.get() < 0 ? -1 : ::read(file.get(), text.data(), text.size());
    if (size <= 0) return 0;
    std::string_view line(text.data(), static_cast<size_t>(size));
    // Field 2 is the command in parentheses and may hold anything; field 3 follows the last ')'.
    size_t end = line.rfind(')');
    if (end == std::string_view::npos) return 0;
    std::istringstream rest{std::string(line.substr(end + 1))};
    std::string field;
    for (int number = 3; number <= 22; ++number)
        rest >> field;
    uint64_t ticks = 0;
    std::from_chars(field.data(), field.data() + field.size(), ticks);
    return ticks;
}

std::optional<PeerProcess> peer_of(int fd) {
    ucred peer{};
    socklen_t size = sizeof(peer);
    if (::getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &peer, &size) != 0) return std::nullopt;
    return PeerProcess{peer.pid, peer.uid,
                       read_started_ticks(fmt::format("/proc/{}/stat", peer.pid))};
}

}  // namespace peplos::http
