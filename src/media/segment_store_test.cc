#include "media/segment_store.h"

#include <gtest/gtest.h>
#include <map>

#include "media/device.h"
#include "media/test_device.h"
#include "sim/world.h"

namespace peplos::media {
namespace {

using format::SegmentKind;
using runtime::Durability;
using runtime::Task;

constexpr uint64_t kStoreBytes = 128 * kMiB;

SegmentId id_of(uint32_t n) {
    return {VolumeId(1), 1, n};
}

Task<Result<void>> format_disk(runtime::Env& env) {
    CO_TRY_ASSIGN(auto disk, co_await env.disks.open(kTestDisk, {.create_bytes = kStoreBytes}));
    co_return co_await format_device(*disk, {.ring_bytes = limits::kRingBytesMin}, env.rng);
}

// ---- the allocator against a plain array ----

TEST(UnitAllocator, MatchesAPlainArray) {
    sim::Random random(9);
    for (uint32_t unit_count : {1u, 31u, 32u, 33u, 100u, 256u}) {
        UnitAllocator allocator(unit_count);
        std::vector<bool> taken(unit_count, false);
        std::map<uint32_t, uint32_t> runs;
        for (int step = 0; step < 3000; ++step) {
            if (random.chance(550)) {
                uint32_t units = 1u << random.pick(UnitAllocator::kOrderCount);
                bool exists = false;
                for (uint32_t at = 0; at + units <= unit_count; at += units) {
                    exists |= std::none_of(taken.begin() + at, taken.begin() + at + units,
                                           [](bool t) { return t; });
                }
                auto first = allocator.allocate(units);
                ASSERT_EQ(first.has_value(), exists);
                if (!first) continue;
                ASSERT_EQ(*first % units, 0u);
                for (uint32_t i = 0; i < units; ++i) {
                    ASSERT_FALSE(taken[*first + i]);
                    taken[*first + i] = true;
                }
                runs[*first] = units;
            } else if (!runs.empty()) {
                auto run = std::next(runs.begin(), random.pick(runs.size()));
                for (uint32_t i = 0; i < run->second; ++i)
                    taken[run->first + i] = false;
                allocator.release(run->first, run->second);
                runs.erase(run);
            }
            auto free = static_cast<uint32_t>(std::ranges::count(taken, false));
            ASSERT_EQ(allocator.free_units(), free);
        }
    }
}

// ---- segments ----

class SegmentStoreTest : public testing::Test {
  protected:
    void SetUp() override {
        ASSERT_TRUE(world.run(format_disk(world.env())));
        open();
    }
    void TearDown() override {
        if (device) close();
    }
    void open() {
        auto opened = world.run(open_device(world.env()));
        ASSERT_TRUE(opened) << opened.error().text();
        device = std::move(*opened);
    }
    void close() {
        world.run(device->close());
        device.reset();
    }
    SegmentStore& store() { return device->segments(); }
    Result<SegmentPin> create(uint32_t n, uint64_t bytes, Purpose purpose = Purpose::user,
                              VolumeId volume = VolumeId(1)) {
        return world.run(
            store().create(id_of(n), LineageId(3), volume, SegmentKind::data, bytes, purpose));
    }
    void write(const SegmentPin& pin, uint64_t offset, int value) {
        Buffer block = Buffer::allocate(kBlockBytes);
        std::memset(block.data(), value, block.size());
        std::vector<Buffer> blocks{block};
        ASSERT_TRUE(
            world.run(store().write_vector(pin, offset, std::move(blocks), Durability::durable)));
    }
    int read(const SegmentPin& pin, uint64_t offset) {
        Buffer block = Buffer::allocate(kBlockBytes);
        EXPECT_TRUE(world.run(store().read(pin, offset, block)));
        return static_cast<int>(block.data()[17]);
    }
    uint64_t entry_offset(uint32_t unit) {
        return format::plan_device(kStoreBytes, limits::kRingBytesMin, format::MediaClass::nvme)
                   ->unit_table_offset +
               uint64_t{unit} * format::kUnitEntryBytes;
    }

