#include "control/fault_vfs.h"

#include <cstring>
#include <filesystem>
#include <gtest/gtest.h>
#include <new>
#include <sqlite3.h>

#include "base/check.h"
#include "control/embedded_store.h"
#include "control/memory_store.h"
#include "control/test_run.h"

namespace peplos::control {
namespace {

FaultVfs* current = nullptr;
sqlite3_vfs vfs;

struct File {
    sqlite3_file base;
    sqlite3_file* real;
};

sqlite3_file* real(sqlite3_file* file) {
    return reinterpret_cast<File*>(file)->real;
}
sqlite3_vfs* system_vfs() {
    return static_cast<sqlite3_vfs*>(vfs.pAppData);
}

bool due(int64_t& countdown) {
    if (countdown > 0) --countdown;
    return countdown == 0;
}

int close_file(sqlite3_file* file) {
    int code = SQLITE_OK;
    if (real(file)->pMethods != nullptr) code = real(file)->pMethods->xClose(real(file));
    ::operator delete(real(file));
    return code;
}
int read_file(sqlite3_file* file, void* to, int bytes, sqlite3_int64 offset) {
    if (due(current->reads_until_error)) return SQLITE_IOERR_READ;
    return real(file)->pMethods->xRead(real(file), to, bytes, offset);
}
int write_file(sqlite3_file* file, const void* from, int bytes, sqlite3_int64 offset) {
    if (due(current->writes_until_full)) return SQLITE_FULL;
    if (due(current->writes_until_error)) return SQLITE_IOERR_WRITE;
    return real(file)->pMethods->xWrite(real(file), from, bytes, offset);
}
int truncate_file(sqlite3_file* file, sqlite3_int64 bytes) {
    return real(file)->pMethods->xTruncate(real(file), bytes);
}
int sync_file(sqlite3_file* file, int flags) {
    ++current->sync_count;
    if (due(current->syncs_until_error)) return SQLITE_IOERR_FSYNC;
    return real(file)->pMethods->xSync(real(file), flags);
}
int file_size(sqlite3_file* file, sqlite3_int64* bytes) {
    return real(file)->pMethods->xFileSize(real(file), bytes);
}
int lock_file(sqlite3_file* file, int level) {
    return real(file)->pMethods->xLock(real(file), level);
}
int unlock_file(sqlite3_file* file, int level) {
    return real(file)->pMethods->xUnlock(real(file), level);
}
int check_lock(sqlite3_file* file, int* held) {
    return real(file)->pMethods->xCheckReservedLock(real(file), held);
}
int control_file(sqlite3_file* file, int what, void* argument) {
    return real(file)->pMethods->xFileControl(real(file), what, argument);
}
int sector_size(sqlite3_file* file) {
    return real(file)->pMethods->xSectorSize(real(file));
}
int characteristics(sqlite3_file* file) {
    return real(file)->pMethods->xDeviceCharacteristics(real(file));
}

// Version 1: no shared memory, which WAL does not need while the lock is exclusive.
const sqlite3_io_methods kMethods = {
    .iVersion = 1,
    .xClose = close_file,
    .xRead = read_file,
    .xWrite = write_file,
    .xTruncate = truncate_file,
    .xSync = sync_file,
    .xFileSize = file_size,
    .xLock = lock_file,
    .xUnlock = unlock_file,
    .xCheckReservedLock = check_lock,
    .xFileControl = control_file,
    .xSectorSize = sector_size,
    .xDeviceCharacteristics = characteristics,
};

int open_file(sqlite3_vfs*, const char* name, sqlite3_file* file, int flags, int* out_flags) {
    auto* own = reinterpret_cast<File*>(file);
    auto bytes = static_cast<size_t>(system_vfs()->szOsFile);
    own->real = static_cast<sqlite3_file*>(::operator new(bytes));
    std::memset(static_cast<void*>(own->real), 0, bytes);
    int code = system_vfs()->xOpen(system_vfs(), name, own->real, flags, out_flags);
    own->base.pMethods = &kMethods;
    return code;
}

}  // namespace

FaultVfs::FaultVfs() {
    CHECK(current == nullptr);
    current = this;
    sqlite3_vfs* system = sqlite3_vfs_find(nullptr);
    vfs = *system;
    vfs.zName = kName;
    vfs.pAppData = system;
    vfs.szOsFile = sizeof(File);
    vfs.xOpen = open_file;
    CHECK(sqlite3_vfs_register(&vfs, /*makeDflt=*/0) == SQLITE_OK);
}

FaultVfs::~FaultVfs() {
    sqlite3_vfs_unregister(&vfs);
    current = nullptr;
}

namespace {

class BadDiskTest : public testing::Test {
  public:
    BadDiskTest() {
        std::string pattern = testing::TempDir() + "peplos-control-XXXXXX";
        CHECK(::mkdtemp(pattern.data()) != nullptr);
        folder = pattern;
        CHECK(open(EmbeddedStore::IfMissing::create).has_value());
        CHECK(set("old", "1").has_value());
    }
    ~BadDiskTest() override {
        close();
        std::filesystem::remove_all(folder);
    }
    Result<void> open(EmbeddedStore::IfMissing if_missing) {
        EmbeddedStore::Options options{folder + "/control.db", if_missing, FaultVfs::kName};
        auto opened = run_task(context, EmbeddedStore::open(options));
        if (!opened) return fail(opened.error());
        store = std::move(*opened);
        return {};
    }
    void close() {
        if (store) EXPECT_TRUE(run_task(context, store->stop()));
        store.reset();
    }
    Result<Revision> set(std::string key, std::string value) {
        Transaction change{put(std::move(key), std::nullopt, std::move(value))};
        return run_task(context, store->compare_and_set(std::move(change)));
    }
    Result<std::optional<KeyValue>> get(std::string key) {
        return run_task(context, store->get(std::move(key)));
    }

