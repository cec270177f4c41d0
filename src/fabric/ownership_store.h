#pragma once

#include <functional>

#include "control/records.h"
#include "replica/ownership_store.h"
#include "runtime/env.h"

// Who owns a volume, as the control store records it.
namespace peplos::fabric {

using runtime::Task;

// The part of a volume's record that the replication protocol speaks of. One that was never claimed
// is of the store's present `generation`: nothing in it can be out of date.
replica::Ownership ownership_of(const control::VolumeRecord& record, uint64_t generation);
void set_ownership(control::VolumeRecord& record, const replica::Ownership& ownership);

// What is needed of the control store: a transaction that is applied in one generation or not at
// all, and which generation there is. A store's generation is another one once it was put back to
// an older state.
struct OwnershipCalls {
    std::function<Task<Result<uint64_t>>()> generation;
    std::function<Task<Result<std::optional<control::KeyValue>>>(std::string key)> get;
    // Errors as Store::compare_and_set(), and conflict when the generation is not `demanded`.
    std::function<Task<Result<control::Revision>>(control::Transaction, uint64_t demanded)>
        compare_and_set;
    // What else has to hold for a change of that record; nullopt: it must not be made now, which
    // is a conflict. Null: nothing.
    std::function<Task<Result<std::optional<control::Transaction>>>(
        const control::VolumeRecord& record, const replica::CompareAndSet& cas)>
        condition;
};

// Rules of docs/decisions/20261123-what-the-protocol-model-found.md: the ownership is compared as a
// whole (11), in one generation (10), and `unknown` is answered only with what was read afterwards;
// the machine repeats the call then (1). Other fields of the record may change meanwhile: that is
// no conflict.
class StoredOwnership final : public replica::OwnershipStore {
  public:
    // How long a call goes on against a store that does not answer.
    static constexpr Duration kPatience = std::chrono::seconds(3);

    StoredOwnership(runtime::Env env, OwnershipCalls calls)
        : env_(std::move(env)), calls_(std::move(calls)) {}

    Task<std::pair<replica::CasOutcome, replica::Ownership>> compare_and_set(
        VolumeId volume, replica::CompareAndSet cas) override;
    Task<Result<replica::Ownership>> read(VolumeId volume) override;
    void set_condition(decltype(OwnershipCalls::condition) condition) {
        calls_.condition = std::move(condition);
    }
    // As the last read() or compare_and_set() saw it; 0 before the first.
    uint64_t generation() const override { return generation_; }

  private:
    struct Seen {
        control::VolumeRecord record;
        control::Revision revision;
        uint64_t generation = 0;
        replica::Ownership ownership;
    };
    using Answer = std::pair<replica::CasOutcome, replica::Ownership>;

    Task<Result<Seen>> look(VolumeId volume);
    Task<Result<control::Revision>> try_once(Seen seen, replica::CompareAndSet cas,
                                             control::Transaction also);
    static std::optional<Answer> decided(const Seen& seen, const replica::CompareAndSet& cas);

    runtime::Env env_;
    OwnershipCalls calls_;
    uint64_t generation_ = 0;
};

}  // namespace peplos::fabric
