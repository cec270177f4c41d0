#include "runtime/tls_net.h"

#include <algorithm>
#include <deque>
#include <list>

#include "base/check.h"
#include "base/log.h"
#include "runtime/sync.h"
#include "runtime/tls_connection.h"

namespace peplos::runtime {
namespace {

constexpr Duration kPauseAfterError = std::chrono::milliseconds(10);

// A handshake and its time limit.
struct Handshake {
    std::unique_ptr<TlsConnection> connection;
    bool is_over = false;
    bool is_late = false;
};

Task<void> limit(Clock& clock, Duration time, std::shared_ptr<Handshake> handshake) {
    co_await clock.sleep_for(time);
    if (handshake->is_over) co_return;
    handshake->is_late = true;
    handshake->connection->close();
}

// Errors: unavailable, permission_denied.
Task<Result<void>> shake_hands(Clock& clock, Duration time, std::shared_ptr<Handshake> handshake) {
    Executor executor = co_await this_executor();
    spawn(executor, limit(clock, time, handshake));
    auto done = co_await handshake->connection->handshake();
    handshake->is_over = true;
    if (handshake->is_late) {
        co_return fail(Code::unavailable, "{} did not end the TLS handshake in time",
                       handshake->connection->peer());
    }
    if (!done) handshake->connection->close();
    co_return done;
}

// What a listener and its tasks share: these may outlive it.
struct ListenState {
    std::unique_ptr<Listener> inner;
    std::shared_ptr<TlsContext> context;
    TlsLimits limits;
    std::list<std::shared_ptr<Handshake>> half_open;
    std::deque<std::unique_ptr<Connection>> ready;
    bool is_closed = false;
    WaitList news;
};

void close(ListenState& state) {
    if (std::exchange(state.is_closed, true)) return;
    state.inner->close();
    for (const auto& handshake : state.half_open)
        handshake->connection->close();
    state.ready.clear();
    state.news.wake_all();
}

Task<void> welcome(Clock& clock, std::shared_ptr<ListenState> state,
                   std::shared_ptr<Handshake> handshake) {
    auto done = co_await shake_hands(clock, state->limits.handshake_time, handshake);
    state->half_open.remove(handshake);
    if (state->is_closed) co_return;
    if (!done) {
        LOG_WARN("a connection was refused from={} why=\"{}\"", handshake->connection->peer(),
                 done.error().text());
        co_return;
    }
    if (state->ready.size() >= state->limits.waiting_max) state->ready.pop_front();
    state->ready.push_back(std::move(handshake->connection));
    state->news.wake_all();
}

Task<void> accept_all(Clock& clock, std::shared_ptr<ListenState> state) {
    Executor executor = co_await this_executor();
    while (!state->is_closed) {
        auto accepted = co_await state->inner->accept();
        if (state->is_closed) break;
        if (!accepted) {
            LOG_WARN("a connection was not accepted why=\"{}\"", accepted.error().text());
            co_await clock.sleep_for(kPauseAfterError);
            continue;
        }
        if (state->half_open.size() >= state->limits.half_open_max)
            state->half_open.front()->connection->close();
        auto handshake = std::make_shared<Handshake>();
        handshake->connection =
            std::make_unique<TlsConnection>(*state->context, TlsSide::server, std::move(*accepted));
        state->half_open.push_back(handshake);
        spawn(executor, welcome(clock, state, std::move(handshake)));
    }
}

class TlsListener final : public Listener {
  public:
    explicit TlsListener(std::shared_ptr<ListenState> state)
        : state_(std::move(state)), address_(state_->inner->address()) {}
    TlsListener(const TlsListener&) = delete;
    TlsListener& operator=(const TlsListener&) = delete;
    ~TlsListener() override { runtime::close(*state_); }

    Task<Result<std::unique_ptr<Connection>>> accept() override {
        std::shared_ptr<ListenState> state = state_;
        while (state->ready.empty() && !state->is_closed)
            co_await state->news.wait();
        if (state->is_closed) {
            co_return fail(Code::unavailable, "{} is closed", state->inner->address());
        }
        auto connection = std::move(state->ready.front());
        state->ready.pop_front();
        co_return connection;
    }
    void close() override { runtime::close(*state_); }
    const std::string& address() const override { return address_; }

  private:
    std::shared_ptr<ListenState> state_;
    std::string address_;
};

}  // namespace

Result<std::unique_ptr<TlsNet>> TlsNet::make(Net& inner, Clock& clock,
                                             const TlsCredentials& credentials, TlsLimits limits) {
    TRY_ASSIGN(OwnedSettings settings, TlsContext::settings_of(credentials));
    auto context = std::make_shared<TlsContext>(std::move(settings));
    return std::unique_ptr<TlsNet>(new TlsNet(inner, clock, std::move(context), limits));
}

TlsNet::TlsNet(Net& inner, Clock& clock, std::shared_ptr<TlsContext> context, TlsLimits limits)
    : inner_(inner), clock_(clock), context_(std::move(context)), limits_(limits) {}
TlsNet::~TlsNet() = default;

Result<void> TlsNet::reload(const TlsCredentials& credentials) {
    TRY_ASSIGN(OwnedSettings settings, TlsContext::settings_of(credentials));
    context_->replace(std::move(settings));
    return {};
}

Task<Result<std::unique_ptr<Connection>>> TlsNet::connect(std::string address, Duration timeout) {
    Time end = clock_.now() + timeout;
    CO_TRY_ASSIGN(auto inner, co_await inner_.connect(std::move(address), timeout));
    auto handshake = std::make_shared<Handshake>();
    handshake->connection =
        std::make_unique<TlsConnection>(*context_, TlsSide::client, std::move(inner));
    Duration time = std::min(limits_.handshake_time, end - clock_.now());
    CO_TRY(co_await shake_hands(clock_, time, handshake));
    co_return std::move(handshake->connection);
}

Task<Result<std::unique_ptr<Listener>>> TlsNet::listen(std::string address) {
    auto state = std::make_shared<ListenState>();
    CO_TRY_ASSIGN(state->inner, co_await inner_.listen(std::move(address)));
    state->context = context_;
    state->limits = limits_;
    Executor executor = co_await this_executor();
    spawn(executor, accept_all(clock_, state));
    co_return std::make_unique<TlsListener>(std::move(state));
}

}  // namespace peplos::runtime
