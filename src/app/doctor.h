#pragma once

#include <functional>
#include <optional>
#include <string>
#include <vector>

#include "app/local_http.h"
#include "app/table.h"

// `peplos doctor`: looks for what makes a node misbehave and says, for each finding, the reason and
// the next command. What is safe to mend, --fix mends. Nothing here writes to a device.
namespace peplos::app {

struct Finding {
    enum class Level : uint8_t { ok, warning, error };
    Level level = Level::ok;
    std::string check;   // short and stable, for scripts: "kernel-fuse"
    std::string reason;  // what was found
    std::string next;    // what to do; empty when ok
    // Mends it and says what was done; absent where a person must decide.
    std::function<Result<std::string>()> fix;
};

// What doctor looks at, so that tests can plant every trouble.
struct DoctorWorld {
    std::function<Result<Json>(const std::string& method, const std::string& target,
                               const Json& body)>
        peplos;
    std::function<Result<Json>(const std::string& method, const std::string& target)> docker;
    std::function<std::string(const std::string& path)> read_file;  // empty when unreadable
    std::function<bool(const std::string& path)> exists;
    // Every socket that dockerd takes for a plugin's.
    std::function<std::vector<std::string>()> plugin_sockets;
    // True only when a connection is refused, which proves that nobody listens.
    std::function<bool(const std::string& path)> is_dead;
    std::function<Result<void>(const std::string& path)> remove_file;
    std::string kernel_release;  // uname -r
    std::string plugin_name = "peplos";
    std::string plugin_socket;
};

std::vector<Finding> examine(const DoctorWorld& world);

std::string show_findings(const std::vector<Finding>& findings, Style style);
Json findings_json(const std::vector<Finding>& findings);

}  // namespace peplos::app
