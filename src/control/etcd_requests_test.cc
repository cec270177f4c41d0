// What is asked of etcd, and what is believed of its answers.
#include "control/etcd_requests.h"

#include <gtest/gtest.h>

namespace peplos::control::etcd {
namespace {

using etcdserverpb::Compare;

const Layout kLayout("/p/");
const Identity kSeen{7, generation_text(5, 7), 40, "mark"};

void add_range(TxnResponse& to, const std::string& key, const std::string& value,
               int64_t revision) {
    RangeResponse* range = to.add_responses()->mutable_response_range();
    if (revision == 0) return;
    mvccpb::KeyValue* entry = range->add_kvs();
    entry->set_key(key);
    entry->set_value(value);
    entry->set_version(1);
    entry->set_create_revision(revision);
    entry->set_mod_revision(revision);
}

TEST(EtcdRequests, AChangeHoldsInOneHistoryOnlyAndMarksIt) {
    TxnRequest request = kLayout.change(
        {create("a", "1"), check("b", Revision(9)), remove("c", std::nullopt)}, kSeen, "next");
    ASSERT_EQ(request.compare_size(), 4);
    EXPECT_EQ(request.compare(0).key(), "/p/data/a");
    EXPECT_EQ(request.compare(0).mod_revision(), 0);
    EXPECT_EQ(request.compare(1).mod_revision(), 9);
    EXPECT_EQ(request.compare(2).key(), "/p/generation");
    EXPECT_EQ(request.compare(2).value(), kSeen.generation);
    EXPECT_EQ(request.compare(3).key(), "/p/mark");
    EXPECT_EQ(request.compare(3).result(), Compare::GREATER);
    EXPECT_EQ(request.compare(3).mod_revision(), 39);
    ASSERT_EQ(request.success_size(), 3);
    EXPECT_EQ(request.success(0).request_put().value(), "1");
    EXPECT_EQ(request.success(1).request_delete_range().key(), "/p/data/c");
    EXPECT_EQ(request.success(2).request_put().key(), "/p/mark");
    EXPECT_EQ(request.success(2).request_put().value(), "next");
    EXPECT_EQ(request.failure_size(), 4);  // the identity, and the two that were expected
}

TEST(EtcdRequests, WhatMayChangeNothingLeavesNoMark) {
    EXPECT_TRUE(surely_changes({put("a", std::nullopt, "")}));
    EXPECT_TRUE(surely_changes({remove("a", Revision(3))}));
    EXPECT_FALSE(surely_changes({remove("a", Revision{}), remove("b", std::nullopt)}));
    EXPECT_FALSE(surely_changes({check("a", Revision(3))}));
    TxnRequest request = kLayout.change({remove("a", std::nullopt)}, kSeen, "next");
    EXPECT_EQ(request.success_size(), 1);
}

TEST(EtcdRequests, NamesTheKeyThatRefused) {
    Transaction transaction{create("a", ""), put("b", Revision(3), ""), remove("c", std::nullopt)};
    TxnResponse response;
    add_range(response, "/p/generation", kSeen.generation, 2);
    add_range(response, "/p/mark", "mark", 40);
    add_range(response, "/p/data/a", "", 0);
    add_range(response, "/p/data/b", "", 8);
    Error error = kLayout.refusal(transaction, response);
    EXPECT_EQ(error.code(), Code::conflict);
    EXPECT_NE(error.message().find("'b' is at revision 8, not 3"), std::string::npos);
    Result<Identity> identity = kLayout.identity_of(response, 0);
    ASSERT_TRUE(identity);
    EXPECT_EQ(identity->mark_revision, 40);
    EXPECT_EQ(kLayout.identity_of(response, 3).error().code(), Code::corrupt);
}

TEST(EtcdRequests, BelievesNoEntryThatIsNotOurs) {
    auto refused = [](auto change) {
        mvccpb::KeyValue entry;
        entry.set_key("/p/data/a");
        entry.set_value("1");
        entry.set_version(1);
        entry.set_create_revision(3);
        entry.set_mod_revision(3);
        change(entry);
        Result<KeyValue> read = kLayout.entry_of(entry);
        return !read && read.error().code() == Code::corrupt;
    };
    EXPECT_FALSE(refused([](mvccpb::KeyValue&) {}));
    EXPECT_TRUE(refused([](mvccpb::KeyValue& entry) { entry.set_key("/p/mark"); }));
    EXPECT_TRUE(refused([](mvccpb::KeyValue& entry) { entry.set_key("/p/data/"); }));
    EXPECT_TRUE(refused([](mvccpb::KeyValue& entry) { entry.set_version(0); }));
    EXPECT_TRUE(refused([](mvccpb::KeyValue& entry) { entry.set_mod_revision(2); }));
    EXPECT_TRUE(refused([](mvccpb::KeyValue& entry) { entry.set_create_revision(-1); }));
    EXPECT_TRUE(refused([](mvccpb::KeyValue& entry) {
        entry.set_value(std::string(limits::kStoreValueBytesMax + 1, 'x'));
    }));
}

TEST(EtcdRequests, EndsPrefixesWhereTheyEnd) {
    EXPECT_EQ(end_of_prefix("a"), "b");
    EXPECT_EQ(end_of_prefix("a\xff\xff"), "b");
    EXPECT_EQ(end_of_prefix("\xff"), std::string(1, '\0'));
}

}  // namespace
}  // namespace peplos::control::etcd
