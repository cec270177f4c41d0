#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "base/ids.h"
#include "base/result.h"
#include "base/units.h"
#include "fabric/attachments.h"
#include "runtime/task.h"

// A node as a whole, as the doors (docker, api) and the command line see it.
namespace peplos::fabric {

// Health as a traffic light; everything that is not green carries its reason and the next step.
enum class Light : uint8_t { green, yellow, red };
struct Health {
    Light light = Light::green;
    std::string reason;  // empty when green
    std::string next;    // a command or an action; empty when green
};

// What a user may ask of a new volume. Names match [A-Za-z0-9][A-Za-z0-9_.-]{0,127}.
struct VolumeSpec {
    std::string name;
    uint64_t size_bytes = 0;  // 0: limits::kVolumeBytesDefault; a multiple of 4096
    uint32_t copies = 1;
    uint32_t sector_bytes = 512;
    FsType fs = FsType::ext4;
    std::string mkfs_options;  // as the user wrote it; allowed letters are checked
    int64_t uid = -1;
    int64_t gid = -1;
    int64_t mode = -1;
    std::map<std::string, std::string> labels;
    bool operator==(const VolumeSpec&) const = default;
};

struct VolumeInfo {
    VolumeId id;
    VolumeSpec spec;
    WallTime created_at{};
    std::string host;           // the node that serves it, by name
    std::string state;          // "attached", "available", "creating", "deleting", "failed"
    uint64_t used_bytes = 0;    // live data, thin
    uint64_t stored_bytes = 0;  // space taken on devices, journal excluded
    bool formatted = false;
    std::vector<std::string> holders;  // who has it mounted (Docker's caller ids), sorted
    std::optional<AttachInfo> attach;
    // When its user last accepted that damage had cost something, and what; zero: never.
    WallTime recovered_at{};
    std::string recovered_without;
    Health health;
};

// What damage keeps a volume closed, what it cost or would cost to go on without that.
struct RecoveryReport {
    bool is_whole = false;              // nothing keeps it closed
    bool is_done = false;               // the loss was accepted, and the volume can be used again
    std::vector<std::string> findings;  // device, offset, what cannot be read
    std::vector<std::string> losses;    // what is gone
    uint64_t lost_bytes = 0;            // read as errors until they are written again
    uint64_t dropped_bytes = 0;         // readable writes that follow a hole in the journal
    std::string message;                // a sentence, with the next command
};

struct DeviceInfo {
    DeviceId id;
    std::string path;
    std::string media_class;  // "nvme", "ssd", "hdd"
    uint64_t bytes = 0;
    uint64_t segment_bytes_total = 0;
    uint64_t segment_bytes_free = 0;
    uint64_t ring_bytes = 0;
    uint64_t ring_bytes_used = 0;
    // Since the device was opened.
    uint64_t read_errors = 0;
    uint64_t write_errors = 0;
    uint64_t corruptions = 0;
    Health health;
};

struct NodeStatus {
    NodeId id;
    std::string name;
    std::string version;
    WallTime started_at{};
    Health health;  // the worst of everything below, in one sentence
    uint64_t capacity_bytes = 0;
    uint64_t free_bytes = 0;
    uint32_t volume_count = 0;
    uint32_t attached_count = 0;
    std::vector<DeviceInfo> devices;
};

// One sample of a metric; the names follow Prometheus' conventions (peplos_..._total, _bytes).
struct Metric {
    std::string name;
    std::string help;
    bool counter = false;  // else a gauge
    std::vector<std::pair<std::string, std::string>> labels;
    double value = 0;
};

// Lives on the storage core; doors on other cores reach it with runtime::call_on(executor(), ...).
// Every call answers within seconds from local knowledge, or with an error that says what to do.
// An interface, so that doors are tested without disks.
class Node {
  public:
    virtual ~Node() = default;
    virtual runtime::Executor executor() const = 0;

