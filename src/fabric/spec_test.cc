#include <gtest/gtest.h>

#include "base/limits.h"
#include "fabric/node.h"

namespace peplos::fabric {
namespace {

TEST(Size, ParsesWhatUsersWrite) {
    EXPECT_EQ(parse_size("1073741824").value(), kGiB);
    EXPECT_EQ(parse_size("20GiB").value(), 20 * kGiB);
    EXPECT_EQ(parse_size("20G").value(), 20 * kGiB);
    EXPECT_EQ(parse_size("20 gb").value(), 20 * kGiB);
    EXPECT_EQ(parse_size("20480m").value(), 20 * kGiB);
    EXPECT_EQ(parse_size("16Ti").value(), 16 * kTiB);
    EXPECT_EQ(parse_size("4k").value(), 4 * kKiB);
    EXPECT_EQ(parse_size("512b").value(), 512u);
}

TEST(Size, RefusesEverythingElse) {
    for (const char* text :
         {"", "0", "0G", "-1", "+1G", "1e30", "abc", "1.5G", "G", "1X", "1GG", "1 GiB ", " 1G",
          "1  G", "99999999999999999999", "16777216T", "18446744073709551615k", "0x10"}) {
        auto parsed = parse_size(text);
        ASSERT_FALSE(parsed.has_value()) << text;
        EXPECT_EQ(parsed.error().code(), Code::invalid_argument);
        EXPECT_NE(parsed.error().message().find("size \""), std::string::npos);
    }
    EXPECT_FALSE(parse_size(std::string_view("1\0G", 3)).has_value());
}

TEST(Size, PrintsAtMostOneDecimal) {
    EXPECT_EQ(print_size(0), "0 B");
    EXPECT_EQ(print_size(1023), "1023 B");
    EXPECT_EQ(print_size(1024), "1 KiB");
    EXPECT_EQ(print_size(kMiB + kMiB / 2), "1.5 MiB");
    EXPECT_EQ(print_size(20 * kGiB), "20 GiB");
    EXPECT_EQ(print_size(kGiB - 1), "1 GiB");
    EXPECT_EQ(print_size(UINT64_MAX), "16 EiB");
}

VolumeSpec spec_of(std::string name) {
    return {.name = std::move(name)};
}

TEST(Spec, FillsDefaults) {
    auto spec = validated(spec_of("data"));
    ASSERT_TRUE(spec.has_value());
    EXPECT_EQ(spec->size_bytes, limits::kVolumeBytesDefault);
}

TEST(Spec, Names) {
    for (std::string name : {std::string("a"), std::string("A.b_c-9"), std::string(128, 'x')}) {
        EXPECT_TRUE(validated(spec_of(name)).has_value()) << name;
    }
    for (std::string name :
         {std::string(""), std::string(".."), std::string(".a"), std::string("-a"),
          std::string("a/b"), std::string("a\0b", 3), std::string("a b"), std::string("ü"),
          std::string(129, 'x'), std::string(300, 'x'), std::string("a\n")}) {
        auto spec = validated(spec_of(name));
        ASSERT_FALSE(spec.has_value()) << name;
        EXPECT_EQ(spec.error().code(), Code::invalid_argument);
    }
}

TEST(Spec, RefusesWhatCannotBe) {
    auto refused = [](auto change) {
        VolumeSpec spec = spec_of("v");
        change(spec);
        return !validated(spec).has_value();
    };
    EXPECT_TRUE(refused([](VolumeSpec& s) { s.size_bytes = 4096; }));
    EXPECT_TRUE(refused([](VolumeSpec& s) { s.size_bytes = kGiB + 1; }));
    EXPECT_TRUE(refused([](VolumeSpec& s) { s.size_bytes = 65 * kTiB; }));
    EXPECT_TRUE(refused([](VolumeSpec& s) {
        s.size_bytes = 64 * kMiB;
        s.fs = FsType::xfs;
    }));
    EXPECT_TRUE(refused([](VolumeSpec& s) { s.copies = 0; }));
    EXPECT_TRUE(refused([](VolumeSpec& s) { s.copies = 3; }));
    EXPECT_TRUE(refused([](VolumeSpec& s) { s.sector_bytes = 520; }));
    EXPECT_TRUE(refused([](VolumeSpec& s) { s.mkfs_options = "-J device=/dev/sda"; }));
    EXPECT_TRUE(refused([](VolumeSpec& s) { s.mkfs_options = "$(reboot)"; }));
    EXPECT_TRUE(refused([](VolumeSpec& s) { s.uid = -2; }));
    EXPECT_TRUE(refused([](VolumeSpec& s) { s.mode = 010000; }));
    EXPECT_TRUE(refused([](VolumeSpec& s) { s.labels[""] = "x"; }));
    EXPECT_FALSE(
        refused([](VolumeSpec& s) { s.mkfs_options = "-E lazy_itable_init=0 -O ^64bit"; }));
}

TEST(Names, FileSystemsAndLights) {
    EXPECT_EQ(parse_fs("xfs").value(), FsType::xfs);
    EXPECT_EQ(name_of(FsType::ext4), "ext4");
    EXPECT_NE(parse_fs("zfs").error().message().find("ext4, xfs"), std::string::npos);
    EXPECT_EQ(name_of(Light::yellow), "yellow");
}

}  // namespace
}  // namespace peplos::fabric
