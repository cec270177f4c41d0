#include "base/crc32c.h"
#include "volume/volume_damage_rig.h"

// Large writes: payload and record go out at the same time. What a power cut leaves of the pair.
namespace peplos::volume {
namespace {

constexpr uint64_t kLarge = limits::kLargeWriteBytes;

RigOptions small_options() {
    RigOptions options;
    options.volume_bytes = 4 * kMiB;
    options.disk_bytes = 64 * kMiB;
    return options;
}

// The fate of writes that a test does not wait for.
struct Writes {
    size_t pending = 0;
    size_t failed = 0;
    runtime::WaitList done;
};

Task<void> write_one(Rig& rig, uint64_t offset, uint64_t bytes, Writes& writes) {
    auto outcome = co_await rig.write(offset, bytes);
    if (!outcome) ++writes.failed;
    --writes.pending;
    writes.done.wake_all();
}

void start_write(Rig& rig, uint64_t offset, uint64_t bytes, Writes& writes) {
    ++writes.pending;
    runtime::spawn(rig.world.env().executor, write_one(rig, offset, bytes, writes));
}

// Where block `index` of the only segment of large writes lies on the disk.
uint64_t large_block_offset(Rig& rig, uint64_t index) {
    for (const media::SegmentInfo& info : rig.device->segments().list(Rig::kVolume)) {
        if (info.kind != format::SegmentKind::large) continue;
        return device_offset(rig, info.id) + format::segment_block_offset(index);
    }
    CHECK(false, "there is no segment of large writes");
    return 0;
}

void hold_up_payloads(Rig& rig, sim::DiskEffect effect, Duration delay = {}) {
    rig.world.disk(Rig::kPath)
        .add_fault({.operation = sim::DiskOperation::write,
                    .effect = effect,
                    .offset = units_offset(rig),
                    .count = 1,
                    .delay = delay});
}

Task<Result<void>> read_into(Volume& volume, uint64_t offset, Buffer into) {
    co_return co_await volume.read(offset, into);
}

std::vector<std::byte> content(Rig& rig, uint64_t offset, uint64_t bytes) {
    Buffer into = Buffer::allocate(bytes);
    auto read = rig.world.run(read_into(*rig.volume, offset, into));
    CHECK(read, "{}", read.error().text());
    Bytes seen = std::as_const(into).bytes();
    return {seen.begin(), seen.end()};
}

// Large and small writes at once; later groups write over earlier ones.
Task<Result<void>> mixed_workload(Rig& rig) {
    Writes writes;
    for (uint64_t group = 0; group < 3; ++group) {
        for (uint64_t lane = 0; lane < 3; ++lane) {
            uint64_t start = lane * kMiB + group * 16 * kKiB;
            start_write(rig, start, kLarge, writes);
            start_write(rig, lane * kMiB + 512 * kKiB + group * 4096, 8192, writes);
            start_write(rig, lane * kMiB + 256 * kKiB + group * 512, 512, writes);
        }
        while (writes.pending != 0)
            co_await writes.done.wait();
        if (group == 1) CO_TRY(co_await rig.volume->drain());
        if (group == 2) CO_TRY(co_await rig.volume->checkpoint());
    }
    if (writes.failed != 0) co_return fail(Code::io_error, "{} writes failed", writes.failed);
    co_return Result<void>{};
}

TEST(LargeWrite, APowerCutAtAnyEventLosesNothingAcknowledgedAndSettlesTheRest) {
    bool finished = false;
    for (uint64_t events = 0; !finished; events += 1 + events / 5) {
        Rig rig(31 + events, small_options());
        rig.make();
        auto outcome = rig.world.run_events(mixed_workload(rig), events);
        finished = outcome.has_value();
        if (finished) ASSERT_TRUE(*outcome) << outcome->error().text();
        // The second cut comes right after what was found has been read, so that a write which
        // turns up then, or goes, is noticed.
        for (int cut = 0; cut < 2; ++cut) {
            rig.crash();
            rig.recover();
            rig.expect_all();
            ASSERT_FALSE(HasFailure()) << "after " << events << " events, cut " << cut;
        }
        auto written = rig.world.run(rig.write(0, kLarge));
        ASSERT_TRUE(written) << written.error().text();
        auto drained = rig.world.run(rig.volume->drain());
        ASSERT_TRUE(drained) << drained.error().text();
        rig.reopen();
        rig.expect_all();
        ASSERT_FALSE(HasFailure()) << "after " << events << " events";
    }
}

// The record of the write that is held up is durable, its payload is not.
void leave_a_torn_write(Rig& rig, Writes& writes) {
    rig.make();
    ASSERT_TRUE(rig.world.run(rig.write(kMiB, kLarge)));
    hold_up_payloads(rig, sim::DiskEffect::stuck);
    start_write(rig, kMiB, kLarge, writes);
    rig.world.run_for(std::chrono::microseconds(5));  // the LSN comes first
    start_write(rig, 2 * kMiB, 4096, writes);
    rig.world.run_for(std::chrono::milliseconds(30));
    rig.world.disk(Rig::kPath).clear_faults();
    // The small write is durable by itself. It is not told: the LSN before it is not.
    ASSERT_EQ(writes.pending, 2u);
    rig.crash({.mode = sim::CrashMode::lose});
}

TEST(LargeWrite, ATornOneStaysTornWhateverItsPlaceReadsAsLater) {
    Rig rig(41, small_options());
    Writes writes;
    leave_a_torn_write(rig, writes);
    ASSERT_FALSE(HasFailure());
    rig.recover();
    std::vector<std::byte> before = content(rig, kMiB, kLarge);
    rig.expect_all();
    uint64_t versions_before = rig.model.next_version();
    ASSERT_EQ(versions_before, 4u);
    // The bytes of the torn write, as if the device had found them again.
    uint64_t at = large_block_offset(rig, kLarge / kBlockBytes);
    std::vector<std::byte> late(kLarge);
    for (uint64_t i = 0; i < kLarge; i += SectorModel::kSector) {
        SectorModel::fill(MutableBytes(late).subspan(i, SectorModel::kSector), kMiB + i, 2);
    }
    EXPECT_NE(before, late);
    rig.world.disk(Rig::kPath).poke(at, late);
    for (int round = 0; round < 2; ++round) {
        rig.crash();
        rig.recover();
        EXPECT_EQ(content(rig, kMiB, kLarge), before) << round;
        rig.expect_all();
        ASSERT_TRUE(rig.world.run(rig.write(3 * kMiB, 4096)));
    }
    ASSERT_TRUE(rig.world.run(rig.volume->drain()));
    ASSERT_TRUE(rig.world.run(rig.volume->checkpoint()));
    rig.reopen();
    EXPECT_EQ(content(rig, kMiB, kLarge), before);
    rig.expect_all();
}

// Nobody has vouched for it yet, and its payload cannot be looked at: that proves no tear.
TEST(LargeWrite, OneOnAMissingDeviceIsNotTakenForTorn) {
    Rig rig(47, small_options());
    rig.make();
    ASSERT_TRUE(rig.world.run(rig.write(kMiB, kLarge)));
    rig.crash({.mode = sim::CrashMode::keep});
    ASSERT_TRUE(rig.world.run(rig.open_node()));
    for (const media::SegmentInfo& info : rig.device->segments().list(Rig::kVolume)) {
        if (info.kind == format::SegmentKind::large)
            ASSERT_TRUE(rig.world.run(rig.device->segments().remove(info.id)));
    }
    rig.space->note_missing("disk1");
    for (int i = 0; i < 2; ++i) {
        auto opened = rig.world.run(Volume::open(*rig.resources, rig.next_params()));
        ASSERT_FALSE(opened);
        EXPECT_EQ(opened.error().code(), Code::unavailable) << opened.error().text();
        EXPECT_NE(opened.error().message().find("disk1"), std::string::npos);
    }
    auto shown = rig.world.run(
        Volume::recover(*rig.resources, rig.next_params(), replica::OnLoss::look, std::nullopt));
    ASSERT_TRUE(shown) << shown.error().text();
    EXPECT_FALSE(shown->is_whole());
    ASSERT_FALSE(shown->losses.empty());
    EXPECT_NE(shown->losses[0].find("disk1"), std::string::npos);
    // Who accepts that has the volume back without it.
    auto done = rig.world.run(
        Volume::recover(*rig.resources, rig.next_params(), replica::OnLoss::accept, *shown));
    ASSERT_TRUE(done) << done.error().text();
    rig.open();
    ASSERT_FALSE(HasFatalFailure());
    Buffer into = Buffer::allocate(kLarge);
    ASSERT_TRUE(rig.world.run(rig.volume->read(kMiB, into)));
    EXPECT_TRUE(std::ranges::all_of(std::as_const(into).bytes(),
                                    [](std::byte b) { return b == std::byte{0}; }));
}

TEST(LargeWrite, APowerCutInsideTheRecoveryOfATornOneChangesNothing) {
    bool finished = false;
    for (uint64_t events = 0; !finished; events += 1 + events / 3) {
        Rig rig(43, small_options());
        Writes writes;
        leave_a_torn_write(rig, writes);
        ASSERT_FALSE(HasFailure());
        auto opened = rig.world.run_events(rig.open_all(), events);
        finished = opened.has_value();
        if (finished) ASSERT_TRUE(*opened) << opened->error().text();
        for (int cut = 0; cut < 2; ++cut) {
            rig.crash();
            rig.recover();
            rig.expect_all();
            ASSERT_FALSE(HasFailure()) << "after " << events << " events, cut " << cut;
        }
    }
}

// A payload that goes bad when a record says that it was whole is damage: named, not dropped.
TEST(LargeWrite, ADamagedPayloadOfAnAcknowledgedOneIsNeverTakenForTorn) {
    enum class Vouched : uint8_t { by_a_later_write, by_idling, by_recovery, by_a_clean_stop };
    for (Vouched how : {Vouched::by_a_later_write, Vouched::by_idling, Vouched::by_recovery,
                        Vouched::by_a_clean_stop}) {
        Rig rig(47, small_options());
        rig.make();
        ASSERT_TRUE(rig.world.run(rig.write(kMiB, kLarge)));
        if (how == Vouched::by_a_later_write) ASSERT_TRUE(rig.world.run(rig.write(0, 4096)));
        if (how == Vouched::by_idling) rig.world.run_for(std::chrono::milliseconds(100));
        if (how == Vouched::by_a_clean_stop) {
            rig.stop();
            rig.start_node();
        }
        uint64_t at = large_block_offset(rig, 3);
        if (how == Vouched::by_recovery) {
            rig.crash();
            rig.recover();
        }
        rig.crash();
        rig.world.disk(Rig::kPath).corrupt(at + 77);
        rig.recover();
        ASSERT_FALSE(HasFailure()) << int(how);
        Buffer into = Buffer::allocate(kBlockBytes);
        auto read = rig.world.run(read_into(*rig.volume, kMiB + 3 * kBlockBytes, into));
        ASSERT_FALSE(read) << int(how);
        EXPECT_EQ(read.error().code(), Code::corrupt) << int(how);
        EXPECT_NE(read.error().message().find("segment"), std::string::npos);
        EXPECT_EQ(rig.world.run(rig.check(kMiB + 4 * kBlockBytes, 4 * kBlockBytes)), "");
    }
}

TEST(LargeWrite, APayloadThatFailsFailsWhateverWaitsBehindIt) {
    Rig rig(53, small_options());
    rig.make();
    ASSERT_TRUE(rig.world.run(rig.write(kMiB, kLarge)));
    hold_up_payloads(rig, sim::DiskEffect::io_error);
    Writes writes;
    start_write(rig, kMiB, kLarge, writes);
    rig.world.run_for(std::chrono::microseconds(5));
    start_write(rig, 2 * kMiB, 4096, writes);
    start_write(rig, 3 * kMiB, kLarge, writes);
    rig.world.run_for(std::chrono::milliseconds(100));
    EXPECT_EQ(writes.pending, 0u);
    EXPECT_EQ(writes.failed, 3u);
    EXPECT_TRUE(rig.volume->faulted().has_value());
    rig.crash();
    rig.world.disk(Rig::kPath).clear_faults();
    rig.recover();
    rig.expect_all();
    rig.crash();
    rig.recover();
    rig.expect_all();
}

TEST(LargeWrite, ADrainCutsBetweenSegmentsAndWritersGoOn) {
    Rig rig(59, small_options());
    rig.make();
    ASSERT_TRUE(rig.world.run(rig.write(0, kLarge)));
    hold_up_payloads(rig, sim::DiskEffect::slow, std::chrono::milliseconds(5));
    Writes writes;
    start_write(rig, kMiB, kLarge, writes);
    rig.world.run_for(std::chrono::microseconds(10));
    size_t drains = 0;
    auto drain = [](Rig& r, size_t& count) -> Task<void> {
        auto outcome = co_await r.volume->drain();
        count += outcome ? 1 : 0;
    };
    runtime::spawn(rig.world.env().executor, drain(rig, drains));
    rig.world.run_for(std::chrono::microseconds(10));
    // Behind the cut: in another segment, and not part of the drain.
    start_write(rig, 2 * kMiB, kLarge, writes);
    start_write(rig, 3 * kMiB, 4096, writes);
    rig.world.run_for(std::chrono::milliseconds(2));
    EXPECT_EQ(drains, 0u);
    EXPECT_EQ(writes.pending, 3u);
    rig.world.run_for(std::chrono::milliseconds(20));
    EXPECT_EQ(drains, 1u);
    EXPECT_EQ(writes.pending, 0u);
    EXPECT_EQ(writes.failed, 0u);
    VolumeStats stats = rig.volume->stats();
    EXPECT_EQ(stats.undrained_bytes, kLarge + 4096);
    std::vector<SegmentView> sealed = rig.volume->segments();
    ASSERT_EQ(sealed.size(), 1u);  // the blocks stay where they were written
    EXPECT_EQ(sealed[0].kind, format::SegmentKind::large);
    EXPECT_EQ(sealed[0].live_count, 2 * kLarge / kBlockBytes);
    rig.expect_all();
    rig.crash();
    rig.recover();
    rig.expect_all();
}

TEST(LargeWrite, ASegmentMadeAheadIsGivenBackWhenTheStreamEnds) {
    RigOptions options;
    options.disk_bytes = 256 * kMiB;
    Rig rig(61, options);
    rig.make();
    uint32_t free = rig.device->segments().space().free_units;
    for (uint64_t at = 0; at < 3 * kMiB; at += kMiB)
        ASSERT_TRUE(rig.world.run(rig.write(at, kMiB)));
    rig.world.run_for(std::chrono::milliseconds(10));
    // One of 4 MiB in use, one of 8 MiB ahead.
    EXPECT_EQ(rig.device->segments().space().free_units, free - 12);
    ASSERT_TRUE(rig.world.run(rig.volume->drain()));
    rig.world.run_for(std::chrono::milliseconds(10));
    EXPECT_EQ(rig.device->segments().space().free_units, free - 4);
    rig.expect_all();
}

// A drain after a restart seals the segment behind its last living block. Until its record is
// durable the journal still refers to blocks behind that.
TEST(LargeWrite, APowerCutInsideADrainOfAnAdoptedSegmentKeepsWhatTheJournalRefersTo) {
    bool finished = false;
    for (uint64_t events = 0; !finished; ++events) {
        Rig rig(67, small_options());
        rig.make();
        for (uint64_t at = 0; at < 3 * kMiB; at += kMiB)
            ASSERT_TRUE(rig.world.run(rig.write(at, kMiB)));
        ASSERT_TRUE(rig.world.run(rig.zero(kMiB / 2, 2 * kMiB + kMiB / 2)));
        rig.crash();
        rig.recover();
        ASSERT_FALSE(HasFailure());
        auto outcome = rig.world.run_events(rig.volume->drain(), events);
        finished = outcome.has_value();
        if (finished) ASSERT_TRUE(*outcome) << outcome->error().text();
        uint32_t units = rig.device->segments().list(Rig::kVolume).front().unit_count;
        EXPECT_EQ(units, finished ? 1u : units);
        rig.crash();
        rig.recover();
        ASSERT_FALSE(HasFailure()) << "after " << events << " events";
        rig.expect_all();
        ASSERT_TRUE(rig.world.run(rig.volume->drain()));
        rig.reopen();
        rig.expect_all();
        units = rig.device->segments().list(Rig::kVolume).front().unit_count;
        EXPECT_EQ(units, 1u) << "after " << events << " events";
    }
}

// A record that refers to a segment is taken at its word until a seal covers it, whatever later
// records did to the blocks: so the segment may not go before that.
TEST(LargeWrite, ASegmentStaysUntilASealCoversItsRecordsThoughNobodyReadsItAnyMore) {
    for (bool is_opened_again : {false, true}) {
        NoWork background;
        Rig rig(31, small_options());
        rig.background = &background;
        rig.make();
        ASSERT_TRUE(rig.world.run(rig.write(0, kLarge)));
        ASSERT_TRUE(rig.world.run(rig.write(2 * kMiB, 4096)));
        if (is_opened_again) {
            ASSERT_TRUE(rig.world.run(rig.zero(0, kLarge)));
            rig.crash();
            rig.recover();
            ASSERT_FALSE(HasFatalFailure());
        } else {
            // A drain that fails leaves its generation frozen, and then all of it is superseded.
            rig.world.faults().arm("volume.drain.no_space");
            ASSERT_FALSE(rig.world.run(rig.volume->drain()));
            ASSERT_TRUE(rig.world.run(rig.zero(0, 4 * kMiB)));
            ASSERT_TRUE(rig.world.run(rig.volume->drain()));
        }
        ASSERT_TRUE(rig.world.run(rig.volume->checkpoint()));
        ASSERT_TRUE(rig.world.run(rig.volume->remove_dead()));
        rig.crash();
        auto started = rig.world.run(rig.open_node());
        ASSERT_TRUE(started);
        auto opened = rig.try_open();
        ASSERT_TRUE(opened) << opened.error().text();
        rig.expect_all();
        // Nothing stays for good.
        ASSERT_TRUE(rig.world.run(rig.volume->drain()));
        ASSERT_TRUE(rig.world.run(rig.volume->checkpoint()));
        ASSERT_TRUE(rig.world.run(rig.volume->remove_dead()));
        for (const media::SegmentInfo& info : rig.device->segments().list(Rig::kVolume))
            EXPECT_NE(info.kind, format::SegmentKind::large);
        rig.expect_all();
    }
}

}  // namespace
}  // namespace peplos::volume
