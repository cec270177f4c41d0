#pragma once

#include <string>
#include <vector>

#include "attach/holder.h"
#include "attach/workers.h"
#include "fabric/attachments.h"

// What an attachment asks of the host's kernel and tools. Everything runs on workers and children
// with a time limit, never on the storage core: the I/O that these calls wait for is served there.
namespace peplos::attach {

// Where a volume's files are. Paths come from the id, never from a name.
struct VolumePaths {
    std::string directory;  // <state>/mnt/<id>
    std::string file;       // the raw file over FUSE
    std::string fs;         // where the file system is mounted
    std::string data;       // what containers get
};

enum class Release : uint8_t { free, held };

class HostOperations {
  public:
    // `programs` holds peplos-holder and peplos-mounter.
    HostOperations(std::string state_directory, std::string programs);

    const std::string& mounts_directory() const { return mounts_; }
    const std::string& holder_socket() const { return holder_socket_; }
    VolumePaths paths_of(VolumeId id) const;
    Workers& workers() { return workers_; }

    // Makes the mount root, shared so that other mount namespaces (dockerd's) see the mounts.
    runtime::Task<Result<void>> prepare_root();
    runtime::Task<Result<void>> make_directories(VolumePaths paths);
    runtime::Task<Result<void>> remove_directories(VolumePaths paths);

    // Opens /dev/fuse and mounts it on paths.file. The caller serves the descriptor at once.
    // Errors: unsupported (no FUSE), permission_denied, unavailable.
    runtime::Task<Result<Fd>> mount_fuse(VolumePaths paths);
    // The loop device on `file`; an existing one is reused. Errors: as errno says.
    runtime::Task<Result<std::string>> loop_on(std::string file, uint32_t sector_bytes);
    // held: somebody has the device open; it goes with the last close.
    runtime::Task<Result<Release>> clear_loop(std::string device, std::string file);
    runtime::Task<Result<void>> set_capacity(std::string device, std::string file);
    runtime::Task<Result<Release>> exclusive(std::string device);

    // Errors: invalid_argument with the tool's own words (size, options).
    runtime::Task<Result<void>> make_fs(fabric::FsType fs, std::vector<std::string> options,
                                        std::string device);
    // Errors: corrupt (the file system needs repair).
    runtime::Task<Result<void>> mount_fs(fabric::FsType fs, std::string device,
                                         std::string directory);
    runtime::Task<Result<void>> prepare_data(std::string directory, int64_t uid, int64_t gid,
                                             int64_t mode);
    // Unmounts; held: another mount namespace still uses the device. Errors: busy.
    runtime::Task<Result<Release>> unmount_fs(std::string directory, std::string device,
                                              std::string file);
    runtime::Task<Result<void>> detach_mount(std::string directory);
    runtime::Task<std::string> users(std::string device, std::string directory);

    struct FsSize {
        uint64_t total_bytes = 0;
        uint64_t used_bytes = 0;
    };
    runtime::Task<Result<FsSize>> fs_size(std::string directory);
    runtime::Task<Result<uint64_t>> trim(std::string directory, uint64_t start, uint64_t bytes);
    // Errors: permission_denied (ext4 without CAP_SYS_RESOURCE).
    runtime::Task<Result<void>> grow_mounted(fabric::FsType fs, std::string device,
                                             std::string directory);
    runtime::Task<Result<void>> grow_unmounted_ext4(std::string device);

    // Whether the mount root is at `directory` now, from /proc/self/mountinfo.
    runtime::Task<bool> is_mounted(std::string directory);
    runtime::Task<std::string> loop_of(std::string file);  // empty: none

    // Connects to the holder and starts one when none answers.
    runtime::Task<Result<void>> ensure_holder();
    runtime::Task<Result<void>> hold(VolumeId id, int fd);
    runtime::Task<Result<void>> drop(VolumeId id);
    runtime::Task<Result<Fd>> take_held(VolumeId id);
    runtime::Task<Result<std::vector<VolumeId>>> held();
    // A connection to the holder whose end says that the holder has gone.
    runtime::Task<Result<Fd>> watch_holder();

  private:
    runtime::Task<ChildResult> mounter(std::vector<std::string> arguments, Duration limit);
    // mounter(), its failure as an error for a person.
    runtime::Task<Result<std::string>> ask_mounter(std::vector<std::string> arguments,
                                                   Duration limit);

    std::string mounts_;
    std::string holder_socket_;
    std::string holder_program_;
    std::string mounter_program_;
    Workers workers_;
};

}  // namespace peplos::attach
