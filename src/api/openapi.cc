#include "api/routes.h"

namespace peplos::api {
namespace {

// The schemas, in JSON. "?" after a type: may be null. Everything listed is always present in an
// answer; in a request only what "required" names.
constexpr std::string_view kSchemas = R"json({
"Health": {"light": "string", "reason": "string", "next": "string"},
"Attach": {"way": "string", "why": "string", "device": "string", "mount_root": "string",
  "path": "string", "fs_bytes": "integer", "fs_used_bytes": "integer",
  "grows_at_mount": "boolean", "problem": "string"},
"Volume": {"id": "string", "name": "string", "size_bytes": "integer", "used_bytes": "integer",
  "stored_bytes": "integer", "copies": "integer", "sector_bytes": "integer", "fs": "string",
  "mkfs_options": "string", "uid": "integer?", "gid": "integer?", "mode": "string?",
  "labels": "map", "created_at": "string?", "host": "string", "state": "string",
  "formatted": "boolean", "holders": "string[]", "attach": "Attach?",
  "recovered_at": "string?", "recovered_without": "string", "health": "Health"},
"VolumeList": {"volumes": "Volume[]"},
"VolumeCreate": {"required": "name", "name": "string", "size": "size", "fs": "string",
  "mkfs_options": "string", "uid": "integer", "gid": "integer", "mode": "string",
  "labels": "map", "copies": "integer", "sector_size": "integer"},
"VolumeGrow": {"required": "size", "size": "size"},
"Grown": {"name": "string", "size_bytes": "integer", "message": "string"},
"Trimmed": {"trimmed_bytes": "integer"},
"Recover": {"required": "accept_loss", "accept_loss": "boolean"},
"Recovery": {"is_whole": "boolean", "is_done": "boolean", "findings": "string[]",
  "losses": "string[]", "lost_bytes": "integer", "dropped_bytes": "integer", "message": "string"},
"Force": {"required": "force", "force": "boolean"},
"Empty": {},
"Device": {"id": "string", "path": "string", "media_class": "string", "bytes": "integer",
  "segment_bytes_total": "integer", "segment_bytes_free": "integer", "ring_bytes": "integer",
  "ring_bytes_used": "integer", "read_errors": "integer", "write_errors": "integer",
  "corruptions": "integer", "health": "Health"},
"DeviceList": {"devices": "Device[]"},
"DeviceAdd": {"required": "path", "path": "string", "size": "size", "class": "string"},
"Status": {"id": "string", "name": "string", "version": "string", "started_at": "string?",
  "health": "Health", "capacity_bytes": "integer", "free_bytes": "integer",
  "volume_count": "integer", "attached_count": "integer", "devices": "Device[]"},
"Scrub": {"running": "boolean", "segments_done": "integer", "segments_total": "integer",
  "bytes_checked": "integer", "problems": "string[]", "finished_at": "string?"},
"Leftover": {"id": "string", "volume": "string", "mount": "string", "device": "string",
  "what": "string", "has_holders": "boolean"},
"LeftoverList": {"leftovers": "Leftover[]"},
"Problem": {"about": "string", "light": "string", "reason": "string", "next": "string"},
"Doctor": {"status": "Status", "volumes": "Volume[]", "scrub": "Scrub", "problems": "Problem[]"},
"ErrorDetail": {"code": "string", "message": "string", "next": "string"},
"Error": {"error": "ErrorDetail"},
"Document": {"openapi": "string", "info": "map", "paths": "map", "components": "map",
  "security": "any"}
})json";

Json reference(std::string_view name) {
    return {{"$ref", fmt::format("#/components/schemas/{}", name)}};
}

// One type of the short form above as OpenAPI writes it.
Json type_schema(std::string type) {
    if (type.ends_with('?')) {
        Json inner = type_schema(type.substr(0, type.size() - 1));
        if (inner.contains("$ref")) {
            inner = {{"allOf", Json::array({inner})}};
        }
        inner["nullable"] = true;
        return inner;
    }
    if (type.ends_with("[]")) {
        return {{"type", "array"}, {"items", type_schema(type.substr(0, type.size() - 2))}};
    }
    if (type == "string" || type == "boolean") return {{"type", type}};
    if (type == "integer") return {{"type", "integer"}, {"format", "int64"}};
    if (type == "map") return {{"type", "object"}, {"additionalProperties", true}};
    if (type == "any") return Json::object();
    if (type == "size") {
        return {{"description", "bytes, or text with a unit such as \"20GiB\""},
                {"oneOf", Json::array({type_schema("integer"), type_schema("string")})}};
    }
    return reference(type);
}

Json schemas() {
    Json short_form = Json::parse(kSchemas, nullptr, false);
    CHECK(!short_form.is_discarded(), "the schemas are valid JSON");
    Json out;
    for (const auto& [name, members] : short_form.items()) {
        Json properties = Json::object();
        Json required = Json::array();
        bool is_request = members.contains("required");
        for (const auto& [member, type] : members.items()) {
            if (member == "required") {
                required.push_back(type);
                continue;
            }
            properties[member] = type_schema(type.get<std::string>());
            if (!is_request) required.push_back(member);
        }
        out[name] = {{"type", "object"}, {"properties", properties}};
        if (!required.empty()) out[name]["required"] = required;
    }
    return out;
}

Json json_content(std::string_view schema) {
    return {{"application/json", {{"schema", reference(schema)}}}};
}

Json operation(const Routes::Route& route) {
    Json out = {{"summary", route.summary}};
    Json success = {{"description", "success"}};
    if (route.response_schema.empty()) {
        success["content"] = {{"text/plain", {{"schema", type_schema("string")}}}};
    } else {
        success["content"] = json_content(route.response_schema);
    }
    out["responses"] = {
        {fmt::format("{}", route.status), success},
        {"default", {{"description", "an error"}, {"content", json_content("Error")}}},
    };
    if (!route.request_schema.empty()) {
        out["requestBody"] = {{"required", true}, {"content", json_content(route.request_schema)}};
    }
    if (route.path.find("{name}") != std::string_view::npos) {
        out["parameters"] = Json::array({{{"name", "name"},
                                          {"in", "path"},
                                          {"required", true},
                                          {"schema", type_schema("string")}}});
    }
    Json bearer = {{"bearer", Json::array()}};
    out["security"] = route.access == Access::token ? Json::array({bearer}) : Json::array();
    return out;
}

}  // namespace

Json openapi_document() {
    Json paths;
    for (const Routes::Route& route : Routes::table()) {
        std::string method(route.method);
        for (char& c : method)
            c = static_cast<char>(c | 0x20);
        paths[std::string(route.path)][method] = operation(route);
    }
    Json info = {
        {"title", "Peplos"},
        {"version", PEPLOS_VERSION},
        {"description",
         "One node's REST interface. On the Unix socket root may do everything. On the loopback "
         "port reading health, status and metrics is open; everything else wants the bearer "
         "token that only root can read."},
    };
    Json bearer = {{"bearer", {{"type", "http"}, {"scheme", "bearer"}}}};
    return {
        {"openapi", "3.0.3"},
        {"info", info},
        {"security", Json::array()},
        {"paths", paths},
        {"components", {{"schemas", schemas()}, {"securitySchemes", bearer}}},
    };
}

}  // namespace peplos::api
