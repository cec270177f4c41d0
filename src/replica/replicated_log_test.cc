#include <gtest/gtest.h>

#include "replica/ack_watch.h"
#include "replica/log_tail.h"
#include "replica/owner_test_rig.h"

namespace peplos::replica {
namespace {

using namespace std::chrono_literals;

struct ReplicatedLogTest : testing::Test {
    // Claims on that node and waits until it serves.
    Duration claim(unsigned i) {
        Time start = cluster.world.now();
        TestNode& node = *cluster.nodes[i];
        node.claimer = std::make_unique<Claimer>(node.context);
        ClaimRequest request{kOwnedVolume, kOwnedLineage, cluster.copies};
        auto log = cluster.world.run(node.process, node.claimer->claim(request));
        if (!log) throw std::runtime_error(log.error().text());
        node.log = std::move(*log);
        return cluster.world.now() - start;
    }
    static Record record() {
        Record out;
        out.type = RecordType::zero;
        out.lba = Lba(1);
        out.block_count = 1;
        return out;
    }
    Result<Lsn> put(unsigned i) {
        TestNode& node = *cluster.nodes[i];
        return cluster.world.run(node.process, node.log->append(record()));
    }
    struct Outcome {
        std::optional<Result<Lsn>> is;
    };
    static Task<void> put_later(ReplicatedLog& log, std::shared_ptr<Outcome> outcome) {
        outcome->is = co_await log.append(record());
    }
    std::shared_ptr<Outcome> begin_put(unsigned i) {
        auto outcome = std::make_shared<Outcome>();
        runtime::spawn(cluster.nodes[i]->process.executor(),
                       put_later(*cluster.nodes[i]->log, outcome));
        return outcome;
    }
    void isolate(unsigned i) {
        for (unsigned k = 0; k < kNodes; ++k) {
            if (k == i) continue;
            cluster.cut.insert({i, k});
            cluster.cut.insert({k, i});
        }
    }
    ReplicatedLog& log(unsigned i) { return *cluster.nodes[i]->log; }
    std::vector<NodeId> members() {
        std::vector<NodeId> out;
        for (const EnsembleMember& member : cluster.record.ensemble)
            out.push_back(member.node);
        return out;
    }
    unsigned other_member(unsigned owner) {
        for (NodeId node : members()) {
            if (node != NodeId(owner + 1)) return static_cast<unsigned>(node.value - 1);
        }
        throw std::runtime_error("it has no other member");
    }

