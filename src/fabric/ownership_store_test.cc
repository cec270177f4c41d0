#include "fabric/ownership_store.h"

#include <gtest/gtest.h>

#include "control/memory_store.h"
#include "replica/takeover.h"
#include "sim/world.h"

namespace peplos::fabric {
namespace {

using control::MemoryStore;
using control::OwnershipState;
using replica::CasOutcome;
using replica::CompareAndSet;
using replica::Ownership;
using Mishap = MemoryStore::Mishap;

constexpr VolumeId kVolume(5);

class OwnershipTest : public testing::Test {
  public:
    OwnershipTest() : world(11), ownership(world.env(), calls()) {
        control::VolumeRecord record;
        record.id = kVolume;
        record.name = "data";
        record.lineage = LineageId(1);
        record.size_bytes = kGiB;
        EXPECT_TRUE(world.run(store.compare_and_set(*volume_creation(record))));
    }

    // The store with a generation beside it.
    OwnershipCalls calls() {
        OwnershipCalls out;
        out.generation = [this] { return answer(Result<uint64_t>(generation)); };
        out.get = [this](std::string key) { return store.get(std::move(key)); };
        out.compare_and_set = [this](control::Transaction transaction, uint64_t demanded) {
            if (before_set) std::exchange(before_set, nullptr)();
            if (demanded != generation) {
                return answer(Result<control::Revision>(
                    fail(Code::conflict, "the control store was put back")));
            }
            return store.compare_and_set(std::move(transaction));
        };
        return out;
    }
    template <typename T>
    static Task<T> answer(T value) {
        co_return value;
    }

    Ownership read() {
        auto seen = world.run(ownership.read(kVolume));
        EXPECT_TRUE(seen) << seen.error().text();
        return *seen;
    }
    std::pair<CasOutcome, Ownership> set(CompareAndSet cas) {
        return world.run(ownership.compare_and_set(kVolume, std::move(cas)));
    }
    static Ownership claimed(Ownership from, uint64_t node, uint64_t token) {
        from.claim = {NodeId(node), from.claim.epoch.next(), OpenToken(token)};
        from.state = OwnershipState::recovering;
        ++from.version;
        return from;
    }
    // Somebody changes another field of the record.
    void grow() {
        auto entry = world.run(store.get(control::volume_key(kVolume)));
        auto record = *control::decode<control::VolumeRecord>((*entry)->value);
        record.size_bytes += kGiB;
        auto grown = *volume_update(record, (*entry)->mod_revision);
        EXPECT_TRUE(world.run(store.compare_and_set(std::move(grown))));
    }

