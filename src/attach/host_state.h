#pragma once

#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "attach/holder.h"
#include "base/result.h"

// What the kernel says about mounts and loop devices, read from /proc and /sys. Nothing here
// touches a mounted file system, so nothing here waits for I/O.
namespace peplos::attach {

struct MountEntry {
    std::string device_number;  // "7:3"
    std::string directory;
    std::string type;    // "fuse", "ext4", ...
    std::string source;  // "/dev/loop3"
    bool shared = false;
};

// Parses /proc/PID/mountinfo (proc(5)); lines that are not understood are left out.
std::vector<MountEntry> parse_mountinfo(std::string_view text);
// Of this process's mount namespace, in mount order.
std::vector<MountEntry> current_mounts();

// The file behind a loop device, empty when it has none. `device` is "/dev/loopN".
std::string backing_file_of(const std::string& device);
// Every bound loop device with its file.
struct LoopEntry {
    std::string device;
    std::string file;
};
std::vector<LoopEntry> current_loops();
std::optional<std::string> loop_device_on(const std::string& file);

// Who keeps the file system on loop device `device` busy: processes with it mounted in another
// mount namespace, or with open files or a working directory below `directory`. Best effort within
// half a second. Each entry is a phrase: "process 4711 (postgres)".
std::vector<std::string> users_of(const std::string& device, const std::string& directory);

// A small file of /proc or /sys; empty when it cannot be read.
std::string read_small_file(const std::string& path);

}  // namespace peplos::attach
