#include "app/node_identity.h"

#include <filesystem>
#include <fstream>
#include <gtest/gtest.h>

namespace peplos::app {
namespace {

TEST(NodeIdentity, StaysTheSameAndIsHeldOnce) {
    std::string folder = testing::TempDir() + "peplos-identity-XXXXXX";
    ASSERT_NE(::mkdtemp(folder.data()), nullptr);
    NodeId id;
    {
        auto first = NodeIdentity::open(folder);
        ASSERT_TRUE(first) << first.error().text();
        id = (*first)->id();
        EXPECT_TRUE(id);
        EXPECT_EQ(NodeIdentity::open(folder).error().code(), Code::busy);
    }
    EXPECT_EQ((*NodeIdentity::open(folder))->id(), id);
    for (const char* bad :
         {"x", "0000000000000000\n", "00000000000000011", "0123456789abcdef\nx"}) {
        std::ofstream(NodeIdentity::path_in(folder), std::ios::trunc) << bad;
        EXPECT_EQ(NodeIdentity::open(folder).error().code(), Code::corrupt) << bad;
    }
    std::ofstream(NodeIdentity::path_in(folder), std::ios::trunc).close();
    EXPECT_TRUE(NodeIdentity::open(folder));  // a first start that was cut short
    std::filesystem::remove_all(folder);
    EXPECT_EQ(NodeIdentity::open(folder).error().code(), Code::io_error);
}

}  // namespace
}  // namespace peplos::app