    sim::World world{5};
    std::unique_ptr<Device> device;
};

TEST_F(SegmentStoreTest, KeepsWhatWasWrittenOverARestart) {
    {
        SegmentPin pin = *create(1, 3 * kMiB);
        EXPECT_EQ(pin.info().unit_count, 4u);
        write(pin, 2 * kMiB, 7);
        EXPECT_FALSE(create(1, kMiB)) << "the id is taken";
        EXPECT_FALSE(create(2, limits::kSegmentBytesMax + 1));
        Buffer block = Buffer::zeroed(kBlockBytes);
        EXPECT_FALSE(world.run(store().read(pin, 4 * kMiB, block))) << "beyond the segment";
    }
    world.crash({.mode = sim::CrashMode::lose});
    device.reset();
    open();
    SegmentPin pin = store().find(id_of(1));
    ASSERT_TRUE(pin);
    EXPECT_EQ(pin.info().lineage, LineageId(3));
    EXPECT_EQ(read(pin, 2 * kMiB), 7);
    EXPECT_EQ(store().list(VolumeId(1)).size(), 1u);
    EXPECT_EQ(store().list(VolumeId(2)).size(), 0u);
}

TEST_F(SegmentStoreTest, ShrinksAndGivesUnitsBack) {
    SegmentPin pin = *create(1, 32 * kMiB);
    uint32_t free = store().space().free_units;
    ASSERT_TRUE(world.run(store().shrink(pin, 5 * kMiB)));
    EXPECT_EQ(pin.info().unit_count, 8u);
    EXPECT_EQ(store().space().free_units, free + 24);
    SegmentPin other = *create(2, 16 * kMiB);
    EXPECT_EQ(other.info().first_unit / 32, pin.info().first_unit / 32);
    pin = {};
    other = {};
    close();
    open();
    EXPECT_EQ(store().find(id_of(1)).info().unit_count, 8u);
    EXPECT_EQ(store().find(id_of(2)).info().unit_count, 16u);
}

TEST_F(SegmentStoreTest, ACopyTakesThePlaceOfABadOne) {
    SegmentPin bad = *create(1, 2 * kMiB);
    write(bad, 0, 1);
    uint32_t free = store().space().free_units;
    {
        SegmentPin dropped = *store().make_copy(bad.info(), kMiB);
        EXPECT_EQ(store().space().free_units, free - 1);
        EXPECT_EQ(store().list().size(), 1u);
    }
    EXPECT_EQ(store().space().free_units, free);
    SegmentPin copy = *store().make_copy(bad.info(), kMiB);
    write(copy, 0, 2);
    ASSERT_TRUE(world.run(store().put_in_place(copy, bad)));
    EXPECT_EQ(read(bad, 0), 1) << "whoever reads it goes on";
    EXPECT_EQ(read(store().find(id_of(1)), 0), 2);
    EXPECT_FALSE(world.run(store().put_in_place(*store().make_copy(copy.info(), kMiB), bad)))
        << "that one is not in place any more";
    EXPECT_FALSE(world.run(store().put_in_place(*store().make_copy(copy.info(), kMiB), {})));
    bad = {};
    copy = {};
    world.run_until_idle();
    EXPECT_EQ(store().space().free_units, free + 1);
    ASSERT_TRUE(world.run(store().remove(id_of(1))));
    EXPECT_EQ(store().space().free_units, free + 2);
    close();
    open();
    EXPECT_TRUE(store().list().empty());
    EXPECT_EQ(store().space().free_units, free + 2);
}

TEST_F(SegmentStoreTest, ACopyMayComeWhereThereWasNone) {
    SegmentInfo like{id_of(4), LineageId(3), VolumeId(1), SegmentKind::data, GroupId(6), 0, 0};
    {
        SegmentPin copy = *store().make_copy(like, 3 * kMiB);
        write(copy, 2 * kMiB, 5);
        ASSERT_TRUE(world.run(store().put_in_place(copy, {})));
    }
    world.crash({.mode = sim::CrashMode::lose});
    device.reset();
    open();
    SegmentPin pin = store().find(id_of(4));
    ASSERT_TRUE(pin);
    EXPECT_EQ(pin.info().group, GroupId(6));
    EXPECT_EQ(pin.info().unit_count, 4u);
    EXPECT_EQ(read(pin, 2 * kMiB), 5);
}

// At every event: the old one or the new one, whole, and no unit is lost or doubled.
TEST_F(SegmentStoreTest, APowerCutDuringAReplacementLeavesOneOfThem) {
    bool finished = false;
    bool saw_old = false, saw_new = false;
    uint32_t free = store().space().free_units;
    for (uint64_t events = 0; !finished; ++events) {
        SegmentPin bad = *create(1, 4 * kMiB);
        write(bad, 0, 1);
        SegmentPin copy = *store().make_copy(bad.info(), 2 * kMiB);
        write(copy, 0, 2);
        auto outcome = world.run_events(store().put_in_place(copy, bad), events);
        finished = outcome.has_value();
        bad = {};
        copy = {};
        if (events % 2 == 1) world.run_until_idle();
        world.crash();
        device.reset();
        open();
        SegmentPin pin = store().find(id_of(1));
        ASSERT_TRUE(pin) << "after " << events << " events";
        int value = read(pin, 0);
        saw_old |= value == 1;
        saw_new |= value == 2;
        ASSERT_TRUE(value == 1 || value == 2);
        EXPECT_EQ(store().space().quarantined_units, 0u);
        EXPECT_EQ(store().space().free_units, free - pin.info().unit_count);
        pin = {};
        ASSERT_TRUE(world.run(store().remove(id_of(1))));
        world.run_until_idle();
        ASSERT_EQ(store().space().free_units, free);
        close();
        open();
        ASSERT_EQ(store().space().free_units, free);
        ASSERT_TRUE(store().list().empty());
    }
    EXPECT_TRUE(saw_old && saw_new);
}

TEST_F(SegmentStoreTest, APinKeepsTheUnitsOfARemovedSegment) {
    SegmentPin pin = *create(1, kMiB);
    write(pin, 0, 9);
    uint32_t free = store().space().free_units;
    ASSERT_TRUE(world.run(store().remove(id_of(1))));
    EXPECT_FALSE(store().find(id_of(1)));
    EXPECT_FALSE(world.run(store().remove(id_of(1))));
    EXPECT_EQ(store().space().free_units, free);
    EXPECT_EQ(read(pin, 0), 9);
    pin = {};
    world.run_until_idle();
    EXPECT_EQ(store().space().free_units, free + 1);
    close();
    open();
    EXPECT_FALSE(store().find(id_of(1)));
}

TEST_F(SegmentStoreTest, FullIsNotBroken) {
    uint32_t n = 0;
    while (create(++n, 4 * kMiB)) {
    }
    auto refused = create(1000, 4 * kMiB);
    ASSERT_FALSE(refused);
    EXPECT_EQ(refused.error().code(), Code::no_space);
    EXPECT_GE(store().space().free_units, store().space().reserve_units);
    EXPECT_TRUE(create(1001, 4 * kMiB, Purpose::maintenance)) << "the cleaner has its reserve";
    ASSERT_TRUE(world.run(store().remove(id_of(1))));
    ASSERT_TRUE(world.run(store().remove(id_of(2))));
    EXPECT_TRUE(create(1002, 4 * kMiB));
}

TEST_F(SegmentStoreTest, AnUnreadableEntryIsNamedAndItsUnitsAreKept) {
    ASSERT_TRUE(create(1, 8 * kMiB));
    ASSERT_TRUE(create(2, 8 * kMiB));
    uint32_t first = store().find(id_of(1)).info().first_unit;
    close();
    world.disk(kTestDisk).corrupt(entry_offset(first) + 20);
    open();
    ASSERT_EQ(device->report().corruptions.size(), 1u);
    EXPECT_NE(device->report().corruptions[0].find(fmt::format("unit {}", first)),
              std::string::npos);
    EXPECT_FALSE(store().find(id_of(1)));
    EXPECT_TRUE(store().find(id_of(2)));
    EXPECT_GE(store().space().quarantined_units, 8u);
    for (uint32_t n = 10; auto pin = create(n, kMiB, Purpose::maintenance); ++n) {
        EXPECT_FALSE(pin->info().first_unit >= first && pin->info().first_unit < first + 8);
    }
}

TEST_F(SegmentStoreTest, AnUnreadableBlockOfTheTableKeepsItsUnitsFromUse) {
    ASSERT_TRUE(create(1, 8 * kMiB));
    uint32_t first = store().find(id_of(1)).info().first_unit;
    close();
    world.disk(kTestDisk).add_fault({.operation = sim::DiskOperation::read,
                                     .effect = sim::DiskEffect::io_error,
                                     .offset = round_down(entry_offset(first), kBlockBytes),
                                     .bytes = kBlockBytes});
    open();
    EXPECT_FALSE(device->report().corruptions.empty());
    EXPECT_GE(store().space().quarantined_units, 8u);
    for (uint32_t n = 10; auto pin = create(n, kMiB, Purpose::maintenance); ++n)
        EXPECT_FALSE(pin->info().first_unit >= first && pin->info().first_unit < first + 8);
    world.disk(kTestDisk).clear_faults();
    close();
    open();
    EXPECT_TRUE(store().find(id_of(1))) << "an error that passes takes nothing away";
}

TEST_F(SegmentStoreTest, PrezeroRemembersWhatItDid) {
    uint32_t unwritten = store().space().unwritten_units;
    EXPECT_EQ(unwritten, store().space().free_units);
    auto done = world.run(store().prezero(4 * kMiB));
    ASSERT_TRUE(done);
    EXPECT_EQ(*done, 4 * kMiB);
    EXPECT_EQ(store().space().unwritten_units, unwritten - 4);
    EXPECT_EQ(store().space().free_units, unwritten);
    close();
    open();
    EXPECT_EQ(store().space().unwritten_units, unwritten - 4);
    while (true) {
        done = world.run(store().prezero(16 * kMiB));
        ASSERT_TRUE(done);
        if (*done == 0) break;
    }
    EXPECT_EQ(store().space().unwritten_units, 0u);
}

// ---- power loss against a model ----

enum class Fate : uint8_t { absent, present, unknown };

Task<void> work(SegmentStore& store, uint64_t seed, std::map<uint32_t, Fate>* fates) {
    sim::Random random(seed);
    for (uint32_t i = 0; i < 12; ++i) {
        auto n = static_cast<uint32_t>(seed % 1000 * 100 + i);
        (*fates)[n] = Fate::unknown;
        auto pin = co_await store.create(id_of(n), LineageId(1), VolumeId(1), SegmentKind::data,
                                         kMiB << random.pick(3), Purpose::maintenance);
        if (!pin) {
            (*fates)[n] = Fate::absent;
            continue;
        }
        (*fates)[n] = Fate::present;
        if (random.chance(300)) CHECK(co_await store.shrink(*pin, kMiB));
        *pin = SegmentPin();
        if (!random.chance(600)) continue;
        (*fates)[n] = Fate::unknown;
        CHECK(co_await store.remove(id_of(n)));
        (*fates)[n] = Fate::absent;
    }
}

TEST(SegmentStoreCrash, TheTableMatchesTheModelAfterEveryPowerLoss) {
    for (uint64_t seed = 1; seed <= 30; ++seed) {
        sim::World world(seed);
        ASSERT_TRUE(world.run(format_disk(world.env())));
        std::map<uint32_t, Fate> fates;
        for (uint64_t life = 1; life <= 3; ++life) {
            auto device = world.run(open_device(world.env()));
            ASSERT_TRUE(device) << device.error().text();
            ASSERT_TRUE((*device)->report().corruptions.empty())
                << (*device)->report().corruptions[0];
            SegmentStore& store = (*device)->segments();
            uint32_t used = 0;
            for (const SegmentInfo& info : store.list())
                used += info.unit_count;
            ASSERT_EQ(store.space().free_units + used, store.space().total_units);
            for (auto& [n, fate] : fates) {
                bool exists = static_cast<bool>(store.find(id_of(n)));
                if (fate != Fate::unknown) {
                    ASSERT_EQ(exists, fate == Fate::present) << "seed " << seed << " id " << n;
                }
                fate = exists ? Fate::present : Fate::absent;
            }
            for (uint64_t worker = 0; worker < 3; ++worker) {
                runtime::spawn(world.env().executor,
                               work(store, (seed * 3 + life) * 3 + worker, &fates));
            }
            uint64_t events = world.random().pick(400);
            for (uint64_t i = 0; i < events; ++i) {
                if (!world.step()) break;
            }
            world.crash();
        }
    }
}

}  // namespace
}  // namespace peplos::media
