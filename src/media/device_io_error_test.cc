#include <gtest/gtest.h>

#include "base/crc32c.h"
#include "media/device.h"
#include "media/test_device.h"
#include "sim/world.h"

// A device whose operations fail one by one, and a ring and superblocks that hold what is not
// theirs.
namespace peplos::media {
namespace {

using format::Record;
using format::RecordType;
using runtime::Task;

constexpr uint64_t kErrorDiskBytes = 80 * kMiB;

Record write_record(Lsn lsn, uint32_t blocks) {
    Record record;
    record.type = RecordType::write;
    record.volume = VolumeId(5);
    record.lineage = LineageId(7);
    record.epoch = Epoch(1);
    record.lsn = lsn;
    record.block_count = blocks;
    record.payload.push_back(Buffer::allocate(uint64_t{blocks} * kBlockBytes));
    std::memset(record.payload[0].data(), static_cast<int>(lsn.value), record.payload[0].size());
    for (uint32_t i = 0; i < blocks; ++i)
        record.crcs.push_back(
            crc32c(record.payload[0].slice(i * kBlockBytes, kBlockBytes).bytes()));
    return record;
}

Record zero_record(Lsn lsn) {
    Record record = write_record(lsn, 1);
    record.type = RecordType::zero;
    record.payload.clear();
    record.crcs.clear();
    return record;
}

class DeviceIoError : public testing::Test {
  protected:
    static Task<Result<void>> format(runtime::Env& env) {
        CO_TRY_ASSIGN(auto disk,
                      co_await env.disks.open(kTestDisk, {.create_bytes = kErrorDiskBytes}));
        co_return co_await format_device(
            *disk,
            {.ring_bytes = limits::kRingBytesMin, .existing = FormatOptions::Existing::overwrite},
            env.rng);
    }
    static Task<Result<std::unique_ptr<Device>>> open_device(runtime::Env& env) {
        CO_TRY_ASSIGN(auto disk, co_await env.disks.open(kTestDisk, {}));
        co_return co_await Device::open(env, std::move(disk));
    }
    static Task<Result<RecordPosition>> append(Ring& ring, Record record) {
        uint64_t cost = format::ring_cost_bytes(record);
        CO_TRY_ASSIGN(Admission admission, co_await ring.admit(cost, Urgency::user));
        co_return co_await ring.append(std::move(record), std::move(admission));
    }
    void make() {
        world = std::make_unique<sim::World>(1);
        auto formatted = world->run(format(world->env()));
        ASSERT_TRUE(formatted) << formatted.error().text();
    }
    Result<std::unique_ptr<Device>> open() { return world->run(open_device(world->env())); }
    RecordPosition put(Device& device, Record record) {
        auto position = world->run(append(device.ring(), std::move(record)));
        EXPECT_TRUE(position) << position.error().text();
        return position ? *position : RecordPosition{};
    }
    sim::DiskMedia& disk() { return world->disk(kTestDisk); }
    uint64_t done(sim::DiskOperation operation) {
        const sim::DiskCounters& counters = disk().counters();
        switch (operation) {
            case sim::DiskOperation::read:
                return counters.reads;
            case sim::DiskOperation::write:
                return counters.writes;
            case sim::DiskOperation::sync:
                return counters.syncs;
            case sim::DiskOperation::zero:
                return counters.zeros;
        }
        return 0;
    }
    // Runs `act` with the first operation of this kind failing, then the second and so on; after
    // each, `then`, with whether it is to have failed.
    void for_each(sim::DiskOperation operation, auto act, auto then) {
        for (uint64_t skip = 0;; ++skip) {
            SCOPED_TRACE(fmt::format("operation {} of kind {}", skip, int(operation)));
            make();
            const uint64_t before = done(operation);
            disk().add_fault({.operation = operation,
                              .effect = sim::DiskEffect::io_error,
                              .skip = skip,
                              .count = UINT64_MAX});
            const bool is_good = act();
            const bool was_met = done(operation) - before > skip;
            if (!was_met) EXPECT_TRUE(is_good);
            disk().clear_faults();
            then();
            if (!was_met || HasFailure()) return;
        }
    }
    // Changes bytes of a block that begins with a magic and its CRC at `crc_at`, which holds again.
    template <typename T>
    void rewrite(uint64_t block, size_t field, T value, size_t crc_at, size_t from, size_t bytes) {
        std::vector<std::byte> content(kBlockBytes);
        disk().peek(block, content);
        std::memcpy(content.data() + field, &value, sizeof(value));
        const uint32_t crc = crc32c(Bytes(content).subspan(from, bytes - from));
        std::memcpy(content.data() + crc_at, &crc, sizeof(crc));
        disk().poke(block, content);
    }
    template <typename T>
    void rewrite_frame(uint64_t block, size_t field, T value) {
        rewrite(block, field, value, 8, 12, format::kFrameHeaderBytes);
    }
    template <typename T>
    void rewrite_superblock(int copy, size_t field, T value) {
        rewrite(format::kSuperblockOffsets[copy], field, value, 8, 12, format::kSuperblockBytes);
    }

