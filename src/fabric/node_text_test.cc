#include <gtest/gtest.h>

#include "base/limits.h"
#include "fabric/node.h"

namespace peplos::fabric {
namespace {

TEST(ParseSize, KnowsUnits) {
    EXPECT_EQ(parse_size("1073741824"), kGiB);
    EXPECT_EQ(parse_size("20GiB"), 20 * kGiB);
    EXPECT_EQ(parse_size("20G"), 20 * kGiB);
    EXPECT_EQ(parse_size("20gb"), 20 * kGiB);
    EXPECT_EQ(parse_size("20 GiB"), 20 * kGiB);
    EXPECT_EQ(parse_size("20480m"), 20 * kGiB);
    EXPECT_EQ(parse_size("4k"), 4096u);
    EXPECT_EQ(parse_size("512b"), 512u);
    EXPECT_EQ(parse_size("16TiB"), 16 * kTiB);
    EXPECT_EQ(parse_size("18446744073709551615"), UINT64_MAX);
}

TEST(ParseSize, RefusesTheRestAndSaysWhatIsAllowed) {
    for (const char* text : {"",
                             "0",
                             "0G",
                             "-1",
                             "-20G",
                             "1e30",
                             "nan",
                             "inf",
                             "G",
                             "+5",
                             "0x10",
                             "1.5G",
                             "20Gx",
                             "20 G B",
                             "20P",
                             "18446744073709551616",
                             "17179869184G",
                             "99999999999999999999999T",
                             " 20G",
                             "20G ",
                             "\xe2\x82\xac"}) {
        auto size = parse_size(text);
        ASSERT_FALSE(size) << text;
        EXPECT_EQ(size.error().code(), Code::invalid_argument);
        EXPECT_NE(size.error().message().find("such as 20GiB"), std::string::npos);
    }
    EXPECT_FALSE(parse_size(std::string_view("20G\0", 4)));
    EXPECT_LT(parse_size(std::string(1 << 20, 'x')).error().message().size(), 400u);
}

TEST(PrintSize, HasAtMostOneDecimal) {
    EXPECT_EQ(print_size(0), "0 B");
    EXPECT_EQ(print_size(1023), "1023 B");
    EXPECT_EQ(print_size(1024), "1 KiB");
    EXPECT_EQ(print_size(1536), "1.5 KiB");
    EXPECT_EQ(print_size(20 * kGiB), "20 GiB");
    EXPECT_EQ(print_size(kGiB - 1), "1 GiB");
    EXPECT_EQ(print_size(1536 * kMiB), "1.5 GiB");
    EXPECT_EQ(print_size(UINT64_MAX), "16 EiB");
}

TEST(CheckName, AllowsWhatDockerAllows) {
    for (const std::string& name : {std::string("a"), std::string("9"), std::string("data_1.x-y"),
                                    std::string(64, 'f'), std::string(128, 'z')}) {
        EXPECT_TRUE(check_name(name)) << name;
    }
    for (const std::string& name :
         {std::string(), std::string("."), std::string(".."), std::string("-a"), std::string("_a"),
          std::string("a/b"), std::string("a b"), std::string("a\0b", 3),
          std::string("caf\xc3\xa9"), std::string(129, 'z'), std::string("a\n")}) {
        auto checked = check_name(name);
        ASSERT_FALSE(checked) << name;
        EXPECT_NE(checked.error().message().find("letters"), std::string::npos);
    }
}

TEST(Validated, FillsDefaults) {
    auto spec = validated({.name = "v"});
    ASSERT_TRUE(spec) << spec.error().text();
    EXPECT_EQ(spec->size_bytes, limits::kVolumeBytesDefault);
    // Checking twice changes nothing: the door and the node both do it.
    EXPECT_EQ(validated(*spec), *spec);
}

TEST(Validated, RefusesWhatCannotBeKept) {
    auto refused = [](auto change) {
        VolumeSpec spec;
        spec.name = "v";
        change(spec);
        auto result = validated(spec);
        return !result && result.error().code() == Code::invalid_argument;
    };
    EXPECT_TRUE(refused([](VolumeSpec& s) { s.name = "../v"; }));
    EXPECT_TRUE(refused([](VolumeSpec& s) { s.size_bytes = 4097 * 1024 + 1; }));
    EXPECT_TRUE(refused([](VolumeSpec& s) { s.size_bytes = 4096; }));
    EXPECT_TRUE(refused([](VolumeSpec& s) { s.size_bytes = limits::kVolumeBytesMax + 4096; }));
    EXPECT_TRUE(refused([](VolumeSpec& s) {
        s.size_bytes = 64 * kMiB;
        s.fs = FsType::xfs;
    }));
    EXPECT_TRUE(refused([](VolumeSpec& s) { s.copies = 0; }));
    EXPECT_TRUE(refused([](VolumeSpec& s) { s.copies = 4; }));
    EXPECT_TRUE(refused([](VolumeSpec& s) { s.sector_bytes = 1024; }));
    EXPECT_TRUE(refused([](VolumeSpec& s) { s.mode = 010000; }));
    EXPECT_TRUE(refused([](VolumeSpec& s) { s.uid = -2; }));
    EXPECT_TRUE(refused([](VolumeSpec& s) { s.labels[""] = "x"; }));
    EXPECT_TRUE(refused([](VolumeSpec& s) { s.labels["a"] = "x\ny"; }));
    EXPECT_TRUE(refused([](VolumeSpec& s) { s.mkfs_options = "-O ^has_journal -d dir"; }));
    EXPECT_TRUE(refused([](VolumeSpec& s) { s.mkfs_options = std::string(300, '-'); }));
    EXPECT_FALSE(refused([](VolumeSpec& s) { s.mkfs_options = "-O ^has_journal -m 0"; }));
    EXPECT_FALSE(refused([](VolumeSpec& s) {
        s.fs = FsType::xfs;
        s.mkfs_options = "-d agcount=4";
    }));
}

TEST(Names, AreWhatUsersType) {
    EXPECT_EQ(parse_fs("xfs"), FsType::xfs);
    EXPECT_EQ(parse_fs(name_of(FsType::ext4)), FsType::ext4);
    EXPECT_FALSE(parse_fs("EXT4"));
    EXPECT_EQ(name_of(Light::yellow), "yellow");
}

}  // namespace
}  // namespace peplos::fabric
