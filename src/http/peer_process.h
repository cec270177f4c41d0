#pragma once

#include <cstdint>
#include <optional>
#include <string>

namespace peplos::http {

// The process at the other end of a Unix socket. A pid alone is reused; with its start time (clock
// ticks after boot, /proc/PID/stat field 22) it names one life of one process.
struct PeerProcess {
    int pid = 0;
    uint32_t uid = 0;
    uint64_t started_ticks = 0;  // 0: it was gone before that could be read
    bool operator==(const PeerProcess&) const = default;
};

// nullopt: not a Unix socket.
std::optional<PeerProcess> peer_of(int fd);
// From a file such as /proc/PID/stat, which may vanish at any moment, also between its open and its
// read; 0: it did, or it says no such thing.
uint64_t read_started_ticks(const std::string& path);

}  // namespace peplos::http
