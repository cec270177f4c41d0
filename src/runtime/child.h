#pragma once

#include <string>
#include <vector>

#include "base/result.h"
#include "base/units.h"
#include "runtime/task.h"

namespace peplos::runtime {

struct ChildOptions {
    // The child and its process group are killed when they take longer.
    Duration time_max = std::chrono::seconds(30);
    // Of each stream; what follows is read and dropped.
    size_t output_bytes_max = 64 * kKiB;
};

struct ChildResult {
    // 128 + the signal's number when a signal ended it.
    int exit_code = 0;
    std::string output;
    std::string errors;
};

// Runs argv[0] (looked up in PATH) with the given arguments, standard input closed, LC_ALL=C, in a
// process group of its own. Only the calling task waits; its executor is an io_context's.
//
// Errors: not_found (no such program), permission_denied, unavailable (not ended within time_max
// and killed, or not enough memory or processes); each names the command.
Task<Result<ChildResult>> run_child(std::vector<std::string> argv, ChildOptions options = {});

// The same for a command that must succeed: its standard output.
// Errors, besides: io_error (another exit code than 0), with what it said.
Task<Result<std::string>> run_child_checked(std::vector<std::string> argv,
                                            ChildOptions options = {});

}  // namespace peplos::runtime
