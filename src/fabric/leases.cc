#include "fabric/leases.h"

#include "base/log.h"
#include "control/cluster_records.h"

namespace peplos::fabric {
namespace {

// A silent node's lease is read so often; without an answer for longer than that, nothing is known.
constexpr Duration kLook = std::chrono::milliseconds(500);
constexpr Duration kGap = std::chrono::milliseconds(2500);
// After a renewal that failed; and what a call to the store takes at most (etcd_link.h).
constexpr Duration kRetry = std::chrono::milliseconds(200);
constexpr Duration kCallLimit = std::chrono::seconds(3);

}  // namespace

Leases::Leases(runtime::Env env, NodeId self, control::Store& store,
               std::function<std::vector<NodeId>()> silent, LeaseOptions options)
    : env_(std::move(env)),
      self_(self),
      store_(store),
      silent_(std::move(silent)),
      options_(options) {
    CHECK(options.renewal + kCallLimit + kRetry < options.term, "a renewal may hang once");
}

void Leases::start() {
    gate_.spawn(env_.executor, renew());
    gate_.spawn(env_.executor, follow());
}

Task<void> Leases::stop() {
    is_stopping_ = true;
    renew_alarm_.ring();
    follow_alarm_.ring();
    co_await gate_.close();
}

bool Leases::holds(NodeId node) const {
    auto seen = seen_.find(node);
    const Time now = env_.clock.now();
    // It was not looked at yet, or not lately: it has all its time.
    if (seen == seen_.end() || now - seen->second.read_at > kGap + kCallLimit) return true;
    // By what was read: a term without a renewal, not one without a look.
    return seen->second.read_at - seen->second.renewed_at <= options_.term;
}

// What is written says when, for people: every write counts, whatever it says.
Task<void> Leases::renew() {
    while (!is_stopping_) {
        const Time began = env_.clock.now();
        const int64_t now = unix_seconds(env_.clock.wall_now());
        control::Transaction sign;
        sign.push_back(control::put(control::lease_key(self_), std::nullopt, std::to_string(now)));
        Result<control::Revision> written = co_await store_.compare_and_set(std::move(sign));
        if (!written) LOG_DEBUG("lease not renewed why=\"{}\"", written.error().text());
        if (is_stopping_) co_return;
        // Counted from the last attempt, however long that took.
        const Duration left = began + options_.renewal - env_.clock.now();
        co_await renew_alarm_.wait(env_.clock, written ? std::max(left, kRetry) : kRetry);
    }
}

Task<void> Leases::follow() {
    while (!is_stopping_) {
        const std::vector<NodeId> silent = silent_();
        std::erase_if(seen_, [&silent](const auto& seen) {
            return std::ranges::find(silent, seen.first) == silent.end();
        });
        if (!silent.empty()) {
            const Time asked = env_.clock.now();
            Result<control::Page> page =
                co_await control::list_all(store_, std::string(control::kLeasePrefix));
            std::map<std::string, control::Revision> revisions;
            if (page) {
                for (const control::KeyValue& entry : page->entries)
                    revisions.emplace(entry.key, entry.mod_revision);
                for (NodeId node : silent)
                    note(node, revisions[control::lease_key(node)], asked);
            }
        }
        if (!is_stopping_) co_await follow_alarm_.wait(env_.clock, kLook);
    }
}

void Leases::note(NodeId node, control::Revision revision, Time asked) {
    const Time now = env_.clock.now();
    auto [place, is_new] = seen_.try_emplace(node, Seen{revision, now, asked});
    Seen& seen = place->second;
    // After a gap nobody knows what was missed, or whether the node could renew at all.
    const bool is_gap = asked - seen.read_at > kGap;
    if (is_gap || seen.revision != revision) seen.renewed_at = now;
    seen.revision = revision;
    seen.read_at = asked;
}

}  // namespace peplos::fabric
