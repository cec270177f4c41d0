#pragma once

#include <string>

#include "base/result.h"

namespace peplos::app {

struct InitOptions {
    std::string config_path = "/etc/peplos/peplosd.toml";
    std::string state_dir = "/var/lib/peplos";
    uint64_t device_bytes = 0;  // 0: half of what is free where state_dir lies
    bool start = true;          // enable and start the units where systemd runs
};

// Makes this machine the first node: writes the configuration, makes the directories, names the
// first device (a file that peplosd preallocates) and starts the units. Asks nothing.
// Returns what was done and the next commands, for a person.
// Errors: already_exists (the configuration is there: says what to do), no_space,
// permission_denied, io_error, unavailable (the units did not come up: says where to look).
Result<std::string> init_node(const InitOptions& options);

// The size of the first device: half of what is free, whole GiB, at most 4 TiB.
// Errors: no_space (less than 4 GiB would be left for it).
Result<uint64_t> sensible_device_bytes(uint64_t free_bytes);

}  // namespace peplos::app
