#pragma once

#include <string>
#include <string_view>

#include "base/result.h"

namespace peplos::api {

// The bearer token for the loopback port, from the file `path`: 64 hexadecimal digits, made at
// random when the file is missing, readable by its owner only.
// Errors: permission_denied (others may read the file), corrupt (it holds no token), io_error.
Result<std::string> load_or_create_token(const std::string& path);

// Compares in a time that does not depend on where the two differ.
bool is_same_secret(std::string_view left, std::string_view right);

}  // namespace peplos::api
