#include <cstdlib>
#include <gtest/gtest.h>

#include "replica/owner_test_rig.h"

// Random claimers, writers and readers against everything that goes wrong, from one seed; what the
// owner's side promised is checked at every acknowledgement, read and takeover.
namespace peplos::replica {
namespace {

using namespace std::chrono_literals;

// ---- users ----

struct Use {
    explicit Use(TestNode& n) : node(n) { ++node.users; }
    ~Use() { --node.users; }
    Use(const Use&) = delete;
    TestNode& node;
};

Task<void> write_records(TestNode& node) {
    Use use(node);
    TestCluster& cluster = node.cluster;
    ReplicatedLog& log = *node.log;
    sim::Random& random = cluster.world.random();
    runtime::Clock& clock = node.process.env().clock;
    while (!node.is_leaving) {
        Record record;
        record.type = RecordType::zero;
        record.block_count = 1;
        if (random.chance(40)) {
            record.type = RecordType::seal;
            record.block_count = 0;
            record.body = format::SealBody{log.status().acknowledged_lsn, {}, {}};
        }
        auto admission = co_await log.admit(record);
        if (!admission) co_return;
        uint64_t id = ++cluster.id_last;
        record.lba = Lba(id);
        record.lsn = log.next_lsn();
        Lsn lsn = record.lsn;
        AppendTicket ticket = log.submit(std::move(record), std::move(*admission));
        cluster.monitor.on_submitted(log.claim(), lsn, id);
        auto outcome = co_await log.wait(std::move(ticket));
        if (!outcome) co_return;
        cluster.monitor.on_acknowledged(log.claim(), lsn, id);
        cluster.check_members(lsn);
        if (random.chance(700)) co_await clock.sleep_for(1us * random.between(1, 20'000));
    }
}

Task<void> read_records(TestNode& node) {
    Use use(node);
    TestCluster& cluster = node.cluster;
    ReplicatedLog& log = *node.log;
    sim::Random& random = cluster.world.random();
    runtime::Clock& clock = node.process.env().clock;
    while (!node.is_leaving) {
        co_await clock.sleep_for(1us * random.between(1, 30'000));
        Lsn promised = cluster.monitor.last_settled();
        co_await clock.sleep_for(1us * random.between(1, 2'000));
        Lsn fetched = log.status().acknowledged_lsn;
        co_await clock.sleep_for(1us * random.between(1, 2'000));
        if (log.may_read()) {
            ++cluster.monitor.reads;
            if (fetched < promised)
                cluster.monitor.breach(
                    fmt::format("node {} reads up to LSN {} when {} was promised (P2)",
                                node.index + 1, fetched, promised));
            continue;
        }
        auto renewed = co_await log.renew_promises();
        if (!renewed && renewed.error().code() != Code::unavailable) co_return;
    }
}

// Lets the log go once it is of no use, or another node shall have the volume.
Task<void> tend(TestNode& node) {
    runtime::Clock& clock = node.process.env().clock;
    bool is_polite = false;
    while (node.users != 0) {
        co_await clock.sleep_for(20ms);
        if (!node.is_leaving || is_polite) continue;
        is_polite = true;
        co_await node.log->release();
    }
    node.log.reset();
    node.is_leaving = false;
}

Task<void> claim_volume(TestNode& node) {
    TestCluster& cluster = node.cluster;
    node.claimer = std::make_unique<Claimer>(node.context);
    auto log = co_await node.claimer->claim({kOwnedVolume, kOwnedLineage, cluster.copies});
    node.claimer.reset();
    node.is_claiming = false;
    if (!log) co_return;
    node.log = std::move(*log);
    Lsn last(node.log->next_lsn().value - 1);
    cluster.monitor.on_serve(node.log->claim(), cluster.media[node.index], last);
    for (uint64_t i = cluster.world.random().between(1, 4); i > 0; --i)
        runtime::spawn(node.process.executor(), write_records(node));
    runtime::spawn(node.process.executor(), read_records(node));
    ++node.users;
    co_await node.process.env().clock.sleep_for(1ms);
    --node.users;
    co_await tend(node);
}

// ---- the nemesis ----

struct NemesisOptions {
    bool has_rollback = false;
    bool has_wipe = false;
    bool has_store_faults = true;
    Duration length = 12s;
    std::string planted;
};

class Nemesis {
  public:
    Nemesis(uint64_t seed, NemesisOptions options)
        : cluster_(seed, seed % 3 == 0 ? 3 : 2), options_(std::move(options)) {
        if (!options_.planted.empty()) cluster_.world.faults().plant(options_.planted);
    }

    // What was broken; empty: nothing.
    std::string run() {
        begin_claim(0);
        Time end = cluster_.world.now() + options_.length;
        while (cluster_.world.now() < end && is_good()) {
            cluster_.world.run_for(1ms * random().between(5, 500));
            act();
            bool is_wanted = std::ranges::any_of(cluster_.nodes, [](const auto& node) {
                return node && (node->log || node->is_claiming);
            });
            if (!is_wanted) begin_claim(static_cast<unsigned>(random().pick(kNodes)));
        }
        if (is_good()) recover();
        return cluster_.monitor.problem;
    }
    TestCluster& cluster() { return cluster_; }

  private:
    sim::Random& random() { return cluster_.world.random(); }
    bool is_good() const { return cluster_.monitor.problem.empty(); }
    TestNode* some_node() { return cluster_.nodes[random().pick(kNodes)].get(); }

    void begin_claim(unsigned i) {
        TestNode* node = cluster_.nodes[i].get();
        if (node == nullptr || node->is_claiming || node->log) return;
        node->is_claiming = true;
        runtime::spawn(node->process.executor(), claim_volume(*node));
    }

    void act() {
        TestFaults& faults = cluster_.faults;
        unsigned i = static_cast<unsigned>(random().pick(kNodes));
        unsigned j = static_cast<unsigned>(random().pick(kNodes));
        TestNode* node = cluster_.nodes[i].get();
        switch (random().pick(18)) {
            case 0:
                if (down() < 2) cluster_.crash(i);
                break;
            case 1:
            case 2:
                for (unsigned k = 0; k < kNodes; ++k) {
                    if (!cluster_.nodes[k]) cluster_.start(k);
                }
                break;
            case 3:
                if (node != nullptr)
                    cluster_.world.pause(node->process, 1ms * random().between(1, 4000));
                break;
            case 4:
                cluster_.cut.insert({i, j});
                break;
            case 5:
                besiege(i, j);
                break;
            case 6:
            case 7:
                if (!is_besieged()) cluster_.cut.clear();
                break;
            case 8:
                faults.loss_permille = static_cast<uint32_t>(random().pick(3) * 40);
                faults.twice_permille = static_cast<uint32_t>(random().pick(3) * 50);
                faults.late_permille = static_cast<uint32_t>(random().pick(3) * 30);
                break;
            case 9:
                if (!options_.has_store_faults) break;
                faults.unknown_permille = static_cast<uint32_t>(random().pick(4) * 250);
                faults.is_store_out = random().chance(300);
                break;
            case 10:
                faults = {};
                break;
            case 11:
            case 12:
                begin_claim(i);
                break;
            case 13:
                if (node != nullptr && node->log) node->is_leaving = true;
                begin_claim(j);
                break;
            case 14:
                if (node != nullptr && node->claimer && random().chance(300))
                    node->claimer->cancel();
                break;
            case 15:
                for (auto& owner : cluster_.nodes) {
                    if (owner && owner->log) owner->log->reconsider();
                }
                break;
            case 16:
                if (options_.has_rollback) roll();
                break;
            case 17:
                if (options_.has_wipe) wipe(i);
                break;
        }
    }
    // Long enough for somebody else to serve, or to take its place.
    void besiege(unsigned i, unsigned j) {
        TestNode* node = cluster_.nodes[i].get();
        if (is_besieged()) return;
        if (random().chance(600)) {
            besieged_until_ = cluster_.world.now() + 1ms * random().between(500, 6000);
            if (node != nullptr && node->log) begin_claim(j);
        }
        for (unsigned k = 0; k < kNodes; ++k) {
            cluster_.cut.insert({i, k});
            if (random().chance(700)) cluster_.cut.insert({k, i});
        }
    }
    bool is_besieged() const { return cluster_.world.now() < besieged_until_; }
    unsigned down() const {
        return static_cast<unsigned>(
            std::ranges::count_if(cluster_.nodes, [](const auto& node) { return !node; }));
    }
    void roll() {
        if (!has_backup_ || random().chance(600)) {
            backup_ = cluster_.record;
            has_backup_ = true;
            return;
        }
        cluster_.record = backup_;
        ++cluster_.generation;
    }
    void wipe(unsigned i) {
        if (std::exchange(is_wiped_, true)) return;
        cluster_.crash(i);
        cluster_.media[i] = TestMedia{.incarnation = Incarnation(200 + i),
                                      .stored = {},
                                      .records = {},
                                      .is_failed = random().chance(300)};
    }

    // All is well again: soon somebody serves, and acknowledges.
    void recover() {
        cluster_.cut.clear();
        cluster_.faults = {};
        for (unsigned i = 0; i < kNodes; ++i) {
            if (!cluster_.nodes[i]) cluster_.start(i);
        }
        cluster_.world.run_for(5s);
        uint64_t serves = cluster_.monitor.serves;
        for (auto& node : cluster_.nodes) {
            if (node->log) node->is_leaving = true;
        }
        Time end = cluster_.world.now() + 120s;
        uint64_t written = 0;
        while (is_good() && cluster_.world.now() < end) {
            if (cluster_.monitor.serves == serves) {
                unsigned i = static_cast<unsigned>(random().pick(kNodes));
                if (!cluster_.media[i].is_failed) begin_claim(i);
                written = cluster_.monitor.acknowledgements;
            }
            cluster_.world.run_for(500ms);
            bool is_served = cluster_.monitor.serves > serves &&
                             cluster_.monitor.acknowledgements > written + 10;
            if (is_served) return;
        }
        std::string why;
        for (auto& node : cluster_.nodes) {
            if (node->claimer)
                why += fmt::format("; claimer {}: {}", node->index + 1, node->claimer->why());
            if (node->log)
                why += fmt::format("; owner {}: {}", node->index + 1, node->log->status().why);
        }
        cluster_.monitor.breach("nobody serves though all is well" + why);
    }

    TestCluster cluster_;
    NemesisOptions options_;
    Ownership backup_;
    Time besieged_until_{};
    bool has_backup_ = false;
    bool is_wiped_ = false;
};

NemesisOptions options_for(uint64_t seed) {
    NemesisOptions out;
    out.has_rollback = seed % 4 == 1;
    out.has_wipe = seed % 4 == 2;
    return out;
}

uint64_t number_from(const char* name, uint64_t otherwise) {
    const char* text = std::getenv(name);
    return text == nullptr ? otherwise : std::strtoull(text, nullptr, 10);
}

// PEPLOS_SEED and PEPLOS_SEEDS choose others.
TEST(OwnerNemesisTest, KeepsEveryPromise) {
    uint64_t first = number_from("PEPLOS_SEED", 1);
    uint64_t count = number_from("PEPLOS_SEEDS", 6);
    uint64_t acknowledgements = 0;
    uint64_t serves = 0;
    uint64_t reads = 0;
    std::map<std::string, uint64_t> probes;
    for (uint64_t seed = first; seed < first + count; ++seed) {
        Nemesis nemesis(seed, options_for(seed));
        std::string problem = nemesis.run();
        EXPECT_EQ(problem, "") << "seed " << seed;
        acknowledgements += nemesis.cluster().monitor.acknowledgements;
        serves += nemesis.cluster().monitor.serves;
        reads += nemesis.cluster().monitor.reads;
        for (const auto& [name, times] : nemesis.cluster().world.faults().probes())
            probes[name] += times;
    }
    EXPECT_GT(acknowledgements, count * 100);
    EXPECT_GT(serves, count);
    EXPECT_GT(reads, count * 10);
    fmt::print("seeds {} acknowledgements {} serves {} reads {}\n", count, acknowledgements, serves,
               reads);
    for (const auto& [name, times] : probes)
        fmt::print("  {} {}\n", name, times);
}

TEST(OwnerNemesisTest, SameSeedSameHash) {
    uint64_t hash[2];
    for (uint64_t& out : hash) {
        Nemesis nemesis(5, options_for(5));
        EXPECT_EQ(nemesis.run(), "");
        out = nemesis.cluster().world.event_hash();
    }
    EXPECT_EQ(hash[0], hash[1]);
}

// By which seed a planted mistake is found; 0: by none.
uint64_t seed_that_finds(const std::string& name, uint64_t count, std::string* what) {
    for (uint64_t seed = 1; seed <= count; ++seed) {
        NemesisOptions options = options_for(seed);
        options.planted = name;
        Nemesis nemesis(seed, options);
        *what = nemesis.run();
        if (!what->empty()) return seed;
    }
    return 0;
}

class OwnerMistakeTest : public testing::TestWithParam<const char*> {};

TEST_P(OwnerMistakeTest, IsFound) {
    std::string what;
    uint64_t seed = seed_that_finds(GetParam(), number_from("PEPLOS_SEEDS", 40), &what);
    EXPECT_NE(seed, 0u) << GetParam();
    fmt::print("{}: seed {}: {}\n", GetParam(), seed, what);
}

INSTANTIATE_TEST_SUITE_P(Planted, OwnerMistakeTest,
                         testing::Values("owner.acks_local_only", "claimer.no_copy",
                                         "protocol.acknowledges_before_cas",
                                         "protocol.acknowledges_majority",
                                         "protocol.changes_without_cas"));

}  // namespace
}  // namespace peplos::replica
