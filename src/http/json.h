#pragma once

#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <string_view>

#include "base/result.h"
#include "base/units.h"

// JSON as doors use it: bounded when read, never throwing, always valid UTF-8 when written.
namespace peplos::http {

using Json = nlohmann::json;

// Requires a JSON object, at most limits::kJsonDepthMax deep. The caller bounds the size.
// Errors: invalid_argument (empty, truncated, too deep, not an object), with the position.
Result<Json> parse_object(std::string_view text);

// One line; bytes that are not UTF-8 are replaced, not thrown at.
std::string print(const Json& value);

// User text for a message: at most 64 bytes of printable ASCII, the rest as \xNN.
std::string quoted(std::string_view text);

// "2026-01-31T12:00:00Z": whole seconds, UTC.
std::string rfc3339(WallTime time);

// A member of an object; nullopt when it is absent or null.
// Errors: invalid_argument (it has another type; names the member).
Result<std::optional<std::string>> text_member(const Json& object, const char* name);
Result<std::optional<int64_t>> integer_member(const Json& object, const char* name);

}  // namespace peplos::http
