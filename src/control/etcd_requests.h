#pragma once

#include <string>

#include "control/etcd_api/rpc.pb.h"
#include "control/store.h"

// The store's calls in etcd's words, and its answers in ours. No I/O.
//
// Keys of one store, below its prefix P (docs/formats/control-store.md):
//   P data/KEY     what the callers of Store know as KEY
//   P generation   which history of the store this is
//   P mark         rewritten by every transaction: the fingerprint of the history so far
namespace peplos::control::etcd {

using etcdserverpb::RangeResponse;
using etcdserverpb::TxnRequest;
using etcdserverpb::TxnResponse;

// What a store was last seen to be. A restored etcd differs in one of these.
struct Identity {
    uint64_t cluster_id = 0;
    std::string generation;     // the value of P generation
    int64_t mark_revision = 0;  // of P mark, 0: never written
    std::string mark;

    bool operator==(const Identity&) const = default;
};

class Layout {
  public:
    // `prefix` ends with '/'.
    explicit Layout(std::string prefix) : prefix_(std::move(prefix)), data_(prefix_ + "data/") {}

    std::string generation_key() const { return prefix_ + "generation"; }
    std::string mark_key() const { return prefix_ + "mark"; }
    std::string key_of(const std::string& key) const { return data_ + key; }
    const std::string& data_prefix() const { return data_; }

    // The three ranges of every read: what is asked for, then the identity.
    TxnRequest get(const std::string& key) const;
    // At `revision`; 0: the newest.
    TxnRequest list(const std::string& begin, const std::string& end, uint32_t count,
                    int64_t revision) const;
    TxnRequest identity() const;
    // Holds only in the history that `seen` is of, and leaves `mark` behind where it changes a key.
    TxnRequest change(const Transaction& transaction, const Identity& seen,
                      const std::string& mark) const;
    // The mark as it was at a revision.
    TxnRequest mark_at(int64_t revision) const;
    // `generation` in place of what `seen` has; the failure branch reads the identity.
    TxnRequest renewal(const Identity& seen, const std::string& generation) const;

    // The last two ranges of `response`, which ends with them. `corrupt` when it does not.
    Result<Identity> identity_of(const TxnResponse& response, int first) const;
    // Errors: corrupt (no key of ours, or numbers out of bounds).
    Result<KeyValue> entry_of(const mvccpb::KeyValue& entry) const;
    // Why `transaction` was refused: the key whose revision is another one.
    Error refusal(const Transaction& transaction, const TxnResponse& response) const;

  private:
    void add_identity(google::protobuf::RepeatedPtrField<etcdserverpb::RequestOp>* to) const;

    std::string prefix_;
    std::string data_;
};

// Whether applying it always changes a key.
bool surely_changes(const Transaction& transaction);
// The smallest text greater than every text that begins with `prefix`; "\0", which means "to the
// last key" to etcd, when there is none.
std::string end_of_prefix(std::string prefix);
// The range of a read, or null.
const RangeResponse* range_of(const TxnResponse& response, int index);

// The value of P generation: a random id, and the etcd cluster that it was written to.
std::string generation_text(uint64_t id, uint64_t cluster_id);
struct GenerationValue {
    uint64_t id = 0;
    uint64_t cluster_id = 0;
};
// Errors: corrupt.
Result<GenerationValue> parse_generation(std::string_view text);

}  // namespace peplos::control::etcd
