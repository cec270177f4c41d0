#include "api/door.h"

#include "api/token.h"
#include "base/log.h"

namespace peplos::api {
namespace {

using runtime::Task;

http::Response error_response(unsigned status, const Error& error) {
    http::Response response;
    response.status = status;
    response.body = http::print(error_json(error)) + "\n";
    return response;
}

http::Response error_response(const Error& error) {
    return error_response(entry_of(error.code()).status, error);
}

http::Response describe(unsigned status, std::string message) {
    Code code = Code::invalid_argument;
    if (status == 503) code = Code::busy;
    if (status == 500) code = Code::unavailable;
    return error_response(status, Error(code, std::move(message)));
}

// Whether the Host header names this machine's loopback. A page of a foreign site whose name
// was made to resolve to 127.0.0.1 sends that name here.
bool is_loopback_host(std::string_view host) {
    size_t port = host.rfind(':');
    bool has_port =
        port != std::string_view::npos && host.find(']', port) == std::string_view::npos;
    if (has_port) host = host.substr(0, port);
    return host == "127.0.0.1" || host == "localhost" || host == "[::1]";
}

http::Server::Options server_options() {
    http::Server::Options out;
    out.name = "api";
    out.idle_timeout = std::chrono::seconds(60);
    out.describe = describe;
    return out;
}

void protect(http::Response& response) {
    response.headers.emplace_back("Cache-Control", "no-store");
    response.headers.emplace_back("X-Content-Type-Options", "nosniff");
}

}  // namespace

Door::Door(runtime::Executor executor, fabric::Node& node, Options options)
    : options_(std::move(options)),
      calls_(executor, node.executor()),
      routes_(node, calls_),
      server_(executor, server_options(),
              [this](http::Request request) { return handle(std::move(request)); }) {}

Result<void> Door::start() {
    if (options_.tcp_port.has_value()) {
        TRY_ASSIGN(token_, load_or_create_token(options_.token_path));
        TRY_ASSIGN(http::Fd fd, http::listen_on_loopback(*options_.tcp_port));
        tcp_port_ = http::port_of(fd);
        server_.serve(std::move(fd), http::Transport::tcp);
    }
    for (http::Fd& fd : options_.activated) {
        server_.serve(std::move(fd), http::Transport::unix_socket);
    }
    if (!options_.socket_path.empty()) {
        TRY_ASSIGN(http::Fd fd, http::listen_on_unix(options_.socket_path));
        server_.serve(std::move(fd), http::Transport::unix_socket);
    }
    return {};
}

Task<void> Door::stop() {
    if (!options_.socket_path.empty()) http::remove_socket_file(options_.socket_path);
    server_.refuse_new();
    co_await server_.drain(options_.stop_grace);
    calls_.give_up();
    co_await server_.stop();
}

std::optional<http::Response> Door::check_access(const http::Request& request,
                                                 Access access) const {
    if (request.transport == http::Transport::unix_socket) return std::nullopt;
    if (!is_loopback_host(request.host)) {
        return error_response(
            Error(Code::permission_denied,
                  fmt::format("Host {} is not this machine's loopback: use http://127.0.0.1:{}",
                              http::quoted(request.host), tcp_port_)));
    }
    if (access == Access::open) return std::nullopt;
    constexpr std::string_view kBearer = "Bearer ";
    std::string_view given = request.authorization;
    if (given.starts_with(kBearer) && is_same_secret(given.substr(kBearer.size()), token_)) {
        return std::nullopt;
    }
    http::Response response = error_response(
        401, Error(Code::permission_denied,
                   fmt::format("this call needs the bearer token, which root finds in {}; or use "
                               "the `peplos` command as root",
                               options_.token_path)));
    response.headers.emplace_back("WWW-Authenticate", "Bearer");
    return response;
}

Task<http::Response> Door::handle(http::Request request) {
    Routes::Match match = Routes::match(request.method, request.raw_path);
    Access access = match.route == nullptr ? Access::token : match.route->access;
    if (auto refused = check_access(request, access)) {
        protect(*refused);
        co_return std::move(*refused);
    }
    http::Response response;
    if (match.route == nullptr && match.allowed.empty()) {
        response = error_response(
            Error(Code::not_found, fmt::format("there is nothing at {}: see /openapi.json",
                                               http::quoted(request.raw_path))));
    } else if (match.route == nullptr) {
        response =
            error_response(405, Error(Code::invalid_argument,
                                      fmt::format("{} is not possible here, {} is",
                                                  http::quoted(request.method), match.allowed)));
        response.headers.emplace_back("Allow", match.allowed);
    } else {
        const Routes::Route& route = *match.route;
        Routes::Call call;
        Result<void> ready;
        if (!match.name.empty()) {
            call.name = http::percent_decoded(match.name);
            ready = fabric::check_name(call.name);
        }
        if (ready && !route.request_schema.empty()) {
            auto body = http::parse_object(request.body);
            if (body) {
                call.body = std::move(*body);
            } else {
                ready = fail(std::move(body).error());
            }
        }
        Duration limit = options_.call_deadline.value_or(route.limit);
        Result<Answer> answer = fail(Code::unavailable, "not asked");
        if (ready) {
            answer = co_await (routes_.*route.run)(std::move(call), limit);
        } else {
            answer = fail(std::move(ready).error());
        }
        if (answer) {
            response = {route.status, answer->content_type, std::move(answer->body), {}};
        } else {
            LOG_INFO("an API call failed method={} path={} error=\"{}\"", route.method, route.path,
                     answer.error().text());
            response = error_response(answer.error());
        }
    }
    protect(response);
    co_return response;
}

}  // namespace peplos::api
