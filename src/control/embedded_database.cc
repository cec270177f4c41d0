#include "control/embedded_database.h"

#include <cerrno>
#include <cstdlib>
#include <cstring>
#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/crc32c.h"
#include "base/log.h"

namespace peplos::control {
namespace {

constexpr int64_t kApplicationId = 0x5065706c;
constexpr int64_t kSchemaVersion = 1;
// Written back once this many pages (4 KiB) wait in the WAL.
constexpr int kCheckpointPages = 1000;
constexpr std::string_view kPageErrorText = "unable to get the page. error code=";

uint32_t crc_of(const KeyValue& entry) {
    uint64_t numbers[] = {entry.key.size(), entry.version, entry.create_revision.value,
                          entry.mod_revision.value};
    uint32_t crc = crc32c(std::as_bytes(std::span(numbers)));
    crc = crc32c(bytes_of_text(entry.key), crc);
    return crc32c(bytes_of_text(entry.value), crc);
}

// The smallest text greater than every text that begins with `prefix`; empty when there is none.
std::string end_of_prefix(std::string prefix) {
    while (!prefix.empty() && static_cast<unsigned char>(prefix.back()) == 0xff)
        prefix.pop_back();
    if (!prefix.empty()) prefix.back() = static_cast<char>(prefix.back() + 1);
    return prefix;
}

std::unexpected<Error> failed_system(int error, const std::string& path, const char* doing) {
    Code code = Code::io_error;
    if (error == ENOENT || error == ENOTDIR) code = Code::not_found;
    if (error == EACCES || error == EPERM || error == EROFS) code = Code::permission_denied;
    if (error == ENOSPC || error == EDQUOT) code = Code::no_space;
    return fail(code, "cannot {} the control store {}: {}", doing, path, std::strerror(error));
}

std::string folder_of(const std::string& path) {
    size_t slash = path.rfind('/');
    if (slash == std::string::npos) return ".";
    return slash == 0 ? "/" : path.substr(0, slash);
}

// Makes the name of a new file durable.
Result<void> sync_folder(const std::string& path) {
    int folder = ::open(folder_of(path).c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (folder < 0) return failed_system(errno, path, "open the folder of");
    int error = ::fsync(folder) == 0 ? 0 : errno;
    ::close(folder);
    if (error != 0) return failed_system(error, path, "sync the folder of");
    return {};
}

Result<void> find_or_create(const EmbeddedStore::Options& options) {
    struct stat info{};
    if (::stat(options.path.c_str(), &info) == 0) {
        if (S_ISREG(info.st_mode)) return {};
        return fail(Code::invalid_argument, "{} is not a file: name the control store's file",
                    options.path);
    }
    if (errno != ENOENT) return failed_system(errno, options.path, "find");
    if (options.if_missing == EmbeddedStore::IfMissing::fail) {
        return fail(Code::not_found,
                    "there is no control store at {}: run `peplos init` on a new node, or restore "
                    "the file from a backup",
                    options.path);
    }
    int file = ::open(options.path.c_str(), O_CREAT | O_EXCL | O_RDWR | O_CLOEXEC, 0600);
    if (file < 0) return failed_system(errno, options.path, "create");
    ::close(file);
    return {};
}

}  // namespace

// A prepared statement; bound texts must outlive the step.
class EmbeddedDatabase::Statement {
  public:
    explicit Statement(sqlite3_stmt* statement) : statement_(statement) {}
    Statement(const Statement&) = delete;
    Statement& operator=(const Statement&) = delete;
    ~Statement() { sqlite3_finalize(statement_); }

    void bind(int index, std::string_view bytes) {
        // A null pointer would bind NULL, not an empty value.
        const char* data = bytes.empty() ? "" : bytes.data();
        int code = sqlite3_bind_blob64(statement_, index, data, bytes.size(), SQLITE_STATIC);
        CHECK(code == SQLITE_OK, "bind {}: {}", index, code);
    }
    void bind(int index, uint64_t number) {
        int code = sqlite3_bind_int64(statement_, index, static_cast<int64_t>(number));
        CHECK(code == SQLITE_OK, "bind {}: {}", index, code);
    }
    // SQLITE_ROW, SQLITE_DONE or an error.
    int step() { return sqlite3_step(statement_); }
    void reset() {
        sqlite3_reset(statement_);
        sqlite3_clear_bindings(statement_);
    }
    std::string text(int column) {
        const void* data = sqlite3_column_blob(statement_, column);
        int size = sqlite3_column_bytes(statement_, column);
        if (data == nullptr || size <= 0) return {};
        return std::string(static_cast<const char*>(data), static_cast<size_t>(size));
    }
    uint64_t number(int column) {
        return static_cast<uint64_t>(sqlite3_column_int64(statement_, column));
    }

