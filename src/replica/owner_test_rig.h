#pragma once

#include <algorithm>
#include <functional>
#include <set>

#include "replica/claimer.h"
#include "replica/owner_test_member.h"

// A cluster for the tests of the owner's side: nodes that are processes of a simulated world, a
// network between them, a control store, and a monitor that knows every promise.
namespace peplos::replica {

inline constexpr unsigned kNodes = 4;

// What the network and the control store do to a call.
struct TestFaults {
    uint32_t loss_permille = 0;
    uint32_t twice_permille = 0;
    uint32_t late_permille = 0;
    uint32_t unknown_permille = 0;  // outcomes of compare-and-sets
    bool is_store_out = false;
};

class TestCluster;

// Ends once: by its answer, or by its time.
template <typename T>
struct TestCall {
    std::optional<Result<T>> result;
    runtime::Event done;
    void end(Result<T> how) {
        if (result) return;
        result = std::move(how);
        done.set();
    }
};

// The way from one node to another.
class TestPort final : public MemberPort {
  public:
    TestPort(TestCluster& cluster, unsigned from, unsigned to)
        : cluster_(cluster), from_(from), to_(to) {}
    Task<Result<Message>> fence(VolumeId volume, LineageId lineage, FenceMessage message) override {
        return call<Message>(std::chrono::seconds(4), [=](TestMember& member) {
            return member.fence(volume, lineage, message);
        });
    }
    Task<Result<Message>> open(OpenCall call_) override {
        return call<Message>(kTimeout, [call_](TestMember& member) { return member.open(call_); });
    }
    Task<Result<Message>> append(AppendCall call_) override {
        return call<Message>(kTimeout,
                             [call_](TestMember& member) { return member.append(call_); });
    }
    Task<Result<Message>> renew(VolumeId volume, RenewMessage message) override {
        return call<Message>(kTimeout,
                             [=](TestMember& member) { return member.renew(volume, message); });
    }
    Task<Result<void>> release(VolumeId volume, ReleaseMessage message) override {
        return call<void>(kTimeout,
                          [=](TestMember& member) { return member.release(volume, message); });
    }
    Task<Result<LogRecords>> read_log(VolumeId volume, Claim claim, Incarnation incarnation,
                                      Lsn after, uint64_t bytes) override {
        return call<LogRecords>(kTimeout, [=](TestMember& member) {
            return member.read_log(volume, claim, incarnation, after, bytes);
        });
    }

  private:
    static constexpr Duration kTimeout = std::chrono::milliseconds(600);
    template <typename T>
    using Handler = std::function<Task<Result<T>>(TestMember&)>;
    template <typename T>
    Task<Result<T>> call(Duration timeout, Handler<T> handler);
    struct Way {
        unsigned from;
        unsigned to;
        uint64_t life;  // of the caller
    };
    template <typename T>
    static void arrive(TestCluster& cluster, Way way, std::shared_ptr<TestCall<T>> call,
                       const Handler<T>& handler);
    template <typename T>
    static Task<void> serve(TestCluster& cluster, Way way, TestMember& member,
                            std::shared_ptr<TestCall<T>> call, Handler<T> handler);

    TestCluster& cluster_;
    unsigned from_;
    unsigned to_;
    Time last_arrival_{};
};

// A node's way to the control store.
class TestStore final : public OwnershipStore {
  public:
    TestStore(TestCluster& cluster, unsigned from) : cluster_(cluster), from_(from) {}
    Task<std::pair<CasOutcome, Ownership>> compare_and_set(VolumeId volume,
                                                           CompareAndSet cas) override;
    Task<Result<Ownership>> read(VolumeId volume) override;
    uint64_t generation() const override { return generation_; }

  private:
    TestCluster& cluster_;
    unsigned from_;
    uint64_t generation_ = 1;
};

// One life of a node.
struct TestNode final : MemberPorts, EnsembleChooser {
    TestNode(TestCluster& cluster, unsigned index, sim::Process& process);
    LocalMember& local() override { return member; }
    MemberPort* find(NodeId node) override { return ports[node.value - 1].get(); }
    std::vector<NodeId> nodes() const override;
    Members choose(VolumeId volume, uint32_t copies, const Members& present,
                   std::span<const NodeId> avoid) override;

