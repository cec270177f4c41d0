#pragma once

#include <cstdint>
#include <string>

namespace peplos::control {

// An SQLite VFS over the system's whose files fail when asked: for tests of bad disks.
// Registered while it exists, under name(). Counters are read and set between calls.
class FaultVfs {
  public:
    FaultVfs();
    ~FaultVfs();
    FaultVfs(const FaultVfs&) = delete;
    FaultVfs& operator=(const FaultVfs&) = delete;

    static constexpr const char* kName = "peplos-fault";

    // Each counts down with the operations that follow: 0 fails this and every later one, negative
    // never fails.
    int64_t writes_until_full = -1;
    int64_t writes_until_error = -1;
    int64_t syncs_until_error = -1;
    int64_t reads_until_error = -1;
    // Syncs attempted, failed ones as well.
    int64_t sync_count = 0;
};

}  // namespace peplos::control
