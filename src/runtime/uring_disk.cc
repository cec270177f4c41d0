#include "runtime/uring_disk.h"

#include <cerrno>
#include <cstring>
#include <fcntl.h>
#include <filesystem>
#include <fstream>
#include <linux/falloc.h>
#include <linux/fs.h>
#include <sstream>
#include <sys/file.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <unistd.h>

#include "base/check.h"
#include "runtime/disk_operation.h"

// Linux 6.17: writes zeros with the device's help and leaves written extents.
#ifndef FALLOC_FL_WRITE_ZEROES
#define FALLOC_FL_WRITE_ZEROES 0x80
#endif

namespace peplos::runtime {
namespace {

constexpr uint64_t kZeroChunkBytes = 1 * kMiB;
constexpr size_t kVectorsMax = 1024;

enum class DiskKind : uint8_t { file, block_device };

// Closes unless released.
class FileDescriptor {
  public:
    explicit FileDescriptor(int fd) : fd_(fd) {}
    FileDescriptor(FileDescriptor&& other) noexcept : fd_(std::exchange(other.fd_, -1)) {}
    FileDescriptor& operator=(FileDescriptor&&) = delete;
    ~FileDescriptor() {
        if (fd_ >= 0) ::close(fd_);
    }
    int get() const { return fd_; }

  private:
    int fd_;
};

// Submits one operation; the task resumes with 0 or an errno. `fill` sets verb, offset, buffers.
template <typename Fill>
Task<int> perform(DiskOperations* operations, int fd, Fill fill) {
    return asio::async_initiate<const asio::use_awaitable_t<Executor>, void(int)>(
        [](auto handler, DiskOperations* pool, int descriptor, Fill fill_record) {
            DiskOperation* operation = pool->take();
            operation->fd = descriptor;
            fill_record(*operation);
            operation->done = std::move(handler);
            pool->start(operation);
        },
        kUseTask, operations, fd, std::move(fill));
}

Task<int> allocate(DiskOperations* operations, int fd, int mode, uint64_t offset, uint64_t bytes) {
    return perform(operations, fd, [mode, offset, bytes](DiskOperation& operation) {
        operation.verb = DiskVerb::allocate;
        operation.mode = mode;
        operation.offset = offset;
        operation.bytes_left = bytes;
    });
}

class UringDisk final : public Disk {
  public:
    UringDisk(Core* core, std::shared_ptr<DiskOperations> operations, FileDescriptor fd,
              DiskKind kind, uint64_t size_bytes, std::string name)
        : core_(core),
          operations_(std::move(operations)),
          fd_(std::move(fd)),
          kind_(kind),
          size_bytes_(size_bytes),
          name_(std::move(name)) {}

    uint64_t size_bytes() const override { return size_bytes_; }
    const std::string& name() const override { return name_; }

    Task<Result<void>> read(uint64_t offset, Buffer into) override {
        return transfer(DiskVerb::read, offset, std::move(into));
    }
    Task<Result<void>> read_vector(uint64_t offset, std::vector<Buffer> into) override {
        return transfer_vector(DiskVerb::read, offset, std::move(into));
    }
    Task<Result<void>> write(uint64_t offset, Buffer from, Durability durability) override {
        return transfer(verb_of(durability), offset, std::move(from));
    }
    Task<Result<void>> write_vector(uint64_t offset, std::vector<Buffer> from,
                                    Durability durability) override {
        return transfer_vector(verb_of(durability), offset, std::move(from));
    }
    Task<Result<void>> sync() override {
        int error = co_await perform(operations_.get(), fd_.get(), [](DiskOperation& operation) {
            operation.verb = DiskVerb::sync;
        });
        co_return result_of(error, "sync", 0, 0);
    }
    Task<Result<void>> zero(uint64_t offset, uint64_t bytes) override;

