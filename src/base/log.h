#pragma once

#include <spdlog/spdlog.h>

// Structured logs: LOG_INFO("volume opened volume={} epoch={}", id, epoch). Key=value pairs after
// the sentence; never a secret.
#define LOG_DEBUG(...) \
    SPDLOG_LOGGER_CALL(::spdlog::default_logger_raw(), ::spdlog::level::debug, __VA_ARGS__)
#define LOG_INFO(...) \
    SPDLOG_LOGGER_CALL(::spdlog::default_logger_raw(), ::spdlog::level::info, __VA_ARGS__)
#define LOG_WARN(...) \
    SPDLOG_LOGGER_CALL(::spdlog::default_logger_raw(), ::spdlog::level::warn, __VA_ARGS__)
#define LOG_ERROR(...) \
    SPDLOG_LOGGER_CALL(::spdlog::default_logger_raw(), ::spdlog::level::err, __VA_ARGS__)
