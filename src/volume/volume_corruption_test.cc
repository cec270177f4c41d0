#include "volume/volume_damage_rig.h"

// One flipped byte anywhere on a device: after a restart every block reads as what was written or
// as an error that names device or volume; wrong bytes never.
namespace peplos::volume {
namespace {

constexpr uint64_t kDiskBytes = 56 * kMiB;
constexpr uint64_t kVolumeBytes = 4 * kMiB;
constexpr uint64_t kChunk = 16 * kKiB;

enum class Region : uint8_t { superblock, unit_table, ring, units };

std::string_view name_of(Region region) {
    constexpr std::string_view kNames[] = {"superblock", "unit table", "ring", "units"};
    return kNames[static_cast<size_t>(region)];
}

Region region_of(uint64_t offset) {
    auto plan =
        format::plan_device(kDiskBytes, limits::kRingBytesMin, format::MediaClass::nvme).value();
    if (offset < plan.unit_table_offset) return Region::superblock;
    if (offset < plan.rings[0].offset) return Region::unit_table;
    return offset < plan.units_offset ? Region::ring : Region::units;
}

struct Finding {
    bool is_noticed = false;  // by open, by a read or by a scrub
    std::string wrong;        // bytes that nobody wrote, or an error that names nothing
};

void judge(const Error& error, Finding& finding) {
    finding.is_noticed = true;
    bool is_expected = error.code() == Code::corrupt || error.code() == Code::unavailable ||
                       error.code() == Code::unsupported;
    std::string volume = fmt::format("{}", Rig::kVolume);
    bool is_named = error.message().contains(Rig::kPath) || error.message().contains(volume);
    if (!is_expected || !is_named) finding.wrong = error.text();
}

// Opens what is on the disk by hand: the rig would call an error a failed test.
Result<void> start(Rig& rig) {
    TRY_ASSIGN(auto disk, rig.world.run(rig.world.env().disks.open(Rig::kPath, {})));
    TRY_ASSIGN(rig.device, rig.world.run(media::Device::open(rig.world.env(), std::move(disk))));
    TRY_ASSIGN(rig.journal,
               rig.world.run(replica::LocalJournal::open(rig.world.env(), *rig.device)));
    rig.cache = std::make_unique<LeafCache>(2 * kMiB);
    rig.overlay = std::make_unique<OverlayBudget>(8 * kMiB);
    rig.space = std::make_unique<SpaceBudget>(std::vector{&rig.device->segments()});
    rig.resources.reset(new Resources{rig.world.env(), *rig.journal, *rig.cache, *rig.overlay,
                                      *rig.space, nullptr});
    return rig.try_open();
}

void read_all(Rig& rig, Finding& finding) {
    for (uint64_t offset = 0; offset < kVolumeBytes && finding.wrong.empty(); offset += kChunk) {
        Buffer into = Buffer::allocate(kChunk);
        auto read = rig.world.run(rig.volume->read(offset, into));
        if (!read) {
            judge(read.error(), finding);
        } else {
            finding.wrong = rig.model.check(offset, std::as_const(into).bytes());
        }
    }
}

void scrub_all(Rig& rig, Finding& finding) {
    for (const SegmentView& segment : rig.volume->segments()) {
        auto scrubbed = rig.world.run(rig.volume->scrub(segment.index));
        if (!scrubbed) judge(scrubbed.error(), finding);
        if (scrubbed && !scrubbed->problems.empty()) finding.is_noticed = true;
    }
}

Finding look(Rig& rig) {
    Finding finding;
    auto started = start(rig);
    if (!started) judge(started.error(), finding);
    if (rig.device != nullptr) {
        for (const std::string& line : rig.device->report().corruptions) {
            finding.is_noticed = true;
            if (!line.contains(Rig::kPath)) finding.wrong = line;
        }
    }
    if (rig.volume != nullptr && finding.wrong.empty()) read_all(rig, finding);
    if (rig.volume != nullptr && finding.wrong.empty() && !finding.is_noticed)
        scrub_all(rig, finding);
    rig.crash({.mode = sim::CrashMode::keep});
    return finding;
}

// Something in every place: sealed segments, dead blocks in them, map pages, a large segment, and
// records that only the ring has.
void write_everywhere(Rig& rig) {
    auto ok = [](const Result<void>& result) { ASSERT_TRUE(result) << result.error().text(); };
    ok(rig.world.run(rig.write(0, 24 * kKiB)));
    ok(rig.world.run(rig.volume->drain()));
    ok(rig.world.run(rig.write(8 * kKiB, 8 * kKiB)));
    ok(rig.world.run(rig.volume->drain()));
    ok(rig.world.run(rig.volume->checkpoint()));
    ok(rig.world.run(rig.write(64 * kKiB, 8 * kKiB)));
    ok(rig.world.run(rig.volume->drain()));
    ok(rig.world.run(rig.write(kMiB, limits::kLargeWriteBytes)));
    ok(rig.world.run(rig.write(2 * kMiB, 12 * kKiB)));
    ok(rig.world.run(rig.zero(4 * kKiB, 4 * kKiB)));
    ok(rig.world.run(rig.write(2 * kMiB + 512, 1024)));
    rig.stop();
}

TEST(VolumeCorruption, AFlippedByteAnywhereIsNeverServed) {
    RigOptions options{.disk_bytes = kDiskBytes, .volume_bytes = kVolumeBytes};
    Rig rig(77, options);
    rig.make();
    write_everywhere(rig);
    sim::DiskMedia& disk = rig.world.disk(Rig::kPath);
    const sim::DiskMedia::Contents image = disk.contents();
    const auto recorded = rig.recorded;
    ASSERT_FALSE(look(rig).is_noticed) << "an intact device has no findings";

    struct Count {
        int flips = 0;
        int noticed = 0;
    };
    std::map<Region, Count> counts;
    sim::Random random(5);
    for (const auto& [offset, page] : image) {
        for (int i = 0; i < 2; ++i) {
            disk.set_contents(image);
            rig.recorded = recorded;
            uint64_t at = offset + (i == 0 ? random.pick(128) : random.pick(kBlockBytes));
            disk.corrupt(at);
            Finding finding = look(rig);
            ASSERT_EQ(finding.wrong, "") << name_of(region_of(at)) << " at " << at;
            Count& count = counts[region_of(at)];
            ++count.flips;
            count.noticed += finding.is_noticed ? 1 : 0;
        }
    }
    auto unnoticed = [&counts](Region region) {
        return counts[region].flips - counts[region].noticed;
    };
    EXPECT_EQ(unnoticed(Region::superblock), 0);
    EXPECT_GT(counts[Region::superblock].flips, 3);
    EXPECT_GT(counts[Region::unit_table].noticed, 0);
    // The first frame is needed no more; the last one, which holds nothing, passes for torn.
    EXPECT_LE(unnoticed(Region::ring), 4);
    EXPECT_GT(counts[Region::ring].noticed, 20);
    // Map pages that no root names any more, and the header of a segment that was never sealed.
    EXPECT_LE(unnoticed(Region::units) * 4, counts[Region::units].flips);
    EXPECT_GT(counts[Region::units].noticed, 60);
}

}  // namespace
}  // namespace peplos::volume
