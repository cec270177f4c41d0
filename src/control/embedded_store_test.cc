// What only the SQLite store promises: durability over a restart, and clear words on bad days.
#include "control/embedded_store.h"

#include <filesystem>
#include <fstream>
#include <gtest/gtest.h>
#include <set>
#include <sqlite3.h>
#include <sys/wait.h>
#include <unistd.h>

#include "control/test_run.h"

namespace peplos::control {
namespace {

using IfMissing = EmbeddedStore::IfMissing;

class EmbeddedStoreTest : public testing::Test {
  public:
    EmbeddedStoreTest() {
        std::string pattern = testing::TempDir() + "peplos-control-XXXXXX";
        CHECK(::mkdtemp(pattern.data()) != nullptr);
        folder = pattern;
        path = folder + "/control.db";
    }
    ~EmbeddedStoreTest() override {
        close();
        std::filesystem::remove_all(folder);
    }

    Result<void> open(IfMissing if_missing = IfMissing::fail, std::string vfs = "") {
        auto opened = run_task(context, EmbeddedStore::open({path, if_missing, std::move(vfs)}));
        if (!opened) return fail(opened.error());
        store = std::move(*opened);
        return {};
    }
    void close() {
        if (store) EXPECT_TRUE(run_task(context, store->stop()));
        store.reset();
    }
    Result<Revision> set(Transaction transaction) {
        return run_task(context, store->compare_and_set(std::move(transaction)));
    }
    std::string value(std::string key) {
        auto found = run_task(context, store->get(std::move(key)));
        if (!found) return std::string(name_of(found.error().code()));
        return found->has_value() ? (*found)->value : "absent";
    }
    void fill(uint32_t count) {
        for (uint32_t i = 0; i < count; ++i) {
            ASSERT_TRUE(set({create(fmt::format("volume/{:016x}", i), std::string(600, 'v'))}));
        }
    }
    void sql(const char* statement) {
        sqlite3* db = nullptr;
        CHECK(sqlite3_open(path.c_str(), &db) == SQLITE_OK);
        CHECK(sqlite3_exec(db, statement, nullptr, nullptr, nullptr) == SQLITE_OK, "{}",
              sqlite3_errmsg(db));
        sqlite3_close(db);
    }

