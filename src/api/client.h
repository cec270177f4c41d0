#pragma once

#include <string>
#include <string_view>

#include "base/units.h"
#include "http/json.h"

namespace peplos::api {

using http::Json;

// Speaks to peplosd over its Unix socket, one blocking call at a time: for command lines.
// Requires: called from a thread that runs no loop of its own.
//
// Errors: those of the API with their own code; unavailable (peplosd does not run or does not
// answer: says how to start it), permission_denied (not root).
class Client {
  public:
    // A call ends after `limit` at the latest; the longest calls of the API take 25 s.
    explicit Client(std::string socket_path, Duration limit = std::chrono::seconds(35))
        : socket_path_(std::move(socket_path)), limit_(limit) {}

    Result<Json> get(const std::string& path) { return call("GET", path, nullptr); }
    Result<Json> post(const std::string& path, const Json& body) {
        return call("POST", path, &body);
    }
    Result<Json> post(const std::string& path) { return call("POST", path, nullptr); }
    Result<Json> patch(const std::string& path, const Json& body) {
        return call("PATCH", path, &body);
    }
    Result<Json> remove(const std::string& path) { return call("DELETE", path, nullptr); }
    // For /metrics.
    Result<std::string> get_text(const std::string& path);

    // A name as one part of a path: everything but letters, digits, "-", "_" and "." as %XX.
    static std::string path_part(std::string_view name);

  private:
    Result<Json> call(std::string_view method, const std::string& path, const Json* body);

    std::string socket_path_;
    Duration limit_;
};

}  // namespace peplos::api
