#include "app/config.h"

#include <CLI/CLI.hpp>
#include <algorithm>
#include <array>
#include <cerrno>
#include <charconv>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <unistd.h>

#include "control/etcd_store.h"
#include "fabric/node.h"

#define TOML_HEADER_ONLY 1
#define TOML_EXCEPTIONS 0
#define TOML_ENABLE_UNRELEASED_FEATURES 0
#include <toml++/toml.h>

namespace peplos::app {
namespace {

constexpr uint64_t kConfigBytesMax = 1 * kMiB;
constexpr std::array<std::string_view, 4> kLogLevels = {"debug", "info", "warn", "error"};
constexpr std::array<std::string_view, 3> kMediaClasses = {"nvme", "ssd", "hdd"};

template <typename List>
std::string listed(const List& names) {
    return fmt::format("{}", fmt::join(names, ", "));
}

// One table of the file. Every key that was not asked for when finish() runs is refused.
class Section {
  public:
    Section(const toml::table& table, std::string name, std::string_view source)
        : table_(table), name_(std::move(name)), source_(source) {}

    void read(std::string_view key, std::string& into) {
        const toml::node* node = find(key);
        if (node == nullptr) return;
        if (auto text = node->value_exact<std::string>(); text.has_value()) {
            into = std::move(*text);
        } else {
            refuse(*node, key, "must be a text in quotes");
        }
    }
    void read_bytes(std::string_view key, uint64_t& into) {
        const toml::node* node = find(key);
        if (node == nullptr) return;
        std::string text;
        if (node->is_string()) {
            text = node->value_exact<std::string>().value_or("");
        } else if (node->is_integer()) {
            text = fmt::format("{}", node->value_exact<int64_t>().value_or(0));
        } else {
            return refuse(*node, key, "must be a size such as \"256MiB\"");
        }
        auto bytes = fabric::parse_size(text);
        if (!bytes) return refuse(*node, key, bytes.error().message());
        into = *bytes;
    }
    void read_list(std::string_view key, std::vector<std::string>& into) {
        const toml::node* node = find(key);
        if (node == nullptr) return;
        if (!node->is_array()) return refuse(*node, key, "must be a list of texts");
        into.clear();
        for (const toml::node& entry : *node->as_array()) {
            auto text = entry.value_exact<std::string>();
            if (!text) return refuse(entry, key, "must be a list of texts");
            into.push_back(std::move(*text));
        }
    }
    void read_port(std::string_view key, uint16_t& into) {
        const toml::node* node = find(key);
        if (node == nullptr) return;
        auto number = node->value_exact<int64_t>();
        if (!number || *number < 0 || *number > 65535) {
            return refuse(*node, key, "must be a port from 1 to 65535, or 0 for none");
        }
        into = static_cast<uint16_t>(*number);
    }
    void read_microseconds(std::string_view key, Duration max, Duration& into) {
        const toml::node* node = find(key);
        if (node == nullptr) return;
        auto number = node->value_exact<int64_t>();
        int64_t most = std::chrono::duration_cast<std::chrono::microseconds>(max).count();
        if (!number || *number < 0 || *number > most) {
            return refuse(*node, key, fmt::format("must be microseconds from 0 to {}", most));
        }
        into = std::chrono::microseconds(*number);
    }
    const toml::table* section(std::string_view key) {
        const toml::node* node = find(key);
        if (node == nullptr) return nullptr;
        if (!node->is_table()) refuse(*node, key, fmt::format("must be a table: [{}]", key));
        return node->as_table();
    }
    std::vector<const toml::table*> sections(std::string_view key) {
        std::vector<const toml::table*> out;
        const toml::node* node = find(key);
        if (node == nullptr) return out;
        if (!node->is_array_of_tables()) {
            refuse(*node, key, fmt::format("must be written as [[{}]]", key));
            return out;
        }
        for (const toml::node& entry : *node->as_array())
            out.push_back(entry.as_table());
        return out;
    }
    void refuse(const toml::node& node, std::string_view key, std::string_view why) {
        refuse_at(node.source().begin.line, fmt::format("\"{}\" {}", full(key), why));
    }
    // The first problem of this table, unknown keys last.
    Result<void> finish() {
        for (const auto& [key, node] : table_) {
            if (std::ranges::find(known_, key.str()) == known_.end()) {
                refuse_at(node.source().begin.line,
                          fmt::format("unknown key \"{}\"; known here: {}", full(key.str()),
                                      listed(known_)));
            }
        }
        if (!problem_.empty()) return fail(Code::invalid_argument, "{}", problem_);
        return {};
    }

