#include "attach/fs_signature.h"

#include <gtest/gtest.h>

namespace peplos::attach {
namespace {

std::vector<std::byte> start_with(size_t offset, std::string_view magic) {
    std::vector<std::byte> start(kSignatureBytes);
    std::memcpy(start.data() + offset, magic.data(), magic.size());
    return start;
}

fabric::AttachSpec spec_of(fabric::FsType fs, bool blank) {
    fabric::AttachSpec spec;
    spec.name = "data";
    spec.fs = fs;
    spec.blank = blank;
    return spec;
}

TEST(FsSignature, FindsOurs) {
    EXPECT_EQ(find_signature(start_with(0x438, "\x53\xef"))->fs, fabric::FsType::ext4);
    EXPECT_EQ(find_signature(start_with(0, "XFSB"))->fs, fabric::FsType::xfs);
    EXPECT_FALSE(find_signature(std::vector<std::byte>(kSignatureBytes)));
}

TEST(FsSignature, AShortVolumeIsNotReadPastItsEnd) {
    for (size_t size : {0ul, 1ul, 0x439ul, 4096ul}) {
        EXPECT_FALSE(find_signature(std::vector<std::byte>(size)));
        EXPECT_EQ(fs_bytes_of(std::vector<std::byte>(size)), 0u);
    }
}

TEST(FsSignature, ABlankVolumeMayCarryOnlyOurOwnUnfinishedWork) {
    auto ext4 = start_with(0x438, "\x53\xef");
    auto luks = start_with(0, "LUKS\xba\xbe");
    std::vector<std::byte> nothing(kSignatureBytes);
    EXPECT_TRUE(check_signature(spec_of(fabric::FsType::ext4, true), nothing));
    EXPECT_TRUE(check_signature(spec_of(fabric::FsType::ext4, true), ext4));
    EXPECT_EQ(check_signature(spec_of(fabric::FsType::xfs, true), ext4).error().code(),
              Code::permission_denied);
    auto refused = check_signature(spec_of(fabric::FsType::ext4, true), luks);
    ASSERT_FALSE(refused);
    EXPECT_NE(refused.error().message().find("LUKS"), std::string::npos);
}

TEST(FsSignature, AFormattedVolumeMustCarryItsFileSystem) {
    auto xfs = start_with(0, "XFSB");
    EXPECT_TRUE(check_signature(spec_of(fabric::FsType::xfs, false), xfs));
    EXPECT_EQ(check_signature(spec_of(fabric::FsType::ext4, false), xfs).error().code(),
              Code::corrupt);
    std::vector<std::byte> nothing(kSignatureBytes);
    EXPECT_EQ(check_signature(spec_of(fabric::FsType::ext4, false), nothing).error().code(),
              Code::corrupt);
}

TEST(FsSignature, ReadsTheSizeThatASuperblockClaims) {
    auto ext4 = start_with(0x438, "\x53\xef");
    uint32_t blocks = 1000;
    uint32_t shift = 2;
    std::memcpy(ext4.data() + 0x404, &blocks, 4);
    std::memcpy(ext4.data() + 0x418, &shift, 4);
    EXPECT_EQ(fs_bytes_of(ext4), 4096u * 1000);
    shift = 60;
    std::memcpy(ext4.data() + 0x418, &shift, 4);
    EXPECT_EQ(fs_bytes_of(ext4), 0u);
}

}  // namespace
}  // namespace peplos::attach
