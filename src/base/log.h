#pragma once

#include <fmt/core.h>

// Structured logs: LOG_INFO("volume opened volume={} epoch={}", id, epoch). Key=value pairs after
// the sentence; never a secret. A line below the log's level costs one comparison.
#define LOG_DEBUG(...) PEPLOS_LOG_(debug, __VA_ARGS__)
#define LOG_INFO(...) PEPLOS_LOG_(info, __VA_ARGS__)
#define LOG_WARN(...) PEPLOS_LOG_(warn, __VA_ARGS__)
#define LOG_ERROR(...) PEPLOS_LOG_(error, __VA_ARGS__)

namespace peplos::base {

enum class LogLevel : unsigned char { debug, info, warn, error };

bool is_logged(LogLevel level);

// The line as it is, to the process's log.
void log_line(LogLevel level, fmt::string_view format, fmt::format_args args);

template <typename... Args>
void write_log(LogLevel level, fmt::format_string<Args...> format, Args&&... args) {
    log_line(level, format, fmt::make_format_args(args...));
}

}  // namespace peplos::base

#define PEPLOS_LOG_(level, ...)                                                      \
    do {                                                                             \
        if (::peplos::base::is_logged(::peplos::base::LogLevel::level))              \
            ::peplos::base::write_log(::peplos::base::LogLevel::level, __VA_ARGS__); \
    } while (false)
