#include "volume/segment_table.h"

#include "volume/map_test_store.h"

namespace peplos::volume {
namespace {

using map_testing::MapFixture;
using ::testing::ElementsAre;
using ::testing::IsEmpty;

SegmentEntry entry_of(uint32_t sequence, uint32_t block_count, uint64_t lsn = 1) {
    SegmentEntry entry;
    entry.id = {VolumeId(9), 1, sequence};
    entry.kind = static_cast<uint8_t>(format::SegmentKind::data);
    entry.state = SegmentState::sealed;
    entry.block_count = block_count;
    entry.sealed_lsn = entry.age_lsn = Lsn(lsn);
    return entry;
}

TEST(SegmentTable, HandsOutTheLowestFreeIndex) {
    SegmentTable table;
    EXPECT_EQ(*table.reserve(), 0u);
    EXPECT_EQ(*table.reserve(), 1u);
    EXPECT_EQ(*table.reserve(), 2u);
    table.release(1);
    EXPECT_EQ(table.find(0), nullptr) << "reserved is not in use";
    EXPECT_EQ(*table.reserve(), 1u);
    ASSERT_TRUE(table.add(5, entry_of(1, 10)));
    EXPECT_EQ(*table.reserve(), 3u);
    EXPECT_EQ(*table.reserve(), 4u);
    EXPECT_EQ(*table.reserve(), 6u);
}

TEST(SegmentTable, AddIsIdempotentAndRefusesLies) {
    SegmentTable table;
    ASSERT_TRUE(table.add(0, entry_of(1, 10)));
    table.count_live(0, 3);
    ASSERT_TRUE(table.add(0, entry_of(1, 12)));
    EXPECT_EQ(table.find(0)->live_count, 3u);
    EXPECT_EQ(table.find(0)->block_count, 12u);
    EXPECT_EQ(table.total_block_count(), 12u);
    EXPECT_EQ(table.add(0, entry_of(2, 10)).error().code(), Code::corrupt);
    EXPECT_EQ(table.add(0, entry_of(1, 2)).error().code(), Code::corrupt);
    EXPECT_EQ(table.add(1u << 26, entry_of(3, 2)).error().code(), Code::corrupt);
    EXPECT_EQ(table.add(60'000'000, entry_of(3, 2)).error().code(), Code::corrupt);
}

TEST(SegmentTable, ChoosesByAgeAndUtilisation) {
    SegmentTable table;
    const auto add = [&](uint32_t index, uint32_t live, uint64_t lsn) {
        ASSERT_TRUE(table.add(index, entry_of(index + 1, 100, lsn)));
        table.count_live(index, live);
    };
    add(0, 50, 900);  // half alive, young
    add(1, 50, 100);  // half alive, old
    add(2, 100, 1);   // full
    add(3, 0, 1);     // dead: nothing to clean
    add(4, 10, 900);  // nearly dead, young
    add(5, 90, 100);  // nearly full, old
    std::vector<uint32_t> order;
    for (const CleanCandidate& c : table.candidates(Lsn(1000), 10))
        order.push_back(c.index);
    EXPECT_THAT(order, ElementsAre(1, 4, 5, 0));
    EXPECT_EQ(table.candidates(Lsn(1000), 2).size(), 2u);
    EXPECT_NEAR(table.candidates(Lsn(1000), 1)[0].score, 901 * 0.5 / 1.5, 1e-9);
}

TEST(SegmentTable, IndexIsReusedOnlyAfterACheckpointWithoutIt) {
    MapFixture f(100'000);
    f.write(Lsn(1), {1, 2});
    f.write(Lsn(2), {1, 2});
    EXPECT_THAT(f.map->segments().take_deletable(), IsEmpty()) << "its seal record may be replayed";
    ASSERT_TRUE(f.map->begin_checkpoint(Lsn(2), Lsn(2)));
    Result<RootRef> root = map_testing::run(f.context, f.map->write_checkpoint());
    ASSERT_TRUE(root.has_value());
    EXPECT_NE(f.map->segments().find(0), nullptr);
    f.map->commit_checkpoint();
    EXPECT_EQ(f.map->segments().find(0), nullptr);
    auto dead = f.map->segments().take_deletable();
    ASSERT_EQ(dead.size(), 1u);
    EXPECT_EQ(dead[0].id.sequence, 1u);
    EXPECT_EQ(*f.map->segments().reserve(), 0u);
    f.map->segments().release(0);
    // Dead after the checkpoint that covers its record: deletable at once, the index is not free.
    f.write(Lsn(3), {1, 2});
    dead = f.map->segments().take_deletable();
    ASSERT_EQ(dead.size(), 1u);
    EXPECT_EQ(dead[0].id.sequence, 2u);
    EXPECT_EQ(dead[0].index, 1u);
    EXPECT_NE(f.map->segments().find(1), nullptr);
    EXPECT_THAT(f.map->segments().take_deletable(), IsEmpty()) << "handed out once";
    f.checkpoint(Lsn(3));
    EXPECT_EQ(f.map->segments().find(1), nullptr);
}

TEST(SegmentTable, OpenSegmentsAreNeverDead) {
    MapFixture f(100'000);
    SegmentEntry open = entry_of(50, 10);
    open.state = SegmentState::open;
    const uint32_t index = *f.map->segments().reserve();
    ASSERT_TRUE(f.map->segments().add(index, open));
    f.checkpoint(Lsn(1));
    f.checkpoint(Lsn(2));
    ASSERT_NE(f.map->segments().find(index), nullptr);
    f.map->segments().seal(index, 10);
    f.checkpoint(Lsn(3));
    EXPECT_EQ(f.map->segments().find(index), nullptr);
}

}  // namespace
}  // namespace peplos::volume
