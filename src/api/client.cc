#include "api/client.h"

#include <boost/asio/as_tuple.hpp>
#include <boost/asio/local/stream_protocol.hpp>
#include <boost/beast/core/basic_stream.hpp>
#include <boost/beast/core/flat_buffer.hpp>
#include <boost/beast/http.hpp>
#include <cerrno>

#include "api/messages.h"
#include "runtime/task.h"

namespace peplos::api {
namespace {

namespace asio = boost::asio;
namespace beast = boost::beast;
namespace bhttp = boost::beast::http;
using runtime::Executor;
using runtime::Task;
using Stream = beast::basic_stream<asio::local::stream_protocol, Executor>;

constexpr auto kValues = asio::as_tuple(runtime::kUseTask);
// Ten thousand volumes in a list are about 10 MiB.
constexpr uint64_t kAnswerBytesMax = 256 * kMiB;

struct Exchange {
    std::string socket_path;
    Duration limit;
    bhttp::request<bhttp::string_body> request;
    Result<bhttp::response<bhttp::string_body>> answer =
        fail(Code::unavailable, "peplosd was not asked");
    asio::local::stream_protocol::endpoint endpoint = {};
};

Error connect_error(const std::string& path, const beast::error_code& error) {
    if (error.value() == EACCES || error.value() == EPERM) {
        return Error(Code::permission_denied,
                     fmt::format("{} is for root alone: repeat the command with sudo", path));
    }
    return Error(Code::unavailable,
                 fmt::format("peplosd does not answer on {} ({}): start it with `systemctl start "
                             "peplosd`, or `sudo ./run` from the source tree",
                             path, error.message()));
}

Task<void> exchange(Exchange* work) {
    Stream stream(co_await runtime::this_executor());
    stream.expires_after(work->limit);
    auto [connect_failed] = co_await stream.async_connect(work->endpoint, kValues);
    if (connect_failed) {
        work->answer = fail(connect_error(work->socket_path, connect_failed));
        co_return;
    }
    // A write that fails may still have an answer waiting: the server refuses, then closes.
    co_await bhttp::async_write(stream, work->request, kValues);
    beast::flat_buffer buffer;
    bhttp::response_parser<bhttp::string_body> parser;
    parser.body_limit(kAnswerBytesMax);
    auto [error, count] = co_await bhttp::async_read(stream, buffer, parser, kValues);
    if (error == beast::error::timeout) {
        work->answer = fail(
            Code::outcome_unknown,
            "peplosd took the call on {} and did not answer within {} s: see `peplos doctor` and "
            "`journalctl -u peplosd`, then repeat the command",
            work->socket_path,
            std::chrono::duration_cast<std::chrono::seconds>(work->limit).count());
    } else if (error) {
        work->answer = fail(Code::outcome_unknown,
                            "peplosd broke the connection on {} ({}): it may have restarted; look "
                            "with `peplos status`, then repeat the command",
                            work->socket_path, error.message());
    } else {
        work->answer = parser.release();
    }
}

Result<bhttp::response<bhttp::string_body>> run_exchange(Exchange work) {
    try {
        work.endpoint = asio::local::stream_protocol::endpoint(work.socket_path);
        asio::io_context context(1);
        runtime::spawn(context.get_executor(), exchange(&work));
        context.run();
    } catch (const std::exception& error) {
        // A path too long for a socket address, or no descriptors left.
        return fail(Code::invalid_argument, "cannot call peplosd on {}: {}", work.socket_path,
                    error.what());
    }
    return std::move(work.answer);
}

bhttp::request<bhttp::string_body> request_of(std::string_view method, const std::string& path,
                                              const Json* body) {
    bhttp::request<bhttp::string_body> request(bhttp::string_to_verb(method), path, 11);
    request.set(bhttp::field::host, "localhost");
    request.set(bhttp::field::connection, "close");
    if (body != nullptr) {
        request.set(bhttp::field::content_type, "application/json");
        request.body() = http::print(*body);
    }
    request.prepare_payload();
    return request;
}

}  // namespace

Result<Json> Client::call(std::string_view method, const std::string& path, const Json* body) {
    Exchange work{socket_path_, limit_, request_of(method, path, body)};
    TRY_ASSIGN(auto response, run_exchange(std::move(work)));
    Json answer = Json::parse(response.body(), nullptr, false);
    if (response.result_int() >= 400) return fail(error_of(answer, response.result_int()));
    if (answer.is_discarded()) {
        return fail(Code::unavailable,
                    "{} did not answer with JSON: is something else than peplosd listening there?",
                    socket_path_);
    }
    return answer;
}

Result<std::string> Client::get_text(const std::string& path) {
    Exchange work{socket_path_, limit_, request_of("GET", path, nullptr)};
    TRY_ASSIGN(auto response, run_exchange(std::move(work)));
    if (response.result_int() >= 400) {
        Json answer = Json::parse(response.body(), nullptr, false);
        return fail(error_of(answer, response.result_int()));
    }
    return std::move(response.body());
}

std::string Client::path_part(std::string_view name) {
    std::string out;
    for (char c : name) {
        bool plain = (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') ||
                     c == '-' || c == '_' || c == '.';
        if (plain) {
            out += c;
        } else {
            out += fmt::format("%{:02X}", static_cast<unsigned char>(c));
        }
    }
    return out;
}

}  // namespace peplos::api
