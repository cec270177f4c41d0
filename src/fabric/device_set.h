#pragma once

#include <memory>
#include <string>
#include <vector>

#include "control/records.h"
#include "fabric/node.h"
#include "media/device.h"
#include "replica/journal.h"
#include "runtime/env.h"
#include "volume/leaf_cache.h"
#include "volume/resources.h"

namespace peplos::fabric {

using runtime::Task;

// Opens what a daemon that was just killed may still hold: it is gone from the process table before
// the kernel has given up its files, for the last of its I/O is still on its way. The lock says
// when that is over; waited for up to 15 s. Errors: those of Disks::open, which creates nothing
// here.
Task<Result<std::unique_ptr<runtime::Disk>>> open_disk(runtime::Env env, std::string path);

// The devices of this node, open and in service, and what the volumes on them share.
//
// A device that cannot be opened stays in the list with its problem: its volumes are unavailable,
// the others are served. Lives on the storage core.
class DeviceSet {
  public:
    struct Options {
        uint64_t overlay_bytes = limits::kOverlayBytesDefault;
        uint64_t leaf_cache_bytes = limits::kLeafCacheBytesDefault;
    };

    struct Member {
        control::DeviceRecord record;
        std::unique_ptr<media::Device> device;  // null: see `problem`
        std::unique_ptr<replica::Journal> journal;
        std::unique_ptr<volume::Resources> resources;
        std::string problem;

        // Takes new data and serves old ones.
        bool is_usable() const { return device != nullptr && !device->is_failed(); }
    };

    DeviceSet(runtime::Env env, Options options);

    // Opens the device of a record; a failure becomes the member's problem.
    Task<void> open(control::DeviceRecord record, volume::Background* background);

    struct NewDevice {
        std::string path;
        uint64_t create_bytes = 0;  // 0: it exists
        control::MediaClass media_class = control::MediaClass::ssd;
        uint64_t ring_bytes = 0;  // 0: chosen by the device's size
        NodeId node;
    };
    // Formats a file or block device that holds nothing yet and gives its record; open() is the
    // caller's next step, once the record is stored. Errors: already_exists (in use here, or not
    // empty), and those of Disks::open and media::format_device.
    Task<Result<control::DeviceRecord>> make(NewDevice wish);

    // Where a new volume's journal goes: the usable device with the most free segment space.
    // Errors: unavailable (no usable device: says what to do).
    Result<Member*> choose_home();
    // Errors: unavailable (the device is missing or failed: says which and what to do).
    Result<Member*> find(const DeviceId& id);
    const std::vector<std::unique_ptr<Member>>& members() const { return members_; }

    volume::SpaceBudget& space() { return space_; }
    volume::OverlayBudget& overlay() { return overlay_; }
    volume::LeafCache& leaf_cache() { return leaf_cache_; }

    DeviceInfo info(const Member& member) const;

    // Stops journals, closes devices. No volume may be open any more.
    Task<void> close();

  private:
    Task<Result<void>> open_member(Member& member, volume::Background* background);

    runtime::Env env_;
    volume::LeafCache leaf_cache_;
    volume::OverlayBudget overlay_;
    volume::SpaceBudget space_;
    std::vector<std::unique_ptr<Member>> members_;
};

}  // namespace peplos::fabric
