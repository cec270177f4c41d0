#include "app/local_http.h"

#include <algorithm>
#include <boost/asio/io_context.hpp>
#include <boost/asio/local/stream_protocol.hpp>
#include <boost/beast/core.hpp>
#include <boost/beast/http.hpp>
#include <cerrno>
#include <cstring>
#include <filesystem>
#include <fmt/format.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <sys/un.h>
#include <unistd.h>

namespace peplos::app {
namespace {

namespace asio = boost::asio;
namespace beast = boost::beast;
namespace http = boost::beast::http;

constexpr uint64_t kAnswerBytesMax = 256 * kMiB;

std::unexpected<Error> cannot_connect(const std::string& path, const boost::system::error_code& e) {
    Code code =
        e == boost::system::errc::permission_denied ? Code::permission_denied : Code::unavailable;
    return fail(code, "nobody answers at {}: {}", path, e.message());
}

}  // namespace

Result<Answer> LocalHttp::ask(const std::string& method, const std::string& target,
                              const std::string& body) const {
    asio::io_context context;
    asio::local::stream_protocol::socket socket(context);
    boost::system::error_code error;
    if (socket_path_.empty() || socket_path_.size() > 107) {
        return fail(Code::invalid_argument, "socket path \"{}\" is empty or longer than 107 bytes",
                    socket_path_);
    }
    socket.connect(asio::local::stream_protocol::endpoint(socket_path_), error);
    if (error) return cannot_connect(socket_path_, error);
    auto seconds = std::chrono::duration_cast<std::chrono::seconds>(timeout_).count();
    timeval limit{.tv_sec = seconds, .tv_usec = 0};
    ::setsockopt(socket.native_handle(), SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof limit);
    ::setsockopt(socket.native_handle(), SOL_SOCKET, SO_SNDTIMEO, &limit, sizeof limit);

    http::request<http::string_body> request(http::string_to_verb(method), target, 11);
    request.set(http::field::host, "localhost");
    if (!body.empty()) request.set(http::field::content_type, "application/json");
    request.body() = body;
    request.prepare_payload();
    http::write(socket, request, error);
    if (error) return fail(Code::outcome_unknown, "{}: {}", socket_path_, error.message());

    beast::flat_buffer buffer;
    http::response_parser<http::string_body> parser;
    parser.body_limit(kAnswerBytesMax);
    http::read(socket, buffer, parser, error);
    if (error) {
        return fail(Code::outcome_unknown,
                    "no answer from {} within {} s ({}); the request may have been carried out: "
                    "look before you repeat it",
                    socket_path_, seconds, error.message());
    }
    return Answer{.status = parser.get().result_int(), .body = std::move(parser.get().body())};
}

std::vector<std::string> sockets_in(const std::string& folder) {
    std::vector<std::string> found;
    std::error_code error;
    for (const auto& entry : std::filesystem::directory_iterator(folder, error)) {
        if (entry.is_socket(error)) found.push_back(entry.path());
    }
    std::ranges::sort(found);
    return found;
}

bool is_dead_socket(const std::string& path) {
    sockaddr_un address{.sun_family = AF_UNIX, .sun_path = {}};
    if (path.size() >= sizeof(address.sun_path)) return false;
    std::memcpy(address.sun_path, path.c_str(), path.size());
    int fd = ::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    if (fd < 0) return false;
    bool refused = ::connect(fd, reinterpret_cast<sockaddr*>(&address), sizeof(address)) != 0 &&
                   errno == ECONNREFUSED;
    ::close(fd);
    return refused;
}

}  // namespace peplos::app
