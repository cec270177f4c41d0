#pragma once

#include <memory>
#include <string>

#include "app/config.h"
#include "base/ids.h"
#include "base/result.h"
#include "control/store.h"
#include "runtime/env.h"
#include "runtime/task.h"

namespace peplos::app {

struct StorageSide;
struct DoorSide;

// How a process that failed ends, for a supervisor.
enum class ExitStatus : int {
    failed = 1,           // another start may succeed
    bad_options = 2,      // the configuration or the command line is wrong
    needs_a_person = 78,  // another start finds the same: EX_CONFIG of sysexits.h
};
ExitStatus exit_status_of(const Error& error);

// A node as a process: the storage core on a thread of its own, the doors on the calling one.
//
//   run(): lock memory, open the control store, start the node, take back what the kernel still
//   has attached, open the doors, say READY; on SIGTERM or SIGINT the same backwards. Attached
//   volumes stay attached over a stop: their I/O waits for the next daemon.
class Daemon {
  public:
    explicit Daemon(Config config);
    ~Daemon();
    Daemon(const Daemon&) = delete;
    Daemon& operator=(const Daemon&) = delete;

    // Blocks until a signal ends it. Errors: whatever keeps the node from serving at all; a device
    // or a volume that fails does not, it shows in `peplos status`.
    Result<void> run();

  private:
    std::string store_path() const;
    // False also for a file that a first start, cut short, left empty.
    bool has_store() const;
    Result<void> prepare_process();
    runtime::Task<void> serve();
    runtime::Task<Result<void>> start_storage();
    runtime::Task<Result<void>> open_embedded_store(runtime::Env env);
    runtime::Task<Result<void>> open_etcd_store(runtime::Env env);
    runtime::Task<Result<void>> move_store_to(control::Store& to);
    runtime::Task<Result<NodeId>> stored_node();
    runtime::Task<Result<void>> add_devices();
    runtime::Task<Result<void>> start_doors();
    runtime::Task<void> stop_all();
    runtime::Task<void> wait_for_signal();

    Config config_;
    std::unique_ptr<StorageSide> storage_;
    std::unique_ptr<DoorSide> doors_;
    Result<void> outcome_;
};

}  // namespace peplos::app
