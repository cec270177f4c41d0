#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "base/ids.h"
#include "base/result.h"
#include "control/store.h"

// What the control store holds, as types. Each record is one JSON object with "record_version";
// ids are hexadecimal strings, sizes are bytes, times are seconds since 1970 UTC. Decoding is
// strict: an unknown version (`unsupported`), a missing, unknown, repeated, mistyped or
// out-of-bounds field (`corrupt`) is refused, so that nobody rewrites a record whose fields they
// did not understand. No record ever holds a secret.
//
// Keys
//   cluster               ClusterRecord
//   node/<id>             NodeRecord
//   device/<id>           DeviceRecord
//   volume/<id>           VolumeRecord
//   volume-loss/<id>      LossRecord (loss_record.h)
//   group/<id>, join-token/<id>, maintainer   see cluster_records.h
//   volume-name/<name>    VolumeNameRecord: makes names unique; written with the volume's record in
//                         one transaction, never alone
namespace peplos::control {

inline constexpr uint32_t kRecordVersion = 1;
// Version 1 is still read: of a cluster that had one node.
inline constexpr uint32_t kNodeRecordVersion = 2;
inline constexpr uint32_t kVolumeRecordVersion = 2;
inline constexpr uint32_t kClusterFormatVersion = 1;

struct ClusterRecord {
    ClusterId id;
    int64_t created_at_s = 0;
    // Of everything the cluster writes; raised only when every node can read the new one.
    uint32_t format_version = kClusterFormatVersion;

    bool operator==(const ClusterRecord&) const = default;
};

// What people decided about a node; whether it answers is nobody's to record. fabric/node_verbs.h
// says which state follows which.
enum class NodeState : uint8_t {
    active,      // takes new data
    cordoned,    // takes nothing new, keeps what it has
    evacuating,  // is being emptied
    removed,     // is empty and gone: its id never comes back
    lost,        // is gone with what it held
};

struct NodeRecord {
    NodeId id;
    std::string name;                    // as a volume's name
    std::vector<std::string> addresses;  // where its peers reach it: "host:port", at most
                                         // limits::kNodeAddressesMax
    int64_t created_at_s = 0;
    // Failure domains, as `--zone` and `--rack` named them; a rack lies in its zone.
    std::string zone = {};
    std::string rack = {};
    NodeState state = NodeState::active;
    // SHA-256 of its certificate, 64 hexadecimal digits; empty where peers do not use TLS.
    std::string fingerprint = {};
    // Versions of the peers' protocol that it speaks.
    uint32_t protocol_min = 1;
    uint32_t protocol_max = 1;

    bool operator==(const NodeRecord&) const = default;
};

enum class MediaClass : uint8_t { nvme, ssd, hdd };
enum class DeviceState : uint8_t {
    active,    // takes new data
    draining,  // is being emptied
    failed,    // gave an I/O error: never used again under this incarnation
};

struct DeviceRecord {
    DeviceId id;
    NodeId node;
    std::string path;  // absolute
    MediaClass media_class = MediaClass::ssd;
    uint64_t bytes = 0;
    Incarnation incarnation;
    DeviceState state = DeviceState::active;

    bool operator==(const DeviceRecord&) const = default;
};

// Whether a file system was made on the volume. mkfs runs only on `blank`, or again on
// `formatting` (it was cut short); a `formatted` volume is never formatted again.
enum class FormatState : uint8_t { blank, formatting, formatted };
enum class OwnershipState : uint8_t { open, recovering };
// A volume that is being deleted keeps its record (so that a restart goes on deleting) but has
// given its name back: `volume-name/<name>` is gone, or is another volume's.
enum class Lifecycle : uint8_t { live, deleting };
enum class Compression : uint8_t { off };

struct EnsembleMember {
    NodeId node;
    DeviceId device;
    Incarnation incarnation;
    OpenToken token;

    bool operator==(const EnsembleMember&) const = default;
};

struct VolumeRecord {
    // What the user asked for.
    VolumeId id;
    std::string name;
    LineageId lineage;
    uint64_t size_bytes = 0;  // multiple of kBlockBytes
    uint32_t copies = 1;      // 1 .. 3
    uint32_t sector_bytes = 512;
    uint32_t shard_count = 1;  // only 1 yet
    Compression compression = Compression::off;
    std::map<std::string, std::string> labels;
    int64_t created_at_s = 0;

