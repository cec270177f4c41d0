#include "control/backup.h"

#include <filesystem>
#include <gtest/gtest.h>

#include "control/records.h"
#include "control/test_run.h"

namespace peplos::control {
namespace {

// Time passes only when the test says so.
class HandClock final : public runtime::Clock {
  public:
    Time now() override { return now_; }
    WallTime wall_now() override { return {}; }
    Task<void> sleep_until(Time deadline) override {
        while (now_ < deadline)
            co_await passed_.wait();
    }
    void pass(Duration duration) {
        now_ += duration;
        passed_.wake_all();
    }

  private:
    Time now_{};
    runtime::WaitList passed_;
};

class BackupTest : public testing::Test {
  public:
    BackupTest() {
        std::string pattern = testing::TempDir() + "peplos-backup-XXXXXX";
        CHECK(::mkdtemp(pattern.data()) != nullptr);
        folder = pattern;
        std::filesystem::create_directories(folder + "/state");
        std::filesystem::create_directories(folder + "/elsewhere");
        auto opened =
            run_task(context, EmbeddedStore::open({folder + "/state/control.db",
                                                   EmbeddedStore::IfMissing::create, ""}));
        CHECK(opened.has_value());
        store = std::move(*opened);
        set({create(std::string(kClusterKey), "cluster")});
        backup = std::make_unique<Backup>(context.get_executor(), clock, *store, folder + "/state");
    }
    ~BackupTest() override {
        stop();
        clock.pass(std::chrono::hours(1));  // no sleeper outlives the clock
        context.restart();
        context.run_for(std::chrono::milliseconds(5));
        EXPECT_TRUE(run_task(context, store->stop()));
        std::filesystem::remove_all(folder);
    }
    void set(Transaction transaction) {
        ASSERT_TRUE(run_task(context, store->compare_and_set(std::move(transaction))));
    }
    void stop() {
        run_task(context, [](Backup& one) -> Task<bool> {
            co_await one.stop();
            co_return true;
        }(*backup));
    }
    void add_device(std::string path) {
        DeviceRecord record;
        record.id.bytes[0] = static_cast<uint8_t>(++devices);
        record.node = NodeId(1);
        record.path = std::move(path);
        record.bytes = 1 << 30;
        record.incarnation = Incarnation(1);
        auto value = encode(record);
        ASSERT_TRUE(value) << value.error().text();
        set({create(device_key(record.id), *value)});
    }
    // Whether the copy has the store's revision; waits a little for the store's thread.
    bool is_current(const std::string& path, Duration passing = Backup::kIntervalMin) {
        auto end = std::chrono::steady_clock::now() + std::chrono::seconds(5);
        while (std::chrono::steady_clock::now() < end) {
            if (std::filesystem::exists(path) && has_key(path, newest)) return true;
            context.restart();
            context.run_for(std::chrono::milliseconds(5));
            clock.pass(passing);
        }
        return false;
    }
    bool has_key(const std::string& path, const std::string& key) {
        std::string own = folder + "/opened.db";
        std::filesystem::copy_file(path, own, std::filesystem::copy_options::overwrite_existing);
        auto opened =
            run_task(context, EmbeddedStore::open({own, EmbeddedStore::IfMissing::fail, ""}));
        if (!opened) return false;
        auto found = run_task(context, (*opened)->get(key));
        EXPECT_TRUE(run_task(context, (*opened)->stop()));
        return found && found->has_value();
    }
    // Lets everything that need not wait for the clock happen.
    void settle() {
        context.restart();
        context.run_for(std::chrono::milliseconds(30));
    }
    void change() {
        newest = fmt::format("volume/{:016x}", ++changes);
        set({create(newest, "v")});
    }

    boost::asio::io_context context;
    HandClock clock;
    std::string folder;
    std::unique_ptr<EmbeddedStore> store;
    std::unique_ptr<Backup> backup;
    std::string newest{kClusterKey};
    int devices = 0;
    int changes = 0;
};

TEST_F(BackupTest, FollowsChangesAndGoesBesideDevicesElsewhere) {
    std::string own = Backup::path_in(folder + "/state");
    std::string device = folder + "/elsewhere/disk0";
    backup->start();
    EXPECT_TRUE(is_current(own));
    add_device(device);
    add_device(folder + "/state/device0");
    add_device("/dev/nvme9n9");
    change();
    EXPECT_TRUE(is_current(Backup::path_beside(device)));
    EXPECT_TRUE(is_current(own));
    EXPECT_FALSE(std::filesystem::exists(Backup::path_beside(folder + "/state/device0")));
}

TEST_F(BackupTest, WhatChangedDuringThePauseIsCopiedAfterIt) {
    std::string own = Backup::path_in(folder + "/state");
    backup->start();
    EXPECT_TRUE(is_current(own, {}));
    settle();
    change();  // copied at once; the pause begins
    EXPECT_TRUE(is_current(own, {}));
    settle();
    change();
    settle();
    EXPECT_FALSE(has_key(own, newest));
    EXPECT_TRUE(is_current(own));
}

TEST_F(BackupTest, StopBringsTheCopyUpToDate) {
    backup->start();
    EXPECT_TRUE(is_current(Backup::path_in(folder + "/state")));
    change();
    change();
    stop();
    EXPECT_TRUE(has_key(Backup::path_in(folder + "/state"), newest));
}

TEST_F(BackupTest, AFolderThatIsGoneEndsNothing) {
    std::filesystem::remove_all(folder + "/elsewhere");
    add_device(folder + "/elsewhere/disk0");
    backup->start();
    EXPECT_TRUE(is_current(Backup::path_in(folder + "/state")));
    change();
    EXPECT_TRUE(is_current(Backup::path_in(folder + "/state")));
}

}  // namespace
}  // namespace peplos::control