    TestCluster& cluster;
    const unsigned index;
    sim::Process& process;
    TestMember member;
    TestStore store;
    std::vector<std::unique_ptr<TestPort>> ports;
    OwnerContext context;
    std::unique_ptr<Claimer> claimer;
    std::unique_ptr<ReplicatedLog> log;
    bool is_claiming = false;
    bool is_leaving = false;  // the log is given up as soon as nobody uses it
    uint32_t users = 0;
};

// What was promised to users, and whether it is kept.
struct TestMonitor {
    std::map<Lsn, uint64_t> settled;  // acknowledged, or adopted by an owner who serves
    std::set<uint64_t> dropped;       // submitted, and not adopted by a later owner
    std::map<uint64_t, Lsn> submitted;
    Claim serving;
    Lsn adopted;
    uint64_t acknowledgements = 0;
    uint64_t serves = 0;
    uint64_t reads = 0;
    std::string problem;

    void breach(std::string what) {
        if (problem.empty()) problem = std::move(what);
    }
    Lsn last_settled() const { return settled.empty() ? Lsn(0) : settled.rbegin()->first; }
    void settle(Lsn lsn, uint64_t id) {
        if (dropped.contains(id)) breach(fmt::format("write {} comes back (P3)", id));
        auto [place, is_new] = settled.emplace(lsn, id);
        if (!is_new && place->second != id)
            breach(fmt::format("LSN {} was write {} and is {} now", lsn, place->second, id));
    }
    void on_serve(const Claim& claim, const TestMedia& media, Lsn last) {
        // It was overtaken before it knew.
        if (claim.epoch < serving.epoch) return;
        ++serves;
        serving = claim;
        adopted = last;
        if (last < last_settled())
            breach(fmt::format("the owner of epoch {} serves up to LSN {}, and {} was promised",
                               claim.epoch, last, last_settled()));
        for (const auto& [lsn, id] : settled) {
            if (!media.has(lsn))
                breach(fmt::format("LSN {} is missing in epoch {} (P1)", lsn, claim.epoch));
        }
        for (const auto& [lsn, record] : media.records) {
            if (lsn <= last && record.lba) settle(lsn, record.lba.value);
        }
        for (const auto& [id, lsn] : submitted) {
            auto found = settled.find(lsn);
            bool is_there = found != settled.end() && found->second == id;
            if (!is_there && lsn <= last && lsn > media.drained_lsn()) dropped.insert(id);
            if (!is_there && lsn > last) dropped.insert(id);
        }
    }
    void on_submitted(const Claim& claim, Lsn lsn, uint64_t id) {
        submitted[id] = lsn;
        if (claim != serving) dropped.insert(id);
    }
    void on_acknowledged(const Claim& claim, Lsn lsn, uint64_t id) {
        ++acknowledgements;
        if (claim != serving && lsn > adopted)
            breach(fmt::format("epoch {} acknowledges LSN {} after epoch {} serves (P4)",
                               claim.epoch, lsn, serving.epoch));
        settle(lsn, id);
    }
};

class TestCluster {
  public:
    explicit TestCluster(uint64_t seed, uint32_t copies = 2) : world(seed), copies(copies) {
        for (unsigned i = 0; i < kNodes; ++i) {
            media[i].incarnation = Incarnation(100 + i);
            start(i);
        }
        record.generation = generation;
    }
    ~TestCluster() {
        for (unsigned i = 0; i < kNodes; ++i)
            crash(i);
    }

