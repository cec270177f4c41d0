#include "fabric/leases.h"

#include <gtest/gtest.h>

#include "control/memory_store.h"
#include "sim/world.h"

namespace peplos::fabric {
namespace {

using std::chrono::milliseconds;
using std::chrono::seconds;

// Nodes 1 to 5 hear nobody; the first and the last of them have no lease at all.
class LeasesTest : public testing::Test {
  protected:
    void SetUp() override {
        for (uint64_t i = 1; i <= 5; ++i) {
            if (i != 1 && i != 5) renewers.push_back(make(i));
        }
        watcher = make(9);
    }
    void TearDown() override {
        for (auto& one : renewers)
            world.run(one->stop());
        world.run(watcher->stop());
    }
    std::unique_ptr<Leases> make(uint64_t id) {
        auto silent = [id] {
            std::vector<NodeId> out;
            for (uint64_t i = 1; i <= 5 && id == 9; ++i)
                out.emplace_back(i);
            return out;
        };
        auto made = std::make_unique<Leases>(world.env(), NodeId(id), store, silent);
        made->start();
        return made;
    }
    std::string held() const {
        std::string out;
        for (uint64_t i = 1; i <= 5; ++i)
            out += watcher->holds(NodeId(i)) ? '+' : '-';
        return out;
    }

    sim::World world{7};
    control::MemoryStore store;
    std::vector<std::unique_ptr<Leases>> renewers;
    std::unique_ptr<Leases> watcher;
};

TEST_F(LeasesTest, WhoDoesNotRenewForATermHoldsNone) {
    EXPECT_EQ(held(), "+++++") << "nobody has been looked at";
    world.run_for(seconds(5));
    EXPECT_EQ(held(), "+++++") << "within the term";
    world.run_for(seconds(3));
    EXPECT_EQ(held(), "-+++-");
    world.run(renewers[1]->stop());
    world.run_for(seconds(4));
    EXPECT_EQ(held(), "-+++-");
    world.run_for(seconds(4));
    EXPECT_EQ(held(), "-+-+-");
}

// While the store is away nobody can renew, and afterwards everybody has a term to.
TEST_F(LeasesTest, AnOutageCostsNobodyItsLease) {
    world.run_for(seconds(10));
    for (int outage : {1, 3, 4, 5, 6, 20}) {
        store.set_available(false);
        for (int i = 0; i < outage * 10; ++i) {
            world.run_for(milliseconds(100));
            ASSERT_EQ(held().substr(1, 3), "+++") << outage;
        }
        store.set_available(true);
        for (int i = 0; i < 50; ++i) {
            world.run_for(milliseconds(100));
            ASSERT_EQ(held().substr(1, 3), "+++") << outage;
        }
    }
    world.run_for(seconds(10));
    EXPECT_EQ(held(), "-+++-");
}

}  // namespace
}  // namespace peplos::fabric
