#pragma once

#include <memory>
#include <string>

#include "runtime/core.h"
#include "runtime/disk.h"

namespace peplos::runtime {

class DiskOperations;

// The Disks seam of one core: files and block devices through its io_uring, O_DIRECT.
//
// A disk and its operations belong to that core's thread. Opening blocks that thread for a few
// system calls; creating a file's space does not.
class UringDisks final : public Disks {
  public:
    explicit UringDisks(Core* core);
    UringDisks(const UringDisks&) = delete;
    UringDisks& operator=(const UringDisks&) = delete;
    ~UringDisks() override;

    // A regular file is locked with flock(2), a block device is opened O_EXCL: both end with the
    // process, whatever ends it, once the last of its I/O has landed.
    Task<Result<std::unique_ptr<Disk>>> open(std::string path, DiskOptions options) override;

  private:
    Core* core_;
    // Shared with the disks and the core: it lives until the last operation has ended.
    std::shared_ptr<DiskOperations> operations_;
};

// The process that holds a flock on the file behind `fd`, as "process 1234 (name)"; "another
// process" where /proc/locks does not tell.
std::string lock_holder_of(int fd);

}  // namespace peplos::runtime