    MemoryStore store;
    sim::World world;
    uint64_t generation = 7;
    std::function<void()> before_set;
    StoredOwnership ownership;
};

TEST_F(OwnershipTest, ReadsAVolumeThatWasNeverClaimed) {
    Ownership none = read();
    EXPECT_EQ(none.claim, replica::Claim{});
    EXPECT_TRUE(none.ensemble.empty());
    EXPECT_EQ(none.generation, 7u) << "nothing of it can be out of date";
    EXPECT_EQ(ownership.generation(), 7u);
    auto missing = world.run(ownership.read(VolumeId(99)));
    EXPECT_EQ(missing.error().code(), Code::not_found);
}

TEST_F(OwnershipTest, KeepsEveryField) {
    Ownership mine = claimed(read(), 3, 77);
    mine.state = OwnershipState::open;
    mine.ensemble = {{NodeId(3), DeviceId{{1}}, Incarnation(4), OpenToken(5)},
                     {NodeId(4), DeviceId{{2}}, Incarnation(6), OpenToken(7)}};
    EXPECT_EQ(set({read(), mine, 7}).first, CasOutcome::done);
    EXPECT_EQ(read(), mine);
}

TEST_F(OwnershipTest, ComparesTheWhole) {
    Ownership none = read();
    Ownership first = claimed(none, 1, 10);
    ASSERT_EQ(set({none, first, 7}).first, CasOutcome::done);
    // The same version and epoch, another token: not what is there.
    Ownership imagined = first;
    imagined.claim.token = OpenToken(11);
    auto [outcome, current] = set({imagined, claimed(imagined, 2, 12), 7});
    EXPECT_EQ(outcome, CasOutcome::conflict);
    EXPECT_EQ(current, first);
}

TEST_F(OwnershipTest, IsNotHeldUpByOtherFields) {
    Ownership none = read();
    before_set = [this] {
        // Between the read and the transaction, as another process would.
        auto entry = std::move(store.backup().entries.at(control::volume_key(kVolume)));
        auto record = *control::decode<control::VolumeRecord>(entry.value);
        record.size_bytes += kGiB;
        runtime::spawn(world.env().executor,
                       [](MemoryStore& to, control::Transaction what) -> Task<void> {
                           (void)co_await to.compare_and_set(std::move(what));
                       }(store, *volume_update(record, entry.mod_revision)));
    };
    Ownership mine = claimed(none, 1, 10);
    EXPECT_EQ(set({none, mine, 7}).first, CasOutcome::done);
    grow();
    EXPECT_EQ(read(), mine);
}

TEST_F(OwnershipTest, SettlesWhatTheStoreDidNotSay) {
    Ownership none = read();
    Ownership mine = claimed(none, 1, 10);
    store.queue_mishap(Mishap::unknown_lost);
    auto lost = set({none, mine, 7});
    EXPECT_EQ(lost.first, CasOutcome::unknown);
    EXPECT_EQ(lost.second, none);
    store.queue_mishap(Mishap::unknown_applied);
    EXPECT_EQ(set({none, mine, 7}).first, CasOutcome::done);
    // A repetition of what has happened is no conflict.
    EXPECT_EQ(set({none, mine, 7}).first, CasOutcome::done);
    store.queue_mishap(Mishap::unavailable);
    EXPECT_EQ(set({mine, claimed(mine, 2, 20), 7}).first, CasOutcome::done);
}

TEST_F(OwnershipTest, GivesUpOnAStoreThatIsAway) {
    Ownership none = read();
    store.set_available(false);
    Time begin = world.now();
    auto away = set({none, claimed(none, 1, 10), 7});
    EXPECT_EQ(away.first, CasOutcome::unknown);
    EXPECT_EQ(away.second, none);
    EXPECT_LE(world.now() - begin, 2 * StoredOwnership::kPatience);
    EXPECT_EQ(world.run(ownership.read(kVolume)).error().code(), Code::unavailable);
}

TEST_F(OwnershipTest, HoldsForOneGeneration) {
    Ownership none = read();
    Ownership first = claimed(none, 1, 10);
    ASSERT_EQ(set({none, first, 7}).first, CasOutcome::done);
    MemoryStore::Backup backup = store.backup();
    // Put back between the read and the transaction: content and revision are the same again.
    before_set = [this, &backup] {
        store.restore(backup);
        generation = 8;
    };
    Ownership commit = first;
    commit.state = OwnershipState::open;
    ++commit.version;
    auto [outcome, current] = set({first, commit, 7});
    EXPECT_EQ(outcome, CasOutcome::conflict);
    EXPECT_EQ(current, first);
    EXPECT_EQ(ownership.generation(), 8u);
    EXPECT_EQ(set({first, commit, 8}).first, CasOutcome::done);
}

TEST_F(OwnershipTest, NobodyOwnsADeletedVolume) {
    Ownership none = read();
    auto entry = world.run(store.get(control::volume_key(kVolume)));
    EXPECT_TRUE(world.run(
        store.compare_and_set(control::volume_forgetting(kVolume, (*entry)->mod_revision))));
    auto [outcome, current] = set({none, claimed(none, 1, 10), 7});
    EXPECT_EQ(outcome, CasOutcome::conflict);
    EXPECT_EQ(current, Ownership{});
}

// Claims of two nodes at once in bad weather: the machines' own rules hold over this store.
TEST_F(OwnershipTest, OneOfTwoClaimersWins) {
    for (uint64_t round = 1; round <= 30; ++round) {
        store.set_weather({.unavailable_permille = 200,
                           .unknown_permille = 300,
                           .delay_max = std::chrono::milliseconds(30)},
                          world.random(), world.env().clock);
        auto claim = [](StoredOwnership& over, NodeId self, OpenToken token,
                        replica::Takeover& out) -> Task<void> {
            Result<Ownership> seen = co_await over.read(kVolume);
            while (!seen)
                seen = co_await over.read(kVolume);
            out = replica::Takeover(self, token, {}, over.generation(), {NodeId(1), NodeId(2)});
            replica::OwnerActions actions;
            out.start(*seen, actions);
            while (out.phase() == replica::Takeover::Phase::claiming) {
                auto cas = std::get<CompareAndSet>(actions.back());
                actions.clear();
                auto [outcome, current] = co_await over.compare_and_set(kVolume, cas);
                out.on_cas(outcome, current, actions);
            }
        };
        replica::Takeover one;
        replica::Takeover two;
        StoredOwnership second(world.env(), calls());
        runtime::spawn(world.env().executor,
                       claim(ownership, NodeId(1), OpenToken(2 * round), one));
        world.run(claim(second, NodeId(2), OpenToken(2 * round + 1), two));
        world.run_until_idle();
        store.set_weather({}, world.random(), world.env().clock);
        using Phase = replica::Takeover::Phase;
        Ownership now = read();
        // One may win after the other; who does not know yet is not the one on record.
        EXPECT_TRUE(one.phase() == Phase::fencing || two.phase() == Phase::fencing);
        EXPECT_TRUE((one.phase() == Phase::fencing && one.ownership() == now) ||
                    (two.phase() == Phase::fencing && two.ownership() == now));
    }
}

}  // namespace
}  // namespace peplos::fabric
