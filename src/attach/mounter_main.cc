// peplos-mounter OPERATION ARGUMENTS: one system call of the attachment that may wait for I/O, in
// a process of its own. The daemon serves that I/O itself, so it must never wait for it; and a
// thread of the daemon that waits in the kernel would keep a killed daemon half alive, with its
// device locks. A child is killed with its parent instead.
//
// Prints its result on stdout (exit 0), or "ERRNO sentence" on stderr (exit 1).

#include <cerrno>
#include <cinttypes>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <fcntl.h>
#include <linux/fs.h>
#include <linux/loop.h>
#include <signal.h>
#include <string>
#include <string_view>
#include <sys/ioctl.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <sys/sysmacros.h>
#include <unistd.h>
#include <vector>

#include "attach/host_state.h"

namespace {

using peplos::attach::Fd;
using Arguments = std::vector<std::string>;

int failed(int error, const std::string& what) {
    std::fprintf(stderr, "%d %s: %s\n", error, what.c_str(), std::strerror(error));
    return 1;
}

void make_node_if_missing(const std::string& path, mode_t type, dev_t device) {
    if (::access(path.c_str(), F_OK) != 0) ::mknod(path.c_str(), type | 0600, device);
}

std::string loop_path(int number) {
    std::string path = "/dev/loop" + std::to_string(number);
    make_node_if_missing(path, S_IFBLK, ::makedev(7, static_cast<unsigned>(number)));
    return path;
}

// 0, or an errno; EBUSY when another process took the same free device first.
int configure(const std::string& device, int file, uint32_t sector_bytes, const std::string& name) {
    Fd loop(::open(device.c_str(), O_RDWR | O_CLOEXEC));
    if (!loop.valid()) return errno;
    loop_config config{};
    config.fd = static_cast<uint32_t>(file);
    config.block_size = sector_bytes;
    config.info.lo_flags = LO_FLAGS_DIRECT_IO;
    std::strncpy(reinterpret_cast<char*>(config.info.lo_file_name), name.c_str(), LO_NAME_SIZE - 1);
    if (::ioctl(loop.get(), LOOP_CONFIGURE, &config) != 0) return errno;
    loop_info64 info{};
    if (::ioctl(loop.get(), LOOP_GET_STATUS64, &info) != 0) return errno;
    if ((info.lo_flags & LO_FLAGS_DIRECT_IO) == 0) {
        // Buffered, the page cache would hold every block twice and acknowledge before we do.
        ::ioctl(loop.get(), LOOP_CLR_FD);
        return EOPNOTSUPP;
    }
    return 0;
}

// The kernel takes over the size that the daemon has for the file; 0, or an errno. The answer to a
// stat alone is shown to us, but kept in the inode only if no write of the file ended meanwhile
// (fuse_change_attributes). An inode with an old size lets reads behind its old end return nothing,
// which the loop driver makes an I/O error of. The answer to a truncate is kept whatever else goes
// on, and the daemon refuses every size but the one that it has: nothing can be cut off.
int take_size(const Fd& file, uint64_t& bytes) {
    struct stat info{};
    if (::fstat(file.get(), &info) != 0) return errno;
    bytes = static_cast<uint64_t>(info.st_size);
    return ::ftruncate(file.get(), info.st_size) == 0 ? 0 : errno;
}

// loop FILE SECTOR_BYTES: prints the loop device on the file, an existing one where there is one.
int do_loop(const Arguments& a) {
    if (auto device = peplos::attach::loop_device_on(a[0])) {
        std::printf("%s\n", device->c_str());
        return 0;
    }
    Fd file(::open(a[0].c_str(), O_RDWR | O_CLOEXEC));
    if (!file.valid()) return failed(errno, "opening " + a[0]);
    uint64_t bytes = 0;
    if (int error = take_size(file, bytes)) return failed(error, "asking the size of " + a[0]);
    make_node_if_missing("/dev/loop-control", S_IFCHR, ::makedev(10, 237));
    Fd control(::open("/dev/loop-control", O_RDWR | O_CLOEXEC));
    if (!control.valid()) return failed(errno, "opening /dev/loop-control");
    uint32_t sector = static_cast<uint32_t>(std::strtoul(a[1].c_str(), nullptr, 10));
    for (int attempt = 0; attempt < 64; ++attempt) {
        int number = ::ioctl(control.get(), LOOP_CTL_GET_FREE);
        if (number < 0) return failed(errno, "asking for a free loop device");
        std::string device = loop_path(number);
        int error = configure(device, file.get(), sector, a[0]);
        if (error == 0) {
            std::printf("%s\n", device.c_str());
            return 0;
        }
        if (error != EBUSY) return failed(error, "setting up " + device);
    }
    return failed(EBUSY, "finding a free loop device");
}

// mount DEVICE DIRECTORY TYPE OPTIONS. From then on the last close frees the loop device.
int do_mount(const Arguments& a) {
    Fd loop(::open(a[0].c_str(), O_RDWR | O_CLOEXEC));
    if (!loop.valid()) return failed(errno, "opening " + a[0]);
    if (::mount(a[0].c_str(), a[1].c_str(), a[2].c_str(), MS_NOSUID | MS_NODEV, a[3].c_str()) != 0)
        return failed(errno, "mounting " + a[0] + " on " + a[1]);
    loop_info64 info{};
    if (::ioctl(loop.get(), LOOP_GET_STATUS64, &info) != 0) return failed(errno, a[0]);
    info.lo_flags |= LO_FLAGS_AUTOCLEAR;
    if (::ioctl(loop.get(), LOOP_SET_STATUS64, &info) != 0) return failed(errno, a[0]);
    return 0;
}

// prepare DIRECTORY UID GID MODE: makes what containers get and sets its owner, once. It appears
// under its name only when it is complete, whenever this is killed.
int do_prepare(const Arguments& a) {
    if (::access(a[0].c_str(), F_OK) == 0) return 0;
    std::string unfinished = a[0] + ".new";
    if (::mkdir(unfinished.c_str(), 0755) != 0 && errno != EEXIST) {
        return failed(errno, "making " + a[0]);
    }
    long uid = std::strtol(a[1].c_str(), nullptr, 10);
    long gid = std::strtol(a[2].c_str(), nullptr, 10);
    long mode = std::strtol(a[3].c_str(), nullptr, 10);
    if (::chown(unfinished.c_str(), static_cast<uid_t>(uid), static_cast<gid_t>(gid)) != 0 ||
        (mode >= 0 && ::chmod(unfinished.c_str(), static_cast<mode_t>(mode)) != 0)) {
        return failed(errno, "setting the owner of " + a[0]);
    }
    if (::rename(unfinished.c_str(), a[0].c_str()) != 0) return failed(errno, "making " + a[0]);
    return 0;
}

// statfs DIRECTORY: prints total and used bytes.
int do_statfs(const Arguments& a) {
    struct statvfs info{};
    if (::statvfs(a[0].c_str(), &info) != 0) return failed(errno, "asking " + a[0]);
    uint64_t total = info.f_blocks * info.f_frsize;
    uint64_t used = (info.f_blocks - info.f_bfree) * info.f_frsize;
    std::printf("%" PRIu64 " %" PRIu64 "\n", total, used);
    return 0;
}

// trim DIRECTORY START BYTES: prints the bytes trimmed.
int do_trim(const Arguments& a) {
    Fd directory(::open(a[0].c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC));
    if (!directory.valid()) return failed(errno, "opening " + a[0]);
    fstrim_range range{};
    range.start = std::strtoull(a[1].c_str(), nullptr, 10);
    range.len = std::strtoull(a[2].c_str(), nullptr, 10);
    if (::ioctl(directory.get(), FITRIM, &range) != 0) return failed(errno, "trimming " + a[0]);
    std::printf("%llu\n", static_cast<unsigned long long>(range.len));
    return 0;
}

// Waits at most `turns` times 10 ms for the loop device to let go of the file: that happens after
// the last close, in the background.
int print_release(const std::string& device, const std::string& file, int turns) {
    bool held = true;
    for (int i = 0; i < turns && held; ++i) {
        if (i > 0) ::usleep(10'000);
        held = peplos::attach::backing_file_of(device) == file;
    }
    std::printf("%s\n", held ? "held" : "free");
    return 0;
}

// unmount DIRECTORY DEVICE FILE: then waits at most two seconds for the loop device to let go of
// FILE; prints "free" or "held".
int do_unmount(const Arguments& a) {
    if (::umount2(a[0].c_str(), UMOUNT_NOFOLLOW) != 0 && errno != EINVAL && errno != ENOENT) {
        return failed(errno, "unmounting " + a[0]);
    }
    return print_release(a[1], a[2], 200);
}

// detach DIRECTORY: takes the mount out of the tree whoever uses it.
int do_detach(const Arguments& a) {
    if (::umount2(a[0].c_str(), MNT_DETACH | UMOUNT_NOFOLLOW) != 0 && errno != EINVAL &&
        errno != ENOENT) {
        return failed(errno, "detaching " + a[0]);
    }
    return 0;
}

// clear DEVICE FILE: unbinds the loop device if it is (still) bound to FILE; prints "free", or
// "held" when somebody has it open: then the last close unbinds it.
int do_clear(const Arguments& a) {
    if (peplos::attach::backing_file_of(a[0]) == a[1]) {
        Fd loop(::open(a[0].c_str(), O_RDONLY | O_CLOEXEC));
        if (!loop.valid()) return failed(errno, "opening " + a[0]);
        if (::ioctl(loop.get(), LOOP_CLR_FD) != 0 && errno != ENXIO) {
            return failed(errno, "clearing " + a[0]);
        }
    }
    return print_release(a[0], a[1], 50);
}

// capacity DEVICE FILE: the loop device takes the file's new size.
int do_capacity(const Arguments& a) {
    Fd file(::open(a[1].c_str(), O_RDWR | O_CLOEXEC));
    if (!file.valid()) return failed(errno, "opening " + a[1]);
    uint64_t bytes = 0;
    if (int error = take_size(file, bytes)) return failed(error, "asking the size of " + a[1]);
    Fd loop(::open(a[0].c_str(), O_RDWR | O_CLOEXEC));
    uint64_t capacity = 0;
    if (!loop.valid() || ::ioctl(loop.get(), LOOP_SET_CAPACITY) != 0 ||
        ::ioctl(loop.get(), BLKGETSIZE64, &capacity) != 0) {
        return failed(errno, "resizing " + a[0]);
    }
    if (capacity != bytes) {
        return failed(EIO, a[0] + " has " + std::to_string(capacity) + " bytes instead of " +
                               std::to_string(bytes));
    }
    return 0;
}

// exclusive DEVICE: prints "free", or "held" when a mount or another process holds it for two
// seconds: as long as a killed tool may take to let go of it.
int do_exclusive(const Arguments& a) {
    for (int i = 0; i < 200; ++i) {
        if (i > 0) ::usleep(10'000);
        Fd device(::open(a[0].c_str(), O_RDONLY | O_EXCL | O_CLOEXEC));
        if (!device.valid() && errno != EBUSY) return failed(errno, "opening " + a[0]);
        if (device.valid()) {
            std::printf("free\n");
            return 0;
        }
    }
    std::printf("held\n");
    return 0;
}

// users DEVICE DIRECTORY: prints who holds the file system, one per line.
int do_users(const Arguments& a) {
    for (const std::string& user : peplos::attach::users_of(a[0], a[1])) {
        std::printf("%s\n", user.c_str());
    }
    return 0;
}

// run PROGRAM ARGUMENTS: a tool such as mkfs, that dies with its parent.
int do_run(const Arguments& a) {
    std::vector<char*> argv;
    for (const std::string& argument : a)
        argv.push_back(const_cast<char*>(argument.c_str()));
    argv.push_back(nullptr);
    ::execvp(argv[0], argv.data());
    return failed(errno, "running " + a[0]);
}

struct Operation {
    std::string_view name;
    size_t argument_count_min;
    size_t argument_count_max;
    int (*run)(const Arguments&);
};

constexpr Operation kOperations[] = {
    {"loop", 2, 2, do_loop},           {"mount", 4, 4, do_mount}, {"prepare", 4, 4, do_prepare},
    {"statfs", 1, 1, do_statfs},       {"trim", 3, 3, do_trim},   {"unmount", 3, 3, do_unmount},
    {"detach", 1, 1, do_detach},       {"clear", 2, 2, do_clear}, {"capacity", 2, 2, do_capacity},
    {"exclusive", 1, 1, do_exclusive}, {"users", 2, 2, do_users}, {"run", 1, 64, do_run},
};

}  // namespace

int main(int argc, char** argv) {
    ::prctl(PR_SET_PDEATHSIG, SIGKILL);
    if (argc >= 2) {
        Arguments arguments(argv + 2, argv + argc);
        for (const Operation& operation : kOperations) {
            if (operation.name != argv[1]) continue;
            if (arguments.size() < operation.argument_count_min ||
                arguments.size() > operation.argument_count_max) {
                break;
            }
            return operation.run(arguments);
        }
    }
    std::fprintf(stderr, "22 usage: peplos-mounter OPERATION ARGUMENTS (run by peplosd)\n");
    return 2;
}
