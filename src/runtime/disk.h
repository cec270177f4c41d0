#pragma once

#include <memory>
#include <string>
#include <vector>

#include "base/buffer.h"
#include "base/result.h"
#include "runtime/task.h"

namespace peplos::runtime {

// What a write promises when it resolves.
enum class Durability : uint8_t {
    volatile_,  // the device has it; a power cut before the next sync() may drop, tear or reorder
                // it
    durable,    // on stable media (RWF_DSYNC), as well as the file's metadata it needs
};

// The seam for storage: one preallocated file or block device, opened O_DIRECT and locked against
// every other opener (flock on a file, O_EXCL on a block device).
//
// Offsets and sizes are multiples of kBlockBytes. Operations may be submitted concurrently and
// complete in any order; overlapping ones in flight are the caller's bug. An operation holds its
// buffers until it completes, whatever happens to the waiting task.
//
// Errors: io_error (the device must leave service; neither writes nor syncs are ever retried),
// invalid_argument (outside the device).
class Disk {
  public:
    virtual ~Disk() = default;
    virtual uint64_t size_bytes() const = 0;
    // Path or name, for messages.
    virtual const std::string& name() const = 0;

    // Fills `into`.
    virtual Task<Result<void>> read(uint64_t offset, Buffer into) = 0;
    // Fills the buffers one after the other from one contiguous range.
    virtual Task<Result<void>> read_vector(uint64_t offset, std::vector<Buffer> into) = 0;
    virtual Task<Result<void>> write(uint64_t offset, Buffer from, Durability durability) = 0;
    // Gathers at most 1,024 buffers into one contiguous write.
    virtual Task<Result<void>> write_vector(uint64_t offset, std::vector<Buffer> from,
                                            Durability durability) = 0;
    // Makes durable every write that resolved before the call (fdatasync).
    virtual Task<Result<void>> sync() = 0;
    // Writes zeros, durably; cheaper than write() where the device can.
    virtual Task<Result<void>> zero(uint64_t offset, uint64_t bytes) = 0;
};

struct DiskOptions {
    // Create the file with this size (fallocate, fails with no_space) when it does not exist.
    uint64_t create_bytes = 0;
};

// The seam for finding disks.
class Disks {
  public:
    virtual ~Disks() = default;
    // Errors: not_found, busy (another process holds it: named), permission_denied, no_space,
    // invalid_argument (not a file or block device, or too small), unsupported (no O_DIRECT).
    virtual Task<Result<std::unique_ptr<Disk>>> open(std::string path, DiskOptions options) = 0;
};

}  // namespace peplos::runtime
