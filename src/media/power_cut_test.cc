#include <gtest/gtest.h>

#include "base/crc32c.h"
#include "media/device.h"
#include "media/test_device.h"
#include "sim/world.h"

// A power cut at every event of one bounded life of a device: between any two submissions and
// completions of its superblock, ring and segment writes, with what was not durable kept, lost,
// torn or reordered.
namespace peplos::media {
namespace {

using format::Record;
using runtime::Durability;
using runtime::Task;

constexpr uint64_t kCutDiskBytes = 64 * kMiB;

// As format_device() leaves it, without the time that writing a ring of zeros takes.
void make_formatted(sim::World& world) {
    auto superblock =
        format::plan_device(kCutDiskBytes, limits::kRingBytesMin, format::MediaClass::nvme);
    ASSERT_TRUE(superblock.has_value());
    superblock->device.bytes[0] = 1;
    superblock->incarnation = Incarnation(7);
    sim::DiskMedia& disk = world.make_disk(kTestDisk, kCutDiskBytes);
    for (uint64_t offset : format::kSuperblockOffsets) {
        Buffer block = Buffer::allocate(format::kSuperblockBytes);
        format::encode_superblock(*superblock, block.bytes());
        disk.poke(offset, std::as_const(block).bytes());
    }
}

std::byte pattern(uint64_t seed) {
    return static_cast<std::byte>(mix_bits(seed));
}

Record record_of(VolumeId volume, uint64_t lsn) {
    uint64_t blocks = 1 + lsn % 3;
    Record record;
    record.type = format::RecordType::write;
    record.volume = volume;
    record.lineage = LineageId(7);
    record.epoch = Epoch(1);
    record.lsn = Lsn(lsn);
    record.block_count = blocks;
    Buffer payload = Buffer::allocate(blocks * kBlockBytes);
    for (uint64_t i = 0; i < blocks; ++i) {
        Buffer block = payload.slice(i * kBlockBytes, kBlockBytes);
        std::memset(block.data(), std::to_integer<int>(pattern(lsn * 10 + i)), block.size());
        record.crcs.push_back(crc32c(std::as_const(block).bytes()));
    }
    record.payload.push_back(std::move(payload));
    return record;
}

// What somebody was told, and so must find again.
struct Told {
    enum class Fate : uint8_t { unknown, absent, present };
    Boot boot;
    std::array<uint64_t, 3> acked{};     // per volume
    std::array<uint64_t, 3> released{};  // these may be gone
    std::map<uint32_t, Fate> segments;
    std::map<uint32_t, std::byte> synced;  // content of block 0
    bool is_closed = false;
};

Task<void> append_some(Ring& ring, size_t v, int count, Told* told) {
    for (int i = 0; i < count; ++i) {
        Record record = record_of(VolumeId(v + 1), told->acked[v] + 1);
        uint64_t cost = format::ring_cost_bytes(record);
        auto admission = co_await ring.admit(cost, Urgency::user);
        if (!admission) co_return;
        auto position = co_await ring.append(std::move(record), std::move(*admission));
        if (!position) co_return;
        uint64_t lsn = ++told->acked[v];
        if (lsn % 2 == 1 && told->released[v] + 1 == lsn) {
            told->released[v] = lsn;
            ring.release(*position);
        }
    }
}

Task<void> use_segments(SegmentStore& store, uint32_t base, Told* told) {
    for (uint32_t n = base; n < base + 2; ++n) {
        SegmentId id{VolumeId(1), 1, n};
        told->segments[n] = Told::Fate::unknown;
        auto pin = co_await store.create(id, LineageId(1), VolumeId(1), format::SegmentKind::data,
                                         4 * kMiB, Purpose::user);
        if (!pin) co_return;
        told->segments[n] = Told::Fate::present;
        Buffer block = Buffer::allocate(kBlockBytes);
        std::memset(block.data(), std::to_integer<int>(pattern(n)), block.size());
        std::vector<Buffer> from{block, block};
        if (!co_await store.write_vector(*pin, 0, std::move(from), Durability::volatile_))
            co_return;
        if (!co_await store.sync()) co_return;
        told->synced[n] = pattern(n);
        if (!co_await store.shrink(*pin, kMiB)) co_return;
        *pin = SegmentPin();
        if (n % 2 == 0) continue;
        told->segments[n] = Told::Fate::unknown;
        if (!co_await store.remove(id)) co_return;
        told->segments[n] = Told::Fate::absent;
    }
}

// One life: open, append, use segments, close.
Task<Result<void>> live(runtime::Env& env, std::unique_ptr<Device>* device, Told* told) {
    CO_TRY_ASSIGN(*device, co_await open_device(env));
    told->boot = (*device)->boot();
    for (size_t v = 0; v < told->acked.size(); ++v)
        runtime::spawn(env.executor, append_some((*device)->ring(), v, 3, told));
    co_await use_segments((*device)->segments(), static_cast<uint32_t>(told->boot.value * 10),
                          told);
    co_await append_some((*device)->ring(), 0, 1, told);
    co_await (*device)->close();
    told->is_closed = true;
    co_return Result<void>{};
}

void check_ring(sim::World& world, Device& device, Told& told) {
    std::array<std::set<uint64_t>, 3> found;
    RingRecovery recovery = device.ring().take_recovery();
    ASSERT_TRUE(recovery.lost_frames.empty());
    for (const RecoveredRecord& item : recovery.records) {
        auto v = item.record.volume.value - 1;
        ASSERT_TRUE(item.payload_is_good);
        ASSERT_TRUE(found[v].insert(item.record.lsn.value).second);
        auto read = world.run(device.ring().read(item.position));
        ASSERT_TRUE(read) << read.error().text();
        ASSERT_EQ(read->crcs, record_of(item.record.volume, item.record.lsn.value).crcs);
    }
    for (size_t v = 0; v < found.size(); ++v) {
        for (uint64_t lsn = told.released[v] + 1; lsn <= told.acked[v]; ++lsn)
            ASSERT_TRUE(found[v].contains(lsn)) << "volume " << v + 1 << " LSN " << lsn;
        uint64_t last = found[v].empty() ? told.acked[v] : *found[v].rbegin();
        ASSERT_LE(last, told.acked[v] + 1);
        told.acked[v] = std::max(told.acked[v], last);  // what was seen stays
    }
}

void check_segments(sim::World& world, Device& device, Told& told) {
    uint32_t used = 0;
    std::vector<SegmentInfo> all = device.segments().list();
    for (const SegmentInfo& info : all)
        used += info.unit_count;
    SegmentSpace space = device.segments().space();
    ASSERT_EQ(space.free_units + used, space.total_units);
    for (auto& [n, fate] : told.segments) {
        SegmentPin pin = device.segments().find({VolumeId(1), 1, n});
        if (fate != Told::Fate::unknown)
            ASSERT_EQ(static_cast<bool>(pin), fate == Told::Fate::present) << n;
        fate = pin ? Told::Fate::present : Told::Fate::absent;
        if (!pin || !told.synced.contains(n)) continue;
        Buffer block = Buffer::allocate(kBlockBytes);
        ASSERT_TRUE(world.run(device.segments().read(pin, 0, block)));
        ASSERT_EQ(block.data()[99], told.synced[n]);
    }
}

void check(sim::World& world, std::unique_ptr<Device>& device, Told& told) {
    auto opened = world.run(open_device(world.env()));
    ASSERT_TRUE(opened) << opened.error().text();
    device = std::move(*opened);
    ASSERT_TRUE(device->report().corruptions.empty()) << device->report().corruptions[0];
    ASSERT_GT(device->boot(), told.boot) << "a boot number is used once";
    told.boot = device->boot();
    ASSERT_NO_FATAL_FAILURE(check_ring(world, *device, told));
    ASSERT_NO_FATAL_FAILURE(check_segments(world, *device, told));
}

// Returns whether the life had ended before the cut.
bool cut_after(uint64_t events, sim::CrashMode mode, uint64_t* torn) {
    sim::World world(1000 + events);
    make_formatted(world);
    Told told;
    std::unique_ptr<Device> device;
    // A short first life, so that the second one finds something.
    auto first = world.run_events(live(world.env(), &device, &told), 60);
    world.crash({.mode = sim::CrashMode::keep});
    device.reset();
    check(world, device, told);
    if (testing::Test::HasFatalFailure()) return false;
    world.run(device->close());
    device.reset();
    auto second = world.run_events(live(world.env(), &device, &told), events);
    world.crash({.mode = mode});
    device.reset();
    for (int life = 0; life < 2 && !testing::Test::HasFatalFailure(); ++life) {
        check(world, device, told);
        if (device == nullptr) break;
        *torn += device->report().torn_tail ? 1 : 0;
        world.crash({.mode = mode});
        device.reset();
    }
    return second.has_value();
}

TEST(PowerCut, AtEveryEventOfADevicesLife) {
    constexpr std::array kModes{sim::CrashMode::sectors, sim::CrashMode::lose,
                                sim::CrashMode::pages, sim::CrashMode::keep,
                                sim::CrashMode::prefix};
    uint64_t torn = 0;
    uint64_t events = 0;
    for (bool is_over = false; !is_over; ++events) {
        ASSERT_LT(events, 1000u) << "the life does not end";
        // Sectors and one of the other modes for each event.
        for (size_t m : {size_t{0}, 1 + events % (kModes.size() - 1)}) {
            is_over = cut_after(events, kModes[m], &torn);
            if (testing::Test::HasFatalFailure())
                GTEST_FAIL() << "events " << events << " mode " << static_cast<int>(kModes[m]);
        }
    }
    EXPECT_GT(torn, 0u) << "no cut tore a frame: the test shows nothing";
    RecordProperty("events", static_cast<int>(events));
}

}  // namespace
}  // namespace peplos::media
