#pragma once

#include <deque>
#include <functional>
#include <memory>
#include <sys/uio.h>
#include <vector>

#include "base/buffer.h"
#include "runtime/core.h"

namespace peplos::runtime {

enum class DiskVerb : uint8_t { read, write, write_durable, sync, allocate };

class DiskOperations;

// One operation of a disk on a core's ring: a record from a pool, which holds the buffers and the
// waiter until the kernel is done.
struct DiskOperation : RingOperation {
    DiskOperations* pool = nullptr;
    DiskVerb verb = DiskVerb::read;
    int fd = -1;
    // For `allocate`: the mode of fallocate(2).
    int mode = 0;
    uint64_t offset = 0;
    uint64_t bytes_left = 0;
    uint32_t attempts_left = 0;
    Buffer buffer;
    std::vector<Buffer> buffers;
    std::vector<iovec> vectors;
    // The first of `vectors` that is not done.
    size_t vector_next = 0;
    // 0, or an errno.
    std::move_only_function<void(int)> done;
};

// The records of one core, reused: no allocation per operation.
class DiskOperations {
  public:
    explicit DiskOperations(Core* core) : core_(core) {}
    DiskOperations(const DiskOperations&) = delete;
    DiskOperations& operator=(const DiskOperations&) = delete;

    // A record to be filled and start()ed.
    DiskOperation* take();
    // Prepares its ring entry; submitted at the end of the loop's turn.
    void start(DiskOperation* operation);

  private:
    static void complete(RingOperation* base, int32_t result);
    static void drop(RingOperation* base);
    // Takes `bytes` that were transferred off what is left.
    static void advance(DiskOperation& operation, uint64_t bytes);
    // Empties the record and gives it back; returns the waiter.
    std::move_only_function<void(int)> release(DiskOperation* operation);

    Core* core_;
    std::deque<DiskOperation> records_;
    std::vector<DiskOperation*> idle_;
};

}  // namespace peplos::runtime
