#pragma once

#include <string>
#include <vector>

#include "base/result.h"

namespace peplos::app {

struct CommandResult {
    int exit_code = 0;
    std::string output;  // stdout and stderr together, at most 1 MiB of it
};

// Runs a program of the host (found in PATH) and waits at most `seconds`; a program that takes
// longer is killed. Errors: not_found (no such program), unavailable (took too long), io_error.
Result<CommandResult> run_command(const std::vector<std::string>& words, int seconds);

}  // namespace peplos::app
