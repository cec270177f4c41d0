#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "base/ids.h"
#include "base/result.h"
#include "runtime/task.h"
#include "volume/block_device.h"

// How a volume becomes a mounted file system on this host. The interface stands here, below the
// doors; the room `attach` implements it and the program hands it to the Node.
namespace peplos::fabric {

enum class FsType : uint8_t { ext4, xfs };

// What attach has to know of a volume. Everything but `id` may be shown to people.
struct AttachSpec {
    VolumeId id;
    std::string name;  // for messages only: paths come from the id
    FsType fs = FsType::ext4;
    std::vector<std::string> mkfs_options;  // already validated, one argument each
    int64_t uid = -1;                       // owner of the mounted directory; -1: leave
    int64_t gid = -1;
    int64_t mode = -1;  // permission bits; -1: leave
    // True: this cluster has never formatted the volume, so mkfs is allowed (and required).
    bool blank = false;
};

struct AttachInfo {
    VolumeId id;
    std::string way;         // "fuse", "ublk", "iscsi"
    std::string why;         // the reason for the choice, one sentence
    std::string device;      // "/dev/loop3"
    std::string mount_root;  // where the file system is mounted, empty when it is not
    std::string path;        // what containers get: a subdirectory of the file system
    uint64_t fs_bytes = 0;   // size of the file system
    uint64_t fs_used_bytes = 0;
    // The device has grown and the file system can follow only when it is mounted anew.
    bool grows_at_mount = false;
    std::string problem;  // empty when healthy; else what and what to do next
};

// What the kernel still has of a volume that nobody serves: I/O on it waits for ever or fails.
struct Leftover {
    VolumeId id;
    std::string volume;        // its name; empty where this node has no such volume
    std::string mount;         // a mount point, or empty
    std::string device;        // a loop device, or empty
    std::string what;          // a sentence for people
    bool has_holders = false;  // containers are on record for the volume: their I/O is at stake
};

// One attachment per volume and host. All calls run on the storage core's executor and return
// within seconds or with an error; what blocks (mkfs, mount) runs in children.
class Attachments {
  public:
    virtual ~Attachments() = default;

    // Called right after mkfs succeeded, before the first mount: records `formatted` durably.
    using Formatted = std::function<runtime::Task<Result<void>>(VolumeId)>;

    // Serves `device` to the host and mounts it (mkfs first when spec.blank). Idempotent: an
    // attachment that is alive is returned as it is. `device` outlives the attachment.
    // A file system that is smaller than its device is made as large when it is mounted.
    // Errors: unsupported (kernel: says what is missing), io_error, no_space, busy, corrupt
    // (the file system needs repair: says the command), unavailable.
    virtual runtime::Task<Result<AttachInfo>> attach(AttachSpec spec,
                                                     std::shared_ptr<volume::BlockDevice> device,
                                                     Formatted formatted) = 0;

    // Unmounts and takes the device away when the kernel says that nobody uses it.
    // Errors: busy (names who still uses it where that can be found); the attachment stays.
    virtual runtime::Task<Result<void>> detach(VolumeId id) = 0;

    // The same by force (lazy unmount, connection aborted): containers that use it get errors.
    // Takes away leftovers() of a volume that is not attached, too.
    virtual runtime::Task<Result<void>> detach_forced(VolumeId id) = 0;

    // After a restart of the daemon: which volumes does the kernel still hold attached for us?
    // Their I/O waits until resume() gives the device back.
    virtual runtime::Task<Result<std::vector<VolumeId>>> find_surviving() = 0;
    virtual runtime::Task<Result<AttachInfo>> resume(
        AttachSpec spec, std::shared_ptr<volume::BlockDevice> device) = 0;

    // The volume has grown to device->size_bytes(): makes the kernel and the file system follow.
    // Returns a sentence for the user ("grown online", "ext4 grows at the next mount, because
    // ...").
    virtual runtime::Task<Result<std::string>> grow(VolumeId id) = 0;

    // Gives freed file-system blocks back to the volume (FITRIM).
    // Returns the bytes that the file system says it trimmed.
    virtual runtime::Task<Result<uint64_t>> trim(VolumeId id) = 0;

    // What an earlier daemon left in the kernel. Call it after every surviving volume was resumed.
    virtual runtime::Task<std::vector<Leftover>> leftovers() = 0;
    // Takes the leftovers of one volume away: lazy unmount, loop device cleared, descriptor
    // dropped; what used it gets I/O errors. The caller keeps attach() and resume() of the volume
    // out meanwhile. Errors: busy (the volume is attached and served), stopping.
    virtual runtime::Task<Result<void>> mend_leftovers(VolumeId id) = 0;

    // Reads the file systems' sizes anew, for info() and list(). May take long: one child each.
    virtual runtime::Task<void> refresh() = 0;

    // As it was found last; neither call waits for anything.
    virtual Result<AttachInfo> info(VolumeId id) const = 0;
    virtual std::vector<AttachInfo> list() const = 0;

    // Stops serving without unmounting: kernel I/O waits for the next daemon (restart, upgrade).
    virtual runtime::Task<void> pause_all() = 0;
};

}  // namespace peplos::fabric
