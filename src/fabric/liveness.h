#pragma once

#include <optional>
#include <unordered_map>

#include "base/ids.h"
#include "runtime/clock.h"

namespace peplos::fabric {

struct NodeSpace {
    uint64_t free_bytes = 0;
    uint64_t total_bytes = 0;
};

// Who is probably dead, and how much space there is. Hints only: the replicas fence, whoever is
// believed to be dead.
class Liveness {
  public:
    virtual ~Liveness() = default;
    // Since when nothing was heard of the node; nullopt: it lives.
    virtual std::optional<Time> silent_since(NodeId node) const = 0;
    // Of its devices that take new data, as it said last; nullopt: it never did.
    virtual std::optional<NodeSpace> space_of(NodeId node) const = 0;
};

// What peers' heartbeats say. A node that was never heard of is silent since the table was made.
class LivenessTable final : public Liveness {
  public:
    // Shorter silences are none.
    static constexpr Duration kGrace = std::chrono::seconds(3);

    explicit LivenessTable(runtime::Clock& clock) : clock_(clock), start_(clock.now()) {}

    // Nothing could be heard before now: this node began, or stood still.
    void begin_anew() {
        start_ = clock_.now();
        for (auto& [node, row] : rows_)
            row.heard_at.reset();
    }
    // A heartbeat, or any other answer of the node.
    void heard(NodeId node) { rows_[node].heard_at = clock_.now(); }
    void set_space(NodeId node, NodeSpace space) { rows_[node].space = space; }
    void forget(NodeId node) { rows_.erase(node); }

    std::optional<Time> silent_since(NodeId node) const override {
        return silent_since(node, kGrace);
    }
    std::optional<Time> silent_since(NodeId node, Duration grace) const {
        auto row = rows_.find(node);
        Time last = row == rows_.end() ? start_ : row->second.heard_at.value_or(start_);
        if (clock_.now() - last <= grace) return std::nullopt;
        return last;
    }
    std::optional<NodeSpace> space_of(NodeId node) const override {
        auto row = rows_.find(node);
        return row == rows_.end() ? std::nullopt : row->second.space;
    }

  private:
    struct Row {
        std::optional<Time> heard_at;
        std::optional<NodeSpace> space;
    };
    runtime::Clock& clock_;
    Time start_;
    std::unordered_map<NodeId, Row> rows_;
};

}  // namespace peplos::fabric
