#pragma once

#include <functional>
#include <memory>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "base/limits.h"
#include "base/units.h"
#include "http/listen.h"
#include "http/peer_process.h"
#include "runtime/gate.h"
#include "runtime/task.h"

// HTTP/1.1 for the doors, on Unix sockets and loopback TCP.
namespace peplos::http {

enum class Transport : uint8_t { unix_socket, tcp };

struct Request {
    Transport transport = Transport::unix_socket;
    std::optional<PeerProcess> peer;  // Unix sockets only
    std::string method;               // "GET", as sent
    std::string path;                 // percent-decoded, without the query; may hold any byte
    std::string raw_path;             // as sent, without the query: split this one at slashes
    std::string query;
    std::string host;
    std::string authorization;
    std::string body;
};

struct Response {
    unsigned status = 200;
    std::string content_type = "application/json";
    std::string body;
    std::vector<std::pair<std::string, std::string>> headers;
};

// Decodes %XX; anything malformed stays as it is.
std::string percent_decoded(std::string_view text);

// One server per door; lives on one executor that one thread runs.
//
// Promises
//   1. A client can cost at most: one of `connection_count_max` connections, kHeaderBytesMax of
//      header, limits::kHttpBodyBytesMax of body, and request_timeout of patience.
//   2. Every well-formed request gets exactly one answer; a malformed one gets 400, 413 or 431 in
//      the door's own form, then the connection is closed; a slow one is closed.
//   3. No exception of a library or of the handler leaves the server.
class Server {
  public:
    static constexpr uint32_t kHeaderBytesMax = 16 * 1024;

    using Handler = std::function<runtime::Task<Response>(Request)>;
    struct Options {
        std::string name;  // for logs: "docker"
        size_t connection_count_max = limits::kHttpConnectionsMax;
        // From a request's first byte to its last, and for writing an answer.
        Duration request_timeout = std::chrono::seconds(10);
        // Between requests; zero: as long as room is left. At the connection limit the connection
        // that was idle longest makes room (dockerd repeats a request that loses its connection
        // with an *empty body*, so its idle connections are better left alone).
        Duration idle_timeout{};
        // The door's form of an error that the server itself finds.
        std::function<Response(unsigned status, std::string message)> describe;
    };

    Server(runtime::Executor executor, Options options, Handler handler);
    ~Server();
    Server(const Server&) = delete;

    // Serves a listening, non-blocking socket from now on.
    void serve(Fd listener, Transport transport);

    // Closes the listeners and idle connections; requests under way are still answered.
    void refuse_new();
    // Waits until no connection is left, at most `limit`.
    runtime::Task<void> drain(Duration limit);
    // Closes everything and waits until nothing uses the server or its handler. The handler must
    // end by itself. Idempotent; call it before the destructor.
    runtime::Task<void> stop();

    size_t connection_count() const { return sessions_.size(); }

  private:
    struct Session;
    struct Listener;
    using SessionPtr = std::shared_ptr<Session>;

    runtime::Task<void> accept_loop(std::shared_ptr<Listener> listener);
    void admit(Fd fd, Transport transport);
    bool make_room();
    runtime::Task<void> run_session(SessionPtr session);
    runtime::Task<bool> run_request(Session& session);
    runtime::Task<Response> call_handler(Request request);
    runtime::Task<bool> write(Session& session, Response response, bool keep_alive);
    runtime::Task<void> refuse(Session& session, unsigned status, std::string message);

    runtime::Executor executor_;
    Options options_;
    Handler handler_;
    std::set<SessionPtr> sessions_;
    std::set<std::shared_ptr<Listener>> listeners_;
    bool stopping_ = false;
    runtime::Gate gate_;
};

}  // namespace peplos::http
