#pragma once

#include <utility>

#include "replica/journal.h"

namespace peplos::replica {

// Where it is recorded who owns a volume and which members have its journal.
class OwnershipStore {
  public:
    virtual ~OwnershipStore() = default;

    // Never fails and never hangs: what has no definite end within a few seconds is `unknown`. With
    // it comes what is recorded now; when not even that can be read, with `unknown`: cas.expected.
    virtual Task<std::pair<CasOutcome, Ownership>> compare_and_set(VolumeId volume,
                                                                   CompareAndSet cas) = 0;
    // Linearizable. A volume that was never claimed has the default record, of this generation.
    // Errors: not_found (no such volume), unavailable, stopping.
    virtual Task<Result<Ownership>> read(VolumeId volume) = 0;
    // Changes when the store was put back to an older state.
    virtual uint64_t generation() const = 0;
};

}  // namespace peplos::replica
