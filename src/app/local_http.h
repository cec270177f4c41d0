#pragma once

#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "base/result.h"
#include "base/units.h"

// One HTTP request to a Unix socket of this host, for programs that do one thing and end: they
// block. `doctor` asks dockerd with it.
namespace peplos::app {

using Json = nlohmann::json;

struct Answer {
    unsigned status = 0;
    std::string body;
};

class LocalHttp {
  public:
    LocalHttp(std::string socket_path, Duration timeout)
        : socket_path_(std::move(socket_path)), timeout_(timeout) {}
    const std::string& socket_path() const { return socket_path_; }

    // `body` empty: none is sent; else it is JSON. `target` is already percent-encoded.
    // Errors: unavailable (nobody listens), permission_denied, outcome_unknown (no answer in time,
    // or half an answer; the request may have been carried out).
    Result<Answer> ask(const std::string& method, const std::string& target,
                       const std::string& body) const;

  private:
    std::string socket_path_;
    Duration timeout_;
};

// The sockets of a folder, sorted; none when it cannot be read.
std::vector<std::string> sockets_in(const std::string& folder);
// True only for a socket that refuses connections: whoever made it is gone. Never waits.
bool is_dead_socket(const std::string& path);

}  // namespace peplos::app