    // The file system in it.
    FormatState format_state = FormatState::blank;
    std::string fs = "ext4";   // [a-z0-9], 1 .. 16; which ones exist is attach's to say
    std::string mkfs_options;  // handed to mkfs word by word, never to a shell
    // Of the root directory; nullopt leaves what mkfs made.
    std::optional<uint32_t> uid;
    std::optional<uint32_t> gid;
    std::optional<uint32_t> mode;  // 0 .. 07777

    // Who serves it (DESIGN section 5). No owner and no ensemble until the first claim.
    NodeId owner;
    Epoch epoch;
    OwnershipState state = OwnershipState::open;
    std::vector<EnsembleMember> ensemble;
    uint64_t version = 0;  // raised by every change of ownership or ensemble
    // Of the owner's claim, and the control store's generation when the ensemble was recorded
    // (replica/protocol.h: Claim, Ownership). 0: recorded before there were any.
    OpenToken claim_token;
    uint64_t generation = 0;
    // A journal that lacks a member, and finds no other one, goes on without after so long;
    // nullopt: only when a person says so.
    std::optional<uint32_t> degrade_after_s;
    Lifecycle lifecycle = Lifecycle::live;

    bool operator==(const VolumeRecord&) const = default;
};

struct VolumeNameRecord {
    VolumeId id;

    bool operator==(const VolumeNameRecord&) const = default;
};

inline constexpr std::string_view kClusterKey = "cluster";
inline constexpr std::string_view kNodePrefix = "node/";
inline constexpr std::string_view kDevicePrefix = "device/";
inline constexpr std::string_view kVolumePrefix = "volume/";
inline constexpr std::string_view kVolumeNamePrefix = "volume-name/";

std::string node_key(NodeId id);
std::string device_key(const DeviceId& id);
std::string volume_key(VolumeId id);
std::string volume_name_key(std::string_view name);

// Docker's own rule: [a-zA-Z0-9][a-zA-Z0-9_.-]*, at most limits::kVolumeNameBytesMax bytes.
// Errors: invalid_argument; the message names the first wrong character.
Result<void> check_volume_name(std::string_view name);

// The same bounds that decoding enforces. Errors: invalid_argument (which field, what is allowed).
Result<void> check_record(const ClusterRecord& record);
Result<void> check_record(const NodeRecord& record);
Result<void> check_record(const DeviceRecord& record);
Result<void> check_record(const VolumeRecord& record);
Result<void> check_record(const VolumeNameRecord& record);

// The value to store. Errors: invalid_argument as check_record(), or text that is not UTF-8.
Result<std::string> encode(const ClusterRecord& record);
Result<std::string> encode(const NodeRecord& record);
Result<std::string> encode(const DeviceRecord& record);
Result<std::string> encode(const VolumeRecord& record);
Result<std::string> encode(const VolumeNameRecord& record);

// Reads a stored value: decode<VolumeRecord>(entry.value). Never throws, whatever the bytes.
// Errors: unsupported (a record version of a newer Peplos), corrupt.
template <typename Record>
Result<Record> decode(std::string_view value);
template <>
Result<ClusterRecord> decode<ClusterRecord>(std::string_view value);
template <>
Result<NodeRecord> decode<NodeRecord>(std::string_view value);
template <>
Result<DeviceRecord> decode<DeviceRecord>(std::string_view value);
template <>
Result<VolumeRecord> decode<VolumeRecord>(std::string_view value);
template <>
Result<VolumeNameRecord> decode<VolumeNameRecord>(std::string_view value);

// Creates record and name together: `conflict` when the name or the id is taken.
Result<Transaction> volume_creation(const VolumeRecord& record);
// Replaces the record read at `expected`. The name does not change.
Result<Transaction> volume_update(const VolumeRecord& record, Revision expected);
// Marks the volume read at `expected` as deleting and frees its name.
Result<Transaction> volume_deletion(VolumeRecord record, Revision expected);
// Forgets a deleting volume whose data are gone.
Transaction volume_forgetting(VolumeId id, Revision expected);

// As users read them: "open", "formatted", "nvme" ...
std::string_view name_of(MediaClass value);
std::string_view name_of(DeviceState value);
std::string_view name_of(NodeState value);
std::string_view name_of(FormatState value);
std::string_view name_of(OwnershipState value);
std::string_view name_of(Lifecycle value);
std::string_view name_of(Compression value);

}  // namespace peplos::control
