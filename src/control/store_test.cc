// One suite for every implementation of Store: what the interface promises.
#include <filesystem>
#include <gtest/gtest.h>
#include <map>
#include <random>
#include <unistd.h>

#include "control/embedded_store.h"
#include "control/etcd_store.h"
#include "control/memory_store.h"
#include "control/test_etcd.h"
#include "control/test_run.h"

namespace peplos::control {
namespace {

class TemporaryFolder {
  public:
    TemporaryFolder() {
        std::string pattern = testing::TempDir() + "peplos-control-XXXXXX";
        CHECK(::mkdtemp(pattern.data()) != nullptr);
        path_ = pattern;
    }
    ~TemporaryFolder() { std::filesystem::remove_all(path_); }
    std::string file() const { return path_ + "/control.db"; }

  private:
    std::string path_;
};

struct MemoryKind {
    static constexpr bool kForgetsByItself = true;
    static std::unique_ptr<Store> make(boost::asio::io_context&, const TemporaryFolder&) {
        return std::make_unique<MemoryStore>();
    }
};
struct EmbeddedKind {
    static constexpr bool kForgetsByItself = true;
    static std::unique_ptr<Store> make(boost::asio::io_context& context,
                                       const TemporaryFolder& folder) {
        EmbeddedStore::Options options{folder.file(), EmbeddedStore::IfMissing::create, ""};
        auto store = run_task(context, EmbeddedStore::open(options));
        CHECK(store.has_value(), "{}", store.error().text());
        return std::move(*store);
    }
};

// One etcd for all tests, each below a prefix of its own.
struct EtcdKind {
    static constexpr bool kForgetsByItself = false;
    static std::unique_ptr<Store> make(boost::asio::io_context& context, const TemporaryFolder&) {
        static TestEtcd etcd(1);
        static int count = 0;
        EtcdOptions options;
        options.address.endpoints = etcd.endpoints();
        options.prefix = fmt::format("/test/{}/", ++count);
        options.call_limit = kEtcdCallMax;  // the disk may be busy
        return run_task(context, connect_when_up(options));
    }
};

template <typename Kind>
class StoreTest : public testing::Test {
  public:
    StoreTest() : store(Kind::make(context, folder)) {
        auto all = run_task(context, list_all(*store, ""));
        CHECK(all.has_value(), "{}", all.error().text());
        base_ = all->revision.value;
    }
    ~StoreTest() override { EXPECT_TRUE(run_task(context, store->stop())); }

    // The revision of the store's n-th transaction.
    Revision rev(uint64_t n) const { return Revision(base_ + n); }
    Result<Revision> set(Transaction transaction) {
        return run_task(context, store->compare_and_set(std::move(transaction)));
    }
    KeyValue at(std::string key) {
        auto found = run_task(context, store->get(std::move(key)));
        CHECK(found.has_value() && found->has_value());
        return **found;
    }
    bool absent(std::string key) {
        auto found = run_task(context, store->get(std::move(key)));
        CHECK(found.has_value());
        return !found->has_value();
    }
    std::vector<std::string> keys(ListRequest request) {
        auto page = run_task(context, store->list(std::move(request)));
        CHECK(page.has_value(), "{}", page.error().text());
        std::vector<std::string> out;
        for (const KeyValue& entry : page->entries)
            out.push_back(entry.key);
        return out;
    }
    std::unique_ptr<Watch> watch(std::string prefix, Revision from) {
        auto watch = run_task(context, store->watch(std::move(prefix), from));
        CHECK(watch.has_value(), "{}", watch.error().text());
        return std::move(*watch);
    }
    Result<std::vector<Event>> next(Watch& watch) { return run_task(context, watch.next()); }

    TemporaryFolder folder;
    boost::asio::io_context context;
    std::unique_ptr<Store> store;

