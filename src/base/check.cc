#include "base/check.h"

#include <cstdio>
#include <cstdlib>
#include <string>

namespace peplos::base {
namespace {

[[noreturn]] void stop(const char* condition, const char* file, int line,
                       const std::string& message) {
    std::fprintf(stderr, "CHECK failed: %s at %s:%d%s\n", condition, file, line, message.c_str());
    std::fflush(stderr);
    std::abort();
}

}  // namespace

void check_failed(const char* condition, const char* file, int line) {
    stop(condition, file, line, "");
}

void check_failed_with(const char* condition, const char* file, int line, fmt::string_view format,
                       fmt::format_args args) {
    stop(condition, file, line, ": " + fmt::vformat(format, args));
}

}  // namespace peplos::base
