#pragma once

#include "control/store.h"

namespace peplos::control {

// While a store is being filled from another one it holds this key, with the cluster's record as
// its value, and no `cluster`: nobody takes it for a cluster.
inline constexpr std::string_view kMovingKey = "moving";

// Copies every key of `from` into `to`, which holds no cluster, and then makes `to` the cluster's
// store in one transaction: until that `from` is the store, from then on `to` is. Values go along
// as they are, their own version counters too; revisions are the new store's.
//
// A crash at any moment is survived by calling it again: what was copied is copied again. When `to`
// is this cluster's store already there is nothing to do.
// Requires: nobody changes `from` meanwhile, nor uses it afterwards.
// Errors: not_found (`from` holds no cluster), already_exists (`to` holds another cluster, another
// move, or other keys), those of the stores; outcome_unknown: call it again.
Task<Result<void>> move_store(Store& from, Store& to);

// Errors: already_exists: `store` is being filled and that did not end.
Task<Result<void>> check_not_moving(Store& store);

}  // namespace peplos::control
