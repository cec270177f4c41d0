#pragma once

#include <cstdint>

#include "base/buffer.h"
#include "base/result.h"
#include "runtime/task.h"

namespace peplos::volume {

// A virtual disk as the doors see it. Lives on one executor; every call is made there.
//
// Offsets and sizes are multiples of sector_bytes() and lie inside size_bytes(), at most
// limits::kIoBytesMax per read or write (zero() takes any length). Calls may overlap in time; of
// overlapping writes one wins per block.
// A resolved write or zero is durable and survives a crash: there is no volatile cache behind it.
//
// Errors: invalid_argument (range), no_space (a write could not be given thin space; reads, zero()
// and trims always work), io_error (a device failed), corrupt (the stored bytes do not match and no
// good copy exists; never returned as data), fenced (another owner exists), stopping,
// outcome_unknown.
class BlockDevice {
  public:
    virtual ~BlockDevice() = default;

    virtual uint64_t size_bytes() const = 0;
    // 512 or 4096; fixed at creation.
    virtual uint32_t sector_bytes() const = 0;

    // Fills `into`; unwritten and freed blocks read as zeros.
    virtual runtime::Task<Result<void>> read(uint64_t offset, Buffer into) = 0;
    // The bytes must not change until the call resolves; they may be kept (shared) afterwards.
    virtual runtime::Task<Result<void>> write(uint64_t offset, Buffer from) = 0;
    // Makes the range read as zeros and frees its space (trim, unmap, punch hole, write zeroes).
    virtual runtime::Task<Result<void>> zero(uint64_t offset, uint64_t bytes) = 0;
    // Resolves when every write resolved before the call is durable: at once.
    virtual runtime::Task<Result<void>> flush() = 0;
};

}  // namespace peplos::volume