  private:
    uint64_t base_ = 0;
};

using Kinds = testing::Types<MemoryKind, EmbeddedKind, EtcdKind>;
TYPED_TEST_SUITE(StoreTest, Kinds);

TYPED_TEST(StoreTest, CountsVersionsAndRevisions) {
    EXPECT_TRUE(this->absent("a"));
    EXPECT_EQ(this->set({create("a", "1")}), this->rev(1));
    EXPECT_EQ(this->set({put("a", this->rev(1), "2"), create("b", "")}), this->rev(2));
    KeyValue a{"a", "2", 2, this->rev(1), this->rev(2)};
    EXPECT_EQ(this->at("a"), a);
    EXPECT_EQ(this->at("b").value, "");
    EXPECT_EQ(this->set({remove("a", this->rev(2))}), this->rev(3));
    EXPECT_TRUE(this->absent("a"));
    EXPECT_EQ(this->set({create("a", "3")}), this->rev(4));
    EXPECT_EQ(this->at("a").version, 1u);
    EXPECT_EQ(this->at("a").create_revision, this->rev(4));
}

TYPED_TEST(StoreTest, ChangesAllKeysOrNone) {
    ASSERT_TRUE(this->set({create("a", "1")}));
    auto lost = this->set({create("b", "x"), create("a", "x"), remove("c", std::nullopt)});
    EXPECT_EQ(lost.error().code(), Code::conflict);
    EXPECT_NE(lost.error().message().find("'a'"), std::string::npos);
    EXPECT_TRUE(this->absent("b"));
    EXPECT_EQ(this->set({put("b", this->rev(1), "x")}).error().code(), Code::conflict);
    EXPECT_EQ(this->set({remove("b", this->rev(1))}).error().code(), Code::conflict);
    EXPECT_EQ(this->set({check("a", this->rev(9)), create("b", "x")}).error().code(),
              Code::conflict);
    EXPECT_EQ(this->set({check("a", this->rev(1)), create("b", "x")}), this->rev(2));
}

TYPED_TEST(StoreTest, KeepsItsRevisionWhenNothingChanges) {
    ASSERT_TRUE(this->set({create("a", "1")}));
    EXPECT_EQ(this->set({remove("b", std::nullopt)}), this->rev(1));
    EXPECT_EQ(this->set({check("a", this->rev(1))}), this->rev(1));
    EXPECT_EQ(this->set({put("a", std::nullopt, "1")}), this->rev(2));
}

TYPED_TEST(StoreTest, DemandsAGeneration) {
    auto generation = run_task(this->context, this->store->generation());
    ASSERT_TRUE(generation);
    EXPECT_NE(*generation, Generation{});
    auto set_in = [this](Generation demanded) {
        return run_task(this->context,
                        this->store->compare_and_set({put("a", std::nullopt, "1")}, demanded));
    };
    EXPECT_TRUE(set_in(*generation));
    EXPECT_EQ(set_in(generation->next()).error().code(), Code::conflict);
    EXPECT_EQ(this->at("a").version, 1u);
    EXPECT_EQ(run_task(this->context, this->store->generation()), *generation);
}

TYPED_TEST(StoreTest, ComparesAgainstDeletedAndCreatedAgain) {
    ASSERT_TRUE(this->set({create("a", "1")}));
    ASSERT_TRUE(this->set({remove("a", this->rev(1))}));
    ASSERT_TRUE(this->set({create("a", "2")}));
    EXPECT_EQ(this->set({put("a", this->rev(1), "3")}).error().code(), Code::conflict);
}

TYPED_TEST(StoreTest, RefusesBrokenBounds) {
    std::string long_key(limits::kStoreKeyBytesMax + 1, 'k');
    std::string long_value(limits::kStoreValueBytesMax + 1, 'v');
    Transaction many;
    for (uint32_t i = 0; i <= limits::kStoreTransactionKeysMax; ++i) {
        many.push_back(create(fmt::format("{}", i), ""));
    }
    Transaction large;
    for (uint32_t i = 0; i <= kTransactionBytesMax / limits::kStoreValueBytesMax; ++i) {
        large.push_back(create(fmt::format("{}", i), long_value.substr(1)));
    }
    for (const Transaction& bad :
         {large, Transaction{}, Transaction{create("", "v")}, Transaction{create(long_key, "v")},
          Transaction{create("k", long_value)}, many,
          Transaction{create("k", "v"), check("k", this->rev(1))}}) {
        EXPECT_EQ(this->set(bad).error().code(), Code::invalid_argument);
    }
    EXPECT_EQ(run_task(this->context, this->store->get("")).error().code(), Code::invalid_argument);
    EXPECT_EQ(run_task(this->context, this->store->list({"", "", 0})).error().code(),
              Code::invalid_argument);
}

TYPED_TEST(StoreTest, ListsByPrefixInPagesAndByteOrder) {
    std::string last = "v\xff";
    ASSERT_TRUE(this->set({create("v/2", ""), create("v/1", ""), create("v/3", ""),
                           create("v0", ""), create("u", ""), create(last, ""),
                           create(last + "\xff" + "a", ""), create(std::string("v/1\0", 4), "")}));
    using Keys = std::vector<std::string>;
    EXPECT_EQ(this->keys({"v/", "", 10}), (Keys{"v/1", std::string("v/1\0", 4), "v/2", "v/3"}));
    EXPECT_EQ(this->keys({"v/", "v/1", 2}), (Keys{std::string("v/1\0", 4), "v/2"}));
    EXPECT_EQ(this->keys({"v/", "a", 1}), (Keys{"v/1"}));
    EXPECT_EQ(this->keys({"v/", "v/3", 1}), Keys{});
    EXPECT_EQ(this->keys({"v/", "z", 1}), Keys{});
    EXPECT_EQ(this->keys({last, "", 9}), (Keys{last, last + "\xff" + "a"}));
    EXPECT_EQ(this->keys({"\xff", "", 9}), Keys{});
    auto all = run_task(this->context, list_all(*this->store, ""));
    EXPECT_EQ(all->entries.size(), 8u);
    EXPECT_EQ(all->revision, this->rev(1));
    auto page = run_task(this->context, this->store->list({"v/", "", 4}));
    EXPECT_FALSE(page->more);
    page = run_task(this->context, this->store->list({"v/", "", 3}));
    EXPECT_TRUE(page->more);
}

TYPED_TEST(StoreTest, EndsAPageThatIsLargeAndListsOn) {
    std::string value(limits::kStoreValueBytesMax, 'x');
    uint32_t count = limits::kStoreListBytesMax / limits::kStoreValueBytesMax + 10;
    for (uint32_t i = 0; i < count; ++i) {
        ASSERT_TRUE(this->set({create(fmt::format("{:04}", i), value)}));
    }
    auto page = run_task(this->context, this->store->list({}));
    EXPECT_TRUE(page->more);
    EXPECT_LT(page->entries.size(), count);
    EXPECT_EQ(run_task(this->context, list_all(*this->store, ""))->entries.size(), count);
}

TYPED_TEST(StoreTest, WatchesFromARevisionOn) {
    ASSERT_TRUE(this->set({create("v/1", "a")}));
    ASSERT_TRUE(this->set({create("v/2", "b"), create("w", "c")}));
    auto watch = this->watch("v/", this->rev(2));
    auto events = this->next(*watch);
    ASSERT_TRUE(events);
    ASSERT_EQ(events->size(), 1u);
    EXPECT_EQ(events->front().entry, (KeyValue{"v/2", "b", 1, this->rev(2), this->rev(2)}));
    ASSERT_TRUE(this->set({remove("v/1", this->rev(1)), put("v/2", this->rev(2), "d")}));
    events = this->next(*watch);
    ASSERT_EQ(events->size(), 2u);
    EXPECT_EQ(events->at(0).kind, Event::Kind::removed);
    EXPECT_EQ(events->at(0).entry.mod_revision, this->rev(3));
    EXPECT_EQ(events->at(1).entry.version, 2u);
}

TYPED_TEST(StoreTest, WakesAWatchThatWaits) {
    auto watch = this->watch("", Revision{});
    std::optional<Result<std::vector<Event>>> events;
    runtime::spawn(this->context.get_executor(), [](Watch& from, auto& to) -> Task<void> {
        to.emplace(co_await from.next());
    }(*watch, events));
    ASSERT_TRUE(this->set({create("a", "1")}));
    ASSERT_TRUE(this->set({create("b", "1")}));
    while (!events)
        this->context.run_one_for(std::chrono::seconds(1));
    EXPECT_EQ((*events)->front().entry.key, "a");
    std::optional<Result<std::vector<Event>>> last;
    auto second = this->watch("nothing", Revision{});
    runtime::spawn(this->context.get_executor(), [](Watch& from, auto& to) -> Task<void> {
        to.emplace(co_await from.next());
    }(*second, last));
    EXPECT_TRUE(this->absent("c"));
    second->close();
    while (!last)
        this->context.run_one_for(std::chrono::seconds(1));
    EXPECT_EQ(last->error().code(), Code::stopping);
}

TYPED_TEST(StoreTest, NeverSplitsATransactionInAWatch) {
    auto watch = this->watch("", Revision{});
    uint64_t sent = 0;
    for (uint32_t i = 0; i < 3 * limits::kStoreWatchEventsMax / 50; ++i) {
        Transaction transaction;
        for (int j = 0; j < 50; ++j)
            transaction.push_back(put(fmt::format("{}", j), {}, ""));
        ASSERT_TRUE(this->set(std::move(transaction)));
        sent += 50;
    }
    uint64_t seen = 0;
    while (seen < sent) {
        auto events = this->next(*watch);
        ASSERT_TRUE(events);
        EXPECT_LT(events->size(), limits::kStoreWatchEventsMax + 50);
        EXPECT_EQ(events->size() % 50, 0u);
        seen += events->size();
    }
}

TYPED_TEST(StoreTest, TellsAWatchThatFellBehind) {
    auto slow = this->watch("", Revision{});
    // Twice as many as wait for a watch: etcd's come a little after the transaction's answer.
    uint32_t transactions = 2 * limits::kStoreHistoryEventsMax / limits::kStoreTransactionKeysMax;
    for (uint32_t i = 0; i < transactions; ++i) {
        Transaction transaction;
        for (uint32_t j = 0; j < limits::kStoreTransactionKeysMax; ++j) {
            transaction.push_back(put(fmt::format("{}", j), std::nullopt, ""));
        }
        ASSERT_TRUE(this->set(std::move(transaction)));
    }
    EXPECT_EQ(this->next(*slow).error().code(), Code::conflict);
    if constexpr (!TypeParam::kForgetsByItself) {
        auto& etcd = static_cast<EtcdStore&>(*this->store);
        ASSERT_TRUE(run_task(this->context, etcd.compact(this->rev(transactions))));
    }
    auto late = run_task(this->context, this->store->watch("", this->rev(1)));
    if (late) {
        EXPECT_EQ(this->next(**late).error().code(), Code::conflict);
    } else {
        EXPECT_EQ(late.error().code(), Code::conflict);
    }
}

TYPED_TEST(StoreTest, BoundsItsWatches) {
    std::vector<std::unique_ptr<Watch>> watches;
    for (uint32_t i = 0; i < limits::kStoreWatchCountMax; ++i) {
        watches.push_back(this->watch("", Revision{}));
    }
    auto refused = run_task(this->context, this->store->watch("", Revision{}));
    EXPECT_EQ(refused.error().code(), Code::busy);
    watches.pop_back();
    EXPECT_TRUE(this->watch("", Revision{}));
}

TYPED_TEST(StoreTest, StopsAndRefuses) {
    auto watch = this->watch("", Revision{});
    std::optional<Result<std::vector<Event>>> events;
    runtime::spawn(this->context.get_executor(), [](Watch& from, auto& to) -> Task<void> {
        to.emplace(co_await from.next());
    }(*watch, events));
    EXPECT_TRUE(this->absent("a"));
    EXPECT_TRUE(run_task(this->context, this->store->stop()));
    while (!events)
        this->context.run_one_for(std::chrono::seconds(1));
    EXPECT_EQ(events->error().code(), Code::stopping);
    EXPECT_EQ(this->set({create("a", "1")}).error().code(), Code::stopping);
    EXPECT_EQ(run_task(this->context, this->store->get("a")).error().code(), Code::stopping);
    EXPECT_EQ(this->next(*watch).error().code(), Code::stopping);
}

// Random transactions against a plain map that follows the interface's words.
TYPED_TEST(StoreTest, BehavesLikeAMap) {
    std::mt19937 random(20261122);
    std::map<std::string, KeyValue> model;
    uint64_t revision = 0;
    for (int step = 0; step < 400; ++step) {
        Transaction transaction;
        bool holds = true;
        for (uint32_t i = 0, count = 1 + random() % 4; i < count; ++i) {
            Operation operation;
            operation.key = fmt::format("k{}", (random() % 3) * 4 + i);
            operation.kind = static_cast<Operation::Kind>(random() % 3);
            operation.value = fmt::format("{}", step);
            auto known = model.find(operation.key);
            Revision present = known == model.end() ? Revision{} : known->second.mod_revision;
            if (random() % 8 != 0) operation.expected = present;
            if (random() % 8 == 0) operation.expected = this->rev(random() % (revision + 2));
            holds = holds && (!operation.expected || *operation.expected == present);
            transaction.push_back(std::move(operation));
        }
        bool changed = false;
        for (const Operation& operation : transaction) {
            if (!holds || operation.kind == Operation::Kind::check) continue;
            if (operation.kind == Operation::Kind::remove) {
                changed |= model.erase(operation.key) == 1;
                continue;
            }
            KeyValue& entry = model[operation.key];
            if (entry.version == 0) entry.create_revision = this->rev(revision + 1);
            entry = {operation.key, operation.value, entry.version + 1, entry.create_revision,
                     this->rev(revision + 1)};
            changed = true;
        }
        revision += changed ? 1 : 0;
        auto result = this->set(transaction);
        ASSERT_EQ(result.has_value(), holds);
        if (holds) ASSERT_EQ(*result, this->rev(revision));
    }
    auto all = run_task(this->context, list_all(*this->store, ""));
    ASSERT_EQ(all->entries.size(), model.size());
    for (const KeyValue& entry : all->entries)
        EXPECT_EQ(entry, model.at(entry.key));
}

}  // namespace
}  // namespace peplos::control
