#include "fabric/cluster.h"

#include "base/bytes.h"
#include "base/log.h"
#include "replica/local_journal.h"

namespace peplos::fabric {
namespace {

constexpr peer::Method kHeartbeat = 0x30;
constexpr peer::Method kDropLog = 0x31;
constexpr Duration kHeartbeatTime = std::chrono::seconds(1);
constexpr Duration kStandstill = std::chrono::seconds(1);
// Who was not heard for so long, two heartbeats, has its lease read, before it counts as silent.
constexpr Duration kLeaseLook = std::chrono::seconds(1);
constexpr Duration kDropTime = std::chrono::seconds(10);

// free_bytes, total_bytes; more may follow in later versions.
peer::Message message_of(NodeSpace space) {
    peer::Message out;
    out.body.resize(16);
    ByteWriter writer(out.body);
    writer.write(space.free_bytes);
    writer.write(space.total_bytes);
    return out;
}

Result<NodeSpace> space_of(const peer::Message& message) {
    ByteReader reader(message.body);
    NodeSpace out;
    out.free_bytes = reader.read<uint64_t>();
    out.total_bytes = reader.read<uint64_t>();
    if (!reader.ok() || out.free_bytes > out.total_bytes)
        return fail(Code::corrupt, "a heartbeat that says nothing sensible of its node's space");
    return out;
}

struct DropRequest {
    VolumeId volume;
    replica::Claim claim;
};

peer::Message message_of(const DropRequest& request) {
    peer::Message out;
    out.body.resize(32);
    ByteWriter writer(out.body);
    writer.write(request.volume.value);
    writer.write(request.claim.owner.value);
    writer.write(request.claim.epoch.value);
    writer.write(request.claim.token.value);
    return out;
}

Result<DropRequest> drop_of(const peer::Message& message) {
    ByteReader reader(message.body);
    DropRequest out;
    out.volume = VolumeId(reader.read<uint64_t>());
    out.claim.owner = NodeId(reader.read<uint64_t>());
    out.claim.epoch = Epoch(reader.read<uint64_t>());
    out.claim.token = OpenToken(reader.read<uint64_t>());
    if (!reader.ok() || reader.remaining() != 0 || !out.volume || !out.claim.epoch)
        return fail(Code::corrupt, "a call to drop a log that does not say whose");
    return out;
}

bool is_expected(const control::NodeRecord& node) {
    return node.state != control::NodeState::removed && node.state != control::NodeState::lost;
}

OwnershipCalls calls_on(control::Store& store) {
    return {
        .generation = [&store]() -> Task<Result<uint64_t>> {
            return [](control::Store& s) -> Task<Result<uint64_t>> {
                CO_TRY_ASSIGN(control::Generation generation, co_await s.generation());
                co_return generation.value;
            }(store);
        },
        .get = [&store](std::string key) { return store.get(std::move(key)); },
        .compare_and_set =
            [&store](control::Transaction transaction, uint64_t demanded) {
                return store.compare_and_set(std::move(transaction), control::Generation(demanded));
            },
    };
}

}  // namespace

Cluster::Cluster(runtime::Env env, control::Store& store, ClusterOptions options)
    : env_(env),
      options_(std::move(options)),
      server_(env_, options_.self),
      channels_(env_, options_.self),
      liveness_(env_.clock),
      membership_(env_, options_.self.node, store, liveness_, options_.membership),
      maintainer_(env_, store, membership_, liveness_, options_.maintainer),
      leases_(
          env_, options_.self.node, store, [this] { return silent(); }, options_.lease),
      members_(env_, options_.self.node, options_.timing.protocol),
      member_service_(members_),
      segments_(env_,
                [this](VolumeId volume, const replica::Claim& claim) {
                    return members_.admits(volume, claim);
                }),
      ownership_(env_, calls_on(store)),
      owners_(env_, options_.self.node, ownership_, membership_, *this, options_.timing) {
    segments_.set_placement(this);
    member_service_.bind(server_);
    segments_.bind(server_);
    serve_words();
}

Cluster::~Cluster() = default;

void Cluster::add_device(const DeviceSet::Member& device) {
    members_.add_device(device.record.id, device.device->incarnation(),
                        static_cast<replica::LocalJournal&>(*device.journal));
    segments_.add_store(device.device->segments());
    stores_.push_back(&device.device->segments());
}

Task<Result<void>> Cluster::start() {
    CO_TRY(co_await server_.start(options_.listen));
    liveness_.begin_anew();
    membership_.start();
    maintainer_.start();
    leases_.start();
    gate_.spawn(env_.executor, follow_addresses());
    gate_.spawn(env_.executor, beat());
    co_return Result<void>();
}

Task<void> Cluster::stop() {
    is_stopping_ = true;
    beat_alarm_.ring();
    co_await owners_.stop();
    co_await leases_.stop();
    co_await maintainer_.stop();
    co_await membership_.stop();
    co_await gate_.close();
    // The server waits for calls of others, and these may wait for room in a journal.
    members_.begin_stop();
    co_await channels_.stop();
    co_await server_.stop();
    co_await segments_.stop();
    co_await members_.stop();
}

// ---- the others ----

std::string Cluster::name_of(NodeId node) const {
    const auto* row = membership_.nodes().find(control::node_key(node));
    return row == nullptr ? fmt::format("node {}", node) : row->record.name;
}

// Of those alone that the store names: a node that is not known has no address.
Cluster::Remote* Cluster::remote(NodeId node) {
    if (node == self()) return nullptr;
    auto found = remotes_.find(node);
    if (found != remotes_.end()) return found->second.get();
    if (membership_.nodes().find(control::node_key(node)) == nullptr) return nullptr;
    auto made = std::make_unique<Remote>(channels_.to(node));
    return remotes_.emplace(node, std::move(made)).first->second.get();
}

replica::MemberPort* Cluster::find(NodeId node) {
    if (node == self()) return &members_;
    Remote* there = remote(node);
    return there == nullptr ? nullptr : &there->members;
}

replica::RemoteSegments* Cluster::segments_on(NodeId node) {
    Remote* there = remote(node);
    return there == nullptr ? nullptr : &there->segments;
}

std::vector<NodeId> Cluster::nodes() const {
    std::vector<NodeId> out{self()};
    for (NodeId node : others())
        out.push_back(node);
    return out;
}

std::vector<NodeId> Cluster::others() const {
    return membership_.others();
}

Task<void> Cluster::follow_addresses() {
    while (!is_stopping_) {
        const uint64_t seen = membership_.change_count();
        for (const auto& [key, row] : membership_.nodes().rows()) {
            const control::NodeRecord& record = row.record;
            if (record.id != self()) channels_.set_address(record.id, record.addresses);
        }
        co_await membership_.changed(seen);
    }
}

// ---- who lives ----

NodeSpace Cluster::space_here() const {
    NodeSpace out;
    for (const media::SegmentStore* store : stores_) {
        media::SegmentSpace space = store->space();
        out.free_bytes += space.free_units * limits::kSegmentUnitBytes;
        out.total_bytes += space.total_units * limits::kSegmentUnitBytes;
    }
    return out;
}

void Cluster::serve_words() {
    server_.handle(kHeartbeat, [this](NodeId from, peer::Message message) {
        return on_heartbeat(from, std::move(message));
    });
    server_.handle(kDropLog, [this](NodeId from, peer::Message message) {
        return on_drop(from, std::move(message));
    });
}

Task<Result<peer::Message>> Cluster::on_heartbeat(NodeId from, peer::Message message) {
    CO_TRY_ASSIGN(NodeSpace space, space_of(message));
    liveness_.heard(from);
    liveness_.set_space(from, space);
    co_return message_of(space_here());
}

Task<void> Cluster::beat() {
    Time last = env_.clock.now();
    while (!is_stopping_) {
        // Who stands still hears nobody, and is the one that was silent.
        const Time now = env_.clock.now();
        if (now - last > options_.heartbeat + kStandstill) liveness_.begin_anew();
        last = now;
        liveness_.heard(self());
        liveness_.set_space(self(), space_here());
        for (NodeId node : others()) {
            Remote* there = remote(node);
            if (there == nullptr || std::exchange(there->is_asked, true)) continue;
            gate_.spawn(env_.executor, ask(node));
        }
        co_await beat_alarm_.wait(env_.clock, options_.heartbeat);
    }
}

// Two ways to hear of it, and neither says anything. Who was given up by a person has no term.
bool Cluster::is_dead(NodeId node) const {
    if (!liveness_.silent_since(node)) return false;
    const auto* known = membership_.nodes().find(control::node_key(node));
    return known == nullptr || !is_expected(known->record) || !leases_.holds(node);
}

std::vector<NodeId> Cluster::silent() const {
    std::vector<NodeId> out;
    for (const auto& [key, row] : membership_.nodes().rows()) {
        const NodeId node = row.record.id;
        if (node != self() && is_expected(row.record) && liveness_.silent_since(node, kLeaseLook))
            out.push_back(node);
    }
    return out;
}

Task<void> Cluster::ask(NodeId node) {
    Remote& there = *remotes_.at(node);
    Result<peer::Message> answer = co_await there.channel.call(kHeartbeat, message_of(space_here()),
                                                               kHeartbeatTime, peer::Lane::control);
    there.is_asked = false;
    if (!answer) co_return;
    Result<NodeSpace> space = space_of(*answer);
    if (!space) co_return;
    liveness_.heard(node);
    liveness_.set_space(node, *space);
}

// ---- fencing and forgetting ----

Task<Result<void>> Cluster::fence(NodeId node, VolumeId volume, replica::Claim claim) {
    replica::MemberPort* port = find(node);
    if (port == nullptr) co_return fail(Code::unavailable, "node {} is not known", node);
    CO_TRY_ASSIGN(replica::Message said,
                  co_await port->fence(volume, {}, replica::FenceMessage{.claim = claim}));
    if (std::holds_alternative<replica::FenceAnswer>(said)) co_return Result<void>();
    const auto* refusal = std::get_if<replica::Refusal>(&said);
    if (refusal == nullptr) co_return fail(Code::corrupt, "{} answered no fence", name_of(node));
    if (refusal->reason == replica::Refusal::Reason::fenced) {
        co_return fail(Code::fenced, "volume {} was claimed with epoch {} meanwhile", volume,
                       refusal->fence);
    }
    // A device that failed takes nothing any more, whoever asks.
    co_return Result<void>();
}

Task<Result<void>> Cluster::fence_all(VolumeId volume, replica::Claim claim) {
    for (NodeId node : nodes()) {
        Result<void> fenced = co_await fence(node, volume, claim);
        if (!fenced) co_return fail(std::move(fenced).error().within(name_of(node)));
    }
    co_return Result<void>();
}

Task<Result<peer::Message>> Cluster::on_drop(NodeId from, peer::Message message) {
    CO_TRY_ASSIGN(DropRequest request, drop_of(message));
    if (!members_.admits(request.volume, request.claim)) {
        // A repeat finds the log gone; anything else is too late.
        bool is_gone = members_.fence_of(request.volume) == Epoch(0);
        if (!is_gone)
            co_return fail(Code::fenced, "volume {} was claimed meanwhile", request.volume);
    }
    LOG_INFO("log dropped volume={} for={}", request.volume, from);
    CO_TRY(co_await members_.drop(request.volume));
    co_return peer::Message{};
}

Task<Result<void>> Cluster::drop_on(NodeId node, VolumeId volume, replica::Claim claim) {
    if (node == self()) co_return co_await members_.drop(volume);
    Remote* there = remote(node);
    if (there == nullptr) co_return fail(Code::unavailable, "{} is not known", name_of(node));
    peer::Message message = message_of(DropRequest{volume, claim});
    CO_TRY(co_await there->channel.call(kDropLog, std::move(message), kDropTime));
    co_return Result<void>();
}

Task<Result<void>> Cluster::drop_logs(VolumeId volume, replica::Claim claim) {
    for (NodeId node : nodes()) {
        Result<void> dropped = co_await drop_on(node, volume, claim);
        if (!dropped) co_return fail(std::move(dropped).error().within(name_of(node)));
    }
    co_return Result<void>();
}

}  // namespace peplos::fabric
