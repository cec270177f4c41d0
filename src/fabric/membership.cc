#include "fabric/membership.h"

#include <algorithm>

#include "base/fault.h"
#include "base/log.h"

namespace peplos::fabric {
namespace {

using control::DeviceState;
using control::NodeState;

constexpr Duration kRetryMin = std::chrono::milliseconds(20);
constexpr Duration kRetryMax = std::chrono::seconds(2);

std::string key_of(const control::NodeRecord& record) {
    return control::node_key(record.id);
}
std::string key_of(const control::DeviceRecord& record) {
    return control::device_key(record.id);
}
std::string key_of(const control::GroupRecord& record) {
    return control::group_key(record.id);
}
std::string key_of(const control::MaintainerRecord&) {
    return std::string(control::kMaintainerKey);
}

}  // namespace

// ---- tables ----

template <typename Record>
void RecordTable<Record>::put(const control::KeyValue& entry, std::map<std::string, Row>& to) {
    Result<Record> record = control::decode<Record>(entry.value);
    if (record && key_of(*record) != entry.key) {
        record = fail(Code::corrupt, "it is the record of {}", key_of(*record));
    }
    if (record) {
        to.insert_or_assign(entry.key, Row{std::move(*record), entry.mod_revision});
        return;
    }
    LOG_ERROR("record not understood key={} revision={} why=\"{}\"", entry.key,
              entry.mod_revision.value, record.error().text());
    if (const Row* known = find(entry.key)) {
        to.insert_or_assign(entry.key, Row{known->record, entry.mod_revision});
    }
}

template <typename Record>
void RecordTable<Record>::replace(const std::vector<control::KeyValue>& entries) {
    std::map<std::string, Row> rows;
    for (const control::KeyValue& entry : entries)
        put(entry, rows);
    rows_ = std::move(rows);
}

template <typename Record>
void RecordTable<Record>::apply(const control::Event& event) {
    const Row* known = find(event.entry.key);
    if (known != nullptr && event.entry.mod_revision <= known->revision) return;
    if (event.kind == control::Event::Kind::removed) {
        rows_.erase(event.entry.key);
    } else {
        put(event.entry, rows_);
    }
}

template class RecordTable<control::NodeRecord>;
template class RecordTable<control::DeviceRecord>;
template class RecordTable<control::GroupRecord>;
template class RecordTable<control::MaintainerRecord>;

// ---- following the store ----

Membership::Membership(runtime::Env env, NodeId self, control::Store& store,
                       const Liveness& liveness, MembershipOptions options)
    : env_(std::move(env)),
      self_(self),
      store_(store),
      liveness_(liveness),
      options_(std::move(options)),
      nodes_(std::string(control::kNodePrefix)),
      devices_(std::string(control::kDevicePrefix)),
      groups_(std::string(control::kGroupPrefix)),
      maintainers_(std::string(control::kMaintainerKey)) {
    CHECK(self);
}

void Membership::start() {
    gate_.spawn(env_.executor, follow(nodes_, followers_[0]));
    gate_.spawn(env_.executor, follow(devices_, followers_[1]));
    gate_.spawn(env_.executor, follow(groups_, followers_[2]));
    gate_.spawn(env_.executor, follow(maintainers_, followers_[3]));
}

Task<void> Membership::stop() {
    is_stopping_ = true;
    for (Follower& follower : followers_) {
        if (follower.watch != nullptr) follower.watch->close();
        follower.alarm.ring();
    }
    changed_.wake_all();
    co_await gate_.close();
}

void Membership::note_change() {
    ++change_count_;
    changed_.wake_all();
}

Task<void> Membership::changed(uint64_t seen) {
    while (change_count_ == seen && !is_stopping_)
        co_await changed_.wait();
}

template <typename Table>
Task<void> Membership::follow(Table& table, Follower& follower) {
    Duration pause = kRetryMin;
    while (!is_stopping_) {
        Error ended = co_await follow_once(table, follower);
        if (is_stopping_) co_return;
        if (follower.is_current) pause = kRetryMin;
        follower.is_current = false;
        follower.why = ended.text();
        note_change();
        PROBE("fabric.membership_lists_anew");
        Duration shaken =
            pause / 2 +
            Duration(static_cast<int64_t>(env_.rng.below(static_cast<uint64_t>(pause.count()))));
        co_await follower.alarm.wait(env_.clock, shaken);
        pause = std::min(pause * 2, kRetryMax);
    }
}

// Lists, then watches, until one of them fails.
template <typename Table>
Task<Error> Membership::follow_once(Table& table, Follower& follower) {
    Result<control::Page> page = co_await control::list_all(store_, table.prefix());
    if (!page) co_return std::move(page).error();
    table.replace(page->entries);
    follower.is_listed = true;
    note_change();
    Result<std::unique_ptr<control::Watch>> watch =
        co_await store_.watch(table.prefix(), page->revision.next());
    if (!watch) co_return std::move(watch).error();
    if (is_stopping_) co_return Error(Code::stopping, "the node is stopping");
    follower.is_current = true;
    follower.why.clear();
    note_change();
    follower.watch = watch->get();
    Error ended = co_await take_news(table, follower, **watch);
    follower.watch = nullptr;
    co_return ended;
}

template <typename Table>
Task<Error> Membership::take_news(Table& table, Follower&, control::Watch& watch) {
    while (true) {
        Result<std::vector<control::Event>> events = co_await watch.next();
        if (!events) co_return std::move(events).error();
        for (const control::Event& event : *events)
            table.apply(event);
        note_change();
    }
}

bool Membership::is_current() const {
    return std::ranges::all_of(followers_, &Follower::is_current);
}

bool Membership::is_known() const {
    return std::ranges::all_of(followers_, &Follower::is_listed);
}

std::string Membership::why_not_current() const {
    for (const Follower& follower : followers_) {
        if (!follower.is_current) return "the control store: " + follower.why;
    }
    return {};
}

// ---- what follows ----

Presence Membership::presence_of(NodeId node) const {
    if (node == self_) return Presence::present;
    std::optional<Time> since = liveness_.silent_since(node);
    if (!since) return Presence::present;
    Duration silence = env_.clock.now() - *since;
    if (silence >= options_.dead_after) return Presence::dead;
    return silence >= options_.silent_after ? Presence::silent : Presence::present;
}

std::vector<PlacementNode> Membership::placement_nodes() const {
    std::map<NodeId, uint64_t> bytes;
    for (const auto& [key, row] : devices_.rows()) {
        if (row.record.state == DeviceState::active) bytes[row.record.node] += row.record.bytes;
    }
    std::vector<PlacementNode> out;
    for (const auto& [key, row] : nodes_.rows()) {
        const control::NodeRecord& record = row.record;
        PlacementNode& node = out.emplace_back();
        node.id = record.id;
        node.name = record.name;
        node.zone = record.zone;
        node.rack = record.rack;
        node.state = record.state;
        node.presence = presence_of(record.id);
        node.total_bytes = node.free_bytes = bytes[record.id];
        std::optional<NodeSpace> space = liveness_.space_of(record.id);
        if (!space || node.total_bytes == 0) continue;
        node.total_bytes = space->total_bytes;
        node.free_bytes = space->free_bytes;
    }
    return out;
}

std::vector<control::GroupRecord> Membership::placement_groups() const {
    std::vector<control::GroupRecord> out;
    for (const auto& [key, row] : groups_.rows())
        out.push_back(row.record);
    return out;
}

std::vector<NodeId> Membership::nodes_of(GroupId group) const {
    using State = control::GroupMemberState;
    std::vector<NodeId> out;
    const Groups::Row* row = groups_.find(control::group_key(group));
    if (row == nullptr) {
        bool is_alone =
            nodes_.rows().size() == 1 && nodes_.find(control::node_key(self_)) != nullptr;
        if (group == GroupId{} && is_alone) out.push_back(self_);
        return out;
    }
    for (State state : {State::full, State::leaving, State::filling}) {
        for (const control::GroupMember& member : row->record.members) {
            if (member.state == state) out.push_back(member.node);
        }
    }
    return out;
}

Result<GroupId> Membership::choose_group(VolumeId volume, uint32_t copies,
                                         std::span<const NodeId> avoid) {
    if (!is_known()) return fail(Code::unavailable, "{}", why_not_current());
    PlacementWish wish{self_, copies, avoid, may_degrade(volume)};
    std::vector<PlacementNode> nodes = placement_nodes();
    std::vector<control::GroupRecord> groups = placement_groups();
    TRY_ASSIGN(GroupChoice choice,
               fabric::choose_group(nodes, groups, wish, options_.rules, env_.rng));
    return choice.group;
}

std::vector<NodeId> Membership::others() const {
    std::vector<NodeId> out;
    for (const auto& [key, row] : nodes_.rows()) {
        bool is_gone =
            row.record.state == NodeState::lost || row.record.state == NodeState::removed;
        if (row.record.id != self_ && !is_gone) out.push_back(row.record.id);
    }
    return out;
}

const control::DeviceRecord* Membership::best_device(NodeId node) const {
    // One that is being emptied only where there is no other, then the fastest class, then the
    // largest.
    auto rank = [](const control::DeviceRecord& device) {
        return std::tuple(device.state == DeviceState::active,
                          -static_cast<int>(device.media_class), device.bytes);
    };
    const control::DeviceRecord* best = nullptr;
    for (const auto& [key, row] : devices_.rows()) {
        const control::DeviceRecord& device = row.record;
        if (device.node != node || device.state == DeviceState::failed) continue;
        if (best == nullptr || rank(device) > rank(*best)) best = &device;
    }
    return best;
}

replica::Members Membership::choose(VolumeId volume, uint32_t copies,
                                    const replica::Members& present,
                                    std::span<const NodeId> avoid) {
    if (best_device(self_) == nullptr) return {};
    std::vector<NodeId> staying;
    auto is_there = [this](const control::EnsembleMember& member) {
        const Devices::Row* row = devices_.find(control::device_key(member.device));
        return row != nullptr && row->record.node == member.node &&
               row->record.incarnation == member.incarnation &&
               row->record.state == DeviceState::active;
    };
    for (const control::EnsembleMember& member : present) {
        if (is_there(member)) staying.push_back(member.node);
    }
    PlacementWish wish{self_, copies, avoid, may_degrade(volume)};
    replica::Members members;
    for (NodeId node : fabric::choose_ensemble(placement_nodes(), placement_groups(), wish, staying,
                                               options_.rules)) {
        auto old = std::ranges::find(present, node, &control::EnsembleMember::node);
        if (old != present.end() && is_there(*old)) {
            members.push_back(*old);
            continue;
        }
        const control::DeviceRecord* device = best_device(node);
        CHECK(device != nullptr, "a node without device was chosen: {}", node);
        members.push_back({node, device->id, device->incarnation, {}});
    }
    return members;
}

}  // namespace peplos::fabric
