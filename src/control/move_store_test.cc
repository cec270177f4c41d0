#include "control/move_store.h"

#include <gtest/gtest.h>
#include <map>

#include "control/memory_store.h"
#include "control/records.h"
#include "control/test_run.h"

namespace peplos::control {
namespace {

class MoveStoreTest : public testing::Test {
  public:
    MoveStoreTest() {
        set(from, {create(std::string(kClusterKey), "the cluster"), create("node/1", "n")});
        for (int i = 0; i < 300; ++i)
            set(from, {create(fmt::format("volume/{:04}", i), std::string(3000, 'v'))});
        set(from, {create("volume/large", std::string(limits::kStoreValueBytesMax, 'x'))});
    }
    void set(Store& store, Transaction transaction) {
        auto done = run_task(context, store.compare_and_set(std::move(transaction)));
        CHECK(done.has_value(), "{}", done.error().text());
    }
    Result<void> move(Store& to) { return run_task(context, move_store(from, to)); }
    std::map<std::string, std::string> content(Store& store) {
        std::map<std::string, std::string> out;
        auto all = run_task(context, list_all(store, ""));
        for (const KeyValue& entry : all->entries)
            out[entry.key] = entry.value;
        return out;
    }

    boost::asio::io_context context;
    MemoryStore from;
};

TEST_F(MoveStoreTest, CopiesEverythingOnce) {
    MemoryStore to;
    ASSERT_TRUE(move(to));
    EXPECT_EQ(content(to), content(from));
    Revision after = to.revision();
    ASSERT_TRUE(move(to));  // already there
    EXPECT_EQ(to.revision(), after);
    EXPECT_TRUE(run_task(context, check_not_moving(to)));
}

TEST_F(MoveStoreTest, GoesOnAfterACutAtAnyTransaction) {
    using Mishap = MemoryStore::Mishap;
    for (Mishap mishap : {Mishap::unavailable, Mishap::unknown_applied, Mishap::unknown_lost}) {
        for (int cut = 0;; ++cut) {
            MemoryStore to;
            to.cut_after(cut, mishap);
            Result<void> first = move(to);
            if (first) {
                EXPECT_GT(cut, 3);
                break;
            }
            bool has_cluster = content(to).contains(std::string(kClusterKey));
            bool is_moving = content(to).contains(std::string(kMovingKey));
            EXPECT_FALSE(has_cluster && is_moving);
            if (is_moving) EXPECT_FALSE(run_task(context, check_not_moving(to)));
            // What the first attempt copied and is gone since.
            if (is_moving) set(to, {create("volume/stale", "old")});
            ASSERT_TRUE(move(to)) << cut;
            EXPECT_EQ(content(to), content(from)) << cut;
        }
    }
}

TEST_F(MoveStoreTest, RefusesWhatIsNotEmpty) {
    MemoryStore other;
    set(other, {create(std::string(kClusterKey), "another")});
    EXPECT_EQ(move(other).error().code(), Code::already_exists);
    MemoryStore used;
    set(used, {create("a", "1")});
    EXPECT_EQ(move(used).error().code(), Code::already_exists);
    EXPECT_EQ(content(used).size(), 1u);
    MemoryStore taken;
    set(taken, {create(std::string(kMovingKey), "another")});
    EXPECT_EQ(move(taken).error().code(), Code::already_exists);
    MemoryStore empty, to;
    EXPECT_EQ(run_task(context, move_store(empty, to)).error().code(), Code::not_found);
}

}  // namespace
}  // namespace peplos::control
