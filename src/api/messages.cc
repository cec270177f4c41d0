#include "api/messages.h"

#include <array>
#include <charconv>
#include <cmath>
#include <set>

namespace peplos::api {
namespace {

using fabric::Light;

Json number_or_null(int64_t value) {
    return value < 0 ? Json() : Json(value);
}

Json time_or_null(WallTime time) {
    return time == WallTime{} ? Json() : Json(http::rfc3339(time));
}

Json attach_json(const fabric::AttachInfo& attach) {
    return {
        {"way", attach.way},
        {"why", attach.why},
        {"device", attach.device},
        {"mount_root", attach.mount_root},
        {"path", attach.path},
        {"fs_bytes", attach.fs_bytes},
        {"fs_used_bytes", attach.fs_used_bytes},
        {"grows_at_mount", attach.grows_at_mount},
        {"problem", attach.problem},
    };
}

Result<void> check_members(const Json& body, std::initializer_list<std::string_view> known) {
    for (const auto& [name, value] : body.items()) {
        bool found = false;
        std::string list;
        for (std::string_view one : known) {
            found = found || one == name;
            if (!list.empty()) list += ", ";
            list += one;
        }
        if (!found) {
            return fail(Code::invalid_argument, "unknown member {}: the known ones are {}",
                        http::quoted(name), list);
        }
    }
    return {};
}

// A size as a number of bytes or as text with a unit; 0 when it is absent.
Result<uint64_t> size_member(const Json& body, const char* name) {
    auto found = body.find(name);
    if (found == body.end() || found->is_null()) return 0;
    if (found->is_string()) return fabric::parse_size(found->get_ref<const std::string&>());
    // Only whole positive numbers; the rest goes through the parser for its message.
    return fabric::parse_size(found->dump());
}

Result<std::string> required_text(const Json& body, const char* name) {
    TRY_ASSIGN(auto text, http::text_member(body, name));
    if (!text.has_value() || text->empty()) {
        return fail(Code::invalid_argument, "\"{}\" is missing: it is required", name);
    }
    return *text;
}

Result<int64_t> number_member(const Json& body, const char* name, int64_t absent) {
    TRY_ASSIGN(auto number, http::integer_member(body, name));
    if (!number.has_value()) return absent;
    if (*number < 0 || *number > UINT32_MAX) {
        return fail(Code::invalid_argument, "\"{}\" is {}: 0 to {} is allowed", name, *number,
                    UINT32_MAX);
    }
    return *number;
}

Result<int64_t> mode_member(const Json& body) {
    TRY_ASSIGN(auto text, http::text_member(body, "mode"));
    if (!text.has_value()) return -1;
    int64_t mode = 0;
    auto [end, error] = std::from_chars(text->data(), text->data() + text->size(), mode, 8);
    if (error != std::errc() || end != text->data() + text->size() || mode < 0) {
        return fail(Code::invalid_argument, "\"mode\" {} is not an octal number such as \"0750\"",
                    http::quoted(*text));
    }
    return mode;
}

Result<std::map<std::string, std::string>> labels_member(const Json& body) {
    std::map<std::string, std::string> out;
    auto found = body.find("labels");
    if (found == body.end() || found->is_null()) return out;
    if (!found->is_object()) {
        return fail(Code::invalid_argument, "\"labels\" is a JSON {}, an object is needed",
                    found->type_name());
    }
    for (const auto& [key, value] : found->items()) {
        if (!value.is_string()) {
            return fail(Code::invalid_argument, "label {} is a JSON {}, a string is needed",
                        http::quoted(key), value.type_name());
        }
        out.emplace(key, value.get_ref<const std::string&>());
    }
    return out;
}

void add_problem(Json& problems, const std::string& about, const fabric::Health& health) {
    if (health.light == Light::green) return;
    problems.push_back({{"about", about},
                        {"light", name_of(health.light)},
                        {"reason", health.reason},
                        {"next", health.next}});
}

bool is_metric_name(std::string_view name, bool colon_allowed) {
    if (name.empty() || (name[0] >= '0' && name[0] <= '9')) return false;
    for (char c : name) {
        bool good = (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') ||
                    c == '_' || (c == ':' && colon_allowed);
        if (!good) return false;
    }
    return true;
}

std::string escaped(std::string_view text, bool in_label) {
    std::string out;
    for (char c : text) {
        if (c == '\\') {
            out += "\\\\";
        } else if (c == '\n') {
            out += "\\n";
        } else if (c == '"' && in_label) {
            out += "\\\"";
        } else {
            out += c;
        }
    }
    return out;
}

std::string sample_value(double value) {
    if (std::isnan(value)) return "NaN";
    if (std::isinf(value)) return value > 0 ? "+Inf" : "-Inf";
    constexpr double kExactMax = 9007199254740992.0;  // 2^53
    if (value == std::floor(value) && std::abs(value) < kExactMax) {
        return fmt::format("{}", static_cast<int64_t>(value));
    }
    return fmt::format("{}", value);  // the shortest text that reads back as the same number
}

std::string sample_line(const fabric::Metric& metric) {
    std::string labels;
    for (const auto& [name, value] : metric.labels) {
        if (!is_metric_name(name, false)) continue;
        labels += fmt::format("{}{}=\"{}\"", labels.empty() ? "" : ",", name, escaped(value, true));
    }
    if (!labels.empty()) labels = "{" + labels + "}";
    return fmt::format("{}{} {}\n", metric.name, labels, sample_value(metric.value));
}

}  // namespace

ErrorEntry entry_of(Code code) {
    switch (code) {
        case Code::invalid_argument:
            return {400, ""};
        case Code::not_found:
            return {404, ""};
        case Code::already_exists:
            return {409, ""};
        case Code::permission_denied:
            return {403, ""};
        case Code::unsupported:
            return {501, ""};
        case Code::corrupt:
        case Code::io_error:
            return {500, "see `peplos doctor`"};
        case Code::fenced:
            return {409, "see `peplos volume show`: the volume is owned elsewhere"};
        case Code::no_space:
            return {507, "see `peplos status`; add space with `peplos device add`"};
        case Code::busy:
            return {409, ""};
        case Code::unavailable:
            return {503, ""};
        case Code::conflict:
            return {409, "another change came first: repeat the call"};
        case Code::outcome_unknown:
            return {504, "look whether it happened, then repeat the call"};
        case Code::stopping:
            return {503, "repeat the call when peplosd runs again"};
    }
    return {500, ""};
}

Json error_json(const Error& error) {
    return {{"error",
             {{"code", name_of(error.code())},
              {"message", error.message()},
              {"next", entry_of(error.code()).next}}}};
}

Error error_of(const Json& body, unsigned status) {
    auto error = body.find("error");
    if (!body.is_object() || error == body.end() || !error->is_object()) {
        return Error(
            Code::unavailable,
            fmt::format("peplosd answered with HTTP status {} and no reason: see its log", status));
    }
    auto member = [&](const char* name) {
        auto text = http::text_member(*error, name);
        return text && text->has_value() ? **text : std::string();
    };
    std::string message = member("message"), next = member("next"), code_name = member("code");
    if (!next.empty()) message += "; next: " + next;
    for (int value = 0; value <= static_cast<int>(Code::stopping); ++value) {
        Code code = static_cast<Code>(value);
        if (name_of(code) == code_name) return Error(code, message);
    }
    return Error(Code::unavailable, message);
}

Json health_json(const fabric::Health& health) {
    return {{"light", name_of(health.light)}, {"reason", health.reason}, {"next", health.next}};
}

Json volume_json(const fabric::VolumeInfo& volume) {
    const fabric::VolumeSpec& spec = volume.spec;
    return {
        {"id", text_of(volume.id)},
        {"name", spec.name},
        {"size_bytes", spec.size_bytes},
        {"used_bytes", volume.used_bytes},
        {"stored_bytes", volume.stored_bytes},
        {"copies", spec.copies},
        {"sector_bytes", spec.sector_bytes},
        {"fs", name_of(spec.fs)},
        {"mkfs_options", spec.mkfs_options},
        {"uid", number_or_null(spec.uid)},
        {"gid", number_or_null(spec.gid)},
        {"mode", spec.mode < 0 ? Json() : Json(fmt::format("{:04o}", spec.mode))},
        {"labels", Json(spec.labels)},
        {"created_at", time_or_null(volume.created_at)},
        {"host", volume.host},
        {"state", volume.state},
        {"formatted", volume.formatted},
        {"holders", Json(volume.holders)},
        {"attach", volume.attach.has_value() ? attach_json(*volume.attach) : Json()},
        {"recovered_at", time_or_null(volume.recovered_at)},
        {"recovered_without", volume.recovered_without},
        {"health", health_json(volume.health)},
    };
}

Json recovery_json(const fabric::RecoveryReport& report) {
    return {
        {"is_whole", report.is_whole},       {"is_done", report.is_done},
        {"findings", Json(report.findings)}, {"losses", Json(report.losses)},
        {"lost_bytes", report.lost_bytes},   {"dropped_bytes", report.dropped_bytes},
        {"message", report.message},
    };
}

Json volumes_json(const std::vector<fabric::VolumeInfo>& volumes) {
    Json list = Json::array();
    for (const fabric::VolumeInfo& volume : volumes)
        list.push_back(volume_json(volume));
    return {{"volumes", std::move(list)}};
}

Json device_json(const fabric::DeviceInfo& device) {
    return {
        {"id", text_of(device.id)},
        {"path", device.path},
        {"media_class", device.media_class},
        {"bytes", device.bytes},
        {"segment_bytes_total", device.segment_bytes_total},
        {"segment_bytes_free", device.segment_bytes_free},
        {"ring_bytes", device.ring_bytes},
        {"ring_bytes_used", device.ring_bytes_used},
        {"read_errors", device.read_errors},
        {"write_errors", device.write_errors},
        {"corruptions", device.corruptions},
        {"health", health_json(device.health)},
    };
}

Json status_json(const fabric::NodeStatus& status) {
    Json devices = Json::array();
    for (const fabric::DeviceInfo& device : status.devices)
        devices.push_back(device_json(device));
    return {
        {"id", text_of(status.id)},
        {"name", status.name},
        {"version", status.version},
        {"started_at", time_or_null(status.started_at)},
        {"health", health_json(status.health)},
        {"capacity_bytes", status.capacity_bytes},
        {"free_bytes", status.free_bytes},
        {"volume_count", status.volume_count},
        {"attached_count", status.attached_count},
        {"devices", std::move(devices)},
    };
}

Json scrub_json(const fabric::Node::ScrubReport& report) {
    return {
        {"running", report.running},
        {"segments_done", report.segments_done},
        {"segments_total", report.segments_total},
        {"bytes_checked", report.bytes_checked},
        {"problems", Json(report.problems)},
        {"finished_at", time_or_null(report.finished_at)},
    };
}

Json doctor_json(const fabric::NodeStatus& status, const std::vector<fabric::VolumeInfo>& volumes,
                 const fabric::Node::ScrubReport& report) {
    Json problems = Json::array();
    add_problem(problems, "node " + status.name, status.health);
    for (const auto& device : status.devices) {
        add_problem(problems, "device " + device.path, device.health);
    }
    for (const auto& volume : volumes) {
        add_problem(problems, "volume " + volume.spec.name, volume.health);
        if (volume.attach.has_value() && !volume.attach->problem.empty()) {
            fabric::Health health{Light::yellow, volume.attach->problem, ""};
            add_problem(problems, "attachment of " + volume.spec.name, health);
        }
    }
    for (const std::string& problem : report.problems) {
        add_problem(problems, "scrub", {Light::red, problem, ""});
    }
    return {
        {"status", status_json(status)},
        {"volumes", volumes_json(volumes)["volumes"]},
        {"scrub", scrub_json(report)},
        {"problems", std::move(problems)},
    };
}

Json leftovers_json(const std::vector<fabric::Leftover>& leftovers) {
    Json list = Json::array();
    for (const fabric::Leftover& one : leftovers) {
        list.push_back({{"id", text_of(one.id)},
                        {"volume", one.volume},
                        {"mount", one.mount},
                        {"device", one.device},
                        {"what", one.what},
                        {"has_holders", one.has_holders}});
    }
    return {{"leftovers", std::move(list)}};
}

Result<fabric::VolumeSpec> volume_spec_of(const Json& body) {
    TRY(check_members(body, {"name", "size", "fs", "mkfs_options", "uid", "gid", "mode", "labels",
                             "copies", "sector_size"}));
    fabric::VolumeSpec spec;
    TRY_ASSIGN(spec.name, required_text(body, "name"));
    TRY_ASSIGN(spec.size_bytes, size_member(body, "size"));
    TRY_ASSIGN(auto fs, http::text_member(body, "fs"));
    if (fs.has_value()) {
        TRY_ASSIGN(spec.fs, fabric::parse_fs(*fs));
    }
    TRY_ASSIGN(auto mkfs_options, http::text_member(body, "mkfs_options"));
    spec.mkfs_options = mkfs_options.value_or("");
    TRY_ASSIGN(spec.uid, number_member(body, "uid", -1));
    TRY_ASSIGN(spec.gid, number_member(body, "gid", -1));
    TRY_ASSIGN(spec.mode, mode_member(body));
    TRY_ASSIGN(spec.labels, labels_member(body));
    TRY_ASSIGN(int64_t copies, number_member(body, "copies", spec.copies));
    TRY_ASSIGN(int64_t sector_bytes, number_member(body, "sector_size", spec.sector_bytes));
    spec.copies = static_cast<uint32_t>(copies);
    spec.sector_bytes = static_cast<uint32_t>(sector_bytes);
    return fabric::validated(std::move(spec));
}

Result<uint64_t> new_size_of(const Json& body) {
    TRY(check_members(body, {"size"}));
    TRY_ASSIGN(uint64_t size, size_member(body, "size"));
    if (size == 0) return fail(Code::invalid_argument, "\"size\" is missing: it is required");
    return size;
}

Result<DeviceRequest> device_request_of(const Json& body) {
    TRY(check_members(body, {"path", "size", "class"}));
    DeviceRequest request;
    TRY_ASSIGN(request.path, required_text(body, "path"));
    if (request.path[0] != '/' || request.path.find('\0') != std::string::npos) {
        return fail(Code::invalid_argument, "\"path\" {} has to be absolute",
                    http::quoted(request.path));
    }
    TRY_ASSIGN(request.create_bytes, size_member(body, "size"));
    TRY_ASSIGN(auto media_class, http::text_member(body, "class"));
    request.media_class = media_class.value_or("");
    static const std::set<std::string> kClasses = {"", "nvme", "ssd", "hdd"};
    if (!kClasses.contains(request.media_class)) {
        return fail(Code::invalid_argument,
                    "\"class\" {} is not known: nvme, ssd or hdd is allowed",
                    http::quoted(request.media_class));
    }
    return request;
}

Result<fabric::Node::Loss> loss_of(const Json& body) {
    TRY(check_members(body, {"accept_loss"}));
    auto accept = body.find("accept_loss");
    if (accept == body.end()) return fabric::Node::Loss::show;
    if (!accept->is_boolean())
        return fail(Code::invalid_argument, "\"accept_loss\" is true or false");
    return accept->get<bool>() ? fabric::Node::Loss::accept : fabric::Node::Loss::show;
}

Result<void> check_force(const Json& body) {
    TRY(check_members(body, {"force"}));
    auto force = body.find("force");
    if (force != body.end() && force->is_boolean() && force->get<bool>()) return {};
    return fail(Code::invalid_argument,
                "containers that use the volume get I/O errors from then on: repeat with "
                "{{\"force\": true}} if that is wanted");
}

std::string prometheus_text(const std::vector<fabric::Metric>& metrics) {
    std::map<std::string, std::vector<const fabric::Metric*>> by_name;
    for (const fabric::Metric& metric : metrics) {
        if (is_metric_name(metric.name, true)) by_name[metric.name].push_back(&metric);
    }
    std::string out;
    for (const auto& [name, samples] : by_name) {
        const fabric::Metric& first = *samples.front();
        out += fmt::format("# HELP {} {}\n", name, escaped(first.help, false));
        out += fmt::format("# TYPE {} {}\n", name, first.counter ? "counter" : "gauge");
        for (const fabric::Metric* sample : samples)
            out += sample_line(*sample);
    }
    return out;
}

}  // namespace peplos::api