  private:
    sqlite3_stmt* statement_;
};

EmbeddedDatabase::EmbeddedDatabase(const EmbeddedStore::Options& options)
    : path_(options.path), vfs_(options.vfs) {}

EmbeddedDatabase::~EmbeddedDatabase() {
    get_.reset();
    list_.reset();
    put_.reset();
    remove_.reset();
    set_revision_.reset();
    if (db_ == nullptr) return;
    // What could not be synced once is left for the next open to judge, not written again.
    if (failure_) sqlite3_db_config(db_, SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, 1, nullptr);
    int code = sqlite3_close(db_);
    CHECK(code == SQLITE_OK, "close: {}", code);
}

Result<std::unique_ptr<EmbeddedDatabase>> EmbeddedDatabase::open(
    const EmbeddedStore::Options& options) {
    TRY(find_or_create(options));
    std::unique_ptr<EmbeddedDatabase> database(new EmbeddedDatabase(options));
    int flags = SQLITE_OPEN_READWRITE | SQLITE_OPEN_NOMUTEX | SQLITE_OPEN_EXRESCODE;
    const char* vfs = options.vfs.empty() ? nullptr : options.vfs.c_str();
    int code = sqlite3_open_v2(options.path.c_str(), &database->db_, flags, vfs);
    if (code != SQLITE_OK) return database->failed(code, "open");
    TRY(database->lock_and_configure());
    // A creation that was cut short leaves nothing but perhaps an empty page.
    TRY_ASSIGN(int64_t tables, database->query_integer("SELECT count(*) FROM sqlite_schema"));
    TRY_ASSIGN(int64_t application, database->query_integer("PRAGMA application_id"));
    if (tables == 0 && application == 0) {
        if (options.if_missing == EmbeddedStore::IfMissing::fail) {
            return fail(Code::corrupt,
                        "the control store {} is empty: restore it from a backup, or remove it and "
                        "run `peplos init` if this node never held data",
                        options.path);
        }
        TRY(database->create_schema());
    }
    TRY(database->check_schema());
    TRY(database->check_contents());
    TRY(database->read_generation());
    TRY(database->prepare_statements());
    return database;
}

// EXCLUSIVE takes the file's lock with the first read and keeps it until close.
Result<void> EmbeddedDatabase::lock_and_configure() {
    sqlite3_busy_timeout(db_, 0);
    sqlite3_db_config(db_, SQLITE_DBCONFIG_DEFENSIVE, 1, nullptr);
    sqlite3_db_config(db_, SQLITE_DBCONFIG_TRUSTED_SCHEMA, 0, nullptr);
    TRY(execute("PRAGMA locking_mode = EXCLUSIVE"));
    TRY(execute("PRAGMA synchronous = FULL"));
    TRY(execute("PRAGMA mmap_size = 0"));
    TRY(execute("PRAGMA cell_size_check = ON"));
    TRY(execute("PRAGMA temp_store = MEMORY"));
    TRY(execute("PRAGMA wal_autocheckpoint = 0"));
    // Proves that the lock is ours before anything is believed or written.
    TRY(execute("BEGIN EXCLUSIVE"));
    return execute("ROLLBACK");
}

Result<void> EmbeddedDatabase::create_schema() {
    TRY(execute("BEGIN IMMEDIATE"));
    Result<void> done = execute(
        "CREATE TABLE entry(key BLOB PRIMARY KEY NOT NULL, value BLOB NOT NULL,"
        " version INTEGER NOT NULL, create_revision INTEGER NOT NULL,"
        " mod_revision INTEGER NOT NULL, crc INTEGER NOT NULL) STRICT, WITHOUT ROWID;"
        "CREATE TABLE store(id INTEGER PRIMARY KEY CHECK(id = 1), revision INTEGER NOT NULL)"
        " STRICT;"
        "INSERT INTO store(id, revision) VALUES(1, 0);" PEPLOS_SQL_MAKE_GENERATION
        "PRAGMA application_id = 0x5065706c;"
        "PRAGMA user_version = 1;"
        "COMMIT");
    if (!done) {
        roll_back();
        return done;
    }
    return sync_folder(path_);
}

Result<void> EmbeddedDatabase::check_schema() {
    TRY_ASSIGN(int64_t application, query_integer("PRAGMA application_id"));
    if (application != kApplicationId) {
        return fail(Code::invalid_argument,
                    "{} is an SQLite file of another program, not a control store", path_);
    }
    TRY_ASSIGN(int64_t version, query_integer("PRAGMA user_version"));
    if (version != kSchemaVersion) {
        return fail(Code::unsupported,
                    "the control store {} has schema version {}, this peplosd knows {}: start the "
                    "newer peplosd that wrote it",
                    path_, version, kSchemaVersion);
    }
    TRY_ASSIGN(std::string mode, query_text("PRAGMA journal_mode = WAL"));
    if (mode != "wal") {
        return fail(Code::unsupported,
                    "the file system of {} does not allow SQLite's WAL mode (it is '{}'): put the "
                    "control store on a local file system",
                    path_, mode);
    }
    sqlite3_wal_hook(
        db_,
        [](void* pages, sqlite3*, const char*, int count) {
            *static_cast<int*>(pages) = count;
            return SQLITE_OK;
        },
        &wal_pages_);
    return {};
}

Result<void> EmbeddedDatabase::check_contents() {
    TRY_ASSIGN(std::string verdict, query_text("PRAGMA integrity_check(1)"));
    // The check tells of a read error inside its text, with SQLite's code.
    size_t at = verdict.find(kPageErrorText);
    if (at != std::string::npos) {
        int code = std::atoi(verdict.c_str() + at + kPageErrorText.size());
        if ((code & 0xff) == SQLITE_IOERR) return failed(code, "read");
    }
    if (verdict != "ok") {
        return fail(
            Code::corrupt,
            "the control store {} is damaged ({}); nothing was changed. Keep a copy of it "
            "and of {}-wal, and restore the store from a backup; volumes' data are not touched",
            path_, verdict, path_);
    }
    TRY_ASSIGN(int64_t revision, query_integer("SELECT revision FROM store WHERE id = 1"));
    revision_ = Revision(static_cast<uint64_t>(revision));
    return check_rows();
}

// A copy that was put in the store's place gets one, and a file from before there were generations.
Result<void> EmbeddedDatabase::read_generation() {
    TRY_ASSIGN(int64_t tables, query_integer("SELECT count(*) FROM sqlite_schema"
                                             " WHERE name = 'generation'"));
    if (tables == 0) {
        Result<void> made = execute("BEGIN IMMEDIATE;" PEPLOS_SQL_MAKE_GENERATION "COMMIT");
        if (!made) {
            roll_back();
            return made;
        }
    }
    TRY_ASSIGN(int64_t value, query_integer("SELECT value FROM generation WHERE id = 1"));
    generation_ = Generation(static_cast<uint64_t>(value));
    return {};
}

Result<void> EmbeddedDatabase::check_rows() {
    TRY_ASSIGN(auto rows, prepare("SELECT key, value, version, create_revision, mod_revision, crc"
                                  " FROM entry ORDER BY key"));
    int code = SQLITE_ROW;
    while ((code = rows->step()) == SQLITE_ROW)
        TRY(read_row(*rows));
    if (code != SQLITE_DONE) return failed(code, "check");
    return {};
}

Result<void> EmbeddedDatabase::prepare_statements() {
    TRY_ASSIGN(get_, prepare("SELECT key, value, version, create_revision, mod_revision, crc"
                             " FROM entry WHERE key = ?1"));
    TRY_ASSIGN(list_, prepare("SELECT key, value, version, create_revision, mod_revision, crc"
                              " FROM entry WHERE key >= ?1 AND (?2 OR key < ?3) ORDER BY key"));
    TRY_ASSIGN(put_, prepare("INSERT OR REPLACE INTO entry(key, value, version, create_revision,"
                             " mod_revision, crc) VALUES(?1, ?2, ?3, ?4, ?5, ?6)"));
    TRY_ASSIGN(remove_, prepare("DELETE FROM entry WHERE key = ?1"));
    TRY_ASSIGN(set_revision_, prepare("UPDATE store SET revision = ?1 WHERE id = 1"));
    return {};
}

Result<std::unique_ptr<EmbeddedDatabase::Statement>> EmbeddedDatabase::prepare(const char* sql) {
    sqlite3_stmt* statement = nullptr;
    int code = sqlite3_prepare_v3(db_, sql, -1, SQLITE_PREPARE_PERSISTENT, &statement, nullptr);
    if (code != SQLITE_OK) return failed(code, "prepare a statement of");
    return std::make_unique<Statement>(statement);
}

Result<void> EmbeddedDatabase::execute(const char* sql) {
    int code = sqlite3_exec(db_, sql, nullptr, nullptr, nullptr);
    if (code != SQLITE_OK) return failed(code, "use");
    return {};
}

Result<std::string> EmbeddedDatabase::query_text(const char* sql) {
    TRY_ASSIGN(auto statement, prepare(sql));
    int code = statement->step();
    if (code == SQLITE_DONE) return std::string();
    if (code != SQLITE_ROW) return failed(code, "read");
    return statement->text(0);
}

Result<int64_t> EmbeddedDatabase::query_integer(const char* sql) {
    TRY_ASSIGN(auto statement, prepare(sql));
    int code = statement->step();
    if (code != SQLITE_ROW) return failed(code == SQLITE_DONE ? SQLITE_CORRUPT : code, "read");
    return static_cast<int64_t>(statement->number(0));
}

Result<KeyValue> EmbeddedDatabase::read_row(Statement& row) {
    KeyValue entry;
    entry.key = row.text(0);
    entry.value = row.text(1);
    entry.version = row.number(2);
    entry.create_revision = Revision(row.number(3));
    entry.mod_revision = Revision(row.number(4));
    bool sound = row.number(5) == crc_of(entry) && entry.mod_revision <= revision_ &&
                 entry.create_revision <= entry.mod_revision && entry.version > 0;
    if (!sound) {
        failure_.emplace(
            Code::corrupt,
            fmt::format("the control store {} is damaged: the row of '{}' does not match its "
                        "checksum or the store's revision {}. Keep a copy of it and of {}-wal, and "
                        "restore both from a backup; volumes' data are not touched",
                        path_, entry.key, revision_.value, path_));
        return fail(*failure_);
    }
    return entry;
}

Result<std::optional<KeyValue>> EmbeddedDatabase::get(const std::string& key) {
    TRY(usable());
    get_->bind(1, key);
    int code = get_->step();
    Result<std::optional<KeyValue>> found = std::optional<KeyValue>();
    if (code == SQLITE_ROW) {
        found = read_row(*get_);
    } else if (code != SQLITE_DONE) {
        found = failed(code, "read");
    }
    get_->reset();
    return found;
}

Result<Page> EmbeddedDatabase::list(const ListRequest& request) {
    TRY(usable());
    std::string begin = request.prefix;
    // The next text in byte order after `after` is `after` with a zero byte.
    if (!request.after.empty()) begin = std::max(begin, request.after + '\0');
    std::string end = end_of_prefix(request.prefix);
    list_->bind(1, begin);
    list_->bind(2, end.empty() ? 1 : 0);
    list_->bind(3, end);
    Result<Page> page = Page{.entries = {}, .more = false, .revision = revision_};
    uint64_t bytes = 0;
    int code = SQLITE_ROW;
    while (page && (code = list_->step()) == SQLITE_ROW) {
        if (page->entries.size() == request.count_max || bytes > limits::kStoreListBytesMax) {
            page->more = true;
            break;
        }
        Result<KeyValue> entry = read_row(*list_);
        if (!entry) {
            page = fail(std::move(entry).error());
            break;
        }
        bytes += entry->value.size();
        page->entries.push_back(std::move(*entry));
    }
    if (page && code != SQLITE_ROW && code != SQLITE_DONE) page = failed(code, "list");
    list_->reset();
    return page;
}

Result<std::vector<Event>> EmbeddedDatabase::apply(const Transaction& transaction) {
    TRY(usable());
    TRY(execute("BEGIN IMMEDIATE"));
    Result<void> compared = compare(transaction);
    if (!compared) {
        roll_back();
        return fail(std::move(compared).error());
    }
    Result<std::vector<Event>> events = change(transaction);
    if (!events || events->empty()) {
        roll_back();
        return events;
    }
    TRY(commit(revision_.next()));
    checkpoint_when_due();
    return events;
}

Result<void> EmbeddedDatabase::compare(const Transaction& transaction) {
    for (const Operation& operation : transaction) {
        if (!operation.expected) continue;
        TRY_ASSIGN(std::optional<KeyValue> entry, get(operation.key));
        Revision present = entry ? entry->mod_revision : Revision{};
        if (present != *operation.expected) {
            return fail(Code::conflict, "'{}' is at revision {}, not {}: read it again",
                        operation.key, present.value, operation.expected->value);
        }
    }
    return {};
}

Result<std::vector<Event>> EmbeddedDatabase::change(const Transaction& transaction) {
    Revision revision = revision_.next();
    std::vector<Event> events;
    for (const Operation& operation : transaction) {
        if (operation.kind == Operation::Kind::check) continue;
        TRY(change_one(operation, revision, events));
    }
    if (events.empty()) return events;
    set_revision_->bind(1, revision.value);
    int code = set_revision_->step();
    set_revision_->reset();
    if (code != SQLITE_DONE) return failed(code, "write to");
    return events;
}

Result<void> EmbeddedDatabase::change_one(const Operation& operation, Revision revision,
                                          std::vector<Event>& events) {
    TRY_ASSIGN(std::optional<KeyValue> old, get(operation.key));
    Event event;
    event.entry.key = operation.key;
    event.entry.mod_revision = revision;
    Statement* statement = nullptr;
    if (operation.kind == Operation::Kind::remove) {
        if (!old) return {};
        event.kind = Event::Kind::removed;
        statement = remove_.get();
        statement->bind(1, event.entry.key);
    } else {
        event.entry.value = operation.value;
        event.entry.version = old ? old->version + 1 : 1;
        event.entry.create_revision = old ? old->create_revision : revision;
        statement = put_.get();
        statement->bind(1, event.entry.key);
        statement->bind(2, event.entry.value);
        statement->bind(3, event.entry.version);
        statement->bind(4, event.entry.create_revision.value);
        statement->bind(5, event.entry.mod_revision.value);
        statement->bind(6, crc_of(event.entry));
    }
    int code = statement->step();
    statement->reset();
    if (code != SQLITE_DONE) return failed(code, "write to");
    events.push_back(std::move(event));
    return {};
}

// A write or sync that fails in here leaves it open whether the frames are on the disk.
Result<void> EmbeddedDatabase::commit(Revision revision) {
    int code = sqlite3_exec(db_, "COMMIT", nullptr, nullptr, nullptr);
    if (code == SQLITE_OK) {
        revision_ = revision;
        return {};
    }
    Error error = failed(code, "write to").error();
    if (error.code() != Code::no_space) {
        if (!failure_) failure_.emplace(error);
        return fail(Code::outcome_unknown, "{}; whether the change was made shows after a restart",
                    error.message());
    }
    roll_back();
    return fail(std::move(error));
}

void EmbeddedDatabase::roll_back() {
    // SQLite has rolled back by itself after some errors.
    if (sqlite3_get_autocommit(db_) != 0) return;
    int code = sqlite3_exec(db_, "ROLLBACK", nullptr, nullptr, nullptr);
    if (code != SQLITE_OK && !failure_) failure_.emplace(failed(code, "roll back in").error());
}

void EmbeddedDatabase::checkpoint_when_due() {
    if (wal_pages_ < kCheckpointPages) return;
    int code = sqlite3_wal_checkpoint_v2(db_, nullptr, SQLITE_CHECKPOINT_FULL, nullptr, nullptr);
    if (code == SQLITE_OK) {
        wal_pages_ = 0;
        return;
    }
    // The transaction is durable in the WAL all the same. No space: the next one tries again.
    Error error = failed(code, "checkpoint").error();
    LOG_WARN("control store checkpoint failed error=\"{}\"", error.text());
}

std::unexpected<Error> EmbeddedDatabase::failed(int code, const char* doing) {
    bool is_latest = db_ != nullptr && sqlite3_extended_errcode(db_) == code;
    const char* why = is_latest ? sqlite3_errmsg(db_) : sqlite3_errstr(code);
    switch (code & 0xff) {
        case SQLITE_BUSY:
        case SQLITE_LOCKED:
            return fail(Code::busy,
                        "the control store {} is in use by another process: stop the other peplosd "
                        "(`fuser {}` names it)",
                        path_, path_);
        case SQLITE_FULL:
            return fail(Code::no_space,
                        "no space to {} the control store {}: free space on its file system", doing,
                        path_);
        case SQLITE_READONLY:
        case SQLITE_PERM:
        case SQLITE_AUTH:
            return fail(Code::permission_denied, "cannot {} the control store {}: {}", doing, path_,
                        why);
        case SQLITE_NOMEM:
            return fail(Code::unavailable, "no memory to {} the control store {}", doing, path_);
        case SQLITE_CANTOPEN:
            return failed_system(sqlite3_system_errno(db_), path_, doing);
        case SQLITE_CORRUPT:
        case SQLITE_NOTADB:
            failure_.emplace(
                Code::corrupt,
                fmt::format("the control store {} is damaged ({}). Keep a copy of it and of "
                            "{}-wal, and restore the store from a backup; volumes' data are "
                            "not touched",
                            path_, why, path_));
            return fail(*failure_);
        default:
            failure_.emplace(
                Code::io_error,
                fmt::format("cannot {} the control store {}: {} (SQLite {}): check its disk, then "
                            "restart peplosd",
                            doing, path_, why, code));
            return fail(*failure_);
    }
}

Result<void> EmbeddedDatabase::usable() const {
    if (failure_) return fail(*failure_);
    return {};
}

}  // namespace peplos::control
