#include "api/routes.h"

#include <array>

namespace peplos::api {
namespace {

using http::Effect;
using runtime::Task;

constexpr Duration kQuick = std::chrono::seconds(5);
// Runs children (growing, trimming) or makes files: longer, but below any client's patience.
constexpr Duration kSlow = std::chrono::seconds(25);
// Reads a journal and a map as a whole; whoever asks for it waits.
constexpr Duration kLong = std::chrono::minutes(30);

Answer json_answer(const Json& body) {
    return {"application/json", http::print(body) + "\n"};
}

// Takes the path's next part off its front.
std::string_view next_part(std::string_view& path) {
    if (path.starts_with('/')) path.remove_prefix(1);
    std::string_view part = path.substr(0, path.find('/'));
    path.remove_prefix(part.size());
    return part;
}

bool path_matches(std::string_view pattern, std::string_view path, std::string& name) {
    while (!pattern.empty() && !path.empty()) {
        std::string_view want = next_part(pattern), got = next_part(path);
        if (want == "{name}") {
            if (got.empty()) return false;
            name = std::string(got);
        } else if (want != got) {
            return false;
        }
    }
    return pattern.empty() && path.empty();
}

}  // namespace

std::span<const Routes::Route> Routes::table() {
    using enum Access;
    static const std::array<Route, 19> kTable = {{
        {"GET", "/healthz", open, 200, "", "Health", kQuick,
         "Whether the daemon answers, and the node's health", &Routes::healthz},
        {"GET", "/openapi.json", open, 200, "", "Document", kQuick, "This document",
         &Routes::openapi},
        {"GET", "/metrics", open, 200, "", "", kQuick, "Metrics in Prometheus' text format",
         &Routes::metrics},
        {"GET", "/v1/status", open, 200, "", "Status", kQuick, "The node, its devices and health",
         &Routes::status},
        {"GET", "/v1/doctor", token, 200, "", "Doctor", kQuick,
         "Everything that is not green, with the data behind it", &Routes::doctor},
        {"GET", "/v1/leftovers", token, 200, "", "LeftoverList", kQuick,
         "What the kernel still has of volumes that nobody serves", &Routes::leftovers},
        {"POST", "/v1/leftovers/mend", token, 200, "", "LeftoverList", kSlow,
         "Take away the leftovers that no container holds; returns them", &Routes::mend_leftovers},
        {"GET", "/v1/volumes", token, 200, "", "VolumeList", kQuick, "All volumes, sorted by name",
         &Routes::list_volumes},
        {"POST", "/v1/volumes", token, 201, "VolumeCreate", "Volume", kQuick,
         "Create a volume; repeating it with equal members is safe", &Routes::create_volume},
        {"GET", "/v1/volumes/{name}", token, 200, "", "Volume", kQuick, "One volume",
         &Routes::get_volume},
        {"PATCH", "/v1/volumes/{name}", token, 200, "VolumeGrow", "Grown", kSlow,
         "Grow a volume; it never shrinks", &Routes::grow_volume},
        {"DELETE", "/v1/volumes/{name}", token, 200, "", "Empty", kQuick,
         "Remove a volume and its data; refused while it is mounted", &Routes::remove_volume},
        {"POST", "/v1/volumes/{name}/trim", token, 200, "", "Trimmed", kSlow,
         "Give blocks that the file system has freed back", &Routes::trim_volume},
        {"POST", "/v1/volumes/{name}/recover", token, 200, "Recover", "Recovery", kLong,
         "Say what damage keeps a volume closed; with accept_loss go on without it",
         &Routes::recover_volume},
        {"POST", "/v1/volumes/{name}/detach", token, 200, "Force", "Empty", kSlow,
         "Detach by force: containers that use the volume get I/O errors", &Routes::detach_volume},
        {"GET", "/v1/devices", token, 200, "", "DeviceList", kQuick, "The node's devices",
         &Routes::list_devices},
        {"POST", "/v1/devices", token, 201, "DeviceAdd", "Device", kSlow,
         "Add a file or block device", &Routes::add_device},
        {"GET", "/v1/scrub", token, 200, "", "Scrub", kQuick, "What the last scrub found",
         &Routes::scrub_report},
        {"POST", "/v1/scrub", token, 202, "", "Empty", kQuick,
         "Begin to read and check everything stored", &Routes::start_scrub},
    }};
    return kTable;
}

Routes::Match Routes::match(std::string_view method, std::string_view raw_path) {
    Match match;
    for (const Route& route : table()) {
        std::string name;
        if (!path_matches(route.path, raw_path, name)) continue;
        if (route.method == method) {
            match.route = &route;
            match.name = std::move(name);
            return match;
        }
        if (!match.allowed.empty()) match.allowed += ", ";
        match.allowed += route.method;
    }
    return match;
}

Task<Result<Answer>> Routes::healthz(Call, Duration limit) {
    auto make = [node = node_] { return node->status(); };
    std::string what = "asking for the node's health";
    CO_TRY_ASSIGN(auto status, co_await calls_.ask(what, Effect::reads, limit, make));
    co_return json_answer(health_json(status.health));
}

Task<Result<Answer>> Routes::openapi(Call, Duration) {
    co_return json_answer(openapi_document());
}

Task<Result<Answer>> Routes::metrics(Call, Duration limit) {
    auto make = [node = node_] {
        return [](fabric::Node* n) -> Task<Result<std::vector<fabric::Metric>>> {
            co_return co_await n->metrics();
        }(node);
    };
    std::string what = "collecting metrics";
    CO_TRY_ASSIGN(auto metrics, co_await calls_.ask(what, Effect::reads, limit, make));
    co_return Answer{"text/plain; version=0.0.4; charset=utf-8", prometheus_text(metrics)};
}

Task<Result<Answer>> Routes::status(Call, Duration limit) {
    auto make = [node = node_] { return node->status(); };
    std::string what = "asking for the node's status";
    CO_TRY_ASSIGN(auto status, co_await calls_.ask(what, Effect::reads, limit, make));
    co_return json_answer(status_json(status));
}

Task<Result<Answer>> Routes::doctor(Call, Duration limit) {
    struct Findings {
        fabric::NodeStatus status;
        std::vector<fabric::VolumeInfo> volumes;
        fabric::Node::ScrubReport scrub;
    };
    auto make = [node = node_] {
        return [](fabric::Node* n) -> Task<Result<Findings>> {
            Findings out;
            CO_TRY_ASSIGN(out.status, co_await n->status());
            CO_TRY_ASSIGN(out.volumes, co_await n->volumes());
            CO_TRY_ASSIGN(out.scrub, co_await n->scrub_report());
            co_return out;
        }(node);
    };
    std::string what = "examining the node";
    CO_TRY_ASSIGN(auto found, co_await calls_.ask(what, Effect::reads, limit, make));
    co_return json_answer(doctor_json(found.status, found.volumes, found.scrub));
}

Task<Result<Answer>> Routes::leftovers(Call, Duration limit) {
    auto make = [node = node_] { return node->leftovers(); };
    std::string what = "looking for leftovers";
    CO_TRY_ASSIGN(auto found, co_await calls_.ask(what, Effect::reads, limit, make));
    co_return json_answer(leftovers_json(found));
}

Task<Result<Answer>> Routes::mend_leftovers(Call, Duration limit) {
    auto make = [node = node_] { return node->mend_leftovers(); };
    std::string what = "taking leftovers away";
    CO_TRY_ASSIGN(auto mended, co_await calls_.ask(what, Effect::changes, limit, make));
    co_return json_answer(leftovers_json(mended));
}

Task<Result<Answer>> Routes::list_volumes(Call, Duration limit) {
    auto make = [node = node_] { return node->volumes(); };
    std::string what = "listing volumes";
    CO_TRY_ASSIGN(auto volumes, co_await calls_.ask(what, Effect::reads, limit, make));
    co_return json_answer(volumes_json(volumes));
}

Task<Result<Answer>> Routes::create_volume(Call call, Duration limit) {
    CO_TRY_ASSIGN(fabric::VolumeSpec spec, volume_spec_of(call.body));
    auto make = [node = node_, spec] { return node->create_volume(spec); };
    std::string what = fmt::format("creating volume \"{}\"", spec.name);
    CO_TRY_ASSIGN(auto volume, co_await calls_.ask(what, Effect::changes, limit, make));
    co_return json_answer(volume_json(volume));
}

Task<Result<Answer>> Routes::get_volume(Call call, Duration limit) {
    auto make = [node = node_, name = call.name] { return node->volume(name); };
    std::string what = fmt::format("looking up volume \"{}\"", call.name);
    CO_TRY_ASSIGN(auto volume, co_await calls_.ask(what, Effect::reads, limit, make));
    co_return json_answer(volume_json(volume));
}

Task<Result<Answer>> Routes::grow_volume(Call call, Duration limit) {
    CO_TRY_ASSIGN(uint64_t size, new_size_of(call.body));
    auto make = [node = node_, name = call.name, size] { return node->grow_volume(name, size); };
    std::string what = fmt::format("growing volume \"{}\"", call.name);
    CO_TRY_ASSIGN(std::string message, co_await calls_.ask(what, Effect::changes, limit, make));
    co_return json_answer({{"name", call.name}, {"size_bytes", size}, {"message", message}});
}

Task<Result<Answer>> Routes::remove_volume(Call call, Duration limit) {
    auto make = [node = node_, name = call.name] { return node->remove_volume(name); };
    std::string what = fmt::format("removing volume \"{}\"", call.name);
    CO_TRY(co_await calls_.ask(what, Effect::changes, limit, make));
    co_return json_answer(Json::object());
}

Task<Result<Answer>> Routes::trim_volume(Call call, Duration limit) {
    auto make = [node = node_, name = call.name] { return node->trim_volume(name); };
    std::string what = fmt::format("trimming volume \"{}\"", call.name);
    CO_TRY_ASSIGN(uint64_t bytes, co_await calls_.ask(what, Effect::changes, limit, make));
    co_return json_answer({{"trimmed_bytes", bytes}});
}

Task<Result<Answer>> Routes::recover_volume(Call call, Duration limit) {
    CO_TRY_ASSIGN(fabric::Node::Loss loss, loss_of(call.body));
    auto make = [node = node_, name = call.name, loss] { return node->recover_volume(name, loss); };
    std::string what = fmt::format("recovering volume \"{}\"", call.name);
    CO_TRY_ASSIGN(auto report, co_await calls_.ask(what, Effect::changes, limit, make));
    co_return json_answer(recovery_json(report));
}

Task<Result<Answer>> Routes::detach_volume(Call call, Duration limit) {
    CO_TRY(check_force(call.body));
    auto make = [node = node_, name = call.name] { return node->detach_forced(name); };
    std::string what = fmt::format("detaching volume \"{}\"", call.name);
    CO_TRY(co_await calls_.ask(what, Effect::changes, limit, make));
    co_return json_answer(Json::object());
}

Task<Result<Answer>> Routes::list_devices(Call, Duration limit) {
    auto make = [node = node_] { return node->status(); };
    std::string what = "listing devices";
    CO_TRY_ASSIGN(auto status, co_await calls_.ask(what, Effect::reads, limit, make));
    co_return json_answer({{"devices", status_json(status)["devices"]}});
}

Task<Result<Answer>> Routes::add_device(Call call, Duration limit) {
    CO_TRY_ASSIGN(DeviceRequest request, device_request_of(call.body));
    auto make = [node = node_, request] {
        return node->add_device(request.path, request.create_bytes, request.media_class);
    };
    std::string what = fmt::format("adding device {}", http::quoted(request.path));
    CO_TRY_ASSIGN(auto device, co_await calls_.ask(what, Effect::changes, limit, make));
    co_return json_answer(device_json(device));
}

Task<Result<Answer>> Routes::start_scrub(Call, Duration limit) {
    auto make = [node = node_] { return node->start_scrub(); };
    std::string what = "starting a scrub";
    CO_TRY(co_await calls_.ask(what, Effect::changes, limit, make));
    co_return json_answer(Json::object());
}

Task<Result<Answer>> Routes::scrub_report(Call, Duration limit) {
    auto make = [node = node_] { return node->scrub_report(); };
    std::string what = "asking for the scrub's report";
    CO_TRY_ASSIGN(auto report, co_await calls_.ask(what, Effect::reads, limit, make));
    co_return json_answer(scrub_json(report));
}

}  // namespace peplos::api
