#pragma once

#include <array>
#include <cstdint>
#include <linux/fuse.h>

#include "base/bytes.h"
#include "base/result.h"

// The part of the FUSE kernel protocol (include/uapi/linux/fuse.h, version 7) that a file system
// with exactly one file needs. The root of the mount is that file, so no name is ever looked up.
namespace peplos::attach {

// Newer than the header this is built with; from the kernel's public ABI, 7.40 (Linux 6.9).
inline constexpr uint32_t kNotifyResend = 7;
inline constexpr uint64_t kInitHasResend = uint64_t{1} << 39;
// Set by the kernel in the `unique` of a request that it hands out a second time; the answer
// carries it too.
inline constexpr uint64_t kUniqueResend = uint64_t{1} << 63;
inline constexpr uint32_t kMinorOfResend = 40;
inline constexpr uint32_t kOpcodeStatx = 52;

// The largest payload of one request, in both directions: max_pages (256) of 4 KiB.
inline constexpr uint32_t kFuseIoBytesMax = 1u << 20;
// The kernel's own bounds on what it keeps in flight per connection (the default of 12 would
// starve the loop device, whose direct I/O counts as background requests).
inline constexpr uint16_t kFuseBackgroundMax = 512;

// A write's header and body: what is read in front of the payload, so that the payload lands at
// the start of an aligned buffer. Every field that we use of any other request lies inside too.
inline constexpr size_t kRequestHeadBytes = sizeof(fuse_in_header) + sizeof(fuse_write_in);
static_assert(kRequestHeadBytes == 80);
// Room for one request: the head, then the payload or the rest of a rarer request.
inline constexpr size_t kRequestTailBytes = kFuseIoBytesMax + 4096;

enum class FuseOp : uint8_t {
    init,
    getattr,
    setattr,
    open,
    release,
    read,
    write,
    flush,
    fallocate,
    statfs,
    forget,  // and batch_forget, interrupt: nothing is answered
    destroy,
    unsupported,  // answered with ENOSYS, which the kernel remembers
};

// One request, its fields checked against its length. Ranges are as the caller sent them.
struct FuseRequest {
    FuseOp op = FuseOp::unsupported;
    uint32_t opcode = 0;
    uint64_t unique = 0;
    bool resent = false;
    uint64_t offset = 0;  // read, write, fallocate
    uint64_t bytes = 0;   // read, write, fallocate
    uint32_t mode = 0;    // fallocate: FALLOC_FL_...
    uint32_t setattr_valid = 0;
    uint64_t setattr_size = 0;
    fuse_init_in init{};
};

// Decodes what one read(2) of the device gave: `head` holds its first bytes (at most
// kRequestHeadBytes), `total` is how long it was. Errors: corrupt (the kernel would have to be
// broken; the connection is given up).
Result<FuseRequest> decode_request(Bytes head, size_t total);

// The answer to INIT. Errors: unsupported (protocol 7.31 or older: no large requests).
Result<fuse_init_out> negotiate(const fuse_init_in& kernel);
// Whether this kernel hands unanswered requests out again (FUSE_NOTIFY_RESEND).
bool offers_resend(const fuse_init_in& kernel);

fuse_attr file_attributes(uint64_t size_bytes);

// The one table from our codes to what the kernel's block layer sees. ENOSPC reaches file systems
// as "no space", everything else as an I/O error. Returns a positive errno.
int errno_of(Code code);

}  // namespace peplos::attach
