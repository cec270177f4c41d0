#pragma once

#include <cstdint>
#include <map>
#include <string>

#include "base/ids.h"
#include "base/result.h"

namespace peplos::control {

// Who has a volume mounted on a node, by Docker's caller ids, so that a restarted daemon counts on
// where the old one stopped. Key: mount/<node>/<volume>.
struct MountRecord {
    // Holder to its number of mounts (docker cp mounts with the container's own id), each >= 1.
    std::map<std::string, uint32_t> holders;
    // When the first of these came, seconds since 1970 UTC; 0: not known.
    int64_t since_s = 0;

    bool operator==(const MountRecord&) const = default;
};

std::string mount_prefix(NodeId node);
std::string mount_key(NodeId node, VolumeId volume);
// The volume of a key below mount_prefix(); an empty id when the key is not one of ours.
VolumeId volume_of_mount_key(const std::string& key);

std::string encode_mount(const MountRecord& record);
// Errors: corrupt, unsupported (written by a newer Peplos). Never throws.
Result<MountRecord> decode_mount(const std::string& value);

}  // namespace peplos::control
