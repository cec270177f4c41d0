#include "replica/segment_repair.h"
#include "volume/copies_test_rig.h"
#include "volume/segment_writer.h"

namespace peplos::volume {
namespace {

using format::SegmentKind;
using std::chrono::seconds;

Task<Result<void>> some_writes(CopiesRig& rig) {
    CO_TRY(co_await rig.write(0, 64 * kKiB));
    CO_TRY(co_await rig.write(2 * kMiB, 512 * kKiB));
    CO_TRY(co_await rig.write(40 * kKiB, 4 * kKiB));
    co_return co_await rig.write(2 * kMiB + 8 * kKiB, 4 * kKiB);
}

Task<Result<void>> drain_and_checkpoint(CopiesRig& rig) {
    CO_TRY(co_await rig.volume->drain());
    co_return co_await rig.volume->checkpoint();
}

std::optional<SegmentView> find_segment(CopiesRig& rig, SegmentKind kind) {
    for (const SegmentView& segment : rig.volume->segments()) {
        if (segment.kind == kind && segment.live_count != 0) return segment;
    }
    return std::nullopt;
}

// The other node, beside the owner's, that has the segment.
uint32_t other_node_of(CopiesRig& rig, const SegmentId& id) {
    for (uint32_t i = 1; i < kTestNodes; ++i) {
        if (rig.nodes[i].is_up() && rig.nodes[i].device->segments().find(id)) return i;
    }
    return 0;
}

void spoil(CopiesRig& rig, uint32_t node, const SegmentId& id, uint64_t offset) {
    rig.world.disk(CopiesRig::path(node)).corrupt(rig.device_offset(node, id) + offset, 64);
}

Result<void> check_on(CopiesRig& rig, uint32_t node, const SegmentId& id) {
    media::SegmentStore& store = rig.nodes[node].device->segments();
    return rig.world.run(*rig.nodes[node].process, replica::check_copy(store, store.find(id)));
}

TEST(Copies, EverySegmentLiesOnAllNodesOfItsGroup) {
    for (uint32_t copies : {1u, 2u, 3u}) {
        CopiesRig rig(copies, {.copies = copies});
        rig.make();
        ASSERT_FALSE(HasFatalFailure());
        ASSERT_OK(rig.run(some_writes(rig)));
        ASSERT_OK(rig.run(drain_and_checkpoint(rig)));
        EXPECT_FALSE(rig.volume->segments().empty());
        rig.expect_copies();
        rig.expect_all();
        rig.expect_no_leak();
        for (const SegmentView& segment : rig.volume->segments()) {
            for (uint32_t i = 0; i < kTestNodes; ++i) {
                if (rig.nodes[i].device->segments().find(segment.id))
                    EXPECT_TRUE(check_on(rig, i, segment.id));
            }
        }
    }
}

TEST(Copies, ABadCopyHereIsReadElsewhereAndMadeAnew) {
    for (SegmentKind kind : {SegmentKind::data, SegmentKind::large}) {
        CopiesRig rig(11);
        rig.make();
        ASSERT_OK(rig.run(some_writes(rig)));
        ASSERT_OK(rig.run(drain_and_checkpoint(rig)));
        auto segment = find_segment(rig, kind);
        ASSERT_TRUE(segment);
        for (uint64_t i = 0; i < 16; ++i)
            spoil(rig, 0, segment->id, format::segment_block_offset(i));
        rig.expect_all();
        rig.world.run_for(seconds(10));
        EXPECT_TRUE(check_on(rig, 0, segment->id));
        EXPECT_EQ(rig.nodes[0].service->mended_count(), 1u);
        rig.crash_node(1);
        rig.crash_node(2);
        rig.crash_node(3);
        rig.expect_all();
    }
}

TEST(Copies, AScrubMakesABadCopyAnew) {
    CopiesRig rig(12);
    rig.make();
    ASSERT_OK(rig.run(some_writes(rig)));
    ASSERT_OK(rig.run(drain_and_checkpoint(rig)));
    std::vector<SegmentView> segments = rig.volume->segments();
    for (const SegmentView& segment : segments) {
        spoil(rig, 0, segment.id, format::kSegmentDataOffset);
        auto found = rig.run(rig.volume->scrub(segment.index));
        ASSERT_TRUE(found);
        EXPECT_TRUE(found->problems.empty()) << found->problems[0];
        // A page is read elsewhere at once.
        if (segment.kind != SegmentKind::map) EXPECT_FALSE(found->repaired.empty());
        rig.world.run_for(seconds(5));
        EXPECT_TRUE(check_on(rig, 0, segment.id));
    }
    rig.crash_owner();
    rig.recover_owner();
    rig.expect_all();
    rig.expect_no_leak();
}

TEST(Copies, ABadCopyElsewhereIsMadeAnewByItsNode) {
    CopiesRig rig(13);
    rig.make();
    ASSERT_OK(rig.run(some_writes(rig)));
    ASSERT_OK(rig.run(drain_and_checkpoint(rig)));
    auto segment = find_segment(rig, SegmentKind::data);
    ASSERT_TRUE(segment);
    uint32_t node = other_node_of(rig, segment->id);
    spoil(rig, node, segment->id, format::segment_block_offset(0));
    EXPECT_FALSE(check_on(rig, node, segment->id));
    media::SegmentInfo info = rig.nodes[node].device->segments().find(segment->id).info();
    replica::SegmentCopy copy{info.id, info.lineage, info.group, info.kind, info.unit_count};
    auto mended = rig.world.run(*rig.nodes[node].process,
                                rig.nodes[node].service->mend(info.volume, info.lineage, copy));
    ASSERT_TRUE(mended) << mended.error().text();
    EXPECT_TRUE(*mended);
    EXPECT_TRUE(check_on(rig, node, segment->id));
    rig.restart_node(node);
    EXPECT_TRUE(check_on(rig, node, segment->id));
}

TEST(Copies, ADrainGoesOnWithoutANodeThatDied) {
    for (uint64_t seed = 20; seed < 28; ++seed) {
        CopiesRig rig(seed);
        rig.make();
        ASSERT_OK(rig.run(some_writes(rig)));
        ASSERT_OK(rig.run(drain_and_checkpoint(rig)));
        ASSERT_OK(rig.run(some_writes(rig)));
        // In the middle: when the node has its first segment of this drain.
        uint32_t victim = 1 + static_cast<uint32_t>(seed % 3);
        size_t had = rig.ids_on(victim).size();
        bool is_done = false;
        Result<void> outcome;
        struct Work {
            static Task<void> run(CopiesRig& rig, Result<void>& outcome, bool& is_done) {
                outcome = co_await drain_and_checkpoint(rig);
                is_done = true;
            }
        };
        runtime::spawn(rig.owner().executor(), Work::run(rig, outcome, is_done));
        while (!is_done && rig.ids_on(victim).size() == had && rig.world.step()) {
        }
        if (rig.nodes[victim].is_up()) rig.crash_node(victim);
        for (int i = 0; i < 60 && !is_done; ++i)
            rig.world.run_for(seconds(1));
        ASSERT_TRUE(is_done);
        ASSERT_TRUE(outcome) << outcome.error().text() << " seed " << seed;
        rig.expect_all();
        rig.start_node(victim);
        rig.crash_owner();
        rig.recover_owner();
        ASSERT_FALSE(HasFatalFailure());
        rig.expect_all();
        rig.expect_copies();
        rig.expect_no_leak();
        ASSERT_FALSE(HasFailure()) << "seed " << seed;
    }
}

TEST(Copies, LargeWritesGoOnWithoutANodeThatDied) {
    CopiesRig rig(31);
    rig.make();
    ASSERT_OK(rig.run(rig.write(0, 512 * kKiB)));
    for (uint32_t i = 1; i < kTestNodes; ++i) {
        rig.crash_node(i);
        ASSERT_OK(rig.run(rig.write(i * kMiB, 512 * kKiB)));
    }
    rig.expect_all();
    // Nobody is left: segments cannot be made, the journal still takes writes.
    EXPECT_FALSE(rig.run(rig.volume->drain()));
    rig.expect_all();
    EXPECT_FALSE(rig.volume->faulted());
    rig.start_node(2);
    rig.world.run_for(seconds(15));
    ASSERT_OK(rig.run(drain_and_checkpoint(rig)));
    rig.expect_copies();
    rig.crash_owner();
    rig.recover_owner();
    rig.expect_all();
    EXPECT_NE(rig.world.faults().probe_count("volume.write.other_group"), 0u);
}

TEST(Copies, ANodeThatWasDownGetsWhatItLacks) {
    CopiesRig rig(32);
    rig.make();
    ASSERT_OK(rig.run(some_writes(rig)));
    ASSERT_OK(rig.run(drain_and_checkpoint(rig)));
    auto segment = find_segment(rig, SegmentKind::data);
    ASSERT_TRUE(segment);
    uint32_t node = other_node_of(rig, segment->id);
    ASSERT_NE(node, 0u);
    ASSERT_OK(rig.world.run(*rig.nodes[node].process,
                            rig.nodes[node].device->segments().remove(segment->id)));
    EXPECT_EQ(rig.copies_of(segment->id), 1u);
    rig.crash_owner();
    rig.recover_owner();
    rig.expect_copies();
    EXPECT_TRUE(check_on(rig, node, segment->id));
    rig.expect_all();
}

TEST(Copies, TheOwnersOwnCopyMayBeMissing) {
    CopiesRig rig(33);
    rig.make();
    ASSERT_OK(rig.run(some_writes(rig)));
    ASSERT_OK(rig.run(drain_and_checkpoint(rig)));
    for (const SegmentId& id : rig.ids_on(0))
        ASSERT_OK(rig.run(rig.nodes[0].device->segments().remove(id)));
    rig.crash_owner();
    rig.recover_owner();
    ASSERT_FALSE(HasFatalFailure());
    rig.expect_all();
    rig.expect_copies();
    for (const SegmentId& id : rig.ids_on(0))
        EXPECT_TRUE(check_on(rig, 0, id));
    rig.expect_all();
}

TEST(Copies, AnOwnerThatWasFencedChangesNothing) {
    CopiesRig rig(34);
    rig.make();
    ASSERT_OK(rig.run(some_writes(rig)));
    ASSERT_OK(rig.run(drain_and_checkpoint(rig)));
    ASSERT_OK(rig.run(some_writes(rig)));
    std::array<std::vector<SegmentId>, kTestNodes> before;
    replica::Claim newer{NodeId(3), Epoch(rig.claims + 1), OpenToken(5)};
    for (uint32_t i = 1; i < kTestNodes; ++i) {
        before[i] = rig.ids_on(i);
        rig.nodes[i].fences[CopiesRig::kVolume] = newer;
    }
    auto drained = rig.run(rig.volume->drain());
    ASSERT_FALSE(drained);
    EXPECT_EQ(drained.error().code(), Code::fenced);
    EXPECT_TRUE(rig.volume->faulted());
    rig.world.run_for(seconds(10));
    for (uint32_t i = 1; i < kTestNodes; ++i)
        EXPECT_EQ(rig.ids_on(i), before[i]);
    // Deletes neither.
    replica::SegmentActor old{CopiesRig::kVolume, CopiesRig::kLineage, rig.claim()};
    for (uint32_t i = 1; i < kTestNodes; ++i) {
        if (before[i].empty()) continue;
        replica::RemoteSegments* remote = rig.nodes[0].placement->segments_on(NodeId(i + 1));
        auto removed = rig.run(remote->remove(old, before[i]));
        ASSERT_FALSE(removed);
        EXPECT_EQ(removed.error().code(), Code::fenced);
        EXPECT_EQ(rig.ids_on(i), before[i]);
    }
}

TEST(Copies, DestroyLeavesNothingAnywhere) {
    CopiesRig rig(35, {.copies = 3});
    rig.make();
    ASSERT_OK(rig.run(some_writes(rig)));
    ASSERT_OK(rig.run(drain_and_checkpoint(rig)));
    ASSERT_OK(rig.run(rig.write(6 * kMiB, 256 * kKiB)));
    rig.stop_volume();
    rig.crash_node(2);
    auto early = rig.run(Volume::destroy(*rig.resources, CopiesRig::kVolume, rig.claim()));
    ASSERT_FALSE(early);
    rig.start_node(2);
    rig.world.run_for(seconds(5));
    ASSERT_OK(rig.run(Volume::destroy(*rig.resources, CopiesRig::kVolume, rig.claim())));
    for (uint32_t i = 0; i < kTestNodes; ++i)
        EXPECT_TRUE(rig.ids_on(i).empty());
}

TEST(Copies, AFullNodeIsLeftOut) {
    CopiesOptions options;
    options.disk_bytes_of[1] = 56 * kMiB;
    options.disk_bytes_of[2] = 56 * kMiB;
    CopiesRig rig(36, options);
    rig.make();
    ASSERT_FALSE(HasFatalFailure());
    for (int round = 0; round < 6; ++round) {
        for (uint64_t at = 0; at < 12 * kMiB; at += 512 * kKiB) {
            if (at / (512 * kKiB) % 3 == static_cast<uint64_t>(round) % 3) continue;
            ASSERT_OK(rig.run(rig.write(at, 512 * kKiB)));
        }
        auto outcome = rig.run(drain_and_checkpoint(rig));
        ASSERT_TRUE(outcome) << outcome.error().text() << " round " << round;
    }
    rig.expect_all();
    rig.expect_copies();
    rig.expect_no_leak();
}

}  // namespace
}  // namespace peplos::volume
