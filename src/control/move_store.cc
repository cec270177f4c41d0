#include "control/move_store.h"

#include "control/records.h"

namespace peplos::control {
namespace {

// One transaction of puts, in the one store or not at all; never without the key that says that the
// move goes on.
class Batch {
  public:
    Batch(Store& to, Revision moving) : to_(to), moving_(moving) {}

    Task<Result<void>> add(Operation operation) {
        uint64_t bytes = operation.key.size() + operation.value.size();
        bool full = operations_.size() + 1 >= limits::kStoreTransactionKeysMax ||
                    bytes_ + bytes > kTransactionBytesMax / 2;
        if (full) CO_TRY(co_await flush());
        bytes_ += bytes;
        operations_.push_back(std::move(operation));
        co_return Result<void>();
    }
    Task<Result<void>> flush() {
        if (operations_.empty()) co_return Result<void>();
        operations_.push_back(check(std::string(kMovingKey), moving_));
        Transaction transaction = std::exchange(operations_, {});
        bytes_ = 0;
        CO_TRY(co_await to_.compare_and_set(std::move(transaction)));
        co_return Result<void>();
    }

  private:
    Store& to_;
    Revision moving_;
    Transaction operations_;
    uint64_t bytes_ = 0;
};

// What an earlier move left behind and the cluster has no more.
Task<Result<void>> remove_strangers(Store& from, Store& to, Batch& batch) {
    ListRequest request;
    while (true) {
        CO_TRY_ASSIGN(Page page, co_await to.list(request));
        for (const KeyValue& entry : page.entries) {
            if (entry.key == kMovingKey) continue;
            CO_TRY_ASSIGN(std::optional<KeyValue> known, co_await from.get(entry.key));
            if (!known) CO_TRY(co_await batch.add(remove(entry.key, entry.mod_revision)));
        }
        if (!page.more) co_return Result<void>();
        request.after = page.entries.back().key;
    }
}

Task<Result<void>> copy_all(Store& from, Batch& batch) {
    ListRequest request;
    while (true) {
        CO_TRY_ASSIGN(Page page, co_await from.list(request));
        for (KeyValue& entry : page.entries) {
            request.after = entry.key;
            if (entry.key == kClusterKey) continue;
            Operation copy = put(std::move(entry.key), std::nullopt, std::move(entry.value));
            CO_TRY(co_await batch.add(std::move(copy)));
        }
        if (!page.more) co_return Result<void>();
    }
}

// The revision of the key that says that `to` is being filled with the cluster `wanted`.
Task<Result<Revision>> begin(Store& to, const std::string& wanted) {
    std::string key(kMovingKey);
    CO_TRY_ASSIGN(std::optional<KeyValue> moving, co_await to.get(key));
    if (moving && moving->value == wanted) co_return moving->mod_revision;
    ListRequest any;
    any.count_max = 1;
    CO_TRY_ASSIGN(Page page, co_await to.list(any));
    if (moving || !page.entries.empty()) {
        co_return fail(Code::already_exists,
                       "the control store to move to is not empty (it has '{}'): name an empty one",
                       page.entries.empty() ? key : page.entries.front().key);
    }
    Transaction first;
    first.push_back(create(key, wanted));
    CO_TRY(co_await to.compare_and_set(std::move(first)));
    CO_TRY_ASSIGN(moving, co_await to.get(key));
    if (moving && moving->value == wanted) co_return moving->mod_revision;
    co_return fail(Code::conflict, "another move to the same control store began: see which");
}

}  // namespace

Task<Result<void>> move_store(Store& from, Store& to) {
    std::string key(kClusterKey);
    CO_TRY_ASSIGN(std::optional<KeyValue> cluster, co_await from.get(key));
    if (!cluster) co_return fail(Code::not_found, "the control store to move holds no cluster");
    CO_TRY_ASSIGN(std::optional<KeyValue> there, co_await to.get(key));
    if (there && there->value == cluster->value) co_return Result<void>();
    if (there) {
        co_return fail(Code::already_exists,
                       "the control store to move to holds another cluster: name an empty one");
    }
    CO_TRY_ASSIGN(Revision moving, co_await begin(to, cluster->value));
    Batch batch(to, moving);
    CO_TRY(co_await remove_strangers(from, to, batch));
    CO_TRY(co_await batch.flush());
    CO_TRY(co_await copy_all(from, batch));
    CO_TRY(co_await batch.flush());
    Transaction last;
    last.push_back(remove(std::string(kMovingKey), moving));
    last.push_back(create(key, cluster->value));
    CO_TRY(co_await to.compare_and_set(std::move(last)));
    co_return Result<void>();
}

Task<Result<void>> check_not_moving(Store& store) {
    CO_TRY_ASSIGN(std::optional<KeyValue> moving, co_await store.get(std::string(kMovingKey)));
    if (!moving) co_return Result<void>();
    co_return fail(Code::already_exists,
                   "a cluster is being moved into this control store and that did not end: start "
                   "the peplosd again from whose file it comes");
}

}  // namespace peplos::control
