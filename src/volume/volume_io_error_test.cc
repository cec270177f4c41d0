#include "volume/volume_test_rig.h"

// One operation of the device fails, each in its turn: nothing that was acknowledged is lost, and
// nothing but that is read.
namespace peplos::volume {
namespace {

using sim::DiskEffect;
using sim::DiskOperation;

// What happens in a volume's life, in so many steps; each may fail, and the next is tried.
constexpr int kStepCount = 14;
// Of the operations one in so many is tried.
constexpr uint64_t kStride = 11;
constexpr uint64_t kRestartStride = 3;

Task<Result<void>> move_all(Rig& rig) {
    std::vector<uint32_t> indexes;
    for (const SegmentView& segment : rig.volume->segments()) {
        if (segment.kind != format::SegmentKind::map) indexes.push_back(segment.index);
    }
    if (indexes.empty()) co_return Result<void>{};
    CO_TRY(co_await rig.volume->relocate(std::move(indexes), 2));
    co_return Result<void>{};
}

Task<Result<void>> scrub_all(Rig& rig) {
    for (const SegmentView& segment : rig.volume->segments())
        CO_TRY(co_await rig.volume->scrub(segment.index));
    co_return Result<void>{};
}

Task<Result<void>> take_step(Rig& rig, int step) {
    switch (step) {
        case 0:
            co_return co_await rig.write(0, 64 * kKiB);
        case 1:
            co_return co_await rig.write(8 * kMiB, 256 * kKiB);
        case 2:
            co_return co_await rig.write(512, 1024);
        case 3:
            co_return co_await rig.zero(16 * kKiB, 8 * kKiB);
        case 5:
            co_return co_await rig.write(8 * kMiB + 512, 512);
        case 6:
            co_return co_await rig.write(4 * kKiB, 16 * kKiB);
        case 8:
            co_return co_await move_all(rig);
        case 9:
        case 13:
            co_return co_await rig.volume->checkpoint();
        case 10:
            co_return co_await scrub_all(rig);
        case 11:
            co_return co_await rig.zero(8 * kMiB + 64 * kKiB, 64 * kKiB);
        default:
            co_return co_await rig.volume->drain();
    }
}

Task<uint64_t> live(Rig& rig) {
    uint64_t failed = 0;
    for (int step = 0; step < kStepCount; ++step) {
        Result<void> outcome = co_await take_step(rig, step);
        if (!outcome) ++failed;
        for (uint64_t offset : {uint64_t{0}, 8 * kMiB}) {
            Buffer into = Buffer::allocate(256 * kKiB);
            auto read = co_await rig.volume->read(offset, into);
            if (!read) continue;
            std::string wrong = rig.model.check(offset, into.bytes());
            EXPECT_EQ(wrong, "") << "behind step " << step;
        }
    }
    co_return failed;
}

struct Failing {
    DiskOperation operation;
    DiskEffect effect;
    uint64_t count;  // of operations in a row
};

uint64_t done_of(const sim::DiskCounters& counters, DiskOperation operation) {
    if (operation == DiskOperation::read) return counters.reads;
    return operation == DiskOperation::write ? counters.writes : counters.syncs;
}

class VolumeIoError : public testing::TestWithParam<Failing> {
  protected:
    void arm(Rig& rig, uint64_t skip) {
        const auto [operation, effect, count] = GetParam();
        rig.world.disk(Rig::kPath)
            .add_fault({.operation = operation, .effect = effect, .skip = skip, .count = count});
    }
    uint64_t done(Rig& rig) {
        return done_of(rig.world.disk(Rig::kPath).counters(), GetParam().operation);
    }
    // With the device in order again.
    void expect_all_is_there(Rig& rig) {
        rig.world.disk(Rig::kPath).clear_faults();
        rig.crash();
        rig.recover();
        ASSERT_FALSE(testing::Test::HasFatalFailure());
        rig.expect_all();
        ASSERT_TRUE(rig.world.run(rig.write(kMiB, 8 * kKiB)));
        ASSERT_TRUE(rig.world.run(rig.volume->drain()));
        rig.expect_all();
    }
};

TEST_P(VolumeIoError, AnyOperationOfALife) {
    uint64_t failed = 0;
    for (uint64_t skip = 0;; skip += kStride) {
        SCOPED_TRACE(fmt::format("operation {}", skip));
        Rig rig(skip + 1);
        rig.make();
        const uint64_t before = done(rig);
        arm(rig, skip);
        failed += rig.world.run(live(rig));
        const bool was_met = done(rig) - before > skip;
        expect_all_is_there(rig);
        if (HasFailure() || !was_met) break;
    }
    // A read is tried again; nothing else is.
    if (GetParam().operation != DiskOperation::read) EXPECT_GT(failed, 0u);
}

class VolumeIoErrorAtStart : public VolumeIoError {};

TEST_P(VolumeIoErrorAtStart, AnyOperationOfARestart) {
    for (uint64_t skip = 0;; skip += kRestartStride) {
        SCOPED_TRACE(fmt::format("operation {}", skip));
        Rig rig(1);
        rig.make();
        rig.world.run(live(rig));
        ASSERT_TRUE(rig.world.run(rig.write(2 * kMiB, 256 * kKiB)));
        ASSERT_TRUE(rig.world.run(rig.write(3 * kMiB, 8 * kKiB)));
        rig.crash({.mode = sim::CrashMode::keep});
        const uint64_t before = done(rig);
        arm(rig, skip);
        std::ignore = rig.world.run(rig.open_all());
        const bool was_met = done(rig) - before > skip;
        expect_all_is_there(rig);
        if (HasFailure() || !was_met) break;
    }
}

constexpr Failing kReadError{DiskOperation::read, DiskEffect::io_error, 1};
constexpr Failing kReadErrors{DiskOperation::read, DiskEffect::io_error, 5};
constexpr Failing kGarbledRead{DiskOperation::read, DiskEffect::garbled, 1};
constexpr Failing kWriteError{DiskOperation::write, DiskEffect::io_error, 1};
constexpr Failing kFullDisk{DiskOperation::write, DiskEffect::no_space, UINT64_MAX};
constexpr Failing kSyncError{DiskOperation::sync, DiskEffect::io_error, 1};

INSTANTIATE_TEST_SUITE_P(Kind, VolumeIoError,
                         testing::Values(kReadError, kReadErrors, kGarbledRead, kWriteError,
                                         kFullDisk, kSyncError));
INSTANTIATE_TEST_SUITE_P(Kind, VolumeIoErrorAtStart,
                         testing::Values(kReadError, kReadErrors, kGarbledRead, kWriteError,
                                         kFullDisk, kSyncError));

}  // namespace
}  // namespace peplos::volume
