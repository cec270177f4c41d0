#include "media/device.h"

#include <gtest/gtest.h>

#include "base/crc32c.h"
#include "media/test_device.h"
#include "sim/world.h"

namespace peplos::media {
namespace {

using format::Record;
using format::RecordType;
using runtime::Task;

constexpr uint64_t kDeviceBytes = 80 * kMiB;
constexpr uint64_t kRingBytes = limits::kRingBytesMin;

Task<Result<void>> format_disk(runtime::Env& env, FormatOptions options) {
    CO_TRY_ASSIGN(auto disk, co_await env.disks.open(kTestDisk, {.create_bytes = kDeviceBytes}));
    co_return co_await format_device(*disk, options, env.rng);
}

Record write_record(VolumeId volume, Lsn lsn, uint32_t blocks, uint64_t fill) {
    Record record;
    record.type = RecordType::write;
    record.volume = volume;
    record.lineage = LineageId(7);
    record.epoch = Epoch(1);
    record.lsn = lsn;
    record.lba = Lba(fill % 1000);
    record.block_count = blocks;
    Buffer payload = Buffer::allocate(uint64_t{blocks} * kBlockBytes);
    for (size_t i = 0; i < payload.size(); i += 8) {
        uint64_t word = mix_bits(fill * 1'000'003 + i);
        std::memcpy(payload.data() + i, &word, 8);
    }
    for (uint32_t i = 0; i < blocks; ++i) {
        record.crcs.push_back(crc32c(payload.slice(i * kBlockBytes, kBlockBytes).bytes()));
    }
    record.payload.push_back(payload);
    return record;
}

Task<Result<RecordPosition>> append(Ring& ring, Record record) {
    uint64_t cost = format::ring_cost_bytes(record);
    CO_TRY_ASSIGN(Admission admission, co_await ring.admit(cost, Urgency::user));
    co_return co_await ring.append(std::move(record), std::move(admission));
}

class DeviceTest : public testing::Test {
  protected:
    void make() {
        auto formatted = world.run(format_disk(world.env(), {.ring_bytes = kRingBytes}));
        ASSERT_TRUE(formatted) << formatted.error().text();
    }
    std::unique_ptr<Device> open() {
        auto device = world.run(open_device(world.env()));
        EXPECT_TRUE(device) << device.error().text();
        return device ? std::move(*device) : nullptr;
    }
    Error open_error() {
        auto device = world.run(open_device(world.env()));
        EXPECT_FALSE(device);
        return device ? Error(Code::invalid_argument, "opened") : device.error();
    }
    void close(std::unique_ptr<Device>& device) {
        world.run(device->close());
        device.reset();
    }
    RecordPosition put(Device& device, Record record) {
        auto position = world.run(append(device.ring(), std::move(record)));
        EXPECT_TRUE(position) << position.error().text();
        return position ? *position : RecordPosition{};
    }
    uint64_t ring_offset() {
        return format::plan_device(kDeviceBytes, kRingBytes, format::MediaClass::nvme)
            ->rings[0]
            .offset;
    }
    sim::DiskMedia& disk() { return world.disk(kTestDisk); }

