#include "docker/messages.h"

#include <array>
#include <charconv>

namespace peplos::docker {
namespace {

using fabric::VolumeSpec;
using http::Json;

struct MethodEntry {
    std::string_view path;
    Method method;
    bool has_name;
    bool has_holder;
};
constexpr std::array<MethodEntry, 9> kMethods = {{
    {"/Plugin.Activate", Method::activate, false, false},
    {"/VolumeDriver.Capabilities", Method::capabilities, false, false},
    {"/VolumeDriver.Create", Method::create, true, false},
    {"/VolumeDriver.Get", Method::get, true, false},
    {"/VolumeDriver.List", Method::list, false, false},
    {"/VolumeDriver.Path", Method::path, true, false},
    {"/VolumeDriver.Mount", Method::mount, true, true},
    {"/VolumeDriver.Unmount", Method::unmount, true, true},
    {"/VolumeDriver.Remove", Method::remove, true, false},
}};
constexpr size_t kHolderBytesMax = 256;
constexpr size_t kOptionCountMax = 64;

Result<int64_t> parse_integer(std::string_view name, std::string_view text, int base) {
    int64_t value = 0;
    auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value, base);
    if (error != std::errc() || end != text.data() + text.size() || value < 0) {
        return fail(Code::invalid_argument, "option {}={} is not {} number", name,
                    http::quoted(text), base == 8 ? "an octal" : "a whole, non-negative");
    }
    return value;
}

Result<uint32_t> parse_small(std::string_view name, std::string_view text) {
    TRY_ASSIGN(int64_t value, parse_integer(name, text, 10));
    if (value > UINT32_MAX) {
        return fail(Code::invalid_argument, "option {}={} is too large", name, value);
    }
    return static_cast<uint32_t>(value);
}

Result<void> set_size(VolumeSpec& spec, const std::string& text) {
    TRY_ASSIGN(spec.size_bytes, fabric::parse_size(text));
    return {};
}
Result<void> set_fs(VolumeSpec& spec, const std::string& text) {
    TRY_ASSIGN(spec.fs, fabric::parse_fs(text));
    return {};
}
Result<void> set_mkfs_options(VolumeSpec& spec, const std::string& text) {
    spec.mkfs_options = text;
    return {};
}
Result<void> set_uid(VolumeSpec& spec, const std::string& text) {
    TRY_ASSIGN(spec.uid, parse_integer("uid", text, 10));
    return {};
}
Result<void> set_gid(VolumeSpec& spec, const std::string& text) {
    TRY_ASSIGN(spec.gid, parse_integer("gid", text, 10));
    return {};
}
Result<void> set_mode(VolumeSpec& spec, const std::string& text) {
    TRY_ASSIGN(spec.mode, parse_integer("mode", text, 8));
    return {};
}
Result<void> set_copies(VolumeSpec& spec, const std::string& text) {
    TRY_ASSIGN(spec.copies, parse_small("copies", text));
    return {};
}
Result<void> set_sector_size(VolumeSpec& spec, const std::string& text) {
    TRY_ASSIGN(spec.sector_bytes, parse_small("sector-size", text));
    return {};
}
// "k=v,k2=v2"; a key alone has an empty value.
Result<void> set_label(VolumeSpec& spec, const std::string& text) {
    std::string_view rest = text;
    while (!rest.empty()) {
        std::string_view one = rest.substr(0, rest.find(','));
        rest.remove_prefix(std::min(rest.size(), one.size() + 1));
        size_t equals = one.find('=');
        std::string key(one.substr(0, equals));
        std::string value(equals == std::string_view::npos ? "" : one.substr(equals + 1));
        if (!spec.labels.emplace(key, value).second) {
            return fail(Code::invalid_argument, "option label names {} twice: give it once",
                        http::quoted(key));
        }
    }
    return {};
}

struct OptionEntry {
    std::string_view name;
    Result<void> (*set)(VolumeSpec&, const std::string&);
};
constexpr std::array<OptionEntry, 9> kOptions = {{
    {"copies", set_copies},
    {"fs", set_fs},
    {"gid", set_gid},
    {"label", set_label},
    {"mkfs-options", set_mkfs_options},
    {"mode", set_mode},
    {"sector-size", set_sector_size},
    {"size", set_size},
    {"uid", set_uid},
}};

std::string known_options() {
    std::string out;
    for (const OptionEntry& entry : kOptions) {
        if (!out.empty()) out += ", ";
        out += entry.name;
    }
    return out;
}

Result<std::map<std::string, std::string>> parse_options(const Json& body) {
    std::map<std::string, std::string> out;
    auto found = body.find("Opts");
    if (found == body.end() || found->is_null()) return out;
    if (!found->is_object()) {
        return fail(Code::invalid_argument, "\"Opts\" is a JSON {}, an object of strings is needed",
                    found->type_name());
    }
    if (found->size() > kOptionCountMax) {
        return fail(Code::invalid_argument, "{} options are too many; known ones are: {}",
                    found->size(), known_options());
    }
    for (const auto& [name, value] : found->items()) {
        if (!value.is_string()) {
            return fail(Code::invalid_argument, "option {} is a JSON {}, a string is needed",
                        http::quoted(name), value.type_name());
        }
        out.emplace(name, value.get_ref<const std::string&>());
    }
    return out;
}

Json status_of(const fabric::VolumeInfo& volume) {
    Json out = {
        {"size", fabric::print_size(volume.spec.size_bytes)},
        {"used", fabric::print_size(volume.used_bytes)},
        {"fs", fabric::name_of(volume.spec.fs)},
        {"host", volume.host},
        {"state", volume.state},
        {"health", fabric::name_of(volume.health.light)},
        {"holders", volume.holders},
    };
    if (!volume.health.reason.empty()) out["reason"] = volume.health.reason;
    if (!volume.health.next.empty()) out["next"] = volume.health.next;
    if (!volume.spec.labels.empty()) out["labels"] = volume.spec.labels;
    if (volume.attach.has_value()) {
        out["attach"] = volume.attach->way;
        out["device"] = volume.attach->device;
        if (!volume.attach->problem.empty()) out["problem"] = volume.attach->problem;
    }
    return out;
}

std::string mountpoint_of(const fabric::VolumeInfo& volume) {
    return volume.attach.has_value() ? volume.attach->path : "";
}

}  // namespace