    void start(unsigned i) {
        ++lives[i];
        sim::Process& process = world.start(fmt::format("node{}", i + 1));
        nodes[i] = std::make_unique<TestNode>(*this, i, process);
    }
    void crash(unsigned i) {
        if (!nodes[i]) return;
        ++lives[i];
        world.kill(nodes[i]->process);
        nodes[i]->member.crash();
        nodes[i]->log.reset();
        nodes[i]->claimer.reset();
        nodes[i].reset();
    }
    bool is_cut(unsigned from, unsigned to) const { return cut.contains({from, to}); }
    Duration delay() {
        uint64_t us = world.random().between(50, 600);
        if (world.random().chance(faults.late_permille)) us += world.random().between(1, 800'000);
        return std::chrono::microseconds(us);
    }
    const EnsembleMember* recorded(unsigned i) const {
        for (const EnsembleMember& member : record.ensemble) {
            if (member.node == NodeId(i + 1)) return &member;
        }
        return nullptr;
    }

    // The store carries it out, whoever waits for the answer.
    std::pair<CasOutcome, Ownership> execute(const CompareAndSet& cas) {
        if (cas.generation != generation || cas.expected != record)
            return {CasOutcome::conflict, record};
        record = cas.desired;
        return {CasOutcome::done, record};
    }
    // I1
    void check_members(Lsn lsn) {
        if (record.generation != generation) return;
        for (const EnsembleMember& member : record.ensemble) {
            const TestMedia& there = media[member.node.value - 1];
            bool is_complete =
                there.incarnation == member.incarnation && !there.is_failed &&
                (there.stored.token == member.token || there.stored.recorded == member.token);
            if (is_complete && !there.has(lsn))
                monitor.breach(fmt::format("LSN {} is acknowledged and not on node {} (I1)", lsn,
                                           member.node));
        }
    }

    sim::World world;
    const uint32_t copies;
    std::array<TestMedia, kNodes> media;
    std::array<std::unique_ptr<TestNode>, kNodes> nodes;
    std::array<uint64_t, kNodes> lives{};         // changes when a node starts and when it dies
    std::set<std::pair<unsigned, unsigned>> cut;  // one way
    TestFaults faults;
    Ownership record;
    uint64_t generation = 1;
    TestMonitor monitor;
    uint64_t id_last = 0;
    OwnerTiming timing;
    bool may_degrade = false;
};

// ---- the network ----

template <typename T>
Task<Result<T>> TestPort::call(Duration timeout, Handler<T> handler) {
    auto call = std::make_shared<TestCall<T>>();
    sim::World& world = cluster_.world;
    const uint64_t life = cluster_.lives[from_];
    last_arrival_ =
        std::max(last_arrival_ + std::chrono::nanoseconds(1), world.now() + cluster_.delay());
    world.at(world.now() + timeout, &cluster_.nodes[from_]->process,
             [call] { call->end(fail(Code::outcome_unknown, "no answer in time")); });
    int copies = world.random().chance(cluster_.faults.twice_permille) ? 2 : 1;
    for (; copies > 0; --copies) {
        if (world.random().chance(cluster_.faults.loss_permille)) continue;
        auto come = [call, handler, life, from = from_, to = to_, &cluster = cluster_] {
            arrive<T>(cluster, {from, to, life}, call, handler);
        };
        world.at(last_arrival_, nullptr, std::move(come));
        last_arrival_ += std::chrono::nanoseconds(1);
    }
    co_await call->done.wait();
    co_return std::move(*call->result);
}

template <typename T>
void TestPort::arrive(TestCluster& cluster, Way way, std::shared_ptr<TestCall<T>> call,
                      const Handler<T>& handler) {
    if (cluster.is_cut(way.from, way.to)) return;
    sim::World& world = cluster.world;
    if (!cluster.nodes[way.to]) {
        if (cluster.lives[way.from] != way.life) return;
        world.at(world.now() + cluster.delay(), &cluster.nodes[way.from]->process,
                 [call] { call->end(fail(Code::unavailable, "connection refused")); });
        return;
    }
    // In an event of that process, so that it may stand still.
    TestNode& there = *cluster.nodes[way.to];
    world.post(&there.process, [call, handler, way, &there, &cluster] {
        runtime::spawn(there.process.executor(),
                       serve<T>(cluster, way, there.member, call, handler));
    });
}

template <typename T>
Task<void> TestPort::serve(TestCluster& cluster, Way way, TestMember& member,
                           std::shared_ptr<TestCall<T>> call, Handler<T> handler) {
    Task<Result<T>> task = handler(member);
    auto result = co_await std::move(task);
    bool is_lost = cluster.is_cut(way.to, way.from) ||
                   cluster.world.random().chance(cluster.faults.loss_permille);
    if (is_lost || cluster.lives[way.from] != way.life) co_return;
    auto answer = std::make_shared<Result<T>>(std::move(result));
    cluster.world.at(cluster.world.now() + cluster.delay(), &cluster.nodes[way.from]->process,
                     [call, answer] { call->end(std::move(*answer)); });
}

// ---- the control store ----

inline Task<std::pair<CasOutcome, Ownership>> TestStore::compare_and_set(VolumeId,
                                                                         CompareAndSet cas) {
    using Answer = std::pair<CasOutcome, Ownership>;
    auto call = std::make_shared<TestCall<Answer>>();
    TestCluster& cluster = cluster_;
    sim::World& world = cluster.world;
    sim::Process* home = &cluster.nodes[from_]->process;
    world.at(world.now() + std::chrono::milliseconds(500), home,
             [call, cas] { call->end(Answer{CasOutcome::unknown, cas.expected}); });
    bool is_unknown = world.random().chance(cluster.faults.unknown_permille);
    // Some of the unknown ones take place much later.
    Duration wait = cluster.delay();
    if (is_unknown && world.random().chance(500))
        wait = std::chrono::milliseconds(world.random().between(1, 3000));
    bool is_lost = cluster.faults.is_store_out || (is_unknown && world.random().chance(300));
    if (!is_lost) {
        world.at(world.now() + wait, nullptr, [call, cas, &cluster, home, is_unknown] {
            Answer answer = cluster.execute(cas);
            if (is_unknown) answer.first = CasOutcome::unknown;
            if (is_unknown && cluster.world.random().chance(500)) return;
            cluster.world.at(cluster.world.now() + cluster.delay(), home,
                             [call, answer] { call->end(answer); });
        });
    }
    co_await call->done.wait();
    co_return std::move(**call->result);
}

inline Task<Result<Ownership>> TestStore::read(VolumeId) {
    co_await cluster_.nodes[from_]->process.env().clock.sleep_for(cluster_.delay());
    if (cluster_.faults.is_store_out) co_return fail(Code::unavailable, "no control store");
    generation_ = cluster_.generation;
    co_return cluster_.record;
}

// ---- nodes ----

inline TestNode::TestNode(TestCluster& cluster, unsigned index, sim::Process& process)
    : cluster(cluster),
      index(index),
      process(process),
      member(process.env(), NodeId(index + 1), cluster.media[index], cluster.timing.protocol,
             cluster.world.random()),
      store(cluster, index),
      context(process.env(), NodeId(index + 1), store, *this, *this, cluster.timing) {
    for (unsigned to = 0; to < kNodes; ++to)
        ports.push_back(std::make_unique<TestPort>(cluster, index, to));
}

inline std::vector<NodeId> TestNode::nodes() const {
    std::vector<NodeId> out;
    for (unsigned i = 0; i < kNodes; ++i)
        out.push_back(NodeId(i + 1));
    return out;
}

// Those that stay, then others; whoever is avoided is out of the question.
inline Members TestNode::choose(VolumeId, uint32_t copies, const Members& present,
                                std::span<const NodeId> avoid) {
    Members out;
    auto add = [&](NodeId node) {
        bool is_out = std::ranges::find(avoid, node) != avoid.end() && node != context.self;
        bool is_in = std::ranges::find(out, node, &EnsembleMember::node) != out.end();
        const TestMedia& media = cluster.media[node.value - 1];
        if (is_out || is_in || out.size() >= copies || media.is_failed) return;
        out.push_back({node, {}, media.incarnation, {}});
    };
    add(context.self);
    for (const EnsembleMember& member : present)
        add(member.node);
    uint64_t first = cluster.world.random().pick(kNodes);
    for (unsigned i = 0; i < kNodes; ++i)
        add(NodeId((first + i) % kNodes + 1));
    if (out.size() < copies && !cluster.may_degrade) return {};
    return out;
}

}  // namespace peplos::replica
