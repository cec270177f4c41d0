#include "runtime/tcp_net.h"

#include <boost/asio/connect.hpp>
#include <boost/asio/ip/tcp.hpp>
#include <boost/asio/read.hpp>
#include <boost/asio/redirect_error.hpp>
#include <boost/asio/write.hpp>
#include <netinet/tcp.h>

#include "runtime/boot_clock.h"

namespace peplos::runtime {
namespace {

using Tcp = asio::ip::tcp;
using Socket = asio::basic_stream_socket<Tcp, Executor>;
using Acceptor = asio::basic_socket_acceptor<Tcp, Executor>;
using Resolver = asio::ip::basic_resolver<Tcp, Executor>;
using ErrorCode = boost::system::error_code;

constexpr int kKeepIdleSeconds = 10;
constexpr int kKeepIntervalSeconds = 5;
constexpr int kKeepCount = 3;
// tcp(7): how long bytes may stay unacknowledged before the connection counts as broken.
constexpr int kUnacknowledgedMilliseconds = 15'000;

std::string text_of_endpoint(const Tcp::endpoint& endpoint) {
    std::string host = endpoint.address().to_string();
    return endpoint.address().is_v6() ? fmt::format("[{}]:{}", host, endpoint.port())
                                      : fmt::format("{}:{}", host, endpoint.port());
}

using KeepIdle = asio::detail::socket_option::integer<IPPROTO_TCP, TCP_KEEPIDLE>;
using KeepInterval = asio::detail::socket_option::integer<IPPROTO_TCP, TCP_KEEPINTVL>;
using KeepCount = asio::detail::socket_option::integer<IPPROTO_TCP, TCP_KEEPCNT>;
using UserTimeout = asio::detail::socket_option::integer<IPPROTO_TCP, TCP_USER_TIMEOUT>;

// What is small is sent at once; a peer that is gone is given up after seconds, not hours.
void set_socket_options(Socket& socket) {
    ErrorCode ignored;
    socket.set_option(Tcp::no_delay(true), ignored);
    socket.set_option(asio::socket_base::keep_alive(true), ignored);
    socket.set_option(KeepIdle(kKeepIdleSeconds), ignored);
    socket.set_option(KeepInterval(kKeepIntervalSeconds), ignored);
    socket.set_option(KeepCount(kKeepCount), ignored);
    socket.set_option(UserTimeout(kUnacknowledgedMilliseconds), ignored);
}

class TcpConnection final : public Connection {
  public:
    TcpConnection(Socket socket, std::string peer)
        : socket_(std::move(socket)), peer_(std::move(peer)) {
        set_socket_options(socket_);
    }

    Task<Result<void>> read(Buffer into) override {
        ErrorCode error;
        auto target = asio::buffer(into.data(), into.size());
        co_await asio::async_read(socket_, target, asio::redirect_error(kUseTask, error));
        co_return result_of(error, "reading from");
    }
    Task<Result<size_t>> read_some(Buffer into) override {
        ErrorCode error;
        auto target = asio::buffer(into.data(), into.size());
        size_t count =
            co_await socket_.async_read_some(target, asio::redirect_error(kUseTask, error));
        if (error) co_return fail(result_of(error, "reading from").error());
        co_return count;
    }
    Task<Result<void>> write(std::vector<Buffer> from) override {
        ErrorCode error;
        std::vector<asio::const_buffer> parts;
        parts.reserve(from.size());
        for (const Buffer& buffer : from)
            parts.emplace_back(buffer.data(), buffer.size());
        co_await asio::async_write(socket_, parts, asio::redirect_error(kUseTask, error));
        co_return result_of(error, "writing to");
    }
    void close() override {
        ErrorCode ignored;
        socket_.shutdown(Tcp::socket::shutdown_both, ignored);
        socket_.close(ignored);
    }
    const std::string& peer() const override { return peer_; }
    // TCP proves nothing.
    const std::string& identity() const override { return identity_; }

  private:
    Result<void> result_of(const ErrorCode& error, std::string_view what) const {
        if (!error) return {};
        return fail(Code::unavailable, "{} {} ended: {}", what, peer_, error.message());
    }

    Socket socket_;
    std::string peer_;
    std::string identity_;
};

class TcpListener final : public Listener {
  public:
    explicit TcpListener(Acceptor acceptor) : acceptor_(std::move(acceptor)) {
        ErrorCode ignored;
        address_ = text_of_endpoint(acceptor_.local_endpoint(ignored));
    }

