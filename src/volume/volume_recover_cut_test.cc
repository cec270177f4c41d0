#include <functional>

#include "base/crc32c.h"
#include "volume/volume_damage_rig.h"

// The power goes at every event of a recovery. Before its end nothing has happened: the volume is
// as closed as it was and the same would be lost. After it all has. In no case does a block read as
// anything but what was written to it, or as lost where that was shown.
namespace peplos::volume {
namespace {

using replica::OnLoss;

RigOptions small_disk() {
    RigOptions options;
    options.disk_bytes = 52 * kMiB;
    options.volume_bytes = 8 * kMiB;
    options.overlay_bytes = 2 * kMiB;
    options.cache_bytes = kMiB;
    return options;
}

void ok(const Result<void>& outcome) {
    ASSERT_TRUE(outcome) << outcome.error().text();
}

void drain(Rig& rig) {
    ok(rig.world.run(rig.volume->drain()));
}

void checkpoint(Rig& rig) {
    drain(rig);
    ok(rig.world.run(rig.volume->checkpoint()));
}

// Two leaves, each in the map and changed once more; something undrained. Gives the segment of the
// drain that no checkpoint covers.
SegmentView fill_segments(Rig& rig) {
    rig.make();
    ok(rig.world.run(rig.write(0, 32 * kKiB)));
    ok(rig.world.run(rig.write(5 * kMiB, 16 * kKiB)));
    checkpoint(rig);
    ok(rig.world.run(rig.zero(5 * kMiB, 8 * kKiB)));
    ok(rig.world.run(rig.write(8 * kKiB, 4 * kKiB)));
    checkpoint(rig);
    std::vector<uint32_t> before;
    for (const SegmentView& segment : rig.volume->segments())
        before.push_back(segment.index);
    ok(rig.world.run(rig.write(4 * kKiB, 8 * kKiB)));
    ok(rig.world.run(rig.write(6 * kMiB, 8 * kKiB)));
    ok(rig.world.run(rig.zero(16 * kKiB, 4 * kKiB)));
    drain(rig);
    ok(rig.world.run(rig.write(24 * kKiB, 4 * kKiB)));
    for (const SegmentView& segment : rig.volume->segments()) {
        if (std::ranges::find(before, segment.index) == before.end()) return segment;
    }
    CHECK(false, "the drain made no segment");
    return {};
}

// A write that the recovery will give up: the model does not know of it.
void write_in_vain(Rig& rig, uint64_t offset) {
    Buffer data = Buffer::zeroed(kBlockBytes);
    data.data()[7] = std::byte{1};
    ok(rig.world.run(rig.volume->write(offset, data)));
}

// Each leaves the node down and the volume closed by damage.
void lose_the_end(Rig& rig) {
    fill_segments(rig);
    uint64_t next = rig.device->ring().newest_sequence() + 1;
    write_in_vain(rig, 28 * kKiB);
    uint64_t at = frame_offset(rig, next);
    rig.crash({.mode = sim::CrashMode::keep});
    make_unreadable(rig, at);
}

void leave_a_hole(Rig& rig) {
    fill_segments(rig);
    uint64_t next = rig.device->ring().newest_sequence() + 1;
    for (uint64_t offset : {40 * kKiB, 44 * kKiB, 48 * kKiB})
        write_in_vain(rig, offset);
    uint64_t at = frame_offset(rig, next);
    rig.crash({.mode = sim::CrashMode::keep});
    rig.world.disk(Rig::kPath).corrupt(at + 70);
}

void spoil_page(Rig& rig, std::initializer_list<format::PageKind> kinds) {
    fill_segments(rig);
    std::vector<uint64_t> places;
    for (format::PageKind kind : kinds)
        places.push_back(page_offset(rig, kind));
    rig.stop();
    for (uint64_t at : places)
        rig.world.disk(Rig::kPath).corrupt(at + 65);
}

void spoil_index_and_block(Rig& rig) {
    SegmentView segment = fill_segments(rig);
    uint64_t begin = device_offset(rig, segment.id);
    uint64_t at = begin + index_offset(rig, segment);
    rig.stop();
    make_unreadable(rig, at);
    rig.world.disk(Rig::kPath).corrupt(begin + format::segment_block_offset(0) + 5);
}

// Not even the journal tells what was in it: all that it may have held is lost.
void spoil_index_and_records(Rig& rig) {
    uint64_t frame = 0;
    {
        rig.make();
        ok(rig.world.run(rig.write(0, 32 * kKiB)));
        ok(rig.world.run(rig.write(5 * kMiB, 16 * kKiB)));
        checkpoint(rig);
        frame = rig.device->ring().newest_sequence() + 1;
    }
    ok(rig.world.run(rig.write(4 * kKiB, 8 * kKiB)));
    ok(rig.world.run(rig.write(6 * kMiB, 8 * kKiB)));
    drain(rig);
    ok(rig.world.run(rig.write(24 * kKiB, 4 * kKiB)));
    SegmentView newest{};
    for (const SegmentView& segment : rig.volume->segments()) {
        if (segment.kind == format::SegmentKind::data && segment.age_lsn > newest.age_lsn)
            newest = segment;
    }
    uint64_t at = device_offset(rig, newest.id) + index_offset(rig, newest);
    uint64_t record_at = frame_offset(rig, frame);
    rig.stop();
    make_unreadable(rig, at);
    make_unreadable(rig, record_at);
}

struct Scenario {
    const char* name;
    std::function<void(Rig&)> prepare;
};

const std::vector<Scenario>& scenarios() {
    using format::PageKind;
    static const std::vector<Scenario> kAll{
        {"lost end", lose_the_end},
        {"hole", leave_a_hole},
        {"root", [](Rig& rig) { spoil_page(rig, {PageKind::root}); }},
        {"interior page and leaf",
         [](Rig& rig) { spoil_page(rig, {PageKind::interior, PageKind::leaf}); }},
        {"index and block", spoil_index_and_block},
        {"index and records", spoil_index_and_records},
    };
    return kAll;
}

uint32_t hash_of(const sim::DiskMedia::Contents& contents) {
    uint32_t hash = 0;
    for (const auto& [offset, page] : contents)
        hash = crc32c(page, crc32c(bytes_of(offset), hash));
    return hash;
}

// A recovery that was cut may have got some of the way, so that less is left to be said.
void expect_no_worse(const LossReport& seen, const LossReport& shown) {
    EXPECT_FALSE(seen.is_whole());
    EXPECT_LE(seen.losses.size(), shown.losses.size());
    EXPECT_LE(seen.lost_blocks, shown.lost_blocks);
    EXPECT_LE(seen.dropped_records, shown.dropped_records);
    EXPECT_LE(seen.dropped_blocks, shown.dropped_blocks);
}

// What the disk holds after a cut. Returns whether the recovery counts as done.
bool judge(Rig& rig, const LossReport& shown) {
    rig.start_node();
    const bool is_done = rig.try_open().has_value();
    if (!is_done) {
        expect_no_worse(recover_ok(rig, OnLoss::look), shown);
        expect_no_worse(recover_ok(rig, OnLoss::accept), shown);
        rig.open();
    }
    if (testing::Test::HasFatalFailure()) return is_done;
    EXPECT_LE(expect_all_but_lost(rig), shown.lost_blocks);
    rig.crash({.mode = sim::CrashMode::keep});
    return is_done;
}

// How many events a recovery took until it was cut, or ended.
struct Cut {
    uint64_t events = 0;
    bool is_over = false;
    bool is_decided = false;  // every write so far is durable: how the power goes does not matter
};

class RecoverCut : public testing::TestWithParam<size_t> {
  protected:
    void prepare() {
        rig.emplace(100 + GetParam(), small_disk());
        scenarios()[GetParam()].prepare(*rig);
        ASSERT_FALSE(HasFailure());
        contents = rig->world.disk(Rig::kPath).contents();
        recorded = rig->recorded;
        claims = rig->claims;
        rig->start_node();
        ASSERT_FALSE(rig->try_open());
        shown = recover_ok(*rig, OnLoss::look);
        rig->crash();
    }
    Cut cut_after(uint64_t events, sim::CrashMode mode) {
        sim::DiskMedia& disk = rig->world.disk(Rig::kPath);
        disk.set_contents(contents);
        rig->recorded = recorded;
        rig->claims = claims;
        rig->start_node();
        auto outcome = rig->world.run_events(rig->recover_volume(OnLoss::accept), events);
        if (outcome) EXPECT_TRUE(*outcome) << outcome->error().text();
        bool is_decided = disk.unsynced_page_count() == 0 && disk.in_flight_count() == 0;
        rig->crash({.mode = mode});
        // A state is judged once: what is on the disk is all that a restart knows.
        auto [fate, is_new] = fates.try_emplace(hash_of(disk.contents()), false);
        if (is_new) fate->second = judge(*rig, shown);
        EXPECT_TRUE(fate->second || !outcome) << "it ended, and is not there";
        return {events, outcome.has_value(), is_decided};
    }

    std::optional<Rig> rig;
    sim::DiskMedia::Contents contents;  // as the damage left it
    std::optional<replica::Membership> recorded;
    uint64_t claims = 0;
    LossReport shown;
    std::map<uint32_t, bool> fates;
};

TEST_P(RecoverCut, APowerCutAtEveryEventLosesNothingMore) {
    SCOPED_TRACE(scenarios()[GetParam()].name);
    prepare();
    Cut cut;
    for (uint64_t events = 0; !cut.is_over; ++events) {
        cut = cut_after(events, sim::CrashMode::lose);
        if (!cut.is_decided) {
            cut_after(events, sim::CrashMode::keep);
            cut_after(events, sim::CrashMode::by_seed);
        }
        ASSERT_FALSE(HasFailure()) << "after " << events << " events";
    }
    EXPECT_GT(cut.events, 40u);
    RecordProperty("events", static_cast<int>(cut.events));
    RecordProperty("states", static_cast<int>(fates.size()));
}

INSTANTIATE_TEST_SUITE_P(Every, RecoverCut, testing::Range<size_t>(0, scenarios().size()));

}  // namespace
}  // namespace peplos::volume
