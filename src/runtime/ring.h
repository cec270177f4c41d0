#pragma once

#include <cstdint>
#include <liburing.h>
#include <memory>
#include <vector>

#include "base/result.h"

namespace peplos::runtime {

// One operation on a Ring. It and the memory that it points to exist until one of its two functions
// was called, exactly once.
struct RingOperation {
    // The kernel's result: >= 0, or -errno. Called from the loop, never while the ring is reaped.
    void (*complete)(RingOperation* operation, int32_t result) = nullptr;
    // The core is going away: destroys what the operation holds, resumes nobody.
    void (*drop)(RingOperation* operation) = nullptr;
    int32_t result = 0;
    // Waits for somebody else and may never end by itself, such as a poll: cancelled when the ring
    // goes away.
    bool is_endless = false;
};

// An io_uring of one core. Every call comes from that core's thread, except construction.
//
// Entries prepared during a turn of the loop are submitted at its end, or as soon as a few have
// gathered: what the device could already do must not wait until a long turn is over.
class Ring {
  public:
    // Errors: unsupported (the kernel has no io_uring, or forbids it).
    static Result<std::unique_ptr<Ring>> make(uint32_t entries);
    Ring(const Ring&) = delete;
    Ring& operator=(const Ring&) = delete;
    // Requires: nothing is in flight (wait_for_all()).
    ~Ring();

    // An entry for `operation`, to be filled with an io_uring_prep_* function, which comes first,
    // and then attach(). Submits what is queued when the queue is full.
    io_uring_sqe* next_entry();
    void attach(io_uring_sqe* entry, RingOperation* operation) {
        io_uring_sqe_set_data(entry, operation);
        ++in_flight_;
        if (operation->is_endless) endless_.push_back(operation);
        if (io_uring_sq_ready(&ring_) >= kSubmitBatch) submit();
    }
    // Asks the kernel to end the operation now; it completes as ever, with -ECANCELED if this
    // came in time.
    void cancel(RingOperation* operation);

    // The first call binds the ring to the calling thread.
    void enable();
    void submit();
    // Submits, and sleeps until something has finished or a signal arrived.
    void submit_and_wait();
    bool has_unsubmitted() const { return io_uring_sq_ready(&ring_) != 0; }
    // Takes finished operations off the ring and completes them. Returns how many.
    size_t reap();
    // Something has finished and waits for reap(): reads two words of shared memory.
    bool has_finished() const;
    size_t in_flight_count() const { return in_flight_; }
    // Cancels what is endless, and blocks until everything in flight has finished; drops it instead
    // of completing it. On the thread that enabled the ring.
    void wait_for_all();

  private:
    // Large enough for one notification of the device to serve several entries.
    static constexpr unsigned kSubmitBatch = 4;

    Ring() = default;
    // The kernel is done with it.
    void ended(RingOperation* operation) {
        --in_flight_;
        if (operation->is_endless) std::erase(endless_, operation);
    }
    Result<void> set_up(uint32_t entries);

    io_uring ring_{};
    bool made_ = false;
    bool enabled_ = false;
    size_t in_flight_ = 0;
    std::vector<RingOperation*> endless_;
    std::vector<RingOperation*> finished_;
};

}  // namespace peplos::runtime