    boost::asio::io_context context;
    std::string folder;
    std::string path;
    std::unique_ptr<EmbeddedStore> store;
};

TEST_F(EmbeddedStoreTest, KeepsKeysAndRevisionOverARestart) {
    ASSERT_TRUE(open(IfMissing::create));
    ASSERT_TRUE(set({create("a", "1"), create("b", "2")}));
    ASSERT_TRUE(set({remove("b", Revision(1))}));
    close();
    ASSERT_TRUE(open());
    EXPECT_EQ(value("a"), "1");
    EXPECT_EQ(value("b"), "absent");
    EXPECT_EQ(set({create("c", "3")}), Revision(3));
    // What was before the restart is not remembered; a watch is told, not left without.
    auto watch = run_task(context, store->watch("", Revision(1)));
    EXPECT_EQ(watch.error().code(), Code::conflict);
}

TEST_F(EmbeddedStoreTest, KeepsWhatAKilledProcessWasTold) {
    int channel[2];
    ASSERT_EQ(::pipe(channel), 0);
    pid_t child = ::fork();
    if (child == 0) {
        boost::asio::io_context own;
        auto opened = run_task(own, EmbeddedStore::open({path, IfMissing::create, ""}));
        if (!opened) ::_exit(1);
        for (uint32_t i = 0;; ++i) {
            Transaction transaction{put("count", std::nullopt, fmt::format("{}", i)),
                                    create(fmt::format("entry/{}", i), std::string(500, 'x'))};
            if (!run_task(own, (*opened)->compare_and_set(std::move(transaction)))) ::_exit(1);
            if (::write(channel[1], &i, sizeof i) != sizeof i) ::_exit(1);
        }
    }
    uint32_t told = 0;
    while (told < 300)
        ASSERT_EQ(::read(channel[0], &told, sizeof told), ssize_t{sizeof told});
    ::kill(child, SIGKILL);
    ::close(channel[1]);
    ASSERT_EQ(::waitpid(child, nullptr, 0), child);
    uint32_t last = 0;
    while (::read(channel[0], &last, sizeof last) == ssize_t{sizeof last})
        told = last;
    ::close(channel[0]);
    ASSERT_TRUE(open());
    uint32_t count = static_cast<uint32_t>(std::stoul(value("count")));
    EXPECT_GE(count, told);
    EXPECT_EQ(run_task(context, list_all(*store, "entry/"))->entries.size(), count + 1);
}

TEST_F(EmbeddedStoreTest, NeverMakesAnEmptyClusterOfALostFile) {
    EXPECT_EQ(open().error().code(), Code::not_found);
    EXPECT_FALSE(std::filesystem::exists(path));
    std::ofstream(path).close();
    EXPECT_EQ(open().error().code(), Code::corrupt);
    EXPECT_TRUE(open(IfMissing::create));
    close();
    path = folder + "/no/control.db";
    EXPECT_EQ(open(IfMissing::create).error().code(), Code::not_found);
    path = folder;
    EXPECT_EQ(open().error().code(), Code::invalid_argument);
}

TEST_F(EmbeddedStoreTest, RefusesASecondOpenerByPath) {
    // Forked before there are threads; it waits for its turn.
    int channel[2];
    ASSERT_EQ(::pipe(channel), 0);
    pid_t child = ::fork();
    if (child == 0) {
        char turn = 0;
        if (::read(channel[0], &turn, 1) != 1) ::_exit(2);
        boost::asio::io_context own;
        auto opened = run_task(own, EmbeddedStore::open({path, IfMissing::fail, ""}));
        bool right = !opened && opened.error().code() == Code::busy &&
                     opened.error().message().find(path) != std::string::npos;
        ::_exit(right ? 0 : 1);
    }
    ASSERT_TRUE(open(IfMissing::create));
    ASSERT_EQ(::write(channel[1], "x", 1), 1);
    int status = -1;
    ASSERT_EQ(::waitpid(child, &status, 0), child);
    EXPECT_EQ(status, 0);
    auto same_process = run_task(context, EmbeddedStore::open({path, IfMissing::fail, ""}));
    EXPECT_EQ(same_process.error().code(), Code::busy);
    EXPECT_TRUE(set({create("a", "1")}));
}

TEST_F(EmbeddedStoreTest, RefusesUnknownSchemasAndForeignFiles) {
    ASSERT_TRUE(open(IfMissing::create));
    close();
    sql("PRAGMA user_version = 2");
    EXPECT_EQ(open().error().code(), Code::unsupported);
    sql("PRAGMA application_id = 7");
    EXPECT_EQ(open(IfMissing::create).error().code(), Code::invalid_argument);
    std::ofstream(path) << std::string(8192, 'x');
    EXPECT_EQ(open().error().code(), Code::corrupt);
}

TEST_F(EmbeddedStoreTest, FindsAChangedRow) {
    ASSERT_TRUE(open(IfMissing::create));
    fill(3);
    close();
    sql("UPDATE entry SET value = x'00' WHERE key = CAST('volume/0000000000000001' AS BLOB)");
    Result<void> opened = open();
    ASSERT_FALSE(opened);
    EXPECT_EQ(opened.error().code(), Code::corrupt);
    EXPECT_NE(opened.error().message().find("volume/0000000000000001"), std::string::npos);
}

TEST_F(EmbeddedStoreTest, FindsARevisionThatWentBack) {
    ASSERT_TRUE(open(IfMissing::create));
    fill(3);
    close();
    sql("UPDATE store SET revision = 1");
    EXPECT_EQ(open().error().code(), Code::corrupt);
}

// Every byte of every page: either refused, or every value is what it was.
TEST_F(EmbeddedStoreTest, NeverServesADamagedByte) {
    ASSERT_TRUE(open(IfMissing::create));
    fill(12);
    close();
    std::ifstream in(path, std::ios::binary);
    std::string good((std::istreambuf_iterator<char>(in)), {});
    uint32_t refused = 0;
    for (size_t at = 0; at < good.size(); at += 61) {
        std::string bad = good;
        bad[at] = static_cast<char>(bad[at] ^ 0x5a);
        std::ofstream(path, std::ios::binary) << bad;
        if (!open()) {
            ++refused;
            continue;
        }
        auto all = run_task(context, list_all(*store, ""));
        if (all) {
            ASSERT_EQ(all->entries.size(), 12u) << at;
            for (const KeyValue& entry : all->entries)
                ASSERT_EQ(entry.value[0], 'v') << at;
        }
        close();
        std::filesystem::remove(path + "-wal");
    }
    EXPECT_GT(refused, 50u);
}

TEST_F(EmbeddedStoreTest, AnswersBusyWhenTheMailboxIsFull) {
    ASSERT_TRUE(open(IfMissing::create));
    uint32_t busy = 0;
    uint32_t done = 0;
    uint32_t total = 3 * limits::kStoreMailboxCountMax;
    for (uint32_t i = 0; i < total; ++i) {
        runtime::spawn(context.get_executor(),
                       [](Store& from, uint32_t& refused, uint32_t& ended) -> Task<void> {
                           Transaction change{put("k", std::nullopt, "v")};
                           auto set = co_await from.compare_and_set(std::move(change));
                           if (!set && set.error().code() == Code::busy) ++refused;
                           ++ended;
                       }(*store, busy, done));
    }
    context.restart();
    while (done < total)
        context.run_one_for(std::chrono::seconds(5));
    EXPECT_GT(busy, 0u);
    EXPECT_LT(busy, total);
    EXPECT_EQ(value("k"), "v");
}

// ---- copies ----

class CopyTest : public EmbeddedStoreTest {
  public:
    CopyTest() : copy(folder + "/copy.db") {
        CHECK(open(IfMissing::create).has_value());
        CHECK(set({create("cluster", "one"), create("a", "1")}).has_value());
    }
    Result<void> copy_to(const std::string& to) { return run_task(context, store->copy_to(to)); }
    // The value of `key` in the copy, opened like a store.
    std::string in_copy(const std::string& from, std::string key) {
        close();
        std::string own = std::exchange(path, folder + "/opened.db");
        std::filesystem::copy_file(from, path, std::filesystem::copy_options::overwrite_existing);
        Result<void> opened = open();
        EXPECT_TRUE(opened) << opened.error().text();
        std::string found = value(std::move(key));
        close();
        path = own;
        EXPECT_TRUE(open());
        return found;
    }
    std::string copy;
};

TEST_F(CopyTest, IsAWholeStoreAndRootsAlone) {
    fill(300);
    ASSERT_TRUE(copy_to(copy));
    EXPECT_EQ(std::filesystem::status(copy).permissions(), std::filesystem::perms(0600));
    ASSERT_TRUE(set({create("b", "2")}));
    EXPECT_EQ(in_copy(copy, "a"), "1");
    EXPECT_EQ(in_copy(copy, "b"), "absent");
    ASSERT_TRUE(copy_to(copy));
    EXPECT_EQ(in_copy(copy, "b"), "2");
    EXPECT_FALSE(std::filesystem::exists(copy + ".new"));
    EXPECT_FALSE(std::filesystem::exists(copy + ".newer"));
}

TEST_F(CopyTest, IsAnotherGenerationEachTimeItIsPutBack) {
    auto generation = [this] { return *run_task(context, store->generation()); };
    Generation first = generation();
    ASSERT_TRUE(copy_to(copy));
    close();
    ASSERT_TRUE(open());
    EXPECT_EQ(generation(), first);  // a restart is none
    std::set<Generation> seen{first};
    for (int i = 0; i < 3; ++i) {
        close();
        std::filesystem::copy_file(copy, path, std::filesystem::copy_options::overwrite_existing);
        ASSERT_TRUE(open());
        EXPECT_TRUE(seen.insert(generation()).second);
        EXPECT_EQ(value("a"), "1");
        close();
        ASSERT_TRUE(open());
        EXPECT_FALSE(seen.insert(generation()).second);
    }
}

TEST_F(EmbeddedStoreTest, GivesAnOlderFileAGeneration) {
    ASSERT_TRUE(open(IfMissing::create));
    ASSERT_TRUE(set({create("a", "1")}));
    close();
    sql("DROP TABLE generation");
    ASSERT_TRUE(open());
    EXPECT_NE(*run_task(context, store->generation()), Generation{});
    EXPECT_EQ(value("a"), "1");
}

TEST_F(CopyTest, NothingIsWrittenWhenNothingChanged) {
    ASSERT_TRUE(copy_to(copy));
    auto time = std::filesystem::last_write_time(copy);
    ASSERT_TRUE(copy_to(copy));
    EXPECT_EQ(std::filesystem::last_write_time(copy), time);
}

TEST_F(CopyTest, ACopyThatKnowsMoreIsKept) {
    std::string old = folder + "/old.db";
    ASSERT_TRUE(copy_to(old));
    ASSERT_TRUE(set({create("b", "2")}));
    ASSERT_TRUE(copy_to(copy));
    close();  // the store is lost, and an old copy of it is restored
    std::filesystem::copy_file(old, path, std::filesystem::copy_options::overwrite_existing);
    ASSERT_TRUE(open());
    EXPECT_EQ(value("b"), "absent");
    ASSERT_TRUE(copy_to(copy));
    EXPECT_EQ(in_copy(copy, "b"), "absent");
    EXPECT_EQ(in_copy(copy + ".newer", "b"), "2");
}

TEST_F(CopyTest, TheCopyOfAnotherClusterIsKept) {
    ASSERT_TRUE(copy_to(copy));
    close();
    std::filesystem::remove(path);
    ASSERT_TRUE(open(IfMissing::create));
    for (const char* value : {"x", "y", "z"})
        ASSERT_TRUE(set({put("a", std::nullopt, value)}));
    ASSERT_TRUE(copy_to(copy));  // not a cluster yet: nothing to copy
    ASSERT_TRUE(set({create("cluster", "two")}));
    ASSERT_TRUE(copy_to(copy));
    EXPECT_EQ(in_copy(copy, "a"), "z");
    EXPECT_EQ(in_copy(copy + ".newer", "a"), "1");
}

TEST_F(CopyTest, AFailureLeavesStoreAndOldCopyAsTheyAre) {
    ASSERT_TRUE(copy_to(copy));
    ASSERT_TRUE(set({create("b", "2")}));
    EXPECT_EQ(copy_to(folder + "/no/folder.db").error().code(), Code::not_found);
    std::filesystem::create_directory(copy + ".new");
    std::filesystem::create_directory(copy + ".new/in-the-way");
    EXPECT_FALSE(copy_to(copy));
    EXPECT_EQ(in_copy(copy, "b"), "absent");
    EXPECT_EQ(value("b"), "2");
    ASSERT_TRUE(set({create("c", "3")}));
    std::ofstream(copy) << "no database";
    std::filesystem::remove_all(copy + ".new");
    ASSERT_TRUE(copy_to(copy)) << "what is no store may be replaced";
    EXPECT_EQ(in_copy(copy, "c"), "3");
}

}  // namespace
}  // namespace peplos::control
