#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "base/ids.h"
#include "base/limits.h"
#include "base/result.h"
#include "runtime/task.h"

// The control store: the cluster's truth about nodes, devices, volumes, owners, epochs, ensembles.
// Small, rarely written, never on the I/O path: no statistics, no per-block data, no secrets.
//
// The shape is etcd's, so that etcd can stand behind it: ordered keys, one revision for the whole
// store, transactions that compare and then set, watches that start at a revision.
//
// Invariants
//   1. A transaction is applied as a whole, at one revision, or not at all.
//   2. The store's revision grows with every transaction that changed something (by one, where
//      nobody else uses the store), and never goes back, not even over a restart or a deletion.
//      Only a store that is put back from a backup goes back: then it has another *generation*.
//   3. An acknowledged transaction is on stable media.
//   4. A watch sees every change from its first revision on, in order and whole transactions at a
//      time, or it fails; it never skips one.
namespace peplos::control {

using runtime::Task;

// Which transaction of the store; counts from 1, 0 stands for "absent".
using Revision = StrongId<struct RevisionTag>;

// Which history of the store this is: random, another one after a restore from a backup. What was
// read in one generation proves nothing in another (docs/decisions/20261130-store-generation.md).
using Generation = StrongId<struct GenerationTag>;

// Of a transaction, keys and values together: etcd refuses requests of 1.5 MiB.
inline constexpr uint64_t kTransactionBytesMax = 1 * kMiB;

struct KeyValue {
    std::string key;
    std::string value;
    // Changes of this key since it was last created, from 1.
    uint64_t version = 0;
    // The transactions that created and last changed it. `mod_revision` is what a transaction
    // compares: unlike `version` it differs also when the key was deleted and created again.
    Revision create_revision;
    Revision mod_revision;

    bool operator==(const KeyValue&) const = default;
};

// One line of a transaction: what the key must be, and what it becomes.
struct Operation {
    enum class Kind : uint8_t { put, remove, check };

    Kind kind = Kind::check;
    std::string key;
    // The key's mod_revision; Revision{} asks that it is absent; nullopt asks nothing.
    std::optional<Revision> expected;
    std::string value;  // of a put
};

inline Operation put(std::string key, std::optional<Revision> expected, std::string value) {
    return {Operation::Kind::put, std::move(key), expected, std::move(value)};
}
inline Operation create(std::string key, std::string value) {
    return {Operation::Kind::put, std::move(key), Revision{}, std::move(value)};
}
// A key that is absent and not expected to exist is left alone.
inline Operation remove(std::string key, std::optional<Revision> expected) {
    return {Operation::Kind::remove, std::move(key), expected, {}};
}
// Compares only.
inline Operation check(std::string key, Revision expected) {
    return {Operation::Kind::check, std::move(key), expected, {}};
}

// 1 .. limits::kStoreTransactionKeysMax operations over different keys, with
// kTransactionBytesMax of keys and values at most.
using Transaction = std::vector<Operation>;

// A page also ends early after limits::kStoreListBytesMax of values.
struct ListRequest {
    std::string prefix;  // empty: every key
    std::string after;   // keys after this one only; empty: from the first
    uint32_t count_max = limits::kStoreListCountMax;
};

struct Page {
    std::vector<KeyValue> entries;  // ascending by the bytes of the key
    bool more = false;              // then the next page is `after = entries.back().key`
    // The page is the store's state at this revision. The pages of one listing may differ in it:
    // whoever then watches starts after the revision of the *first* page, and ignores an event
    // that is not newer than what the listing showed.
    Revision revision;
};

struct Event {
    enum class Kind : uint8_t { put, removed };

    Kind kind = Kind::put;
    // Of a removed key: key and mod_revision (the removing transaction) only.
    KeyValue entry;

    bool operator==(const Event&) const = default;
};

// Changes under one prefix, in order. Lives on the executor of the task that asked for it. Destroy
// it before the store, and only when no next() is in flight (close() ends one).
class Watch {
  public:
    virtual ~Watch() = default;
    // Waits for at least one event and returns all that are ready, whole transactions only, at most
    // limits::kStoreWatchEventsMax plus the rest of the last transaction. One call at a time.
    // Errors: conflict (the watch fell behind what the store remembers, or the store has another
    // generation: list, then watch anew), unavailable (the store is out of reach: call again, or
    // watch anew from the last revision seen + 1), stopping (closed, or the store stops).
    virtual Task<Result<std::vector<Event>>> next() = 0;
    // Ends a next() in flight, and every later one, with `stopping`.
    virtual void close() = 0;
};

// The interface. Any executor may call; the answer comes back on the caller's. Nothing blocks the
// caller's core. Keys: 1 .. limits::kStoreKeyBytesMax bytes; values: up to kStoreValueBytesMax.
//
// Errors of every call: unavailable (state unchanged), busy (too many calls wait), corrupt and
// io_error (the store is lost until somebody mends it: the message says how), invalid_argument (a
// bound is broken), stopping.
class Store {
  public:
    virtual ~Store() = default;

    // The newest state; nullopt when the key is absent.
    virtual Task<Result<std::optional<KeyValue>>> get(std::string key) = 0;

    virtual Task<Result<Page>> list(ListRequest request) = 0;

    // Applies all operations when every expectation holds; returns the revision at which it was
    // applied (the store's present revision when nothing had to change).
    // Nothing is applied in another generation than `demanded`; Generation{} demands none.
    // Errors: conflict (an expectation failed, or the generation is another one: nothing changed;
    // the message names which), no_space (nothing changed), outcome_unknown (applied or not: read
    // before anything else).
    virtual Task<Result<Revision>> compare_and_set(Transaction transaction,
                                                   Generation demanded) = 0;
    Task<Result<Revision>> compare_and_set(Transaction transaction) {
        return compare_and_set(std::move(transaction), Generation{});
    }

    // The store's generation now. The first read or watch that shows a store put back may come
    // before the generation tells: whoever decides on what it read demands the generation.
    virtual Task<Result<Generation>> generation() = 0;

    // Changes of keys that begin with `prefix`, from revision `from` on; Revision{} means from now.
    // Errors: conflict (the store no longer remembers `from`: list, then watch; a remote store may
    // say so only in next()), busy (too many).
    virtual Task<Result<std::unique_ptr<Watch>>> watch(std::string prefix, Revision from) = 0;

    // Refuses new calls, ends watches, waits for calls in flight, closes. Idempotent.
    virtual Task<Result<void>> stop() = 0;
};

// Every key under `prefix`, page after page; `revision` is the first page's.
Task<Result<Page>> list_all(Store& store, std::string prefix);

// What every implementation refuses before it looks at its data: broken bounds, repeated keys.
// Errors: invalid_argument.
Result<void> check_key(std::string_view key);
Result<void> check_transaction(const Transaction& transaction);
Result<void> check_list(const ListRequest& request);
// Errors: conflict (another generation than the demanded one).
Result<void> check_generation(Generation demanded, Generation present);

}  // namespace peplos::control
