#include "fabric/ownership_store.h"

#include "base/fault.h"
#include "base/log.h"

namespace peplos::fabric {
namespace {

constexpr Duration kPauseMin = std::chrono::milliseconds(20);
constexpr Duration kPauseMax = std::chrono::milliseconds(500);

}  // namespace

replica::Ownership ownership_of(const control::VolumeRecord& record, uint64_t generation) {
    replica::Ownership ownership;
    if (!record.owner) {
        ownership.generation = generation;
        ownership.version = record.version;
        return ownership;
    }
    ownership.claim = {record.owner, record.epoch, record.claim_token};
    ownership.state = record.state;
    // The record's own check bounds the members.
    ownership.ensemble.assign(record.ensemble.begin(), record.ensemble.end());
    ownership.version = record.version;
    ownership.generation = record.generation;
    return ownership;
}

void set_ownership(control::VolumeRecord& record, const replica::Ownership& ownership) {
    record.owner = ownership.claim.owner;
    record.epoch = ownership.claim.epoch;
    record.claim_token = ownership.claim.token;
    record.state = ownership.state;
    record.ensemble.assign(ownership.ensemble.begin(), ownership.ensemble.end());
    record.version = ownership.version;
    record.generation = ownership.generation;
}

// The record and the generation that it was read in.
Task<Result<StoredOwnership::Seen>> StoredOwnership::look(VolumeId volume) {
    CO_TRY_ASSIGN(uint64_t before, co_await calls_.generation());
    std::string key = control::volume_key(volume);
    CO_TRY_ASSIGN(std::optional<control::KeyValue> entry, co_await calls_.get(std::move(key)));
    CO_TRY_ASSIGN(uint64_t generation, co_await calls_.generation());
    if (before != generation) {
        co_return fail(Code::unavailable, "the control store was put back while it was read");
    }
    generation_ = generation;
    if (!entry) co_return fail(Code::not_found, "volume {} has no record", volume);
    CO_TRY_ASSIGN(control::VolumeRecord record,
                  control::decode<control::VolumeRecord>(entry->value));
    // Nobody serves a volume that is being deleted.
    if (record.lifecycle != control::Lifecycle::live)
        co_return fail(Code::not_found, "volume {} is deleted", volume);
    replica::Ownership ownership = ownership_of(record, generation);
    co_return Seen{std::move(record), entry->mod_revision, generation, std::move(ownership)};
}

Task<Result<replica::Ownership>> StoredOwnership::read(VolumeId volume) {
    CO_TRY_ASSIGN(Seen seen, co_await look(volume));
    co_return std::move(seen.ownership);
}

// What the record says about a call already; nullopt: it can still be done.
std::optional<StoredOwnership::Answer> StoredOwnership::decided(const Seen& seen,
                                                                const replica::CompareAndSet& cas) {
    if (seen.generation != cas.generation) {
        return Answer{replica::CasOutcome::conflict, seen.ownership};
    }
    if (seen.ownership == cas.desired) return Answer{replica::CasOutcome::done, seen.ownership};
    if (seen.ownership == cas.expected) return std::nullopt;
    return Answer{replica::CasOutcome::conflict, seen.ownership};
}

Task<Result<control::Revision>> StoredOwnership::try_once(Seen seen, replica::CompareAndSet cas,
                                                          control::Transaction also) {
    set_ownership(seen.record, cas.desired);
    CO_TRY_ASSIGN(control::Transaction transaction,
                  control::volume_update(seen.record, seen.revision));
    for (control::Operation& operation : also)
        transaction.push_back(std::move(operation));
    co_return co_await calls_.compare_and_set(std::move(transaction), cas.generation);
}

Task<std::pair<replica::CasOutcome, replica::Ownership>> StoredOwnership::compare_and_set(
    VolumeId volume, replica::CompareAndSet cas) {
    Time deadline = env_.clock.now() + kPatience;
    Duration pause = kPauseMin;
    while (true) {
        Result<Seen> seen = co_await look(volume);
        Code failed = seen ? Code::unavailable : seen.error().code();
        // A volume that was deleted is nobody's.
        if (failed == Code::not_found) co_return Answer{replica::CasOutcome::conflict, {}};
        if (seen) {
            if (auto answer = decided(*seen, cas)) co_return std::move(*answer);
            std::optional<control::Transaction> also = control::Transaction{};
            Result<control::Revision> set;
            if (calls_.condition) {
                auto asked = co_await calls_.condition(seen->record, cas);
                if (asked) also = std::move(*asked);
                if (!asked) set = fail(std::move(asked).error());
            }
            if (!also) co_return Answer{replica::CasOutcome::conflict, seen->ownership};
            if (set) set = co_await try_once(*seen, cas, std::move(*also));
            if (set) co_return Answer{replica::CasOutcome::done, cas.desired};
            failed = set.error().code();
            if (failed == Code::outcome_unknown) {
                PROBE("fabric.ownership_unknown");
                Result<Seen> after = co_await look(volume);
                if (after) {
                    if (auto answer = decided(*after, cas)) co_return std::move(*answer);
                }
                co_return Answer{replica::CasOutcome::unknown, cas.expected};
            }
            if (failed != Code::conflict && failed != Code::unavailable && failed != Code::busy) {
                LOG_ERROR("ownership not recorded volume={} why=\"{}\"", volume,
                          set.error().text());
            }
        }
        if (failed == Code::stopping || env_.clock.now() >= deadline) {
            co_return Answer{replica::CasOutcome::unknown, cas.expected};
        }
        Duration shaken =
            pause / 2 +
            Duration(static_cast<int64_t>(env_.rng.below(static_cast<uint64_t>(pause.count()))));
        co_await env_.clock.sleep_for(shaken);
        pause = std::min(pause * 2, kPauseMax);
    }
}

}  // namespace peplos::fabric