    std::unique_ptr<sim::World> world;
};

TEST_F(DeviceIoError, FormattingThatFailsCanBeDoneAgain) {
    for (sim::DiskOperation operation : {sim::DiskOperation::read, sim::DiskOperation::write,
                                         sim::DiskOperation::sync, sim::DiskOperation::zero}) {
        for_each(
            operation, [this] { return world->run(format(world->env())).has_value(); },
            [this] {
                ASSERT_TRUE(world->run(format(world->env())));
                auto device = open();
                ASSERT_TRUE(device) << device.error().text();
                put(**device, write_record(Lsn(1), 1));
                world->run((*device)->close());
            });
    }
}

// A start that fails changes nothing that was there.
TEST_F(DeviceIoError, OpeningThatFailsLosesNothing) {
    for (sim::DiskOperation operation :
         {sim::DiskOperation::read, sim::DiskOperation::write, sim::DiskOperation::sync}) {
        for (uint64_t skip = 0; skip < 12; ++skip) {
            SCOPED_TRACE(fmt::format("operation {} of kind {}", skip, int(operation)));
            make();
            auto device = open();
            ASSERT_TRUE(device);
            put(**device, write_record(Lsn(1), 3));
            world->crash({.mode = sim::CrashMode::keep});
            device = fail(Code::busy, "closed");
            disk().add_fault({.operation = operation,
                              .effect = sim::DiskEffect::io_error,
                              .skip = skip,
                              .count = 1});
            device = open();
            world->crash({.mode = sim::CrashMode::keep});
            device = fail(Code::busy, "closed");
            disk().clear_faults();
            device = open();
            ASSERT_TRUE(device) << device.error().text();
            RingRecovery found = (*device)->ring().take_recovery();
            ASSERT_EQ(found.records.size(), 1u);
            EXPECT_TRUE(found.records[0].payload_is_good);
            EXPECT_TRUE(found.lost_frames.empty());
            world->run((*device)->close());
            world->run((*device)->close());
        }
    }
}

// An old frame whose first block is still there lies where a newer one was to be, which the device
// acknowledged and never wrote. The next one lies inside the old one's length: it is found, and
// with it what is lost.
TEST_F(DeviceIoError, AnOldFrameHalfOverwrittenHidesNothing) {
    make();
    auto device = open();
    ASSERT_TRUE(device);
    Ring& ring = (*device)->ring();
    uint64_t lsn = 0;
    std::vector<RecordPosition> held = {put(**device, write_record(Lsn(++lsn), 32))};
    const uint64_t old_at = ring.device_offset_of(held[0]);
    const uint64_t ring_begin = old_at - kBlockBytes;  // the boot's own frame
    for (;;) {
        RecordPosition last = put(**device, write_record(Lsn(++lsn), 32));
        ring.release(held.back());
        held = {last};
        const uint64_t end = ring.device_offset_of(last) + 33 * kBlockBytes;
        if (ring_begin + limits::kRingBytesMin - end < 33 * kBlockBytes) break;
    }
    // Another large one would begin anew at the ring's start: small ones fill up what is left.
    RecordPosition first;
    do {
        first = put(**device, zero_record(Lsn(++lsn)));
        ring.release(held.back());
        held = {first};
    } while (ring.device_offset_of(first) != ring_begin);
    disk().add_fault({.operation = sim::DiskOperation::write,
                      .effect = sim::DiskEffect::lost,
                      .offset = old_at,
                      .bytes = kBlockBytes,
                      .count = 1});
    RecordPosition lost = put(**device, write_record(Lsn(++lsn), 1));
    ASSERT_EQ(ring.device_offset_of(lost), old_at);
    RecordPosition next = put(**device, write_record(Lsn(++lsn), 1));
    ASSERT_EQ(ring.device_offset_of(next), old_at + 2 * kBlockBytes);
    world->crash({.mode = sim::CrashMode::keep});
    device = fail(Code::busy, "closed");
    device = open();
    ASSERT_TRUE(device) << device.error().text();
    RingRecovery found = (*device)->ring().take_recovery();
    ASSERT_EQ(found.lost_frames.size(), 1u);
    EXPECT_EQ(found.lost_frames[0].device_offset, old_at);
    ASSERT_FALSE(found.records.empty());
    EXPECT_EQ(found.records.back().record.lsn, Lsn(lsn));
    world->run((*device)->close());
}

TEST_F(DeviceIoError, AFrameThatIsNotThisRingsIsNoRecord) {
    constexpr size_t kVersion = 16, kIncarnation = 24, kBoot = 32, kLogOffset = 48;
    for (size_t field : {kVersion, kIncarnation, kBoot, kLogOffset}) {
        make();
        auto device = open();
        ASSERT_TRUE(device);
        const uint64_t at = (*device)->ring().device_offset_of(put(**device, zero_record(Lsn(1))));
        world->crash({.mode = sim::CrashMode::keep});
        device = fail(Code::busy, "closed");
        if (field == kVersion) {
            rewrite_frame(at, field, uint16_t{9});
        } else {
            rewrite_frame(at, field, uint64_t{1} << 40);
        }
        device = open();
        if (field == kVersion) {
            ASSERT_FALSE(device);
            EXPECT_EQ(device.error().code(), Code::unsupported);
            EXPECT_NE(device.error().message().find(fmt::format("offset {}", at)),
                      std::string::npos);
            continue;
        }
        ASSERT_TRUE(device) << device.error().text();
        EXPECT_TRUE((*device)->ring().take_recovery().records.empty());
        world->run((*device)->close());
    }
}

TEST_F(DeviceIoError, OfTwoSuperblocksTheNewerOneCounts) {
    make();
    std::vector<std::byte> old(kBlockBytes);
    disk().peek(format::kSuperblockOffsets[0], old);
    auto device = open();
    ASSERT_TRUE(device);
    world->run((*device)->close());
    device = fail(Code::busy, "closed");
    disk().poke(format::kSuperblockOffsets[0], old);
    device = open();
    ASSERT_TRUE(device);
    EXPECT_EQ((*device)->boot(), Boot(2));
    world->run((*device)->close());
}

TEST_F(DeviceIoError, ADeviceOfALaterFormatOrThatShrankIsRefused) {
    make();
    for (int copy : {0, 1})
        rewrite_superblock(copy, 12, uint16_t{9});
    auto device = open();
    ASSERT_FALSE(device);
    EXPECT_EQ(device.error().code(), Code::unsupported);
    make();
    for (int copy : {0, 1})
        rewrite_superblock(copy, 48, 2 * kErrorDiskBytes);
    device = open();
    ASSERT_FALSE(device);
    EXPECT_NE(device.error().message().find(std::to_string(kErrorDiskBytes)), std::string::npos);
}

TEST_F(DeviceIoError, AClosedRingTakesNothing) {
    make();
    auto device = open();
    ASSERT_TRUE(device);
    Ring& ring = (*device)->ring();
    world->run(ring.close());
    EXPECT_FALSE(ring.try_admit(kBlockBytes, Urgency::user));
    auto late = world->run(ring.admit(kBlockBytes, Urgency::user));
    ASSERT_FALSE(late);
    EXPECT_EQ(late.error().code(), Code::stopping);
    world->run((*device)->close());
}

}  // namespace
}  // namespace peplos::media
