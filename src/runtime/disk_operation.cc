#include "runtime/disk_operation.h"

#include <cerrno>

#include "base/check.h"

namespace peplos::runtime {
namespace {

// Interrupted or refused attempts of one operation before it counts as failed.
constexpr uint32_t kAttemptsMax = 1000;
// Transfers of this size do not wait for others to be submitted with.
constexpr uint64_t kSubmitAloneBytes = 64 * kKiB;

}  // namespace

DiskOperation* DiskOperations::take() {
    if (idle_.empty()) {
        records_.emplace_back();
        idle_.push_back(&records_.back());
    }
    DiskOperation* operation = idle_.back();
    idle_.pop_back();
    operation->complete = complete;
    operation->drop = drop;
    operation->pool = this;
    operation->attempts_left = kAttemptsMax;
    return operation;
}

void DiskOperations::start(DiskOperation* operation) {
    io_uring_sqe* entry = core_->ring().next_entry();
    DiskOperation& op = *operation;
    auto bytes = static_cast<unsigned>(op.bytes_left);
    switch (op.verb) {
        case DiskVerb::read:
            if (op.vectors.empty()) {
                io_uring_prep_read(entry, op.fd, op.buffer.data(), bytes, op.offset);
            } else {
                io_uring_prep_readv(entry, op.fd, &op.vectors[op.vector_next],
                                    static_cast<unsigned>(op.vectors.size() - op.vector_next),
                                    op.offset);
            }
            break;
        case DiskVerb::write:
        case DiskVerb::write_durable: {
            if (op.vectors.empty()) {
                io_uring_prep_write(entry, op.fd, op.buffer.data(), bytes, op.offset);
            } else {
                io_uring_prep_writev(entry, op.fd, &op.vectors[op.vector_next],
                                     static_cast<unsigned>(op.vectors.size() - op.vector_next),
                                     op.offset);
            }
            if (op.verb == DiskVerb::write_durable) entry->rw_flags = RWF_DSYNC;
            break;
        }
        case DiskVerb::sync:
            io_uring_prep_fsync(entry, op.fd, IORING_FSYNC_DATASYNC);
            break;
        case DiskVerb::allocate:
            io_uring_prep_fallocate(entry, op.fd, op.mode, static_cast<off_t>(op.offset),
                                    static_cast<off_t>(op.bytes_left));
            break;
    }
    core_->ring().attach(entry, operation);
    // While the device moves this much, the notification costs nothing.
    if (op.bytes_left >= kSubmitAloneBytes) core_->ring().submit();
}

void DiskOperations::advance(DiskOperation& op, uint64_t bytes) {
    op.offset += bytes;
    op.bytes_left -= bytes;
    if (op.vectors.empty()) {
        op.buffer = op.buffer.slice(bytes, op.buffer.size() - bytes);
        return;
    }
    while (bytes != 0) {
        iovec& vector = op.vectors[op.vector_next];
        size_t count = std::min<size_t>(bytes, vector.iov_len);
        vector.iov_base = static_cast<std::byte*>(vector.iov_base) + count;
        vector.iov_len -= count;
        bytes -= count;
        if (vector.iov_len == 0) ++op.vector_next;
    }
}

// A transfer that ended early goes on where it ended; nothing that failed is tried again.
void DiskOperations::complete(RingOperation* base, int32_t result) {
    auto* operation = static_cast<DiskOperation*>(base);
    DiskOperations* pool = operation->pool;
    bool transfers = operation->verb <= DiskVerb::write_durable;
    if ((result == -EINTR || result == -EAGAIN) && --operation->attempts_left != 0) {
        return pool->start(operation);
    }
    if (result > 0 && transfers) {
        CHECK(static_cast<uint64_t>(result) <= operation->bytes_left);
        advance(*operation, static_cast<uint64_t>(result));
        if (operation->bytes_left != 0) return pool->start(operation);
    }
    int error = result < 0 ? -result : 0;
    // Nothing transferred: the file became shorter than it was when it was opened.
    if (result == 0 && transfers) error = ENODATA;
    auto done = pool->release(operation);
    done(error);
}

void DiskOperations::drop(RingOperation* base) {
    auto* operation = static_cast<DiskOperation*>(base);
    auto dropped = operation->pool->release(operation);
}

std::move_only_function<void(int)> DiskOperations::release(DiskOperation* operation) {
    auto done = std::move(operation->done);
    operation->done = nullptr;
    operation->buffer = {};
    operation->buffers.clear();
    operation->vectors.clear();
    operation->vector_next = 0;
    idle_.push_back(operation);
    return done;
}

}  // namespace peplos::runtime
