#include "control/cluster_records.h"

#include <algorithm>
#include <openssl/crypto.h>
#include <openssl/sha.h>

#include "control/record_text.h"

namespace peplos::control {
namespace {

using nlohmann::json;

constexpr EnumName<GroupMemberState> kGroupMemberStateNames[] = {
    {GroupMemberState::full, "full"},
    {GroupMemberState::filling, "filling"},
    {GroupMemberState::leaving, "leaving"},
    {GroupMemberState::away, "away"}};

void read_members(JsonFields& fields, GroupRecord& record) {
    for (const json& element : fields.objects("members", limits::kGroupMembersMax)) {
        JsonFields member(element, "a group's member");
        GroupMember& read = record.members.emplace_back();
        read.node = member.id<NodeId>("node");
        read.state = member.choice("state", kGroupMemberStateNames);
        Result<void> finished = member.finish();
        if (!finished) fields.refuse("members", finished.error().message());
    }
}

bool is_same_text(std::string_view a, std::string_view b) {
    return a.size() == b.size() && CRYPTO_memcmp(a.data(), b.data(), a.size()) == 0;
}

}  // namespace

std::string_view name_of(GroupMemberState value) {
    return find_name(kGroupMemberStateNames, value);
}

std::string lease_key(NodeId id) {
    return std::string(kLeasePrefix) + text_of(id);
}
std::string group_key(GroupId id) {
    return std::string(kGroupPrefix) + text_of(id);
}
std::string join_token_key(JoinTokenId id) {
    return std::string(kJoinTokenPrefix) + text_of(id);
}

const GroupMember* GroupRecord::find(NodeId node) const {
    auto found = std::ranges::find(members, node, &GroupMember::node);
    return found == members.end() ? nullptr : &*found;
}

Result<void> check_record(const GroupRecord& record) {
    if (record.copies < 1 || record.copies > limits::kEnsembleMembersMax) {
        return wrong("a group has 1 to {} copies, not {}", limits::kEnsembleMembersMax,
                     record.copies);
    }
    if (record.members.size() > limits::kGroupMembersMax) {
        return wrong("a group has at most {} members, not {}", limits::kGroupMembersMax,
                     record.members.size());
    }
    bool is_whole_somewhere = false;
    for (const GroupMember& member : record.members) {
        TRY(check_id("a group's member", member.node.value));
        if (std::ranges::count(record.members, member.node, &GroupMember::node) != 1) {
            return wrong("a group names the node {} twice", member.node);
        }
        is_whole_somewhere = is_whole_somewhere || has_everything(member.state);
    }
    if (!is_whole_somewhere) return wrong("no member of a group has everything");
    if (record.version == 0 || record.version > INT64_MAX) {
        return wrong("a group's version is out of range");
    }
    return check_time("a group's creation", record.created_at_s);
}

Result<void> check_record(const JoinTokenRecord& record) {
    TRY(check_id("a join token", record.id.value));
    TRY(check_sha256("a join token's hash", record.secret_sha256));
    TRY(check_time("a join token's creation", record.created_at_s));
    TRY(check_time("a join token's end", record.expires_at_s));
    TRY(check_time("a join token's use", record.used_at_s));
    if (!record.used_by && record.used_at_s != 0) return wrong("a join token was used by nobody");
    return {};
}

Result<void> check_record(const MaintainerRecord& record) {
    TRY(check_id("the maintainer", record.node.value));
    if (record.term == 0 || record.term > INT64_MAX) {
        return wrong("the maintainer's term is out of range");
    }
    return check_time("the maintainer's begin", record.since_s);
}

Result<std::string> encode(const GroupRecord& record) {
    TRY(check_record(record));
    json members = json::array();
    for (const GroupMember& member : record.members) {
        members.push_back({{"node", text_of(member.node)}, {"state", name_of(member.state)}});
    }
    json out;
    out["id"] = text_of(record.id);
    out["copies"] = record.copies;
    out["members"] = std::move(members);
    out["version"] = record.version;
    out["created_at_s"] = record.created_at_s;
    return print_record(std::move(out), kGroupRecordVersion, "a group's record");
}

Result<std::string> encode(const JoinTokenRecord& record) {
    TRY(check_record(record));
    json out;
    out["id"] = text_of(record.id);
    out["secret_sha256"] = record.secret_sha256;
    out["created_at_s"] = record.created_at_s;
    out["expires_at_s"] = record.expires_at_s;
    out["used_by"] = text_of(record.used_by);
    out["used_at_s"] = record.used_at_s;
    return print_record(std::move(out), kJoinTokenRecordVersion, "a join token's record");
}

Result<std::string> encode(const MaintainerRecord& record) {
    TRY(check_record(record));
    json out;
    out["node"] = text_of(record.node);
    out["term"] = record.term;
    out["since_s"] = record.since_s;
    return print_record(std::move(out), kMaintainerRecordVersion, "the maintainer's record");
}

template <>
Result<GroupRecord> decode<GroupRecord>(std::string_view value) {
    auto read = [](JsonFields& fields, GroupRecord& record, uint32_t) {
        record.id = fields.id<GroupId>("id");
        record.copies = static_cast<uint32_t>(fields.number("copies", UINT32_MAX));
        read_members(fields, record);
        record.version = fields.number("version", INT64_MAX);
        record.created_at_s = fields.time_s("created_at_s");
    };
    return read_record<GroupRecord>(value, kGroupRecordVersion, "a group's record", read);
}

template <>
Result<JoinTokenRecord> decode<JoinTokenRecord>(std::string_view value) {
    auto read = [](JsonFields& fields, JoinTokenRecord& record, uint32_t) {
        record.id = fields.id<JoinTokenId>("id");
        record.secret_sha256 = fields.text("secret_sha256");
        record.created_at_s = fields.time_s("created_at_s");
        record.expires_at_s = fields.time_s("expires_at_s");
        record.used_by = fields.id<NodeId>("used_by");
        record.used_at_s = fields.time_s("used_at_s");
    };
    return read_record<JoinTokenRecord>(value, kJoinTokenRecordVersion, "a join token's record",
                                        read);
}

template <>
Result<MaintainerRecord> decode<MaintainerRecord>(std::string_view value) {
    auto read = [](JsonFields& fields, MaintainerRecord& record, uint32_t) {
        record.node = fields.id<NodeId>("node");
        record.term = fields.number("term", INT64_MAX);
        record.since_s = fields.time_s("since_s");
    };
    return read_record<MaintainerRecord>(value, kMaintainerRecordVersion, "the maintainer's record",
                                         read);
}

std::string sha256_of(std::string_view secret) {
    unsigned char digest[SHA256_DIGEST_LENGTH];
    SHA256(reinterpret_cast<const unsigned char*>(secret.data()), secret.size(), digest);
    std::string digits;
    for (unsigned char byte : digest)
        digits += fmt::format("{:02x}", byte);
    return digits;
}

Result<Operation> use_join_token(const JoinTokenRecord& record, Revision expected,
                                 std::string_view secret, NodeId node, int64_t now_s) {
    CHECK(node);
    if (!is_same_text(record.secret_sha256, sha256_of(secret))) {
        return fail(Code::permission_denied,
                    "the join token's secret is wrong: copy the whole token");
    }
    // The same node again: its first attempt was applied, although it was not told so.
    if (record.used_by && record.used_by != node) {
        return fail(Code::permission_denied,
                    "the join token was used by node {}: each lets one node in; make another one",
                    record.used_by);
    }
    if (!record.used_by && now_s >= record.expires_at_s) {
        return fail(Code::permission_denied,
                    "the join token expired {} s ago: make another one on a node of the cluster",
                    now_s - record.expires_at_s);
    }
    JoinTokenRecord used = record;
    used.used_by = node;
    if (!record.used_by) used.used_at_s = now_s;
    TRY_ASSIGN(std::string value, encode(used));
    return put(join_token_key(record.id), expected, std::move(value));
}

}  // namespace peplos::control
