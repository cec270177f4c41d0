#include "attach/host_state.h"

#include <array>
#include <chrono>
#include <cstdlib>
#include <dirent.h>
#include <fcntl.h>
#include <fmt/format.h>
#include <memory>
#include <set>
#include <sys/stat.h>
#include <unistd.h>

namespace peplos::attach {

namespace {

constexpr size_t kSmallFileBytesMax = 8u << 20;
constexpr size_t kUsersMax = 8;

// mountinfo writes space, tab, newline and backslash as three octal digits.
std::string unescape(std::string_view field) {
    std::string out;
    for (size_t i = 0; i < field.size(); ++i) {
        auto digit = [&](size_t k) { return field[i + k] >= '0' && field[i + k] <= '7'; };
        if (field[i] == '\\' && i + 3 < field.size() && digit(1) && digit(2) && digit(3)) {
            out.push_back(static_cast<char>((field[i + 1] - '0') * 64 + (field[i + 2] - '0') * 8 +
                                            (field[i + 3] - '0')));
            i += 3;
        } else {
            out.push_back(field[i]);
        }
    }
    return out;
}

std::vector<std::string_view> split(std::string_view text, char separator) {
    std::vector<std::string_view> parts;
    while (!text.empty()) {
        size_t end = text.find(separator);
        parts.push_back(text.substr(0, end));
        if (end == std::string_view::npos) break;
        text.remove_prefix(end + 1);
    }
    return parts;
}

std::vector<std::string> names_in(const std::string& directory) {
    std::vector<std::string> names;
    std::unique_ptr<DIR, int (*)(DIR*)> dir(::opendir(directory.c_str()), &::closedir);
    if (!dir) return names;
    while (dirent* entry = ::readdir(dir.get()))
        names.emplace_back(entry->d_name);
    return names;
}

std::string link_of(const std::string& path) {
    std::array<char, 4096> target{};
    ssize_t count = ::readlink(path.c_str(), target.data(), target.size());
    return count < 0 ? std::string() : std::string(target.data(), static_cast<size_t>(count));
}

std::string without_newline(std::string text) {
    while (!text.empty() && text.back() == '\n')
        text.pop_back();
    return text;
}

bool is_below(std::string_view path, std::string_view directory) {
    return path.starts_with(directory) &&
           (path.size() == directory.size() || path[directory.size()] == '/');
}

bool has_files_below(const std::string& process, const std::string& directory) {
    if (is_below(link_of(process + "/cwd"), directory)) return true;
    std::string descriptors = process + "/fd";
    for (const std::string& name : names_in(descriptors)) {
        if (is_below(link_of(fmt::format("{}/{}", descriptors, name)), directory)) return true;
    }
    return false;
}

}  // namespace

std::string read_small_file(const std::string& path) {
    Fd fd(::open(path.c_str(), O_RDONLY | O_CLOEXEC));
    std::string out;
    if (!fd.valid()) return out;
    std::array<char, 16384> chunk{};
    while (out.size() < kSmallFileBytesMax) {
        ssize_t count = ::read(fd.get(), chunk.data(), chunk.size());
        if (count <= 0) break;
        out.append(chunk.data(), static_cast<size_t>(count));
    }
    return out;
}

std::vector<MountEntry> parse_mountinfo(std::string_view text) {
    std::vector<MountEntry> mounts;
    for (std::string_view line : split(text, '\n')) {
        std::vector<std::string_view> fields = split(line, ' ');
        size_t dash = 6;
        while (dash < fields.size() && fields[dash] != "-")
            ++dash;
        if (dash + 2 >= fields.size()) continue;
        MountEntry entry;
        entry.device_number = fields[2];
        entry.directory = unescape(fields[4]);
        entry.type = fields[dash + 1];
        entry.source = unescape(fields[dash + 2]);
        for (size_t i = 6; i < dash; ++i) {
            if (fields[i].starts_with("shared:")) entry.shared = true;
        }
        mounts.push_back(std::move(entry));
    }
    return mounts;
}

std::vector<MountEntry> current_mounts() {
    return parse_mountinfo(read_small_file("/proc/self/mountinfo"));
}

std::string backing_file_of(const std::string& device) {
    std::string name = device.substr(device.rfind('/') + 1);
    return without_newline(read_small_file("/sys/block/" + name + "/loop/backing_file"));
}

std::vector<LoopEntry> current_loops() {
    std::vector<LoopEntry> loops;
    for (const std::string& name : names_in("/sys/block")) {
        if (!name.starts_with("loop")) continue;
        std::string device = "/dev/" + name;
        std::string file = backing_file_of(device);
        if (!file.empty()) loops.push_back({device, file});
    }
    return loops;
}

std::optional<std::string> loop_device_on(const std::string& file) {
    for (const LoopEntry& loop : current_loops()) {
        if (loop.file == file) return loop.device;
    }
    return std::nullopt;
}

std::vector<std::string> users_of(const std::string& device, const std::string& directory) {
    auto deadline = std::chrono::steady_clock::now() + std::chrono::milliseconds(500);
    std::string number = without_newline(
        read_small_file("/sys/block/" + device.substr(device.rfind('/') + 1) + "/dev"));
    std::string own_namespace = link_of("/proc/self/ns/mnt");
    std::set<std::string> namespaces_seen;
    std::vector<std::string> users;
    for (const std::string& pid : names_in("/proc")) {
        if (pid.find_first_not_of("0123456789") != std::string::npos) continue;
        if (users.size() >= kUsersMax || std::chrono::steady_clock::now() > deadline) break;
        std::string process = "/proc/" + pid;
        std::string name = without_newline(read_small_file(process + "/comm"));
        if (has_files_below(process, directory)) {
            users.push_back(fmt::format("process {} ({})", pid, name));
            continue;
        }
        std::string space = link_of(process + "/ns/mnt");
        if (space.empty() || space == own_namespace || !namespaces_seen.insert(space).second) {
            continue;
        }
        for (const MountEntry& mount : parse_mountinfo(read_small_file(process + "/mountinfo"))) {
            if (mount.device_number != number) continue;
            users.push_back(fmt::format("the mount namespace of process {} ({})", pid, name));
            break;
        }
    }
    return users;
}

}  // namespace peplos::attach
