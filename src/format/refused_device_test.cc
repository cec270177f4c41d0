#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "base/crc32c.h"
#include "format/superblock.h"
#include "format/unit_entry.h"

// Superblocks and unit entries whose checksums hold and whose fields cannot be true.
namespace peplos::format {
namespace {

using testing::HasSubstr;

Superblock refused_sample() {
    Superblock superblock = *plan_device(1 * kGiB, 64 * kMiB, MediaClass::ssd);
    superblock.incarnation = Incarnation(77);
    superblock.boot = Boot(5);
    return superblock;
}

template <typename T>
Result<Superblock> superblock_with(size_t offset, T value) {
    std::vector<std::byte> block(kSuperblockBytes);
    encode_superblock(refused_sample(), block);
    std::memcpy(block.data() + offset, &value, sizeof(value));
    const uint32_t crc = crc32c(Bytes(block).subspan(12));
    std::memcpy(block.data() + 8, &crc, sizeof(crc));
    return decode_superblock(block);
}

template <typename T>
void expect_corrupt(size_t offset, T value, const char* why) {
    auto decoded = superblock_with(offset, value);
    ASSERT_FALSE(decoded) << offset << ": " << +value;
    EXPECT_EQ(decoded.error().code(), Code::corrupt);
    EXPECT_THAT(decoded.error().message(), HasSubstr(why));
}

// Where the fields lie: docs/formats/superblock.md.
constexpr size_t kMediaClass = 14, kRingCount = 15, kDeviceBytes = 48, kTableOffset = 56,
                 kTableBytes = 64, kUnitsOffset = 72, kUnitCount = 80, kUnitBytes = 84,
                 kRingOffset = 88, kRingBytes = 96;

TEST(RefusedSuperblock, ImpossibleFields) {
    expect_corrupt<uint8_t>(kRingCount, 0, "impossible fields");
    expect_corrupt<uint8_t>(kRingCount, kRingCountMax + 1, "impossible fields");
    expect_corrupt<uint8_t>(kMediaClass, 0, "impossible fields");
    expect_corrupt<uint8_t>(kMediaClass, 4, "impossible fields");
    for (MediaClass known : {MediaClass::nvme, MediaClass::ssd, MediaClass::hdd}) {
        auto decoded = superblock_with(kMediaClass, known);
        ASSERT_TRUE(decoded) << int(known);
        EXPECT_EQ(decoded->media_class, known);
    }
}

// A device whose units have another size is another format, not damage.
TEST(RefusedSuperblock, UnitsOfAnotherSize) {
    auto decoded = superblock_with<uint32_t>(kUnitBytes, 2 * kMiB);
    ASSERT_FALSE(decoded);
    EXPECT_EQ(decoded.error().code(), Code::unsupported);
}

TEST(RefusedSuperblock, PartsThatLieOverOneAnother) {
    const Superblock good = refused_sample();
    const RingPlace ring = good.rings[0];
    const char* why = "parts overlap";
    expect_corrupt(kDeviceBytes, UINT64_MAX, why);
    expect_corrupt(kDeviceBytes, good.units_offset, why);
    expect_corrupt<uint64_t>(kTableOffset, kMiB, why);
    expect_corrupt(kTableOffset, good.unit_table_offset + 512, why);
    expect_corrupt(kTableOffset, good.device_bytes + kMiB, why);
    expect_corrupt(kTableOffset, UINT64_MAX / kBlockBytes * kBlockBytes, why);
    expect_corrupt(kTableBytes, good.unit_table_bytes + 512, why);
    expect_corrupt(kTableBytes, good.device_bytes, why);
    expect_corrupt<uint64_t>(kTableBytes, kBlockBytes, why);
    expect_corrupt(kRingOffset, ring.offset - kBlockBytes, why);
    expect_corrupt(kRingOffset, good.device_bytes, why);
    expect_corrupt(kRingBytes, limits::kRingBytesMin - kBlockBytes, why);
    expect_corrupt(kRingBytes, ring.bytes + kBlockBytes, why);
    expect_corrupt(kUnitsOffset, good.units_offset - kBlockBytes, why);
    expect_corrupt(kUnitsOffset, good.units_offset + kMiB, why);
    expect_corrupt<uint32_t>(kUnitCount, 0, why);
    expect_corrupt(kUnitCount, good.unit_count + 1, why);
    expect_corrupt(kUnitCount, UINT32_MAX, why);
}

TEST(RefusedSuperblock, PlansThatCannotBe) {
    EXPECT_FALSE(plan_device(1 * kGiB, limits::kRingBytesMin + kBlockBytes, MediaClass::nvme));
    auto large = plan_device(uint64_t{1} << 53, limits::kRingBytesMin, MediaClass::nvme);
    ASSERT_FALSE(large);
    EXPECT_THAT(large.error().message(), HasSubstr("too large"));
}

// ---- unit entries ----

constexpr uint32_t kUnit = 16;

UnitEntryBytes good_entry() {
    UnitEntry entry;
    entry.kind = SegmentKind::map;
    entry.unit_count = 8;
    entry.segment = {VolumeId(1), 2, 3};
    entry.lineage = LineageId(4);
    entry.volume = VolumeId(5);
    return encode_unit_entry(entry, kUnit, Incarnation(6));
}

template <typename T>
Code entry_with(size_t offset, T value) {
    UnitEntryBytes bytes = good_entry();
    std::memcpy(bytes.data() + offset, &value, sizeof(value));
    const uint32_t crc = crc32c(Bytes(bytes).subspan(8));
    std::memcpy(bytes.data() + 4, &crc, sizeof(crc));
    auto decoded = decode_unit_entry(bytes, kUnit, Incarnation(6));
    return decoded ? Code::busy : decoded.error().code();
}

TEST(RefusedUnitEntry, FieldsThatCannotBe) {
    constexpr size_t kVersion = 12, kState = 13, kKind = 14, kCount = 15, kSegment = 16;
    EXPECT_EQ(entry_with<uint8_t>(kCount, 16), Code::busy);  // 8 becomes 16: another good run
    EXPECT_EQ(entry_with<uint8_t>(kVersion, 3), Code::unsupported);
    for (uint8_t state : {0, 3, 255})
        EXPECT_EQ(entry_with(kState, state), Code::corrupt) << +state;
    for (uint8_t kind : {0, 5, 255})
        EXPECT_EQ(entry_with(kKind, kind), Code::corrupt) << +kind;
    // No power of two; longer than a segment; not aligned to its length.
    for (uint8_t count : {0, 3, 64, 32})
        EXPECT_EQ(entry_with(kCount, count), Code::corrupt) << +count;
    EXPECT_EQ(entry_with(kSegment, SegmentId{}), Code::corrupt);
    UnitEntryBytes bytes = good_entry();
    EXPECT_FALSE(decode_unit_entry(Bytes(bytes).first(kUnitEntryBytes - 1), kUnit, Incarnation(6)));
}

}  // namespace
}  // namespace peplos::format
