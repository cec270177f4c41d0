#include <gtest/gtest.h>
#include <set>

#include "base/fault.h"
#include "swarm/cluster_run.h"
#include "swarm/planted.h"
#include "swarm/run.h"

namespace peplos::swarm {
namespace {

RunReport run(std::string_view plan, uint64_t seed, uint64_t operations,
              Edition edition = Edition::second) {
    Trace trace(30);
    Plan drawn = draw_plan(plan, seed, edition);
    drawn.operations = operations;
    RunReport report = Run(seed, drawn, trace).execute();
    if (!report.problem.empty()) {
        for (const std::string& line : trace.lines())
            std::printf("    %s\n", line.c_str());
    }
    return report;
}

TEST(Swarm, TheSameSeedIsTheSameRun) {
    RunReport first = run("swarm", 77, 400);
    RunReport second = run("swarm", 77, 400);
    EXPECT_EQ(first.problem, "");
    EXPECT_EQ(first.event_hash, second.event_hash);
    EXPECT_EQ(first.counts.events, second.counts.events);
    EXPECT_NE(first.event_hash, run("swarm", 78, 400).event_hash);
}

TEST(Swarm, SomeSeedsOfEachPlan) {
    for (std::string_view plan : plan_names()) {
        for (uint64_t seed = 1; seed <= 3; ++seed)
            EXPECT_EQ(run(plan, seed, 500).problem, "") << plan << " seed " << seed;
    }
}

RunReport run_cluster(uint64_t seed) {
    Trace trace(30);
    ClusterPlan plan = draw_cluster_plan(seed);
    plan.operations = 300;
    plan.faults = 8;
    RunReport report = ClusterRun(seed, plan, trace).execute();
    if (!report.problem.empty()) {
        for (const std::string& line : trace.lines())
            std::printf("    %s\n", line.c_str());
    }
    return report;
}

TEST(ClusterSwarm, TheSameSeedIsTheSameRun) {
    RunReport first = run_cluster(1);
    EXPECT_EQ(first.problem, "");
    EXPECT_EQ(first.event_hash, run_cluster(1).event_hash);
    EXPECT_NE(first.event_hash, run_cluster(2).event_hash);
}

// A mistake that is listed has its place in the code, and the other way round.
TEST(Swarm, EveryMistakeIsPlantedSomewhere) {
    std::set<std::string_view> listed;
    for (const Mistake& mistake : kMistakes)
        listed.insert(mistake.name);
    std::set<std::string_view> planted;
    for (const base::Site* site = base::sites_begin; site != base::sites_end; ++site) {
        // Those of the protocol are found by `model`, those of members by replica's crash tests,
        // those of owners and claimers by its nemesis.
        const std::string_view name(site->name);
        bool is_ours = !name.starts_with("protocol.") && !name.starts_with("member.") &&
                       !name.starts_with("owner.") && !name.starts_with("claimer.");
        if (site->kind == base::SiteKind::planted && is_ours) planted.insert(site->name);
    }
    EXPECT_EQ(listed, planted);
}

// Each of these found a bug once.
TEST(Swarm, SeedsThatFoundBugs) {
    struct Seed {
        std::string_view plan;
        uint64_t seed;
        Edition edition = Edition::first;
    };
    constexpr Seed kSeeds[] = {
        // Two read-modify-writes side by side undid sectors of each other.
        {"crash", 25},
        {"crash", 51},
        {"crash", 59},
        // The last of them also: a drain shortened a segment before its record was durable.
        {"crash", 60},
        // Segments went before a seal covered the records that refer to them.
        {"swarm", 100319},
        {"disk", 100569},
        // A root that was written anew spoke of later records.
        {"swarm", 101004},
        // A volume was forgotten while the table still had a segment of it.
        {"crash", 100047},
        // A mount failed for good after two changes of unknown outcome in a row.
        {"swarm", 200356},
        // A change of the control store whose outcome stayed unknown made each later one conflict.
        {"swarm", 2},
        {"swarm", 7},
        {"swarm", 30},
        // The scan of a journal passed over the frame that showed that those before it were lost.
        {"damage", 506, Edition::second},
        {"damage", 563, Edition::second},
        // With one of two devices missing, large writes that lay there were taken for torn.
        {"swarm", 1000510, Edition::second},
        {"swarm", 1001650, Edition::second},
        {"disk", 1000372, Edition::second},
    };
    for (const Seed& s : kSeeds)
        EXPECT_EQ(run(s.plan, s.seed, 2'000, s.edition).problem, "")
            << s.plan << " seed " << s.seed;
}

}  // namespace
}  // namespace peplos::swarm
