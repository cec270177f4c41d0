#pragma once

#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "docker/messages.h"
#include "fabric/node.h"
#include "http/calls.h"
#include "http/server.h"

namespace peplos::docker {

struct Options {
    // Usually /run/docker/plugins/peplos.sock; several may be given. A socket from systemd
    // (`activated`) takes the place of a path, and its file stays when peplosd stops, so that
    // dockerd waits at it instead of missing the plugin.
    std::vector<std::string> socket_paths;
    std::vector<http::Fd> activated;
    // dockerd gives up after 60 s (managed plugins: 30 s); we answer well before.
    Duration mount_deadline = std::chrono::seconds(24);
    Duration call_deadline = std::chrono::seconds(5);
    // How long stop() lets calls under way finish.
    Duration stop_grace = std::chrono::seconds(3);
    std::optional<Duration> request_timeout;
};

// Docker's volume plugin: translates, holds no state of volumes.
//
// Promises
//   1. Every call is answered before its deadline, if need be with an error that says what to do.
//   2. Create repeats safely: equal options, or none at all, on an existing name succeed.
//   3. A request without a name has no effect.
//   4. A Mount that dockerd was told has failed leaves no holder behind.
//   5. The holders of an earlier dockerd life are forgotten once per dockerd life.
//
// Lives on the door executor `executor`; the node outlives it.
class Door {
  public:
    Door(runtime::Executor executor, fabric::Node& node, Options options);

    // Listens and serves. Errors: those of http::listen_on_unix.
    Result<void> start();
    // Ends what runs, closes and removes the sockets. Call it before the destructor.
    runtime::Task<void> stop();
    // Calls that the node still works on, also after stop(). They span both executors: neither
    // io_context may be destroyed before this is 0.
    size_t in_flight_count() const { return calls_.in_flight_count(); }

  private:
    runtime::Task<http::Response> handle(http::Request request);
    runtime::Task<Result<http::Json>> run(Call call);
    runtime::Task<Result<http::Json>> create(Call call);
    runtime::Task<Result<http::Json>> mount(Call call);
    runtime::Task<http::Json> activate(std::optional<http::PeerProcess> peer);

    runtime::Executor executor_;
    fabric::Node& node_;
    Options options_;
    http::Calls calls_;
    http::Server server_;
    // The dockerd that activated us last.
    std::optional<http::PeerProcess> dockerd_;
};

}  // namespace peplos::docker
