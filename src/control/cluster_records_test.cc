#include "control/cluster_records.h"

#include <gtest/gtest.h>

#include "base/check.h"
#include "control/test_text.h"

namespace peplos::control {
namespace {

GroupRecord sample_group() {
    return {GroupId(5),
            2,
            {{NodeId(1), GroupMemberState::full},
             {NodeId(2), GroupMemberState::away},
             {NodeId(3), GroupMemberState::filling}},
            7,
            1'795'000'000};
}

JoinTokenRecord sample_token() {
    return {JoinTokenId(9), sha256_of("secret"), 1'795'000'000, 1'795'003'600, {}, 0};
}

TEST(ClusterRecords, ReadBackWhatTheyPrint) {
    EXPECT_EQ(decode<GroupRecord>(*encode(sample_group())), sample_group());
    GroupRecord zero = sample_group();
    zero.id = GroupId(0);
    EXPECT_EQ(decode<GroupRecord>(*encode(zero)), zero);
    EXPECT_EQ(decode<JoinTokenRecord>(*encode(sample_token())), sample_token());
    MaintainerRecord maintainer{NodeId(4), 3, 1'795'000'000};
    EXPECT_EQ(decode<MaintainerRecord>(*encode(maintainer)), maintainer);
}

TEST(ClusterRecords, HaveOneTextOnTheDisk) {
    GroupRecord group{GroupId(5), 1, {{NodeId(1), GroupMemberState::full}}, 1, 7};
    EXPECT_EQ(*encode(group), R"({"copies":1,"created_at_s":7,"id":"0000000000000005",)"
                              R"("members":[{"node":"0000000000000001","state":"full"}],)"
                              R"("record_version":1,"version":1})");
    EXPECT_EQ(group_key(GroupId(5)), "group/0000000000000005");
    EXPECT_EQ(join_token_key(JoinTokenId(9)), "join-token/0000000000000009");
}

TEST(ClusterRecords, RefuseEveryOtherText) {
    std::string group = *encode(sample_group());
    for (size_t size = 0; size < group.size(); ++size)
        EXPECT_FALSE(decode<GroupRecord>(group.substr(0, size)));
    std::pair<const char*, const char*> changes[] = {
        {R"("copies":2)", R"("copies":0)"},
        {R"("copies":2)", R"("copies":4)"},
        {R"("state":"full")", R"("state":"away")"},
        {R"("state":"full")", R"("state":"gone")"},
        {R"("state":"full")", R"("state":"full","x":1)"},
        {R"("node":"0000000000000001")", R"("node":"0000000000000002")"},
        {R"("node":"0000000000000001")", R"("node":"0000000000000000")"},
        {R"("version":7)", R"("version":0)"},
        {R"("members":[)", R"("members":[1,)"},
        {R"("created_at_s")", R"("created")"},
    };
    for (const auto& [from, to] : changes) {
        auto read = decode<GroupRecord>(replaced(group, from, to));
        ASSERT_FALSE(read) << to;
        EXPECT_EQ(read.error().code(), Code::corrupt) << to;
    }
    auto newer =
        decode<GroupRecord>(replaced(group, R"(record_version":1)", R"(record_version":2)"));
    EXPECT_EQ(newer.error().code(), Code::unsupported);
    GroupRecord many = sample_group();
    for (uint64_t i = 10; i < 20; ++i)
        many.members.push_back({NodeId(i), GroupMemberState::full});
    EXPECT_EQ(encode(many).error().code(), Code::invalid_argument);
    JoinTokenRecord token = sample_token();
    token.secret_sha256[3] = 'G';
    EXPECT_FALSE(encode(token));
    token = sample_token();
    token.used_at_s = 5;
    EXPECT_FALSE(encode(token));
    EXPECT_FALSE(encode(MaintainerRecord{}));
}

TEST(JoinToken, LetsOneNodeInOnce) {
    constexpr int64_t kNow = 1'795'000'100;
    EXPECT_EQ(sha256_of("abc"), "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
    auto used = use_join_token(sample_token(), Revision(3), "secret", NodeId(2), kNow);
    ASSERT_TRUE(used);
    EXPECT_EQ(used->expected, Revision(3));
    EXPECT_EQ(used->key, join_token_key(JoinTokenId(9)));
    EXPECT_EQ(used->value.find("secret\""), std::string::npos) << "the secret itself";
    auto record = decode<JoinTokenRecord>(used->value);
    ASSERT_TRUE(record);
    EXPECT_EQ(record->used_by, NodeId(2));
    EXPECT_EQ(record->used_at_s, kNow);
    // The node that has it may ask again, also when it is late; nobody else may.
    auto again = use_join_token(*record, Revision(4), "secret", NodeId(2), kNow + 10'000);
    ASSERT_TRUE(again);
    EXPECT_EQ(decode<JoinTokenRecord>(again->value), *record);
    auto other = use_join_token(*record, Revision(4), "secret", NodeId(3), kNow);
    EXPECT_EQ(other.error().code(), Code::permission_denied);
}

TEST(JoinToken, EndsAndKeepsItsSecret) {
    JoinTokenRecord token = sample_token();
    for (const char* bad : {"", "secre", "secret ", "SECRET"}) {
        auto refused = use_join_token(token, Revision(1), bad, NodeId(2), token.created_at_s);
        EXPECT_EQ(refused.error().code(), Code::permission_denied) << bad;
    }
    EXPECT_TRUE(use_join_token(token, Revision(1), "secret", NodeId(2), token.expires_at_s - 1));
    auto late = use_join_token(token, Revision(1), "secret", NodeId(2), token.expires_at_s);
    EXPECT_EQ(late.error().code(), Code::permission_denied);
}

}  // namespace
}  // namespace peplos::control
