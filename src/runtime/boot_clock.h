#pragma once

#include <boost/asio/basic_waitable_timer.hpp>

#include "base/units.h"
#include "runtime/task.h"

namespace peplos::runtime {

// CLOCK_BOOTTIME in the form that Asio's timers want. A timer never fires early; after a suspend it
// may fire late by as long as the machine slept.
struct BootClock {
    using duration = Duration;
    using rep = duration::rep;
    using period = duration::period;
    using time_point = Time;
    static constexpr bool is_steady = true;
    static time_point now();
};

using BootTimer = asio::basic_waitable_timer<BootClock, asio::wait_traits<BootClock>, Executor>;

}  // namespace peplos::runtime
