#include "base/log.h"

#include <spdlog/spdlog.h>
#include <string>

// The call sites do not see spdlog: its formatting, inlined into each file
// that logs, was a third of their code.
namespace peplos::base {
namespace {

spdlog::level::level_enum level_of(LogLevel level) {
    switch (level) {
        case LogLevel::debug:
            return spdlog::level::debug;
        case LogLevel::info:
            return spdlog::level::info;
        case LogLevel::warn:
            return spdlog::level::warn;
        case LogLevel::error:
            return spdlog::level::err;
    }
    return spdlog::level::err;
}

}  // namespace

bool is_logged(LogLevel level) {
    return spdlog::default_logger_raw()->should_log(level_of(level));
}

void log_line(LogLevel level, fmt::string_view format, fmt::format_args args) {
    std::string line = fmt::vformat(format, args);
    spdlog::default_logger_raw()->log(level_of(level), spdlog::string_view_t(line));
}

}  // namespace peplos::base
