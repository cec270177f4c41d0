#include "app/init.h"

#include <cerrno>
#include <cstring>
#include <fcntl.h>
#include <filesystem>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <unistd.h>

#include "app/command.h"
#include "app/config.h"
#include "fabric/node.h"

namespace peplos::app {
namespace {

constexpr uint64_t kDeviceBytesMin = 4 * kGiB;
constexpr uint64_t kDeviceBytesMax = 4 * kTiB;

Result<void> make_directory(const std::string& path, mode_t mode) {
    std::error_code error;
    std::filesystem::create_directories(path, error);
    if (error) {
        Code code =
            error == std::errc::permission_denied ? Code::permission_denied : Code::io_error;
        return fail(code, "cannot make the directory {}: {}", path, error.message());
    }
    if (::chmod(path.c_str(), mode) != 0) {
        return fail(Code::permission_denied, "cannot set the mode of {}: {}", path,
                    std::strerror(errno));
    }
    return {};
}

// Never replaces a file: two inits at once must not both win.
Result<void> write_new_file(const std::string& path, const std::string& text) {
    int fd = ::open(path.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
    if (fd < 0) {
        if (errno == EEXIST) {
            return fail(Code::already_exists,
                        "this machine is a node already: {} exists. See: peplos status", path);
        }
        Code code = errno == EACCES ? Code::permission_denied : Code::io_error;
        return fail(code, "cannot write {}: {}", path, std::strerror(errno));
    }
    ssize_t written = ::write(fd, text.data(), text.size());
    bool ok = written == static_cast<ssize_t>(text.size()) && ::fsync(fd) == 0;
    ok = ::close(fd) == 0 && ok;
    if (ok) return {};
    ::unlink(path.c_str());
    return fail(Code::io_error, "cannot write {}", path);
}

bool systemd_runs() {
    std::error_code ignored;
    return std::filesystem::exists("/run/systemd/system", ignored);
}

Result<void> start_units() {
    auto started = run_command({"systemctl", "enable", "--now", "peplos-holder.service",
                                "peplos-docker.socket", "peplosd.service"},
                               90);
    if (started && started->exit_code == 0) return {};
    std::string why = started ? started->output : started.error().message();
    while (why.ends_with('\n'))
        why.pop_back();
    return fail(Code::unavailable,
                "the node is configured, but its units did not start: {}. Look at: journalctl -u "
                "peplosd; then: systemctl start peplosd",
                why);
}

std::string config_text(const InitOptions& options, uint64_t device_bytes) {
    return fmt::format(
        "# Made by `peplos init`. All keys: man peplosd.toml\n"
        "state_dir = \"{0}\"\n\n"
        "[[device]]\n"
        "path = \"{0}/device0\"\n"
        "size = \"{1}GiB\"\n",
        options.state_dir, device_bytes / kGiB);
}

}  // namespace

Result<uint64_t> sensible_device_bytes(uint64_t free_bytes) {
    uint64_t bytes = std::min(round_down(free_bytes / 2, kGiB), kDeviceBytesMax);
    if (bytes < kDeviceBytesMin) {
        return fail(Code::no_space,
                    "{} free is too little for a first device of {} with as much left for the "
                    "host; free some space, or choose: peplos init --size 2GiB, or --state-dir",
                    fabric::print_size(free_bytes), fabric::print_size(kDeviceBytesMin));
    }
    return bytes;
}

Result<std::string> init_node(const InitOptions& options) {
    std::error_code ignored;
    if (std::filesystem::exists(options.config_path, ignored)) {
        return fail(Code::already_exists,
                    "this machine is a node already: {} exists. See: peplos status",
                    options.config_path);
    }
    if (!options.state_dir.starts_with('/') || options.state_dir.find('"') != std::string::npos) {
        return fail(Code::invalid_argument, "state directory \"{}\" must be an absolute path",
                    options.state_dir);
    }
    TRY(make_directory(options.state_dir, 0700));
    uint64_t device_bytes = options.device_bytes;
    if (device_bytes % kGiB != 0) {
        return fail(Code::invalid_argument, "the first device's size must be whole GiB");
    }
    if (device_bytes == 0) {
        struct statvfs info{};
        if (::statvfs(options.state_dir.c_str(), &info) != 0) {
            return fail(Code::io_error, "cannot ask {} for free space: {}", options.state_dir,
                        std::strerror(errno));
        }
        uint64_t free_bytes = uint64_t{info.f_bavail} * info.f_frsize;
        TRY_ASSIGN(device_bytes, sensible_device_bytes(free_bytes));
    }
    std::string directory = std::filesystem::path(options.config_path).parent_path();
    TRY(make_directory(directory, 0755));
    std::string text = config_text(options, device_bytes);
    auto checked = parse_config(text, options.config_path);
    if (!checked) return fail(std::move(checked).error());
    TRY(write_new_file(options.config_path, text));

    std::string done = fmt::format(
        "This machine is a Peplos node now.\n"
        "  configuration  {}\n"
        "  first device   {}/device0, {}\n",
        options.config_path, options.state_dir, fabric::print_size(device_bytes));
    if (options.start && systemd_runs()) {
        TRY(start_units());
        done += "  units          peplosd, peplos-holder, peplos-docker.socket: started, enabled\n";
    } else {
        done += fmt::format(
            "No systemd here, or not asked to start; start the daemon with:\n"
            "  peplosd --config {}\n",
            options.config_path);
    }
    return done +
           "Next:\n"
           "  docker volume create -d peplos -o size=20GiB data\n"
           "  docker run -v data:/data ...\n"
           "  peplos status\n";
}

}  // namespace peplos::app
