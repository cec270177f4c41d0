#include <gtest/gtest.h>
#include <set>

#include "base/fault.h"
#include "model/scopes.h"
#include "model/search.h"

namespace peplos::model {
namespace {

// The whole scopes are `peplos-model`'s, in a release build; here is what fits a unit test.
TEST(Model, ASmallScopeHoldsInEveryOrder) {
    Scope scope = *find_scope("takeover");
    scope.budget.crashes = 0;
    scope.is_slow_disk = false;
    SearchReport report = search(scope, {});
    EXPECT_EQ(report.problem, "");
    EXPECT_TRUE(report.is_complete);
    EXPECT_GT(report.states, 100u);
}

TEST(Model, TheBeginningOfEveryScopeHolds) {
    for (const Scope& scope : scopes())
        EXPECT_EQ(search(scope, {.states_max = 300}).problem, "") << scope.name;
}

TEST(Model, AStateSurvivesItsEncoding) {
    const Scope& scope = *find_scope("takeover");
    Encoded bytes, again;
    World::first(scope).encode(scope, bytes);
    World::decode(scope, bytes.data()).encode(scope, again);
    EXPECT_EQ(bytes, again);
}

// A mistake that is listed has its place in the code and its scope, and the other way round.
TEST(Model, EveryMistakeIsPlantedSomewhere) {
    std::set<std::string_view> listed;
    for (const Mistake& mistake : mistakes()) {
        listed.insert(mistake.name);
        EXPECT_NE(find_scope(mistake.scope), nullptr) << mistake.name;
    }
    std::set<std::string_view> planted;
    for (const base::Site* site = base::sites_begin; site != base::sites_end; ++site) {
        std::string_view name = site->name;
        if (site->kind == base::SiteKind::planted && name.starts_with("protocol."))
            planted.insert(name);
    }
    EXPECT_EQ(listed, planted);
}

TEST(Monitor, ASettledWriteNeverFlips) {
    Monitor monitor;
    monitor.begin_write(1, Epoch(1));
    monitor.settle(Epoch(2));
    EXPECT_TRUE(monitor.read_now(0));
    EXPECT_FALSE(monitor.read_now(1));
}

TEST(Monitor, AReadMayReturnWhatWasThereWhileItRan) {
    Monitor monitor;
    monitor.begin_read();
    monitor.begin_write(1, Epoch(1));
    EXPECT_TRUE(monitor.end_write(1));
    EXPECT_TRUE(monitor.end_read(0));
    monitor.begin_read();
    EXPECT_FALSE(monitor.end_read(0));
}

}  // namespace
}  // namespace peplos::model
