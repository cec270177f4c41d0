#pragma once

#include <string_view>

// CHECK(condition) and CHECK(condition, "what {}", value): an invariant of ours, on in every
// build. It is for what the program itself guarantees; bytes from disk, network or user become
// errors (result.h), never a CHECK.

#include <fmt/format.h>

namespace peplos::base {

// Prints the failed condition and aborts. Never returns.
[[noreturn]] void check_failed(const char* condition, const char* file, int line,
                               std::string_view message);

}  // namespace peplos::base

#define CHECK(condition, ...)                                            \
    do {                                                                 \
        if (!(condition)) [[unlikely]] {                                 \
            ::peplos::base::check_failed(#condition, __FILE__, __LINE__, \
                                         ::fmt::format("" __VA_ARGS__)); \
        }                                                                \
    } while (false)
