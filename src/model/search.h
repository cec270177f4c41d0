#pragma once

#include <string>
#include <vector>

#include "model/world.h"

namespace peplos::model {

struct SearchOptions {
    uint64_t states_max = 20'000'000;
    // Every so many states: are they served again once all faults are over? 0: never.
    uint64_t progress_every = 256;
};

struct SearchReport {
    uint64_t states = 0;
    uint64_t steps = 0;     // tried, those that led nowhere new included
    uint64_t messages = 0;  // different ones
    uint64_t progress_checks = 0;
    uint32_t depth = 0;       // of the longest shortest path
    bool is_complete = true;  // every state within the scope was seen
    std::string problem;      // empty: none
    // How it came to that, one step per line, the shortest way there is.
    std::vector<std::string> trace;
};

// Takes every order of steps within the scope, breadth first, each state once (known by 64 bits of
// hash).
SearchReport search(const Scope& scope, const SearchOptions& options);

}  // namespace peplos::model