  private:
    const toml::node* find(std::string_view key) {
        known_.emplace_back(key);
        return table_.get(key);
    }
    std::string full(std::string_view key) const {
        return name_.empty() ? std::string(key) : fmt::format("{}.{}", name_, key);
    }
    void refuse_at(uint32_t line, const std::string& what) {
        if (problem_.empty()) problem_ = fmt::format("{} line {}: {}", source_, line, what);
    }

    const toml::table& table_;
    std::string name_;
    std::string_view source_;
    std::vector<std::string> known_;
    std::string problem_;
};

Result<LogFormat> parse_log_format(std::string_view text) {
    if (text == "text") return LogFormat::text;
    if (text == "json") return LogFormat::json;
    return fail(Code::invalid_argument, "log format \"{}\" is unknown; known: text, json", text);
}

Result<void> read_sections(Section& top, std::string_view source, Config& config) {
    if (const toml::table* table = top.section("plugin")) {
        Section plugin(*table, "plugin", source);
        plugin.read("name", config.plugin_name);
        plugin.read("socket", config.plugin_socket);
        plugin.read("managed_socket", config.managed_socket);
        TRY(plugin.finish());
    }
    if (const toml::table* table = top.section("api")) {
        Section api(*table, "api", source);
        api.read("socket", config.api_socket);
        api.read_port("port", config.api_port);
        api.read("token", config.api_token);
        TRY(api.finish());
    }
    if (const toml::table* table = top.section("cache")) {
        Section cache(*table, "cache", source);
        cache.read_bytes("overlay", config.overlay_bytes);
        cache.read_bytes("map", config.leaf_cache_bytes);
        TRY(cache.finish());
    }
    if (const toml::table* table = top.section("core")) {
        Section core(*table, "core", source);
        core.read_microseconds("spin_us", kSpinMax, config.spin);
        TRY(core.finish());
    }
    if (const toml::table* table = top.section("log")) {
        Section log(*table, "log", source);
        std::string format = config.log_format == LogFormat::json ? "json" : "text";
        log.read("level", config.log_level);
        log.read("format", format);
        TRY(log.finish());
        auto parsed = parse_log_format(format);
        if (!parsed) return fail(std::move(parsed).error().within(source));
        config.log_format = *parsed;
    }
    return {};
}

Result<StoreKind> parse_store_kind(std::string_view text) {
    if (text == "embedded") return StoreKind::embedded;
    if (text == "etcd") return StoreKind::etcd;
    return fail(Code::invalid_argument, "control.kind \"{}\" is unknown; known: embedded, etcd",
                text);
}

std::string_view name_of(StoreKind kind) {
    return kind == StoreKind::etcd ? "etcd" : "embedded";
}

Result<void> read_control(Section& top, std::string_view source, ControlConfig& into) {
    const toml::table* table = top.section("control");
    if (table == nullptr) return {};
    Section control(*table, "control", source);
    std::string kind(name_of(into.kind));
    control.read("kind", kind);
    control.read_list("endpoints", into.endpoints);
    control.read("prefix", into.prefix);
    control.read("ca", into.ca);
    control.read("cert", into.cert);
    control.read("key", into.key);
    TRY(control.finish());
    auto parsed = parse_store_kind(kind);
    if (!parsed) return fail(std::move(parsed).error().within(source));
    into.kind = *parsed;
    return {};
}

Result<void> read_devices(Section& top, std::string_view source, Config& config) {
    for (const toml::table* table : top.sections("device")) {
        DeviceConfig device;
        Section section(*table, "device", source);
        section.read("path", device.path);
        section.read_bytes("size", device.create_bytes);
        section.read("class", device.media_class);
        TRY(section.finish());
        config.devices.push_back(std::move(device));
    }
    return {};
}

// PATH[,size=SIZE][,class=CLASS]
Result<DeviceConfig> parse_device_flag(const std::string& text) {
    DeviceConfig device;
    size_t comma = text.find(',');
    device.path = text.substr(0, comma);
    while (comma != std::string::npos) {
        size_t begin = comma + 1;
        comma = text.find(',', begin);
        std::string part = text.substr(begin, comma - begin);
        if (part.starts_with("size=")) {
            TRY_ASSIGN(device.create_bytes, fabric::parse_size(part.substr(5)));
        } else if (part.starts_with("class=")) {
            device.media_class = part.substr(6);
        } else {
            return fail(Code::invalid_argument,
                        "--device {}: unknown part \"{}\"; known: size=SIZE, class=CLASS", text,
                        part);
        }
    }
    return device;
}

std::vector<std::string> parts_of(const std::string& text) {
    std::vector<std::string> parts;
    for (size_t begin = 0; begin <= text.size();) {
        size_t end = std::min(text.find(',', begin), text.size());
        parts.push_back(text.substr(begin, end - begin));
        begin = end + 1;
    }
    return parts;
}

Result<std::string> read_file(const std::string& path) {
    std::ifstream file(path, std::ios::binary);
    if (!file) {
        Code code = errno == EACCES ? Code::permission_denied : Code::not_found;
        return fail(code, "cannot read the configuration {}: {}", path, std::strerror(errno));
    }
    std::string text(kConfigBytesMax + 1, '\0');
    file.read(text.data(), static_cast<std::streamsize>(text.size()));
    text.resize(static_cast<size_t>(file.gcount()));
    if (text.size() > kConfigBytesMax) {
        return fail(Code::invalid_argument, "the configuration {} is larger than 1 MiB", path);
    }
    return text;
}

Result<void> check_path(std::string_view what, const std::string& path) {
    if (path.starts_with('/') && path.find('\0') == std::string::npos) return {};
    return fail(Code::invalid_argument, "{} \"{}\" must be an absolute path", what, path);
}

Result<uint16_t> parse_port(const std::string& text) {
    unsigned port = 0;
    auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), port);
    if (error == std::errc{} && end == text.data() + text.size() && port <= 65535) {
        return static_cast<uint16_t>(port);
    }
    return fail(Code::invalid_argument, "\"{}\" must be a port from 1 to 65535, or 0 for none",
                text);
}

