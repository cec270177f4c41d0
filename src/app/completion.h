#pragma once

#include <CLI/CLI.hpp>
#include <functional>
#include <string>
#include <vector>

#include "base/result.h"

namespace peplos::app {

// The script that a shell sources; it calls `peplos complete WORDS...`. Shells: bash, zsh, fish.
Result<std::string> completion_script(const std::string& shell);

// What may stand in place of the last word (which may be empty) of a command line. Commands and
// options come from the description of the program itself; volume names from `volumes`, which is
// called only where a name may stand.
std::vector<std::string> completions(const CLI::App& app, std::vector<std::string> words,
                                     const std::function<std::vector<std::string>()>& volumes);

}  // namespace peplos::app
