#pragma once

#include <functional>

#include "control/records.h"
#include "control/store.h"
#include "runtime/task.h"

// Reading and changing records of the control store with every outcome settled.
namespace peplos::fabric {

using runtime::Task;

// Applies `transaction`; when the store cannot say whether it happened, `happened` reads what it
// needs to find out. Errors: as compare_and_set, with outcome_unknown only when even reading fails.
Task<Result<void>> settle(control::Store& store, control::Transaction transaction,
                          std::function<Task<Result<bool>>()> happened);

struct StoredVolume {
    control::VolumeRecord record;
    control::Revision revision;
};

// Errors: not_found, corrupt, or the store's.
Task<Result<StoredVolume>> read_volume(control::Store& store, VolumeId id);

// Replaces the record that was read at `revision`; gives it back with its new revision.
// Errors: conflict (somebody changed it: read again, decide again), or the store's.
Task<Result<StoredVolume>> write_volume(control::Store& store, control::VolumeRecord record,
                                        control::Revision revision);

}  // namespace peplos::fabric
