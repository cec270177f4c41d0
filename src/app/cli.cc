#include "app/cli.h"

#include <CLI/CLI.hpp>
#include <cstdio>
#include <cstdlib>
#include <ctime>
#include <filesystem>
#include <fmt/format.h>
#include <fstream>
#include <sstream>
#include <sys/utsname.h>
#include <unistd.h>

#include "api/client.h"
#include "app/command.h"
#include "app/completion.h"
#include "app/config.h"
#include "app/doctor.h"
#include "app/init.h"
#include "app/local_http.h"
#include "app/support.h"
#include "app/views.h"
#include "fabric/node.h"

namespace peplos::app {
namespace {

constexpr const char* kDockerPlugins = "/run/docker/plugins";

// What reads all of a volume's journal and map.
constexpr Duration kLongCall = std::chrono::minutes(31);

// Where dockerd listens: DOCKER_HOST when it names a Unix socket, as for the docker command.
std::string docker_socket() {
    const char* host = std::getenv("DOCKER_HOST");
    std::string_view text = host == nullptr ? "" : host;
    if (text.starts_with("unix://")) return std::string(text.substr(7));
    return "/run/docker.sock";
}

// What the command line said; CLI11 fills it.
struct Words {
    std::string socket;
    std::string config = kConfigPathDefault;
    bool json = false;
    bool plain = false;

    InitOptions init;
    bool init_no_start = false;
    std::string size;
    std::string fs;
    std::string mkfs_options;
    int64_t uid = -1;
    int64_t gid = -1;
    std::string mode;
    uint64_t copies = 0;
    std::vector<std::string> labels;
    std::string name;
    std::vector<std::string> names;
    std::string path;
    std::string media_class;
    bool force = false;
    bool accept_loss = false;
    bool fix = false;
    std::string file;
    std::string shell;
};

using Action = std::function<Result<int>()>;

// One run of the program: what was asked, and how to answer.
class Cli {
  public:
    Cli(std::ostream& out, std::ostream& err, bool terminal)
        : out_(out),
          err_(err),
          terminal_(terminal),
          app_("Peplos: storage for containers", "peplos") {
        describe();
    }

    int run(int argc, const char* const* argv) {
        // `peplos [OPTIONS] complete -- WORDS...`: the words are material, not a command of ours.
        std::optional<std::vector<std::string>> words;
        for (int i = 1; i + 1 < argc && !words; ++i) {
            if (std::string_view(argv[i]) != "complete" || std::string_view(argv[i + 1]) != "--") {
                continue;
            }
            words.emplace(argv + i + 2, argv + argc);
            argc = i;
        }
        try {
            app_.parse(argc, argv);
        } catch (const CLI::CallForHelp&) {
            out_ << app_.help();
            return 0;
        } catch (const CLI::CallForVersion&) {
            out_ << "peplos " PEPLOS_VERSION "\n";
            return 0;
        } catch (const CLI::ParseError& error) {
            std::string unknown = unknown_word();
            err_ << "peplos: "
                 << (unknown.empty() ? error.what() : "there is no command " + unknown)
                 << "\nSee: peplos" << (deepest() == &app_ ? "" : " " + path_of(deepest()))
                 << " --help\n";
            return 2;
        }
        if (words) return complete(std::move(*words));
        if (!action_) {
            out_ << app_.help();
            return 2;
        }
        auto done = action_();
        if (done) return *done;
        report(done.error());
        return 1;
    }

  private:
    Style style() const {
        return terminal_ && !words_.plain && !words_.json ? Style::colours : Style::plain;
    }

