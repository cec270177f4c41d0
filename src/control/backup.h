#pragma once

#include <string>
#include <vector>

#include "control/embedded_store.h"
#include "runtime/alarm.h"
#include "runtime/clock.h"
#include "runtime/gate.h"

namespace peplos::control {

// Keeps copies of the embedded store's file up to date: one beside it, and one beside each device
// that is a file in another folder, so that the loss of one disk does not take both. Without the
// store the devices' bytes have no names (docs/operations/control-store.md).
//
// Promises
//   1. A copy is whole, of one moment, and replaced atomically.
//   2. It is at most about kIntervalMin old (longer while copies are slow: they take a twentieth of
//      the store's time at most); stop() brings it up to date.
//   3. A copy that knows more than the store (which was restored from an older one, or made anew)
//      is never written over: it is moved aside.
//
// A copy that fails is logged and tried again with the next change; the store goes on.
class Backup {
  public:
    static constexpr Duration kIntervalMin = std::chrono::seconds(1);
    // Beside `state_dir`'s store.
    static std::string path_in(const std::string& state_dir);
    static std::string path_beside(const std::string& device_path);

    // All outlive the backup. Lives on `executor`.
    Backup(runtime::Executor executor, runtime::Clock& clock, EmbeddedStore& store,
           std::string state_dir);

    void start();
    // Requires: the store still serves.
    Task<void> stop();

  private:
    Task<void> keep();
    Task<void> follow(Watch& watch);
    Task<void> copy_all();
    Task<std::vector<std::string>> targets();

    runtime::Executor executor_;
    runtime::Clock& clock_;
    EmbeddedStore& store_;
    std::string state_dir_;
    std::string failure_;  // the last, so that each is logged once
    Watch* watch_ = nullptr;
    bool stopping_ = false;
    runtime::Alarm alarm_;
    runtime::Gate gate_;
};

}  // namespace peplos::control