Result<Call> parse_call(std::string_view http_method, std::string_view path,
                        std::string_view body) {
    const MethodEntry* entry = nullptr;
    for (const MethodEntry& candidate : kMethods) {
        if (candidate.path == path) entry = &candidate;
    }
    if (entry == nullptr) {
        return fail(Code::not_found, "{} is not a method of Docker's volume plugin protocol v1.2",
                    http::quoted(path));
    }
    if (http_method != "POST") {
        return fail(Code::invalid_argument, "{} has to be sent with POST", path);
    }
    Call call;
    call.method = entry->method;
    if (!entry->has_name) return call;
    TRY_ASSIGN(Json object, http::parse_object(body));
    TRY_ASSIGN(auto name, http::text_member(object, "Name"));
    if (!name.has_value() || name->empty()) {
        return fail(Code::invalid_argument, "{}: the request names no volume", path);
    }
    TRY(fabric::check_name(*name));
    call.name = std::move(*name);
    if (entry->has_holder) {
        TRY_ASSIGN(auto holder, http::text_member(object, "ID"));
        if (!holder.has_value() || holder->empty() || holder->size() > kHolderBytesMax) {
            return fail(Code::invalid_argument, "{}: \"ID\" has to hold 1 to {} bytes", path,
                        kHolderBytesMax);
        }
        call.holder = std::move(*holder);
    }
    if (call.method == Method::create) {
        TRY_ASSIGN(call.options, parse_options(object));
    }
    return call;
}

Result<VolumeSpec> spec_of(const std::string& name,
                           const std::map<std::string, std::string>& options) {
    VolumeSpec spec;
    spec.name = name;
    for (const auto& [option, value] : options) {
        const OptionEntry* entry = nullptr;
        for (const OptionEntry& candidate : kOptions) {
            if (candidate.name == option) entry = &candidate;
        }
        if (entry == nullptr) {
            return fail(Code::invalid_argument, "unknown option {}: the known options are {}",
                        http::quoted(option), known_options());
        }
        TRY(entry->set(spec, value));
    }
    return fabric::validated(std::move(spec));
}

std::string err_text(const Error& error) {
    const std::string& message = error.message();
    switch (error.code()) {
        case Code::invalid_argument:
        case Code::not_found:
        case Code::already_exists:
        case Code::permission_denied:
        case Code::unsupported:
        case Code::busy:
        case Code::unavailable:
        case Code::outcome_unknown:
        case Code::stopping:
            return message;  // complete: the message says what to do
        case Code::no_space:
            return message + " [see `peplos status`; add space with `peplos device add`]";
        case Code::corrupt:
        case Code::io_error:
            return message + " [see `peplos doctor`]";
        case Code::fenced:
            return message + " [the volume is owned elsewhere: see `peplos volume show`]";
        case Code::conflict:
            return message + " [another change came first: repeat the command]";
    }
    return message;
}

Json answer_error(const Error& error) {
    return {{"Err", err_text(error)}};
}
Json answer_ok() {
    return {{"Err", ""}};
}
Json answer_activate() {
    return {{"Implements", Json::array({"VolumeDriver"})}};
}
Json answer_capabilities() {
    return {{"Capabilities", {{"Scope", "global"}}}, {"Err", ""}};
}

Json answer_get(const fabric::VolumeInfo& volume) {
    Json out = {
        {"Name", volume.spec.name},
        {"Mountpoint", mountpoint_of(volume)},
        {"Status", status_of(volume)},
    };
    // dockerd cannot read an empty time: an unknown one is left out.
    if (volume.created_at != WallTime{}) out["CreatedAt"] = http::rfc3339(volume.created_at);
    return {{"Volume", out}, {"Err", ""}};
}

Json answer_list(const std::vector<fabric::VolumeInfo>& volumes) {
    Json list = Json::array();
    for (const fabric::VolumeInfo& volume : volumes) {
        list.push_back({{"Name", volume.spec.name}, {"Mountpoint", mountpoint_of(volume)}});
    }
    return {{"Volumes", std::move(list)}, {"Err", ""}};
}

Json answer_path(std::string_view path) {
    return {{"Mountpoint", path}, {"Err", ""}};
}

}  // namespace peplos::docker
