#include "attach/host_state.h"

#include <gtest/gtest.h>

#include "attach/fuse_attachments.h"
#include "attach/workers.h"

namespace peplos::attach {
namespace {

TEST(MountInfo, ParsesFieldsEscapesAndPropagation) {
    auto mounts = parse_mountinfo(
        "36 35 98:0 /mnt1 /mnt\\0402 rw,noatime master:1 - ext3 /dev/root rw,errors=continue\n"
        "42 27 7:3 / /srv/fs rw shared:7 - ext4 /dev/loop3 rw\n"
        "garbage\n"
        "1 2 3:4 / /x rw -\n");
    ASSERT_EQ(mounts.size(), 2u);
    EXPECT_EQ(mounts[0].directory, "/mnt 2");
    EXPECT_EQ(mounts[0].type, "ext3");
    EXPECT_FALSE(mounts[0].shared);
    EXPECT_EQ(mounts[1].device_number, "7:3");
    EXPECT_EQ(mounts[1].source, "/dev/loop3");
    EXPECT_TRUE(mounts[1].shared);
}

TEST(MountInfo, ThisHostHasARoot) {
    bool root = false;
    for (const MountEntry& mount : current_mounts())
        root |= mount.directory == "/";
    EXPECT_TRUE(root);
}

TEST(Probe, NamesEveryWayAndItsReason) {
    auto ways = probe();
    ASSERT_EQ(ways.size(), 3u);
    EXPECT_EQ(ways[0].name, "fuse");
    for (const Way& way : ways)
        EXPECT_FALSE(way.why.empty()) << way.name;
    EXPECT_FALSE(ways[1].usable);
    EXPECT_FALSE(ways[2].usable);
}

TEST(RunChild, CollectsOutputAndExitCode) {
    ChildResult result =
        run_child({"sh", "-c", "echo out; echo err >&2; exit 3"}, std::chrono::seconds(10));
    EXPECT_EQ(result.exit_code, 3);
    EXPECT_EQ(result.out, "out\n");
    EXPECT_EQ(result.err, "err\n");
    EXPECT_FALSE(result.timed_out);
}

TEST(RunChild, KillsAfterItsLimitAndBoundsOutput) {
    ChildResult late = run_child({"sleep", "100"}, std::chrono::milliseconds(50));
    EXPECT_TRUE(late.timed_out);
    ChildResult loud = run_child({"head", "-c", "1000000", "/dev/zero"}, std::chrono::seconds(10));
    EXPECT_EQ(loud.exit_code, 0);
    EXPECT_EQ(loud.out.size(), 64u * 1024);
    EXPECT_FALSE(run_child({"/nonexistent/program"}, std::chrono::seconds(1)).err.empty());
}

TEST(Holder, RefusesAPathThatDoesNotFit) {
    auto client = HolderClient::connect(std::string(200, 'x'));
    ASSERT_FALSE(client);
    EXPECT_EQ(client.error().code(), Code::invalid_argument);
    EXPECT_EQ(HolderClient::connect("/nonexistent/holder.sock").error().code(), Code::unavailable);
}

}  // namespace
}  // namespace peplos::attach