    Task<Result<std::unique_ptr<Connection>>> accept() override {
        Executor executor = co_await asio::this_coro::executor;
        Socket socket(executor);
        ErrorCode error;
        co_await acceptor_.async_accept(socket, asio::redirect_error(kUseTask, error));
        if (error) {
            co_return fail(Code::unavailable, "accepting on {} ended: {}", address_,
                           error.message());
        }
        Tcp::endpoint peer = socket.remote_endpoint(error);
        co_return std::make_unique<TcpConnection>(std::move(socket), text_of_endpoint(peer));
    }
    void close() override {
        ErrorCode ignored;
        acceptor_.close(ignored);
    }
    const std::string& address() const override { return address_; }

  private:
    Acceptor acceptor_;
    std::string address_;
};

// What a connect and its time limit share.
struct Attempt {
    explicit Attempt(const Executor& executor)
        : resolver(executor), socket(executor), timer(executor) {}
    Resolver resolver;
    Socket socket;
    BootTimer timer;
    bool timed_out = false;
};

void limit(const std::shared_ptr<Attempt>& attempt, Duration timeout) {
    attempt->timer.expires_after(timeout);
    attempt->timer.async_wait([attempt](ErrorCode error) {
        if (error) return;
        ErrorCode ignored;
        attempt->timed_out = true;
        attempt->resolver.cancel();
        attempt->socket.close(ignored);
    });
}

}  // namespace

Result<HostPort> parse_address(std::string_view address) {
    size_t colon = address.rfind(':');
    std::string_view host = address.substr(0, colon == address.npos ? 0 : colon);
    if (host.size() > 2 && host.front() == '[' && host.back() == ']') {
        host = host.substr(1, host.size() - 2);
    } else if (host.find(':') != host.npos) {
        host = {};
    }
    std::string_view port = colon == address.npos ? "" : address.substr(colon + 1);
    bool digits = !port.empty() && port.size() <= 5 &&
                  port.find_first_not_of("0123456789") == port.npos &&
                  std::stoul(std::string(port)) <= 65535;
    if (host.empty() || !digits) {
        return fail(Code::invalid_argument,
                    "'{}' is not host:port (for instance 10.0.0.1:7000 or [::1]:7000)", address);
    }
    return HostPort{std::string(host), std::string(port)};
}

Task<Result<std::unique_ptr<Connection>>> TcpNet::connect(std::string address, Duration timeout) {
    CO_TRY_ASSIGN(HostPort where, parse_address(address));
    Executor executor = co_await asio::this_coro::executor;
    auto attempt = std::make_shared<Attempt>(executor);
    limit(attempt, timeout);
    ErrorCode error;
    auto found = co_await attempt->resolver.async_resolve(where.host, where.port,
                                                          asio::redirect_error(kUseTask, error));
    if (!error && !attempt->timed_out) {
        co_await asio::async_connect(attempt->socket, found, asio::redirect_error(kUseTask, error));
    }
    attempt->timer.cancel();
    if (attempt->timed_out) {
        co_return fail(Code::unavailable, "{} did not answer within {} ms: is it running?", address,
                       std::chrono::duration_cast<std::chrono::milliseconds>(timeout).count());
    }
    if (error) {
        co_return fail(Code::unavailable, "{} cannot be reached: {}", address, error.message());
    }
    co_return std::make_unique<TcpConnection>(std::move(attempt->socket), std::move(address));
}

Task<Result<std::unique_ptr<Listener>>> TcpNet::listen(std::string address) {
    CO_TRY_ASSIGN(HostPort where, parse_address(address));
    Executor executor = co_await asio::this_coro::executor;
    Resolver resolver(executor);
    ErrorCode error;
    auto found = co_await resolver.async_resolve(where.host, where.port, Resolver::passive,
                                                 asio::redirect_error(kUseTask, error));
    if (error || found.empty()) {
        co_return fail(Code::invalid_argument, "{} names no local address: {}", address,
                       error.message());
    }
    Tcp::endpoint endpoint = found.begin()->endpoint();
    Acceptor acceptor(executor);
    acceptor.open(endpoint.protocol(), error);
    if (!error) acceptor.set_option(asio::socket_base::reuse_address(true), error);
    if (!error) acceptor.bind(endpoint, error);
    if (!error) acceptor.listen(asio::socket_base::max_listen_connections, error);
    if (error) {
        co_return fail(Code::unavailable, "{} cannot be listened on: {}", address, error.message());
    }
    co_return std::make_unique<TcpListener>(std::move(acceptor));
}

}  // namespace peplos::runtime
