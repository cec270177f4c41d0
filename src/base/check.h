#pragma once

#include <fmt/core.h>

// CHECK(condition) and CHECK(condition, "what {}", value): an invariant of ours, on in every
// build. It is for what the program itself guarantees; bytes from disk, network or user become
// errors (result.h), never a CHECK.

namespace peplos::base {

// Prints the failed condition and aborts. Never returns.
[[noreturn]] void check_failed(const char* condition, const char* file, int line);
[[noreturn]] void check_failed_with(const char* condition, const char* file, int line,
                                    fmt::string_view format, fmt::format_args args);

template <typename... Args>
[[noreturn]] void check_failed(const char* condition, const char* file, int line,
                               fmt::format_string<Args...> format, Args&&... args) {
    check_failed_with(condition, file, line, format, fmt::make_format_args(args...));
}

}  // namespace peplos::base

#define CHECK(condition, ...)                                                  \
    do {                                                                       \
        if (!(condition)) [[unlikely]] {                                       \
            ::peplos::base::check_failed(#condition, __FILE__,                 \
                                         __LINE__ __VA_OPT__(, ) __VA_ARGS__); \
        }                                                                      \
    } while (false)
