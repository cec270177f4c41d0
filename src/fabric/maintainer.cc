#include "fabric/maintainer.h"

#include <algorithm>

#include "base/fault.h"
#include "base/log.h"

namespace peplos::fabric {
namespace {

using control::NodeState;

// How long the view may take to show what was applied.
constexpr Duration kViewPatience = std::chrono::seconds(2);
constexpr Duration kViewPoll = std::chrono::milliseconds(20);

bool is_member(const control::NodeRecord& record) {
    return record.state != NodeState::lost && record.state != NodeState::removed;
}

}  // namespace

Maintainer::Maintainer(runtime::Env env, control::Store& store, const Membership& membership,
                       const Liveness& liveness, MaintainerOptions options)
    : env_(std::move(env)),
      store_(store),
      membership_(membership),
      liveness_(liveness),
      options_(options) {}

void Maintainer::start() {
    gate_.spawn(env_.executor, run());
}

Task<void> Maintainer::stop() {
    is_stopping_ = true;
    alarm_.ring();
    co_await gate_.close();
}

bool Maintainer::is_maintainer() const {
    const auto* row = membership_.maintainers().find(std::string(control::kMaintainerKey));
    return row != nullptr && row->record.node == membership_.self();
}

int64_t Maintainer::wall_now_s() const {
    auto now = env_.clock.wall_now().time_since_epoch();
    return std::chrono::duration_cast<std::chrono::seconds>(now).count();
}

Task<void> Maintainer::run() {
    while (!is_stopping_) {
        Result<void> done = co_await turn();
        if (!done && done.error().code() != Code::conflict) {
            LOG_DEBUG("groups not maintained just now why=\"{}\"", done.error().text());
        }
        if (is_stopping_) co_return;
        co_await alarm_.wait(env_.clock, options_.period);
    }
}

Task<Result<void>> Maintainer::turn() {
    // What is decided on a view that may be old costs copies of data.
    if (!membership_.is_current()) co_return Result<void>();
    if (!is_maintainer()) {
        waits_.clear();
        if (should_take_over()) co_return co_await take_over();
        co_return Result<void>();
    }
    vacant_since_.reset();
    std::vector<PlacementNode> nodes = membership_.placement_nodes();
    std::vector<control::GroupRecord> groups = membership_.placement_groups();
    Plan plan = plan_changes(nodes, groups, membership_.rules());
    waits_ = plan.waits;
    co_return co_await apply(std::move(plan));
}

// ---- who it is ----

bool Maintainer::should_take_over() {
    const auto* self = membership_.nodes().find(control::node_key(membership_.self()));
    if (self == nullptr || !is_member(self->record)) return false;
    const auto* row = membership_.maintainers().find(std::string(control::kMaintainerKey));
    if (row != nullptr) {
        const auto* node = membership_.nodes().find(control::node_key(row->record.node));
        bool is_there = node != nullptr && is_member(node->record);
        std::optional<Time> since = liveness_.silent_since(row->record.node);
        bool is_silent = since && env_.clock.now() - *since >= options_.takeover_after;
        if (is_there && !is_silent) {
            vacant_since_.reset();
            return false;
        }
    }
    if (!vacant_since_) vacant_since_ = env_.clock.now();
    // Those before this node have the first try; they may be unable to.
    int64_t before = 0;
    for (const auto& [key, other] : membership_.nodes().rows()) {
        bool is_candidate = is_member(other.record) && !liveness_.silent_since(other.record.id);
        before += is_candidate && other.record.id < membership_.self() ? 1 : 0;
    }
    return env_.clock.now() - *vacant_since_ >= options_.takeover_step * before;
}

Task<Result<void>> Maintainer::take_over() {
    const std::string key(control::kMaintainerKey);
    const auto* row = membership_.maintainers().find(key);
    control::MaintainerRecord record{membership_.self(), 1, wall_now_s()};
    control::Revision expected;
    if (row != nullptr) {
        record.term = row->record.term + 1;
        expected = row->revision;
    }
    CO_TRY_ASSIGN(std::string value, encode(record));
    control::Transaction transaction = {control::put(key, expected, std::move(value))};
    CO_TRY(co_await store_.compare_and_set(std::move(transaction)));
    LOG_INFO("this node maintains the groups from now on term={}", record.term);
    // The watch tells; the next turn acts on what it says.
    Time deadline = env_.clock.now() + kViewPatience;
    while (!is_stopping_ && !is_maintainer() && env_.clock.now() < deadline)
        co_await env_.clock.sleep_for(kViewPoll);
    co_return Result<void>();
}

// ---- what it does ----

Result<control::Transaction> Maintainer::transaction_of(GroupEdit& edit) const {
    const auto* mine = membership_.maintainers().find(std::string(control::kMaintainerKey));
    if (mine == nullptr) return fail(Code::conflict, "there is no maintainer");
    control::Transaction out = {
        control::check(std::string(control::kMaintainerKey), mine->revision)};
    for (NodeId node : edit.added) {
        const auto* row = membership_.nodes().find(control::node_key(node));
        if (row == nullptr) return fail(Code::conflict, "node {} is gone", node);
        out.push_back(control::check(control::node_key(node), row->revision));
    }
    std::string key = control::group_key(edit.group.id);
    control::Revision expected;
    if (!edit.is_new) {
        const auto* row = membership_.groups().find(key);
        if (row == nullptr || row->record.version + 1 != edit.group.version) {
            return fail(Code::conflict, "group {} was changed", edit.group.id);
        }
        expected = row->revision;
    }
    TRY_ASSIGN(std::string value, encode(edit.group));
    out.push_back(control::put(std::move(key), expected, std::move(value)));
    return out;
}

Task<Result<control::Revision>> Maintainer::apply_one(GroupEdit edit) {
    if (edit.is_new) {
        edit.group.id = GroupId(env_.rng.next_id());
        edit.group.created_at_s = wall_now_s();
    }
    CO_TRY_ASSIGN(control::Transaction transaction, transaction_of(edit));
    Result<control::Revision> set = co_await store_.compare_and_set(std::move(transaction));
    if (set) {
        LOG_INFO("group changed group={} version={} why=\"{}\"", edit.group.id, edit.group.version,
                 edit.reason);
    }
    co_return set;
}

// Each edit is a transaction of its own: one that conflicts holds up no other.
Task<Result<void>> Maintainer::apply(Plan plan) {
    std::optional<Error> failed;
    control::Revision newest;
    for (GroupEdit& edit : plan.edits) {
        if (is_stopping_ || !membership_.is_current()) break;
        Result<control::Revision> set = co_await apply_one(std::move(edit));
        if (set) {
            ++edit_count_;
            newest = std::max(newest, *set);
            continue;
        }
        PROBE("fabric.group_edit_fails");
        failed = std::move(set).error();
        // Applied or not: the next plan is made of what the watch shows by then. At worst a group
        // is made twice, which does no harm.
        if (failed->code() != Code::conflict) break;
    }
    // A plan from before these changes would make new groups a second time.
    auto shows_all = [this, newest] {
        for (const auto& [key, row] : membership_.groups().rows()) {
            if (row.revision >= newest) return true;
        }
        return newest == control::Revision{};
    };
    Time deadline = env_.clock.now() + kViewPatience;
    while (!is_stopping_ && !shows_all() && env_.clock.now() < deadline)
        co_await env_.clock.sleep_for(kViewPoll);
    if (failed) co_return fail(std::move(*failed));
    co_return Result<void>();
}

}  // namespace peplos::fabric