Result<void> check_plugin_name(const std::string& name) {
    bool ok = !name.empty() && name.size() <= 64;
    for (char c : name) {
        ok = ok && ((c >= 'a' && c <= 'z') || (c >= '0' && c <= '9') || c == '-' || c == '_');
    }
    if (ok) return {};
    return fail(Code::invalid_argument,
                "plugin.name \"{}\" must be 1 to 64 of the characters a-z, 0-9, - and _", name);
}

Result<void> check_control(const ControlConfig& wanted) {
    if (wanted.kind == StoreKind::embedded) {
        if (wanted.endpoints.empty()) return {};
        return fail(
            Code::invalid_argument,
            "control.endpoints name an etcd, but control.kind is \"embedded\": write kind = "
            "\"etcd\"");
    }
    if (wanted.endpoints.empty()) {
        return fail(Code::invalid_argument,
                    "control.kind \"etcd\" needs control.endpoints, for example "
                    "[\"http://127.0.0.1:2379\"]");
    }
    TRY(control::check_etcd_prefix(wanted.prefix));
    for (const std::string* path : {&wanted.ca, &wanted.cert, &wanted.key}) {
        if (path->empty() != wanted.ca.empty()) {
            return fail(Code::invalid_argument,
                        "control.ca, control.cert and control.key belong together: name all three "
                        "or none");
        }
        if (!path->empty()) TRY(check_path("the PEM file", *path));
    }
    return {};
}

Result<void> check_devices(const std::vector<DeviceConfig>& devices) {
    std::vector<std::string> seen;
    for (const DeviceConfig& device : devices) {
        TRY(check_path("device.path", device.path));
        if (!device.media_class.empty() &&
            std::ranges::find(kMediaClasses, device.media_class) == kMediaClasses.end()) {
            return fail(Code::invalid_argument, "device {}: class \"{}\" is unknown; known: {}",
                        device.path, device.media_class, listed(kMediaClasses));
        }
        if (std::ranges::find(seen, device.path) != seen.end()) {
            return fail(Code::invalid_argument, "device {} is named twice", device.path);
        }
        seen.push_back(device.path);
    }
    return {};
}

// What the flags said; applied over the file.
struct Flags {
    std::string config_path;
    bool version = false;
    bool check = false;
    std::vector<std::pair<std::string, std::string>> values;  // flag, value
    std::vector<std::string> devices;
};

