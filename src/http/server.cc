#include "http/server.h"

#include <boost/asio/as_tuple.hpp>
#include <boost/asio/generic/stream_protocol.hpp>
#include <boost/asio/posix/basic_stream_descriptor.hpp>
#include <boost/asio/steady_timer.hpp>
#include <boost/beast/core/basic_stream.hpp>
#include <boost/beast/core/flat_buffer.hpp>
#include <boost/beast/http.hpp>
#include <cerrno>
#include <sys/socket.h>

#include "base/log.h"

namespace peplos::http {
namespace {

namespace asio = boost::asio;
namespace beast = boost::beast;
namespace bhttp = boost::beast::http;
using asio::generic::stream_protocol;
using runtime::Executor;
using runtime::Task;

using Stream = beast::basic_stream<stream_protocol, Executor>;
using Parser = bhttp::request_parser<bhttp::string_body>;
using Timer = asio::basic_waitable_timer<std::chrono::steady_clock,
                                         asio::wait_traits<std::chrono::steady_clock>, Executor>;

// Completions as values: (error, ...), never an exception.
constexpr auto kValues = asio::as_tuple(runtime::kUseTask);
// After an error answer: how long and how much of the client's rest is read away, so that it
// gets to read the answer instead of a reset.
constexpr std::chrono::seconds kLingerTime{3};
constexpr size_t kLingerBytesMax = 64 * kMiB;
constexpr std::chrono::milliseconds kAcceptPause{100};

struct Refusal {
    unsigned status;
    const char* message;
};

// What a client is told about a request that could not be read; nothing when it is gone, or so
// slow that Beast has closed the connection.
std::optional<Refusal> refusal_of(const beast::error_code& error) {
    if (error == bhttp::error::body_limit) {
        return Refusal{413, "the request body is larger than 1 MiB, the most that is accepted"};
    }
    if (error == bhttp::error::header_limit || error == bhttp::error::buffer_overflow) {
        return Refusal{431, "the request header is larger than 16 KiB, the most that is accepted"};
    }
    if (error == bhttp::error::end_of_stream) return std::nullopt;
    if (error == bhttp::error::partial_message) {
        return Refusal{400, "the request ended in the middle: send it whole"};
    }
    if (error.category() == make_error_code(bhttp::error::bad_method).category()) {
        return Refusal{400, "this is not a valid HTTP/1.1 request"};
    }
    return std::nullopt;
}

std::string text_of_header(const Parser::value_type& message, bhttp::field field) {
    auto view = message[field];
    return std::string(view.data(), view.size());
}

}  // namespace

struct Server::Session {
    Session(stream_protocol::socket::rebind_executor<Executor>::other socket, Transport t)
        : stream(std::move(socket)), transport(t) {}
    Stream stream;
    Transport transport;
    std::optional<PeerProcess> peer;
    beast::flat_buffer buffer{kHeaderBytesMax + limits::kHttpBodyBytesMax};
    bool idle = true;
    std::chrono::steady_clock::time_point idle_since = std::chrono::steady_clock::now();
};

struct Server::Listener {
    Listener(const Executor& executor, int fd, Transport t)
        : socket(executor, fd), pause(executor), transport(t) {}
    asio::posix::basic_stream_descriptor<Executor> socket;
    Timer pause;
    Transport transport;
    void close() {
        beast::error_code ignored;
        socket.close(ignored);
        pause.cancel();
    }
};

std::string percent_decoded(std::string_view text) {
    auto digit = [](char c) {
        if (c >= '0' && c <= '9') return c - '0';
        if (c >= 'a' && c <= 'f') return c - 'a' + 10;
        if (c >= 'A' && c <= 'F') return c - 'A' + 10;
        return -1;
    };
    std::string out;
    for (size_t index = 0; index < text.size(); ++index) {
        if (text[index] == '%' && index + 2 < text.size()) {
            int high = digit(text[index + 1]), low = digit(text[index + 2]);
            if (high >= 0 && low >= 0) {
                out += static_cast<char>(high * 16 + low);
                index += 2;
                continue;
            }
        }
        out += text[index];
    }
    return out;
}

Server::Server(Executor executor, Options options, Handler handler)
    : executor_(std::move(executor)), options_(std::move(options)), handler_(std::move(handler)) {
    CHECK(options_.describe != nullptr && handler_ != nullptr);
    CHECK(options_.connection_count_max > 0);
}

Server::~Server() {
    CHECK(gate_.inside_count() == 0, "stop() first");
}

void Server::serve(Fd fd, Transport transport) {
    auto listener = std::make_shared<Listener>(executor_, fd.release(), transport);
    listeners_.insert(listener);
    gate_.spawn(executor_, accept_loop(listener));
}

Task<void> Server::accept_loop(std::shared_ptr<Listener> listener) {
    while (!stopping_) {
        auto [error] =
            co_await listener->socket.async_wait(asio::posix::descriptor_base::wait_read, kValues);
        if (error || stopping_ || !listener->socket.is_open()) co_return;
        int fd = ::accept4(listener->socket.native_handle(), nullptr, nullptr,
                           SOCK_CLOEXEC | SOCK_NONBLOCK);
        if (fd >= 0) {
            try {
                admit(Fd(fd), listener->transport);
            } catch (const std::exception& error) {
                LOG_ERROR("a connection was dropped door={} why=\"{}\"", options_.name,
                          error.what());
            }
            continue;
        }
        if (errno == EAGAIN || errno == EINTR || errno == ECONNABORTED) continue;
        // Out of descriptors or memory: the connection waits in the backlog, the loop breathes.
        LOG_WARN("cannot accept a connection door={} errno={}", options_.name, errno);
        listener->pause.expires_after(kAcceptPause);
        co_await listener->pause.async_wait(kValues);
    }
}

bool Server::make_room() {
    SessionPtr oldest;
    for (const SessionPtr& session : sessions_) {
        if (!session->idle) continue;
        if (oldest == nullptr || session->idle_since < oldest->idle_since) oldest = session;
    }
    if (oldest == nullptr) return false;
    sessions_.erase(oldest);
    oldest->stream.close();
    return true;
}

void Server::admit(Fd fd, Transport transport) {
    if (sessions_.size() >= options_.connection_count_max && !make_room()) {
        Response full = options_.describe(
            503, fmt::format("all {} connections are in use: close some, or try again later",
                             options_.connection_count_max));
        std::string text = fmt::format(
            "HTTP/1.1 503 Service Unavailable\r\nContent-Type: {}\r\nContent-Length: {}\r\n"
            "Connection: close\r\n\r\n{}",
            full.content_type, full.body.size(), full.body);
        (void)::send(fd.get(), text.data(), text.size(), MSG_NOSIGNAL | MSG_DONTWAIT);
        return;
    }
    int number = fd.get();
    sockaddr_storage address{};
    socklen_t size = sizeof(address);
    if (::getsockname(number, reinterpret_cast<sockaddr*>(&address), &size) != 0) return;
    beast::error_code error;
    asio::basic_stream_socket<stream_protocol, Executor> socket(executor_);
    socket.assign(stream_protocol(address.ss_family, 0), number, error);
    if (error) return;
    (void)fd.release();
    auto session = std::make_shared<Session>(std::move(socket), transport);
    if (transport == Transport::unix_socket) session->peer = peer_of(number);
    sessions_.insert(session);
    gate_.spawn(executor_, run_session(std::move(session)));
}

Task<void> Server::run_session(SessionPtr session) {
    try {
        while (!stopping_ && session->stream.socket().is_open()) {
            if (!co_await run_request(*session)) break;
        }
    } catch (const std::exception& error) {
        LOG_ERROR("a connection ended by an exception door={} what=\"{}\"", options_.name,
                  error.what());
    }
    session->stream.close();
    sessions_.erase(session);
}

// Returns whether the connection may carry another request.
Task<bool> Server::run_request(Session& session) {
    Stream& stream = session.stream;
    session.idle = true;
    session.idle_since = std::chrono::steady_clock::now();
    if (session.buffer.size() == 0) {
        if (options_.idle_timeout > Duration::zero()) {
            stream.expires_after(options_.idle_timeout);
        } else {
            stream.expires_never();
        }
        auto space = session.buffer.prepare(4096);
        auto [error, count] = co_await stream.async_read_some(space, kValues);
        if (error) co_return false;
        session.buffer.commit(count);
    }
    session.idle = false;

    Parser parser;
    parser.header_limit(kHeaderBytesMax);
    parser.body_limit(limits::kHttpBodyBytesMax);
    stream.expires_after(options_.request_timeout);
    auto [error, count] =
        co_await bhttp::async_read_header(stream, session.buffer, parser, kValues);
    if (!error && beast::iequals(parser.get()[bhttp::field::expect], "100-continue")) {
        bhttp::response<bhttp::empty_body> go_on(bhttp::status::continue_, 11);
        co_await bhttp::async_write(stream, go_on, kValues);
    }
    if (!error) {
        auto [body_error, body_count] =
            co_await bhttp::async_read(stream, session.buffer, parser, kValues);
        error = body_error;
    }
    if (error) {
        if (auto refusal = refusal_of(error)) {
            co_await refuse(session, refusal->status, refusal->message);
        }
        co_return false;
    }

    auto message = parser.release();
    Request request;
    request.transport = session.transport;
    request.peer = session.peer;
    request.method = std::string(message.method_string());
    std::string target(message.target());
    size_t question = target.find('?');
    request.raw_path = target.substr(0, question);
    request.path = percent_decoded(request.raw_path);
    if (question != std::string::npos) request.query = target.substr(question + 1);
    request.host = text_of_header(message, bhttp::field::host);
    request.authorization = text_of_header(message, bhttp::field::authorization);
    request.body = std::move(message.body());
    bool keep_alive = message.keep_alive();
    // While the handler works nobody watches the stream; the answer gets its own time.
    stream.expires_never();
    Response response = co_await call_handler(std::move(request));
    keep_alive = keep_alive && !stopping_;
    bool written = co_await write(session, std::move(response), keep_alive);
    co_return written&& keep_alive;
}

Task<Response> Server::call_handler(Request request) {
    try {
        co_return co_await handler_(std::move(request));
    } catch (const std::exception& error) {
        LOG_ERROR("a handler failed door={} what=\"{}\"", options_.name, error.what());
    }
    co_return options_.describe(500, "peplosd failed inside: see its log, then repeat");
}

Task<bool> Server::write(Session& session, Response response, bool keep_alive) {
    bhttp::response<bhttp::string_body> message(bhttp::int_to_status(response.status), 11);
    message.set(bhttp::field::server, "peplos");
    message.set(bhttp::field::content_type, response.content_type);
    for (const auto& [name, value] : response.headers)
        message.set(name, value);
    message.keep_alive(keep_alive);
    message.body() = std::move(response.body);
    message.prepare_payload();
    session.stream.expires_after(options_.request_timeout);
    auto [error, count] = co_await bhttp::async_write(session.stream, message, kValues);
    co_return !error;
}

// Answers an unreadable request, then reads the client's rest away: a close with unread bytes
// would reset the connection and destroy the answer on its way.
Task<void> Server::refuse(Session& session, unsigned status, std::string message) {
    Response response = options_.describe(status, std::move(message));
    if (!co_await write(session, std::move(response), false)) co_return;
    beast::error_code ignored;
    session.stream.socket().shutdown(asio::socket_base::shutdown_send, ignored);
    session.stream.expires_after(kLingerTime);
    std::array<char, 16 * 1024> waste;
    size_t total = 0;
    while (total < kLingerBytesMax) {
        auto space = asio::buffer(waste);
        auto [error, count] = co_await session.stream.async_read_some(space, kValues);
        if (error) co_return;
        total += count;
    }
}

void Server::refuse_new() {
    stopping_ = true;
    for (const auto& listener : listeners_)
        listener->close();
    listeners_.clear();
    for (const SessionPtr& session : sessions_) {
        if (session->idle) session->stream.close();
    }
}

Task<void> Server::drain(Duration limit) {
    Timer timer(executor_);
    auto deadline = std::chrono::steady_clock::now() + limit;
    while (!sessions_.empty() && std::chrono::steady_clock::now() < deadline) {
        timer.expires_after(std::chrono::milliseconds(5));
        co_await timer.async_wait(kValues);
    }
}

Task<void> Server::stop() {
    refuse_new();
    for (const SessionPtr& session : sessions_)
        session->stream.close();
    co_await gate_.close();
}

}  // namespace peplos::http
