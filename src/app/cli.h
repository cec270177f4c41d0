#pragma once

#include <ostream>

// The `peplos` command. It knows the node only through its REST API on the Unix socket.
namespace peplos::app {

// Runs one command line. Answers go to `out`, errors to `err`; `terminal`: colours may be used.
// Returns the exit code: 0 done, 1 refused or failed, 2 not understood.
int run_cli(int argc, const char* const* argv, std::ostream& out, std::ostream& err, bool terminal);

}  // namespace peplos::app
