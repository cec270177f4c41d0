#include "control/mount_record.h"

#include <nlohmann/json.hpp>

#include "base/limits.h"

namespace peplos::control {
namespace {

constexpr uint32_t kMountVersion = 2;
constexpr uint32_t kVersionWithoutTime = 1;
constexpr size_t kHolderBytesMax = 256;
constexpr size_t kHoldersMax = 4096;

}  // namespace

std::string mount_prefix(NodeId node) {
    return fmt::format("mount/{}/", node);
}

std::string mount_key(NodeId node, VolumeId volume) {
    return fmt::format("mount/{}/{}", node, volume);
}

VolumeId volume_of_mount_key(const std::string& key) {
    size_t slash = key.rfind('/');
    if (slash == std::string::npos) return {};
    return VolumeId(parse_hex_id(std::string_view(key).substr(slash + 1)));
}

std::string encode_mount(const MountRecord& record) {
    nlohmann::json holders = nlohmann::json::object();
    for (const auto& [holder, count] : record.holders)
        holders[holder] = count;
    nlohmann::json root = {{"record_version", kMountVersion},
                           {"since_s", record.since_s},
                           {"holders", std::move(holders)}};
    return root.dump(-1, ' ', false, nlohmann::json::error_handler_t::replace);
}

Result<MountRecord> decode_mount(const std::string& value) {
    nlohmann::json root = nlohmann::json::parse(value, nullptr, false);
    if (!root.is_object() || !root.contains("record_version") ||
        !root["record_version"].is_number_unsigned()) {
        return fail(Code::corrupt, "a mount record is not a JSON object with record_version");
    }
    const uint64_t version = root["record_version"].get<uint64_t>();
    if (version != kMountVersion && version != kVersionWithoutTime) {
        return fail(Code::unsupported, "a mount record was written by a newer Peplos");
    }
    if (!root.contains("holders") || !root["holders"].is_object() ||
        root["holders"].size() > kHoldersMax) {
        return fail(Code::corrupt, "a mount record has no usable holders");
    }
    MountRecord record;
    if (version == kMountVersion) {
        if (!root.contains("since_s") || !root["since_s"].is_number_integer())
            return fail(Code::corrupt, "a mount record does not say since when");
        record.since_s = root["since_s"].get<int64_t>();
    }
    for (const auto& [holder, count] : root["holders"].items()) {
        if (holder.size() > kHolderBytesMax || !count.is_number_unsigned() ||
            count.get<uint64_t>() == 0 || count.get<uint64_t>() > UINT32_MAX) {
            return fail(Code::corrupt, "a mount record has a holder with a wrong count");
        }
        record.holders[holder] = count.get<uint32_t>();
    }
    return record;
}

}  // namespace peplos::control
