#pragma once

#include <string>
#include <string_view>

#include "app/config.h"

namespace peplos::app {

// Sets up the log as `config` says: one line per event on stderr. Text carries the time only where
// nobody else adds one (the journal does); JSON is one object per line.
void start_log(const Config& config);

// One event as JSON: "time" (RFC 3339, UTC), "level", "message", and the key=value pairs that end
// the message as strings of their own. `unix_ns`: nanoseconds since 1970.
std::string json_log_line(int64_t unix_ns, std::string_view level, std::string_view message);

}  // namespace peplos::app
