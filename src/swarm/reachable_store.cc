#include "swarm/reachable_store.h"

namespace peplos::swarm {

namespace {

Error away() {
    return Error(Code::unavailable, "this node does not reach the control store");
}

class LateWatch final : public control::Watch {
  public:
    LateWatch(runtime::Env env, std::unique_ptr<control::Watch> watch, StoreWay& way)
        : env_(env), watch_(std::move(watch)), way_(way) {}

    Task<Result<std::vector<control::Event>>> next() override {
        if (!way_.is_open) co_await env_.clock.sleep_for(std::chrono::milliseconds(200));
        if (!way_.is_open && !is_closed_) co_return fail(away());
        auto events = co_await watch_->next();
        if (auto lag = way_.watch_lag_max.count(); lag > 0) {
            Duration late(static_cast<int64_t>(way_.random.pick(static_cast<uint64_t>(lag))));
            co_await env_.clock.sleep_for(late);
        }
        if (events && !way_.is_open) co_return fail(away());
        co_return events;
    }
    void close() override {
        is_closed_ = true;
        watch_->close();
    }

  private:
    runtime::Env env_;
    std::unique_ptr<control::Watch> watch_;
    StoreWay& way_;
    bool is_closed_ = false;
};

}  // namespace

Task<void> ReachableStore::linger() {
    if (way_.delay_max.count() <= 0) co_return;
    auto bound = static_cast<uint64_t>(way_.delay_max.count());
    co_await env_.clock.sleep_for(Duration(static_cast<int64_t>(way_.random.pick(bound))));
}

Task<Result<void>> ReachableStore::arrive() {
    co_await linger();
    bool is_cut = way_.unavailable_permille != 0 && way_.random.chance(way_.unavailable_permille);
    if (!way_.is_open || is_cut) co_return fail(away());
    co_return Result<void>();
}

template <typename T>
Task<Result<T>> ReachableStore::come_back(Result<T> answer) {
    co_await linger();
    if (!way_.is_open) co_return fail(away());
    co_return answer;
}

Task<Result<std::optional<control::KeyValue>>> ReachableStore::get(std::string key) {
    CO_TRY(co_await arrive());
    co_return co_await come_back(co_await store_.get(std::move(key)));
}

Task<Result<control::Page>> ReachableStore::list(control::ListRequest request) {
    CO_TRY(co_await arrive());
    co_return co_await come_back(co_await store_.list(std::move(request)));
}

Task<Result<control::Generation>> ReachableStore::generation() {
    CO_TRY(co_await arrive());
    co_return co_await come_back(co_await store_.generation());
}

Task<Result<control::Revision>> ReachableStore::compare_and_set(control::Transaction transaction,
                                                                control::Generation demanded) {
    CO_TRY(co_await arrive());
    Error unknown(Code::outcome_unknown, "the control store's answer was lost");
    bool is_unknown = way_.unknown_permille != 0 && way_.random.chance(way_.unknown_permille);
    if (is_unknown && way_.random.chance(500)) co_return fail(std::move(unknown));
    auto applied = co_await store_.compare_and_set(std::move(transaction), demanded);
    co_await linger();
    if (is_unknown || !way_.is_open) co_return fail(std::move(unknown));
    co_return applied;
}

Task<Result<std::unique_ptr<control::Watch>>> ReachableStore::watch(std::string prefix,
                                                                    control::Revision from) {
    CO_TRY(co_await arrive());
    CO_TRY_ASSIGN(auto watch, co_await store_.watch(std::move(prefix), from));
    std::unique_ptr<control::Watch> late =
        std::make_unique<LateWatch>(env_, std::move(watch), way_);
    co_return late;
}

}  // namespace peplos::swarm
