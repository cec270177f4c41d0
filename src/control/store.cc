#include "control/store.h"

#include <set>

namespace peplos::control {

Result<void> check_key(std::string_view key) {
    if (key.empty() || key.size() > limits::kStoreKeyBytesMax) {
        return fail(Code::invalid_argument,
                    "a key of the control store has 1 to {} bytes, this one has {}",
                    limits::kStoreKeyBytesMax, key.size());
    }
    return {};
}

Result<void> check_transaction(const Transaction& transaction) {
    if (transaction.empty() || transaction.size() > limits::kStoreTransactionKeysMax) {
        return fail(Code::invalid_argument,
                    "a transaction of the control store has 1 to {} operations, this one has {}",
                    limits::kStoreTransactionKeysMax, transaction.size());
    }
    std::set<std::string_view> keys;
    uint64_t bytes = 0;
    for (const Operation& operation : transaction) {
        TRY(check_key(operation.key));
        if (operation.value.size() > limits::kStoreValueBytesMax) {
            return fail(Code::invalid_argument, "the value of '{}' has {} bytes, at most {} fit",
                        operation.key, operation.value.size(), limits::kStoreValueBytesMax);
        }
        if (!keys.insert(operation.key).second) {
            return fail(Code::invalid_argument, "a transaction names the key '{}' twice",
                        operation.key);
        }
        bytes += operation.key.size() + operation.value.size();
    }
    if (bytes > kTransactionBytesMax) {
        return fail(Code::invalid_argument,
                    "a transaction of the control store has at most {} bytes, this one has {}",
                    kTransactionBytesMax, bytes);
    }
    return {};
}

Result<void> check_list(const ListRequest& request) {
    if (request.count_max == 0 || request.count_max > limits::kStoreListCountMax) {
        return fail(Code::invalid_argument, "a page lists 1 to {} keys, not {}",
                    limits::kStoreListCountMax, request.count_max);
    }
    if (request.prefix.size() > limits::kStoreKeyBytesMax ||
        request.after.size() > limits::kStoreKeyBytesMax) {
        return fail(Code::invalid_argument, "a prefix or key to list has at most {} bytes",
                    limits::kStoreKeyBytesMax);
    }
    return {};
}

Result<void> check_generation(Generation demanded, Generation present) {
    if (demanded == Generation{} || demanded == present) return {};
    return fail(Code::conflict,
                "the control store has generation {:016x}, not {:016x}: it was put back from a "
                "backup, so what was read before proves nothing; read it again",
                present.value, demanded.value);
}

Task<Result<Page>> list_all(Store& store, std::string prefix) {
    ListRequest request;
    request.prefix = std::move(prefix);
    CO_TRY_ASSIGN(Page all, co_await store.list(request));
    while (all.more) {
        request.after = all.entries.back().key;
        CO_TRY_ASSIGN(Page page, co_await store.list(request));
        all.more = page.more;
        for (KeyValue& entry : page.entries)
            all.entries.push_back(std::move(entry));
    }
    co_return all;
}

}  // namespace peplos::control