    TestCluster cluster{1};
};

struct SingleLogTest : ReplicatedLogTest {
    SingleLogTest() { alone.emplace(2, 1); }
    std::optional<TestCluster> alone;
};

TEST_F(SingleLogTest, AloneItNeedsNoTimerAndNoPromise) {
    TestCluster& one = *alone;
    TestNode& node = *one.nodes[0];
    Claimer claimer(node.context);
    auto log = one.world.run(node.process, claimer.claim({kOwnedVolume, kOwnedLineage, 1}));
    ASSERT_TRUE(log) << log.error().text();
    EXPECT_EQ(one.world.run(node.process, (*log)->append(record())).value(), Lsn(1));
    one.world.run_until_idle();  // would never end with a heartbeat
    one.world.pause(1h);
    EXPECT_TRUE((*log)->may_read());
    EXPECT_EQ(one.world.run(node.process, (*log)->append(record())).value(), Lsn(2));
    EXPECT_EQ((*log)->status().why, "");
    log->reset();
}

TEST_F(ReplicatedLogTest, IsOnEveryMemberWhenAcknowledged) {
    claim(0);
    for (uint64_t i = 1; i <= 20; ++i) {
        EXPECT_EQ(put(0).value(), Lsn(i));
        for (NodeId node : members())
            EXPECT_TRUE(cluster.media[node.value - 1].has(Lsn(i)));
    }
    EXPECT_EQ(members().size(), 2u);
    EXPECT_TRUE(cluster.world.run(cluster.nodes[0]->process, log(0).renew_promises()));
    EXPECT_TRUE(log(0).may_read());
}

TEST_F(ReplicatedLogTest, ASilentMemberIsReplacedUnderWrites) {
    claim(0);
    put(0).value();
    unsigned other = other_member(0);
    isolate(other);
    Time start = cluster.world.now();
    EXPECT_EQ(put(0).value(), Lsn(2));
    EXPECT_LT(cluster.world.now() - start, 2s);
    EXPECT_EQ(members().size(), 2u);
    EXPECT_NE(other_member(0), other);
    EXPECT_TRUE(cluster.media[other_member(0)].has(Lsn(1)));
    EXPECT_TRUE(cluster.media[other_member(0)].has(Lsn(2)));
}

TEST_F(ReplicatedLogTest, WithoutAnotherNodeAWriteWaitsAndStatusSaysWhy) {
    claim(0);
    put(0).value();
    isolate(0);
    auto waiting = begin_put(0);
    cluster.world.run_for(8s);
    EXPECT_FALSE(waiting->is.has_value());
    EnsembleStatus status = log(0).status();
    EXPECT_NE(status.why, "");
    EXPECT_EQ(status.acknowledged_lsn, Lsn(1));
    EXPECT_FALSE(log(0).may_read());
    cluster.cut.clear();
    cluster.world.run_for(15s);
    ASSERT_TRUE(waiting->is.has_value());
    EXPECT_EQ(waiting->is->value(), Lsn(2));
}

TEST_F(ReplicatedLogTest, DegradeGoesOnAloneAndFindsAnotherCopyLater) {
    claim(0);
    put(0).value();
    isolate(0);
    auto waiting = begin_put(0);
    cluster.world.run_for(3s);
    ASSERT_FALSE(waiting->is.has_value());
    for (int i = 0; i < 50 && !waiting->is; ++i) {
        std::ignore = log(0).degrade();
        cluster.world.run_for(200ms);
    }
    ASSERT_TRUE(waiting->is.has_value());
    EXPECT_EQ(waiting->is->value(), Lsn(2));
    EXPECT_EQ(members().size(), 1u);
    EXPECT_TRUE(log(0).may_read());
    cluster.cut.clear();
    cluster.world.run_for(20s);
    EXPECT_EQ(members().size(), 2u);
    EXPECT_TRUE(cluster.media[other_member(0)].has(Lsn(2)));
    EXPECT_EQ(log(0).status().why, "");
}

TEST_F(ReplicatedLogTest, AStoreThatIsOutStopsNoWrite) {
    claim(0);
    cluster.faults.is_store_out = true;
    for (uint64_t i = 1; i <= 10; ++i)
        EXPECT_EQ(put(0).value(), Lsn(i));
    unsigned other = other_member(0);
    isolate(other);
    auto waiting = begin_put(0);
    cluster.world.run_for(30s);
    EXPECT_FALSE(waiting->is.has_value());
    EXPECT_EQ(log(0).status().why, "the change of members waits for the control store");
    cluster.faults.is_store_out = false;
    cluster.world.run_for(3s);
    ASSERT_TRUE(waiting->is.has_value());
    EXPECT_NE(other_member(0), other);
}

TEST_F(ReplicatedLogTest, AMemberThatComesBackGoesOnWhereItsLogEnds) {
    claim(0);
    put(0).value();
    // Only these two: nobody can take the other's place.
    unsigned other = other_member(0);
    for (unsigned k = 1; k < kNodes; ++k) {
        if (k != other) cluster.crash(k);
    }
    OpenToken token = cluster.media[other].stored.token;
    cluster.crash(other);
    auto waiting = begin_put(0);
    cluster.world.run_for(2s);
    EXPECT_FALSE(waiting->is.has_value());
    cluster.start(other);
    cluster.world.run_for(5s);
    ASSERT_TRUE(waiting->is.has_value());
    EXPECT_EQ(cluster.media[other].stored.token, token);
    EXPECT_TRUE(cluster.media[other].has(Lsn(2)));
}

TEST_F(ReplicatedLogTest, ATakeoverStopsTheOldOwner) {
    claim(0);
    put(0).value();
    isolate(0);
    auto waiting = begin_put(0);
    Duration took = claim(1);
    EXPECT_GT(took, 1s);  // the promise
    EXPECT_LT(took, 5s);
    EXPECT_FALSE(log(0).may_read());
    EXPECT_EQ(put(1).value().value, 2u);
    cluster.cut.clear();
    cluster.world.run_for(15s);
    ASSERT_TRUE(waiting->is.has_value());
    EXPECT_EQ(waiting->is->error().code(), Code::fenced);
    EXPECT_EQ(put(0).error().code(), Code::fenced);
}

TEST_F(ReplicatedLogTest, ARestartIsATakeoverFromOneself) {
    claim(0);
    put(0).value();
    cluster.crash(0);
    cluster.start(0);
    EXPECT_LT(claim(0), 300ms);
    EXPECT_EQ(put(0).value(), Lsn(2));
}

TEST_F(ReplicatedLogTest, ReleaseSparesTheNextOwnerTheWait) {
    claim(0);
    put(0).value();
    cluster.world.run(cluster.nodes[0]->process, log(0).release());
    EXPECT_EQ(put(0).error().code(), Code::stopping);
    EXPECT_LT(claim(other_member(0)), 300ms);
}

TEST_F(ReplicatedLogTest, WhatWasOnItsWayWhenReleasedIsUnknown) {
    claim(0);
    put(0).value();
    isolate(0);
    auto waiting = begin_put(0);
    cluster.world.run_for(100ms);
    cluster.world.run(cluster.nodes[0]->process, log(0).release());
    cluster.world.run_for(1ms);
    ASSERT_TRUE(waiting->is.has_value());
    EXPECT_EQ(waiting->is->error().code(), Code::outcome_unknown);
}

TEST_F(ReplicatedLogTest, ACancelledClaimEnds) {
    claim(0);
    cluster.faults.is_store_out = true;
    TestNode& node = *cluster.nodes[1];
    Claimer claimer(node.context);
    auto outcome = std::make_shared<std::optional<Code>>();
    auto run = [](Claimer& c, std::shared_ptr<std::optional<Code>> out) -> Task<void> {
        auto log = co_await c.claim({kOwnedVolume, kOwnedLineage, 2});
        *out = log ? Code::already_exists : log.error().code();
    };
    runtime::spawn(node.process.executor(), run(claimer, outcome));
    cluster.world.run_for(3s);
    EXPECT_FALSE(outcome->has_value());
    EXPECT_NE(claimer.why(), "");
    claimer.cancel();
    cluster.world.run_for(1s);
    ASSERT_TRUE(outcome->has_value());
    EXPECT_EQ(**outcome, Code::stopping);
}

TEST_F(ReplicatedLogTest, StoppingEndsAllThatRuns) {
    claim(0);
    put(0).value();
    isolate(0);
    auto waiting = begin_put(0);
    cluster.world.run_for(50ms);
    cluster.world.run(cluster.nodes[0]->process, cluster.nodes[0]->context.stop());
    cluster.world.run_for(1ms);
    ASSERT_TRUE(waiting->is.has_value());
    EXPECT_EQ(waiting->is->error().code(), Code::outcome_unknown);
}

// ---- pieces ----

Record link(uint64_t lsn, RecordType type, uint64_t data, uint64_t meta) {
    Record out;
    out.lsn = Lsn(lsn);
    out.type = type;
    out.prev_data_lsn = Lsn(data);
    out.prev_meta_lsn = Lsn(meta);
    if (type == RecordType::seal) out.body = format::SealBody{};
    return out;
}

TEST(LogTailTest, AHoleIsSeen) {
    std::vector<Record> all{link(1, RecordType::zero, 0, 0), link(2, RecordType::zero, 1, 0),
                            link(3, RecordType::seal, 2, 0), link(4, RecordType::zero, 2, 3)};
    EXPECT_TRUE(check_tail(all, Lsn(0), Lsn(4)));
    EXPECT_FALSE(check_tail(all, Lsn(0), Lsn(5)));
    for (size_t i = 0; i < all.size(); ++i) {
        auto some = all;
        some.erase(some.begin() + static_cast<ptrdiff_t>(i));
        EXPECT_FALSE(check_tail(some, Lsn(0), Lsn(4))) << i;
    }
    // What the seal covers need not be there.
    std::get<format::SealBody>(all[2].body).drained_lsn = Lsn(2);
    auto drained = std::span(all).subspan(2);
    EXPECT_TRUE(check_tail(drained, Lsn(0), Lsn(4)));
    EXPECT_TRUE(check_tail(std::span(all).subspan(3), Lsn(3), Lsn(4)));
    EXPECT_TRUE(check_tail({}, Lsn(4), Lsn(4)));
}

TEST(AckWatchTest, TheLimitFollowsWhatIsUsual) {
    OwnerTiming timing;
    AckWatch watch;
    EXPECT_EQ(watch.limit(timing), timing.silence_min);
    for (int i = 0; i < 10'000; ++i)
        watch.note(i % 100 == 0 ? 300ms : 1ms);
    EXPECT_GE(watch.limit(timing), 900ms);
    EXPECT_LE(watch.limit(timing), 1200ms);
    for (int i = 0; i < 200'000; ++i)
        watch.note(1ms);
    EXPECT_EQ(watch.limit(timing), timing.silence_min);
}

TEST(AckWatchTest, WhoWasOnlySlowIsGivenMoreTime) {
    OwnerTiming timing;
    AckWatch watch;
    Time now{1s};
    EXPECT_FALSE(watch.is_silent(now + 1h, timing));  // nothing was asked
    watch.on_sent(now);
    EXPECT_FALSE(watch.is_silent(now + 199ms, timing));
    EXPECT_TRUE(watch.is_silent(now + 200ms, timing));
    watch.on_end(now + 210ms, true);
    EXPECT_EQ(watch.limit(timing), 2 * timing.silence_min);
    watch.on_sent(now + 300ms);
    watch.forgive(now + 5s);
    EXPECT_FALSE(watch.is_silent(now + 5s, timing));
    EXPECT_TRUE(watch.is_silent(now + 6s, timing));
    EXPECT_FALSE(watch.is_silent(now + 2h, timing) && watch.limit(timing) != timing.silence_min);
}

}  // namespace
}  // namespace peplos::replica