    const CLI::App* deepest() const {
        const CLI::App* app = &app_;
        while (!app->get_subcommands().empty())
            app = app->get_subcommands().front();
        return app;
    }
    // The word in place of a command that does not exist; CLI11 says only that one is required.
    std::string unknown_word() const {
        const CLI::App* app = deepest();
        std::vector<std::string> left = app_.remaining(true);
        bool wants_command = app->get_require_subcommand_min() > 0 || app == &app_;
        if (!wants_command || left.empty() || left.front().starts_with('-')) return {};
        return (app == &app_ ? "" : path_of(app) + " ") + left.front();
    }
    static std::string path_of(const CLI::App* app) {
        const CLI::App* parent = app->get_parent();
        if (parent == nullptr || parent->get_parent() == nullptr) return app->get_name();
        return path_of(parent) + " " + app->get_name();
    }

    void report(const Error& error) {
        if (words_.json) {
            Json body = {
                {"error", {{"code", name_of(error.code())}, {"message", error.message()}}}};
            err_ << body.dump(-1, ' ', false, Json::error_handler_t::replace) << "\n";
            return;
        }
        Style style = terminal_ && !words_.plain ? Style::colours : Style::plain;
        err_ << paint("error", Colour::red, style) << ": " << printable(error.message()) << "\n";
    }

    CLI::App* add(CLI::App* parent, const std::string& name, const std::string& help,
                  Result<int> (Cli::*run)()) {
        CLI::App* sub = parent->add_subcommand(name, help);
        sub->callback([this, run] { action_ = [this, run] { return (this->*run)(); }; });
        return sub;
    }
    CLI::App* add_group(const std::string& name, const std::string& help) {
        CLI::App* sub = app_.add_subcommand(name, help);
        sub->require_subcommand(1);
        return sub;
    }

    void describe();
    void describe_volumes();

    Result<Config> config() const;
    std::string api_socket() const;
    Result<Json> call(const std::string& method, const std::string& target,
                      const Json& body = nullptr) const;
    int print(const Json& answer, const std::string& text);
    std::string volume_target(const std::string& name, const char* verb = "") const {
        return "/v1/volumes/" + api::Client::path_part(name) + verb;
    }
    // Prints the sentence that the API answers with, or `otherwise`.
    int print_message(const Json& answer, const std::string& otherwise);

    Result<int> init();
    Result<int> status();
    Result<int> volume_create();
    Result<int> volume_ls();
    Result<int> volume_show();
    Result<int> volume_grow();
    Result<int> volume_rm();
    Result<int> volume_trim();
    Result<int> volume_detach();
    Result<int> volume_recover();
    Result<int> device_add();
    Result<int> device_ls();
    Result<int> doctor();
    Result<int> scrub_start();
    Result<int> scrub_show();
    Result<int> bench();
    Result<int> support();
    Result<int> completion();
    int complete(std::vector<std::string> words);
    DoctorWorld doctor_world() const;

