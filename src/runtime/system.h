#pragma once

#include <array>

#include "runtime/core.h"
#include "runtime/env.h"
#include "runtime/tcp_net.h"
#include "runtime/uring_disk.h"

// The real seams. Storage rooms never see this header.
namespace peplos::runtime {

// Works on every executor of an io_context; has no state.
class SystemClock final : public Clock {
  public:
    Time now() override;
    WallTime wall_now() override;
    Task<void> sleep_until(Time deadline) override;
};

// getrandom(2), fetched in blocks. Belongs to one thread.
class SystemRng final : public Rng {
  public:
    void fill(MutableBytes out) override;

  private:
    std::array<std::byte, 256> stock_;
    size_t used_ = sizeof(stock_);
};

// The seams of one core.
class System {
  public:
    explicit System(Core* core)
        : disks_(core), env_{core->executor(), clock_, rng_, disks_, net_} {}
    System(const System&) = delete;
    System& operator=(const System&) = delete;
    Env& env() { return env_; }

  private:
    SystemClock clock_;
    SystemRng rng_;
    UringDisks disks_;
    TcpNet net_;
    Env env_;
};

}  // namespace peplos::runtime
