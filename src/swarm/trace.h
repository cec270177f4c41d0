#pragma once

#include <cstddef>
#include <deque>
#include <string>
#include <utility>

namespace peplos::swarm {

// The last lines of what happened; printed when a run fails.
class Trace {
  public:
    explicit Trace(size_t line_count_max) : line_count_max_(line_count_max) {}

    void add(std::string line) {
        if (lines_.size() == line_count_max_) lines_.pop_front();
        if (line_count_max_ != 0) lines_.push_back(std::move(line));
    }
    const std::deque<std::string>& lines() const { return lines_; }

  private:
    size_t line_count_max_;
    std::deque<std::string> lines_;
};

}  // namespace peplos::swarm
