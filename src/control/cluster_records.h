#pragma once

#include "control/records.h"

// What the control store holds of a cluster of several nodes: groups, join tokens, the maintainer.
// The rules of records.h apply.
//
// Keys
//   group/<id>            GroupRecord
//   join-token/<id>       JoinTokenRecord
//   maintainer            MaintainerRecord
//   lease/NODE            see fabric/leases.h
namespace peplos::control {

// What a member of a group has of the group's segments.
enum class GroupMemberState : uint8_t {
    full,     // each of them; new ones are written to it
    filling,  // each that is newer than its coming; the older ones are being copied to it
    leaving,  // each of them, new ones too, until enough others are full
    away,     // none that is newer than its going; it does not answer
};

// New segments are written to it.
constexpr bool takes_segments(GroupMemberState state) {
    return state != GroupMemberState::away;
}
// Holds every segment of the group.
constexpr bool has_everything(GroupMemberState state) {
    return state == GroupMemberState::full || state == GroupMemberState::leaving;
}

struct GroupMember {
    NodeId node;
    GroupMemberState state = GroupMemberState::full;

    bool operator==(const GroupMember&) const = default;
};

// The nodes on which the segments of a group lie: a copyset. Nodes come and go *in* the group, so
// that no volume's tables change. docs/decisions/20261130-groups.md
//
// Invariants
//   1. Some member has everything: only a person who declares a node lost can end that.
//   2. `filling` becomes `full` only when the lists of segments of the members were compared after
//      every segment that was begun under an older version was sealed or given up.
// Group 0 has the segments of the time when the cluster was one node.
struct GroupRecord {
    GroupId id;
    uint32_t copies = 1;  // how many full members it is to have: 1 .. limits::kEnsembleMembersMax
    std::vector<GroupMember> members;  // 1 .. limits::kGroupMembersMax, of different nodes
    uint64_t version = 1;              // raised by every change
    int64_t created_at_s = 0;

    const GroupMember* find(NodeId node) const;

    bool operator==(const GroupRecord&) const = default;
};

using JoinTokenId = StrongId<struct JoinTokenTag>;

// Lets one node join, once, for a while. The secret is shown to a person when it is made, and never
// kept: it has 256 random bits, so its plain hash gives nothing away.
struct JoinTokenRecord {
    JoinTokenId id;
    std::string secret_sha256;
    int64_t created_at_s = 0;
    int64_t expires_at_s = 0;
    NodeId used_by;  // 0: nobody yet
    int64_t used_at_s = 0;

    bool operator==(const JoinTokenRecord&) const = default;
};

// The node that keeps the groups in order. Two that believe so do no harm: every change of theirs
// compares what it was decided on.
struct MaintainerRecord {
    NodeId node;
    uint64_t term = 1;  // raised by every change
    int64_t since_s = 0;

    bool operator==(const MaintainerRecord&) const = default;
};

inline constexpr uint32_t kGroupRecordVersion = 1;
inline constexpr uint32_t kJoinTokenRecordVersion = 1;
inline constexpr uint32_t kMaintainerRecordVersion = 1;
inline constexpr std::string_view kGroupPrefix = "group/";
inline constexpr std::string_view kJoinTokenPrefix = "join-token/";
inline constexpr std::string_view kMaintainerKey = "maintainer";
inline constexpr std::string_view kLeasePrefix = "lease/";

// Its value: seconds since 1970, of the last renewal, for people.
std::string lease_key(NodeId id);
std::string group_key(GroupId id);
std::string join_token_key(JoinTokenId id);

Result<void> check_record(const GroupRecord& record);
Result<void> check_record(const JoinTokenRecord& record);
Result<void> check_record(const MaintainerRecord& record);

Result<std::string> encode(const GroupRecord& record);
Result<std::string> encode(const JoinTokenRecord& record);
Result<std::string> encode(const MaintainerRecord& record);

template <>
Result<GroupRecord> decode<GroupRecord>(std::string_view value);
template <>
Result<JoinTokenRecord> decode<JoinTokenRecord>(std::string_view value);
template <>
Result<MaintainerRecord> decode<MaintainerRecord>(std::string_view value);

// SHA-256 as 64 hexadecimal digits.
std::string sha256_of(std::string_view secret);

// Uses the token that was read at `expected`, for one node: whoever's transaction is applied first
// has it. The node's own record goes into the same transaction, or a crash between the two would
// cost the token.
// Errors: permission_denied (wrong secret, expired, or used by another node; the message says which
// and what to do).
Result<Operation> use_join_token(const JoinTokenRecord& record, Revision expected,
                                 std::string_view secret, NodeId node, int64_t now_s);

std::string_view name_of(GroupMemberState value);

}  // namespace peplos::control
