#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <string_view>
#include <vector>

// Every short sequence of operations on one volume, cut off at every point where the disk could
// tell the difference, in every state that the disk may be in then.
//
// A crash point is the moment after each submission and each completion of a write, zeroing or
// sync, and after each answer. What was not durable then may have reached the media or not: all
// subsets of up to kSubsetWritesMax such writes are tried, of more each alone and all but each; of
// each write also its first and its second half, and of a page its first half. States that are
// equal, with equal promises, are checked once.
namespace peplos::swarm {

enum class Step : uint8_t { write, flush, trim, grow, drain, clean, checkpoint, restart };
inline constexpr std::size_t kStepCount = 8;
std::string_view name_of(Step step);
// Of names joined by commas. Errors: a word that names no step, which is returned in `wrong`.
std::vector<Step> steps_of(std::string_view names, std::string* wrong);

struct ExhaustiveOptions {
    uint32_t depth = 1;  // the longest sequence
    // Of every `shards` sequences one is run here: the `shard`-th, from 0.
    uint64_t shard = 0;
    uint64_t shards = 1;
    // Only this one and its beginnings; empty: all.
    std::vector<Step> only;
    std::string planted;  // see planted.h
    // Told of each sequence before it runs.
    std::function<void(const std::vector<Step>& steps)> progress;
};

struct ExhaustiveReport {
    std::string problem;  // of the first state that is wrong; empty: none is
    std::string sequence;
    uint64_t sequences = 0;
    uint64_t crash_points = 0;
    uint64_t crash_states = 0;     // enumerated
    uint64_t distinct_states = 0;  // of these, recovered and checked
};

ExhaustiveReport run_exhaustive(const ExhaustiveOptions& options);

}  // namespace peplos::swarm
