#include "control/etcd_requests.h"

#include <charconv>

namespace peplos::control::etcd {
namespace {

using etcdserverpb::Compare;
using etcdserverpb::RangeRequest;
using Operations = google::protobuf::RepeatedPtrField<etcdserverpb::RequestOp>;

RangeRequest* add_range(Operations* to, std::string key) {
    RangeRequest* range = to->Add()->mutable_request_range();
    range->set_key(std::move(key));
    return range;
}

void add_revision(TxnRequest& to, std::string key, Revision expected) {
    Compare* compare = to.add_compare();
    compare->set_target(Compare::MOD);
    compare->set_result(Compare::EQUAL);
    compare->set_key(std::move(key));
    compare->set_mod_revision(static_cast<int64_t>(expected.value));
}

void add_value(TxnRequest& to, std::string key, const std::string& value) {
    Compare* compare = to.add_compare();
    compare->set_target(Compare::VALUE);
    compare->set_result(Compare::EQUAL);
    compare->set_key(std::move(key));
    compare->set_value(value);
}

void add_put(Operations* to, std::string key, const std::string& value) {
    etcdserverpb::PutRequest* put = to->Add()->mutable_request_put();
    put->set_key(std::move(key));
    put->set_value(value);
}

}  // namespace

bool surely_changes(const Transaction& transaction) {
    for (const Operation& operation : transaction) {
        if (operation.kind == Operation::Kind::put) return true;
        bool exists = operation.expected && *operation.expected != Revision{};
        if (operation.kind == Operation::Kind::remove && exists) return true;
    }
    return false;
}

std::string end_of_prefix(std::string prefix) {
    while (!prefix.empty() && static_cast<unsigned char>(prefix.back()) == 0xff)
        prefix.pop_back();
    if (prefix.empty()) return std::string(1, '\0');
    prefix.back() = static_cast<char>(prefix.back() + 1);
    return prefix;
}

const RangeResponse* range_of(const TxnResponse& response, int index) {
    if (index >= response.responses_size()) return nullptr;
    const etcdserverpb::ResponseOp& one = response.responses(index);
    return one.has_response_range() ? &one.response_range() : nullptr;
}

void Layout::add_identity(Operations* to) const {
    add_range(to, generation_key());
    add_range(to, mark_key());
}

TxnRequest Layout::identity() const {
    TxnRequest request;
    add_identity(request.mutable_success());
    return request;
}

TxnRequest Layout::get(const std::string& key) const {
    TxnRequest request;
    add_range(request.mutable_success(), key_of(key));
    add_identity(request.mutable_success());
    return request;
}

TxnRequest Layout::list(const std::string& begin, const std::string& end, uint32_t count,
                        int64_t revision) const {
    TxnRequest request;
    RangeRequest* range = add_range(request.mutable_success(), begin);
    range->set_range_end(end);
    range->set_limit(count);
    range->set_revision(revision);
    add_identity(request.mutable_success());
    return request;
}

TxnRequest Layout::mark_at(int64_t revision) const {
    TxnRequest request;
    add_range(request.mutable_success(), mark_key())->set_revision(revision);
    return request;
}

TxnRequest Layout::change(const Transaction& transaction, const Identity& seen,
                          const std::string& mark) const {
    TxnRequest request;
    Operations* success = request.mutable_success();
    Operations* failure = request.mutable_failure();
    add_identity(failure);
    for (const Operation& operation : transaction) {
        std::string key = key_of(operation.key);
        if (operation.expected) {
            add_revision(request, key, *operation.expected);
            add_range(failure, key)->set_keys_only(true);
        }
        if (operation.kind == Operation::Kind::put) add_put(success, key, operation.value);
        if (operation.kind == Operation::Kind::remove) {
            success->Add()->mutable_request_delete_range()->set_key(key);
        }
    }
    add_value(request, generation_key(), seen.generation);
    Compare* compare = request.add_compare();
    compare->set_target(Compare::MOD);
    compare->set_result(Compare::GREATER);
    compare->set_key(mark_key());
    compare->set_mod_revision(seen.mark_revision - 1);
    if (surely_changes(transaction)) add_put(success, mark_key(), mark);
    return request;
}

TxnRequest Layout::renewal(const Identity& seen, const std::string& generation) const {
    TxnRequest request;
    if (seen.generation.empty()) {
        add_revision(request, generation_key(), Revision{});
    } else {
        add_value(request, generation_key(), seen.generation);
    }
    add_put(request.mutable_success(), generation_key(), generation);
    add_identity(request.mutable_success());
    add_identity(request.mutable_failure());
    return request;
}

Result<Identity> Layout::identity_of(const TxnResponse& response, int first) const {
    const RangeResponse* generation = range_of(response, first);
    const RangeResponse* mark = range_of(response, first + 1);
    if (generation == nullptr || mark == nullptr) {
        return fail(Code::corrupt, "etcd's answer lacks what was asked for");
    }
    Identity identity;
    identity.cluster_id = response.header().cluster_id();
    if (generation->kvs_size() > 0) identity.generation = generation->kvs(0).value();
    if (mark->kvs_size() > 0) {
        identity.mark = mark->kvs(0).value();
        identity.mark_revision = mark->kvs(0).mod_revision();
    }
    return identity;
}

Result<KeyValue> Layout::entry_of(const mvccpb::KeyValue& from) const {
    bool sound = from.key().starts_with(data_) && from.version() > 0 &&
                 from.create_revision() > 0 && from.mod_revision() >= from.create_revision();
    KeyValue entry;
    if (sound) entry.key = from.key().substr(data_.size());
    if (!sound || !check_key(entry.key) || from.value().size() > limits::kStoreValueBytesMax) {
        return fail(Code::corrupt,
                    "etcd holds '{}', which is no key of this cluster (version {}, revisions {} "
                    "and {}, {} bytes): something else writes below {}",
                    from.key(), from.version(), from.create_revision(), from.mod_revision(),
                    from.value().size(), data_);
    }
    entry.value = from.value();
    entry.version = static_cast<uint64_t>(from.version());
    entry.create_revision = Revision(static_cast<uint64_t>(from.create_revision()));
    entry.mod_revision = Revision(static_cast<uint64_t>(from.mod_revision()));
    return entry;
}

Error Layout::refusal(const Transaction& transaction, const TxnResponse& response) const {
    int index = 2;
    for (const Operation& operation : transaction) {
        if (!operation.expected) continue;
        const RangeResponse* range = range_of(response, index++);
        if (range == nullptr) break;
        Revision present;
        if (range->kvs_size() > 0) {
            present = Revision(static_cast<uint64_t>(range->kvs(0).mod_revision()));
        }
        if (present == *operation.expected) continue;
        return Error(Code::conflict,
                     fmt::format("'{}' is at revision {}, not {}: read it again", operation.key,
                                 present.value, operation.expected->value));
    }
    return Error(Code::conflict, "the control store has another history by now: read it again");
}

std::string generation_text(uint64_t id, uint64_t cluster_id) {
    return fmt::format("{:016x} {:016x}", id, cluster_id);
}

Result<GenerationValue> parse_generation(std::string_view text) {
    GenerationValue value;
    const char* end = text.data() + text.size();
    bool sound = text.size() == 33 && text[16] == ' ';
    if (sound) {
        auto first = std::from_chars(text.data(), text.data() + 16, value.id, 16);
        auto second = std::from_chars(text.data() + 17, end, value.cluster_id, 16);
        sound = first.ec == std::errc{} && first.ptr == text.data() + 16 &&
                second.ec == std::errc{} && second.ptr == end && value.id != 0;
    }
    if (sound) return value;
    return fail(Code::corrupt, "the control store's generation in etcd is damaged: \"{}\"",
                text.substr(0, 64));
}

}  // namespace peplos::control::etcd