    // Creates the volume, thin, in constant time. A volume of that name whose spec is equal is
    // returned as it is (Docker repeats Create); one that differs gives already_exists and says in
    // what it differs. Errors: invalid_argument, no_space, already_exists, unavailable, busy.
    virtual runtime::Task<Result<VolumeInfo>> create_volume(VolumeSpec spec) = 0;
    // Errors: not_found, busy (mounted: says by whom).
    virtual runtime::Task<Result<void>> remove_volume(std::string name) = 0;
    virtual runtime::Task<Result<VolumeInfo>> volume(std::string name) = 0;
    // Sorted by name.
    virtual runtime::Task<Result<std::vector<VolumeInfo>>> volumes() = 0;
    // Never shrinks. Returns a sentence that says what the file system did.
    virtual runtime::Task<Result<std::string>> grow_volume(std::string name,
                                                           uint64_t size_bytes) = 0;

    // Docker's Mount: attaches the volume where needed and adds `holder`. Repeats are fine, and so
    // is the same holder twice: each mount needs its own unmount (docker cp mounts a running
    // container's volume with the container's own id). Returns the path for the container.
    virtual runtime::Task<Result<std::string>> mount(std::string name, std::string holder) = 0;
    // Takes one of `holder`'s mounts away (an unknown holder is fine). When the last is gone the
    // volume is detached as soon as the kernel says that nobody uses it.
    virtual runtime::Task<Result<void>> unmount(std::string name, std::string holder) = 0;
    // A new dockerd life: no holder of the old one will ever be unmounted. The counts are cleared
    // and what the kernel no longer uses is detached.
    virtual runtime::Task<Result<void>> forget_holders() = 0;

    virtual runtime::Task<Result<NodeStatus>> status() = 0;
    // Adds a file (created with `create_bytes` when it does not exist) or a block device.
    virtual runtime::Task<Result<DeviceInfo>> add_device(std::string path, uint64_t create_bytes,
                                                         std::string media_class) = 0;

    // Work that takes long runs in the background of the node; these ask for it and report.
    struct ScrubReport {
        bool running = false;
        uint64_t segments_done = 0;
        uint64_t segments_total = 0;
        uint64_t bytes_checked = 0;
        std::vector<std::string> problems;  // each names device, segment, offset, volume
        WallTime finished_at{};
    };
    virtual runtime::Task<Result<void>> start_scrub() = 0;
    virtual runtime::Task<Result<ScrubReport>> scrub_report() = 0;
    // A way out for a volume that damage keeps closed: says what would be lost, and with `accept`
    // goes on without it, for good. Takes as long as reading the volume's journal and map does.
    // Errors: busy (it is mounted, or the host still has it), unavailable (not a matter of damage,
    // or nothing can be saved).
    enum class Loss : uint8_t { show, accept };
    virtual runtime::Task<Result<RecoveryReport>> recover_volume(std::string name, Loss loss) = 0;
    virtual runtime::Task<Result<uint64_t>> trim_volume(std::string name) = 0;
    // Force: containers that use the volume get I/O errors from then on. For `doctor --fix`.
    virtual runtime::Task<Result<void>> detach_forced(std::string name) = 0;

    // What the kernel still has of volumes that nobody serves, after a crash or a lost device.
    virtual runtime::Task<Result<std::vector<Leftover>>> leftovers() = 0;
    // Takes those without holders away and returns what was mended. One that has holders is left:
    // its containers would get I/O errors, which only detach_forced() may do.
    virtual runtime::Task<Result<std::vector<Leftover>>> mend_leftovers() = 0;

    virtual runtime::Task<std::vector<Metric>> metrics() = 0;
};

// Parses "20GiB", "20G", "20480m", "1073741824": a positive size, unit optional (k, m, g, t with
// optional i and b, any case, powers of 1024). Errors: invalid_argument with what is allowed.
Result<uint64_t> parse_size(std::string_view text);
// "20 GiB", "1.5 MiB": at most one decimal.
std::string print_size(uint64_t bytes);
// Whether the text is a volume's name: [A-Za-z0-9][A-Za-z0-9_.-]{0,127}.
// Errors: invalid_argument, naming the allowed form.
Result<void> check_name(std::string_view name);
// Checks name, size, options; fills defaults. Errors: invalid_argument.
Result<VolumeSpec> validated(VolumeSpec spec);
// "ext4", "xfs". Errors: invalid_argument with the list.
Result<FsType> parse_fs(std::string_view text);
std::string_view name_of(FsType fs);
// "green", "yellow", "red".
std::string_view name_of(Light light);

}  // namespace peplos::fabric
