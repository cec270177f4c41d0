#include "control/records.h"

#include <nlohmann/json.hpp>

#include "base/check.h"
#include "base/limits.h"
#include "base/units.h"
#include "control/record_text.h"

namespace peplos::control {
namespace {

using nlohmann::json;
using GenerationField = StrongId<struct GenerationFieldTag>;

constexpr EnumName<MediaClass> kMediaClassNames[] = {
    {MediaClass::nvme, "nvme"}, {MediaClass::ssd, "ssd"}, {MediaClass::hdd, "hdd"}};
constexpr EnumName<DeviceState> kDeviceStateNames[] = {{DeviceState::active, "active"},
                                                       {DeviceState::draining, "draining"},
                                                       {DeviceState::failed, "failed"}};
constexpr EnumName<NodeState> kNodeStateNames[] = {{NodeState::active, "active"},
                                                   {NodeState::cordoned, "cordoned"},
                                                   {NodeState::evacuating, "evacuating"},
                                                   {NodeState::removed, "removed"},
                                                   {NodeState::lost, "lost"}};
constexpr EnumName<FormatState> kFormatStateNames[] = {{FormatState::blank, "blank"},
                                                       {FormatState::formatting, "formatting"},
                                                       {FormatState::formatted, "formatted"}};
constexpr EnumName<OwnershipState> kOwnershipStateNames[] = {
    {OwnershipState::open, "open"}, {OwnershipState::recovering, "recovering"}};
constexpr EnumName<Lifecycle> kLifecycleNames[] = {{Lifecycle::live, "live"},
                                                   {Lifecycle::deleting, "deleting"}};
constexpr EnumName<Compression> kCompressionNames[] = {{Compression::off, "off"}};

Result<void> check_word(std::string_view what, std::string_view word) {
    bool fits = !word.empty() && word.size() <= 16;
    for (char letter : word) {
        fits = fits && ((letter >= 'a' && letter <= 'z') || (letter >= '0' && letter <= '9'));
    }
    if (!fits) return wrong("{} has 1 to 16 letters a-z or digits", what);
    return {};
}

Result<void> check_path(std::string_view path) {
    TRY(check_text("a device's path", path, limits::kPathBytesMax));
    if (!path.starts_with('/')) return wrong("a device's path '{}' does not begin with '/'", path);
    return {};
}

// A failure domain's name; none is allowed.
Result<void> check_domain(std::string_view what, std::string_view name) {
    if (name.empty()) return {};
    if (name.size() <= limits::kDomainNameBytesMax && check_volume_name(name)) return {};
    return wrong(
        "{} has at most {} letters, digits, '_', '.', '-', and begins with one of the "
        "first two",
        what, limits::kDomainNameBytesMax);
}

Result<void> check_labels(const std::map<std::string, std::string>& labels) {
    if (labels.size() > limits::kVolumeLabelsMax) {
        return wrong("a volume has at most {} labels, not {}", limits::kVolumeLabelsMax,
                     labels.size());
    }
    size_t bytes = 0;
    for (const auto& [name, value] : labels) {
        if (name.empty()) return wrong("a label has no name");
        bytes += name.size() + value.size();
    }
    if (bytes > limits::kVolumeLabelBytesMax) {
        return wrong("a volume's labels have at most {} bytes together, not {}",
                     limits::kVolumeLabelBytesMax, bytes);
    }
    return {};
}

Result<void> check_ensemble(const VolumeRecord& record) {
    if (record.ensemble.size() > limits::kEnsembleMembersMax) {
        return wrong("an ensemble has at most {} members, not {}", limits::kEnsembleMembersMax,
                     record.ensemble.size());
    }
    for (const EnsembleMember& member : record.ensemble) {
        TRY(check_id("an ensemble member's node", member.node.value));
        TRY(check_id("an ensemble member's device", member.incarnation.value));
        TRY(check_id("an ensemble member's token", member.token.value));
        if (member.device == DeviceId{}) return wrong("an ensemble member has no device");
        int same = 0;
        for (const EnsembleMember& other : record.ensemble)
            same += other.node == member.node;
        if (same != 1) return wrong("an ensemble names the node {} twice", member.node);
    }
    bool owned = static_cast<bool>(record.owner);
    if (owned != static_cast<bool>(record.epoch)) {
        return wrong("a volume has an owner and an epoch, or neither");
    }
    if (!owned && !record.ensemble.empty()) return wrong("a volume without owner has an ensemble");
    if (!owned && record.claim_token) return wrong("a volume without owner has a claim's token");
    return {};
}

Result<void> check_file_system(const VolumeRecord& record) {
    TRY(check_word("a volume's file system", record.fs));
    TRY(check_text("mkfs-options", record.mkfs_options, limits::kMkfsOptionsBytesMax));
    if (record.mode && *record.mode > 07777) {
        return wrong("mode {:o} is not 0 to 7777 (octal)", *record.mode);
    }
    return {};
}

template <typename Number>
json or_null(const std::optional<Number>& number) {
    return number ? json(*number) : json(nullptr);
}

json print_ensemble(const VolumeRecord& record) {
    json members = json::array();
    for (const EnsembleMember& member : record.ensemble) {
        members.push_back({{"node", text_of(member.node)},
                           {"device", text_of(member.device)},
                           {"incarnation", text_of(member.incarnation)},
                           {"token", text_of(member.token)}});
    }
    return members;
}

void read_ensemble(JsonFields& fields, VolumeRecord& record) {
    for (const json& element : fields.objects("ensemble", limits::kEnsembleMembersMax)) {
        JsonFields member(element, "an ensemble member");
        EnsembleMember& read = record.ensemble.emplace_back();
        read.node = member.id<NodeId>("node");
        read.device = member.device_id("device");
        read.incarnation = member.id<Incarnation>("incarnation");
        read.token = member.id<OpenToken>("token");
        Result<void> finished = member.finish();
        if (!finished) fields.refuse("ensemble", finished.error().message());
    }
}

void read_volume(JsonFields& fields, VolumeRecord& record, uint32_t version) {
    record.id = fields.id<VolumeId>("id");
    record.name = fields.text("name");
    record.lineage = fields.id<LineageId>("lineage");
    record.size_bytes = fields.number("size_bytes", limits::kVolumeBytesMax);
    record.copies = static_cast<uint32_t>(fields.number("copies", UINT32_MAX));
    record.sector_bytes = static_cast<uint32_t>(fields.number("sector_bytes", UINT32_MAX));
    record.shard_count = static_cast<uint32_t>(fields.number("shard_count", UINT32_MAX));
    record.compression = fields.choice("compression", kCompressionNames);
    record.labels = fields.text_map("labels", limits::kVolumeLabelsMax);
    record.created_at_s = fields.time_s("created_at_s");
    record.format_state = fields.choice("format_state", kFormatStateNames);
    record.fs = fields.text("fs");
    record.mkfs_options = fields.text("mkfs_options");
    record.uid = fields.optional_number("uid", UINT32_MAX);
    record.gid = fields.optional_number("gid", UINT32_MAX);
    record.mode = fields.optional_number("mode", UINT32_MAX);
    record.owner = fields.id<NodeId>("owner");
    record.epoch = Epoch(fields.number("epoch", INT64_MAX));
    record.state = fields.choice("state", kOwnershipStateNames);
    read_ensemble(fields, record);
    record.version = fields.number("version", INT64_MAX);
    record.lifecycle = fields.choice("lifecycle", kLifecycleNames);
    if (version < 2) return;
    record.claim_token = fields.id<OpenToken>("claim_token");
    record.generation = fields.id<GenerationField>("generation").value;
    record.degrade_after_s = fields.optional_number("degrade_after_s", UINT32_MAX);
}

}  // namespace

std::string_view name_of(MediaClass value) {
    return find_name(kMediaClassNames, value);
}
std::string_view name_of(DeviceState value) {
    return find_name(kDeviceStateNames, value);
}
std::string_view name_of(NodeState value) {
    return find_name(kNodeStateNames, value);
}
std::string_view name_of(FormatState value) {
    return find_name(kFormatStateNames, value);
}
std::string_view name_of(OwnershipState value) {
    return find_name(kOwnershipStateNames, value);
}
std::string_view name_of(Lifecycle value) {
    return find_name(kLifecycleNames, value);
}
std::string_view name_of(Compression value) {
    return find_name(kCompressionNames, value);
}

std::string node_key(NodeId id) {
    return std::string(kNodePrefix) + text_of(id);
}
std::string device_key(const DeviceId& id) {
    return std::string(kDevicePrefix) + text_of(id);
}
std::string volume_key(VolumeId id) {
    return std::string(kVolumePrefix) + text_of(id);
}
std::string volume_name_key(std::string_view name) {
    return std::string(kVolumeNamePrefix).append(name);
}

Result<void> check_volume_name(std::string_view name) {
    if (name.empty()) return wrong("a name is missing: give one of letters, digits, '_', '.', '-'");
    if (name.size() > limits::kVolumeNameBytesMax) {
        return wrong("a name has at most {} characters, this one has {}",
                     limits::kVolumeNameBytesMax, name.size());
    }
    for (size_t i = 0; i < name.size(); ++i) {
        char letter = name[i];
        bool alphanumeric = (letter >= 'a' && letter <= 'z') || (letter >= 'A' && letter <= 'Z') ||
                            (letter >= '0' && letter <= '9');
        bool mark = letter == '_' || letter == '.' || letter == '-';
        if (alphanumeric || (mark && i > 0)) continue;
        auto byte = static_cast<unsigned char>(letter);
        std::string shown = byte > 0x20 && byte < 0x7f ? fmt::format("'{}'", letter)
                                                       : fmt::format("byte 0x{:02x}", byte);
        return wrong(
            "a name may not have {} at position {}: it begins with a letter or digit, then "
            "come letters, digits, '_', '.', '-'",
            shown, i);
    }
    return {};
}

Result<void> check_record(const ClusterRecord& record) {
    TRY(check_id("a cluster", record.id.value));
    if (record.format_version == 0) return wrong("a cluster's format version is 0");
    if (record.created_at_s < 0) return wrong("a cluster was created before 1970");
    return {};
}

Result<void> check_record(const NodeRecord& record) {
    TRY(check_id("a node", record.id.value));
    TRY(check_volume_name(record.name));
    if (record.addresses.size() > limits::kNodeAddressesMax) {
        return wrong("a node has at most {} addresses, not {}", limits::kNodeAddressesMax,
                     record.addresses.size());
    }
    for (const std::string& address : record.addresses) {
        TRY(check_text("a node's address", address, 256));
        if (address.empty()) return wrong("a node's address is empty");
    }
    TRY(check_domain("a node's zone", record.zone));
    TRY(check_domain("a node's rack", record.rack));
    if (!record.fingerprint.empty()) {
        TRY(check_sha256("a node's certificate fingerprint", record.fingerprint));
    }
    if (record.protocol_min == 0 || record.protocol_min > record.protocol_max) {
        return wrong("a node speaks no protocol version from {} to {}", record.protocol_min,
                     record.protocol_max);
    }
    return check_time("a node's creation", record.created_at_s);
}

Result<void> check_record(const DeviceRecord& record) {
    if (record.id == DeviceId{}) return wrong("a device has no id");
    TRY(check_id("a device's node", record.node.value));
    TRY(check_path(record.path));
    TRY(check_id("a device's incarnation", record.incarnation.value));
    if (record.bytes == 0 || record.bytes > INT64_MAX) {
        return wrong("a device has {} bytes", record.bytes);
    }
    return {};
}

Result<void> check_record(const VolumeRecord& record) {
    TRY(check_id("a volume", record.id.value));
    TRY(check_id("a volume's lineage", record.lineage.value));
    TRY(check_volume_name(record.name));
    bool size_fits = record.size_bytes >= limits::kVolumeBytesMin &&
                     record.size_bytes <= limits::kVolumeBytesMax &&
                     record.size_bytes % kBlockBytes == 0;
    if (!size_fits) {
        return wrong("a volume has {} to {} bytes, a multiple of {}, not {}",
                     limits::kVolumeBytesMin, limits::kVolumeBytesMax, kBlockBytes,
                     record.size_bytes);
    }
    if (record.copies < 1 || record.copies > limits::kEnsembleMembersMax) {
        return wrong("a volume has 1 to {} copies, not {}", limits::kEnsembleMembersMax,
                     record.copies);
    }
    if (record.sector_bytes != 512 && record.sector_bytes != 4096) {
        return wrong("a volume's sector has 512 or 4096 bytes, not {}", record.sector_bytes);
    }
    if (record.shard_count != 1) return wrong("a volume has 1 shard, not {}", record.shard_count);
    if (record.created_at_s < 0) return wrong("a volume was created before 1970");
    if (record.epoch.value > INT64_MAX || record.version > INT64_MAX) {
        return wrong("a volume's epoch or version is out of range");
    }
    TRY(check_labels(record.labels));
    TRY(check_file_system(record));
    return check_ensemble(record);
}

Result<void> check_record(const VolumeNameRecord& record) {
    return check_id("a volume's name", record.id.value);
}

Result<std::string> encode(const ClusterRecord& record) {
    TRY(check_record(record));
    json out;
    out["id"] = text_of(record.id);
    out["created_at_s"] = record.created_at_s;
    out["format_version"] = record.format_version;
    return print_record(std::move(out), kRecordVersion, "the cluster's record");
}

Result<std::string> encode(const NodeRecord& record) {
    TRY(check_record(record));
    json out;
    out["id"] = text_of(record.id);
    out["name"] = record.name;
    out["addresses"] = record.addresses;
    out["zone"] = record.zone;
    out["rack"] = record.rack;
    out["state"] = name_of(record.state);
    out["fingerprint"] = record.fingerprint;
    out["protocol_min"] = record.protocol_min;
    out["protocol_max"] = record.protocol_max;
    out["created_at_s"] = record.created_at_s;
    return print_record(std::move(out), kNodeRecordVersion, "a node's record");
}

Result<std::string> encode(const DeviceRecord& record) {
    TRY(check_record(record));
    json out;
    out["id"] = text_of(record.id);
    out["node"] = text_of(record.node);
    out["path"] = record.path;
    out["class"] = name_of(record.media_class);
    out["bytes"] = record.bytes;
    out["incarnation"] = text_of(record.incarnation);
    out["state"] = name_of(record.state);
    return print_record(std::move(out), kRecordVersion, "a device's record");
}

Result<std::string> encode(const VolumeRecord& record) {
    TRY(check_record(record));
    json out;
    out["id"] = text_of(record.id);
    out["name"] = record.name;
    out["lineage"] = text_of(record.lineage);
    out["size_bytes"] = record.size_bytes;
    out["copies"] = record.copies;
    out["sector_bytes"] = record.sector_bytes;
    out["shard_count"] = record.shard_count;
    out["compression"] = name_of(record.compression);
    out["labels"] = json(json::object());
    for (const auto& [name, value] : record.labels)
        out["labels"][name] = value;
    out["created_at_s"] = record.created_at_s;
    out["format_state"] = name_of(record.format_state);
    out["fs"] = record.fs;
    out["mkfs_options"] = record.mkfs_options;
    out["uid"] = or_null(record.uid);
    out["gid"] = or_null(record.gid);
    out["mode"] = or_null(record.mode);
    out["owner"] = text_of(record.owner);
    out["epoch"] = record.epoch.value;
    out["state"] = name_of(record.state);
    out["ensemble"] = print_ensemble(record);
    out["version"] = record.version;
    out["claim_token"] = text_of(record.claim_token);
    out["generation"] = fmt::format("{:016x}", record.generation);
    out["degrade_after_s"] = or_null(record.degrade_after_s);
    out["lifecycle"] = name_of(record.lifecycle);
    return print_record(std::move(out), kVolumeRecordVersion, "a volume's record");
}

Result<std::string> encode(const VolumeNameRecord& record) {
    TRY(check_record(record));
    json out;
    out["id"] = text_of(record.id);
    return print_record(std::move(out), kRecordVersion, "a volume name's record");
}

template <>
Result<ClusterRecord> decode<ClusterRecord>(std::string_view value) {
    auto read = [](JsonFields& fields, ClusterRecord& record, uint32_t) {
        record.id = fields.id<ClusterId>("id");
        record.created_at_s = fields.time_s("created_at_s");
        record.format_version = static_cast<uint32_t>(fields.number("format_version", UINT32_MAX));
    };
    return read_record<ClusterRecord>(value, kRecordVersion, "the cluster's record", read);
}

template <>
Result<NodeRecord> decode<NodeRecord>(std::string_view value) {
    auto read = [](JsonFields& fields, NodeRecord& record, uint32_t version) {
        record.id = fields.id<NodeId>("id");
        record.name = fields.text("name");
        record.addresses = fields.texts("addresses", limits::kNodeAddressesMax);
        record.created_at_s = fields.time_s("created_at_s");
        if (version < 2) return;
        record.zone = fields.text("zone");
        record.rack = fields.text("rack");
        record.state = fields.choice("state", kNodeStateNames);
        record.fingerprint = fields.text("fingerprint");
        record.protocol_min = static_cast<uint32_t>(fields.number("protocol_min", UINT32_MAX));
        record.protocol_max = static_cast<uint32_t>(fields.number("protocol_max", UINT32_MAX));
    };
    return read_record<NodeRecord>(value, kNodeRecordVersion, "a node's record", read);
}

template <>
Result<DeviceRecord> decode<DeviceRecord>(std::string_view value) {
    auto read = [](JsonFields& fields, DeviceRecord& record, uint32_t) {
        record.id = fields.device_id("id");
        record.node = fields.id<NodeId>("node");
        record.path = fields.text("path");
        record.media_class = fields.choice("class", kMediaClassNames);
        record.bytes = fields.number("bytes", INT64_MAX);
        record.incarnation = fields.id<Incarnation>("incarnation");
        record.state = fields.choice("state", kDeviceStateNames);
    };
    return read_record<DeviceRecord>(value, kRecordVersion, "a device's record", read);
}

template <>
Result<VolumeRecord> decode<VolumeRecord>(std::string_view value) {
    return read_record<VolumeRecord>(value, kVolumeRecordVersion, "a volume's record", read_volume);
}

template <>
Result<VolumeNameRecord> decode<VolumeNameRecord>(std::string_view value) {
    auto read = [](JsonFields& fields, VolumeNameRecord& record, uint32_t) {
        record.id = fields.id<VolumeId>("id");
    };
    return read_record<VolumeNameRecord>(value, kRecordVersion, "a volume name's record", read);
}

Result<Transaction> volume_creation(const VolumeRecord& record) {
    TRY_ASSIGN(std::string volume, encode(record));
    TRY_ASSIGN(std::string name, encode(VolumeNameRecord{record.id}));
    return Transaction{create(volume_key(record.id), std::move(volume)),
                       create(volume_name_key(record.name), std::move(name))};
}

Result<Transaction> volume_update(const VolumeRecord& record, Revision expected) {
    TRY_ASSIGN(std::string volume, encode(record));
    return Transaction{put(volume_key(record.id), expected, std::move(volume))};
}

Result<Transaction> volume_deletion(VolumeRecord record, Revision expected) {
    if (record.lifecycle == Lifecycle::deleting) {
        return fail(Code::conflict, "the volume '{}' is being deleted already", record.name);
    }
    record.lifecycle = Lifecycle::deleting;
    TRY_ASSIGN(std::string volume, encode(record));
    // The name is the volume's own for as long as its record says live: nothing else to compare.
    return Transaction{put(volume_key(record.id), expected, std::move(volume)),
                       remove(volume_name_key(record.name), std::nullopt)};
}

Transaction volume_forgetting(VolumeId id, Revision expected) {
    return Transaction{remove(volume_key(id), expected)};
}

}  // namespace peplos::control
