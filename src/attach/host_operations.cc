#include "attach/host_operations.h"

#include <cerrno>
#include <cstdlib>
#include <cstring>
#include <fcntl.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <unistd.h>

#include "attach/fuse_protocol.h"
#include "attach/host_state.h"

namespace peplos::attach {

namespace {

using namespace std::chrono_literals;
using runtime::Task;

// Docker gives a call 60 s and more; every step leaves room for the others.
constexpr Duration kShort = 5s;
constexpr Duration kMount = 20s;
constexpr Duration kTool = 30s;

Code code_of(int error) {
    switch (error) {
        case EBUSY:
            return Code::busy;
        case ENOSPC:
            return Code::no_space;
        case EPERM:
        case EACCES:
            return Code::permission_denied;
        case ENODEV:
        case ENOSYS:
        case EOPNOTSUPP:
            return Code::unsupported;
        case EUCLEAN:
        case EINVAL:
            return Code::corrupt;  // what mount(2) says of a damaged file system
        case ENOENT:
            return Code::not_found;
        default:
            return Code::io_error;
    }
}

std::string first_lines(std::string text) {
    while (!text.empty() && (text.back() == '\n' || text.back() == ' '))
        text.pop_back();
    for (char& c : text) {
        if (c == '\n') c = ' ';
    }
    return text.substr(0, 600);
}

// "ERRNO sentence" of peplos-mounter, or whatever else a child printed.
std::unexpected<Error> child_failure(const std::string& what, const ChildResult& result) {
    if (result.timed_out) {
        return fail(Code::unavailable,
                    "{} took too long and was given up; try again, and look "
                    "at the kernel's log if that repeats",
                    what);
    }
    char* rest = nullptr;
    long error = std::strtol(result.err.c_str(), &rest, 10);
    if (rest != result.err.c_str() && *rest == ' ' && error > 0 && error < 4096) {
        return fail(code_of(static_cast<int>(error)), "{} failed: {}", what, first_lines(rest + 1));
    }
    return fail(Code::io_error, "{} failed: {}", what, first_lines(result.err));
}

Result<void> make_directory(const std::string& path) {
    if (::mkdir(path.c_str(), 0700) == 0 || errno == EEXIST) return {};
    return fail(Code::unavailable, "the directory {} cannot be made: {}", path,
                std::strerror(errno));
}

// Docker mounts from its own namespace, so what is mounted below must propagate: either the file
// system that holds the directory is shared already, or the directory becomes a shared mount.
Result<void> make_shared_root(const std::string& directory) {
    TRY(make_directory(directory));
    const MountEntry* holding = nullptr;
    std::vector<MountEntry> mounts = current_mounts();
    for (const MountEntry& mount : mounts) {
        bool holds = mount.directory == "/" || directory == mount.directory ||
                     directory.starts_with(mount.directory + "/");
        if (holds && (holding == nullptr || mount.directory.size() >= holding->directory.size())) {
            holding = &mount;
        }
    }
    if (holding != nullptr && holding->shared) return {};
    bool own_mount = holding != nullptr && holding->directory == directory;
    if ((!own_mount && ::mount(directory.c_str(), directory.c_str(), nullptr, MS_BIND, nullptr)) ||
        ::mount(nullptr, directory.c_str(), nullptr, MS_SHARED, nullptr) != 0) {
        return fail(Code::permission_denied,
                    "{} cannot be made a shared mount: {}; peplosd needs CAP_SYS_ADMIN", directory,
                    std::strerror(errno));
    }
    return {};
}

Result<void> make_volume_directories(const VolumePaths& paths) {
    TRY(make_directory(paths.directory));
    TRY(make_directory(paths.fs));
    Fd file(::open(paths.file.c_str(), O_RDONLY | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0600));
    if (!file.valid()) {
        return fail(Code::unavailable, "the file {} cannot be made: {}", paths.file,
                    std::strerror(errno));
    }
    return {};
}

Result<Fd> open_and_mount_fuse(const VolumePaths& paths) {
    if (::access("/dev/fuse", F_OK) != 0) ::mknod("/dev/fuse", S_IFCHR | 0600, 10 << 8 | 229);
    Fd fuse(::open("/dev/fuse", O_RDWR | O_CLOEXEC | O_NONBLOCK));
    if (!fuse.valid()) {
        return fail(Code::unsupported,
                    "/dev/fuse cannot be opened: {}; load the kernel module (modprobe fuse)",
                    std::strerror(errno));
    }
    // The root of this mount is the file itself, so the mount point is a file as well.
    std::string options = fmt::format("fd={},rootmode=100000,user_id=0,group_id=0,max_read={}",
                                      fuse.get(), kFuseIoBytesMax);
    if (::mount("peplos", paths.file.c_str(), "fuse", MS_NOSUID | MS_NODEV | MS_NOATIME,
                options.c_str()) != 0) {
        return fail(Code::permission_denied,
                    "the volume's file cannot be mounted on {}: {}; peplosd needs CAP_SYS_ADMIN",
                    paths.file, std::strerror(errno));
    }
    return fuse;
}

std::vector<std::string> mkfs_command(fabric::FsType fs, const std::vector<std::string>& options,
                                      const std::string& device) {
    // The volume is thin and reads as zeros, so nothing needs discarding and tables may be written
    // later (as zeros, which take no space). Blocks of 4 KiB are the volume's own.
    std::vector<std::string> argv;
    if (fs == fabric::FsType::ext4) {
        argv = {"mkfs.ext4", "-F",   "-q",
                "-b",        "4096", "-m",
                "0",         "-E",   "nodiscard,lazy_itable_init=1,lazy_journal_init=1"};
    } else {
        argv = {"mkfs.xfs", "-f", "-q", "-K"};
    }
    argv.insert(argv.end(), options.begin(), options.end());
    argv.push_back(device);
    return argv;
}

}  // namespace

HostOperations::HostOperations(std::string state_directory, std::string programs)
    : mounts_(state_directory + "/mnt"),
      holder_socket_(state_directory + "/holder.sock"),
      holder_program_(programs + "/peplos-holder"),
      mounter_program_(programs + "/peplos-mounter") {}

VolumePaths HostOperations::paths_of(VolumeId id) const {
    VolumePaths paths;
    paths.directory = mounts_ + "/" + text_of(id);
    paths.file = paths.directory + "/disk";
    paths.fs = paths.directory + "/fs";
    paths.data = paths.fs + "/data";
    return paths;
}

Task<ChildResult> HostOperations::mounter(std::vector<std::string> arguments, Duration limit) {
    arguments.insert(arguments.begin(), mounter_program_);
    co_return co_await workers_.child(std::move(arguments), limit);
}

Task<Result<std::string>> HostOperations::ask_mounter(std::vector<std::string> arguments,
                                                      Duration limit) {
    std::string what = arguments[0] + " " + arguments[1];
    ChildResult result = co_await mounter(std::move(arguments), limit);
    if (result.exit_code != 0) co_return child_failure(what, result);
    std::string out = std::move(result.out);
    while (!out.empty() && out.back() == '\n')
        out.pop_back();
    co_return out;
}

Task<Result<void>> HostOperations::prepare_root() {
    std::function<Result<void>()> work = [directory = mounts_] {
        return make_shared_root(directory);
    };
    co_return co_await workers_.run<Result<void>>(std::move(work));
}

Task<Result<void>> HostOperations::make_directories(VolumePaths paths) {
    std::function<Result<void>()> work = [paths] { return make_volume_directories(paths); };
    co_return co_await workers_.run<Result<void>>(std::move(work));
}

Task<Result<void>> HostOperations::remove_directories(VolumePaths paths) {
    std::function<Result<void>()> work = [paths]() -> Result<void> {
        // Never recursive: whatever is still mounted or left below stays.
        ::unlink(paths.file.c_str());
        ::rmdir(paths.fs.c_str());
        ::rmdir(paths.directory.c_str());
        return {};
    };
    co_return co_await workers_.run<Result<void>>(std::move(work));
}

Task<Result<Fd>> HostOperations::mount_fuse(VolumePaths paths) {
    std::function<Result<Fd>()> work = [paths] { return open_and_mount_fuse(paths); };
    co_return co_await workers_.run<Result<Fd>>(std::move(work));
}

Task<Result<std::string>> HostOperations::loop_on(std::string file, uint32_t sector_bytes) {
    std::vector<std::string> arguments{"loop", std::move(file), std::to_string(sector_bytes)};
    co_return co_await ask_mounter(std::move(arguments), kMount);
}

Task<Result<Release>> HostOperations::clear_loop(std::string device, std::string file) {
    std::vector<std::string> arguments{"clear", std::move(device), std::move(file)};
    CO_TRY_ASSIGN(std::string out, co_await ask_mounter(std::move(arguments), kShort));
    co_return out == "free" ? Release::free : Release::held;
}

Task<Result<void>> HostOperations::set_capacity(std::string device, std::string file) {
    std::vector<std::string> arguments{"capacity", std::move(device), std::move(file)};
    CO_TRY(co_await ask_mounter(std::move(arguments), kShort));
    co_return Result<void>();
}

Task<Result<Release>> HostOperations::exclusive(std::string device) {
    std::vector<std::string> arguments{"exclusive", std::move(device)};
    CO_TRY_ASSIGN(std::string out, co_await ask_mounter(std::move(arguments), kShort));
    co_return out == "free" ? Release::free : Release::held;
}

Task<Result<void>> HostOperations::make_fs(fabric::FsType fs, std::vector<std::string> options,
                                           std::string device) {
    std::vector<std::string> arguments = mkfs_command(fs, options, device);
    std::string tool = arguments[0];
    arguments.insert(arguments.begin(), "run");
    ChildResult result = co_await mounter(std::move(arguments), kTool);
    if (result.exit_code == 0) co_return Result<void>();
    if (result.timed_out) co_return child_failure(tool, result);
    co_return fail(Code::invalid_argument,
                   "{} could not format the volume: {}; check size and mkfs-options", tool,
                   first_lines(result.err.empty() ? result.out : result.err));
}

Task<Result<void>> HostOperations::mount_fs(fabric::FsType fs, std::string device,
                                            std::string directory) {
    std::string type = fs == fabric::FsType::ext4 ? "ext4" : "xfs";
    // A copy of a volume carries the same UUID, which xfs would refuse beside the original.
    std::string options = fs == fabric::FsType::ext4 ? "errors=remount-ro" : "nouuid";
    std::vector<std::string> arguments{"mount", device, std::move(directory), type, options};
    auto mounted = co_await ask_mounter(std::move(arguments), kMount);
    if (mounted) co_return Result<void>();
    if (mounted.error().code() != Code::corrupt) co_return std::unexpected(mounted.error());
    std::string repair = fs == fabric::FsType::ext4 ? "e2fsck -f " : "xfs_repair ";
    co_return fail(Code::corrupt, "{}; the file system needs repair: run '{}{}', then mount again",
                   mounted.error().message(), repair, device);
}

Task<Result<void>> HostOperations::prepare_data(std::string directory, int64_t uid, int64_t gid,
                                                int64_t mode) {
    std::vector<std::string> arguments{"prepare", std::move(directory), std::to_string(uid),
                                       std::to_string(gid), std::to_string(mode)};
    CO_TRY(co_await ask_mounter(std::move(arguments), kMount));
    co_return Result<void>();
}

Task<Result<Release>> HostOperations::unmount_fs(std::string directory, std::string device,
                                                 std::string file) {
    std::vector<std::string> arguments{"unmount", std::move(directory), std::move(device),
                                       std::move(file)};
    CO_TRY_ASSIGN(std::string out, co_await ask_mounter(std::move(arguments), kMount));
    co_return out == "free" ? Release::free : Release::held;
}

Task<Result<void>> HostOperations::detach_mount(std::string directory) {
    std::vector<std::string> arguments{"detach", std::move(directory)};
    CO_TRY(co_await ask_mounter(std::move(arguments), kShort));
    co_return Result<void>();
}

Task<std::string> HostOperations::users(std::string device, std::string directory) {
    std::vector<std::string> arguments{"users", std::move(device), std::move(directory)};
    auto out = co_await ask_mounter(std::move(arguments), kShort);
    if (!out || out->empty()) co_return std::string("someone that could not be found");
    std::string text = *out;
    for (size_t at = text.find('\n'); at != std::string::npos; at = text.find('\n')) {
        text.replace(at, 1, ", ");
    }
    co_return text;
}

Task<Result<HostOperations::FsSize>> HostOperations::fs_size(std::string directory) {
    std::vector<std::string> arguments{"statfs", std::move(directory)};
    CO_TRY_ASSIGN(std::string out, co_await ask_mounter(std::move(arguments), kShort));
    FsSize size;
    char* rest = nullptr;
    size.total_bytes = std::strtoull(out.c_str(), &rest, 10);
    size.used_bytes = std::strtoull(rest, nullptr, 10);
    co_return size;
}

Task<Result<uint64_t>> HostOperations::trim(std::string directory, uint64_t start, uint64_t bytes) {
    std::vector<std::string> arguments{"trim", std::move(directory), std::to_string(start),
                                       std::to_string(bytes)};
    CO_TRY_ASSIGN(std::string out, co_await ask_mounter(std::move(arguments), kTool));
    co_return std::strtoull(out.c_str(), nullptr, 10);
}

Task<Result<void>> HostOperations::grow_mounted(fabric::FsType fs, std::string device,
                                                std::string directory) {
    std::vector<std::string> arguments{"run"};
    if (fs == fabric::FsType::ext4) {
        arguments.insert(arguments.end(), {"resize2fs", std::move(device)});
    } else {
        arguments.insert(arguments.end(), {"xfs_growfs", "-d", std::move(directory)});
    }
    ChildResult result = co_await mounter(std::move(arguments), kTool);
    if (result.exit_code == 0) co_return Result<void>();
    if (result.err.find("Permission denied") != std::string::npos ||
        result.err.find("Operation not permitted") != std::string::npos) {
        co_return fail(Code::permission_denied,
                       "growing mounted ext4 needs CAP_SYS_RESOURCE, which peplosd lacks here");
    }
    co_return child_failure("growing the file system", result);
}

Task<Result<void>> HostOperations::grow_unmounted_ext4(std::string device) {
    std::vector<std::string> check{"run", "e2fsck", "-f", "-p", device};
    ChildResult checked = co_await mounter(std::move(check), kTool);
    // 0: clean, 1: errors corrected (e2fsck(8)).
    if (checked.exit_code != 0 && checked.exit_code != 1) {
        co_return child_failure("checking the file system before it grows", checked);
    }
    std::vector<std::string> resize{"run", "resize2fs", device};
    ChildResult resized = co_await mounter(std::move(resize), kTool);
    if (resized.exit_code != 0) co_return child_failure("growing the file system", resized);
    co_return Result<void>();
}

Task<bool> HostOperations::is_mounted(std::string directory) {
    std::function<bool()> work = [directory] {
        for (const MountEntry& mount : current_mounts()) {
            if (mount.directory == directory) return true;
        }
        return false;
    };
    co_return co_await workers_.run<bool>(std::move(work));
}

Task<std::string> HostOperations::loop_of(std::string file) {
    std::function<std::string()> work = [file] {
        return loop_device_on(file).value_or(std::string());
    };
    co_return co_await workers_.run<std::string>(std::move(work));
}

Task<Result<void>> HostOperations::ensure_holder() {
    std::function<Result<void>()> work = [socket = holder_socket_,
                                          program = holder_program_]() -> Result<void> {
        if (HolderClient::connect(socket)) return {};
        ChildResult started = run_child({program, socket, "--background"}, kShort);
        if (started.exit_code != 0) {
            return fail(Code::unavailable,
                        "{} cannot be started: {}; without it a restart of the daemon would fail "
                        "the I/O of containers, so nothing is attached",
                        program, first_lines(started.err));
        }
        TRY(HolderClient::connect(socket));
        return {};
    };
    co_return co_await workers_.run<Result<void>>(std::move(work));
}

Task<Result<void>> HostOperations::hold(VolumeId id, int fd) {
    // A duplicate: the caller's may be closed before the worker comes to it, and its number may
    // then be another volume's.
    auto mine = std::make_shared<Fd>(::fcntl(fd, F_DUPFD_CLOEXEC, 0));
    std::function<Result<void>()> work = [socket = holder_socket_, id, mine]() -> Result<void> {
        TRY_ASSIGN(HolderClient holder, HolderClient::connect(socket));
        return holder.put(id, mine->get());
    };
    co_return co_await workers_.run<Result<void>>(std::move(work));
}

Task<Result<void>> HostOperations::drop(VolumeId id) {
    std::function<Result<void>()> work = [socket = holder_socket_, id]() -> Result<void> {
        TRY_ASSIGN(HolderClient holder, HolderClient::connect(socket));
        return holder.drop(id);
    };
    co_return co_await workers_.run<Result<void>>(std::move(work));
}

Task<Result<Fd>> HostOperations::take_held(VolumeId id) {
    std::function<Result<Fd>()> work = [socket = holder_socket_, id]() -> Result<Fd> {
        TRY_ASSIGN(HolderClient holder, HolderClient::connect(socket));
        return holder.get(id);
    };
    co_return co_await workers_.run<Result<Fd>>(std::move(work));
}

Task<Result<std::vector<VolumeId>>> HostOperations::held() {
    std::function<Result<std::vector<VolumeId>>()> work =
        [socket = holder_socket_]() -> Result<std::vector<VolumeId>> {
        TRY_ASSIGN(HolderClient holder, HolderClient::connect(socket));
        return holder.list();
    };
    co_return co_await workers_.run<Result<std::vector<VolumeId>>>(std::move(work));
}

Task<Result<Fd>> HostOperations::watch_holder() {
    std::function<Result<Fd>()> work = [socket = holder_socket_]() -> Result<Fd> {
        TRY_ASSIGN(HolderClient holder, HolderClient::connect(socket));
        Fd watch(::fcntl(holder.fd(), F_DUPFD_CLOEXEC, 0));
        if (watch.get() < 0) return fail(Code::io_error, "no descriptor for the holder's socket");
        return watch;
    };
    co_return co_await workers_.run<Result<Fd>>(std::move(work));
}

}  // namespace peplos::attach