  private:
    static DiskVerb verb_of(Durability durability) {
        return durability == Durability::durable ? DiskVerb::write_durable : DiskVerb::write;
    }
    static std::string_view word_of(DiskVerb verb) {
        return verb == DiskVerb::read ? "read" : "write";
    }
    // True where [offset, offset + bytes) lies inside; aligned is the caller's duty.
    bool covers(uint64_t offset, uint64_t bytes) const {
        CHECK(core_->is_this_thread() || Core::current() == nullptr, "{}: a disk lives on one core",
              name_);
        CHECK(offset % kBlockBytes == 0 && bytes % kBlockBytes == 0,
              "{}: unaligned I/O of {} bytes at {}", name_, bytes, offset);
        return offset <= size_bytes_ && bytes <= size_bytes_ - offset;
    }
    Task<Result<void>> transfer(DiskVerb verb, uint64_t offset, Buffer buffer);
    Task<Result<void>> transfer_vector(DiskVerb verb, uint64_t offset, std::vector<Buffer> buffers);
    Task<Result<void>> write_zeros(uint64_t offset, uint64_t bytes);
    Result<void> outside(uint64_t offset, uint64_t bytes) const {
        return fail(Code::invalid_argument, "{}: {} bytes at {} lie outside the device", name_,
                    bytes, offset);
    }
    Result<void> result_of(int error, std::string_view verb, uint64_t bytes, uint64_t offset) const;

