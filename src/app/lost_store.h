#pragma once

#include "app/config.h"
#include "runtime/env.h"
#include "runtime/task.h"

namespace peplos::app {

// A control store that was lost must not turn into an empty cluster: new names over old devices.
// Called before anything is created, when the store's file is missing: the folder of the state must
// be empty (but for lost+found and an empty store), and no device of the configuration may be a
// Peplos device. Errors: not_found; the message names what shows a past, says that the volumes'
// data are intact, and how to restore the newest backup that is at hand. Those of Disks::open, but
// not_found.
Result<void> check_empty_state(const Config& config);
runtime::Task<Result<void>> check_unused_devices(const Config& config, runtime::Env env);

}  // namespace peplos::app
