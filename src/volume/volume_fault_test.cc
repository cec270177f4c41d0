#include "volume/core.h"
#include "volume/volume_damage_rig.h"

namespace peplos::volume {
namespace {

Task<Result<void>> read_block(Volume& volume, uint64_t offset) {
    Buffer into = Buffer::allocate(kBlockBytes);
    co_return co_await volume.read(offset, into);
}

TEST(VolumeFault, ACorruptBlockIsFoundNamedAndNeverServed) {
    Rig rig(1);
    rig.make();
    ASSERT_TRUE(rig.world.run(rig.write(64 * kKiB, 32 * kKiB)));
    ASSERT_TRUE(rig.world.run(rig.volume->drain()));
    SegmentView segment = rig.volume->segments().at(0);
    uint64_t at = device_offset(rig, segment.id) + format::segment_block_offset(2);
    rig.world.disk(Rig::kPath).corrupt(at + 100);
    auto bad = rig.world.run(read_block(*rig.volume, 64 * kKiB + 2 * kBlockBytes));
    ASSERT_FALSE(bad);
    EXPECT_EQ(bad.error().code(), Code::corrupt);
    EXPECT_NE(bad.error().message().find(segment.id.text()), std::string::npos);
    EXPECT_EQ(rig.volume->stats().corrupt_blocks, 1u);
    EXPECT_TRUE(rig.world.run(read_block(*rig.volume, 64 * kKiB + 3 * kBlockBytes)));
    auto scrubbed = rig.world.run(rig.volume->scrub(segment.index));
    ASSERT_TRUE(scrubbed);
    ASSERT_EQ(scrubbed->problems.size(), 1u);
    EXPECT_NE(scrubbed->problems[0].find("block 18"), std::string::npos) << scrubbed->problems[0];
    // Cleaning moves the others, and says what it could not move.
    auto moved = rig.world.run(rig.volume->relocate({segment.index}, 2));
    ASSERT_FALSE(moved);
    EXPECT_EQ(moved.error().code(), Code::corrupt);
    EXPECT_FALSE(rig.volume->faulted().has_value());
    EXPECT_EQ(rig.world.run(rig.check(64 * kKiB, 8 * kKiB)), "");
}

TEST(VolumeFault, ACorruptMapPageIsNotBelieved) {
    Rig rig(2);
    rig.make();
    ASSERT_TRUE(rig.world.run(rig.write(0, 32 * kKiB)));
    ASSERT_TRUE(rig.world.run(rig.volume->drain()));
    ASSERT_TRUE(rig.world.run(rig.volume->checkpoint()));
    SegmentId map_segment{};
    for (const SegmentView& segment : rig.volume->segments()) {
        if (segment.kind == format::SegmentKind::map) map_segment = segment.id;
    }
    ASSERT_TRUE(map_segment);
    uint64_t at = device_offset(rig, map_segment) + format::kSegmentDataOffset;
    rig.stop();
    rig.world.disk(Rig::kPath).corrupt(at, kBlockBytes);
    rig.start_node();
    auto opened = rig.try_open();
    if (opened) {
        auto read = rig.world.run(read_block(*rig.volume, 0));
        ASSERT_FALSE(read);
        EXPECT_EQ(read.error().code(), Code::corrupt);
    } else {
        EXPECT_EQ(opened.error().code(), Code::corrupt) << opened.error().text();
    }
    rig.stop();
}

TEST(VolumeFault, AFailedDeviceTakesItsVolumeOutOfServiceAndNothingHangs) {
    for (uint64_t skip = 0; skip < 6; ++skip) {
        Rig rig(10 + skip);
        rig.make();
        ASSERT_TRUE(rig.world.run(rig.write(0, 32 * kKiB)));
        rig.world.disk(Rig::kPath)
            .add_fault({.operation = sim::DiskOperation::write,
                        .effect = sim::DiskEffect::io_error,
                        .skip = skip});
        Result<void> outcome;
        for (int i = 0; i < 8 && outcome; ++i) {
            outcome = rig.world.run(rig.write(i * kMiB, i % 2 == 0 ? 4096 : 256 * kKiB));
            if (outcome) outcome = rig.world.run(rig.volume->drain());
        }
        ASSERT_FALSE(outcome) << skip;
        EXPECT_EQ(outcome.error().code(), Code::io_error) << outcome.error().text();
        ASSERT_TRUE(rig.volume->faulted().has_value());
        EXPECT_FALSE(rig.world.run(rig.write(0, 4096)));
        EXPECT_FALSE(rig.world.run(rig.volume->close()));
        rig.crash();
        rig.world.disk(Rig::kPath).clear_faults();
        rig.recover();
        rig.expect_all();
    }
}

TEST(VolumeFault, AFullDeviceFailsCleanlyAndRecoversWithoutARestart) {
    RigOptions options;
    options.disk_bytes = 64 * kMiB;
    options.volume_bytes = 128 * kMiB;
    Rig rig(20, options);
    rig.make();
    Result<void> outcome;
    uint64_t offset = 0;
    while (outcome && offset < 120 * kMiB) {
        outcome = rig.world.run(rig.write(offset, 64 * kKiB));
        if (outcome) offset += 64 * kKiB;
    }
    ASSERT_FALSE(outcome);
    EXPECT_EQ(outcome.error().code(), Code::no_space) << outcome.error().text();
    EXPECT_GT(offset, 20 * kMiB);
    EXPECT_FALSE(rig.volume->faulted().has_value());
    EXPECT_EQ(rig.world.run(rig.check(0, kMiB)), "");
    ASSERT_TRUE(rig.world.run(rig.zero(0, offset / 2)));
    for (uint64_t at = 0; at < 8 * kMiB; at += 64 * kKiB) {
        auto again = rig.world.run(rig.write(at, 64 * kKiB));
        ASSERT_TRUE(again) << "at " << at << ": " << again.error().text();
    }
    for (uint64_t at = 0; at < offset; at += kMiB) {
        ASSERT_EQ(rig.world.run(rig.check(at, 64 * kKiB)), "") << at;
    }
    // Destroy works on a full device, for a volume that is not open.
    rig.world.run(rig.volume->stop());
    rig.volume.reset();
    uint32_t free = rig.device->segments().space().free_units;
    {
        // A reader that is slow: until it is done a power cut would bring its segment back.
        media::SegmentStore& store = rig.device->segments();
        media::SegmentPin pin = store.find(store.list(Rig::kVolume).front().id);
        auto early = rig.world.run(Volume::destroy(*rig.resources, Rig::kVolume));
        ASSERT_FALSE(early);
        EXPECT_EQ(early.error().code(), Code::busy);
    }
    rig.world.run_for(std::chrono::milliseconds(10));
    ASSERT_TRUE(rig.world.run(Volume::destroy(*rig.resources, Rig::kVolume)));
    EXPECT_GT(rig.device->segments().space().free_units, free);
    EXPECT_TRUE(rig.device->segments().list(Rig::kVolume).empty());
    rig.stop_node();
}

TEST(VolumeFault, LargeWritesOnANearlyFullDeviceAreDrainedAfterACrash) {
    RigOptions options;
    options.disk_bytes = 64 * kMiB;
    options.volume_bytes = 64 * kMiB;
    Rig rig(40, options);
    rig.make();
    for (uint64_t at = 0; at < 24 * kMiB; at += 256 * kKiB) {
        auto written = rig.world.run(rig.write(at, 256 * kKiB));
        ASSERT_TRUE(written) << written.error().text();
    }
    ASSERT_GT(rig.volume->stats().undrained_bytes, 20 * kMiB);
    for (int round = 0; round < 2; ++round) {
        rig.crash();
        rig.recover();
        ASSERT_TRUE(rig.world.run(rig.write(0, 4096)));
        if (round == 0) ASSERT_TRUE(rig.world.run(rig.volume->checkpoint()));
    }
    auto drained = rig.world.run(rig.volume->drain());
    ASSERT_TRUE(drained) << drained.error().text();
    rig.expect_all();
    rig.crash();
    rig.recover();
    rig.expect_all();
    ASSERT_TRUE(rig.world.run(rig.zero(0, 24 * kMiB)));
    ASSERT_TRUE(rig.world.run(rig.volume->drain()));
    ASSERT_TRUE(rig.world.run(rig.volume->checkpoint()));
    EXPECT_GT(rig.device->segments().space().free_units, 36u);
    rig.expect_all();
}

// Fills the journal with another volume's records, its reserve too.
void fill_journal(Rig& rig, replica::VolumeLog& log) {
    for (size_t count : {4096, 512, 1}) {
        format::Record record;
        record.type = format::RecordType::delete_intent;
        format::DeleteIntentBody body;
        for (size_t i = 0; i < count; ++i)
            body.segments.push_back(SegmentId{VolumeId(7), 1, static_cast<uint32_t>(i + 1)});
        record.body = std::move(body);
        Result<Lsn> appended;
        do {
            appended = rig.world.run(log.append(record));
        } while (appended);
        ASSERT_EQ(appended.error().code(), Code::busy) << appended.error().text();
    }
}

TEST(VolumeFault, AJournalWithoutRoomForASealDelaysItAndNoMore) {
    Rig rig(30);
    rig.make();
    ASSERT_TRUE(rig.world.run(rig.write(0, 64 * kKiB)));
    ASSERT_TRUE(rig.world.run(rig.write(0, 32 * kKiB)));
    ASSERT_TRUE(rig.world.run(rig.volume->drain()));
    ASSERT_TRUE(rig.world.run(rig.write(0, 32 * kKiB)));
    ASSERT_TRUE(rig.world.run(rig.write(1 * kMiB, 256 * kKiB)));
    replica::OpenRequest request{.volume = VolumeId(99),
                                 .lineage = LineageId(98),
                                 .epoch = Epoch(1),
                                 .token = OpenToken(97),
                                 .recorded = {}};
    auto hog = rig.world.run(rig.journal->open(request));
    ASSERT_TRUE(hog) << hog.error().text();
    fill_journal(rig, **hog);
    hog->reset();
    uint32_t first = rig.volume->segments().at(0).index;
    for (Result<void> outcome :
         {rig.world.run(rig.volume->drain()), rig.world.run(rig.volume->checkpoint()),
          rig.world.run(rig.volume->relocate({first}, 2))}) {
        ASSERT_FALSE(outcome);
        EXPECT_EQ(outcome.error().code(), Code::busy) << outcome.error().text();
    }
    EXPECT_FALSE(rig.volume->faulted().has_value());
    rig.expect_all();
    ASSERT_TRUE(rig.world.run(rig.journal->drop(VolumeId(99))));
    rig.world.run_until_idle();  // the journal moves its oldest records out of the way
    for (Result<void> outcome :
         {rig.world.run(rig.volume->drain()), rig.world.run(rig.volume->relocate({first}, 2)),
          rig.world.run(rig.volume->checkpoint()), rig.world.run(rig.write(0, 64 * kKiB))}) {
        ASSERT_TRUE(outcome) << outcome.error().text();
    }
    rig.expect_all();
    rig.crash();
    rig.recover();
    rig.expect_all();
}

Task<Result<void>> write_many(Rig& rig, uint64_t begin, uint64_t end, uint64_t bytes) {
    for (uint64_t at = begin; at < end; at += bytes)
        CO_TRY(co_await rig.write(at, bytes));
    co_return Result<void>{};
}

// A drain that fails each time: whoever waits for it hears why in bounded time, nobody hangs, and
// once drains succeed writes do, too.
TEST(VolumeFault, WritersHearOfDrainsThatFailAndGoOnLater) {
    for (uint64_t overlay_bytes : {2 * kMiB, 64 * kMiB}) {  // short of memory; of the journal
        RigOptions options;
        options.overlay_bytes = overlay_bytes;
        Rig rig(50, options);
        rig.make();
        rig.world.faults().arm("volume.drain.no_space", UINT64_MAX);
        Time start = rig.world.now();
        auto outcome = rig.world.run(write_many(rig, 0, 24 * kMiB, 4096));
        ASSERT_FALSE(outcome) << overlay_bytes;
        EXPECT_EQ(outcome.error().code(), Code::no_space) << outcome.error().text();
        EXPECT_LT(rig.world.now() - start, std::chrono::minutes(2));
        EXPECT_FALSE(rig.volume->faulted().has_value());
        EXPECT_FALSE(rig.world.run(rig.write(24 * kMiB, 4096)));
        rig.expect_all();
        ASSERT_TRUE(rig.world.run(rig.zero(0, kMiB))) << "freeing works all the time";
        rig.world.faults().disarm("volume.drain.no_space");
        outcome = rig.world.run(write_many(rig, 24 * kMiB, 32 * kMiB, 64 * kKiB));
        ASSERT_TRUE(outcome) << outcome.error().text();
        rig.expect_all();
        rig.crash();
        rig.recover();
        rig.expect_all();
    }
}

Task<void> write_until_error(Rig& rig, uint64_t offset, uint64_t bytes, std::optional<Error>* error,
                             int* running) {
    Result<void> outcome;
    while (outcome)
        outcome = co_await rig.write(offset, bytes);
    error->emplace(std::move(outcome).error());
    --*running;
}

// Nothing drains any more when a volume stops, and a failed device never does.
TEST(VolumeFault, WritersThatWaitForTheJournalDoNotHoldUpAStop) {
    for (bool is_failure : {false, true}) {
        RigOptions options;
        options.overlay_bytes = 64 * kMiB;
        NoWork background;
        Rig rig(51, options);
        rig.background = &background;
        rig.make();
        std::optional<Error> errors[4];
        int running = 4;
        for (int i = 0; i < 4; ++i) {
            runtime::spawn(
                rig.world.env().executor,
                write_until_error(rig, uint64_t(i) * kMiB, 64 * kKiB, &errors[i], &running));
        }
        rig.world.run_until_idle();
        ASSERT_EQ(running, 4) << "they wait for a drain";
        if (is_failure) {
            rig.world.disk(Rig::kPath)
                .add_fault(
                    {.operation = sim::DiskOperation::write, .effect = sim::DiskEffect::io_error});
            EXPECT_FALSE(rig.world.run(rig.volume->drain()));
            rig.world.run_until_idle();
            EXPECT_EQ(running, 0);
        }
        rig.world.run(rig.volume->stop());
        EXPECT_EQ(running, 0);
        for (const auto& error : errors) {
            ASSERT_TRUE(error.has_value());
            EXPECT_EQ(error->code(), is_failure ? Code::io_error : Code::stopping) << error->text();
        }
        rig.volume.reset();
        rig.stop_node();
    }
}

// What was overwritten or freed after a drain failed takes no space in the next one.
TEST(VolumeFault, AFailedDrainLeavesOutWhatIsSupersededMeanwhile) {
    NoWork background;
    Rig rig(52);
    rig.background = &background;
    rig.make();
    ASSERT_TRUE(rig.world.run(write_many(rig, 0, 2 * kMiB, 64 * kKiB)));
    rig.world.faults().arm("volume.drain.no_space");
    ASSERT_FALSE(rig.world.run(rig.volume->drain()));
    ASSERT_TRUE(rig.world.run(rig.zero(0, kMiB)));
    ASSERT_TRUE(rig.world.run(write_many(rig, kMiB, kMiB + 512 * kKiB, 64 * kKiB)));
    uint64_t before = rig.volume->stats().drained_bytes;
    ASSERT_TRUE(rig.world.run(rig.volume->drain()));
    EXPECT_LT(rig.volume->stats().drained_bytes - before, 640 * kKiB);
    rig.expect_all();
    rig.crash();  // the rest comes from the journal
    rig.recover();
    rig.expect_all();
    ASSERT_TRUE(rig.world.run(rig.volume->drain()));
    rig.expect_all();
}

// The leaves of blocks 0.. and 1024.. and so on, in this order, at the front of the map segment.
uint64_t leaf_page_offset(Rig& rig) {
    SegmentId map_segment{};
    for (const SegmentView& segment : rig.volume->segments()) {
        if (segment.kind == format::SegmentKind::map) map_segment = segment.id;
    }
    CHECK(map_segment);
    return device_offset(rig, map_segment) + format::kSegmentDataOffset;
}

// One bad leaf: only what it alone knew is lost, and says so; the volume serves, is written,
// drained, checkpointed, cleaned and opened again.
TEST(VolumeFault, ACorruptMapLeafHurtsNoMoreThanItsOwnBlocks) {
    Rig rig(60);
    rig.make();
    ASSERT_TRUE(rig.world.run(rig.write(0, 64 * kKiB)));
    ASSERT_TRUE(rig.world.run(rig.write(4 * kMiB, 64 * kKiB)));
    ASSERT_TRUE(rig.world.run(rig.volume->drain()));
    ASSERT_TRUE(rig.world.run(rig.volume->checkpoint()));
    uint64_t page = leaf_page_offset(rig);
    rig.stop();
    rig.world.disk(Rig::kPath).corrupt(page + 70);
    rig.start_node();
    rig.open();
    auto read = rig.world.run(read_block(*rig.volume, 8192));
    ASSERT_FALSE(read);
    EXPECT_EQ(read.error().code(), Code::corrupt);
    EXPECT_NE(read.error().message().find(Rig::kPath), std::string::npos) << read.error().message();
    EXPECT_GT(rig.device->errors().count(), 0u);
    for (int life = 0; life < 3; ++life) {
        ASSERT_TRUE(rig.world.run(rig.write(4096, 4096)));
        ASSERT_TRUE(rig.world.run(rig.write(4 * kMiB, 4096)));
        auto drained = rig.world.run(rig.volume->drain());
        ASSERT_TRUE(drained) << drained.error().text();
        EXPECT_FALSE(rig.volume->faulted().has_value());
        EXPECT_EQ(rig.world.run(rig.check(4096, 4096)), "");
        EXPECT_EQ(rig.world.run(rig.check(4 * kMiB, 64 * kKiB)), "");
        read = rig.world.run(read_block(*rig.volume, 8192));
        ASSERT_FALSE(read) << "never zeros";
        EXPECT_EQ(read.error().code(), Code::corrupt);
        if (life == 1) ASSERT_TRUE(rig.world.run(rig.volume->checkpoint()));
        std::vector<uint32_t> indexes;
        for (const SegmentView& segment : rig.volume->segments())
            indexes.push_back(segment.index);
        std::ignore = rig.world.run(rig.volume->relocate(indexes, 2));
        EXPECT_FALSE(rig.volume->faulted().has_value());
        rig.crash();
        rig.recover();
        ASSERT_FALSE(HasFatalFailure());
    }
    // Writing and freeing make it whole again.
    ASSERT_TRUE(rig.world.run(rig.write(8192, 4096)));
    ASSERT_TRUE(rig.world.run(rig.zero(12288, 8 * kMiB - 12288)));
    ASSERT_TRUE(rig.world.run(rig.volume->drain()));
    ASSERT_TRUE(rig.world.run(rig.write(0, 4096)));
    ASSERT_TRUE(rig.world.run(rig.volume->drain()));
    rig.expect_all();
    rig.crash();
    rig.recover();
    rig.expect_all();
}

// What a device does not give now it may give later: nothing of it is lost, and nothing else waits.
TEST(VolumeFault, AMapLeafThatCannotBeReadForAWhileCostsNothing) {
    for (int clear_in = 0; clear_in < 3; ++clear_in) {
        SCOPED_TRACE(clear_in);
        Rig rig(64);
        rig.make();
        ASSERT_TRUE(rig.world.run(rig.write(0, 64 * kKiB)));
        ASSERT_TRUE(rig.world.run(rig.write(4 * kMiB, 64 * kKiB)));
        ASSERT_TRUE(rig.world.run(rig.volume->drain()));
        ASSERT_TRUE(rig.world.run(rig.volume->checkpoint()));
        uint64_t page = leaf_page_offset(rig);
        rig.reopen();
        // Its neighbour in the same 4 KiB cannot be read either.
        rig.world.disk(Rig::kPath)
            .add_fault({.operation = sim::DiskOperation::read,
                        .effect = sim::DiskEffect::io_error,
                        .offset = page,
                        .bytes = kBlockBytes});
        for (int life = 0; life <= clear_in; ++life) {
            ASSERT_TRUE(rig.world.run(rig.write(4096, 4096)));
            ASSERT_TRUE(rig.world.run(rig.zero(16 * kKiB, 8192)));
            ASSERT_TRUE(rig.world.run(rig.write(12 * kMiB, 32 * kKiB)));
            ASSERT_TRUE(rig.world.run(rig.volume->drain()));
            ASSERT_TRUE(rig.world.run(rig.write(4096, 8192)));
            auto drained = rig.world.run(rig.volume->drain());
            ASSERT_TRUE(drained) << drained.error().text();
            // What was written since is served, the rest is asked for again.
            EXPECT_EQ(rig.world.run(rig.check(4096, 8192)), "");
            EXPECT_EQ(rig.world.run(rig.check(16 * kKiB, 8192)), "");
            EXPECT_EQ(rig.world.run(rig.check(12 * kMiB, 64 * kKiB)), "");
            auto read = rig.world.run(read_block(*rig.volume, 32 * kKiB));
            ASSERT_FALSE(read);
            EXPECT_EQ(read.error().code(), Code::io_error);
            auto kept = rig.world.run(rig.volume->checkpoint());
            ASSERT_FALSE(kept);
            EXPECT_EQ(kept.error().code(), Code::unavailable);
            std::vector<uint32_t> indexes;
            for (const SegmentView& segment : rig.volume->segments())
                indexes.push_back(segment.index);
            std::ignore = rig.world.run(rig.volume->relocate(indexes, 2));
            EXPECT_EQ(rig.volume->stats().lost_blocks, 0u);
            EXPECT_FALSE(rig.volume->faulted().has_value());
            if (life == clear_in) break;
            rig.crash();
            rig.recover();
            ASSERT_FALSE(HasFatalFailure());
        }
        rig.world.disk(Rig::kPath).clear_faults();
        rig.expect_all();
        EXPECT_TRUE(rig.world.run(rig.volume->remove_dead()));
        ASSERT_TRUE(rig.world.run(rig.write(20 * kKiB, 4096)));
        ASSERT_TRUE(rig.world.run(rig.volume->drain()));
        ASSERT_TRUE(rig.world.run(rig.volume->checkpoint()));
        rig.expect_all();
        rig.crash();
        rig.recover();
        rig.expect_all();
    }
}

// A bad sector for good: after long it is given up, so that the journal does not keep its changes
// for ever.
TEST(VolumeFault, AMapLeafThatIsNeverReadAgainIsGivenUpAfterLong) {
    Rig rig(65);
    rig.make();
    ASSERT_TRUE(rig.world.run(rig.write(0, 64 * kKiB)));
    ASSERT_TRUE(rig.world.run(rig.volume->drain()));
    ASSERT_TRUE(rig.world.run(rig.volume->checkpoint()));
    uint64_t page = leaf_page_offset(rig);
    rig.reopen();
    rig.world.disk(Rig::kPath)
        .add_fault({.operation = sim::DiskOperation::read,
                    .effect = sim::DiskEffect::io_error,
                    .offset = page,
                    .bytes = kBlockBytes});
    ASSERT_TRUE(rig.world.run(rig.write(4096, 4096)));
    ASSERT_TRUE(rig.world.run(rig.volume->drain()));
    ASSERT_FALSE(rig.world.run(rig.volume->checkpoint()));
    rig.world.run_for(kUnreadPatience);
    ASSERT_TRUE(rig.world.run(rig.volume->checkpoint()));
    EXPECT_EQ(rig.volume->stats().lost_blocks, 1023u);
    rig.world.disk(Rig::kPath).clear_faults();
    rig.crash();
    rig.recover();
    EXPECT_EQ(rig.world.run(rig.check(4096, 4096)), "");
    auto read = rig.world.run(read_block(*rig.volume, 8192));
    ASSERT_FALSE(read) << "given up is given up";
    EXPECT_EQ(read.error().code(), Code::corrupt);
}

TEST(VolumeFault, ADeviceThatAnswersNothingTakesNoLeafAway) {
    Rig rig(61);
    rig.make();
    ASSERT_TRUE(rig.world.run(rig.write(0, 64 * kKiB)));
    ASSERT_TRUE(rig.world.run(rig.volume->drain()));
    ASSERT_TRUE(rig.world.run(rig.volume->checkpoint()));
    rig.reopen();
    ASSERT_TRUE(rig.world.run(rig.write(8192, 4096)));
    rig.world.disk(Rig::kPath)
        .add_fault({.operation = sim::DiskOperation::read, .effect = sim::DiskEffect::io_error});
    auto drained = rig.world.run(rig.volume->drain());
    ASSERT_FALSE(drained);
    EXPECT_EQ(drained.error().code(), Code::io_error);
    rig.world.disk(Rig::kPath).clear_faults();
    rig.crash();
    rig.recover();
    rig.expect_all();
}

TEST(VolumeFault, AScrubChecksMapPages) {
    Rig rig(62);
    rig.make();
    ASSERT_TRUE(rig.world.run(rig.write(0, 64 * kKiB)));
    ASSERT_TRUE(rig.world.run(rig.write(4 * kMiB, 64 * kKiB)));
    ASSERT_TRUE(rig.world.run(rig.volume->drain()));
    ASSERT_TRUE(rig.world.run(rig.volume->checkpoint()));
    uint64_t page = leaf_page_offset(rig);
    auto scrub = [&rig] {
        std::vector<std::string> problems;
        uint64_t bytes = 0;
        for (const SegmentView& segment : rig.volume->segments()) {
            auto found = rig.world.run(rig.volume->scrub(segment.index));
            CHECK(found.has_value());
            bytes += found->bytes_checked;
            problems.insert(problems.end(), found->problems.begin(), found->problems.end());
        }
        EXPECT_GT(bytes, 128 * kKiB);
        return problems;
    };
    EXPECT_TRUE(scrub().empty());
    // A leaf; the interior page, the segment table page and the root, 4 KiB each further on.
    for (uint64_t at : {page + 100, page + 512 + 70, page + 4096 + 70, page + 2 * 4096 + 100,
                        page + 3 * 4096 + 100}) {
        rig.world.disk(Rig::kPath).corrupt(at);
        std::vector<std::string> problems = scrub();
        ASSERT_EQ(problems.size(), 1u) << at - page;
        for (std::string named : {std::string(Rig::kPath), std::string("0000000000000abc")})
            EXPECT_NE(problems[0].find(named), std::string::npos) << problems[0];
        rig.world.disk(Rig::kPath).corrupt(at);  // flips it back
    }
    EXPECT_TRUE(scrub().empty());
}

// Eight leaves of which one is lost and written again: more blocks count as alive than there are.
// Cleaning finds out, and the space comes back.
TEST(VolumeFault, WhatALostLeafNamedComesBackOnceItIsWrittenAgain) {
    NoWork background;
    RigOptions options;
    options.disk_bytes = 192 * kMiB;
    options.overlay_bytes = 64 * kMiB;
    Rig rig(64, options);
    rig.background = &background;
    rig.make();
    for (uint64_t at = 0; at < 32 * kMiB; at += 2 * kMiB) {
        ASSERT_TRUE(rig.world.run(write_many(rig, at, at + 2 * kMiB, 64 * kKiB)));
        ASSERT_TRUE(rig.world.run(rig.volume->drain()));
    }
    ASSERT_TRUE(rig.world.run(rig.volume->checkpoint()));
    uint64_t blocks = 32 * kMiB / kBlockBytes;
    ASSERT_EQ(rig.volume->stats().live_bytes, 32 * kMiB);
    uint64_t page = leaf_page_offset(rig);
    rig.stop();
    rig.world.disk(Rig::kPath).corrupt(page + 70);
    rig.start_node();
    rig.open();
    ASSERT_TRUE(rig.world.run(rig.write(0, 64 * kKiB)));
    ASSERT_TRUE(rig.world.run(rig.volume->drain()));
    EXPECT_EQ(rig.volume->stats().lost_blocks, 1024u - 16);
    auto clean = [&rig] {
        std::vector<uint32_t> indexes;
        for (const SegmentView& segment : rig.volume->segments()) {
            if (segment.kind != format::SegmentKind::map && !segment.is_damaged &&
                segment.live_count != 0)
                indexes.push_back(segment.index);
        }
        auto moved = rig.world.run(rig.volume->relocate(indexes, 2));
        EXPECT_TRUE(moved) << moved.error().text();
        return indexes.size();
    };
    // While blocks are lost nothing of what they may have been is given away.
    EXPECT_GT(clean(), 0u);
    EXPECT_GT(rig.volume->stats().live_bytes, 32 * kMiB - kBlockBytes);
    ASSERT_TRUE(rig.world.run(rig.volume->checkpoint()));
    rig.crash();
    rig.recover();
    EXPECT_EQ(rig.volume->stats().lost_blocks, 1024u - 16);
    for (uint64_t at : {64 * kKiB, 2 * kMiB}) {
        uint64_t end = at < 2 * kMiB ? 2 * kMiB : 4 * kMiB;
        ASSERT_TRUE(rig.world.run(write_many(rig, at, end, 64 * kKiB)));
        ASSERT_TRUE(rig.world.run(rig.volume->drain()));
    }
    EXPECT_EQ(rig.volume->stats().lost_blocks, 0u);
    EXPECT_GT(rig.volume->stats().live_bytes, 32 * kMiB);
    // More blocks alive than the volume has: it opens all the same.
    ASSERT_TRUE(rig.world.run(rig.volume->checkpoint()));
    rig.crash();
    rig.recover();
    ASSERT_FALSE(HasFatalFailure());
    rig.expect_all();
    EXPECT_GT(clean(), 0u);
    EXPECT_EQ(rig.volume->stats().live_bytes, blocks * kBlockBytes);
    rig.crash();  // the count is corrected by a checkpoint only
    rig.recover();
    clean();
    ASSERT_TRUE(rig.world.run(rig.volume->checkpoint()));
    EXPECT_EQ(rig.volume->stats().live_bytes, blocks * kBlockBytes);
    rig.expect_all();
    rig.crash();
    rig.recover();
    EXPECT_EQ(rig.volume->stats().live_bytes, blocks * kBlockBytes);
    rig.expect_all();
}

}  // namespace
}  // namespace peplos::volume
