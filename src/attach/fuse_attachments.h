#pragma once

#include <map>
#include <memory>
#include <string>
#include <vector>

#include "attach/fuse_session.h"
#include "attach/host_operations.h"
#include "fabric/attachments.h"
#include "runtime/clock.h"
#include "runtime/gate.h"

namespace peplos::attach {

struct AttachOptions {
    // Mounts are made below <state_directory>/mnt; the holder's socket lies in it. Two daemons of
    // one host need different ones. At most 90 bytes, absolute, without symbolic links.
    std::string state_directory;
    // Where peplos-holder and peplos-mounter are; empty: beside the running program.
    std::string programs_directory;
};

// A way to attach, and whether this host offers it. For status and doctor.
struct Way {
    std::string name;  // "fuse", "ublk", "iscsi"
    bool usable = false;
    std::string why;  // one sentence; what is missing and what to do when it is not usable
};
// Asks the running kernel. Instant; touches no mounted file system.
std::vector<Way> probe();

// Attaches volumes as one raw file over FUSE each, with a loop device (direct I/O) and the file
// system on top.
//
// Invariants
//   1. The holder has a session's descriptor before its first file-system I/O.
//   2. A volume has at most one FUSE connection, one loop device and one mount here.
//   3. Nothing on the storage core waits for I/O of an attached volume (HostOperations).
// Relax 3 and the core waits for itself, forever.
//
// The program's part: a device's lock shows that the old daemon is dead before resume() is called,
// and the daemon locks its memory (mlockall), since the kernel may want memory written back
// through it.
class FuseAttachments : public fabric::Attachments {
  public:
    FuseAttachments(runtime::Executor executor, runtime::Clock& clock, AttachOptions options);
    // Requires: pause_all() has resolved.
    ~FuseAttachments() override;

    // Checks the kernel, makes the mount root and starts the holder where none runs; call it once
    // before anything else. Errors: unsupported, permission_denied, unavailable.
    runtime::Task<Result<void>> open();

    runtime::Task<Result<fabric::AttachInfo>> attach(fabric::AttachSpec spec,
                                                     std::shared_ptr<volume::BlockDevice> device,
                                                     Formatted formatted) override;
    runtime::Task<Result<void>> detach(VolumeId id) override;
    runtime::Task<Result<void>> detach_forced(VolumeId id) override;
    runtime::Task<Result<std::vector<VolumeId>>> find_surviving() override;
    // Errors besides attach()'s: not_found (the kernel holds nothing that is in use; what was left
    // half-made is gone, attach() makes it anew).
    runtime::Task<Result<fabric::AttachInfo>> resume(
        fabric::AttachSpec spec, std::shared_ptr<volume::BlockDevice> device) override;
    runtime::Task<Result<std::string>> grow(VolumeId id) override;
    runtime::Task<Result<uint64_t>> trim(VolumeId id) override;
    Result<fabric::AttachInfo> info(VolumeId id) const override;
    std::vector<fabric::AttachInfo> list() const override;
    runtime::Task<void> pause_all() override;

    runtime::Task<std::vector<fabric::Leftover>> leftovers() override;
    runtime::Task<Result<void>> mend_leftovers(VolumeId id) override;
    runtime::Task<void> refresh() override;

    // I/O counters of one attached volume, for metrics. Errors: not_found.
    Result<FuseSession::Counters> counters(VolumeId id) const;

  private:
    struct Attachment {
        fabric::AttachSpec spec;
        std::shared_ptr<volume::BlockDevice> device;
        VolumePaths paths;
        std::unique_ptr<FuseSession> session;
        fabric::AttachInfo info;
        uint64_t session_count = 0;  // sessions so far, to tell one from the next
        bool mounted = false;
        bool mounted_is_doubtful = false;  // an unmount took too long; the kernel may go on
        std::string size_problem;          // why the sizes could not be read, of the last time
        runtime::Mutex mutex;
    };
    using AttachmentPtr = std::shared_ptr<Attachment>;

    Result<AttachmentPtr> find(VolumeId id) const;
    AttachmentPtr find_or_make(const fabric::AttachSpec& spec,
                               std::shared_ptr<volume::BlockDevice> device);
    void forget_if_idle(const AttachmentPtr& attachment);

    runtime::Task<Result<void>> bring_up(Attachment& a, Formatted formatted);
    runtime::Task<Result<void>> start_session(Attachment& a);
    runtime::Task<Result<void>> format_if_blank(Attachment& a, Formatted formatted);
    runtime::Task<Result<void>> mount(Attachment& a);
    runtime::Task<Result<void>> finish_mount(Attachment& a);
    runtime::Task<Result<bool>> is_outgrown(Attachment& a);
    runtime::Task<Result<void>> grow_before_mount(Attachment& a);
    runtime::Task<Result<void>> grow_after_mount(Attachment& a);
    runtime::Task<Result<void>> pick_up(Attachment& a);
    runtime::Task<Result<void>> resume_session(Attachment& a);
    runtime::Task<Result<bool>> adopt_kernel_state(Attachment& a);
    runtime::Task<Result<void>> take_down(Attachment& a);
    runtime::Task<Result<Release>> release_device(Attachment& a);
    runtime::Task<void> abort_session(Attachment& a);
    runtime::Task<void> remove_leftovers(VolumePaths paths);
    runtime::Task<void> detach_all(std::string directory);
    runtime::Task<void> refresh_one(Attachment& a);
    runtime::Task<Result<Buffer>> read_start(Attachment& a);
    runtime::Task<std::vector<fabric::Leftover>> find_leftovers();
    runtime::Task<Result<void>> hold_session(AttachmentPtr a);

    runtime::Task<void> watch_holder();
    runtime::Task<Result<void>> restore_holder();

    runtime::Executor executor_;
    runtime::Clock& clock_;
    HostOperations host_;
    std::shared_ptr<ReceiveBuffer> receive_;
    std::map<VolumeId, AttachmentPtr> attachments_;
    runtime::Gate gate_;
    std::unique_ptr<boost::asio::posix::basic_stream_descriptor<runtime::Executor>> holder_watch_;
    std::string problem_;  // of the holder; empty when it runs
    bool pausing_ = false;
};

}  // namespace peplos::attach
