#include "volume/segment_peers.h"

#include <algorithm>

#include "base/log.h"
#include "format/segment_layout.h"
#include "replica/segment_service.h"

namespace peplos::volume {

using replica::RemoteSegments;
using runtime::Task;

namespace {

// For so long a node that failed gets no new segments of the volume.
constexpr Duration kAvoidTime = std::chrono::seconds(10);
// In how many groups a segment is tried.
constexpr int kGroupsTried = 3;
constexpr size_t kRemovalBatch = 1024;
// What one node is still to be told to remove; beyond it the next open finds them.
constexpr size_t kRemovalsMax = 65'536;
constexpr size_t kBadMax = 4096;

bool has(const std::vector<NodeId>& nodes, NodeId node) {
    return std::ranges::find(nodes, node) != nodes.end();
}

}  // namespace

// Some tasks at once, and what became of them.
struct SegmentPeers::Joint {
    size_t pending = 0;
    std::vector<std::pair<NodeId, Error>> errors;
    runtime::WaitList done;
};

SegmentPeers::~SegmentPeers() {
    CHECK(live_.empty(), "a handle outlives the volume's segments");
}

// ---- many at once ----

Task<void> SegmentPeers::run_one(Joint& joint, Job& job) {
    auto outcome = co_await std::move(job.second);
    if (!outcome) joint.errors.emplace_back(job.first, std::move(outcome).error());
    if (--joint.pending == 0) joint.done.wake_all();
}

Task<Result<void>> SegmentPeers::run(std::vector<Job> jobs) {
    if (jobs.empty()) co_return Result<void>{};
    Joint joint;
    joint.pending = jobs.size();
    for (size_t i = 1; i < jobs.size(); ++i)
        runtime::spawn(env_.executor, run_one(joint, jobs[i]));
    co_await run_one(joint, jobs[0]);
    while (joint.pending != 0)
        co_await joint.done.wait();
    if (joint.errors.empty()) co_return Result<void>{};
    co_return fail(judge(joint));
}

// This node's own error says what is wrong here; `fenced` ends everything; of another node's it
// matters only that its copy is not what it should be.
Error SegmentPeers::judge(Joint& joint) {
    std::optional<Error> worst;
    for (auto& [node, error] : joint.errors) {
        const bool is_here = node == placement_.self();
        const bool is_fence = error.code() == Code::fenced;
        if (!is_here && !is_fence) {
            avoid(node);
            bool is_full = error.code() == Code::no_space;
            error = Error(is_full ? Code::no_space : Code::unavailable, error.message());
        }
        auto weight = [this](NodeId from, const Error& what) {
            return what.code() == Code::fenced ? 2 : from == placement_.self() ? 1 : 0;
        };
        if (!worst || is_fence || weight(node, error) == 1) worst = error;
        if (is_fence) break;
    }
    return *worst;
}

void SegmentPeers::avoid(NodeId node) {
    ++failures_;
    avoided_[node] = env_.clock.now() + kAvoidTime;
    group_ = {};
}

Result<RemoteSegments*> SegmentPeers::remote(NodeId node) const {
    RemoteSegments* remote = placement_.segments_on(node);
    if (remote != nullptr) return remote;
    return fail(Code::unavailable, "node {} is not known", node);
}

replica::SegmentRequest SegmentPeers::request_of(const SegmentId& id) const {
    replica::SegmentRequest request;
    request.volume = actor_.volume;
    request.lineage = actor_.lineage;
    request.claim = actor_.claim;
    request.id = id;
    return request;
}

// ---- what is where ----

Task<void> SegmentPeers::survey_one(RemoteSegments& remote, std::optional<Error>& fenced) {
    const NodeId node = remote.node();
    Result<void> outcome = co_await placement_.fence(node, actor_.volume, actor_.claim);
    if (outcome) {
        auto listing = co_await remote.list(actor_);
        if (listing) {
            answered_.insert(node);
            for (const replica::SegmentCopy& copy : listing->copies) {
                Found& found = found_.try_emplace(copy.id, Found{copy, {}}).first->second;
                found.nodes.push_back(node);
            }
            co_return;
        }
        outcome = fail(std::move(listing).error());
    }
    if (outcome.error().code() == Code::fenced) fenced = outcome.error();
    unanswered_.push_back(node);
    LOG_INFO("node left out of a survey volume={} node={} why={}", actor_.volume, node,
             outcome.error().text());
}

Task<Result<void>> SegmentPeers::survey() {
    const std::vector<NodeId> nodes = placement_.others();
    std::optional<Error> fenced;
    struct Asked {
        static Task<Result<void>> run(SegmentPeers& peers, RemoteSegments& remote,
                                      std::optional<Error>& fenced) {
            co_await peers.survey_one(remote, fenced);
            co_return Result<void>{};
        }
    };
    std::vector<Job> jobs;
    for (NodeId node : nodes) {
        RemoteSegments* remote = placement_.segments_on(node);
        if (remote == nullptr) {
            unanswered_.push_back(node);
        } else {
            jobs.emplace_back(node, Asked::run(*this, *remote, fenced));
        }
    }
    CO_TRY(co_await run(std::move(jobs)));
    for (auto& [id, found] : found_)
        std::ranges::sort(found.nodes);
    if (fenced) co_return fail(*fenced);
    co_return Result<void>{};
}

std::vector<SegmentId> SegmentPeers::surveyed() const {
    std::vector<SegmentId> out;
    out.reserve(found_.size());
    for (const auto& [id, found] : found_)
        out.push_back(id);
    return out;
}

CopiesRef SegmentPeers::find(const SegmentId& id, GroupId group, const media::SegmentPin& pin) {
    if (auto live = live_.find(id); live != live_.end()) return live->second;
    auto found = found_.find(id);
    if (!group && pin) group = pin.info().group;
    if (!group && found != found_.end()) group = found->second.copy.group;
    if (!group) return {};
    auto copies = std::make_unique<RemoteCopies>();
    copies->peers = this;
    copies->id = id;
    copies->group = group;
    copies->unit_count = limits::kSegmentBytesMax / limits::kSegmentUnitBytes;
    if (found != found_.end()) {
        copies->nodes = found->second.nodes;
        copies->kind = found->second.copy.kind;
        copies->unit_count = found->second.copy.unit_count;
    }
    const std::vector<NodeId> members = placement_.nodes_of(group);
    copies->is_complete = !members.empty() && (pin || !is_here(group));
    for (NodeId node : members) {
        if (node == placement_.self() || has(copies->nodes, node)) continue;
        // It may have one, if nobody knows better.
        if (answered_.contains(node)) {
            copies->is_complete = false;
        } else {
            copies->nodes.push_back(node);
        }
    }
    // Nowhere, and everybody who should know was asked.
    if (copies->nodes.empty() && !pin && !members.empty()) return {};
    live_.emplace(id, copies.get());
    return CopiesRef(copies.release());
}

Task<void> SegmentPeers::mend_missing(std::vector<std::pair<SegmentId, GroupId>> sealed) {
    for (const auto& [id, group] : sealed) {
        if (closed_ || background_.is_closed()) co_return;
        const media::PlacedSegment here = media::find_on(space_.stores(), id);
        auto found = found_.find(id);
        replica::SegmentCopy copy{id, actor_.lineage, group, format::SegmentKind::data, 1};
        if (found != found_.end()) copy = found->second.copy;
        const std::vector<NodeId> members = placement_.nodes_of(group);
        for (NodeId node : members) {
            bool has_it = node == placement_.self()
                              ? static_cast<bool>(here.pin)
                              : !answered_.contains(node) ||
                                    (found != found_.end() && has(found->second.nodes, node));
            if (has_it) continue;
            note_bad(id, node == placement_.self() ? NodeId{} : node);
        }
        co_await runtime::yield();
    }
    // From here on the groups say it.
    found_.clear();
    answered_.clear();
}

// ---- handles ----

void SegmentPeers::last_reference_gone(RemoteCopies* copies) {
    std::unique_ptr<RemoteCopies> owned(copies);
    live_.erase(owned->id);
    if (owned->is_removed && !closed_) queue_removal(owned->nodes, owned->id);
}

void SegmentPeers::queue_removal(const std::vector<NodeId>& nodes, const SegmentId& id) {
    for (NodeId node : nodes) {
        std::vector<SegmentId>& waiting = removals_[node];
        if (waiting.size() < kRemovalsMax) waiting.push_back(id);
    }
    remove_again();
}

void SegmentPeers::remove_again() {
    bool is_needed =
        std::ranges::any_of(removals_, [](const auto& waiting) { return !waiting.second.empty(); });
    if (!is_needed || is_removing_ || closed_ || background_.is_closed()) return;
    is_removing_ = true;
    background_.spawn(env_.executor, remove_queued());
}

Task<void> SegmentPeers::remove_queued() {
    std::set<NodeId> failed;
    for (;;) {
        auto next = std::ranges::find_if(removals_, [&failed](const auto& waiting) {
            return !waiting.second.empty() && !failed.contains(waiting.first);
        });
        if (next == removals_.end() || closed_ || background_.is_closed()) break;
        const NodeId node = next->first;
        std::vector<SegmentId>& waiting = next->second;
        const size_t count = std::min(waiting.size(), kRemovalBatch);
        std::vector<SegmentId> batch(waiting.end() - static_cast<ptrdiff_t>(count), waiting.end());
        RemoteSegments* remote = placement_.segments_on(node);
        bool is_done = false;
        if (remote != nullptr) {
            std::vector<SegmentId> ids = batch;
            is_done = (co_await remote->remove(actor_, std::move(ids))).has_value();
        }
        if (!is_done) failed.insert(node);
        if (is_done) {
            std::ranges::sort(batch);
            std::erase_if(removals_[node], [&batch](const SegmentId& id) {
                return std::ranges::binary_search(batch, id);
            });
        }
    }
    is_removing_ = false;
}

Task<Result<void>> SegmentPeers::remove(SegmentId id) {
    auto request = request_of({});
    request.ids.push_back(id);
    // Its copies elsewhere go when this and every handle has.
    const CopiesRef copies = find(id, {}, media::find_on(space_.stores(), id).pin);
    if (copies) copies->is_removed = true;
    CO_TRY(co_await placement_.service().remove(std::move(request)));
    co_return Result<void>{};
}

// ---- new segments ----

bool SegmentPeers::is_here(GroupId group) const {
    return has(placement_.nodes_of(group), placement_.self());
}

Result<GroupId> SegmentPeers::group() {
    if (group_) return group_;
    const Time now = env_.clock.now();
    std::erase_if(avoided_, [now](const auto& avoided) { return avoided.second <= now; });
    std::vector<NodeId> nodes;
    nodes.reserve(avoided_.size());
    for (const auto& [node, until] : avoided_)
        nodes.push_back(node);
    TRY_ASSIGN(group_, placement_.choose(actor_.volume, copies_, nodes));
    return group_;
}

Task<Result<SegmentHandle>> SegmentPeers::create_in(GroupId group, media::SegmentWish wish) {
    auto request = request_of(wish.id);
    request.group = group;
    request.kind = wish.kind;
    request.bytes = wish.bytes;
    request.purpose = wish.purpose;
    auto copies = std::make_unique<RemoteCopies>();
    copies->peers = this;
    copies->id = wish.id;
    copies->group = group;
    copies->kind = wish.kind;
    copies->unit_count =
        static_cast<uint32_t>(format::segment_run_bytes(wish.bytes) / limits::kSegmentUnitBytes);
    std::vector<Job> jobs;
    const std::vector<NodeId> members = placement_.nodes_of(group);
    for (NodeId node : members) {
        if (node == placement_.self()) {
            jobs.emplace_back(node, placement_.service().create(request));
            continue;
        }
        CO_TRY_ASSIGN(RemoteSegments * remote, this->remote(node));
        jobs.emplace_back(
            node, remote->create(actor_, wish.id, group, wish.kind, wish.bytes, wish.purpose));
        copies->nodes.push_back(node);
    }
    if (jobs.empty()) co_return fail(Code::unavailable, "group {} has no nodes", group);
    live_.emplace(wish.id, copies.get());
    CopiesRef held(copies.release());
    auto made = co_await run(std::move(jobs));
    media::PlacedSegment here = media::find_on(space_.stores(), wish.id);
    SegmentHandle handle(std::move(here.pin), here.store, std::move(held));
    if (made) co_return handle;
    // It may be on some of them, also on those that did not answer.
    auto removed = co_await remove(wish.id);
    if (!removed) LOG_WARN("a segment stays until the next open: {}", removed.error().text());
    co_return fail(std::move(made).error());
}

Task<Result<SegmentHandle>> SegmentPeers::create(SegmentId id, format::SegmentKind kind,
                                                 uint64_t bytes, media::Purpose purpose) {
    Error why(Code::unavailable, "no group of nodes");
    for (int i = 0; i < kGroupsTried; ++i) {
        auto group = this->group();
        if (!group && i == 0) co_return fail(std::move(group).error());
        if (!group) break;
        const uint64_t before = failures_;
        media::SegmentWish wish{id, actor_.lineage, actor_.volume, *group, kind, bytes, purpose};
        auto made = co_await create_in(*group, wish);
        if (made) co_return made;
        why = std::move(made).error();
        if (failures_ == before || why.code() == Code::fenced) break;
    }
    co_return fail(std::move(why));
}

Task<Result<void>> SegmentPeers::write(SegmentHandle handle, uint64_t offset,
                                       std::vector<Buffer> from, runtime::Durability durability) {
    std::vector<Job> jobs;
    if (handle.has_local()) {
        auto request = request_of(handle.id());
        request.offset = offset;
        request.durability = durability;
        for (const Buffer& buffer : from)
            request.bytes += buffer.size();
        jobs.emplace_back(placement_.self(), placement_.service().write(request, from));
    }
    for (NodeId node : handle.copies()->nodes) {
        CO_TRY_ASSIGN(RemoteSegments * remote, this->remote(node));
        jobs.emplace_back(node, remote->write(actor_, handle.id(), offset, from, durability));
    }
    co_return co_await run(std::move(jobs));
}

Task<Result<void>> SegmentPeers::sync(std::vector<SegmentHandle> handles) {
    std::vector<SegmentId> here;
    std::map<NodeId, std::vector<SegmentId>> there;
    for (const SegmentHandle& handle : handles) {
        if (!handle.copies()) continue;
        if (handle.has_local()) here.push_back(handle.id());
        for (NodeId node : handle.copies()->nodes)
            there[node].push_back(handle.id());
    }
    std::vector<Job> jobs;
    if (!here.empty()) {
        auto request = request_of({});
        request.ids = std::move(here);
        jobs.emplace_back(placement_.self(), placement_.service().sync(std::move(request)));
    }
    for (auto& [node, ids] : there) {
        CO_TRY_ASSIGN(RemoteSegments * remote, this->remote(node));
        jobs.emplace_back(node, remote->sync(actor_, std::move(ids)));
    }
    co_return co_await run(std::move(jobs));
}

// Another node's copy that stays longer than it need be costs space, nothing else.
Task<Result<void>> SegmentPeers::shrink(SegmentHandle handle, uint64_t bytes) {
    std::vector<Job> jobs;
    for (NodeId node : handle.copies()->nodes) {
        if (RemoteSegments* remote = placement_.segments_on(node))
            jobs.emplace_back(node, remote->shrink(actor_, handle.id(), bytes));
    }
    auto elsewhere = co_await run(std::move(jobs));
    if (!elsewhere && elsewhere.error().code() == Code::fenced) co_return elsewhere;
    if (!elsewhere)
        LOG_INFO("a copy keeps units that it does not need: {}", elsewhere.error().text());
    handle.copies()->unit_count =
        static_cast<uint32_t>(format::segment_run_bytes(bytes) / limits::kSegmentUnitBytes);
    if (!handle.has_local()) co_return Result<void>{};
    auto request = request_of(handle.id());
    request.bytes = bytes;
    co_return co_await placement_.service().shrink(std::move(request));
}

// ---- adoption ----

Task<Result<void>> SegmentPeers::adopt_here(SegmentId id) {
    CO_TRY(co_await placement_.service().adopt(request_of(id)));
    co_return Result<void>{};
}

Task<Result<void>> SegmentPeers::adopt_there(RemoteSegments& remote, SegmentId id) {
    CO_TRY(co_await placement_.fence(remote.node(), actor_.volume, actor_.claim));
    CO_TRY(co_await remote.adopt(actor_, id));
    co_return Result<void>{};
}

Task<Result<void>> SegmentPeers::adopt(SegmentHandle handle) {
    if (!handle.copies()->is_complete) {
        co_return fail(Code::unavailable, "segment {} lacks a copy", handle.id());
    }
    std::vector<Job> jobs;
    if (handle.has_local()) jobs.emplace_back(placement_.self(), adopt_here(handle.id()));
    for (NodeId node : handle.copies()->nodes) {
        CO_TRY_ASSIGN(RemoteSegments * remote, this->remote(node));
        jobs.emplace_back(node, adopt_there(*remote, handle.id()));
    }
    co_return co_await run(std::move(jobs));
}

// ---- reads and repair ----

Task<Result<void>> SegmentPeers::read(NodeId node, SegmentId id, uint64_t offset, Buffer into) {
    CO_TRY_ASSIGN(RemoteSegments * remote, this->remote(node));
    co_return co_await remote->read(actor_.volume, id, offset, std::move(into));
}

Task<Result<void>> SegmentPeers::read_any(SegmentHandle handle, uint64_t offset, Buffer into) {
    std::optional<Error> why;
    bool is_away = false;
    for (uint32_t copy = 0; copy < handle.copy_count(); ++copy) {
        auto outcome = co_await handle.read_copy(copy, offset, into);
        if (outcome) co_return outcome;
        const Code code = outcome.error().code();
        is_away = is_away || code == Code::unavailable || code == Code::outcome_unknown;
        if (!why) why = std::move(outcome).error();
    }
    if (!why)
        why = Error(Code::unavailable, fmt::format("segment {}: no node with a copy is "
                                                   "known",
                                                   handle.id()));
    // What one of them has may come back with it.
    co_return fail(is_away ? Code::unavailable : why->code(), "{}", why->message());
}

void SegmentPeers::note_bad(const SegmentId& id, NodeId node) {
    if (closed_ || bad_.size() >= kBadMax) return;
    bad_.emplace(id, node);
    if (is_mending_ || background_.is_closed()) return;
    is_mending_ = true;
    background_.spawn(env_.executor, mend_bad());
}

Task<Result<bool>> SegmentPeers::mend_here(SegmentHandle handle) {
    const replica::SegmentCopy copy{handle.id(), actor_.lineage, handle.group(), handle.kind(),
                                    handle.unit_count()};
    co_return co_await placement_.service().mend(actor_.volume, actor_.lineage, copy);
}

Task<void> SegmentPeers::mend_bad() {
    while (!bad_.empty() && !closed_ && !background_.is_closed()) {
        const auto [id, node] = *bad_.begin();
        bad_.erase(bad_.begin());
        auto live = live_.find(id);
        if (live == live_.end()) continue;  // nothing needs it any more
        const CopiesRef copies(live->second);
        const replica::SegmentCopy copy{id, actor_.lineage, copies->group, copies->kind,
                                        copies->unit_count};
        Result<void> outcome;
        if (node) {
            RemoteSegments* remote = placement_.segments_on(node);
            if (remote != nullptr)
                outcome = co_await remote->mend(actor_.volume, actor_.lineage, copy);
            if (remote != nullptr && outcome && !has(copies->nodes, node))
                copies->nodes.push_back(node);
        } else {
            auto mended = co_await placement_.service().mend(actor_.volume, actor_.lineage, copy);
            if (mended && *mended && tell_mended_) tell_mended_(id);
            if (!mended) outcome = fail(std::move(mended).error());
        }
        if (!outcome) {
            LOG_WARN("copy not mended volume={} segment={} why={}", actor_.volume, id,
                     outcome.error().text());
        }
    }
    is_mending_ = false;
}

// ---- room ----

std::vector<RemoteSegments*> SegmentPeers::next_remotes() const {
    std::vector<RemoteSegments*> out;
    for (NodeId node : placement_.nodes_of(group_)) {
        if (node == placement_.self()) continue;
        if (RemoteSegments* remote = placement_.segments_on(node)) out.push_back(remote);
    }
    return out;
}

bool SegmentPeers::has_room(uint64_t bytes, media::Purpose purpose) const {
    if (!group_) return true;  // create() finds out
    return std::ranges::all_of(next_remotes(), [&](const RemoteSegments* remote) {
        return remote->has_room(bytes, purpose);
    });
}

uint64_t SegmentPeers::free_units() const {
    uint64_t least = UINT64_MAX;
    if (!group_) return least;
    for (const RemoteSegments* remote : next_remotes()) {
        if (remote->space()) least = std::min(least, remote->space()->free_units);
    }
    return least;
}

int64_t SegmentPeers::headroom_units() const {
    int64_t least = INT64_MAX;
    if (!group_) return least;
    for (const RemoteSegments* remote : next_remotes()) {
        if (!remote->space()) continue;
        least = std::min(least, static_cast<int64_t>(remote->space()->free_units) -
                                    static_cast<int64_t>(remote->space()->reserve_units));
    }
    return least;
}

bool SegmentPeers::make_headroom(uint64_t units) {
    for (int i = 0; i < kGroupsTried; ++i) {
        if (headroom_units() >= static_cast<int64_t>(units)) return true;
        for (const RemoteSegments* remote : next_remotes()) {
            if (!remote->space()) continue;
            const replica::NodeSpace& space = *remote->space();
            if (space.free_units < space.reserve_units + units) avoid(remote->node());
        }
        if (!group()) return false;
    }
    return headroom_units() >= static_cast<int64_t>(units);
}

}  // namespace peplos::volume
