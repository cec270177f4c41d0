#include "volume/block_map.h"

#include <map>
#include <set>

#include "volume/map_test_store.h"

namespace peplos::volume {
namespace {

using map_testing::MapFixture;
using map_testing::run;

constexpr uint64_t kTiBBlocks = kTiB / kBlockBytes;

TEST(BlockMap, UnmappedReadsAsNothing) {
    MapFixture f(16 * kTiBBlocks);
    std::array<MapEntry, 3000> out;
    EXPECT_TRUE(f.map->lookup_cached(Lba(5'000'000'000 - out.size() - 1000'000'000), out));
    for (const MapEntry& entry : out)
        EXPECT_FALSE(entry);
    EXPECT_LT(f.map->memory_bytes(), 64 * kKiB);
    EXPECT_EQ(f.store.read_count_, 0u);
}

TEST(BlockMap, AppliesAndLooksUp) {
    MapFixture f(10'000);
    f.write(Lsn(1), {0, 1, 1023, 1024, 9'999});
    EXPECT_EQ(f.lookup(1023), MapFixture::entry_at(0, 2));
    EXPECT_EQ(f.lookup(9'999), MapFixture::entry_at(0, 4));
    EXPECT_FALSE(f.lookup(2));
    EXPECT_EQ(f.map->mapped_count(), 5u);
    f.write(Lsn(2), {1, 5});
    EXPECT_EQ(f.map->segments().find(0)->live_count, 4u);
    EXPECT_EQ(f.map->segments().find(1)->live_count, 2u);
    const ZeroExtent zero{Lba(1), 1023};
    ASSERT_TRUE(f.apply({Lsn(3), std::span(&zero, 1), {}, {}}));
    EXPECT_FALSE(f.lookup(1023));
    EXPECT_TRUE(f.lookup(1024));
    EXPECT_EQ(f.map->mapped_count(), 3u);
    std::array<MapEntry, 2000> out;
    ASSERT_TRUE(f.map->lookup_cached(Lba(0), out));
    EXPECT_EQ(out[0], MapFixture::entry_at(0, 0));
    EXPECT_EQ(out[1024], MapFixture::entry_at(0, 3));
    f.expect_audit_clean();
}

TEST(BlockMap, RelocatesOnlyWhatIsUnchanged) {
    MapFixture f(10'000);
    f.write(Lsn(1), {10, 20, 30});
    f.write(Lsn(2), {20});
    const uint32_t to = f.add_segment(Lsn(3), 4);
    const std::vector<Relocation> moves = {
        {Lba(10), MapFixture::entry_at(0, 0).place, MapFixture::entry_at(to, 0)},
        {Lba(20), MapFixture::entry_at(0, 1).place, MapFixture::entry_at(to, 1)},
        {Lba(30), MapFixture::entry_at(0, 2).place, MapFixture::entry_at(to, 2)},
        {Lba(5000), MapFixture::entry_at(0, 2).place, MapFixture::entry_at(to, 3)},
    };
    ASSERT_TRUE(f.apply({Lsn(3), {}, {}, moves}));
    EXPECT_EQ(f.lookup(10), MapFixture::entry_at(to, 0));
    EXPECT_EQ(f.lookup(20), MapFixture::entry_at(1, 0));
    EXPECT_FALSE(f.lookup(5000));
    EXPECT_EQ(f.map->segments().find(0)->live_count, 0u);
    EXPECT_EQ(f.map->segments().find(to)->live_count, 2u);
    f.expect_audit_clean();
}

TEST(BlockMap, RefusesRecordsThatLie) {
    MapFixture f(1'000);
    const MapUpdate outside{Lba(1'000), MapFixture::entry_at(f.add_segment(Lsn(1), 1), 0)};
    EXPECT_EQ(f.apply({Lsn(1), {}, std::span(&outside, 1), {}}).error().code(), Code::corrupt);
    const MapUpdate unknown{Lba(1), MapFixture::entry_at(7, 0)};
    EXPECT_EQ(f.apply({Lsn(1), {}, std::span(&unknown, 1), {}}).error().code(), Code::corrupt);
    const ZeroExtent zero{Lba(500), 501};
    EXPECT_EQ(f.apply({Lsn(1), std::span(&zero, 1), {}, {}}).error().code(), Code::corrupt);
    EXPECT_EQ(f.map->mapped_count(), 0u);
}

TEST(BlockMap, ZeroOverUnmappedSpaceIsCheap) {
    MapFixture f(64 * kTiBBlocks);
    f.write(Lsn(1), {7, 3 * kTiBBlocks});
    const uint64_t before = f.map->memory_bytes();
    const ZeroExtent zero{Lba(0), 64 * kTiBBlocks};
    ASSERT_TRUE(f.apply({Lsn(2), std::span(&zero, 1), {}, {}}));
    EXPECT_EQ(f.map->mapped_count(), 0u);
    EXPECT_LE(f.map->memory_bytes(), before + 64);
    EXPECT_EQ(f.cache.bytes(), 0u) << "emptied leaves need no memory";
}

TEST(BlockMap, ARootRecordThatNamesNoPossiblePlaceIsRefused) {
    MapFixture f(kTiBBlocks);
    f.write(Lsn(1), {1, 2, 3});
    const RootRef good = f.checkpoint(Lsn(1));
    ASSERT_TRUE(f.reload(good));
    const auto refused = [&](auto change) {
        RootRef bad = good;
        change(bad);
        Result<void> loaded = f.reload(bad);
        return loaded ? Code::busy : loaded.error().code();
    };
    using R = RootRef;
    EXPECT_EQ(refused([](R& r) { r.bytes = format::kRootBytesMax + 512; }), Code::corrupt);
    EXPECT_EQ(refused([](R& r) { r.bytes += 1; }), Code::corrupt);
    EXPECT_EQ(refused([](R& r) { r.segment = {}; }), Code::corrupt);
    EXPECT_EQ(refused([](R& r) { r.sequence = 0; }), Code::corrupt);
    EXPECT_EQ(refused([](R& r) { r.segment_index = limits::kSegmentIndexMax + 1; }), Code::corrupt);
    EXPECT_EQ(refused([](R& r) { r.offset_units = limits::kSegmentBytesMax / 512; }),
              Code::corrupt);
    ASSERT_TRUE(f.reload(good));
}

TEST(BlockMap, CheckpointAndReload) {
    MapFixture f(3 * kTiBBlocks);
    std::vector<uint64_t> lbas;
    for (uint64_t i = 0; i < 2000; ++i)
        lbas.push_back(i);  // dense, sequential
    for (uint64_t i = 0; i < 700; ++i)
        lbas.push_back(10'240 + i);  // more than sparse
    for (uint64_t i = 0; i < 100; ++i)
        lbas.push_back(kTiBBlocks + i * 5000);
    f.write(Lsn(1), lbas);
    const RootRef root = f.checkpoint(Lsn(1));
    ASSERT_TRUE(f.reload(root));
    EXPECT_EQ(f.map->block_count(), 3 * kTiBBlocks);
    EXPECT_EQ(f.map->applied_lsn(), Lsn(1));
    EXPECT_EQ(f.map->mapped_count(), lbas.size());
    for (uint32_t i = 0; i < lbas.size(); ++i) {
        ASSERT_EQ(f.lookup(lbas[i]), MapFixture::entry_at(0, i)) << lbas[i];
    }
    f.expect_audit_clean();
    // Nothing changed: the next checkpoint writes a root, and moves pages into its segment.
    const uint64_t before = f.store.appended_bytes_;
    f.checkpoint(Lsn(2));
    EXPECT_LE(f.store.appended_bytes_ - before, 128 * kKiB);
}

TEST(BlockMap, LoadsOfOneLeafAreOneRead) {
    MapFixture f(kTiBBlocks);
    f.write(Lsn(1), {1, 2});
    ASSERT_TRUE(f.reload(f.checkpoint(Lsn(1))));
    f.store.hold_reads();
    const uint64_t before = f.store.read_count_;
    std::array<MapEntry, 8> out;
    int done = 0;
    for (size_t i = 0; i < out.size(); ++i) {
        runtime::spawn(f.context.get_executor(),
                       [](BlockMap& map, MapEntry* to, int* count) -> runtime::Task<void> {
                           Result<void> result = co_await map.lookup(Lba(2), std::span(to, 1));
                           CHECK(result.has_value());
                           ++*count;
                       }(*f.map, &out[i], &done));
    }
    f.context.restart();
    f.context.poll();
    EXPECT_EQ(done, 0);
    f.store.release_reads();
    f.context.restart();
    f.context.poll();
    EXPECT_EQ(done, 8);
    EXPECT_EQ(f.store.read_count_ - before, 1u);
    for (const MapEntry& entry : out)
        EXPECT_EQ(entry, MapFixture::entry_at(0, 1));
}

TEST(BlockMap, FailedApplyIsRepeated) {
    MapFixture f(kTiBBlocks);
    f.write(Lsn(1), {1, 100'000, 200'000});
    ASSERT_TRUE(f.reload(f.checkpoint(Lsn(1))));
    const uint32_t segment = f.add_segment(Lsn(2), 3);
    const std::vector<MapUpdate> updates = {{Lba(1), MapFixture::entry_at(segment, 0)},
                                            {Lba(100'000), MapFixture::entry_at(segment, 1)},
                                            {Lba(200'000), MapFixture::entry_at(segment, 2)}};
    f.store.reads_until_error_ = 1;
    EXPECT_EQ(f.apply({Lsn(2), {}, updates, {}}).error().code(), Code::unavailable);
    EXPECT_EQ(f.map->begin_checkpoint(Lsn(2), Lsn(2)).error().code(), Code::busy);
    ASSERT_TRUE(f.apply({Lsn(2), {}, updates, {}}));
    ASSERT_TRUE(f.apply({Lsn(2), {}, updates, {}})) << "a repeated record changes nothing";
    EXPECT_EQ(f.map->segments().find(segment)->live_count, 3u);
    f.expect_audit_clean();
}

TEST(BlockMap, GrowKeepsWhatIsThere) {
    MapFixture f(2'000);
    f.write(Lsn(1), {1'999});
    f.map->grow(Lsn(2), 5 * kTiBBlocks);
    f.write(Lsn(3), {2'000, 5 * kTiBBlocks - 1});
    ASSERT_TRUE(f.reload(f.checkpoint(Lsn(3))));
    EXPECT_EQ(f.map->block_count(), 5 * kTiBBlocks);
    EXPECT_EQ(f.lookup(1'999), MapFixture::entry_at(0, 0));
    EXPECT_EQ(f.lookup(5 * kTiBBlocks - 1), MapFixture::entry_at(1, 1));
}

TEST(BlockMap, CutIsExactUnderApplies) {
    MapFixture f(64 * 1024);
    std::vector<uint64_t> lbas;
    for (uint64_t i = 0; i < 64; ++i)
        lbas.push_back(i * 1024 + 3);
    f.write(Lsn(1), lbas);
    f.checkpoint(Lsn(1));
    f.write(Lsn(2), lbas);
    ASSERT_TRUE(f.map->begin_checkpoint(Lsn(2), Lsn(2)));
    // Everything that happens before and while the cut is written must not be in it.
    f.write(Lsn(3), lbas);
    f.write(Lsn(4), {4, 5000, 60'000});
    const ZeroExtent zero{Lba(0), 20 * 1024};
    ASSERT_TRUE(f.apply({Lsn(5), std::span(&zero, 1), {}, {}}));
    std::optional<Result<RootRef>> root;
    runtime::spawn(f.context.get_executor(),
                   [](BlockMap& map, std::optional<Result<RootRef>>* out) -> runtime::Task<void> {
                       *out = co_await map.write_checkpoint();
                   }(*f.map, &root));
    f.context.restart();
    for (uint64_t lsn = 6; !root; ++lsn) {
        f.context.poll_one();
        if (lsn < 40) f.write(Lsn(lsn), {lsn, 30'000 + lsn});
        f.context.restart();
    }
    ASSERT_TRUE(root->has_value()) << root->error().text();
    f.map->commit_checkpoint();
    f.expect_audit_clean();
    ASSERT_TRUE(f.reload(**root));
    EXPECT_EQ(f.map->applied_lsn(), Lsn(2));
    EXPECT_EQ(f.map->mapped_count(), 64u);
    for (uint32_t i = 0; i < lbas.size(); ++i) {
        EXPECT_EQ(f.lookup(lbas[i]).crc,
                  MapFixture::entry_at(f.lookup(3).place.segment_index(), i).crc);
    }
    EXPECT_FALSE(f.lookup(4));
    EXPECT_FALSE(f.lookup(30'006));
    f.expect_audit_clean();
}

TEST(BlockMap, FailedCheckpointLosesNothing) {
    for (uint32_t fail_at = 0; fail_at < 5; ++fail_at) {
        MapFixture f(64 * kTiBBlocks);
        std::vector<uint64_t> lbas;
        for (uint64_t i = 0; i < 200; ++i)
            lbas.push_back(i * 2048 * 1024 + i);
        f.write(Lsn(1), lbas);
        f.store.appends_until_error_ = fail_at;
        ASSERT_TRUE(f.map->begin_checkpoint(Lsn(1), Lsn(1)));
        Result<RootRef> failed = run(f.context, f.map->write_checkpoint());
        f.store.appends_until_error_.reset();
        if (failed) f.map->abort_checkpoint();
        f.expect_audit_clean();
        f.write(Lsn(2), {5});
        ASSERT_TRUE(f.reload(f.checkpoint(Lsn(2)))) << fail_at;
        EXPECT_EQ(f.map->mapped_count(), 201u);
        EXPECT_EQ(f.lookup(lbas[199]), MapFixture::entry_at(0, 199));
        f.expect_audit_clean();
    }
}

TEST(BlockMap, MapSegmentsAreCleaned) {
    MapFixture f(64 * kTiBBlocks, 64 * kMiB, 64 * kKiB);
    for (uint64_t round = 0; round < 60; ++round) {
        std::vector<uint64_t> lbas = {round * 5000};  // one leaf that stays, others that change
        for (uint64_t i = 0; i < 50; ++i)
            lbas.push_back(10'000'000 + i * 1024);
        f.write(Lsn(round + 1), lbas);
        f.checkpoint(Lsn(round + 1));
    }
    // About 130 live pages of 512 bytes, in 60 checkpoints: without cleaning each leaves a segment.
    EXPECT_LT(f.store.segments().size(), 8u);
    f.expect_audit_clean();
    ASSERT_TRUE(f.reload(f.checkpoint(Lsn(61))));
    EXPECT_EQ(f.map->mapped_count(), 110u);
    f.expect_audit_clean();
}

// A sixteenth of the 8 MiB that a TiB may take.
TEST(BlockMap, ResidentMemoryOfASixteenthOfATiB) {
    MapFixture f(kTiBBlocks / 16, 1 * kMiB, 32 * kMiB);
    // One block in every leaf, 2,000 blocks to a segment.
    uint64_t lsn = 1;
    for (uint64_t leaf = 0; leaf < 16'384; ++lsn) {
        std::vector<uint64_t> lbas;
        for (; lbas.size() < 2'000 && leaf < 16'384; ++leaf) {
            lbas.push_back(leaf * 1024 + leaf % 1024);
        }
        f.write(Lsn(lsn), lbas);
        f.checkpoint(Lsn(lsn));
        EXPECT_LE(f.cache.bytes(), f.cache.bytes_max());
    }
    const RootRef root = f.checkpoint(Lsn(lsn));
    const uint64_t before = f.store.read_count_;
    ASSERT_TRUE(f.reload(root));
    f.cache.drop_clean();
    EXPECT_EQ(f.map->leaf_count(), 16'384u);
    EXPECT_EQ(f.map->mapped_count(), 16'384u);
    EXPECT_LE(f.map->memory_bytes(), 512 * kKiB);
    EXPECT_LE(f.store.read_count_ - before, 16u) << "pages that lie together are read together";
    RecordProperty("resident_bytes", static_cast<int>(f.map->memory_bytes()));
    EXPECT_EQ(f.lookup(77 * 1024 + 77), MapFixture::entry_at(0, 77));
}

// One flipped byte anywhere in what a checkpoint wrote: found when loaded or when looked up.
TEST(BlockMap, CorruptPagesAreNeverServed) {
    MapFixture f(kTiBBlocks);
    f.write(Lsn(1), {1, 2'000'000});
    const RootRef root = f.checkpoint(Lsn(1));
    const auto intact = f.store.segments();
    uint32_t found = 0, harmless = 0;
    for (const auto& [id, bytes] : intact) {
        for (size_t i = format::kSegmentDataOffset; i < bytes.size(); i += 29) {
            f.store.segments() = intact;
            f.store.segments()[id][i] ^= std::byte{0x20};
            Result<void> result = f.reload(root);
            for (const uint64_t lba : {uint64_t{1}, uint64_t{2'000'000}}) {
                MapEntry entry;
                if (result) result = run(f.context, f.map->lookup(Lba(lba), std::span(&entry, 1)));
                if (result) {
                    ASSERT_EQ(entry, MapFixture::entry_at(0, lba == 1 ? 0 : 1));
                }
            }
            if (result) {
                ++harmless;  // padding
                continue;
            }
            ++found;
            ASSERT_EQ(result.error().code(), Code::corrupt) << result.error().text();
            ASSERT_THAT(result.error().message(), ::testing::HasSubstr("volume")) << i;
        }
    }
    EXPECT_GT(found, 500u);
    EXPECT_GT(harmless, 0u);
}

TEST(BlockMap, AWrongRootRecordIsRefused) {
    MapFixture f(kTiBBlocks);
    f.write(Lsn(1), {1});
    const RootRef good = f.checkpoint(Lsn(1));
    const auto code = [&](auto change) {
        RootRef ref = good;
        change(ref);
        Result<void> result = f.reload(ref);
        return result ? Code::busy : result.error().code();
    };
    EXPECT_EQ(code([](RootRef&) {}), Code::busy);
    EXPECT_EQ(code([](RootRef& r) { r.crc ^= 1; }), Code::corrupt);
    EXPECT_EQ(code([](RootRef& r) { r.sequence += 1; }), Code::corrupt);
    EXPECT_EQ(code([](RootRef& r) { r.bytes = 0; }), Code::corrupt);
    EXPECT_EQ(code([](RootRef& r) { r.bytes = 1 << 30; }), Code::corrupt);
    EXPECT_EQ(code([](RootRef& r) { r.offset_units -= 1; }), Code::corrupt);
    EXPECT_EQ(code([](RootRef& r) { r.segment_index += 100; }), Code::corrupt);
    EXPECT_EQ(code([](RootRef& r) { r.segment.sequence += 100; }), Code::not_found);
}

// Random records, evictions, checkpoints and restarts against a plain map.
class Model {
  public:
    explicit Model(uint64_t seed) : random_(seed), f_(kBlocks, 48 * kKiB, 128 * kKiB) {}

    void step() {
        const uint64_t dice = below(100);
        if (dice < 45) {
            write();
        } else if (dice < 60) {
            zero();
        } else if (dice < 75) {
            relocate();
        } else if (dice < 85) {
            look();
        } else if (dice < 90) {
            f_.cache.drop_clean();
        } else {
            checkpoint(dice);
        }
    }
    void verify() {
        std::vector<MapEntry> out(kBlocks);
        Result<void> result = run(f_.context, f_.map->lookup(Lba(0), out));
        ASSERT_TRUE(result.has_value()) << result.error().text();
        for (uint64_t lba = 0; lba < kBlocks; ++lba) {
            const auto at = model_.find(lba);
            const MapEntry want = at == model_.end() ? MapEntry{} : at->second;
            ASSERT_EQ(out[lba].place.bits, want.place.bits) << lba;
            ASSERT_EQ(out[lba].crc, want.crc) << lba;
        }
        ASSERT_EQ(f_.map->mapped_count(), model_.size());
        f_.expect_audit_clean();
    }

  private:
    static constexpr uint64_t kBlocks = 40 * 1024;
    uint64_t below(uint64_t bound) { return random_.below(bound); }

    void write() {
        std::set<uint64_t> lbas;
        const uint64_t start = below(kBlocks), count = 1 + below(300);
        const bool sequential = below(2) == 0;
        for (uint64_t i = 0; i < count; ++i) {
            lbas.insert(sequential ? (start + i) % kBlocks : below(kBlocks));
        }
        const uint32_t segment = f_.add_segment(++lsn_, static_cast<uint32_t>(lbas.size()));
        std::vector<MapUpdate> updates;
        for (uint64_t lba : lbas) {
            const MapEntry entry =
                MapFixture::entry_at(segment, static_cast<uint32_t>(updates.size()));
            updates.push_back({Lba(lba), entry});
            model_[lba] = entry;
        }
        commit({lsn_, {}, updates, {}});
    }
    void zero() {
        const uint64_t first = below(kBlocks);
        const ZeroExtent extent{Lba(first), below(std::min<uint64_t>(kBlocks - first, 5000) + 1)};
        model_.erase(model_.lower_bound(first), model_.lower_bound(first + extent.block_count));
        ++lsn_;
        commit({lsn_, std::span(&extent, 1), {}, {}});
    }
    void relocate() {
        if (model_.empty()) return;
        const uint32_t segment = f_.add_segment(++lsn_, 200);
        std::vector<Relocation> moves;
        for (auto at = model_.lower_bound(below(kBlocks)); at != model_.end() && moves.size() < 200;
             ++at) {
            if (below(3) == 0) continue;
            const MapEntry entry =
                MapFixture::entry_at(segment, static_cast<uint32_t>(moves.size()));
            const bool stale = below(4) == 0;
            moves.push_back(
                {Lba(at->first), stale ? Place::block(0, 31 * kMiB) : at->second.place, entry});
            if (!stale) at->second = entry;
        }
        commit({lsn_, {}, {}, moves});
    }
    void look() {
        const uint64_t lba = below(kBlocks);
        const auto at = model_.find(lba);
        ASSERT_EQ(f_.lookup(lba), at == model_.end() ? MapEntry{} : at->second) << lba;
    }
    void commit(const MapChange& change) {
        const Result<void> result = f_.apply(change);
        ASSERT_TRUE(result.has_value()) << result.error().text();
    }
    // A checkpoint with records applied between its steps; at times aborted, at times a restart
    // follows, which brings back the state at the cut.
    void checkpoint(uint64_t dice) {
        if (in_checkpoint_) return;
        in_checkpoint_ = true;
        const std::map<uint64_t, MapEntry> at_cut = model_;
        const uint32_t sequence_at_cut = f_.data_sequence;
        const Lsn cut = lsn_;
        ASSERT_TRUE(f_.map->begin_checkpoint(cut, cut));
        std::optional<Result<RootRef>> root;
        if (below(8) == 0) f_.store.appends_until_error_ = below(4);
        runtime::spawn(
            f_.context.get_executor(),
            [](BlockMap& map, std::optional<Result<RootRef>>* out) -> runtime::Task<void> {
                *out = co_await map.write_checkpoint();
            }(*f_.map, &root));
        for (int i = 0; !root; ++i) {
            f_.context.restart();
            f_.context.poll_one();
            if (i < 6) step();
        }
        f_.store.appends_until_error_.reset();
        in_checkpoint_ = false;
        if (!*root) return;
        if (dice >= 98) {
            f_.map->abort_checkpoint();
            return;
        }
        f_.map->commit_checkpoint();
        if (dice >= 94) {
            f_.remove_dead();
            return;
        }
        const Result<void> loaded = f_.reload(**root);
        ASSERT_TRUE(loaded.has_value()) << loaded.error().text();
        f_.remove_dead();
        model_ = at_cut;
        lsn_ = cut;
        (void)sequence_at_cut;
        verify();
    }

    sim::Random random_;
    MapFixture f_;
    std::map<uint64_t, MapEntry> model_;
    struct Counter {
        uint64_t value = 0;
        Lsn operator++() { return Lsn(++value); }
        operator Lsn() const { return Lsn(value); }
        Counter& operator=(Lsn lsn) {
            value = lsn.value;
            return *this;
        }
    } lsn_;
    bool in_checkpoint_ = false;
};

TEST(BlockMap, BehavesLikeAPlainMap) {
    for (uint64_t seed = 1; seed <= 6; ++seed) {
        SCOPED_TRACE(seed);
        Model model(seed);
        for (int i = 0; i < 150; ++i) {
            model.step();
            if (::testing::Test::HasFatalFailure()) return;
        }
        model.verify();
        if (::testing::Test::HasFatalFailure()) return;
    }
}

}  // namespace
}  // namespace peplos::volume
