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

Task<std::vector<fabric::Leftover>> FuseAttachments::find_leftovers() {
    using Found = std::vector<fabric::Leftover>;
    std::function<Found()> work = [mounts = host_.mounts_directory()] {
        Found found;
        for (const MountEntry& mount : current_mounts()) {
            VolumeId id = id_in(mount.directory, mounts);
            if (!id) continue;
            fabric::Leftover one;
            one.id = id;
            one.mount = mount.directory;
            one.what = fmt::format("{} ({}) is mounted, but nobody serves its volume",
                                   mount.directory, mount.type);
            found.push_back(std::move(one));
        }
        for (const LoopEntry& loop : current_loops()) {
            VolumeId id = id_in(loop.file, mounts);
            if (!id) continue;
            fabric::Leftover one;
            one.id = id;
            one.device = loop.device;
            one.what = fmt::format("{} is bound to {}, but nobody serves that volume", loop.device,
                                   loop.file);
            found.push_back(std::move(one));
        }
        return found;
    };
    co_return co_await host_.workers().run<Found>(std::move(work));
}

Task<std::vector<fabric::Leftover>> FuseAttachments::leftovers() {
    auto pass = gate_.enter();
    if (!pass) co_return std::vector<fabric::Leftover>();
    // A volume that is on its way up or down while the kernel is asked is none of them.
    std::set<VolumeId> served;
    for (const auto& [id, attachment] : attachments_)
        served.insert(id);
    std::vector<fabric::Leftover> found = co_await find_leftovers();
    std::erase_if(found, [this, &served](const fabric::Leftover& one) {
        return served.contains(one.id) || attachments_.contains(one.id);
    });
    co_return found;
}

Task<Result<void>> FuseAttachments::mend_leftovers(VolumeId id) {
    CO_TRY_ASSIGN(auto pass, gate_.enter());
    if (attachments_.contains(id)) {
        co_return fail(Code::busy, "volume {} is attached and served; nothing of it is left over",
                       id);
    }
    // The descriptor first: with the connection ended nothing below can wait for I/O any more.
    CO_TRY(co_await host_.drop(id));
    co_await remove_leftovers(host_.paths_of(id));
    co_await host_.remove_directories(host_.paths_of(id));
    LOG_WARN("leftovers taken away; who used them gets I/O errors volume={}", id);
    co_return Result<void>();
}

}  // namespace peplos::attach