void describe_flags(CLI::App& app, Flags& flags) {
    app.add_option("--config", flags.config_path,
                   "Configuration file (default /etc/peplos/"
                   "peplosd.toml, when it exists)");
    app.add_flag("--version", flags.version, "Print the version and stop");
    app.add_flag("--check", flags.check, "Check the configuration, print it and stop");
    auto value = [&app, &flags](const std::string& flag, const std::string& help) {
        app.add_option_function<std::string>(
            flag, [&flags, flag](const std::string& v) { flags.values.emplace_back(flag, v); },
            help);
    };
    value("--state-dir", "Directory of the control store and of device files");
    value("--run-dir", "Directory of sockets and mounts");
    value("--node-name", "This node's name (default: the host's)");
    value("--plugin-name", "The driver's name for Docker (default peplos)");
    value("--plugin-socket", "Docker plugin socket (default /run/docker/plugins/NAME.sock)");
    value("--api-socket", "API socket (default RUN_DIR/api.sock)");
    value("--api-port", "API port on 127.0.0.1; 0 for none (default 7667)");
    value("--etcd", "Keep the control store in the etcd at these URLs (comma between them)");
    value("--overlay", "Memory for recent writes (default 256MiB)");
    value("--map-cache", "Memory for block map leaves (default 256MiB)");
    value("--log-level", "debug, info, warn or error (default info)");
    value("--log-format", "text or json (default text)");
    app.add_option("--device", flags.devices,
                   "A device: PATH[,size=SIZE][,class=nvme|ssd|hdd]; repeat for more. Replaces the "
                   "list of the file");
}

Result<void> apply_flag(const std::string& flag, const std::string& value, Config& config) {
    if (flag == "--state-dir")
        config.state_dir = value;
    else if (flag == "--run-dir")
        config.run_dir = value;
    else if (flag == "--node-name")
        config.node_name = value;
    else if (flag == "--plugin-name")
        config.plugin_name = value;
    else if (flag == "--plugin-socket")
        config.plugin_socket = value;
    else if (flag == "--api-socket")
        config.api_socket = value;
    else if (flag == "--log-level")
        config.log_level = value;
    else if (flag == "--etcd") {
        config.control.kind = StoreKind::etcd;
        config.control.endpoints = parts_of(value);
    } else if (flag == "--overlay") {
        TRY_ASSIGN(config.overlay_bytes, fabric::parse_size(value));
    } else if (flag == "--api-port") {
        TRY_ASSIGN(config.api_port, parse_port(value));
    } else if (flag == "--map-cache") {
        TRY_ASSIGN(config.leaf_cache_bytes, fabric::parse_size(value));
    } else if (flag == "--log-format") {
        TRY_ASSIGN(config.log_format, parse_log_format(value));
    } else {
        CHECK(false, "flag {} was described but is not applied", flag);
    }
    return {};
}

Result<Config> read_all(const Flags& flags) {
    Config config;
    std::string path = flags.config_path;
    std::error_code ignored;
    if (path.empty() && std::filesystem::exists(kConfigPathDefault, ignored)) {
        path = kConfigPathDefault;
    }
    if (!path.empty()) {
        TRY_ASSIGN(std::string text, read_file(path));
        TRY_ASSIGN(config, parse_config(text, path));
    }
    for (const auto& [flag, value] : flags.values) {
        auto applied = apply_flag(flag, value, config);
        if (!applied) return fail(std::move(applied).error().within(flag));
    }
    if (!flags.devices.empty()) config.devices.clear();
    for (const std::string& text : flags.devices) {
        TRY_ASSIGN(DeviceConfig device, parse_device_flag(text));
        config.devices.push_back(std::move(device));
    }
    return completed(std::move(config));
}

}  // namespace

Result<Config> parse_config(std::string_view text, std::string_view source, Config base) {
    toml::parse_result parsed = toml::parse(text, source);
    if (!parsed) {
        const toml::parse_error& error = parsed.error();
        return fail(Code::invalid_argument, "{} line {}: {}", source, error.source().begin.line,
                    error.description());
    }
    const toml::table& table = parsed.table();
    Config config = std::move(base);
    config.source = std::string(source);
    Section top(table, "", source);
    top.read("node_name", config.node_name);
    top.read("state_dir", config.state_dir);
    top.read("run_dir", config.run_dir);
    TRY(read_sections(top, source, config));
    TRY(read_control(top, source, config.control));
    TRY(read_devices(top, source, config));
    TRY(top.finish());
    return config;
}

std::string host_name() {
    std::array<char, 256> name{};
    if (gethostname(name.data(), name.size() - 1) != 0 || name[0] == '\0') return "localhost";
    return name.data();
}

