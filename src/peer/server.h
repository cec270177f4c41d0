#pragma once

#include <map>
#include <memory>
#include <string>
#include <vector>

#include "peer/message.h"
#include "runtime/env.h"
#include "runtime/gate.h"

namespace peplos::peer {

struct ServerOptions {
    // Per connection, see limits.h.
    uint32_t calls_max = limits::kPeerServerCallsMax;
    uint64_t bytes_max = limits::kPeerServerBytesMax;
};

// What a node serves to the others: it listens on an address, lets those in who prove to be of this
// cluster, and starts the handler of each call. Lives on one executor.
//
// Invariants
//   1. A handler runs at most once per call, and never for a call that was refused.
//   2. Handlers of one connection start in the order of the calls.
//   3. Beyond its bounds it stops reading a connection, and goes on when handlers end: the caller's
//      queue fills and its calls wait. A caller that does not read its answers is treated so, too.
class Server {
  public:
    Server(runtime::Env& env, Self self, ServerOptions options = {});
    Server(const Server&) = delete;
    Server& operator=(const Server&) = delete;
    // Requires: never started, stopped, or nothing runs on its executor any more.
    ~Server();

    // Requires: not started; one handler per method.
    void handle(Method method, Handler handler);
    // Errors: unavailable (the address is in use), invalid_argument. May be called again after an
    // error.
    runtime::Task<Result<void>> start(std::string address);
    // Refuses new calls, waits until the handlers that run have ended and closes every connection.
    // Idempotent.
    runtime::Task<void> stop();
    // Where it listens, with the port that was chosen.
    const std::string& address() const { return address_; }

    // By caller, whoever called since the start.
    const std::map<NodeId, Counters>& counters() const { return counters_; }
    // Connections that passed the handshake.
    size_t connection_count() const;

  private:
    friend class Session;
    struct Sessions;

    runtime::Task<void> accept_loop();
    runtime::Task<void> serve(std::unique_ptr<runtime::Connection> connection);
    void make_room_for(NodeId node);

    runtime::Env& env_;
    Self self_;
    ServerOptions options_;
    std::map<Method, Handler> handlers_;
    std::map<NodeId, Counters> counters_;
    std::string address_;
    std::unique_ptr<runtime::Listener> listener_;
    std::unique_ptr<Sessions> sessions_;
    bool started_ = false;
    bool stopping_ = false;
    runtime::Gate gate_;
};

}  // namespace peplos::peer
