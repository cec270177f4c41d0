// What an earlier daemon left in the kernel, and what the kernel offers at all.
#include <cstdio>
#include <set>
#include <sys/utsname.h>
#include <unistd.h>

#include "attach/fuse_attachments.h"
#include "attach/host_state.h"
#include "base/log.h"

namespace peplos::attach {

using runtime::Task;

std::vector<Way> probe() {
    Way fuse{"fuse", false, ""};
    utsname host{};
    int major = 0;
    int minor = 0;
    ::uname(&host);
    std::string file_systems = read_small_file("/proc/filesystems");
    if (std::sscanf(host.release, "%d.%d", &major, &minor) != 2) {
        fuse.why = fmt::format("the kernel's version '{}' is not understood", host.release);
    } else if (major < 6 || (major == 6 && minor < 9)) {
        fuse.why = fmt::format(
            "this host runs Linux {}, and I/O survives a restart of the daemon only from 6.9 on: "
            "install a newer kernel (on Debian 12: linux-image-amd64 from bookworm-backports)",
            host.release);
    } else if (file_systems.find("\tfuse\n") == std::string::npos) {
        fuse.why = "the kernel module fuse is not loaded: run 'modprobe fuse'";
    } else if (::access("/sys/block/loop0", F_OK) != 0 &&
               ::access("/dev/loop-control", F_OK) != 0) {
        fuse.why = "the kernel module loop is not loaded: run 'modprobe loop'";
    } else {
        fuse.usable = true;
        fuse.why = fmt::format("Linux {} has FUSE with resend, and loop devices", host.release);
    }
    return {fuse,
            {"ublk", false, "not built into this version of Peplos"},
            {"iscsi", false, "not built into this version of Peplos"}};
}

namespace {

// The volume id in a path below `mounts`, 0 when it is not one of ours.
VolumeId id_in(const std::string& path, const std::string& mounts) {
    if (!path.starts_with(mounts + "/") || path.size() < mounts.size() + 17) return {};
    return VolumeId(parse_hex_id(std::string_view(path).substr(mounts.size() + 1, 16)));
}

}  // namespace

Task<std::vector<FuseAttachments::Stale>> FuseAttachments::find_stale() {
    std::function<std::vector<Stale>()> work = [mounts = host_.mounts_directory()] {
        std::vector<Stale> found;
        for (const MountEntry& mount : current_mounts()) {
            VolumeId id = id_in(mount.directory, mounts);
            if (!id) continue;
            found.push_back({text_of(id), mount.directory, "",
                             fmt::format("{} ({}) is mounted, but nobody serves its volume",
                                         mount.directory, mount.type)});
        }
        for (const LoopEntry& loop : current_loops()) {
            VolumeId id = id_in(loop.file, mounts);
            if (!id) continue;
            found.push_back({text_of(id), "", loop.device,
                             fmt::format("{} is bound to {}, but nobody serves that volume",
                                         loop.device, loop.file)});
        }
        return found;
    };
    co_return co_await host_.workers().run<std::vector<Stale>>(std::move(work));
}

Task<std::vector<FuseAttachments::Stale>> FuseAttachments::stale() {
    auto pass = gate_.enter();
    if (!pass) co_return std::vector<Stale>();
    std::vector<Stale> found = co_await find_stale();
    std::erase_if(found, [this](const Stale& one) {
        auto at = attachments_.find(VolumeId(parse_hex_id(one.volume)));
        return at != attachments_.end();
    });
    co_return found;
}

Task<std::vector<FuseAttachments::Stale>> FuseAttachments::mend() {
    std::vector<Stale> found = co_await stale();
    auto pass = gate_.enter();
    if (!pass) co_return std::vector<Stale>();
    std::set<VolumeId> ids;
    for (const Stale& one : found)
        ids.insert(VolumeId(parse_hex_id(one.volume)));
    for (VolumeId id : ids) {
        // The descriptor first: with the connection ended nothing below can wait for I/O any more.
        auto dropped = co_await host_.drop(id);
        if (!dropped) LOG_WARN("{}", dropped.error().text());
        co_await remove_leftovers(host_.paths_of(id));
        co_await host_.remove_directories(host_.paths_of(id));
    }
    co_return found;
}

}  // namespace peplos::attach
