#include "volume/map_salvage.h"

#include "volume/map_test_store.h"

// Maps of which pages are gone, and what is believed of the rest.
namespace peplos::volume {
namespace {

using format::PageKind;
using map_testing::MapFixture;
using map_testing::run;

// So many leaves that no checkpoint moves them together: older pages stay where they were, in a map
// segment that the root lists.
constexpr uint64_t kLeaves = 1200;
constexpr uint64_t kLeaf = limits::kLeafBlocks;
constexpr uint64_t kInteriorBlocks = uint64_t{format::kInteriorSlotCount} * kLeaf;

struct Salvaged : MapFixture {
    Salvaged() : MapFixture(kLeaves * kLeaf, 64 * kMiB, 2 * kMiB) {
        // Leaf 0 has eight blocks, leaf 1 four, each other one; all in one segment.
        std::vector<uint64_t> lbas{0, 1, 2, 3, 4, 5, 6, 7, kLeaf, kLeaf + 1, kLeaf + 2, kLeaf + 3};
        for (uint64_t leaf = 2; leaf < kLeaves; ++leaf)
            lbas.push_back(leaf * kLeaf);
        write(Lsn(1), lbas);
        checkpoint(Lsn(1));
    }
    // Blocks 4 to 7 are trimmed: leaf 0 is written anew, with four blocks.
    void change_leaf() {
        const std::array<ZeroExtent, 1> trim{ZeroExtent{Lba(4), 4}};
        CHECK(apply({Lsn(2), trim, {}, {}}).has_value());
        root = checkpoint(Lsn(2));
    }
    struct Found {
        SegmentId segment;
        uint64_t offset = 0;
        uint64_t bytes = 0;
    };
    // The newest page of that key.
    Found find(PageKind kind, uint64_t key) {
        Found out;
        uint64_t newest = 0;
        for (const auto& [id, bytes] : store.segments()) {
            for (uint64_t at = format::kSegmentDataOffset; at < bytes.size();
                 at += format::kPlaceUnitBytes) {
                auto page = format::outline_page(Bytes(bytes).subspan(at));
                if (!page || page->identity.kind != kind || page->identity.key != key) continue;
                if (page->identity.sequence < newest) continue;
                newest = page->identity.sequence;
                out = {id, at, page->bytes};
            }
        }
        CHECK(newest != 0);
        return out;
    }
    void spoil(const Found& page) {
        store.segments()[page.segment][page.offset + 70] ^= std::byte{1};
    }
    // A new process, which puts the map together.
    void salvage() {
        run(context, map->close());
        map.reset();
        make(0);
        std::vector<std::pair<SegmentId, uint64_t>> segments;
        for (const auto& [id, bytes] : store.segments())
            segments.emplace_back(id, bytes.size());
        work = std::make_unique<MapSalvage>(*map, std::move(segments));
        auto loaded = run(context, work->load(root, {}));
        ASSERT_TRUE(loaded) << loaded.error().text();
        EXPECT_FALSE(work->has_missing());
        auto proven = run(context, work->prove());
        ASSERT_TRUE(proven) << proven.error().text();
    }
    // Whether all that an interior page covers is lost.
    bool is_lost(uint64_t interior) {
        return std::ranges::any_of(work->losses(), [&](const ZeroExtent& loss) {
            return loss.first.value == interior * kInteriorBlocks && loss.block_count > kLeaf;
        });
    }

    RootRef root;
    std::unique_ptr<MapSalvage> work;
};

TEST(MapSalvage, ALostInteriorPageIsFoundAgainFromItsLeaves) {
    Salvaged f;
    f.change_leaf();
    f.spoil(f.find(PageKind::interior, 0));
    f.salvage();
    EXPECT_TRUE(f.work->losses().empty());
    EXPECT_EQ(f.work->findings().size(), 1u);
    EXPECT_FALSE(f.lookup(5));
    EXPECT_EQ(f.lookup(3), MapFixture::entry_at(0, 3));
    EXPECT_EQ(f.lookup(kLeaf + 2), MapFixture::entry_at(0, 10));
}

// Leaf 0 is there in its old version only, with four blocks too many, and leaf 1 with its four is
// missing: every count agrees, and the map is wrong.
TEST(MapSalvage, TwoErrorsThatCancelOutMakeTheMapDoubtful) {
    Salvaged f;
    f.change_leaf();
    f.spoil(f.find(PageKind::interior, 0));
    f.spoil(f.find(PageKind::leaf, 0));
    f.spoil(f.find(PageKind::leaf, 1));
    const auto old = f.find(PageKind::leaf, 0);
    f.salvage();
    EXPECT_EQ(f.find(PageKind::leaf, 0).offset, old.offset) << "the old one is there";
    EXPECT_TRUE(f.is_lost(0));
    EXPECT_FALSE(f.is_lost(1)) << "what its own page proves is not in doubt";
}

// What shares a block with the lost page is looked at by itself: a leaf may have been there.
TEST(MapSalvage, BytesBesideALostPageThatAreNoPageMakeItDoubtful) {
    for (bool is_garbage : {false, true}) {
        Salvaged f;
        f.change_leaf();
        const auto page = f.find(PageKind::interior, 1);
        const uint64_t end = page.offset + page.bytes;
        ASSERT_NE(end % kBlockBytes, 0u);
        if (is_garbage) f.store.segments()[page.segment][end + 100] = std::byte{9};
        f.spoil(page);
        f.salvage();
        EXPECT_EQ(f.is_lost(1), is_garbage);
        EXPECT_FALSE(f.is_lost(0));
    }
}

}  // namespace
}  // namespace peplos::volume
