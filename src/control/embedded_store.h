#pragma once

#include <memory>
#include <string>

#include "control/store.h"

namespace peplos::control {

// The control store of a cluster of one node: an SQLite file.
//
// It has a thread of its own with a bounded mailbox (limits::kStoreMailboxCountMax calls; more get
// `busy`), so that a slow disk never holds up the caller's core. WAL, synchronous=FULL: an answer
// to compare_and_set means fsync has returned. The file is locked for as long as the store is open:
// a second daemon is refused. Every row carries a CRC32C, because SQLite's own pages have none.
//
// A failed write or fsync in a commit answers `outcome_unknown` and every later call `io_error`:
// after a failed fsync nobody can say what is on the disk until the file is opened again.
class EmbeddedStore final : public Store {
  public:
    // A lost file must not turn into an empty cluster: only `peplos init` creates.
    enum class IfMissing : uint8_t { fail, create };

    struct Options {
        std::string path;
        IfMissing if_missing = IfMissing::fail;
        // SQLite VFS; tests put faults there. Empty: the system's.
        std::string vfs;
    };

    // Locks the file, checks it whole (structure and every row's CRC) and reads the revision.
    // Errors: not_found, permission_denied, busy (another process has it open), corrupt (the
    // message says what to do next), unsupported (a newer schema), no_space, io_error.
    static Task<Result<std::unique_ptr<EmbeddedStore>>> open(Options options);

    // Requires: stop() was awaited, or no call is in flight.
    ~EmbeddedStore() override;

    Task<Result<std::optional<KeyValue>>> get(std::string key) override;
    Task<Result<Page>> list(ListRequest request) override;
    using Store::compare_and_set;
    Task<Result<Revision>> compare_and_set(Transaction transaction, Generation demanded) override;
    // A copy that copy_to() made has a new one each time it is put in the store's place. A copy of
    // the file made by other means has the store's.
    Task<Result<Generation>> generation() override;
    Task<Result<std::unique_ptr<Watch>>> watch(std::string prefix, Revision from) override;
    // Makes `path` a copy of the whole store as it is now: written beside it, synced, renamed. A
    // file there that knows more than this store (a higher revision, another cluster) is no older
    // copy of it and is renamed to `path`.newer first. A copy is opened like the store itself.
    // Errors: no_space, permission_denied, not_found (no such folder), io_error: `path` is as
    // before.
    Task<Result<void>> copy_to(std::string path);
    // Writes the WAL back and releases the file.
    Task<Result<void>> stop() override;

  private:
    class Thread;
    class ThreadWatch;
    explicit EmbeddedStore(std::shared_ptr<Thread> thread);

    std::shared_ptr<Thread> thread_;
    bool stopped_ = false;
};

}  // namespace peplos::control
