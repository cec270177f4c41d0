#include "model/world.h"

#include <algorithm>

#include "base/fault.h"

namespace peplos::model {

using replica::CasOutcome;
using replica::Ensemble;
using replica::Takeover;
using Kind = Step::Kind;

namespace {

Canon canon_of(const Scope& scope) {
    return {scope.promise_ticks, 0};
}
replica::Timing timing_of(const Scope& scope) {
    return {scope.promise_ticks * kTick, Duration{0}};
}
constexpr NodeId id_of(unsigned index) {
    return NodeId(index + 1);
}
// Of replica::Message: from here on they go to an owner.
constexpr size_t kFirstAnswer = 5;
static_assert(std::is_same_v<std::variant_alternative_t<kFirstAnswer, replica::Message>,
                             replica::FenceAnswer>);

constexpr NodeMask bit(unsigned index) {
    return static_cast<NodeMask>(1u << index);
}

}  // namespace

uint16_t Post::id_of(const Envelope& envelope) {
    scratch_.clear();
    Encoder encode(scratch_, canon_);
    encode(envelope);
    auto [place, is_new] = ids_.emplace(std::string(scratch_.begin(), scratch_.end()),
                                        static_cast<uint16_t>(envelopes_.size()));
    if (is_new) {
        CHECK(envelopes_.size() < UINT16_MAX);
        envelopes_.push_back(envelope);
    }
    return place->second;
}

World World::first(const Scope& scope) {
    World out;
    out.budget_ = scope.budget;
    out.tokens_ = 1;
    Ownership& record = out.store_.record;
    record.claim = {id_of(0), Epoch(1), OpenToken(1)};
    record.version = 1;
    record.generation = 1;
    out.nodes_.resize(scope.nodes);
    for (unsigned i = 0; i < scope.nodes; ++i)
        out.nodes_[i].incarnation = Incarnation(1);
    record.ensemble = out.members_of(scope.first, nullptr);
    for (const auto& member : record.ensemble) {
        Node& node = out.node(member.node);
        node.stored = {record.claim, record.claim, 1, member.token, OpenToken(0), Lsn(0), false};
    }
    for (unsigned i = 0; i < scope.nodes; ++i) {
        Node& node = out.nodes_[i];
        node.member = MemberLog(id_of(i), node.incarnation, timing_of(scope), node.stored,
                                kNow - scope.promise_ticks * kTick);
    }
    out.nodes_[0].owner = Ensemble(record, Lsn(0), timing_of(scope));
    out.store_.has_backup = scope.is_backed_up;
    if (scope.is_backed_up) out.store_.backup = record;
    return out;
}

void World::encode(const Scope& scope, Encoded& out) const {
    Encoder encoder(out, canon_of(scope));
    encoder(*this);
}

World World::decode(const Scope& scope, const uint8_t* bytes) {
    World out;
    Decoder decoder(bytes, canon_of(scope));
    decoder(out);
    out.set_timing(scope);
    return out;
}

void World::set_timing(const Scope& scope) {
    for (Node& node : nodes_) {
        node.member.set_timing(timing_of(scope));
        if (auto* ensemble = std::get_if<Ensemble>(&node.owner))
            ensemble->set_timing(timing_of(scope));
    }
}

void World::breach(std::string what) {
    if (problem_.empty()) problem_ = std::move(what);
}

void World::tell(const std::string& what) const {
    if (story_ != nullptr) story_->push_back(what);
}

replica::Members World::members_of(NodeMask set, const replica::Members* kept) {
    replica::Members out;
    for (unsigned i = 0; i < nodes_.size(); ++i) {
        if ((set & bit(i)) == 0) continue;
        control::EnsembleMember member{id_of(i), {}, nodes_[i].incarnation, {}};
        if (kept != nullptr) {
            for (const auto& known : *kept) {
                bool is_it = known.node == member.node && known.incarnation == member.incarnation;
                if (is_it) member.token = known.token;
            }
        }
        if (!member.token) member.token = OpenToken(++tokens_);
        out.push_back(member);
    }
    return out;
}

// ---- messages ----

void World::send(NodeId from, NodeId to, const replica::Message& message, Content content) {
    if (!is_node(to)) return;
    Envelope envelope{from, to, message, std::move(content)};
    // A node's word to itself is a call: neither late, nor lost, nor heard twice.
    if (from == to) {
        local_.push_back(std::move(envelope));
        return;
    }
    if (story_ != nullptr) tell("    sends " + text_of(envelope));
    uint16_t id = post_->id_of(envelope);
    auto place = std::ranges::lower_bound(net_, id);
    if (place == net_.end() || *place != id) net_.insert(place, id);
}

void World::flush_local() {
    for (size_t i = 0; i < local_.size(); ++i) {
        Envelope envelope = local_[i];
        deliver(envelope);
    }
    local_.clear();
}

void World::deliver(const Envelope& envelope) {
    if (envelope.message.index() >= kFirstAnswer) return deliver_to_owner(envelope.to, envelope);
    MemberLog::Actions actions;
    node(envelope.to).member.on_message(envelope.message, now_, actions);
    run(envelope.to, actions, &envelope);
}

void World::deliver_to_owner(NodeId to, const Envelope& envelope) {
    Node& at = node(to);
    replica::OwnerActions actions;
    const auto* fenced = std::get_if<replica::FenceAnswer>(&envelope.message);
    const auto* answer = std::get_if<replica::MemberAnswer>(&envelope.message);
    const auto* refusal = std::get_if<replica::Refusal>(&envelope.message);
    if (auto* takeover = std::get_if<Takeover>(&at.owner)) {
        if (fenced != nullptr) takeover->on_fence_answer(*fenced);
        if (answer != nullptr) takeover->on_answer(*answer, actions);
        if (refusal != nullptr) takeover->on_refusal(*refusal, actions);
    } else if (auto* ensemble = std::get_if<Ensemble>(&at.owner)) {
        if (answer != nullptr) ensemble->on_answer(*answer, now_, actions);
        if (refusal != nullptr) ensemble->on_refusal(*refusal, actions);
    }
    run(to, actions);
    after_owner(to);
}

void World::run(NodeId at, const MemberLog::Actions& actions, const Envelope* cause) {
    Node& here = node(at);
    for (const MemberLog::Action& action : actions) {
        if (const auto* sent = std::get_if<replica::Send>(&action)) {
            send(at, sent->to, sent->message, {});
        } else if (const auto* record = std::get_if<MemberLog::WriteRecord>(&action)) {
            CHECK(cause != nullptr && cause->content.size() == 1);
            bool is_full = record->lsn.value > here.cache.capacity() ||
                           here.queue.size() == here.queue.capacity();
            if (is_full) return breach("a log grows without end");
            while (here.cache.size() < record->lsn.value)
                here.cache.push_back(0);
            here.cache[record->lsn.value - 1] = cause->content[0];
            put_on_disk(at, {*record, cause->content});
        } else if (const auto* fence = std::get_if<MemberLog::WriteFence>(&action)) {
            put_on_disk(at, {*fence, {}});
        } else if (const auto* open = std::get_if<MemberLog::WriteOpen>(&action)) {
            CHECK(cause != nullptr);
            Content content = here.cache;
            content.resize(std::min<size_t>(content.size(), open->open.keep_lsn.value));
            for (size_t i = content.size(); i < open->open.last_lsn.value; ++i)
                content.push_back(cause->content[i]);
            put_on_disk(at, {*open, content});
        }
    }
}

void World::run(NodeId at, const replica::OwnerActions& actions) {
    for (const replica::OwnerAction& action : actions) {
        if (const auto* sent = std::get_if<replica::Send>(&action)) {
            Content content;
            const Content& log = node(at).log;
            if (const auto* append = std::get_if<replica::AppendMessage>(&sent->message))
                content.push_back(log[append->lsn.value - 1]);
            if (const auto* open = std::get_if<replica::OpenMessage>(&sent->message))
                content.assign(log.begin(), log.begin() + static_cast<long>(open->last_lsn.value));
            send(at, sent->to, sent->message, content);
        } else if (const auto* from = std::get_if<replica::SendFrom>(&action)) {
            send_from(at, *from);
        } else if (const auto* cas = std::get_if<replica::CompareAndSet>(&action)) {
            tell("    asks the store to compare and set");
            calls_.push_back({at, *cas, false});
        } else if (const auto* done = std::get_if<replica::Acknowledge>(&action)) {
            acknowledge(at, done->lsn);
        }
    }
}

void World::send_from(NodeId at, const replica::SendFrom& from) {
    const auto& ensemble = std::get<Ensemble>(node(at).owner);
    for (Lsn lsn = from.first; lsn <= ensemble.last_lsn(); lsn = lsn.next()) {
        Content content{node(at).log[lsn.value - 1]};
        send(at, from.to, replica::AppendMessage{ensemble.claim(), from.token, lsn, now_}, content);
    }
}

// ---- disks ----

void World::put_on_disk(NodeId at, DiskWrite write) {
    node(at).queue.push_back(std::move(write));
    if (!scope_->is_slow_disk) finish_write(at);
}

namespace {

void land(Node& node, const DiskWrite& write) {
    std::visit([&node](const auto& what) { MemberLog::apply(what, node.stored); }, write.what);
    if (const auto* record = std::get_if<MemberLog::WriteRecord>(&write.what)) {
        while (node.media.size() < record->lsn.value)
            node.media.push_back(0);
        node.media[record->lsn.value - 1] = write.content[0];
    }
    if (std::holds_alternative<MemberLog::WriteOpen>(write.what)) node.media = write.content;
}

}  // namespace

void World::finish_write(NodeId at) {
    Node& here = node(at);
    DiskWrite write = here.queue.front();
    here.queue.erase(here.queue.begin());
    land(here, write);
    MemberLog::Actions actions;
    if (const auto* record = std::get_if<MemberLog::WriteRecord>(&write.what)) {
        here.member.on_appended(record->lsn, now_, actions);
    } else if (const auto* fence = std::get_if<MemberLog::WriteFence>(&write.what)) {
        here.member.on_fenced(fence->claim, now_, actions);
    } else {
        here.cache = write.content;
        here.member.on_opened(std::get<MemberLog::WriteOpen>(write.what).open.token, now_, actions);
    }
    run(at, actions, nullptr);
}

void World::restart(NodeId at, bool is_wiped) {
    Node& here = node(at);
    if (here.reading != 0) monitor_.drop_read();
    for (CasCall& call : calls_) {
        if (call.from == at) call.is_given_up = true;
    }
    if (is_wiped) {
        here.incarnation = here.incarnation.next();
        here.is_failed = false;
        here.stored = {};
        here.media.clear();
    }
    here.member = MemberLog(at, here.incarnation, timing_of(*scope_), here.stored, now_);
    MemberLog::Actions ignored;
    if (here.is_failed) here.member.on_io_error(ignored);
    here.cache = here.media;
    here.queue.clear();
    here.owner = std::monostate{};
    here.log.clear();
    here.reading = 0;
}

// ---- owners ----

void World::after_owner(NodeId at) {
    Node& here = node(at);
    if (auto* takeover = std::get_if<Takeover>(&here.owner)) {
        if (takeover->phase() == Takeover::Phase::serving) return serve(at);
        if (takeover->phase() == Takeover::Phase::lost) {
            tell(fmt::format("    {} lost its claim", name_of(at)));
            here.owner = std::monostate{};
            here.log.clear();
        }
    } else if (auto* ensemble = std::get_if<Ensemble>(&here.owner)) {
        if (!ensemble->is_stopped()) return;
        tell(fmt::format("    {} stops", name_of(at)));
        if (here.reading != 0) monitor_.drop_read();
        here.reading = 0;
        here.owner = std::monostate{};
        here.log.clear();
    }
}

// The takeover is through: what was adopted must be everything, and everywhere (P1, I4).
void World::serve(NodeId at) {
    Node& here = node(at);
    const auto& takeover = std::get<Takeover>(here.owner);
    Ownership ownership = takeover.ownership();
    Lsn last = takeover.adopted_lsn();
    tell(fmt::format("    {} serves under epoch {}, everything up to LSN {}", name_of(at),
                     ownership.claim.epoch, last));
    for (uint8_t value = 1; value <= std::min(written_, kWritesMax); ++value) {
        bool is_lost = monitor_.is_acknowledged(value) && !std::ranges::count(here.log, value);
        if (is_lost) breach(fmt::format("acknowledged write {} is lost (P1)", value));
    }
    for (const auto& member : ownership.ensemble) {
        const Node& other = node(member.node);
        bool is_there = other.incarnation == member.incarnation &&
                        other.stored.token == member.token && other.media == here.log;
        bool is_excused = other.incarnation != member.incarnation || other.is_failed ||
                          other.stored.fence.epoch > ownership.claim.epoch;
        if (!is_there && !is_excused)
            breach(fmt::format("{} serves before the adopted log is on {} (I4)", name_of(at),
                               name_of(member.node)));
    }
    monitor_.settle(ownership.claim.epoch);
    uint8_t newest = here.log.empty() ? 0 : here.log.back();
    if (newest <= kWritesMax && !monitor_.read_now(newest))
        breach(fmt::format("what {} serves is no possible state of the block", name_of(at)));
    here.owner = Ensemble(ownership, last, timing_of(*scope_));
}

void World::acknowledge(NodeId at, Lsn lsn) {
    const Node& here = node(at);
    for (size_t i = 0; i < std::min<size_t>(lsn.value, here.log.size()); ++i) {
        uint8_t value = here.log[i];
        if (value > kWritesMax || monitor_.is_acknowledged(value)) continue;
        tell(fmt::format("    {} acknowledges write {}", name_of(at), value));
        if (!monitor_.end_write(value))
            breach(fmt::format("write {} is acknowledged by an owner that others overtook (P4)",
                               value));
    }
}

// I1: an acknowledged write is on every complete member of the recorded ensemble.
void World::check_acknowledged() {
    const Ownership& record = store_.record;
    if (record.generation != store_.generation) return;
    for (uint8_t value = 1; value <= std::min(written_, kWritesMax); ++value) {
        if (!monitor_.is_acknowledged(value)) continue;
        for (const auto& member : record.ensemble) {
            const Node& there = node(member.node);
            bool is_complete =
                there.incarnation == member.incarnation && !there.is_failed &&
                (there.stored.token == member.token || there.stored.recorded == member.token);
            if (is_complete && !std::ranges::count(there.media, value))
                breach(
                    fmt::format("acknowledged write {} is not on the media of {}, a complete "
                                "member of the recorded ensemble (I1)",
                                value, name_of(member.node)));
        }
    }
}

void World::claim(unsigned index) {
    Node& here = nodes_[index];
    Takeover::Nodes cluster;
    for (unsigned i = 0; i < nodes_.size(); ++i)
        cluster.push_back(id_of(i));
    Takeover takeover(id_of(index), OpenToken(++tokens_), here.member.fence().epoch,
                      store_.generation, cluster);
    replica::OwnerActions actions;
    takeover.start(store_.record, actions);
    here.owner = std::move(takeover);
    run(id_of(index), actions);
}

// The fetch is a read under the claim: no newer one may have been there.
bool World::may_fetch(const Takeover& takeover) const {
    Takeover::Source source = takeover.source();
    if (!source.node || !source.last_lsn) return true;
    const Node& there = node(source.node);
    bool is_fenced_off = there.member.fence() != takeover.claim() &&
                         !PLANTED("protocol.no_fence") && !PLANTED("protocol.volatile_fence");
    return !there.is_failed && there.incarnation == source.incarnation && !is_fenced_off &&
           there.cache.size() >= source.last_lsn.value;
}

void World::adopt(unsigned index, NodeMask set) {
    Node& here = nodes_[index];
    auto& takeover = std::get<Takeover>(here.owner);
    if (!may_fetch(takeover)) {
        takeover.on_source_lost(takeover.source().node);
        return;
    }
    here.log.clear();
    if (takeover.source().node) here.log = node(takeover.source().node).cache;
    replica::OwnerActions actions;
    takeover.adopt(members_of(set, nullptr), now_, actions);
    here.log.resize(takeover.adopted_lsn().value);
    run(id_of(index), actions);
    after_owner(id_of(index));
}

void World::propose(unsigned index, NodeMask set) {
    Ensemble& ensemble = *serving(index);
    replica::OwnerActions actions;
    ensemble.propose(members_of(set, &ensemble.ownership().ensemble), now_, actions);
    run(id_of(index), actions);
}

// ---- the control store ----

void World::answer_cas(const CasCall& call, CasOutcome outcome) {
    Node& at = node(call.from);
    replica::OwnerActions actions;
    if (auto* takeover = std::get_if<Takeover>(&at.owner)) {
        if (takeover->claim().token == call.cas.desired.claim.token)
            takeover->on_cas(outcome, store_.record, actions);
    } else if (auto* ensemble = std::get_if<Ensemble>(&at.owner)) {
        if (ensemble->claim() == call.cas.desired.claim)
            ensemble->on_cas(outcome, store_.record, actions);
    }
    run(call.from, actions);
    after_owner(call.from);
}

void World::execute(unsigned index) {
    CasCall call = calls_[index];
    calls_.erase(calls_.begin() + index);
    bool is_same_store =
        call.cas.generation == store_.generation || PLANTED("protocol.ignores_generation");
    bool is_done = is_same_store && store_.record == call.cas.expected;
    if (is_done) store_.record = call.cas.desired;
    tell(fmt::format("    the store {} it", is_done ? "does" : "refuses"));
    if (!call.is_given_up) answer_cas(call, is_done ? CasOutcome::done : CasOutcome::conflict);
}

// ---- reads and time ----

void World::read(Step step) {
    Node& here = nodes_[step.node];
    Ensemble& ensemble = *serving(step.node);
    if (step.kind == Kind::begin_read) {
        --budget_.reads;
        monitor_.begin_read();
        uint64_t served = ensemble.acknowledged_lsn().value;
        here.reading = static_cast<uint8_t>((served == 0 ? 0 : here.log[served - 1]) + 1);
        bool may_read = ensemble.may_read(now_) || PLANTED("protocol.reads_unchecked");
        tell(fmt::format("    it is {}", here.reading - 1));
        if (may_read) return;
        here.reading = 0;
        monitor_.drop_read();
        return;
    }
    uint8_t value = static_cast<uint8_t>(here.reading - 1);
    here.reading = 0;
    bool may_answer = ensemble.may_read(now_) || PLANTED("protocol.reads_unchecked");
    if (!may_answer) {
        tell("    no promise holds any more: not answered");
        return monitor_.drop_read();
    }
    if (!monitor_.end_read(value))
        breach(fmt::format("{} reads {}, which is no longer there (P2)", name_of(id_of(step.node)),
                           value));
}

// All times go back by one tick: that is the same as time going on.
void World::tick(const Scope& scope) {
    Canon later{scope.promise_ticks, 1};
    Encoded bytes;
    Encoder encoder(bytes, later);
    encoder(*this);
    Post* post = post_;
    auto* story = story_;
    *this = decode(scope, bytes.data());
    post_ = post;
    scope_ = &scope;
    story_ = story;
    static_vector<uint16_t, kMessagesMax> moved;
    for (uint16_t id : net_) {
        Envelope envelope = post_->at(id);
        Encoded aged;
        Encoder encode_one(aged, later);
        encode_one(envelope);
        Decoder decode_one(aged.data(), canon_of(scope));
        decode_one(envelope);
        // A heartbeat that is too late for its sender might as well be lost.
        const auto* renew = std::get_if<replica::RenewMessage>(&envelope.message);
        if (renew != nullptr && renew->sent_at <= kNow - scope.promise_ticks * kTick) continue;
        uint16_t fresh = post_->id_of(envelope);
        auto place = std::ranges::lower_bound(moved, fresh);
        if (place == moved.end() || *place != fresh) moved.insert(place, fresh);
    }
    net_ = moved;
    for (unsigned i = 0; i < nodes_.size(); ++i) {
        MemberLog::Actions actions;
        nodes_[i].member.on_time(now_, actions);
        run(id_of(i), actions, nullptr);
    }
}

// What can make no difference any more goes, so that more states are seen to be the same.
void World::tidy_up() {
    auto owner_of = [this](NodeId id) -> const replica::Claim* {
        const Node& at = node(id);
        if (const auto* takeover = std::get_if<Takeover>(&at.owner)) return &takeover->claim();
        if (const auto* ensemble = std::get_if<Ensemble>(&at.owner)) return &ensemble->claim();
        return nullptr;
    };
    auto claim_of = [](const replica::Message& message) {
        return std::visit([](const auto& m) { return &m.claim; }, message);
    };
    auto is_for_nobody = [&](uint16_t id) {
        const Envelope& envelope = post_->at(id);
        const replica::Claim& claim = *claim_of(envelope.message);
        bool is_answer = envelope.message.index() >= kFirstAnswer;
        NodeId asker = is_answer ? envelope.to : envelope.from;
        const replica::Claim* owner = owner_of(asker);
        bool is_orphan = owner == nullptr || *owner != claim;
        if (is_answer || !is_orphan) return is_orphan;
        // Its sender is gone, and a durable fence refuses it for ever.
        const Node& to = node(envelope.to);
        bool is_planted = base::fault_hooks != nullptr;
        return !is_planted && budget_.wipes == 0 && to.stored.fence.epoch > claim.epoch;
    };
    net_.erase(std::remove_if(net_.begin(), net_.end(), is_for_nobody), net_.end());
    const bool is_planted = base::fault_hooks != nullptr;
    auto is_void = [this, is_planted](const CasCall& call) {
        bool is_of_old_store = call.cas.generation != store_.generation;
        if (call.is_given_up && is_of_old_store && !is_planted) return true;
        bool may_come_back = store_.has_backup && store_.backup == call.cas.expected;
        return call.is_given_up && call.cas.expected != store_.record && !may_come_back;
    };
    calls_.erase(std::remove_if(calls_.begin(), calls_.end(), is_void), calls_.end());
    if (budget_.rollbacks == 0 && store_.has_backup) {
        store_.has_backup = false;
        store_.backup = {};
    }
}

void World::fail_write(NodeId at) {
    Node& here = node(at);
    if (PLANTED("protocol.retries_sync")) {
        // The second sync says nothing of the pages that the first one lost.
        MemberLog::Stored stored = here.stored;
        Content media = here.media;
        finish_write(at);
        here.stored = stored;
        here.media = media;
        return;
    }
    ++losses_;
    here.is_failed = true;
    here.queue.clear();
    MemberLog::Actions actions;
    here.member.on_io_error(actions);
    run(at, actions, nullptr);
}

// What happens to a device or a process.
void World::apply_to_node(Step step) {
    NodeId at = id_of(step.node);
    Node& here = nodes_[step.node];
    switch (step.kind) {
        case Kind::finish_write:
            return finish_write(at);
        case Kind::fail_write:
            --budget_.io_errors;
            return fail_write(at);
        case Kind::crash:
            --budget_.crashes;
            for (unsigned i = 0; i < step.argument; ++i)
                land(here, here.queue[i]);
            return restart(at, false);
        case Kind::wipe:
            --budget_.wipes;
            if (!here.is_failed) ++losses_;
            return restart(at, true);
        case Kind::claim:
            --budget_.claims;
            return claim(step.node);
        case Kind::adopt:
            --budget_.adoptions;
            return adopt(step.node, static_cast<NodeMask>(step.argument));
        default:
            CHECK(false);
    }
}

// What the owner does, or its users.
void World::apply_to_owner(Step step) {
    NodeId at = id_of(step.node);
    replica::OwnerActions actions;
    switch (step.kind) {
        case Kind::write:
            --budget_.writes;
            nodes_[step.node].log.push_back(++written_);
            if (written_ <= kWritesMax)
                monitor_.begin_write(written_, serving(step.node)->claim().epoch);
            serving(step.node)->submit(now_, actions);
            return run(at, actions);
        case Kind::propose:
            --budget_.changes;
            return propose(step.node, static_cast<NodeMask>(step.argument));
        case Kind::give_up:
            --budget_.give_ups;
            return serving(step.node)->give_up();
        case Kind::renew:
            --budget_.renewals;
            serving(step.node)->renew(now_, actions);
            return run(at, actions);
        case Kind::release:
            --budget_.releases;
            serving(step.node)->release(actions);
            run(at, actions);
            return after_owner(at);
        default:
            return read(step);
    }
}

void World::apply_to_store(Step step) {
    switch (step.kind) {
        case Kind::execute:
            return execute(step.argument);
        case Kind::lose_answer:
            --budget_.unknowns;
            calls_[step.argument].is_given_up = true;
            return answer_cas(CasCall(calls_[step.argument]), CasOutcome::unknown);
        case Kind::backup:
            --budget_.backups;
            store_.has_backup = true;
            store_.backup = store_.record;
            return;
        case Kind::roll_back:
            --budget_.rollbacks;
            store_.record = store_.backup;
            ++store_.generation;
            return;
        default:
            CHECK(false);
    }
}

void World::apply(const Scope& scope, Post& post, Step step) {
    post_ = &post;
    scope_ = &scope;
    switch (step.kind) {
        case Kind::deliver:
            deliver(Envelope(post.at(step.argument)));
            break;
        case Kind::finish_write:
        case Kind::fail_write:
        case Kind::crash:
        case Kind::wipe:
        case Kind::claim:
        case Kind::adopt:
            apply_to_node(step);
            break;
        case Kind::execute:
        case Kind::lose_answer:
        case Kind::backup:
        case Kind::roll_back:
            apply_to_store(step);
            break;
        case Kind::tick:
            --budget_.ticks;
            tick(scope);
            break;
        default:
            apply_to_owner(step);
    }
    flush_local();
    tidy_up();
    check_acknowledged();
}

// ---- what may happen ----

void World::list_steps(const Scope& scope, const Post& post, Steps& out) const {
    out.clear();
    for (uint16_t id : net_)
        out.push_back({Kind::deliver, static_cast<uint8_t>(post.at(id).to.value - 1), id});
    for (unsigned i = 0; i < calls_.size(); ++i) {
        const CasCall& call = calls_[i];
        auto from = static_cast<uint8_t>(call.from.value - 1);
        out.push_back({Kind::execute, from, static_cast<uint16_t>(i)});
        bool may_lose = !call.is_given_up && budget_.unknowns != 0 && calls_.size() < 5;
        if (may_lose) out.push_back({Kind::lose_answer, from, static_cast<uint16_t>(i)});
    }
    for (unsigned i = 0; i < nodes_.size(); ++i) {
        const Node& here = nodes_[i];
        auto index = static_cast<uint8_t>(i);
        if (!here.queue.empty()) {
            out.push_back({Kind::finish_write, index, 0});
            if (budget_.io_errors != 0) out.push_back({Kind::fail_write, index, 0});
        }
        bool may_break = (scope.crashers & bit(i)) != 0;
        if (may_break && budget_.crashes != 0) {
            for (size_t done = 0; done <= here.queue.size(); ++done)
                out.push_back({Kind::crash, index, static_cast<uint16_t>(done)});
        }
        if (may_break && budget_.wipes != 0) out.push_back({Kind::wipe, index, 0});
        bool may_claim = std::holds_alternative<std::monostate>(here.owner) &&
                         budget_.claims != 0 && (scope.claimers & bit(i)) != 0;
        if (may_claim) out.push_back({Kind::claim, index, 0});
        auto choices = [&](Kind kind, NodeMask except) {
            for (NodeMask set : scope.sets) {
                bool is_good = set != except && (set & bit(i)) != 0;
                for (unsigned other = 0; other < nodes_.size(); ++other)
                    is_good = is_good && ((set & bit(other)) == 0 || !nodes_[other].is_failed);
                if (is_good) out.push_back({kind, index, set});
            }
        };
        if (const auto* takeover = std::get_if<Takeover>(&here.owner)) {
            if (takeover->may_adopt() && budget_.adoptions != 0) choices(Kind::adopt, 0);
        }
        const Ensemble* ensemble = serving(i);
        if (ensemble == nullptr) continue;
        if (budget_.writes != 0) out.push_back({Kind::write, index, 0});
        if (budget_.reads != 0 && !monitor_.is_reading()) out.push_back({Kind::begin_read, index});
        if (here.reading != 0) out.push_back({Kind::end_read, index, 0});
        if (budget_.renewals != 0) out.push_back({Kind::renew, index, 0});
        if (budget_.releases != 0) out.push_back({Kind::release, index, 0});
        if (budget_.changes != 0 && ensemble->may_propose()) {
            NodeMask now = 0;
            for (const auto& member : ensemble->ownership().ensemble) {
                const Node& there = node(member.node);
                if (there.incarnation == member.incarnation)
                    now = static_cast<NodeMask>(now | bit(member.node.value - 1));
            }
            choices(Kind::propose, now);
        }
        if (budget_.give_ups != 0 && ensemble->may_give_up())
            out.push_back({Kind::give_up, index, 0});
    }
    if (budget_.ticks != 0) out.push_back({Kind::tick, 0, 0});
    if (budget_.backups != 0) out.push_back({Kind::backup, 0, 0});
    if (budget_.rollbacks != 0 && store_.has_backup) out.push_back({Kind::roll_back, 0, 0});
}

}  // namespace peplos::model
