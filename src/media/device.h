#pragma once

#include <memory>
#include <string>
#include <vector>

#include "format/superblock.h"
#include "media/ring.h"
#include "media/segment_store.h"
#include "runtime/env.h"

namespace peplos::media {

struct FormatOptions {
    uint64_t ring_bytes = limits::kRingBytesDefault;
    format::MediaClass media_class = format::MediaClass::nvme;
    enum class Existing : uint8_t {
        refuse,     // already_exists unless the disk's first 2 MiB are zeros
        overwrite,  // whatever was there is gone
    };
    Existing existing = Existing::refuse;
};

// Makes a Peplos device of `disk`: everything that was on it is gone. Writes the ring full of
// zeros (so that a commit never pays for a file's unwritten extents), then the superblocks.
// Errors: invalid_argument (too small, or a ring that does not fit), already_exists, io_error.
runtime::Task<Result<void>> format_device(runtime::Disk& disk, FormatOptions options,
                                          runtime::Rng& rng);

// Whether `disk` was made a Peplos device, now or by a newer version, be it damaged: one of its
// superblocks can be told. Changes nothing. Errors: io_error (neither can be read).
runtime::Task<Result<bool>> is_formatted(runtime::Disk& disk);

struct DeviceOptions {
    SegmentStoreOptions segments;
};

// What open() had to mend or could not. Each line names the device, the offset and the meaning.
struct OpenReport {
    bool superblock_repaired = false;
    bool torn_tail = false;  // normal after a power cut: nothing acknowledged was in it
    std::vector<std::string> corruptions;
};

// What went wrong on a device since it was opened. A read that fails or does not match its checksum
// takes nothing out of service but what it was needed for; it is counted, so that people see a
// device that is going bad.
struct DeviceErrors {
    uint64_t reads = 0;        // that failed
    uint64_t writes = 0;       // that failed, syncs too; the device left service with the first
    uint64_t corruptions = 0;  // pieces that do not match their checksum or identity
    std::string last;          // the newest: what, where
    uint64_t count() const { return reads + writes + corruptions; }
};

// What the parts of a device share.
class DeviceState {
  public:
    DeviceState(runtime::Env env, std::unique_ptr<runtime::Disk> disk)
        : env(env), disk(std::move(disk)) {}
    runtime::Env env;
    std::unique_ptr<runtime::Disk> disk;
    format::Superblock superblock;
    OpenReport report;
    DeviceErrors errors;

    // Fills `into`, whatever can be read: blocks that cannot are zeros then, and their device
    // offsets are added to `unreadable` (null: not wanted). Each is counted.
    // Errors: io_error when so many fail that the device as a whole does.
    runtime::Task<Result<void>> read_salvaging(uint64_t offset, Buffer into,
                                               std::vector<uint64_t>* unreadable);
    void note_failed_read(const Error& error);
    void note_corruption(std::string what);
    bool is_failed() const { return failed_; }
    // P6: after a failed write or sync nothing more is written to this device.
    void fail_for_good(const Error& error);
    // io_error with the first failure's message.
    Error failure() const;

  private:
    bool failed_ = false;
    std::string failure_;
};

// One disk in the service of Peplos: superblock, journal ring, segments. Lives on one executor.
class Device {
  public:
    // Reads the superblocks (either mends the other), raises the boot number durably, loads the
    // unit table and recovers the ring. The caller may look at report() afterwards.
    // Errors: not_found (never formatted), corrupt (both superblocks, or the ring contradicts
    // itself), unsupported (a newer version), invalid_argument (the disk shrank), io_error.
    static runtime::Task<Result<std::unique_ptr<Device>>> open(runtime::Env env,
                                                               std::unique_ptr<runtime::Disk> disk,
                                                               DeviceOptions options = {});
    ~Device();

    const DeviceId& id() const { return state_.superblock.device; }
    Incarnation incarnation() const { return state_.superblock.incarnation; }
    Boot boot() const { return state_.superblock.boot; }
    format::MediaClass media_class() const { return state_.superblock.media_class; }
    const std::string& name() const { return state_.disk->name(); }
    const OpenReport& report() const { return state_.report; }
    const DeviceErrors& errors() const { return state_.errors; }
    // P6: a failed device leaves service; only a new open() ends that.
    bool is_failed() const { return state_.is_failed(); }
    Error failure() const { return state_.failure(); }

    Ring& ring() { return *ring_; }
    SegmentStore& segments() { return *segments_; }

    // Ends the boot cleanly; waits for work in flight. Idempotent. Call it before destruction.
    runtime::Task<void> close();

  private:
    Device(runtime::Env env, std::unique_ptr<runtime::Disk> disk);
    runtime::Task<Result<void>> load_superblock();

    DeviceState state_;
    std::unique_ptr<Ring> ring_;
    std::unique_ptr<SegmentStore> segments_;
    bool closed_ = false;
};

}  // namespace peplos::media
