#include "swarm/exhaustive.h"

#include <gtest/gtest.h>
#include <set>

#include "swarm/recording.h"

namespace peplos::swarm {
namespace {

TEST(Exhaustive, EverySingleStepSurvivesEveryCrash) {
    ExhaustiveReport report = run_exhaustive({.depth = 1});
    EXPECT_EQ(report.problem, "") << report.sequence;
    EXPECT_EQ(report.sequences, kStepCount);
    EXPECT_GT(report.distinct_states, 50u);
    EXPECT_GT(report.crash_states, report.crash_points);
}

TEST(Exhaustive, FindsMistakes) {
    for (const char* mistake : {"journal.volatile_commit", "drain.seals_before_sync",
                                "write.volatile_payload", "grow.is_not_journaled"}) {
        EXPECT_NE(run_exhaustive({.depth = 1, .planted = mistake}).problem, "") << mistake;
    }
}

TEST(Exhaustive, NamesOfSteps) {
    std::string wrong;
    std::vector<Step> want{Step::drain, Step::restart};
    EXPECT_EQ(steps_of("drain,restart", &wrong), want);
    EXPECT_EQ(wrong, "");
    EXPECT_TRUE(steps_of("drain,rest", &wrong).empty());
    EXPECT_EQ(wrong, "rest");
}

// What is in flight or waits for a sync may be there, not be there, or be cut.
TEST(Recording, KnowsWhatAPowerLossMayLeave) {
    int changes = 0;
    Recording recording([&] { ++changes; });
    auto write = [](uint64_t block, sim::Durability durability) {
        Buffer data = Buffer::allocate(kBlockBytes);
        std::memset(data.data(), static_cast<int>(block), kBlockBytes);
        return sim::DiskMedia::Request{.operation = sim::DiskOperation::write,
                                       .durability = durability,
                                       .offset = block * kBlockBytes,
                                       .bytes = kBlockBytes,
                                       .buffers = {std::move(data)}};
    };
    auto sums = [&recording] {
        std::set<uint64_t> out;
        recording.each_image([&](const Image& image) { out.insert(image.sum()); });
        return out.size();
    };
    EXPECT_EQ(sums(), 1u);
    recording.submitted(1, write(5, sim::Durability::durable));
    EXPECT_EQ(sums(), 3u);  // none, all, the first half
    recording.completed(1, true);
    EXPECT_EQ(sums(), 1u);
    recording.submitted(2, write(6, sim::Durability::volatile_));
    recording.completed(2, true);
    EXPECT_EQ(sums(), 3u);
    recording.submitted(3, {.operation = sim::DiskOperation::sync});
    recording.completed(3, true);
    EXPECT_EQ(sums(), 1u);
    EXPECT_EQ(changes, 5);
}

}  // namespace
}  // namespace peplos::swarm
