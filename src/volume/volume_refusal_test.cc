#include "volume/volume_test_rig.h"

// What a volume refuses before it does anything.
namespace peplos::volume {
namespace {

TEST(VolumeRefusal, ParametersThatNoVolumeHas) {
    Rig rig(1);
    rig.make();
    const auto refused = [&](auto change) {
        VolumeParams params = rig.next_params();
        params.id = VolumeId(0x777);
        change(params);
        auto created = rig.world.run(Volume::create(*rig.resources, params));
        EXPECT_FALSE(created);
        return created ? Code::busy : created.error().code();
    };
    using P = VolumeParams;
    EXPECT_EQ(refused([](P& p) { p.size_bytes += 512; }), Code::invalid_argument);
    EXPECT_EQ(refused([](P& p) { p.size_bytes = kBlockBytes; }), Code::invalid_argument);
    EXPECT_EQ(refused([](P& p) { p.size_bytes = limits::kVolumeBytesMax + kBlockBytes; }),
              Code::invalid_argument);
    EXPECT_EQ(refused([](P& p) { p.sector_bytes = 1024; }), Code::invalid_argument);
    EXPECT_EQ(refused([](P& p) { p.id = {}; }), Code::invalid_argument);
    EXPECT_EQ(refused([](P& p) { p.lineage = {}; }), Code::invalid_argument);
    EXPECT_EQ(refused([](P& p) { p.token = {}; }), Code::invalid_argument);
    EXPECT_EQ(refused([](P& p) { p.epoch = {}; }), Code::invalid_argument);
    EXPECT_EQ(refused([](P& p) { p.epoch = Epoch(uint64_t{1} << 32); }), Code::invalid_argument);
    rig.expect_all();
}

TEST(VolumeRefusal, RangesThatAreNotWholeSectorsInside) {
    Rig rig(1);
    rig.make();
    const uint64_t size = rig.volume->size_bytes();
    const struct {
        uint64_t offset, bytes;
    } ranges[] = {{1, 512}, {0, 100}, {size + 512, 512}, {size, 512}, {size - 512, 1024}};
    for (const auto& range : ranges) {
        SCOPED_TRACE(fmt::format("{}+{}", range.offset, range.bytes));
        const auto code = [](const Result<void>& outcome) {
            return outcome ? Code::busy : outcome.error().code();
        };
        Buffer data = Buffer::allocate(range.bytes);
        EXPECT_EQ(code(rig.world.run(rig.volume->read(range.offset, data))),
                  Code::invalid_argument);
        EXPECT_EQ(code(rig.world.run(rig.volume->write(range.offset, data))),
                  Code::invalid_argument);
        EXPECT_EQ(code(rig.world.run(rig.volume->zero(range.offset, range.bytes))),
                  Code::invalid_argument);
    }
    for (uint64_t bytes : {size - kBlockBytes, size + 512, limits::kVolumeBytesMax + kBlockBytes})
        EXPECT_FALSE(rig.world.run(rig.volume->grow(bytes))) << bytes;
    rig.expect_all();
}

TEST(VolumeRefusal, OfAVolumeOfWholeBlocksPartsOfThem) {
    Rig rig(1);
    rig.make();
    VolumeParams params = rig.next_params();
    params.id = VolumeId(0x777);
    params.sector_bytes = kBlockBytes;
    params.recorded.reset();
    auto created = rig.world.run(Volume::create(*rig.resources, params));
    ASSERT_TRUE(created) << created.error().text();
    EXPECT_FALSE(rig.world.run((*created)->write(512, Buffer::zeroed(kBlockBytes))));
    EXPECT_TRUE(rig.world.run((*created)->write(0, Buffer::zeroed(kBlockBytes))));
    rig.world.run((*created)->stop());
}

// Of the calls below those that change what the volume holds, whether there is work to do or not.
constexpr size_t kChanges[] = {1, 2, 3, 4, 6};

// The code of every call of a volume that takes nothing any more; busy where it ends well.
std::vector<Code> codes_of_all(Rig& rig) {
    std::vector<Code> out;
    const auto note = [&](const auto& outcome) {
        out.push_back(outcome ? Code::busy : outcome.error().code());
    };
    Volume& volume = *rig.volume;
    note(rig.world.run(volume.read(0, Buffer::allocate(kBlockBytes))));
    note(rig.world.run(volume.write(0, Buffer::zeroed(kBlockBytes))));
    note(rig.world.run(volume.write(0, Buffer::zeroed(256 * kKiB))));
    note(rig.world.run(volume.write(0, Buffer::zeroed(512))));
    note(rig.world.run(volume.zero(0, kBlockBytes)));
    note(rig.world.run(volume.flush()));
    note(rig.world.run(volume.grow(volume.size_bytes() + kMiB)));
    note(rig.world.run(volume.drain()));
    note(rig.world.run(volume.checkpoint()));
    note(rig.world.run(volume.remove_dead()));
    note(rig.world.run(volume.relocate({0}, 2)));
    note(rig.world.run(volume.scrub(0)));
    return out;
}

TEST(VolumeRefusal, OfAVolumeThatIsStoppedEverything) {
    Rig rig(1);
    rig.make();
    ASSERT_TRUE(rig.world.run(rig.write(0, 64 * kKiB)));
    ASSERT_TRUE(rig.world.run(rig.volume->drain()));
    rig.world.run(rig.volume->stop());
    const std::vector<Code> codes = codes_of_all(rig);
    for (size_t i : kChanges)
        EXPECT_EQ(codes[i], Code::stopping) << i;
}

TEST(VolumeRefusal, OfAVolumeWhoseDeviceFailedEverythingButReads) {
    Rig rig(1);
    rig.make();
    ASSERT_TRUE(rig.world.run(rig.write(0, 64 * kKiB)));
    ASSERT_TRUE(rig.world.run(rig.volume->drain()));
    rig.world.disk(Rig::kPath)
        .add_fault({.operation = sim::DiskOperation::write,
                    .effect = sim::DiskEffect::io_error,
                    .count = 1});
    EXPECT_FALSE(rig.world.run(rig.write(0, kBlockBytes)));
    const std::vector<Code> codes = codes_of_all(rig);
    for (size_t i : kChanges)
        EXPECT_EQ(codes[i], Code::io_error) << i;
    rig.world.disk(Rig::kPath).clear_faults();
    rig.crash();
    rig.recover();
    rig.expect_all();
}

TEST(VolumeRefusal, SegmentsThatAreNotThere) {
    Rig rig(1);
    rig.make();
    ASSERT_TRUE(rig.world.run(rig.write(0, 64 * kKiB)));
    for (uint32_t index : {0u, 5u, limits::kSegmentIndexMax}) {
        auto scrubbed = rig.world.run(rig.volume->scrub(index));
        if (scrubbed) EXPECT_EQ(scrubbed->bytes_checked, 0u);
        std::ignore = rig.world.run(rig.volume->relocate({index}, 2));
        EXPECT_TRUE(rig.volume->segments().empty());
    }
    rig.expect_all();
}

}  // namespace
}  // namespace peplos::volume
