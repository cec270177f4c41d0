#include "attach/fuse_protocol.h"

#include <algorithm>
#include <cerrno>
#include <sys/stat.h>

#include "base/units.h"

namespace peplos::attach {

namespace {

FuseOp op_of(uint32_t opcode) {
    switch (opcode) {
        case FUSE_INIT:
            return FuseOp::init;
        case FUSE_GETATTR:
            return FuseOp::getattr;
        case FUSE_SETATTR:
            return FuseOp::setattr;
        case FUSE_OPEN:
            return FuseOp::open;
        case FUSE_RELEASE:
            return FuseOp::release;
        case FUSE_READ:
            return FuseOp::read;
        case FUSE_WRITE:
            return FuseOp::write;
        case FUSE_FLUSH:
            return FuseOp::flush;
        case FUSE_FALLOCATE:
            return FuseOp::fallocate;
        case FUSE_STATFS:
            return FuseOp::statfs;
        case FUSE_FORGET:
        case FUSE_BATCH_FORGET:
        case FUSE_INTERRUPT:
            return FuseOp::forget;
        case FUSE_DESTROY:
            return FuseOp::destroy;
        default:
            return FuseOp::unsupported;
    }
}

// Fills the fields that belong to `request.op`; false when the request is too short for them.
bool decode_body(ByteReader& reader, size_t total, FuseRequest& request) {
    switch (request.op) {
        case FuseOp::init: {
            // Kernels before 7.36 send 16 bytes, later ones 64; we use the first 20.
            request.init.major = reader.read<uint32_t>();
            request.init.minor = reader.read<uint32_t>();
            request.init.max_readahead = reader.read<uint32_t>();
            request.init.flags = reader.read<uint32_t>();
            bool ok = reader.ok();
            if (reader.remaining() >= sizeof(uint32_t)) {
                request.init.flags2 = reader.read<uint32_t>();
            }
            return ok;
        }
        case FuseOp::setattr: {
            request.setattr_valid = reader.read<uint32_t>();
            reader.read<uint32_t>();
            reader.read<uint64_t>();
            request.setattr_size = reader.read<uint64_t>();
            return reader.ok() && total >= sizeof(fuse_in_header) + sizeof(fuse_setattr_in);
        }
        case FuseOp::read: {
            auto body = reader.read<fuse_read_in>();
            request.offset = body.offset;
            request.bytes = body.size;
            return reader.ok() && body.size <= kFuseIoBytesMax;
        }
        case FuseOp::write: {
            auto body = reader.read<fuse_write_in>();
            request.offset = body.offset;
            request.bytes = body.size;
            return reader.ok() && body.size <= kFuseIoBytesMax &&
                   total == kRequestHeadBytes + body.size;
        }
        case FuseOp::fallocate: {
            auto body = reader.read<fuse_fallocate_in>();
            request.offset = body.offset;
            request.bytes = body.length;
            request.mode = body.mode;
            return reader.ok();
        }
        default:
            return true;
    }
}

}  // namespace

Result<FuseRequest> decode_request(Bytes head, size_t total) {
    ByteReader reader(head);
    auto header = reader.read<fuse_in_header>();
    if (!reader.ok() || header.len != total || head.size() != std::min(total, kRequestHeadBytes)) {
        return fail(Code::corrupt,
                    "the kernel sent a FUSE request whose length ({} bytes) does not match its "
                    "header ({}); the connection is given up",
                    total, header.len);
    }
    FuseRequest request;
    request.opcode = header.opcode;
    request.op = op_of(header.opcode);
    request.unique = header.unique;
    request.resent = (header.unique & kUniqueResend) != 0;
    if (!decode_body(reader, total, request)) {
        return fail(Code::corrupt,
                    "the kernel sent a malformed FUSE request (opcode {}, {} bytes); the "
                    "connection is given up",
                    header.opcode, total);
    }
    return request;
}

bool offers_resend(const fuse_init_in& kernel) {
    uint64_t flags = (uint64_t{kernel.flags2} << 32) | kernel.flags;
    return kernel.minor >= kMinorOfResend && (flags & kInitHasResend) != 0;
}

Result<fuse_init_out> negotiate(const fuse_init_in& kernel) {
    if (kernel.major != FUSE_KERNEL_VERSION || kernel.minor < 31) {
        return fail(Code::unsupported,
                    "the kernel speaks FUSE {}.{}, Peplos needs 7.31 or later: use a newer kernel",
                    kernel.major, kernel.minor);
    }
    fuse_init_out out{};
    out.major = FUSE_KERNEL_VERSION;
    out.minor = std::min(kernel.minor, kMinorOfResend);
    out.max_readahead = kernel.max_readahead;
    uint64_t wanted = FUSE_ASYNC_READ | FUSE_BIG_WRITES | FUSE_ASYNC_DIO | FUSE_MAX_PAGES |
                      FUSE_INIT_EXT | kInitHasResend;
    uint64_t offered = (uint64_t{kernel.flags2} << 32) | kernel.flags;
    uint64_t flags = wanted & offered;
    out.flags = static_cast<uint32_t>(flags);
    out.flags2 = static_cast<uint32_t>(flags >> 32);
    out.max_background = kFuseBackgroundMax;
    out.congestion_threshold = kFuseBackgroundMax;
    out.max_write = kFuseIoBytesMax;
    out.max_pages = kFuseIoBytesMax / kBlockBytes;
    out.time_gran = 1;
    return out;
}

fuse_attr file_attributes(uint64_t size_bytes) {
    fuse_attr attr{};
    attr.ino = FUSE_ROOT_ID;
    attr.size = size_bytes;
    attr.blocks = size_bytes / 512;
    attr.mode = S_IFREG | 0600;
    attr.nlink = 1;
    attr.blksize = kBlockBytes;
    return attr;
}

int errno_of(Code code) {
    switch (code) {
        case Code::no_space:
            return ENOSPC;
        case Code::invalid_argument:
            return EINVAL;
        case Code::unsupported:
            return EOPNOTSUPP;
        case Code::fenced:
            return ESTALE;
        case Code::permission_denied:
            return EPERM;
        case Code::busy:
        case Code::unavailable:
        case Code::conflict:
        case Code::not_found:
        case Code::already_exists:
        case Code::corrupt:
        case Code::io_error:
        case Code::outcome_unknown:
        case Code::stopping:
            return EIO;
    }
    return EIO;
}

}  // namespace peplos::attach
