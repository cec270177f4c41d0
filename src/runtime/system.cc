#include "runtime/system.h"

#include <boost/asio/redirect_error.hpp>
#include <cerrno>
#include <cstring>
#include <sys/random.h>
#include <time.h>

#include "base/check.h"
#include "runtime/boot_clock.h"

namespace peplos::runtime {

Time BootClock::now() {
    timespec time{};
    CHECK(clock_gettime(CLOCK_BOOTTIME, &time) == 0);
    return Time(std::chrono::seconds(time.tv_sec) + std::chrono::nanoseconds(time.tv_nsec));
}

Time SystemClock::now() {
    return BootClock::now();
}

WallTime SystemClock::wall_now() {
    return std::chrono::system_clock::now();
}

Task<void> SystemClock::sleep_until(Time deadline) {
    Executor executor = co_await asio::this_coro::executor;
    BootTimer timer(executor, deadline);
    boost::system::error_code ignored;
    co_await timer.async_wait(asio::redirect_error(kUseTask, ignored));
}

void SystemRng::fill(MutableBytes out) {
    while (!out.empty()) {
        if (used_ == stock_.size()) {
            // Up to 256 bytes come whole and without a signal in between (getrandom(2)).
            ssize_t got = getrandom(stock_.data(), stock_.size(), 0);
            CHECK(got == static_cast<ssize_t>(stock_.size()), "getrandom: {}",
                  std::strerror(errno));
            used_ = 0;
        }
        size_t count = std::min(out.size(), stock_.size() - used_);
        std::memcpy(out.data(), stock_.data() + used_, count);
        // What was handed out is not kept.
        std::memset(stock_.data() + used_, 0, count);
        used_ += count;
        out = out.subspan(count);
    }
}

}  // namespace peplos::runtime
