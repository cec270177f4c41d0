#pragma once

#include "base/units.h"
#include "runtime/task.h"

namespace peplos::runtime {

// The seam for time.
class Clock {
  public:
    virtual ~Clock() = default;
    // CLOCK_BOOTTIME: never goes back, counts suspend.
    virtual Time now() = 0;
    // Civil time, for records and people; may jump.
    virtual WallTime wall_now() = 0;
    // Suspends the caller; resumes it on its own executor, not before `deadline`.
    virtual Task<void> sleep_until(Time deadline) = 0;
    Task<void> sleep_for(Duration duration) { co_await sleep_until(now() + duration); }
};

}  // namespace peplos::runtime