    Core* core_;
    std::shared_ptr<DiskOperations> operations_;
    FileDescriptor fd_;
    DiskKind kind_;
    uint64_t size_bytes_;
    std::string name_;
};

Result<void> UringDisk::result_of(int error, std::string_view verb, uint64_t bytes,
                                  uint64_t offset) const {
    if (error == 0) [[likely]]
        return {};
    if (error == ENOSPC || error == EDQUOT) {
        return fail(Code::no_space,
                    "{}: {} of {} bytes at {} found no space: the file system below is full or "
                    "over quota; free space there",
                    name_, verb, bytes, offset);
    }
    return fail(
        Code::io_error, "{}: {} of {} bytes at {} failed: {}", name_, verb, bytes, offset,
        error == ENODATA ? "the file is shorter than when it was opened" : std::strerror(error));
}

Task<Result<void>> UringDisk::transfer(DiskVerb verb, uint64_t offset, Buffer buffer) {
    uint64_t bytes = buffer.size();
    if (!covers(offset, bytes)) co_return outside(offset, bytes);
    if (bytes == 0) co_return Result<void>{};
    int error = co_await asio::async_initiate<const asio::use_awaitable_t<Executor>, void(int)>(
        [this, verb, offset](auto handler, Buffer held) {
            DiskOperation* operation = operations_->take();
            operation->fd = fd_.get();
            operation->verb = verb;
            operation->offset = offset;
            operation->bytes_left = held.size();
            operation->buffer = std::move(held);
            operation->done = std::move(handler);
            operations_->start(operation);
        },
        kUseTask, std::move(buffer));
    co_return result_of(error, word_of(verb), bytes, offset);
}

Task<Result<void>> UringDisk::transfer_vector(DiskVerb verb, uint64_t offset,
                                              std::vector<Buffer> buffers) {
    CHECK(buffers.size() <= kVectorsMax, "{} buffers in one operation", buffers.size());
    uint64_t bytes = 0;
    for (const Buffer& buffer : buffers)
        bytes += buffer.size();
    if (!covers(offset, bytes)) co_return outside(offset, bytes);
    if (bytes == 0) co_return Result<void>{};
    int error = co_await asio::async_initiate<const asio::use_awaitable_t<Executor>, void(int)>(
        [this, verb, offset, bytes](auto handler, std::vector<Buffer> held) {
            DiskOperation* operation = operations_->take();
            operation->fd = fd_.get();
            operation->verb = verb;
            operation->offset = offset;
            operation->bytes_left = bytes;
            operation->buffers = std::move(held);
            for (Buffer& buffer : operation->buffers) {
                if (!buffer.empty()) operation->vectors.push_back({buffer.data(), buffer.size()});
            }
            operation->done = std::move(handler);
            operations_->start(operation);
        },
        kUseTask, std::move(buffers));
    co_return result_of(error, word_of(verb), bytes, offset);
}

// A plain ZERO_RANGE on a file would leave unwritten extents, whose first durable write then waits
// for the file system's journal; so files get written zeros, block devices their own command.
Task<Result<void>> UringDisk::zero(uint64_t offset, uint64_t bytes) {
    if (!covers(offset, bytes)) co_return outside(offset, bytes);
    if (bytes == 0) co_return Result<void>{};
    int mode = kind_ == DiskKind::block_device ? FALLOC_FL_ZERO_RANGE : FALLOC_FL_WRITE_ZEROES;
    mode |= kind_ == DiskKind::block_device ? FALLOC_FL_KEEP_SIZE : 0;
    int error = co_await allocate(operations_.get(), fd_.get(), mode, offset, bytes);
    if (error == EOPNOTSUPP || error == EINVAL || error == ENOSYS || error == ENODEV) {
        CO_TRY(co_await write_zeros(offset, bytes));
    } else if (error != 0) {
        co_return result_of(error, "zeroing", bytes, offset);
    }
    co_return co_await sync();
}

Task<Result<void>> UringDisk::write_zeros(uint64_t offset, uint64_t bytes) {
    Buffer zeros = Buffer::zeroed(std::min(bytes, kZeroChunkBytes));
    // Many times the same memory, gathered: few and long writes.
    constexpr uint64_t kWriteBytes = 16 * kMiB;
    while (bytes != 0) {
        std::vector<Buffer> parts;
        uint64_t gathered = 0;
        while (gathered < std::min(bytes, kWriteBytes)) {
            uint64_t count = std::min<uint64_t>(zeros.size(), bytes - gathered);
            parts.push_back(zeros.slice(0, count));
            gathered += count;
        }
        CO_TRY(co_await write_vector(offset, std::move(parts), Durability::volatile_));
        offset += gathered;
        bytes -= gathered;
    }
    co_return Result<void>{};
}

Result<void> open_failed(const std::string& path, int error) {
    std::string why = std::strerror(error);
    switch (error) {
        case ENOENT:
        case ENOTDIR:
            return fail(Code::not_found, "{} does not exist: create it or name another", path);
        case EACCES:
        case EPERM:
        case EROFS:
            return fail(Code::permission_denied, "{} cannot be opened for writing: {}", path, why);
        case EBUSY:
            return fail(Code::busy,
                        "{} is in use: it is mounted, part of another device, or held by another "
                        "process; free it or name another",
                        path);
        case EINVAL:
            return fail(Code::unsupported,
                        "{} lies on a file system without direct I/O (O_DIRECT): use ext4, xfs or "
                        "a block device",
                        path);
        case EISDIR:
            return fail(Code::invalid_argument, "{} is a directory: name a file in it", path);
        case ENOSPC:
        case EDQUOT:
            return fail(Code::no_space, "{} cannot be created: {}", path, why);
        default:
            return fail(Code::io_error, "{} cannot be opened: {}", path, why);
    }
}

struct OpenedDisk {
    FileDescriptor fd;
    DiskKind kind;
    uint64_t size_bytes;
};

Result<OpenedDisk> open_existing(const std::string& path) {
    struct stat info{};
    if (stat(path.c_str(), &info) != 0) {
        TRY(open_failed(path, errno));
    }
    DiskKind kind = S_ISBLK(info.st_mode) ? DiskKind::block_device : DiskKind::file;
    if (!S_ISBLK(info.st_mode) && !S_ISREG(info.st_mode)) {
        return fail(Code::invalid_argument,
                    "{} is neither a regular file nor a block device: name one", path);
    }
    int flags = O_RDWR | O_DIRECT | O_CLOEXEC | O_NONBLOCK;
    if (kind == DiskKind::block_device) flags |= O_EXCL;
    FileDescriptor fd(::open(path.c_str(), flags));
    if (fd.get() < 0) TRY(open_failed(path, errno));
    if (flock(fd.get(), LOCK_EX | LOCK_NB) != 0) {
        return fail(Code::busy, "{} is held by {}: stop it, or name another file", path,
                    lock_holder_of(fd.get()));
    }
    uint64_t size = 0;
    if (kind == DiskKind::block_device) {
        if (ioctl(fd.get(), BLKGETSIZE64, &size) != 0) TRY(open_failed(path, errno));
    } else {
        if (fstat(fd.get(), &info) != 0) TRY(open_failed(path, errno));
        size = static_cast<uint64_t>(info.st_size);
    }
    size = round_down(size, kBlockBytes);
    if (size == 0) {
        return fail(Code::invalid_argument, "{} is too small: it has less than {} bytes", path,
                    kBlockBytes);
    }
    return OpenedDisk{std::move(fd), kind, size};
}

// Makes a new directory entry durable.
Result<void> sync_parent(const std::string& path) {
    std::string parent = std::filesystem::path(path).parent_path();
    FileDescriptor fd(::open(parent.empty() ? "." : parent.c_str(), O_RDONLY | O_CLOEXEC));
    if (fd.get() < 0 || fsync(fd.get()) != 0) return open_failed(path, errno);
    return {};
}

// The file appears under its name only when its space is reserved.
Task<Result<void>> create_file(DiskOperations* operations, std::string path, uint64_t bytes) {
    std::string making = path + ".making";
    unlink(making.c_str());
    FileDescriptor fd(
        ::open(making.c_str(), O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, S_IRUSR | S_IWUSR));
    if (fd.get() < 0) co_return open_failed(path, errno);
    int error = co_await allocate(operations, fd.get(), 0, 0, bytes);
    if (error == 0) error = fsync(fd.get()) == 0 ? 0 : errno;
    if (error == 0) error = link(making.c_str(), path.c_str()) == 0 ? 0 : errno;
    unlink(making.c_str());
    if (error == ENOSPC || error == EFBIG || error == EDQUOT) {
        co_return fail(Code::no_space,
                       "{} cannot be created with {} bytes: {}; name a smaller size or another "
                       "file system",
                       path, bytes, std::strerror(error));
    }
    if (error == EOPNOTSUPP) {
        co_return fail(Code::unsupported, "{} lies on a file system that cannot reserve space",
                       path);
    }
    if (error != 0) co_return open_failed(path, error);
    co_return sync_parent(path);
}

}  // namespace

std::string lock_holder_of(int fd) {
    struct stat info{};
    if (fstat(fd, &info) != 0) return "another process";
    std::string key =
        fmt::format("{:02x}:{:02x}:{}", major(info.st_dev), minor(info.st_dev), info.st_ino);
    std::ifstream locks("/proc/locks");
    for (std::string line; std::getline(locks, line);) {
        // 1: FLOCK  ADVISORY  WRITE 1234 fe:00:5678 0 EOF
        std::istringstream fields(line);
        std::string number, type, strength, access, pid, file;
        fields >> number >> type >> strength >> access >> pid >> file;
        if (type != "FLOCK" || file != key) continue;
        std::ifstream comm("/proc/" + pid + "/comm");
        std::string name;
        std::getline(comm, name);
        return name.empty() ? "process " + pid : fmt::format("process {} ({})", pid, name);
    }
    return "another process";
}

UringDisks::UringDisks(Core* core)
    : core_(core), operations_(std::make_shared<DiskOperations>(core)) {
    core->keep(operations_);
}

UringDisks::~UringDisks() = default;

Task<Result<std::unique_ptr<Disk>>> UringDisks::open(std::string path, DiskOptions options) {
    struct stat info{};
    if (options.create_bytes != 0 && stat(path.c_str(), &info) != 0 && errno == ENOENT) {
        uint64_t bytes = round_up(options.create_bytes, kBlockBytes);
        CO_TRY(co_await create_file(operations_.get(), path, bytes));
    }
    CO_TRY_ASSIGN(OpenedDisk opened, open_existing(path));
    co_return std::make_unique<UringDisk>(core_, operations_, std::move(opened.fd), opened.kind,
                                          opened.size_bytes, std::move(path));
}

}  // namespace peplos::runtime
