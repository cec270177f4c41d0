#include "runtime/ring.h"

#include <cstring>
#include <sys/syscall.h>
#include <unistd.h>

#include "base/check.h"

namespace peplos::runtime {
namespace {

constexpr unsigned kReapBatch = 256;
// Completions that the loop has not taken yet wait here; more are kept by the kernel.
constexpr uint32_t kCompletionEntriesPerEntry = 4;

}  // namespace

Result<std::unique_ptr<Ring>> Ring::make(uint32_t entries) {
    std::unique_ptr<Ring> ring(new Ring);
    TRY(ring->set_up(entries));
    return ring;
}

// The best set of flags that the kernel knows: the first needs Linux 6.1, the second 5.19.
Result<void> Ring::set_up(uint32_t entries) {
    const unsigned kFlagSets[] = {
        IORING_SETUP_SINGLE_ISSUER | IORING_SETUP_DEFER_TASKRUN | IORING_SETUP_TASKRUN_FLAG |
            IORING_SETUP_R_DISABLED,
        IORING_SETUP_COOP_TASKRUN | IORING_SETUP_TASKRUN_FLAG | IORING_SETUP_R_DISABLED,
        IORING_SETUP_R_DISABLED,
    };
    int error = 0;
    for (unsigned flags : kFlagSets) {
        io_uring_params params{};
        params.flags = flags | IORING_SETUP_CQSIZE | IORING_SETUP_CLAMP;
        params.cq_entries = entries * kCompletionEntriesPerEntry;
        error = -io_uring_queue_init_params(entries, &ring_, &params);
        if (error != EINVAL) break;
    }
    if (error != 0) {
        return fail(Code::unsupported,
                    "io_uring cannot be set up: {}: Peplos needs Linux 5.15 or later with "
                    "kernel.io_uring_disabled=0, and a container that allows io_uring_setup",
                    std::strerror(error));
    }
    made_ = true;
    finished_.reserve(kReapBatch);
    return {};
}

Ring::~Ring() {
    CHECK(in_flight_ == 0, "{} operations are in flight on a ring that goes away", in_flight_);
    if (made_) io_uring_queue_exit(&ring_);
}

void Ring::enable() {
    if (std::exchange(enabled_, true)) return;
    // liburing 2.3 declares io_uring_enable_rings() without exporting it.
    long code =
        syscall(__NR_io_uring_register, ring_.ring_fd, IORING_REGISTER_ENABLE_RINGS, nullptr, 0);
    CHECK(code == 0, "io_uring cannot be enabled: {}", std::strerror(errno));
}

io_uring_sqe* Ring::next_entry() {
    io_uring_sqe* entry = io_uring_get_sqe(&ring_);
    while (entry == nullptr) {
        submit();
        entry = io_uring_get_sqe(&ring_);
    }
    return entry;
}

// EAGAIN and EBUSY mean that the kernel is short of memory or that completions wait to be taken:
// the entries stay queued for the next turn.
void Ring::submit() {
    while (enabled_ && has_unsubmitted()) {
        int code = io_uring_submit(&ring_);
        if (code == -EINTR) continue;
        if (code == -EAGAIN || code == -EBUSY) {
            io_uring_get_events(&ring_);
            continue;
        }
        CHECK(code >= 0, "io_uring_submit: {}", std::strerror(-code));
    }
}

void Ring::submit_and_wait() {
    CHECK(enabled_ && in_flight_ != 0, "nothing would end the sleep");
    int code = io_uring_submit_and_wait(&ring_, 1);
    CHECK(code >= 0 || code == -EINTR || code == -EAGAIN || code == -EBUSY,
          "io_uring_submit_and_wait: {}", std::strerror(-code));
    // Completions that wait to be taken, or no memory: the entries stay queued.
    if (code == -EAGAIN || code == -EBUSY) io_uring_get_events(&ring_);
}

void Ring::cancel(RingOperation* operation) {
    io_uring_sqe* entry = next_entry();
    io_uring_prep_cancel(entry, operation, 0);
    // Its own completion is nobody's.
    io_uring_sqe_set_data(entry, nullptr);
}

bool Ring::has_finished() const {
    if (io_uring_cq_ready(&ring_) != 0) return true;
    unsigned flags = __atomic_load_n(ring_.sq.kflags, __ATOMIC_ACQUIRE);
    return (flags & (IORING_SQ_CQ_OVERFLOW | IORING_SQ_TASKRUN)) != 0;
}

// Completing an operation may prepare others and may run any task; so the ring is left first.
size_t Ring::reap() {
    if (!has_finished()) return 0;
    io_uring_cqe* entries[kReapBatch];
    unsigned count = io_uring_peek_batch_cqe(&ring_, entries, kReapBatch);
    finished_.clear();
    for (unsigned i = 0; i < count; ++i) {
        auto* operation = static_cast<RingOperation*>(io_uring_cqe_get_data(entries[i]));
        if (operation == nullptr) continue;
        operation->result = entries[i]->res;
        ended(operation);
        finished_.push_back(operation);
    }
    io_uring_cq_advance(&ring_, count);
    for (RingOperation* operation : finished_)
        operation->complete(operation, operation->result);
    return count;
}

void Ring::wait_for_all() {
    if (in_flight_ == 0) return;
    enable();
    for (RingOperation* operation : endless_)
        cancel(operation);
    submit();
    while (in_flight_ != 0) {
        io_uring_cqe* entry = nullptr;
        int code = io_uring_wait_cqe(&ring_, &entry);
        if (code == -EINTR) continue;
        CHECK(code == 0, "io_uring_wait_cqe: {}", std::strerror(-code));
        auto* operation = static_cast<RingOperation*>(io_uring_cqe_get_data(entry));
        io_uring_cqe_seen(&ring_, entry);
        if (operation == nullptr) continue;
        ended(operation);
        operation->drop(operation);
    }
}

}  // namespace peplos::runtime