    FaultVfs faults;
    boost::asio::io_context context;
    std::string folder;
    std::unique_ptr<EmbeddedStore> store;
};

// Full at the first, second, ... write of a commit: nothing changes, reads go on, and space that
// comes back is enough, without a restart.
TEST_F(BadDiskTest, FullIsNotBroken) {
    std::string value(30'000, 'x');
    for (int64_t writes = 1; writes < 12; ++writes) {
        faults.writes_until_full = writes;
        Result<Revision> changed = set("new", value);
        ASSERT_FALSE(changed) << writes;
        EXPECT_EQ(changed.error().code(), Code::no_space);
        EXPECT_FALSE(get("new")->has_value());
        EXPECT_EQ((*get("old"))->value, "1");
        faults.writes_until_full = -1;
    }
    EXPECT_EQ(set("new", value), Revision(2));
    close();
    ASSERT_TRUE(open(EmbeddedStore::IfMissing::fail));
    EXPECT_EQ((*get("new"))->value, value);
}

TEST_F(BadDiskTest, AFailedSyncIsUnknownAndNeverRetried) {
    faults.syncs_until_error = 1;
    EXPECT_EQ(set("new", "2").error().code(), Code::outcome_unknown);
    faults.syncs_until_error = -1;
    int64_t syncs = faults.sync_count;
    EXPECT_EQ(get("old").error().code(), Code::io_error);
    EXPECT_EQ(set("new", "3").error().code(), Code::io_error);
    close();
    EXPECT_EQ(faults.sync_count, syncs);
    ASSERT_TRUE(open(EmbeddedStore::IfMissing::fail));
    EXPECT_EQ((*get("old"))->value, "1");
    auto settled = get("new");
    ASSERT_TRUE(settled);
    if (settled->has_value()) EXPECT_EQ((*settled)->value, "2");
}

TEST_F(BadDiskTest, AFailedWriteIsUnknownOrUndone) {
    for (int64_t writes = 1; writes < 6; ++writes) {
        faults.writes_until_error = writes;
        Result<Revision> changed = set("new", std::string(9'000, 'x'));
        faults.writes_until_error = -1;
        if (!changed) {
            EXPECT_EQ(changed.error().code(), Code::outcome_unknown);
            EXPECT_EQ(set("more", "").error().code(), Code::io_error);
        }
        close();
        ASSERT_TRUE(open(EmbeddedStore::IfMissing::fail));
        EXPECT_EQ((*get("old"))->value, "1");
    }
}

TEST_F(BadDiskTest, AFailedReadAtOpenIsAnError) {
    close();
    int64_t reads = 1;
    for (; reads < 100; ++reads) {
        faults.reads_until_error = reads;
        Result<void> opened = open(EmbeddedStore::IfMissing::fail);
        faults.reads_until_error = -1;
        if (opened) break;
        EXPECT_EQ(opened.error().code(), Code::io_error) << opened.error().text();
    }
    EXPECT_GT(reads, 1);
    EXPECT_EQ((*get("old"))->value, "1");
}

TEST(MemoryStore, HasTheMishapsAskedFor) {
    boost::asio::io_context context;
    MemoryStore store;
    auto set = [&](const char* key) {
        return run_task(context, store.compare_and_set(Transaction{create(key, "")}));
    };
    store.queue_mishap(MemoryStore::Mishap::unknown_applied);
    store.queue_mishap(MemoryStore::Mishap::unknown_lost);
    store.queue_mishap(MemoryStore::Mishap::unavailable);
    EXPECT_EQ(set("a").error().code(), Code::outcome_unknown);
    EXPECT_EQ(set("b").error().code(), Code::outcome_unknown);
    EXPECT_EQ(set("c").error().code(), Code::unavailable);
    EXPECT_EQ(store.key_count(), 1u);
    EXPECT_TRUE(run_task(context, store.get("a"))->has_value());
    EXPECT_EQ(set("a").error().code(), Code::conflict);
    store.set_available(false);
    EXPECT_EQ(run_task(context, store.get("a")).error().code(), Code::unavailable);
    store.set_available(true);
    EXPECT_EQ(set("b"), Revision(2));
}

}  // namespace
}  // namespace peplos::control
