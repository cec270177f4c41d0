// Copies of the embedded store's file, for backups.
#include <cerrno>
#include <cstdio>
#include <cstring>
#include <fcntl.h>
#include <optional>
#include <unistd.h>

#include "base/log.h"
#include "control/embedded_database.h"
#include "control/records.h"

namespace peplos::control {
namespace {

// What a file says it is a copy of.
struct Known {
    uint64_t revision = 0;
    std::string cluster;
};

std::unexpected<Error> failed_copy(int error, const std::string& path, const char* doing) {
    Code code = Code::io_error;
    if (error == ENOENT || error == ENOTDIR) code = Code::not_found;
    if (error == EACCES || error == EPERM || error == EROFS) code = Code::permission_denied;
    if (error == ENOSPC || error == EDQUOT) code = Code::no_space;
    return fail(code, "cannot {} the control store's backup {}: {}", doing, path,
                std::strerror(error));
}

// The first column of the first row; nothing when there is none.
std::optional<std::string> ask(sqlite3* db, const char* sql) {
    sqlite3_stmt* statement = nullptr;
    std::optional<std::string> out;
    if (sqlite3_prepare_v2(db, sql, -1, &statement, nullptr) != SQLITE_OK) return out;
    if (sqlite3_step(statement) == SQLITE_ROW) {
        const void* data = sqlite3_column_blob(statement, 0);
        auto size = static_cast<size_t>(sqlite3_column_bytes(statement, 0));
        out.emplace(static_cast<const char*>(data), data == nullptr ? 0 : size);
    }
    sqlite3_finalize(statement);
    return out;
}

// Nothing when the file is none, is damaged or belongs to another program.
std::optional<Known> known_of(const std::string& path) {
    sqlite3* db = nullptr;
    std::optional<Known> known;
    if (sqlite3_open_v2(path.c_str(), &db, SQLITE_OPEN_READONLY, nullptr) == SQLITE_OK) {
        auto revision = ask(db, "SELECT CAST(revision AS TEXT) FROM store WHERE id = 1");
        auto cluster = ask(db, "SELECT value FROM entry WHERE key = CAST('cluster' AS BLOB)");
        if (revision && cluster) known = {std::strtoull(revision->c_str(), nullptr, 10), *cluster};
    }
    sqlite3_close(db);
    return known;
}

// Makes what was written durable under its final name.
Result<void> put_in_place(const std::string& fresh, const std::string& path) {
    int file = ::open(fresh.c_str(), O_RDONLY | O_CLOEXEC);
    if (file < 0) return failed_copy(errno, path, "open");
    int error = ::fsync(file) == 0 ? 0 : errno;
    ::close(file);
    if (error != 0) return failed_copy(error, path, "sync");
    if (std::rename(fresh.c_str(), path.c_str()) != 0) return failed_copy(errno, path, "rename");
    std::string folder = path.substr(0, path.rfind('/') + 1);
    int handle = ::open(folder.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (handle < 0) return failed_copy(errno, path, "open the folder of");
    error = ::fsync(handle) == 0 ? 0 : errno;
    ::close(handle);
    if (error != 0) return failed_copy(error, path, "sync the folder of");
    return {};
}

// A copy is another generation from the start: whoever puts it in the store's place cannot forget
// to say that the store went back.
Result<void> set_apart(const std::string& path) {
    sqlite3* db = nullptr;
    int code = sqlite3_open_v2(path.c_str(), &db, SQLITE_OPEN_READWRITE, nullptr);
    if (code == SQLITE_OK) {
        code = sqlite3_exec(db, "DROP TABLE generation", nullptr, nullptr, nullptr);
    }
    std::string why = code == SQLITE_OK ? "" : sqlite3_errmsg(db);
    sqlite3_close(db);
    if (code == SQLITE_OK) return {};
    return fail((code & 0xff) == SQLITE_FULL ? Code::no_space : Code::io_error,
                "cannot write the control store's backup {}: {}", path, why);
}

}  // namespace

Result<void> EmbeddedDatabase::copy_to(const std::string& path) {
    TRY_ASSIGN(std::optional<KeyValue> cluster, get(std::string(kClusterKey)));
    if (!cluster) return {};  // nothing is known yet
    std::optional<Known> old = known_of(path);
    bool same = old && old->cluster == cluster->value;
    if (same && old->revision == revision_.value) return {};
    if (old && (!same || old->revision > revision_.value)) {
        std::string aside = path + ".newer";
        LOG_WARN("a backup that knows more than the control store is kept backup={} as={}", path,
                 aside);
        if (std::rename(path.c_str(), aside.c_str()) != 0) {
            return failed_copy(errno, path, "move aside");
        }
    }
    std::string fresh = path + ".new";
    Result<void> written = write_copy(fresh);
    if (written) written = put_in_place(fresh, path);
    if (!written) ::unlink(fresh.c_str());
    return written;
}

// A failure here is the target's: the store goes on.
Result<void> EmbeddedDatabase::write_copy(const std::string& path) {
    if (::unlink(path.c_str()) != 0 && errno != ENOENT) return failed_copy(errno, path, "replace");
    // SQLite fills an empty file; made here, nobody else can ever read it.
    int file = ::open(path.c_str(), O_CREAT | O_EXCL | O_RDWR | O_CLOEXEC, 0600);
    if (file < 0) return failed_copy(errno, path, "make");
    ::close(file);
    char* sql = sqlite3_mprintf("VACUUM INTO %Q", path.c_str());
    if (sql == nullptr) return fail(Code::unavailable, "no memory to write {}", path);
    int code = sqlite3_exec(db_, sql, nullptr, nullptr, nullptr);
    sqlite3_free(sql);
    if (code == SQLITE_OK) return set_apart(path);
    return fail((code & 0xff) == SQLITE_FULL ? Code::no_space : Code::io_error,
                "cannot write the control store's backup {}: {}", path, sqlite3_errmsg(db_));
}

}  // namespace peplos::control