Result<Config> completed(Config config) {
    if (config.node_name.empty()) config.node_name = host_name();
    if (config.plugin_socket.empty()) {
        config.plugin_socket = fmt::format("/run/docker/plugins/{}.sock", config.plugin_name);
    }
    if (config.managed_socket.empty()) config.managed_socket = config.run_dir + "/plugin.sock";
    if (config.api_socket.empty()) config.api_socket = config.run_dir + "/api.sock";
    if (config.api_token.empty()) config.api_token = config.state_dir + "/api.token";
    TRY(check_path("api.token", config.api_token));
    TRY(check_path("state_dir", config.state_dir));
    TRY(check_path("run_dir", config.run_dir));
    TRY(check_path("plugin.socket", config.plugin_socket));
    TRY(check_path("plugin.managed_socket", config.managed_socket));
    TRY(check_path("api.socket", config.api_socket));
    for (const std::string* path :
         {&config.plugin_socket, &config.managed_socket, &config.api_socket}) {
        if (path->size() > 107) {
            return fail(Code::invalid_argument,
                        "socket path {} is longer than the kernel's 107 bytes", *path);
        }
    }
    TRY(check_plugin_name(config.plugin_name));
    TRY(check_control(config.control));
    TRY(check_devices(config.devices));
    if (std::ranges::find(kLogLevels, config.log_level) == kLogLevels.end()) {
        return fail(Code::invalid_argument, "log.level \"{}\" is unknown; known: {}",
                    config.log_level, listed(kLogLevels));
    }
    if (config.overlay_bytes < 16 * kMiB || config.leaf_cache_bytes < 16 * kMiB) {
        return fail(Code::invalid_argument, "cache.overlay and cache.map need at least 16MiB each");
    }
    return config;
}

Result<DaemonOptions> read_options(int argc, const char* const* argv) {
    CLI::App app("peplosd: the daemon of a Peplos node", "peplosd");
    Flags flags;
    describe_flags(app, flags);
    try {
        app.parse(argc, argv);
    } catch (const CLI::CallForHelp&) {
        return DaemonOptions{.config = {}, .answer = app.help()};
    } catch (const CLI::ParseError& error) {
        return fail(Code::invalid_argument, "{} (see peplosd --help)", error.what());
    }
    if (flags.version) {
        return DaemonOptions{.config = {}, .answer = "peplosd " PEPLOS_VERSION "\n"};
    }
    TRY_ASSIGN(Config config, read_all(flags));
    std::optional<std::string> answer;
    if (flags.check) answer = print_config(config);
    return DaemonOptions{.config = std::move(config), .answer = std::move(answer)};
}

std::string print_config(const Config& config) {
    toml::table top;
    top.insert("node_name", config.node_name);
    top.insert("state_dir", config.state_dir);
    top.insert("run_dir", config.run_dir);
    top.insert("plugin", toml::table{{"name", config.plugin_name},
                                     {"socket", config.plugin_socket},
                                     {"managed_socket", config.managed_socket}});
    top.insert("api", toml::table{{"socket", config.api_socket},
                                  {"port", config.api_port},
                                  {"token", config.api_token}});
    top.insert("cache", toml::table{{"overlay", static_cast<int64_t>(config.overlay_bytes)},
                                    {"map", static_cast<int64_t>(config.leaf_cache_bytes)}});
    top.insert(
        "core",
        toml::table{{"spin_us",
                     std::chrono::duration_cast<std::chrono::microseconds>(config.spin).count()}});
    top.insert("log",
               toml::table{{"level", config.log_level},
                           {"format", config.log_format == LogFormat::json ? "json" : "text"}});
    if (config.control.kind == StoreKind::etcd) {
        toml::array endpoints;
        for (const std::string& endpoint : config.control.endpoints)
            endpoints.push_back(endpoint);
        top.insert("control", toml::table{{"kind", name_of(config.control.kind)},
                                          {"endpoints", std::move(endpoints)},
                                          {"prefix", config.control.prefix},
                                          {"ca", config.control.ca},
                                          {"cert", config.control.cert},
                                          {"key", config.control.key}});
    }
    toml::array devices;
    for (const DeviceConfig& device : config.devices) {
        toml::table entry{{"path", device.path}};
        if (device.create_bytes != 0) {
            entry.insert("size", static_cast<int64_t>(device.create_bytes));
        }
        if (!device.media_class.empty()) entry.insert("class", device.media_class);
        devices.push_back(std::move(entry));
    }
    if (!devices.empty()) top.insert("device", std::move(devices));
    std::ostringstream out;
    out << top << "\n";
    return out.str();
}

}  // namespace peplos::app
