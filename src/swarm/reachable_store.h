#pragma once

#include <memory>
#include <string>

#include "control/store.h"
#include "runtime/env.h"
#include "sim/random.h"

namespace peplos::swarm {

using runtime::Task;

// How one node reaches the control store; outlives its daemons.
struct StoreWay {
    explicit StoreWay(sim::Random stream) : random(stream) {}

    bool is_open = true;
    // Chances in 1,000, and delays before and after a call takes effect.
    uint32_t unavailable_permille = 0;
    uint32_t unknown_permille = 0;  // of changes: one half of them applied
    Duration delay_max{};
    // What a watch tells is so old at most.
    Duration watch_lag_max{};
    sim::Random random;
};

// The control store as the daemon of one node sees it: away, slow, late, or silent about whether a
// change was applied, while other nodes see it as it is.
class ReachableStore final : public control::Store {
  public:
    // All outlive it.
    ReachableStore(runtime::Env env, control::Store& store, StoreWay& way)
        : env_(env), store_(store), way_(way) {}

    Task<Result<std::optional<control::KeyValue>>> get(std::string key) override;
    Task<Result<control::Page>> list(control::ListRequest request) override;
    using Store::compare_and_set;
    Task<Result<control::Revision>> compare_and_set(control::Transaction transaction,
                                                    control::Generation demanded) override;
    Task<Result<control::Generation>> generation() override;
    Task<Result<std::unique_ptr<control::Watch>>> watch(std::string prefix,
                                                        control::Revision from) override;
    Task<Result<void>> stop() override { co_return Result<void>(); }

  private:
    Task<Result<void>> arrive();
    Task<void> linger();
    // The answer, unless it cannot come back any more.
    template <typename T>
    Task<Result<T>> come_back(Result<T> answer);

    runtime::Env env_;
    control::Store& store_;
    StoreWay& way_;
};

}  // namespace peplos::swarm
