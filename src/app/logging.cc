#include "app/logging.h"

#include <cstdlib>
#include <ctime>
#include <fmt/format.h>
#include <memory>
#include <nlohmann/json.hpp>
#include <spdlog/formatter.h>
#include <spdlog/pattern_formatter.h>
#include <spdlog/sinks/stdout_sinks.h>
#include <spdlog/spdlog.h>

namespace peplos::app {
namespace {

class JsonFormatter : public spdlog::formatter {
  public:
    void format(const spdlog::details::log_msg& message, spdlog::memory_buf_t& out) override {
        auto since = message.time.time_since_epoch();
        int64_t ns = std::chrono::duration_cast<std::chrono::nanoseconds>(since).count();
        auto level = spdlog::level::to_string_view(message.level);
        std::string line = json_log_line(ns, {level.data(), level.size()},
                                         {message.payload.data(), message.payload.size()});
        line.push_back('\n');
        out.append(line.data(), line.data() + line.size());
    }
    std::unique_ptr<spdlog::formatter> clone() const override {
        return std::make_unique<JsonFormatter>();
    }
};

bool is_key(std::string_view text) {
    if (text.empty() || text[0] < 'a' || text[0] > 'z') return false;
    for (char c : text) {
        bool ok = (c >= 'a' && c <= 'z') || (c >= '0' && c <= '9') || c == '_';
        if (!ok) return false;
    }
    return true;
}

std::string print_time(int64_t unix_ns) {
    time_t seconds = static_cast<time_t>(unix_ns / 1'000'000'000);
    tm utc{};
    gmtime_r(&seconds, &utc);
    return fmt::format("{:04}-{:02}-{:02}T{:02}:{:02}:{:02}.{:06}Z", utc.tm_year + 1900,
                       utc.tm_mon + 1, utc.tm_mday, utc.tm_hour, utc.tm_min, utc.tm_sec,
                       unix_ns % 1'000'000'000 / 1000);
}

}  // namespace

std::string json_log_line(int64_t unix_ns, std::string_view level, std::string_view message) {
    nlohmann::ordered_json out;
    out["time"] = print_time(unix_ns);
    out["level"] = level;
    out["message"] = message;
    // Walks back over " key=value" words; a word that is none ends the walk.
    std::string_view rest = message;
    while (true) {
        size_t space = rest.rfind(' ');
        if (space == std::string_view::npos) break;
        std::string_view word = rest.substr(space + 1);
        size_t equals = word.find('=');
        if (equals == std::string_view::npos || !is_key(word.substr(0, equals))) break;
        std::string key(word.substr(0, equals));
        if (key == "time" || key == "level" || key == "message") key.push_back('_');
        out[key] = word.substr(equals + 1);
        rest = rest.substr(0, space);
    }
    return out.dump(-1, ' ', false, nlohmann::json::error_handler_t::replace);
}

void start_log(const Config& config) {
    auto logger = std::make_shared<spdlog::logger>(
        "peplos", std::make_shared<spdlog::sinks::stderr_sink_mt>());
    if (config.log_format == LogFormat::json) {
        logger->set_formatter(std::make_unique<JsonFormatter>());
    } else {
        bool journal = std::getenv("JOURNAL_STREAM") != nullptr;
        logger->set_pattern(journal ? "%l %v" : "%Y-%m-%dT%H:%M:%S.%f%z %l %v");
    }
    logger->set_level(spdlog::level::from_str(config.log_level));
    logger->flush_on(spdlog::level::debug);
    spdlog::set_default_logger(logger);
}

}  // namespace peplos::app