    std::ostream& out_;
    std::ostream& err_;
    bool terminal_;
    CLI::App app_;
    Words words_;
    Action action_;
};

void Cli::describe() {
    app_.require_subcommand(0, 1);
    app_.fallthrough();
    app_.set_version_flag("--version", "peplos " PEPLOS_VERSION);
    app_.add_option("--socket", words_.socket, "API socket of peplosd")->envname("PEPLOS_SOCKET");
    app_.add_option("--config", words_.config, "Configuration of the node");
    app_.add_flag("--json", words_.json, "Print JSON");
    app_.add_flag("--plain", words_.plain, "No colours");

    CLI::App* init = add(&app_, "init", "Make this machine the first node", &Cli::init);
    init->add_option("--state-dir", words_.init.state_dir, "Where the node keeps its state");
    init->add_option("--size", words_.size,
                     "Size of the first device (default: half of what is free)");
    init->add_flag("--no-start", words_.init_no_start, "Configure only");
    add(&app_, "status", "The node on one screen", &Cli::status);
    describe_volumes();

    CLI::App* device = add_group("device", "Files and disks that hold the data");
    CLI::App* device_add =
        add(device, "add", "Give a file or a block device to the node", &Cli::device_add);
    device_add->add_option("PATH", words_.path, "File (made with --size) or block device")
        ->required();
    device_add->add_option("--size", words_.size, "Size of a file that does not exist yet");
    device_add->add_option("--class", words_.media_class, "nvme, ssd or hdd (default: looked up)");
    add(device, "ls", "List the devices", &Cli::device_ls);

    CLI::App* doctor = add(&app_, "doctor", "Look for trouble, say what to do", &Cli::doctor);
    doctor->add_flag("--fix", words_.fix, "Mend what is safe to mend");
    CLI::App* scrub = add_group("scrub", "Check all stored bytes against their checksums");
    add(scrub, "start", "Start a scrub in the background", &Cli::scrub_start);
    add(scrub, "show", "Progress, or the last result", &Cli::scrub_show);
    add(&app_, "bench", "How to measure this node", &Cli::bench);
    CLI::App* support =
        add(&app_, "support", "Pack logs and state, without secrets", &Cli::support);
    support->add_option("FILE", words_.file,
                        "Archive to write (default peplos-support-TIME.tar.gz)");
    CLI::App* completion = add(&app_, "completion", "Print a completion script", &Cli::completion);
    completion->add_option("SHELL", words_.shell, "bash, zsh or fish")->required();
}

void Cli::describe_volumes() {
    CLI::App* volume = add_group("volume", "Volumes: what containers mount");
    CLI::App* create = add(volume, "create", "Create a volume", &Cli::volume_create);
    create->add_option("NAME", words_.name)->required();
    create->add_option("--size", words_.size, "Such as 20GiB (default 10GiB)");
    create->add_option("--fs", words_.fs, "ext4 (default) or xfs");
    create->add_option("--mkfs-options", words_.mkfs_options, "Passed to mkfs");
    create->add_option("--copies", words_.copies, "Copies on different nodes (default 1)");
    create->add_option("--uid", words_.uid, "Owner of the mounted directory");
    create->add_option("--gid", words_.gid, "Group of the mounted directory");
    create->add_option("--mode", words_.mode, "Its permission bits, octal");
    create->add_option("--label", words_.labels, "KEY=VALUE; repeat for more");
    add(volume, "ls", "List the volumes", &Cli::volume_ls);
    CLI::App* show = add(volume, "show", "Everything about a volume", &Cli::volume_show);
    show->add_option("NAME", words_.name)->required();
    CLI::App* grow =
        add(volume, "grow", "Make a volume larger, while it is in use", &Cli::volume_grow);
    grow->add_option("NAME", words_.name)->required();
    grow->add_option("SIZE", words_.size, "The new size, such as 40GiB")->required();
    CLI::App* rm = add(volume, "rm", "Remove volumes and their data", &Cli::volume_rm);
    rm->add_option("NAME", words_.names)->required()->expected(1, -1);
    CLI::App* trim = add(volume, "trim", "Give freed blocks back now", &Cli::volume_trim);
    trim->add_option("NAME", words_.name)->required();
    CLI::App* recover = add(volume, "recover", "See what damage has cost a volume, and go on",
                            &Cli::volume_recover);
    recover->add_option("NAME", words_.name)->required();
    recover->add_flag("--accept-loss", words_.accept_loss,
                      "Go on without what is lost, for good (default: only show it)");
    CLI::App* detach = add(volume, "detach", "Take a broken attachment away", &Cli::volume_detach);
    detach->add_option("NAME", words_.name)->required();
    detach->add_flag("--force", words_.force,
                     "Containers that use the volume get I/O errors from then on");
}

Result<Config> Cli::config() const {
    std::ifstream file(words_.config, std::ios::binary);
    if (!file) return completed(Config{});
    std::ostringstream text;
    text << file.rdbuf();
    TRY_ASSIGN(Config parsed, parse_config(text.str(), words_.config));
    return completed(std::move(parsed));
}

std::string Cli::api_socket() const {
    if (!words_.socket.empty()) return words_.socket;
    auto read = config();
    return read ? read->api_socket : "/run/peplos/api.sock";
}

Result<Json> Cli::call(const std::string& method, const std::string& target,
                       const Json& body) const {
    api::Client client(api_socket());
    if (method == "GET") return client.get(target);
    if (method == "DELETE") return client.remove(target);
    if (method == "PATCH") return client.patch(target, body);
    return body.is_null() ? client.post(target) : client.post(target, body);
}

int Cli::print(const Json& answer, const std::string& text) {
    if (words_.json) {
        out_ << answer.dump(2, ' ', false, Json::error_handler_t::replace) << "\n";
    } else {
        out_ << text;
    }
    return 0;
}

int Cli::print_message(const Json& answer, const std::string& otherwise) {
    return print(answer, text_in(answer, "message", otherwise) + "\n");
}

Result<int> Cli::init() {
    InitOptions options = words_.init;
    options.config_path = words_.config;
    options.start = !words_.init_no_start;
    if (!words_.size.empty()) {
        TRY_ASSIGN(options.device_bytes, fabric::parse_size(words_.size));
    }
    TRY_ASSIGN(std::string text, init_node(options));
    return print(Json{{"message", text}}, text);
}

Result<int> Cli::status() {
    TRY_ASSIGN(Json status, call("GET", "/v1/status"));
    TRY_ASSIGN(Json volumes, call("GET", "/v1/volumes"));
    Json both = status;
    both["volumes"] = list_in(volumes, "volumes");
    return print(both, show_status(status, volumes, style()));
}

Result<int> Cli::volume_create() {
    Json body = {{"name", words_.name}};
    if (!words_.size.empty()) body["size"] = words_.size;
    if (!words_.fs.empty()) body["fs"] = words_.fs;
    if (!words_.mkfs_options.empty()) body["mkfs_options"] = words_.mkfs_options;
    if (words_.copies != 0) body["copies"] = words_.copies;
    if (words_.uid != -1) body["uid"] = words_.uid;
    if (words_.gid != -1) body["gid"] = words_.gid;
    if (!words_.mode.empty()) body["mode"] = words_.mode;
    for (const std::string& label : words_.labels) {
        size_t equals = label.find('=');
        if (equals == std::string::npos || equals == 0) {
            return fail(Code::invalid_argument, "label \"{}\" must be KEY=VALUE", label);
        }
        body["labels"][label.substr(0, equals)] = label.substr(equals + 1);
    }
    TRY_ASSIGN(Json volume, call("POST", "/v1/volumes", body));
    std::string next = fmt::format("docker run -v {0}:/data ...", words_.name);
    return print(volume, fmt::format("created volume {} of {}. Next: {}\n", words_.name,
                                     fabric::print_size(number_in(volume, "size_bytes")), next));
}

Result<int> Cli::volume_ls() {
    TRY_ASSIGN(Json volumes, call("GET", "/v1/volumes"));
    return print(volumes, show_volumes(volumes, style()));
}

Result<int> Cli::volume_show() {
    TRY_ASSIGN(Json volume, call("GET", volume_target(words_.name)));
    return print(volume, show_volume(volume, style()));
}

Result<int> Cli::volume_grow() {
    Json body = {{"size", words_.size}};
    TRY_ASSIGN(Json answer, call("PATCH", volume_target(words_.name), body));
    return print_message(answer, fmt::format("{} has {} now", words_.name,
                                             fabric::print_size(number_in(answer, "size_bytes"))));
}

Result<int> Cli::volume_rm() {
    int code = 0;
    Json removed = Json::array();
    for (const std::string& name : words_.names) {
        auto answer = call("DELETE", volume_target(name));
        if (!answer) {
            report(answer.error());
            code = 1;
            continue;
        }
        removed.push_back(name);
        if (!words_.json) out_ << "removed " << name << "\n";
    }
    if (words_.json) print(Json{{"removed", std::move(removed)}}, "");
    return code;
}

Result<int> Cli::volume_trim() {
    TRY_ASSIGN(Json answer, call("POST", volume_target(words_.name, "/trim")));
    return print(answer, fmt::format("{}: the file system gave {} back\n", words_.name,
                                     fabric::print_size(number_in(answer, "trimmed_bytes"))));
}

Result<int> Cli::volume_detach() {
    if (!words_.force) {
        return fail(Code::invalid_argument,
                    "detach cuts containers off: those that use {} get I/O errors. If that is "
                    "meant: peplos volume detach {} --force",
                    words_.name, words_.name);
    }
    TRY_ASSIGN(Json answer,
               call("POST", volume_target(words_.name, "/detach"), Json{{"force", true}}));
    return print_message(answer, "detached " + words_.name);
}

Result<int> Cli::volume_recover() {
    Json body = {{"accept_loss", words_.accept_loss}};
    api::Client client(api_socket(), kLongCall);
    TRY_ASSIGN(Json report, client.post(volume_target(words_.name, "/recover"), body));
    print(report, show_recovery(report));
    // For scripts: something is lost, and nobody has accepted that yet.
    return flag_in(report, "is_whole") || flag_in(report, "is_done") ? 0 : 1;
}

Result<int> Cli::device_add() {
    std::error_code error;
    Json body = {{"path", std::filesystem::absolute(words_.path, error).string()}};
    if (!words_.size.empty()) body["size"] = words_.size;
    if (!words_.media_class.empty()) body["class"] = words_.media_class;
    TRY_ASSIGN(Json device, call("POST", "/v1/devices", body));
    return print(device, fmt::format("added {} ({})\n", text_in(device, "path"),
                                     fabric::print_size(number_in(device, "bytes"))));
}

Result<int> Cli::device_ls() {
    TRY_ASSIGN(Json devices, call("GET", "/v1/devices"));
    return print(devices, show_devices(devices, style()));
}

DoctorWorld Cli::doctor_world() const {
    DoctorWorld world;
    world.peplos = [this](const std::string& method, const std::string& target, const Json& body) {
        return call(method, target, body);
    };
    world.docker = [](const std::string& method, const std::string& target) -> Result<Json> {
        LocalHttp http(docker_socket(), std::chrono::seconds(10));
        TRY_ASSIGN(Answer answer, http.ask(method, target, ""));
        Json json = Json::parse(answer.body, nullptr, false);
        if (json.is_discarded() || answer.status >= 400) {
            return fail(Code::unavailable, "dockerd answered {} to {}", answer.status, target);
        }
        return json;
    };
    world.read_file = [](const std::string& path) {
        std::ifstream file(path, std::ios::binary);
        std::ostringstream text;
        text << file.rdbuf();
        return text.str();
    };
    world.exists = [](const std::string& path) {
        std::error_code ignored;
        return std::filesystem::exists(path, ignored);
    };
    world.plugin_sockets = [] { return sockets_in(kDockerPlugins); };
    world.is_dead = [](const std::string& path) { return is_dead_socket(path); };
    world.remove_file = [](const std::string& path) -> Result<void> {
        std::error_code error;
        std::filesystem::remove(path, error);
        if (error) return fail(Code::io_error, "cannot remove {}: {}", path, error.message());
        return {};
    };
    utsname name{};
    if (::uname(&name) == 0) world.kernel_release = name.release;
    if (auto read = config()) {
        world.plugin_name = read->plugin_name;
        world.plugin_socket = read->plugin_socket;
    }
    return world;
}

Result<int> Cli::doctor() {
    DoctorWorld world = doctor_world();
    std::vector<Finding> findings = examine(world);
    if (words_.fix) {
        for (const Finding& finding : findings) {
            if (finding.fix == nullptr) continue;
            auto fixed = finding.fix();
            if (!words_.json) {
                out_ << (fixed ? "mended: " + *fixed : "could not mend: " + fixed.error().message())
                     << "\n";
            }
        }
        findings = examine(world);
    }
    bool errors = false;
    for (const Finding& finding : findings)
        errors |= finding.level == Finding::Level::error;
    print(findings_json(findings), show_findings(findings, style()));
    return errors ? 1 : 0;
}

Result<int> Cli::scrub_start() {
    TRY_ASSIGN(Json answer, call("POST", "/v1/scrub"));
    return print_message(answer, "scrub started. Next: peplos scrub show");
}

Result<int> Cli::scrub_show() {
    TRY_ASSIGN(Json report, call("GET", "/v1/scrub"));
    return print(report, show_scrub(report, style()));
}

Result<int> Cli::bench() {
    std::string text =
        "Measuring a node honestly means the raw disk and Peplos side by side, in one run:\n"
        "\n"
        "  engine against raw disk   bench/ in the source tree; docs/performance.md has the "
        "command\n"
        "  one volume, end to end    fio on its loop device (see: peplos volume show NAME), with\n"
        "                            --direct=1, QD1 and QD32, beside the same fio on the raw "
        "disk\n"
        "\n"
        "Never measure on a device that holds data you need, nor compare a cached figure with an\n"
        "uncached one.\n";
    return print(Json{{"message", text}}, text);
}

Result<int> Cli::support() {
    std::string path = words_.file;
    if (path.empty()) {
        path = fmt::format("peplos-support-{}.tar.gz", static_cast<int64_t>(std::time(nullptr)));
    }
    std::vector<SupportFile> files;
    auto add_call = [&](const std::string& name, const std::string& target) {
        auto answer = call("GET", target);
        files.push_back({name, answer ? answer->dump(2) : answer.error().text()});
    };
    add_call("status.json", "/v1/status");
    add_call("volumes.json", "/v1/volumes");
    add_call("devices.json", "/v1/devices");
    add_call("scrub.json", "/v1/scrub");
    auto metrics = api::Client(api_socket()).get_text("/metrics");
    files.push_back({"metrics.txt", metrics ? *metrics : metrics.error().text()});
    DoctorWorld world = doctor_world();
    files.push_back({"doctor.txt", show_findings(examine(world), Style::plain)});
    files.push_back({"peplosd.toml", world.read_file(words_.config)});
    files.push_back({"mountinfo.txt", world.read_file("/proc/self/mountinfo")});
    files.push_back({"version.txt", "peplos " PEPLOS_VERSION ", kernel " + world.kernel_release});
    auto add_command = [&](const std::string& name, const std::vector<std::string>& command) {
        auto result = run_command(command, 20);
        files.push_back({name, result ? result->output : result.error().text()});
    };
    add_command("journal.txt", {"journalctl", "-u", "peplosd", "-u", "peplos-holder", "-n", "20000",
                                "--no-pager"});
    add_command("loops.txt", {"losetup", "--list"});
    add_command("disks.txt", {"lsblk", "-o", "NAME,SIZE,ROTA,TYPE,MOUNTPOINT"});
    add_command("space.txt", {"df", "-h"});
    TRY(write_support_archive(path, files));
    return print(Json{{"file", path}},
                 fmt::format("wrote {} ({} files; values that look like secrets were removed, "
                             "volume names were not)\n",
                             path, files.size()));
}

Result<int> Cli::completion() {
    TRY_ASSIGN(std::string script, completion_script(words_.shell));
    out_ << script;
    return 0;
}

int Cli::complete(std::vector<std::string> words) {
    auto volumes = [this]() {
        std::vector<std::string> names;
        auto answer = call("GET", "/v1/volumes");
        if (!answer) return names;
        for (const Json& volume : list_in(*answer, "volumes")) {
            names.push_back(text_in(volume, "name", ""));
        }
        return names;
    };
    for (const std::string& word : completions(app_, std::move(words), volumes)) {
        out_ << word << "\n";
    }
    return 0;
}

}  // namespace

int run_cli(int argc, const char* const* argv, std::ostream& out, std::ostream& err,
            bool terminal) {
    return Cli(out, err, terminal).run(argc, argv);
}

}  // namespace peplos::app
