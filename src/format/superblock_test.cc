#include "format/superblock.h"

#include <gtest/gtest.h>

#include "base/crc32c.h"
#include "format/unit_entry.h"

namespace peplos::format {
namespace {

Superblock sample_superblock() {
    Superblock superblock = *plan_device(1 * kGiB, 64 * kMiB, MediaClass::ssd);
    superblock.device.bytes[3] = 9;
    superblock.incarnation = Incarnation(77);
    superblock.boot = Boot(5);
    return superblock;
}

TEST(Superblock, ComesBackAndNoticesEveryFlippedByte) {
    std::vector<std::byte> block(kSuperblockBytes);
    encode_superblock(sample_superblock(), block);
    auto decoded = decode_superblock(block);
    ASSERT_TRUE(decoded) << decoded.error().text();
    EXPECT_EQ(*decoded, sample_superblock());
    for (size_t i = 0; i < block.size(); ++i) {
        block[i] ^= std::byte{0x80};
        EXPECT_FALSE(decode_superblock(block)) << i;
        block[i] ^= std::byte{0x80};
    }
    EXPECT_FALSE(decode_superblock(Bytes(block).first(100)));
}

TEST(Superblock, ANewerVersionIsRefusedAsUnsupported) {
    std::vector<std::byte> block(kSuperblockBytes);
    encode_superblock(sample_superblock(), block);
    block[12] = std::byte{9};
    uint32_t crc = crc32c(Bytes(block).subspan(12));
    std::memcpy(block.data() + 8, &crc, sizeof(crc));
    auto decoded = decode_superblock(block);
    ASSERT_FALSE(decoded);
    EXPECT_EQ(decoded.error().code(), Code::unsupported);
}

TEST(Superblock, PlansEverySizeWithoutOverlap) {
    for (uint64_t bytes = 1 * kMiB; bytes < 3 * kGiB; bytes += 37 * kMiB + 4096) {
        auto plan = plan_device(bytes, 16 * kMiB, MediaClass::nvme);
        if (!plan) {
            EXPECT_LT(bytes, 64 * kMiB);
            continue;
        }
        EXPECT_GE(plan->unit_count, 32u);
        EXPECT_EQ(plan->units_offset % kMiB, 0u);
        std::vector<std::byte> block(kSuperblockBytes);
        encode_superblock(*plan, block);
        EXPECT_TRUE(decode_superblock(block));
    }
    EXPECT_FALSE(plan_device(1 * kGiB, 1 * kMiB, MediaClass::nvme));
    EXPECT_FALSE(plan_device(100 * kMiB, 1 * kGiB, MediaClass::nvme));
}

TEST(UnitEntry, ComesBackOnlyInItsOwnPlace) {
    UnitEntry entry;
    entry.kind = SegmentKind::map;
    entry.unit_count = 8;
    entry.segment = {VolumeId(1), 2, 3};
    entry.lineage = LineageId(4);
    entry.volume = VolumeId(5);
    UnitEntryBytes bytes = encode_unit_entry(entry, 16, Incarnation(6));
    auto decoded = decode_unit_entry(bytes, 16, Incarnation(6));
    ASSERT_TRUE(decoded) << decoded.error().text();
    EXPECT_EQ(**decoded, entry);
    EXPECT_FALSE(decode_unit_entry(bytes, 24, Incarnation(6)));
    EXPECT_FALSE(decode_unit_entry(bytes, 16, Incarnation(7)));
    for (std::byte& byte : bytes) {
        byte ^= std::byte{4};
        EXPECT_FALSE(decode_unit_entry(bytes, 16, Incarnation(6)));
        byte ^= std::byte{4};
    }
    auto empty = decode_unit_entry(UnitEntryBytes{}, 16, Incarnation(6));
    ASSERT_TRUE(empty);
    EXPECT_FALSE(*empty);
    UnitEntry prepared;
    prepared.state = UnitState::prepared;
    auto back =
        decode_unit_entry(encode_unit_entry(prepared, 3, Incarnation(6)), 3, Incarnation(6));
    ASSERT_TRUE(back);
    EXPECT_EQ((*back)->state, UnitState::prepared);
}

// The example of docs/formats/units.md, byte for byte: the format does not change unnoticed.
TEST(UnitEntry, IsAsDocumented) {
    UnitEntry entry;
    entry.kind = SegmentKind::data;
    entry.unit_count = 8;
    entry.segment = {VolumeId(0xaaaaaaaaaaaaaaaa), 2, 5};
    entry.lineage = LineageId(0xbbbbbbbbbbbbbbbb);
    entry.volume = VolumeId(0xaaaaaaaaaaaaaaaa);
    std::string hex;
    for (std::byte byte : encode_unit_entry(entry, 8, Incarnation(0x1122334455667788))) {
        hex += fmt::format("{:02x}", static_cast<int>(byte));
    }
    EXPECT_EQ(hex,
              "554e49545e5efbfd0800000001010108aaaaaaaaaaaaaaaa0200000005000000"
              "bbbbbbbbbbbbbbbbaaaaaaaaaaaaaaaa88776655443322110000000000000000");
}

}  // namespace
}  // namespace peplos::format
