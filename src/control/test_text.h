#pragma once

#include <string>
#include <string_view>

#include "base/check.h"

namespace peplos::control {

// `text` with the first `from` replaced. Requires: it is there.
inline std::string replaced(std::string text, std::string_view from, std::string_view to) {
    size_t at = text.find(from);
    CHECK(at != std::string::npos, "'{}' is not in {}", from, text);
    return text.replace(at, from.size(), to);
}

}  // namespace peplos::control
