#pragma once

#include <map>
#include <string>
#include <string_view>
#include <vector>

#include "base/result.h"
#include "fabric/node.h"
#include "http/json.h"

// The bytes of Docker's volume plugin protocol (API v1.2): requests decoded, answers encoded,
// nothing done. Source: docs.docker.com/engine/extend/plugins_volume and what dockerd 20.10 to 28
// really send: no Content-Type, an empty or made-up Host, options as strings only.
namespace peplos::docker {

inline constexpr const char* kMediaType = "application/vnd.docker.plugins.v1.2+json";

enum class Method : uint8_t {
    activate,
    capabilities,
    create,
    get,
    list,
    path,
    mount,
    unmount,
    remove,
};

struct Call {
    Method method = Method::activate;
    std::string name;    // not empty where the method has one; allowed letters only
    std::string holder;  // mount, unmount: the caller's id, not empty
    std::map<std::string, std::string> options;  // create
};

// Decodes a request line's path and a body. A body that is empty where the method needs a name is
// refused: dockerd repeats a request that lost its connection with an empty body.
// Errors: not_found (no such method), invalid_argument.
Result<Call> parse_call(std::string_view http_method, std::string_view path, std::string_view body);

// What `docker volume create -o` asks for: defaults filled, everything checked.
// Errors: invalid_argument; an unknown option is refused by name, with the list of known ones.
Result<fabric::VolumeSpec> spec_of(const std::string& name,
                                   const std::map<std::string, std::string>& options);

// The one table from our errors to Docker's `Err` text.
std::string err_text(const Error& error);

http::Json answer_error(const Error& error);
http::Json answer_ok();
http::Json answer_activate();
http::Json answer_capabilities();
http::Json answer_get(const fabric::VolumeInfo& volume);
http::Json answer_list(const std::vector<fabric::VolumeInfo>& volumes);
http::Json answer_path(std::string_view path);

}  // namespace peplos::docker
