#include "app/doctor.h"

#include <algorithm>
#include <charconv>
#include <fmt/format.h>
#include <set>
#include <sstream>

#include "api/client.h"
#include "app/views.h"
#include "fabric/node.h"

namespace peplos::app {
namespace {

using Level = Finding::Level;

Finding ok(std::string check, std::string reason) {
    return {.check = std::move(check), .reason = std::move(reason)};
}

// "6.18.44-x" -> {6, 18}; zeros when it is something else.
std::pair<int, int> version_of(std::string_view release) {
    int major = 0;
    int minor = 0;
    auto [at, error] = std::from_chars(release.data(), release.data() + release.size(), major);
    if (error == std::errc{} && at != release.data() + release.size() && *at == '.') {
        std::from_chars(at + 1, release.data() + release.size(), minor);
    }
    return {major, minor};
}

void check_kernel(const DoctorWorld& world, std::vector<Finding>& out) {
    if (version_of(world.kernel_release) < std::pair(6, 9)) {
        out.push_back(
            {.level = Level::warning,
             .check = "kernel-fuse",
             .reason = fmt::format("kernel {} has no FUSE_NOTIFY_RESEND (6.9 brought it): "
                                   "a kill of peplosd can fail I/O of containers",
                                   world.kernel_release),
             .next = "on Debian 12: apt install -t bookworm-backports linux-image-amd64"});
    } else if (!world.exists("/dev/fuse")) {
        out.push_back({.level = Level::error,
                       .check = "kernel-fuse",
                       .reason = "/dev/fuse is missing: volumes cannot be attached",
                       .next = "modprobe fuse"});
    } else {
        out.push_back(ok("kernel-fuse", "FUSE with resend, kernel " + world.kernel_release));
    }
    if (!world.exists("/dev/loop-control")) {
        out.push_back({.level = Level::error,
                       .check = "kernel-loop",
                       .reason = "/dev/loop-control is missing: volumes cannot be attached",
                       .next = "modprobe loop"});
    } else {
        out.push_back(ok("kernel-loop", "loop devices"));
    }
    std::string known = world.read_file("/proc/filesystems");
    std::string modules =
        world.read_file(fmt::format("/lib/modules/{}/modules.dep", world.kernel_release));
    for (const char* fs : {"ext4", "xfs"}) {
        bool loaded = known.find(std::string("\t") + fs + "\n") != std::string::npos;
        // A module is loaded by the mount that needs it.
        if (loaded || modules.find(fmt::format("/{}.ko", fs)) != std::string::npos) continue;
        out.push_back({.level = Level::warning,
                       .check = "kernel-fs",
                       .reason = fmt::format("kernel {} has neither {} nor a module for it: such "
                                             "volumes cannot be mounted",
                                             world.kernel_release, fs),
                       .next = "install the kernel's full set of modules"});
    }
}

void check_daemon(const Result<Json>& status, std::vector<Finding>& out) {
    if (!status) {
        out.push_back(
            {.level = Level::error,
             .check = "daemon",
             .reason = status.error().message(),
             .next = "systemctl start peplosd; journalctl -u peplosd says why it stopped"});
        return;
    }
    const Json& health = child_in(*status, "health");
    std::string light = text_in(health, "light", "red");
    if (light == "green") {
        out.push_back(ok("daemon", "peplosd " + text_in(*status, "version") + " answers, healthy"));
    } else {
        out.push_back({.level = light == "yellow" ? Level::warning : Level::error,
                       .check = "daemon",
                       .reason = text_in(health, "reason", "peplosd is not healthy"),
                       .next = text_in(health, "next", "peplos status")});
    }
    for (const Json& device : list_in(*status, "devices")) {
        uint64_t total = number_in(device, "segment_bytes_total");
        uint64_t free_bytes = number_in(device, "segment_bytes_free");
        std::string path = text_in(device, "path");
        if (total == 0 || free_bytes * 10 >= total) {
            out.push_back(ok("device-space",
                             fmt::format("{}: {} free of {}", path, fabric::print_size(free_bytes),
                                         fabric::print_size(total))));
            continue;
        }
        out.push_back(
            {.level = free_bytes * 20 < total ? Level::error : Level::warning,
             .check = "device-space",
             .reason = fmt::format("{} is nearly full: {} free of {}", path,
                                   fabric::print_size(free_bytes), fabric::print_size(total)),
             .next = "peplos device add PATH, or remove volumes (peplos volume ls)"});
    }
}

// Volumes whose file system is in trouble; --fix takes the dead attachment away.
void check_attachments(const DoctorWorld& world, const Json& volumes, std::vector<Finding>& out) {
    size_t healthy = 0;
    for (const Json& volume : list_in(volumes, "volumes")) {
        const Json& attach = child_in(volume, "attach");
        if (!attach.is_object()) continue;
        std::string problem = text_in(attach, "problem", "");
        if (problem.empty()) {
            ++healthy;
            continue;
        }
        std::string name = text_in(volume, "name");
        bool held = !list_in(child_in(volume, "holders"), "").empty();
        Finding finding{
            .level = Level::error,
            .check = "attachment",
            .reason = fmt::format("volume {} on {}: {}", name, text_in(attach, "device"), problem),
            .next = fmt::format("peplos volume detach {} --force", name)};
        std::string told = text_in(child_in(volume, "health"), "next", "");
        if (!told.empty() && told != "peplos doctor --fix") {
            finding.next = told;
        } else if (held) {
            finding.next += " (containers that use it get I/O errors from then on)";
        } else {
            finding.next = "peplos doctor --fix";
            finding.fix = [peplos = world.peplos, name]() -> Result<std::string> {
                TRY(peplos("POST", "/v1/volumes/" + api::Client::path_part(name) + "/detach",
                           {{"force", true}}));
                return fmt::format("took the dead attachment of {} away", name);
            };
        }
        out.push_back(std::move(finding));
    }
    if (healthy != 0) out.push_back(ok("attachment", fmt::format("{} attached, healthy", healthy)));
}

// Volumes that are not well by themselves: closed by damage, or with lost blocks.
void check_volumes(const Json& volumes, std::vector<Finding>& out) {
    for (const Json& volume : list_in(volumes, "volumes")) {
        const Json& health = child_in(volume, "health");
        const std::string light = text_in(health, "light", "green");
        const bool is_attachment = !text_in(child_in(volume, "attach"), "problem", "").empty();
        if (light == "green" || is_attachment) continue;
        out.push_back({.level = light == "yellow" ? Level::warning : Level::error,
                       .check = "volume",
                       .reason = fmt::format("volume {}: {}", text_in(volume, "name"),
                                             text_in(health, "reason", "is not well")),
                       .next = text_in(health, "next", "peplos status")});
    }
}

// What the kernel still has of volumes that the daemon does not serve, by the daemon's own word.
void check_leftovers(const DoctorWorld& world, std::vector<Finding>& out) {
    auto answer = world.peplos("GET", "/v1/leftovers", nullptr);
    if (!answer) {
        out.push_back({.level = Level::warning,
                       .check = "leftovers",
                       .reason = answer.error().message(),
                       .next = "peplos doctor, once more"});
        return;
    }
    bool fix_is_given = false;
    for (const Json& one : list_in(*answer, "leftovers")) {
        std::string volume = text_in(one, "volume", "");
        Finding finding{.level = Level::warning,
                        .check = "leftovers",
                        .reason = text_in(one, "what", "something is left of a lost volume"),
                        .next = "peplos doctor --fix"};
        if (flag_in(one, "has_holders")) {
            finding.level = Level::error;
            finding.reason =
                fmt::format("containers wait for volume {}: {}", volume, finding.reason);
            finding.next = fmt::format(
                "bring its device back and restart peplosd; or give up: peplos volume detach {} "
                "--force (its containers get I/O errors)",
                volume);
        } else if (!fix_is_given) {
            // One call mends all.
            fix_is_given = true;
            finding.fix = [peplos = world.peplos]() -> Result<std::string> {
                TRY_ASSIGN(Json mended, peplos("POST", "/v1/leftovers/mend", nullptr));
                return fmt::format("took {} leftovers of lost volumes away",
                                   list_in(mended, "leftovers").size());
            };
        }
        out.push_back(std::move(finding));
    }
}

// The volumes of one driver.
std::string volumes_of(const std::string& driver) {
    return "/volumes?filters=%7B%22driver%22%3A%5B%22" + driver + "%22%5D%7D";
}

// A volume that dockerd made with its own driver hides ours of the same name: containers would
// write to a local folder and nobody would notice.
void check_shadows(const DoctorWorld& world, const Json& volumes, std::vector<Finding>& out) {
    auto local = world.docker("GET", volumes_of("local"));
    if (!local) return;
    std::set<std::string> ours;
    for (const Json& volume : list_in(volumes, "volumes"))
        ours.insert(text_in(volume, "name"));
    for (const Json& volume : list_in(*local, "Volumes")) {
        std::string name = text_in(volume, "Name");
        if (text_in(volume, "Driver") != "local" || !ours.contains(name)) continue;
        out.push_back({.level = Level::error,
                       .check = "shadowed-volume",
                       .reason = fmt::format("Docker has a local volume named {0} as well: `-v "
                                             "{0}:...` may use that one and not Peplos",
                                             name),
                       .next = fmt::format("save what is in it, then: docker volume rm {}", name)});
    }
}

void check_visible(const DoctorWorld& world, const Json& volumes, const std::string& driver,
                   std::vector<Finding>& out) {
    auto seen = world.docker("GET", volumes_of(driver));
    if (!seen) return;
    out.push_back(ok("docker-volumes", fmt::format("Docker sees {} of {} Peplos volumes",
                                                   list_in(*seen, "Volumes").size(),
                                                   list_in(volumes, "volumes").size())));
}

// dockerd tries a plugin whose socket is there for 15 s, with each command that lists volumes. True
// when there is one.
bool check_dead_sockets(const DoctorWorld& world, std::vector<Finding>& out) {
    bool found = false;
    for (const std::string& path : world.plugin_sockets()) {
        if (path == world.plugin_socket || !world.is_dead(path)) continue;
        found = true;
        out.push_back({.level = Level::warning,
                       .check = "dead-plugin",
                       .reason = fmt::format("nobody listens on {}: Docker waits 15 s for it "
                                             "whenever it lists volumes",
                                             path),
                       .next = "start its plugin, or take the socket away: peplos doctor --fix",
                       .fix = [world, path]() -> Result<std::string> {
                           if (!world.is_dead(path)) return path + " is served again: left alone";
                           TRY(world.remove_file(path));
                           return "took the dead socket " + path + " away";
                       }});
    }
    return found;
}

// The driver's name when dockerd can use it, else nothing.
std::string check_plugin(const DoctorWorld& world, std::vector<Finding>& out) {
    bool exists = world.exists(world.plugin_socket);
    bool socket = exists && !world.is_dead(world.plugin_socket);
    bool managed = false;
    auto plugins = world.docker("GET", "/plugins");
    if (plugins) {
        for (const Json& plugin : list_in(*plugins, "")) {
            std::string name = text_in(plugin, "Name");
            if (name != world.plugin_name && name != world.plugin_name + ":latest") continue;
            managed = managed || flag_in(plugin, "Enabled");
        }
    }
    if (exists && managed) {
        out.push_back({.level = Level::error,
                       .check = "plugin",
                       .reason = fmt::format("the name {} is served twice: by {} and by a managed "
                                             "plugin; Docker may use either",
                                             world.plugin_name, world.plugin_socket),
                       .next = fmt::format("keep one: docker plugin disable {}, or set another "
                                           "plugin.socket in peplosd.toml",
                                           world.plugin_name)});
        return {};
    }
    if (exists && !socket) {
        out.push_back({.level = Level::error,
                       .check = "plugin",
                       .reason = fmt::format("nobody listens on {}: Docker waits 15 s for it, then "
                                             "fails, with each command that needs a volume",
                                             world.plugin_socket),
                       .next = "systemctl start peplosd"});
        return {};
    }
    if (!exists && !managed) {
        out.push_back({.level = Level::error,
                       .check = "plugin",
                       .reason = fmt::format("dockerd cannot see the plugin: there is no {} and no "
                                             "managed plugin {}",
                                             world.plugin_socket, world.plugin_name),
                       .next = "systemctl enable --now peplos-docker.socket"});
        return {};
    }
    out.push_back(ok("plugin", managed ? "managed plugin, enabled" : world.plugin_socket));
    return managed ? world.plugin_name + ":latest" : world.plugin_name;
}

void check_docker(const DoctorWorld& world, const Json* volumes, std::vector<Finding>& out) {
    bool waits = check_dead_sockets(world, out) || world.is_dead(world.plugin_socket);
    auto info = world.docker("GET", "/version");
    if (!info) {
        out.push_back({.level = Level::warning,
                       .check = "docker",
                       .reason = "dockerd does not answer: " + info.error().message(),
                       .next = "systemctl start docker (Peplos works without it)"});
        return;
    }
    std::string driver = check_plugin(world, out);
    // What is asked next lists volumes: once the sockets are gone, doctor looks again.
    if (volumes == nullptr || waits) return;
    check_shadows(world, *volumes, out);
    if (!driver.empty()) check_visible(world, *volumes, driver, out);
}

}  // namespace

std::vector<Finding> examine(const DoctorWorld& world) {
    std::vector<Finding> out;
    check_kernel(world, out);
    auto status = world.peplos("GET", "/v1/status", nullptr);
    check_daemon(status, out);
    Json volumes = Json::object();
    bool volumes_known = false;
    if (status) {
        auto listed = world.peplos("GET", "/v1/volumes", nullptr);
        if (listed) {
            volumes = std::move(*listed);
            volumes_known = true;
        } else {
            out.push_back({.level = Level::error,
                           .check = "volumes",
                           .reason = listed.error().message(),
                           .next = "peplos volume ls"});
        }
    }
    check_volumes(volumes, out);
    check_attachments(world, volumes, out);
    if (status) check_leftovers(world, out);
    check_docker(world, volumes_known ? &volumes : nullptr, out);
    return out;
}

std::string show_findings(const std::vector<Finding>& findings, Style style) {
    std::string out;
    size_t troubles = 0;
    for (const Finding& finding : findings) {
        Colour colour = Colour::green;
        std::string_view word = "ok";
        if (finding.level == Level::warning) {
            colour = Colour::yellow;
            word = "warning";
        }
        if (finding.level == Level::error) {
            colour = Colour::red;
            word = "error";
        }
        if (finding.level != Level::ok) ++troubles;
        std::string pad(8 - word.size(), ' ');
        out += fmt::format("{}{}{:<16}{}\n", paint(word, colour, style), pad, finding.check,
                           finding.reason);
        if (!finding.next.empty()) out += fmt::format("{:24}next: {}\n", "", finding.next);
    }
    out += troubles == 0 ? "Nothing to mend.\n"
                         : fmt::format("{} finding{}.\n", troubles, troubles == 1 ? "" : "s");
    return out;
}

Json findings_json(const std::vector<Finding>& findings) {
    Json list = Json::array();
    for (const Finding& finding : findings) {
        const char* level = finding.level == Level::ok        ? "ok"
                            : finding.level == Level::warning ? "warning"
                                                              : "error";
        list.push_back({{"level", level},
                        {"check", finding.check},
                        {"reason", finding.reason},
                        {"next", finding.next},
                        {"fixable", finding.fix != nullptr}});
    }
    return {{"findings", std::move(list)}};
}

}  // namespace peplos::app