    sim::World world{1};
};

TEST_F(DeviceTest, IsRefusedWhenNotBlankOrNotFormatted) {
    world.make_disk(kTestDisk, kDeviceBytes);
    EXPECT_EQ(open_error().code(), Code::not_found);
    make();
    auto again = world.run(format_disk(world.env(), {.ring_bytes = kRingBytes}));
    ASSERT_FALSE(again);
    EXPECT_EQ(again.error().code(), Code::already_exists);
    auto anew = world.run(format_disk(
        world.env(), {.ring_bytes = kRingBytes, .existing = FormatOptions::Existing::overwrite}));
    EXPECT_TRUE(anew);
}

TEST_F(DeviceTest, CountsBootsAndChangesIncarnation) {
    make();
    auto device = open();
    EXPECT_EQ(device->boot(), Boot(1));
    Incarnation first = device->incarnation();
    close(device);
    device = open();
    EXPECT_EQ(device->boot(), Boot(2));
    EXPECT_EQ(device->incarnation(), first);
    close(device);
    auto anew = world.run(format_disk(
        world.env(), {.ring_bytes = kRingBytes, .existing = FormatOptions::Existing::overwrite}));
    ASSERT_TRUE(anew);
    device = open();
    EXPECT_NE(device->incarnation(), first);
    close(device);
}

TEST_F(DeviceTest, EitherSuperblockMendsTheOther) {
    make();
    for (uint64_t offset : format::kSuperblockOffsets) {
        disk().corrupt(offset + 33);
        auto device = open();
        ASSERT_NE(device, nullptr);
        EXPECT_TRUE(device->report().superblock_repaired);
        ASSERT_EQ(device->report().corruptions.size(), 1u);
        EXPECT_NE(device->report().corruptions[0].find(fmt::format("offset {}", offset)),
                  std::string::npos);
        close(device);
        device = open();
        EXPECT_FALSE(device->report().superblock_repaired);
        close(device);
    }
    for (uint64_t offset : format::kSuperblockOffsets)
        disk().corrupt(offset + 100);
    EXPECT_EQ(open_error().code(), Code::corrupt);
}

TEST_F(DeviceTest, GivesBackWhatWasAppended) {
    make();
    auto device = open();
    RecordPosition position = put(*device, write_record(VolumeId(5), Lsn(1), 3, 77));
    auto read = world.run(device->ring().read(position));
    ASSERT_TRUE(read) << read.error().text();
    EXPECT_EQ(read->lsn, Lsn(1));
    EXPECT_EQ(read->payload[0].size(), 3u * kBlockBytes);
    close(device);
    device = open();
    RingRecovery recovery = device->ring().take_recovery();
    ASSERT_EQ(recovery.records.size(), 1u);
    EXPECT_EQ(recovery.records[0].record.volume, VolumeId(5));
    EXPECT_TRUE(recovery.records[0].payload_is_good);
    EXPECT_TRUE(device->report().corruptions.empty());
    EXPECT_FALSE(device->report().torn_tail);
    close(device);
}

Task<void> append_many(Ring& ring, VolumeId volume, int count, int* done, uint32_t blocks = 1) {
    for (int i = 1; i <= count; ++i) {
        auto position = co_await append(ring, write_record(volume, Lsn(i), blocks, i));
        CHECK(position.has_value());
        ring.release(*position);
        ++*done;
    }
}

TEST_F(DeviceTest, GroupsWhatGathersAndWrapsManyTimes) {
    make();
    auto device = open();
    int done = 0;
    for (int i = 0; i < 16; ++i) {
        runtime::spawn(world.env().executor,
                       append_many(device->ring(), VolumeId(i + 1), 800, &done));
    }
    world.run_until_idle();
    EXPECT_EQ(done, 16 * 800);
    RingStats stats = device->ring().stats();
    EXPECT_EQ(stats.records, 16u * 800u);
    EXPECT_LT(stats.commits, stats.records / 4);
    EXPECT_GT(stats.appended_bytes, 3 * kRingBytes);
    EXPECT_EQ(stats.admitted_bytes, 0u);
    close(device);
    device = open();
    EXPECT_TRUE(device->report().corruptions.empty());
    close(device);
}

TEST_F(DeviceTest, AFullRingHoldsDataBackAndTakesMeta) {
    make();
    auto device = open();
    Ring& ring = device->ring();
    std::deque<RecordPosition> held;
    uint64_t lsn = 0;
    while (true) {
        ++lsn;
        Record record = write_record(VolumeId(1), Lsn(lsn), 32, lsn);
        Admission admission = ring.try_admit(format::ring_cost_bytes(record), Urgency::user);
        if (!admission) break;
        auto position = world.run(ring.append(std::move(record), std::move(admission)));
        ASSERT_TRUE(position);
        held.push_back(*position);
    }
    EXPECT_TRUE(ring.is_short());
    Record zero;
    zero.type = RecordType::zero;
    zero.volume = VolumeId(1);
    zero.block_count = 5;
    Admission meta = ring.try_admit(format::ring_cost_bytes(zero), Urgency::meta);
    ASSERT_TRUE(meta);
    EXPECT_TRUE(world.run(ring.append(std::move(zero), std::move(meta))));
    int done = 0;
    runtime::spawn(world.env().executor, append_many(ring, VolumeId(2), 1, &done, 32));
    world.run_until_idle();
    EXPECT_EQ(done, 0) << "a write must wait for space";
    for (int i = 0; i < 8; ++i) {
        ring.release(held.front());
        held.pop_front();
    }
    world.run_until_idle();
    EXPECT_EQ(done, 1);
    close(device);
}

TEST_F(DeviceTest, AFailedWriteFailsTheDeviceForGood) {
    make();
    auto device = open();
    auto id = SegmentId{VolumeId(1), 1, 1};
    auto pin = world.run(device->segments().create(id, LineageId(1), VolumeId(1),
                                                   format::SegmentKind::data, kMiB, Purpose::user));
    ASSERT_TRUE(pin);
    disk().add_fault(
        {.operation = sim::DiskOperation::write, .effect = sim::DiskEffect::io_error, .count = 1});
    auto failed = world.run(append(device->ring(), write_record(VolumeId(1), Lsn(1), 1, 1)));
    ASSERT_FALSE(failed);
    EXPECT_EQ(failed.error().code(), Code::io_error);
    EXPECT_TRUE(device->is_failed());
    uint64_t writes = disk().counters().writes;
    auto later = world.run(append(device->ring(), write_record(VolumeId(1), Lsn(2), 1, 2)));
    ASSERT_FALSE(later);
    EXPECT_EQ(later.error().code(), Code::io_error);
    auto removed = world.run(device->segments().remove(id));
    ASSERT_FALSE(removed);
    EXPECT_EQ(removed.error().code(), Code::io_error);
    auto synced = world.run(device->segments().sync());
    ASSERT_FALSE(synced);
    EXPECT_EQ(disk().counters().writes, writes) << "nothing is written to a failed device";
    *pin = SegmentPin();
    close(device);
}

TEST_F(DeviceTest, AFlippedByteInTheRingIsFoundAndNamed) {
    // [metadata 4096][payload 8192] per frame, the boot's own frame before them.
    for (uint64_t at : {0u, 8u, 70u, 130u, 300u, 4096u, 9000u, 12287u}) {
        sim::World fresh(at + 1);
        auto run = [&](auto task) { return fresh.run(std::move(task)); };
        ASSERT_TRUE(run(format_disk(fresh.env(), {.ring_bytes = kRingBytes})));
        auto device = std::move(*run(open_device(fresh.env())));
        for (uint64_t lsn = 1; lsn <= 3; ++lsn) {
            ASSERT_TRUE(run(append(device->ring(), write_record(VolumeId(9), Lsn(lsn), 2, lsn))));
        }
        run(device->close());
        device.reset();
        uint64_t frame = ring_offset() + 4096 + 12288;  // of LSN 2
        fresh.disk(kTestDisk).corrupt(frame + at);
        device = std::move(*run(open_device(fresh.env())));
        RingRecovery recovery = device->ring().take_recovery();
        EXPECT_FALSE(device->report().torn_tail);
        ASSERT_EQ(device->report().corruptions.size(), 1u) << at;
        std::string named = device->report().corruptions[0];
        EXPECT_NE(named.find(kTestDisk), std::string::npos) << named;
        EXPECT_NE(named.find("0000000000000009"), std::string::npos) << named;
        EXPECT_NE(named.find("LSN 2"), std::string::npos) << named;
        if (at < 4096) {
            ASSERT_EQ(recovery.lost_frames.size(), 1u);
            EXPECT_EQ(recovery.lost_frames[0].device_offset, frame);
            EXPECT_EQ(recovery.records.size(), 2u);
        } else {
            ASSERT_EQ(recovery.records.size(), 3u);
            EXPECT_FALSE(recovery.records[1].payload_is_good);
            auto read = run(device->ring().read(recovery.records[1].position));
            ASSERT_FALSE(read);
            EXPECT_EQ(read.error().code(), Code::corrupt);
        }
        run(device->close());
    }
}

// ---- blocks that the device cannot read ----

void make_unreadable(sim::World& world, uint64_t offset, uint64_t bytes = kBlockBytes) {
    world.disk(kTestDisk).add_fault({.operation = sim::DiskOperation::read,
                                     .effect = sim::DiskEffect::io_error,
                                     .offset = offset,
                                     .bytes = bytes});
}

TEST_F(DeviceTest, ALatentErrorWhereNothingIsNeededDoesNotMatter) {
    make();
    auto device = open();
    for (uint64_t lsn = 1; lsn <= 4; ++lsn) {
        RecordPosition position = put(*device, write_record(VolumeId(9), Lsn(lsn), 2, lsn));
        if (lsn <= 2) device->ring().release(position);
    }
    close(device);
    make_unreadable(world, ring_offset() + 4096);            // of a frame before the tail
    make_unreadable(world, ring_offset() + 8 * kMiB, 9000);  // never written
    device = open();
    ASSERT_NE(device, nullptr);
    EXPECT_TRUE(device->report().corruptions.empty());
    EXPECT_EQ(device->ring().take_recovery().records.size(), 2u);
    EXPECT_GE(device->errors().reads, 3u) << "but people hear of it";
    EXPECT_NE(device->errors().last.find(kTestDisk), std::string::npos);
    close(device);
}

TEST_F(DeviceTest, AnUnreadableBlockInTheRingIsNamedAndSparesOthers) {
    // Frames: boot 4096; per record 4096 of metadata and 8192 of payload.
    for (uint64_t at : {uint64_t{0}, uint64_t{4096}, uint64_t{8192}}) {
        sim::World fresh(at + 3);
        auto run = [&](auto task) { return fresh.run(std::move(task)); };
        ASSERT_TRUE(run(format_disk(fresh.env(), {.ring_bytes = kRingBytes})));
        auto device = std::move(*run(open_device(fresh.env())));
        for (uint64_t lsn = 1; lsn <= 3; ++lsn)
            ASSERT_TRUE(run(append(device->ring(), write_record(VolumeId(9), Lsn(lsn), 2, lsn))));
        run(device->close());
        device.reset();
        uint64_t frame = ring_offset() + 4096 + 12288;
        make_unreadable(fresh, frame + at);
        device = std::move(*run(open_device(fresh.env())));
        RingRecovery recovery = device->ring().take_recovery();
        EXPECT_FALSE(device->report().torn_tail);
        ASSERT_EQ(device->report().corruptions.size(), 1u) << at;
        EXPECT_NE(device->report().corruptions[0].find("LSN 2"), std::string::npos);
        EXPECT_EQ(recovery.records.size(), at == 0 ? 2u : 3u);
        EXPECT_EQ(recovery.lost_frames.size(), at == 0 ? 1u : 0u);
        run(device->close());
    }
}

// The newest frame may have been acknowledged: what the device cannot read of it is no tear.
TEST_F(DeviceTest, AnUnreadableNewestFrameIsNeverTakenForATornOne) {
    for (uint64_t at : {uint64_t{0}, uint64_t{4096}}) {
        sim::World fresh(at + 4);
        auto run = [&](auto task) { return fresh.run(std::move(task)); };
        ASSERT_TRUE(run(format_disk(fresh.env(), {.ring_bytes = kRingBytes})));
        auto device = std::move(*run(open_device(fresh.env())));
        for (uint64_t lsn = 1; lsn <= 2; ++lsn)
            ASSERT_TRUE(run(append(device->ring(), write_record(VolumeId(9), Lsn(lsn), 1, lsn))));
        fresh.crash();
        device.reset();
        make_unreadable(fresh, ring_offset() + 4096 + 8192 + at);
        for (int boot = 0; boot < 2; ++boot) {
            device = std::move(*run(open_device(fresh.env())));
            RingRecovery recovery = device->ring().take_recovery();
            EXPECT_FALSE(device->report().torn_tail);
            if (boot == 0) EXPECT_EQ(device->report().corruptions.size(), 1u) << at;
            if (boot == 0 && at == 0) {
                ASSERT_EQ(recovery.lost_frames.size(), 1u);
                EXPECT_FALSE(recovery.lost_frames[0].witnesses_known);
                EXPECT_EQ(recovery.lost_frames[0].device_offset, ring_offset() + 4096 + 8192);
            }
            if (at != 0) {
                ASSERT_EQ(recovery.records.size(), 2u);
                EXPECT_FALSE(recovery.records[1].payload_is_good);
            }
            if (boot == 0) fresh.disk(kTestDisk).clear_faults();
            if (at == 0) break;  // its place was written again: the journal made it durable
            fresh.disk(kTestDisk).corrupt(ring_offset() + 4096 + 8192 + at);
            run(device->close());
            device.reset();
        }
        if (device) run(device->close());
    }
}

TEST_F(DeviceTest, AfterACleanStopNothingIsMissedBehindTheNewestFrame) {
    make();
    auto device = open();
    put(*device, write_record(VolumeId(9), Lsn(1), 1, 1));
    close(device);
    make_unreadable(world, ring_offset() + 4096 + 8192 + 4096);
    device = open();
    EXPECT_TRUE(device->report().corruptions.empty());
    EXPECT_TRUE(device->ring().take_recovery().lost_frames.empty());
    close(device);
}

TEST_F(DeviceTest, ABrokenDeviceIsNotSalvaged) {
    make();
    make_unreadable(world, ring_offset(), kRingBytes);
    EXPECT_EQ(open_error().code(), Code::io_error);
}

TEST_F(DeviceTest, AFailedSegmentReadIsNamedAndCounted) {
    make();
    auto device = open();
    auto id = SegmentId{VolumeId(1), 1, 1};
    auto pin = world.run(device->segments().create(id, LineageId(1), VolumeId(1),
                                                   format::SegmentKind::data, kMiB, Purpose::user));
    ASSERT_TRUE(pin);
    disk().add_fault(
        {.operation = sim::DiskOperation::read, .effect = sim::DiskEffect::io_error, .count = 1});
    Buffer into = Buffer::allocate(kBlockBytes);
    auto read = world.run(device->segments().read(*pin, 8192, into));
    ASSERT_FALSE(read);
    EXPECT_EQ(read.error().code(), Code::io_error);
    for (const std::string& named : {std::string(kTestDisk), id.text(), text_of(VolumeId(1))})
        EXPECT_NE(read.error().message().find(named), std::string::npos) << read.error().message();
    EXPECT_EQ(device->errors().reads, 1u);
    EXPECT_FALSE(device->is_failed());
    *pin = SegmentPin();
    close(device);
}

// ---- frames in flight together ----

Task<void> append_to(Ring& ring, Record record, RecordPosition* out) {
    auto position = co_await append(ring, std::move(record));
    if (position) *out = *position;
}

class FlightTest : public DeviceTest {
  protected:
    // Two frames of which the second begins while the first is in flight: volumes 1 and 2, LSN 1.
    // Returns where they begin on the device.
    std::array<uint64_t, 2> put_two(Device& device) {
        Ring& ring = device.ring();
        uint64_t commits = ring.stats().commits;
        std::array<RecordPosition, 2> positions;
        for (uint64_t i = 0; i < 2; ++i) {
            Record record = write_record(VolumeId(i + 1), Lsn(1), 2, i + 1);
            runtime::spawn(world.env().executor, append_to(ring, std::move(record), &positions[i]));
            while (ring.stats().commits == commits + i && world.step()) {
            }
        }
        EXPECT_EQ(positions[0], RecordPosition{}) << "the first must still be in flight";
        world.run_until_idle();
        EXPECT_EQ(positions[1].frame_sequence, positions[0].frame_sequence + 1);
        return {ring.device_offset_of(positions[0]), ring.device_offset_of(positions[1])};
    }
    void crash(std::unique_ptr<Device>& device) {
        world.crash({.mode = sim::CrashMode::keep});
        device.reset();
    }
    std::vector<VolumeId> volumes_found(Device& device) {
        std::vector<VolumeId> out;
        RingRecovery recovery = device.ring().take_recovery();
        for (const RecoveredRecord& found : recovery.records)
            out.push_back(found.record.volume);
        return out;
    }
};

// Bytes from the start of the first frame, or of the torn one.
class FlightAt : public FlightTest, public testing::WithParamInterface<uint64_t> {};
INSTANTIATE_TEST_SUITE_P(Byte, FlightAt, testing::Values(0, 200, 4096));

// Nobody was told of the second one: it goes with the first, and never comes back.
TEST_P(FlightAt, AWholeFrameBehindATornOneIsGivenUpForGood) {
    make();
    auto device = open();
    auto places = put_two(*device);
    crash(device);
    disk().corrupt(places[0] + GetParam());
    device = open();
    EXPECT_TRUE(device->report().torn_tail);
    EXPECT_TRUE(device->report().corruptions.empty()) << device->report().corruptions[0];
    EXPECT_TRUE(volumes_found(*device).empty());
    EXPECT_GT(world.faults().probe_count("media.ring.whole_behind_torn"), 0u);
    // The boot's own frame took the place of the torn one and left the other as it lies.
    crash(device);
    device = open();
    EXPECT_TRUE(volumes_found(*device).empty());
    EXPECT_GT(world.faults().probe_count("media.ring.given_up"), 0u);
    crash(device);
    device = open();
    put(*device, write_record(VolumeId(3), Lsn(1), 1, 3));
    crash(device);
    device = open();
    EXPECT_EQ(volumes_found(*device), std::vector{VolumeId(3)});
    EXPECT_TRUE(device->report().corruptions.empty());
    close(device);
}

TEST_F(FlightTest, WhatALaterFrameCallsSettledIsLostAndNamed) {
    make();
    auto device = open();
    auto places = put_two(*device);
    put(*device, write_record(VolumeId(3), Lsn(1), 1, 3));
    crash(device);
    disk().corrupt(places[0] + 8);
    device = open();
    EXPECT_FALSE(device->report().torn_tail);
    ASSERT_EQ(device->report().corruptions.size(), 1u);
    EXPECT_NE(device->report().corruptions[0].find(fmt::format("offset {}", places[0])),
              std::string::npos);
    EXPECT_EQ(volumes_found(*device), (std::vector{VolumeId(2), VolumeId(3)}));
    close(device);
}

// The newest frame is torn, but its header still says that the one before it was durable.
TEST_P(FlightAt, ATornFrameStillTellsWhatWasSettled) {
    make();
    auto device = open();
    RecordPosition first = put(*device, write_record(VolumeId(1), Lsn(1), 1, 1));
    RecordPosition second = put(*device, write_record(VolumeId(2), Lsn(1), 1, 2));
    uint64_t lost = device->ring().device_offset_of(first);
    uint64_t torn = device->ring().device_offset_of(second);
    crash(device);
    disk().corrupt(lost + 8);
    disk().corrupt(torn + GetParam());
    device = open();
    if (GetParam() == 0) {
        // Without its header it says nothing, and nobody can tell the other from a torn one.
        EXPECT_TRUE(device->report().corruptions.empty());
    } else {
        EXPECT_TRUE(device->report().torn_tail);
        ASSERT_EQ(device->report().corruptions.size(), 1u);
        RingRecovery recovery = device->ring().take_recovery();
        ASSERT_EQ(recovery.lost_frames.size(), 1u);
        EXPECT_EQ(recovery.lost_frames[0].sequence, first.frame_sequence);
        // Metadata that do not hold name no volume.
        EXPECT_EQ(recovery.lost_frames[0].witnesses_known, GetParam() == 4096);
    }
    close(device);
}

// A frame that the device cannot read may have been acknowledged, and so what follows it.
TEST_F(FlightTest, AnUnreadableFrameInFlightIsLostAndTheNextIsKept) {
    make();
    auto device = open();
    auto places = put_two(*device);
    crash(device);
    make_unreadable(world, places[0]);
    device = open();
    EXPECT_FALSE(device->report().torn_tail);
    ASSERT_EQ(device->report().corruptions.size(), 1u);
    EXPECT_NE(device->report().corruptions[0].find("volume 0000000000000001"), std::string::npos);
    EXPECT_EQ(volumes_found(*device), std::vector{VolumeId(2)});
    disk().clear_faults();
    close(device);
}

// A boot that ends before the journal has put the damage on record finds it lost again, although
// its own first frame came to lie where the lost one was.
TEST_F(FlightTest, ALostEndIsFoundLostAgain) {
    make();
    auto device = open();
    put(*device, write_record(VolumeId(1), Lsn(1), 1, 1));
    RecordPosition newest = put(*device, write_record(VolumeId(2), Lsn(1), 1, 2));
    uint64_t place = device->ring().device_offset_of(newest);
    crash(device);
    make_unreadable(world, place);
    for (int boot = 0; boot < 3; ++boot) {
        device = open();
        RingRecovery recovery = device->ring().take_recovery();
        ASSERT_EQ(recovery.lost_frames.size(), 1u) << boot;
        EXPECT_EQ(recovery.lost_frames[0].sequence, newest.frame_sequence);
        EXPECT_FALSE(recovery.lost_frames[0].witnesses_known) << "nobody saw what it held";
        crash(device);
        disk().clear_faults();
    }
}

TEST_F(FlightTest, ASettledFrameLostAtTheEndIsFoundLostAgain) {
    make();
    auto device = open();
    RecordPosition first = put(*device, write_record(VolumeId(1), Lsn(1), 1, 1));
    RecordPosition second = put(*device, write_record(VolumeId(2), Lsn(1), 1, 2));
    uint64_t lost = device->ring().device_offset_of(first);
    uint64_t torn = device->ring().device_offset_of(second);
    crash(device);
    disk().corrupt(lost + 8);
    disk().corrupt(torn + kBlockBytes);
    for (int boot = 0; boot < 3; ++boot) {
        device = open();
        RingRecovery recovery = device->ring().take_recovery();
        ASSERT_EQ(recovery.lost_frames.size(), 1u) << boot;
        EXPECT_EQ(recovery.lost_frames[0].sequence, first.frame_sequence);
        // Only the torn frame could say what was in it, and it is overwritten by the first boot.
        EXPECT_EQ(recovery.lost_frames[0].witnesses_known, boot == 0);
        crash(device);
    }
}

TEST_F(FlightTest, TwoUnreadableFramesDoNotEndTheLog) {
    make();
    auto device = open();
    RecordPosition settled = put(*device, write_record(VolumeId(3), Lsn(1), 1, 3));
    uint64_t before = device->ring().device_offset_of(settled);
    auto places = put_two(*device);
    crash(device);
    make_unreadable(world, before);
    make_unreadable(world, places[0]);
    device = open();
    RingRecovery recovery = device->ring().take_recovery();
    EXPECT_EQ(recovery.lost_frames.size(), 2u);
    ASSERT_EQ(recovery.records.size(), 1u);
    EXPECT_EQ(recovery.records[0].record.volume, VolumeId(2));
    EXPECT_FALSE(device->report().torn_tail);
    disk().clear_faults();
    close(device);
}

TEST_F(FlightTest, AFailedWriteFailsWhatIsInFlightBehindIt) {
    make();
    auto device = open();
    Ring& ring = device->ring();
    disk().add_fault(
        {.operation = sim::DiskOperation::write, .effect = sim::DiskEffect::io_error, .count = 1});
    std::array<RecordPosition, 6> positions;
    for (uint64_t i = 0; i < positions.size(); ++i) {
        runtime::spawn(
            world.env().executor,
            append_to(ring, write_record(VolumeId(1), Lsn(i + 1), 32, i), &positions[i]));
    }
    world.run_until_idle();
    for (const RecordPosition& position : positions)
        EXPECT_EQ(position, RecordPosition{}) << "nothing behind a failed frame is acknowledged";
    EXPECT_EQ(ring.stats().admitted_bytes, 0u);
    close(device);
}

// ---- power loss ----

struct Acked {
    std::vector<uint64_t> lsns;
};

Task<void> write_until_killed(Ring& ring, VolumeId volume, uint32_t blocks_max, Acked* acked) {
    for (uint64_t lsn = 1; lsn <= 40; ++lsn) {
        uint32_t blocks = 1 + static_cast<uint32_t>(mix_bits(lsn + volume.value) % blocks_max);
        auto position = co_await append(ring, write_record(volume, Lsn(lsn), blocks, lsn));
        if (!position) co_return;
        acked->lsns.push_back(lsn);
    }
}

// One life up to `events` events, power loss, recovery: what was acknowledged is there, in order,
// whole; what was not is there whole or not at all.
void crash_once(uint64_t seed, uint64_t events, sim::CrashMode mode, uint64_t* torn) {
    sim::World world(seed);
    ASSERT_TRUE(world.run(format_disk(world.env(), {.ring_bytes = kRingBytes})));
    auto device = std::move(*world.run(open_device(world.env())));
    constexpr int kVolumes = 3;
    std::array<Acked, kVolumes> acked;
    for (int v = 0; v < kVolumes; ++v) {
        runtime::spawn(world.env().executor,
                       write_until_killed(device->ring(), VolumeId(v + 1), 8, &acked[v]));
    }
    for (uint64_t i = 0; i < events; ++i) {
        if (!world.step()) break;
    }
    world.crash({.mode = mode});
    device.reset();
    for (int life = 0; life < 2; ++life) {
        auto opened = world.run(open_device(world.env()));
        ASSERT_TRUE(opened) << opened.error().text();
        device = std::move(*opened);
        ASSERT_TRUE(device->report().corruptions.empty()) << device->report().corruptions[0];
        *torn += device->report().torn_tail ? 1 : 0;
        std::array<uint64_t, kVolumes> last{};
        RingRecovery recovery = device->ring().take_recovery();
        for (const RecoveredRecord& found : recovery.records) {
            auto v = found.record.volume.value - 1;
            ASSERT_TRUE(found.payload_is_good);
            ASSERT_EQ(found.record.lsn.value, last[v] + 1) << "in order, no hole";
            last[v] = found.record.lsn.value;
            auto read = world.run(device->ring().read(found.position));
            ASSERT_TRUE(read) << read.error().text();
            Record expected = write_record(found.record.volume, found.record.lsn,
                                           static_cast<uint32_t>(found.record.block_count),
                                           found.record.lsn.value);
            ASSERT_EQ(read->crcs, expected.crcs);
        }
        for (int v = 0; v < kVolumes; ++v) {
            uint64_t acknowledged = acked[v].lsns.empty() ? 0 : acked[v].lsns.back();
            ASSERT_GE(last[v], acknowledged) << "an acknowledged record is gone";
            // What was seen once stays: the second life must find the same.
            acked[v].lsns.push_back(last[v]);
        }
        world.crash({.mode = mode});
        device.reset();
    }
}

TEST(DeviceCrash, AcknowledgedRecordsSurviveEveryPowerLoss) {
    uint64_t torn = 0;
    for (auto mode : {sim::CrashMode::sectors, sim::CrashMode::pages, sim::CrashMode::lose,
                      sim::CrashMode::keep, sim::CrashMode::prefix}) {
        for (uint64_t events = 0; events < 400; events += 41) {
            crash_once(events * 31 + 7, events, mode, &torn);
            if (testing::Test::HasFatalFailure()) {
                GTEST_FAIL() << "events " << events << " mode " << static_cast<int>(mode);
            }
        }
    }
    EXPECT_GT(torn, 0u) << "no crash tore a frame: the test shows nothing";
}

}  // namespace
}  // namespace peplos::media
