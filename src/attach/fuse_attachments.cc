#include "attach/fuse_attachments.h"

#include <array>
#include <boost/asio/redirect_error.hpp>
#include <poll.h>
#include <unistd.h>

#include "attach/fs_signature.h"
#include "attach/host_state.h"
#include "base/limits.h"
#include "base/log.h"

namespace peplos::attach {

namespace {

using namespace std::chrono_literals;
using runtime::Task;

constexpr uint64_t kTrimStepBytes = 16 * kGiB;
// A file system smaller than its device by less than this has merely been rounded down.
constexpr uint64_t kGrowBytesMin = 2 * kMiB;

std::string directory_of_this_program() {
    std::array<char, 4096> path{};
    ssize_t count = ::readlink("/proc/self/exe", path.data(), path.size());
    std::string text(path.data(), static_cast<size_t>(std::max<ssize_t>(count, 0)));
    return text.substr(0, text.rfind('/'));
}

// The kernel has ended the connection behind a /dev/fuse descriptor. Instant.
bool connection_is_dead(int fd) {
    pollfd poll{fd, POLLIN, 0};
    return ::poll(&poll, 1, 0) < 0 || (poll.revents & (POLLERR | POLLNVAL)) != 0;
}

}  // namespace

FuseAttachments::FuseAttachments(runtime::Executor executor, runtime::Clock& clock,
                                 AttachOptions options)
    : executor_(std::move(executor)),
      clock_(clock),
      host_(options.state_directory, options.programs_directory.empty()
                                         ? directory_of_this_program()
                                         : options.programs_directory),
      receive_(std::make_shared<ReceiveBuffer>()) {}

FuseAttachments::~FuseAttachments() = default;

Task<Result<void>> FuseAttachments::open() {
    for (const Way& way : probe()) {
        if (way.name == "fuse" && !way.usable) {
            co_return fail(Code::unsupported, "volumes cannot be attached: {}", way.why);
        }
    }
    CO_TRY(co_await host_.prepare_root());
    CO_TRY(co_await restore_holder());
    gate_.spawn(executor_, watch_holder());
    co_return Result<void>();
}

Result<FuseAttachments::AttachmentPtr> FuseAttachments::find(VolumeId id) const {
    auto at = attachments_.find(id);
    if (at == attachments_.end()) return fail(Code::not_found, "volume {} is not attached", id);
    return at->second;
}

FuseAttachments::AttachmentPtr FuseAttachments::find_or_make(
    const fabric::AttachSpec& spec, std::shared_ptr<volume::BlockDevice> device) {
    AttachmentPtr& slot = attachments_[spec.id];
    if (slot) return slot;
    slot = std::make_shared<Attachment>();
    slot->spec = spec;
    slot->device = std::move(device);
    slot->paths = host_.paths_of(spec.id);
    slot->info.id = spec.id;
    slot->info.way = "fuse";
    slot->info.why = "fuse: works on every kernel from 6.9 on without a module";
    return slot;
}

// An attachment without a session is nothing; whoever waits for its mutex keeps it alive.
void FuseAttachments::forget_if_idle(const AttachmentPtr& attachment) {
    if (attachment->session) return;
    auto at = attachments_.find(attachment->spec.id);
    if (at != attachments_.end() && at->second == attachment) attachments_.erase(at);
}

Task<Result<fabric::AttachInfo>> FuseAttachments::attach(
    fabric::AttachSpec spec, std::shared_ptr<volume::BlockDevice> device, Formatted formatted) {
    CO_TRY_ASSIGN(auto pass, gate_.enter());
    AttachmentPtr a = find_or_make(spec, device);
    auto guard = co_await a->mutex.lock();
    if (a->session && a->session->is_dead()) {
        // The connection was aborted from outside; what is left of it only gives errors.
        LOG_WARN("attaching anew after the kernel's connection ended volume={}", spec.id);
        co_await abort_session(*a);
    }
    if (a->session && a->mounted_is_doubtful) {
        a->mounted = co_await host_.is_mounted(a->paths.fs);
        a->mounted_is_doubtful = false;
    }
    if (a->session && a->mounted && !a->info.path.empty()) co_return a->info;
    attachments_[spec.id] = a;
    a->spec = spec;
    if (!a->session) {
        a->device = std::move(device);
        auto picked_up = co_await pick_up(*a);
        if (picked_up && a->mounted) co_return a->info;
        if (picked_up) co_return fail(Code::busy, "volume {}: {}", spec.name, a->info.problem);
        if (picked_up.error().code() != Code::not_found) {
            forget_if_idle(a);
            co_return std::unexpected(std::move(picked_up).error());
        }
    }
    auto up = co_await bring_up(*a, formatted);
    if (!up) {
        // A damaged file system keeps its device, so that it can be repaired there.
        if (up.error().code() == Code::corrupt && a->session) {
            a->info.problem = up.error().message();
        } else {
            co_await take_down(*a);
            forget_if_idle(a);
        }
        co_return std::unexpected(std::move(up).error());
    }
    LOG_INFO("volume attached volume={} way=fuse device={} path={}", spec.id, a->info.device,
             a->info.path);
    co_return a->info;
}

Task<Result<void>> FuseAttachments::bring_up(Attachment& a, Formatted formatted) {
    if (!a.session) {
        CO_TRY_ASSIGN(Buffer start, co_await read_start(a));
        CO_TRY(check_signature(a.spec, start.bytes()));
        CO_TRY(co_await start_session(a));
    }
    // Mounted by a predecessor, or by us: only what came after the mount is missing.
    if (a.mounted) co_return co_await finish_mount(a);
    CO_TRY_ASSIGN(a.info.device, co_await host_.loop_on(a.paths.file, a.device->sector_bytes()));
    CO_TRY(co_await format_if_blank(a, std::move(formatted)));
    CO_TRY(co_await mount(a));
    co_return Result<void>();
}

Task<Result<Buffer>> FuseAttachments::read_start(Attachment& a) {
    Buffer start = Buffer::zeroed(std::min<uint64_t>(kSignatureBytes, a.device->size_bytes()));
    CO_TRY(co_await a.device->read(0, start));
    co_return start;
}

Task<Result<void>> FuseAttachments::start_session(Attachment& a) {
    if (!problem_.empty()) CO_TRY(co_await restore_holder());
    // Whatever a lost predecessor left of this volume only gives errors by now: pick_up() has
    // found no live connection.
    co_await remove_leftovers(a.paths);
    CO_TRY(co_await host_.make_directories(a.paths));
    CO_TRY_ASSIGN(Fd fuse, co_await host_.mount_fuse(a.paths));
    a.session =
        std::make_unique<FuseSession>(executor_, a.spec.id, a.device, receive_, fuse.release());
    ++a.session_count;
    a.session->start();
    // A holder that dies right now is replaced, and the new one is given every session.
    auto held = co_await host_.hold(a.spec.id, a.session->fd());
    if (!held) CO_TRY(co_await restore_holder());
    co_return Result<void>();
}

Task<Result<void>> FuseAttachments::format_if_blank(Attachment& a, Formatted formatted) {
    if (!a.spec.blank) co_return Result<void>();
    CO_TRY(co_await host_.make_fs(a.spec.fs, a.spec.mkfs_options, a.info.device));
    if (formatted) CO_TRY(co_await formatted(a.spec.id));
    a.spec.blank = false;
    co_return Result<void>();
}

Task<Result<void>> FuseAttachments::mount(Attachment& a) {
    a.info.problem.clear();
    CO_TRY(co_await grow_before_mount(a));
    auto mounted = co_await host_.mount_fs(a.spec.fs, a.info.device, a.paths.fs);
    if (!mounted) {
        // A child of a daemon that was killed may have mounted it this very moment.
        bool is_there =
            mounted.error().code() == Code::busy && co_await host_.is_mounted(a.paths.fs);
        if (!is_there) co_return std::unexpected(std::move(mounted).error());
    }
    a.mounted = true;
    CO_TRY(co_await finish_mount(a));
    co_return Result<void>();
}

Task<Result<void>> FuseAttachments::finish_mount(Attachment& a) {
    CO_TRY(co_await host_.prepare_data(a.paths.data, a.spec.uid, a.spec.gid, a.spec.mode));
    a.info.mount_root = a.paths.fs;
    a.info.path = a.paths.data;
    CO_TRY(co_await grow_after_mount(a));
    co_await refresh_one(a);
    co_return Result<void>();
}

// Whether the file system on the device is smaller than the device, as its superblock has it.
Task<Result<bool>> FuseAttachments::is_outgrown(Attachment& a) {
    CO_TRY_ASSIGN(Buffer start, co_await read_start(a));
    uint64_t claimed = fs_bytes_of(start.bytes());
    co_return claimed != 0 && claimed + kGrowBytesMin <= a.device->size_bytes();
}

// Mounted, ext4 grows with CAP_SYS_RESOURCE only, so it grows before.
Task<Result<void>> FuseAttachments::grow_before_mount(Attachment& a) {
    if (a.spec.fs != fabric::FsType::ext4) co_return Result<void>();
    CO_TRY_ASSIGN(bool outgrown, co_await is_outgrown(a));
    if (!outgrown) co_return Result<void>();
    CO_TRY(co_await host_.set_capacity(a.info.device, a.paths.file));
    // Held by another mount namespace, it cannot be checked: it is mounted as it is.
    CO_TRY_ASSIGN(Release use, co_await host_.exclusive(a.info.device));
    if (use == Release::held) co_return Result<void>();
    auto grown = co_await host_.grow_unmounted_ext4(a.info.device);
    if (!grown) a.info.problem = grown.error().message();
    co_return Result<void>();
}

// xfs grows only while it is mounted. What still lags behind its device waits for a mount.
Task<Result<void>> FuseAttachments::grow_after_mount(Attachment& a) {
    CO_TRY_ASSIGN(a.info.grows_at_mount, co_await is_outgrown(a));
    if (!a.info.grows_at_mount || a.spec.fs != fabric::FsType::xfs) co_return Result<void>();
    CO_TRY(co_await host_.set_capacity(a.info.device, a.paths.file));
    auto grown = co_await host_.grow_mounted(a.spec.fs, a.info.device, a.paths.fs);
    a.info.grows_at_mount = false;
    if (!grown) a.info.problem = grown.error().message();
    co_return Result<void>();
}

// ---- Release ----

Task<Result<void>> FuseAttachments::detach(VolumeId id) {
    CO_TRY_ASSIGN(auto pass, gate_.enter());
    CO_TRY_ASSIGN(AttachmentPtr a, find(id));
    auto guard = co_await a->mutex.lock();
    if (!a->session) co_return Result<void>();
    CO_TRY(co_await take_down(*a));
    forget_if_idle(a);
    LOG_INFO("volume detached volume={}", id);
    co_return Result<void>();
}

// The reverse of bring_up(), as far as it came. Errors: busy, and everything that is in use stays.
Task<Result<void>> FuseAttachments::take_down(Attachment& a) {
    if (a.session && !a.session->is_dead()) {
        CO_TRY_ASSIGN(Release use, co_await release_device(a));
        if (use == Release::held) {
            std::string users = co_await host_.users(a.info.device, a.paths.fs);
            co_return fail(Code::busy, "volume {} is still in use by {}; stop that first",
                           a.spec.name, users);
        }
    }
    if (a.session) {
        co_await abort_session(a);
        co_await remove_leftovers(a.paths);
        co_await host_.remove_directories(a.paths);
    }
    co_return Result<void>();
}

// Unmounts the file system and frees the loop device, as far as the kernel lets go of them.
Task<Result<Release>> FuseAttachments::release_device(Attachment& a) {
    if (a.mounted) {
        auto released = co_await host_.unmount_fs(a.paths.fs, a.info.device, a.paths.file);
        if (!released && released.error().code() == Code::busy) co_return Release::held;
        if (!released) {
            // Given up here, the kernel may finish it all the same.
            a.mounted_is_doubtful = true;
            co_return std::unexpected(std::move(released).error());
        }
        a.mounted = false;
        a.info.mount_root.clear();
        a.info.path.clear();
        co_return *released;
    }
    // Not mounted here: another mount namespace or a tool may have it all the same.
    std::string device = co_await host_.loop_of(a.paths.file);
    if (device.empty()) co_return Release::free;
    CO_TRY_ASSIGN(Release use, co_await host_.exclusive(device));
    if (use == Release::held) co_return use;
    co_return co_await host_.clear_loop(device, a.paths.file);
}

// Closes both descriptors, which ends the connection: I/O that waits fails, unmounting goes on.
Task<void> FuseAttachments::abort_session(Attachment& a) {
    auto dropped = co_await host_.drop(a.spec.id);
    if (!dropped) LOG_WARN("{}", dropped.error().text());
    if (a.session) {
        co_await a.session->stop();
        a.session.reset();
    }
    a.mounted = false;
    a.info.mount_root.clear();
    a.info.path.clear();
}

// Takes away what is mounted and bound for a volume whose connection has ended. The raw file goes
// last: without it the loop device could no longer be recognised.
Task<void> FuseAttachments::remove_leftovers(VolumePaths paths) {
    co_await detach_all(paths.fs);
    std::string device = co_await host_.loop_of(paths.file);
    if (!device.empty()) {
        auto cleared = co_await host_.clear_loop(device, paths.file);
        if (!cleared) LOG_WARN("{}", cleared.error().text());
        if (cleared && *cleared == Release::held) {
            LOG_WARN("{} is still open and gives I/O errors; it goes with its last user", device);
        }
    }
    co_await detach_all(paths.file);
}

// Mounts may lie on top of each other.
Task<void> FuseAttachments::detach_all(std::string directory) {
    for (int i = 0; i < 8 && co_await host_.is_mounted(directory); ++i) {
        auto detached = co_await host_.detach_mount(directory);
        if (!detached) LOG_WARN("{}", detached.error().text());
    }
}

Task<Result<void>> FuseAttachments::detach_forced(VolumeId id) {
    CO_TRY_ASSIGN(auto pass, gate_.enter());
    if (!attachments_.contains(id)) co_return co_await mend_leftovers(id);
    CO_TRY_ASSIGN(AttachmentPtr a, find(id));
    auto guard = co_await a->mutex.lock();
    if (!a->session) co_return Result<void>();
    LOG_WARN("volume detached by force; who used it gets I/O errors volume={}", id);
    co_await abort_session(*a);
    co_await remove_leftovers(a->paths);
    co_await host_.remove_directories(a->paths);
    forget_if_idle(a);
    co_return Result<void>();
}

// ---- After a restart ----

Task<Result<std::vector<VolumeId>>> FuseAttachments::find_surviving() {
    CO_TRY_ASSIGN(std::vector<VolumeId> held, co_await host_.held());
    std::vector<VolumeId> surviving;
    for (VolumeId id : held) {
        if (attachments_.contains(id)) continue;
        auto fd = co_await host_.take_held(id);
        if (!fd && fd.error().code() != Code::not_found) co_return fail(std::move(fd).error());
        if (fd && !connection_is_dead(fd->get())) {
            surviving.push_back(id);
        } else {
            auto dropped = co_await host_.drop(id);
            if (!dropped) LOG_WARN("{}", dropped.error().text());
        }
    }
    co_return surviving;
}

Task<Result<fabric::AttachInfo>> FuseAttachments::resume(
    fabric::AttachSpec spec, std::shared_ptr<volume::BlockDevice> device) {
    CO_TRY_ASSIGN(auto pass, gate_.enter());
    AttachmentPtr a = find_or_make(spec, device);
    auto guard = co_await a->mutex.lock();
    if (a->session && a->mounted) co_return a->info;
    attachments_[spec.id] = a;
    if (!a->session) a->device = std::move(device);
    auto picked_up = co_await pick_up(*a);
    if (!picked_up) {
        forget_if_idle(a);
        co_return std::unexpected(std::move(picked_up).error());
    }
    co_return a->info;
}

// Takes over what the kernel still has of a dead predecessor. Errors: not_found (nothing that is
// in use; half-made attachments are gone afterwards).
Task<Result<void>> FuseAttachments::pick_up(Attachment& a) {
    if (!a.session) CO_TRY(co_await resume_session(a));
    CO_TRY_ASSIGN(bool in_use, co_await adopt_kernel_state(a));
    if (!in_use) {
        auto down = co_await take_down(a);
        if (down) {
            co_return fail(Code::not_found, "volume {} was not mounted when the daemon ended",
                           a.spec.name);
        }
        if (down.error().code() != Code::busy) co_return std::unexpected(down.error());
        a.info.problem = "not mounted, but its device is open: " + down.error().message();
    }
    LOG_INFO("volume resumed volume={} device={}", a.spec.id, a.info.device);
    co_return Result<void>();
}

Task<Result<void>> FuseAttachments::resume_session(Attachment& a) {
    CO_TRY_ASSIGN(Fd fuse, co_await host_.take_held(a.spec.id));
    if (connection_is_dead(fuse.get())) {
        auto dropped = co_await host_.drop(a.spec.id);
        if (!dropped) LOG_WARN("{}", dropped.error().text());
        co_return fail(Code::not_found, "the kernel has ended the connection of volume {}",
                       a.spec.name);
    }
    a.session =
        std::make_unique<FuseSession>(executor_, a.spec.id, a.device, receive_, fuse.release());
    ++a.session_count;
    auto resent = a.session->resend();
    if (!resent) {
        // Not started, it would answer nothing: the next attempt begins anew.
        a.session.reset();
        co_return std::unexpected(std::move(resent).error());
    }
    a.session->start();
    co_return Result<void>();
}

// Learns loop device and mount from the kernel; false when nobody uses the volume.
Task<Result<bool>> FuseAttachments::adopt_kernel_state(Attachment& a) {
    a.info.device = co_await host_.loop_of(a.paths.file);
    if (a.info.device.empty()) co_return false;
    a.mounted = co_await host_.is_mounted(a.paths.fs);
    if (a.mounted) {
        CO_TRY(co_await finish_mount(a));
        co_return true;
    }
    if (a.spec.blank) co_return false;
    // The mount is gone from our namespace, yet a container's may have kept it.
    CO_TRY_ASSIGN(Release use, co_await host_.exclusive(a.info.device));
    if (use == Release::free) co_return false;
    CO_TRY(co_await mount(a));
    co_return true;
}

Task<void> FuseAttachments::pause_all() {
    pausing_ = true;
    if (holder_watch_) {
        boost::system::error_code ignored;
        holder_watch_->cancel(ignored);
    }
    co_await gate_.close();
    for (auto& [id, a] : attachments_) {
        if (a->session) co_await a->session->stop();
    }
    // Only our descriptors are closed; the holder's keep the connections.
    attachments_.clear();
}

// ---- The holder ----

// Makes sure that a holder runs and has every session.
Task<Result<void>> FuseAttachments::restore_holder() {
    CO_TRY(co_await host_.ensure_holder());
    std::vector<AttachmentPtr> all;
    all.reserve(attachments_.size());
    for (auto& [id, a] : attachments_)
        all.push_back(a);
    for (const AttachmentPtr& a : all) {
        CO_TRY(co_await hold_session(a));
    }
    problem_.clear();
    co_return Result<void>();
}

// Without the attachment's mutex, which the caller may have. The session may go or change while
// the holder answers, and then the holder must not be left with the old one: its descriptor would
// keep a connection open that nobody serves, or another volume's under this one's id.
Task<Result<void>> FuseAttachments::hold_session(AttachmentPtr a) {
    while (a->session && !a->session->is_dead()) {
        uint64_t session = a->session_count;
        CO_TRY(co_await host_.hold(a->spec.id, a->session->fd()));
        if (a->session && a->session_count == session) break;
        if (!a->session) CO_TRY(co_await host_.drop(a->spec.id));
    }
    co_return Result<void>();
}

// While the daemon lives the connections survive the holder's death, so a new one is given all.
Task<void> FuseAttachments::watch_holder() {
    while (!pausing_) {
        auto watch = co_await host_.watch_holder();
        if (watch) {
            holder_watch_ =
                std::make_unique<boost::asio::posix::basic_stream_descriptor<runtime::Executor>>(
                    executor_, watch->release());
            boost::system::error_code error;
            if (!pausing_) {
                co_await holder_watch_->async_wait(
                    boost::asio::posix::descriptor_base::wait_read,
                    boost::asio::redirect_error(runtime::kUseTask, error));
            }
            holder_watch_.reset();
        }
        if (pausing_) co_return;
        LOG_WARN("the holder of FUSE descriptors has ended; starting another");
        auto restored = co_await restore_holder();
        if (!restored) {
            problem_ = restored.error().message();
            LOG_ERROR("{}", restored.error().text());
            co_await clock_.sleep_for(1s);
        }
    }
}

// ---- Growth, trim, sizes ----

Task<Result<std::string>> FuseAttachments::grow(VolumeId id) {
    CO_TRY_ASSIGN(auto pass, gate_.enter());
    CO_TRY_ASSIGN(AttachmentPtr a, find(id));
    auto guard = co_await a->mutex.lock();
    if (!a->session || !a->mounted) {
        co_return std::string("the file system grows when the volume is mounted next");
    }
    CO_TRY(co_await host_.set_capacity(a->info.device, a->paths.file));
    auto grown = co_await host_.grow_mounted(a->spec.fs, a->info.device, a->paths.fs);
    co_await refresh_one(*a);
    a->info.grows_at_mount = !grown && a->spec.fs == fabric::FsType::ext4;
    if (grown) co_return std::string("grown online");
    if (a->info.grows_at_mount && grown.error().code() == Code::permission_denied) {
        co_return fmt::format("the device has grown; ext4 follows at the next mount, because {}",
                              grown.error().message());
    }
    co_return std::unexpected(std::move(grown).error());
}

// In steps, so that a detach does not wait for all of it.
Task<Result<uint64_t>> FuseAttachments::trim(VolumeId id) {
    CO_TRY_ASSIGN(auto pass, gate_.enter());
    CO_TRY_ASSIGN(AttachmentPtr a, find(id));
    uint64_t trimmed = 0;
    for (uint64_t start = 0; start < a->device->size_bytes(); start += kTrimStepBytes) {
        auto guard = co_await a->mutex.lock();
        if (!a->session || !a->mounted || gate_.is_closed()) break;
        CO_TRY_ASSIGN(uint64_t step, co_await host_.trim(a->paths.fs, start, kTrimStepBytes));
        trimmed += step;
    }
    co_return trimmed;
}

Task<void> FuseAttachments::refresh_one(Attachment& a) {
    auto size = co_await host_.fs_size(a.paths.fs);
    a.size_problem = size ? std::string() : size.error().message();
    if (!size) co_return;
    a.info.fs_bytes = size->total_bytes;
    a.info.fs_used_bytes = size->used_bytes;
}

Task<void> FuseAttachments::refresh() {
    auto pass = gate_.enter();
    if (!pass) co_return;
    std::vector<AttachmentPtr> all;
    all.reserve(attachments_.size());
    for (auto& [id, a] : attachments_)
        all.push_back(a);
    for (const AttachmentPtr& a : all) {
        auto guard = co_await a->mutex.lock();
        if (gate_.is_closed()) co_return;
        if (a->session && a->mounted) co_await refresh_one(*a);
    }
}

Result<fabric::AttachInfo> FuseAttachments::info(VolumeId id) const {
    TRY_ASSIGN(AttachmentPtr a, find(id));
    if (!a->session) return fail(Code::not_found, "volume {} is not attached", id);
    fabric::AttachInfo info = a->info;
    if (a->session->is_dead()) {
        info.problem =
            "the kernel has ended the connection: stop the containers that use the "
            "volume and start them again";
    } else if (info.problem.empty()) {
        info.problem = problem_.empty() ? a->size_problem : problem_;
    }
    return info;
}

std::vector<fabric::AttachInfo> FuseAttachments::list() const {
    std::vector<fabric::AttachInfo> all;
    for (const auto& [id, a] : attachments_) {
        if (auto one = info(id)) all.push_back(std::move(*one));
    }
    return all;
}

Result<FuseSession::Counters> FuseAttachments::counters(VolumeId id) const {
    TRY_ASSIGN(AttachmentPtr a, find(id));
    if (!a->session) return fail(Code::not_found, "volume {} is not attached", id);
    return a->session->counters();
}

}  // namespace peplos::attach
