#pragma once

#include "replica/replicated_log.h"

namespace peplos::replica {

struct ClaimRequest {
    VolumeId volume;
    LineageId lineage;
    uint32_t copies = 1;
};

// Makes this node the owner of a volume: runs a Takeover from the claim until the volume is served.
// One claim each.
class Claimer {
  public:
    explicit Claimer(OwnerContext& context);
    ~Claimer();

    // As long as it takes; why() says what it waits for. The log that it gives is complete, and on
    // all members.
    // Errors: conflict (another node claimed the volume meanwhile: read the record, decide again),
    // not_found (no such volume), stopping (also by cancel()).
    Task<Result<std::unique_ptr<ReplicatedLog>>> claim(ClaimRequest request);
    // claim() ends soon. What is recorded by then stays: any claim goes on from there.
    void cancel();
    // What it waits for, for a person; empty: nothing.
    std::string why() const;

  private:
    class Attempt;
    Task<Result<Ownership>> read_record(VolumeId volume);
    Task<void> pause(Duration duration);
    Result<void> check() const;

    OwnerContext& context_;
    std::shared_ptr<Attempt> attempt_;
    std::string why_;  // while there is no attempt
    bool is_cancelled_ = false;
};

}  // namespace peplos::replica
