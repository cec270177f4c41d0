#pragma once

#include <cstdint>
#include <memory>
#include <sqlite3.h>
#include <string>
#include <vector>

#include "control/embedded_store.h"

// A random number of 63 bits, not 0.
#define PEPLOS_SQL_RANDOM "((random() & 0x7fffffffffffffff) | 1)"
#define PEPLOS_SQL_MAKE_GENERATION                                                          \
    "CREATE TABLE generation(id INTEGER PRIMARY KEY CHECK(id = 1), value INTEGER NOT NULL)" \
    " STRICT;"                                                                              \
    "INSERT INTO generation(id, value) VALUES(1, " PEPLOS_SQL_RANDOM ");"

namespace peplos::control {

// The SQLite file of the embedded store, blocking, for one thread.
//
// Invariants
//   1. store.revision >= every row's mod_revision; both change in one SQLite transaction.
//   2. Every row's crc covers key, value, version and both revisions.
//   3. After an I/O error or a corrupt page nothing more is read or written (`failure_`).
// Schema (user_version 1, application_id "Pepl"):
//   entry(key, value, version, create_revision, mod_revision, crc), store(id = 1, revision),
//   generation(id = 1, value)
class EmbeddedDatabase {
  public:
    static Result<std::unique_ptr<EmbeddedDatabase>> open(const EmbeddedStore::Options& options);
    ~EmbeddedDatabase();

    Revision revision() const { return revision_; }
    Generation generation() const { return generation_; }
    Result<std::optional<KeyValue>> get(const std::string& key);
    Result<Page> list(const ListRequest& request);
    // Returns what changed, all of one new revision; empty when nothing had to.
    Result<std::vector<Event>> apply(const Transaction& transaction);
    // EmbeddedStore::copy_to; in embedded_copy.cc.
    Result<void> copy_to(const std::string& path);

  private:
    class Statement;

    explicit EmbeddedDatabase(const EmbeddedStore::Options& options);

    Result<void> lock_and_configure();
    Result<void> check_schema();
    Result<void> create_schema();
    Result<void> check_contents();
    Result<void> read_generation();
    Result<void> check_rows();
    Result<void> prepare_statements();

    Result<std::unique_ptr<Statement>> prepare(const char* sql);
    Result<void> execute(const char* sql);
    // The first column of the first row; an empty text when there is none.
    Result<std::string> query_text(const char* sql);
    Result<int64_t> query_integer(const char* sql);
    Result<KeyValue> read_row(Statement& row);

    Result<void> compare(const Transaction& transaction);
    Result<std::vector<Event>> change(const Transaction& transaction);
    Result<void> change_one(const Operation& operation, Revision revision,
                            std::vector<Event>& events);
    Result<void> commit(Revision revision);
    Result<void> write_copy(const std::string& path);
    void roll_back();
    void checkpoint_when_due();

    // What a failed SQLite call means for the caller; remembers what cannot be survived.
    std::unexpected<Error> failed(int code, const char* doing);
    Result<void> usable() const;

    std::string path_;
    std::string vfs_;
    sqlite3* db_ = nullptr;
    Revision revision_;
    Generation generation_;
    std::optional<Error> failure_;
    int wal_pages_ = 0;
    std::unique_ptr<Statement> get_;
    std::unique_ptr<Statement> list_;
    std::unique_ptr<Statement> put_;
    std::unique_ptr<Statement> remove_;
    std::unique_ptr<Statement> set_revision_;
};

}  // namespace peplos::control
