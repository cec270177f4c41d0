#pragma once

#include <optional>
#include <string>
#include <vector>

#include "api/routes.h"
#include "fabric/node.h"
#include "http/calls.h"
#include "http/server.h"

namespace peplos::api {

struct Options {
    std::string socket_path;                // usually /run/peplos/api.sock; empty: none
    std::vector<http::Fd> activated;        // from systemd, instead of the path
    std::optional<uint16_t> tcp_port;       // on 127.0.0.1; 0: the kernel chooses
    std::string token_path;                 // needed with tcp_port
    std::optional<Duration> call_deadline;  // instead of each route's own (tests)
    Duration stop_grace = std::chrono::seconds(3);
};

// REST/JSON under /v1, metrics, and the document that describes them.
//
// Promises
//   1. On the Unix socket (root's alone) everything is allowed. On the loopback port, which any
//      local user and any web page in a local browser can reach: health, status, metrics and the
//      document are open, everything else wants the bearer token.
//   2. A request over TCP whose Host is not this machine's loopback is refused (DNS rebinding), and
//      no answer carries a CORS header: a browser shows nothing to a foreign page.
//   3. Every error is {"error": {"code", "message", "next"}}.
//
// Lives on the door executor; the node outlives it.
class Door {
  public:
    Door(runtime::Executor executor, fabric::Node& node, Options options);

    // Listens and serves. Errors: those of the sockets and of the token file.
    Result<void> start();
    // The port that TCP clients use; 0 when there is none.
    uint16_t tcp_port() const { return tcp_port_; }
    // Ends what runs, closes and removes the socket. Call it before the destructor.
    runtime::Task<void> stop();
    // Calls that the node still works on, also after stop(). They span both executors: neither
    // io_context may be destroyed before this is 0.
    size_t in_flight_count() const { return calls_.in_flight_count(); }

  private:
    runtime::Task<http::Response> handle(http::Request request);
    std::optional<http::Response> check_access(const http::Request& request, Access access) const;

    Options options_;
    http::Calls calls_;
    Routes routes_;
    http::Server server_;
    std::string token_;
    uint16_t tcp_port_ = 0;
};

}  // namespace peplos::api
