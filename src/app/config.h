#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "base/limits.h"
#include "base/result.h"

// How a node is told what to be: a TOML file, then flags that override it.
namespace peplos::app {

inline constexpr const char* kConfigPathDefault = "/etc/peplos/peplosd.toml";

inline constexpr Duration kSpinMax = std::chrono::milliseconds(1);

// A device that the node opens at start. Devices added later by `peplos device add` live in the
// control store and are not listed here.
struct DeviceConfig {
    std::string path;
    // A file that does not exist is created with this size; 0: it must exist.
    uint64_t create_bytes = 0;
    // "nvme", "ssd", "hdd"; empty: the node looks at the hardware.
    std::string media_class;
    bool operator==(const DeviceConfig&) const = default;
};

enum class StoreKind : uint8_t { embedded, etcd };

// Where the cluster's truth is kept.
struct ControlConfig {
    StoreKind kind = StoreKind::embedded;
    // Of etcd: URLs, the prefix of its keys, and for https the three PEM files.
    std::vector<std::string> endpoints;
    std::string prefix = "/peplos/";
    std::string ca;
    std::string cert;
    std::string key;
    bool operator==(const ControlConfig&) const = default;
};

enum class LogFormat : uint8_t { text, json };

// Every path is absolute after read_config(); the empty defaults below are then filled in.
struct Config {
    // Where the values came from, for messages; empty when there was no file.
    std::string source;

    std::string node_name;                      // empty: the host's name
    std::string state_dir = "/var/lib/peplos";  // control store, device files
    std::string run_dir = "/run/peplos";        // sockets, mounts (<run_dir>/mnt)

    std::string plugin_name = "peplos";  // what users write after `docker volume create -d`
    std::string plugin_socket;           // empty: /run/docker/plugins/<plugin_name>.sock
    std::string managed_socket;          // the managed plugin's; empty: <run_dir>/plugin.sock

    std::string api_socket;    // empty: <run_dir>/api.sock; root's alone
    uint16_t api_port = 7667;  // on 127.0.0.1, with a token; 0: no TCP door
    std::string api_token;     // file of the TCP door's token; empty: <state_dir>/api.token

    uint64_t overlay_bytes = limits::kOverlayBytesDefault;       // all volumes' recent writes
    uint64_t leaf_cache_bytes = limits::kLeafCacheBytesDefault;  // all volumes' map leaves

    // How long the storage core looks for news before it sleeps, at most kSpinMax: latency for CPU.
    Duration spin{0};

    std::string log_level = "info";  // debug, info, warn, error
    LogFormat log_format = LogFormat::text;

    ControlConfig control;

    std::vector<DeviceConfig> devices;
};

// Parses the text of a configuration file over `base`. Strict: an unknown key, a value of the wrong
// kind or out of range is refused with its line and what is allowed.
// `source` names the file in messages. Errors: invalid_argument.
Result<Config> parse_config(std::string_view text, std::string_view source, Config base = {});

// What the command line of peplosd asks for.
struct DaemonOptions {
    Config config;
    // --help, --version, --check: print this and stop with success.
    std::optional<std::string> answer;
};

// Reads the flags and the file that they name (kConfigPathDefault when none is named and it
// exists), fills what is empty and checks the whole.
// Errors: invalid_argument, not_found (a file that was named), permission_denied.
Result<DaemonOptions> read_options(int argc, const char* const* argv);

// The machine's name, "localhost" when it has none.
std::string host_name();

// Fills the empty fields as their comments say and checks what belongs together.
// Errors: invalid_argument.
Result<Config> completed(Config config);

// The configuration as a file that parse_config() reads back to the same value.
std::string print_config(const Config& config);

}  // namespace peplos::app
