#include "model/scopes.h"

#include <algorithm>

namespace peplos::model {

namespace {

// Node 0 (A) serves an ensemble of A and B; C is there to replace either.
constexpr std::array kScopes{
    Scope{.name = "takeover",
          .what = "a takeover, with a crash at any write",
          .claimers = 0b110,
          .crashers = 0b011,
          .is_slow_disk = true,
          .budget = {.writes = 1, .claims = 1, .adoptions = 1, .crashes = 1}},
    Scope{.name = "claimers",
          .what = "a claimer is overtaken by another, at any point",
          .sets = {0b110},
          .claimers = 0b110,
          .budget = {.writes = 1, .claims = 2, .adoptions = 2}},
    Scope{.name = "change",
          .what = "another ensemble, outcomes of compare-and-sets unknown, then a takeover",
          .sets = {0b011, 0b101},
          .claimers = 0b100,
          .budget = {.writes = 1, .claims = 1, .adoptions = 1, .changes = 1, .unknowns = 1}},
    Scope{.name = "wipe",
          .what = "a device is replaced by an empty one",
          .sets = {0b101, 0b110},
          .claimers = 0b100,
          .budget = {.writes = 1, .claims = 1, .adoptions = 1, .changes = 1, .wipes = 1}},
    Scope{.name = "device",
          .what = "a write or a sync fails",
          .claimers = 0b110,
          .is_slow_disk = true,
          .budget = {.writes = 1, .claims = 1, .adoptions = 1, .crashes = 1, .io_errors = 1}},
    Scope{.name = "promise",
          .what = "reads by an owner that stands still, while another one writes",
          .sets = {0b110},
          .claimers = 0b010,
          .crashers = 0b010,
          .promise_ticks = 1,
          .budget = {.writes = 1,
                     .claims = 1,
                     .adoptions = 1,
                     .crashes = 1,
                     .reads = 1,
                     .renewals = 1,
                     .ticks = 2,
                     .releases = 1}},
    Scope{.name = "heartbeat",
          .what = "heartbeats and their answers come late",
          .sets = {0b110},
          .claimers = 0b010,
          .crashers = 0,
          .promise_ticks = 1,
          .budget =
              {.writes = 1, .claims = 1, .adoptions = 1, .reads = 1, .renewals = 2, .ticks = 1}},
    Scope{.name = "promise-change",
          .what = "one copy becomes two, and the other node claims, during a read",
          .nodes = 2,
          .first = 0b01,
          .sets = {0b11},
          .claimers = 0b10,
          .crashers = 0,
          .promise_ticks = 1,
          .budget = {.writes = 1,
                     .claims = 1,
                     .adoptions = 1,
                     .changes = 1,
                     .unknowns = 1,
                     .reads = 1,
                     .renewals = 1,
                     .ticks = 1}},
    Scope{.name = "gap",
          .what = "several writes in flight, and a crash",
          .claimers = 0b010,
          .crashers = 0b010,
          .is_slow_disk = true,
          .budget = {.writes = 2, .claims = 1, .adoptions = 1, .crashes = 1}},
    Scope{.name = "rollback",
          .what = "the control store is restored from a backup",
          .sets = {0b110},
          .claimers = 0b110,
          .is_backed_up = true,
          .budget = {.writes = 1, .claims = 2, .adoptions = 1, .rollbacks = 1}},
    Scope{.name = "backup",
          .what = "the backup is made while a claim is under way",
          .sets = {0b110},
          .claimers = 0b110,
          .budget = {.writes = 1, .claims = 2, .adoptions = 1, .backups = 1, .rollbacks = 1}},
    Scope{.name = "three",
          .what = "three copies on four nodes",
          .nodes = 4,
          .first = 0b0111,
          .sets = {0b1110},
          .claimers = 0b0010,
          .crashers = 0b0100,
          .budget = {.writes = 1, .claims = 1, .adoptions = 1, .wipes = 1}},
};

constexpr std::array kMistakes{
    Mistake{"protocol.no_fence", "takeover", "a member answers a claimer and raises no fence"},
    Mistake{"protocol.volatile_fence", "takeover", "a fence is answered before it is durable"},
    Mistake{"protocol.ignores_fence", "takeover", "a member takes appends of an older epoch"},
    Mistake{"protocol.volatile_append", "takeover", "an append is answered before it is durable"},
    Mistake{"protocol.acknowledges_before_cas", "change",
            "held acknowledgements go out before the new ensemble is recorded"},
    Mistake{"protocol.changes_without_cas", "change", "the ensemble changes without the store"},
    Mistake{"protocol.unknown_is_failure", "change", "an unknown outcome is taken for a failure"},
    Mistake{"protocol.reads_record_once", "change",
            "an unknown outcome is read again, and then believed not to happen any more"},
    Mistake{"protocol.wiped_is_empty", "wipe", "a wiped device answers: complete, and empty"},
    Mistake{"protocol.ignores_incarnation", "wipe", "a message for a device reaches its successor"},
    Mistake{"protocol.no_copy", "wipe", "a new member gets no copy of the log"},
    Mistake{"protocol.serves_before_copy", "wipe", "a volume is served before the copy is made"},
    Mistake{"protocol.serves_before_commit", "claimers",
            "a volume is served before the new ensemble is recorded"},
    Mistake{"protocol.io_error_is_absence", "device", "a log that cannot be read counts as empty"},
    Mistake{"protocol.retries_sync", "device", "a sync that failed counts when tried again"},
    Mistake{"protocol.acknowledges_majority", "three", "two of three copies are enough"},
    Mistake{"protocol.breaks_promise", "promise", "a fence does not wait for a promise to end"},
    Mistake{"protocol.restart_forgets_promise", "promise", "a restart ends a promise"},
    Mistake{"protocol.reads_unchecked", "promise", "a read is answered without any promise"},
    Mistake{"protocol.promise_from_answer", "heartbeat",
            "a promise counts from when it is heard of"},
    Mistake{"protocol.reads_after_release", "promise", "an owner reads after its release"},
    Mistake{"protocol.reads_by_old_ensemble", "promise-change",
            "while a change is decided, the old ensemble's promises are enough"},
    Mistake{"protocol.epoch_from_store", "rollback", "fences above the store's epoch are ignored"},
    Mistake{"protocol.believes_restored_store", "rollback",
            "the ensemble of a restored store is believed"},
    Mistake{"protocol.ignores_generation", "backup",
            "what was decided by the store before it was restored is carried out by the new one"},
    Mistake{"protocol.ignores_token", "rollback", "claims of one epoch are not told apart"},
    Mistake{"protocol.repeats_append", "takeover", "a record that comes twice is kept twice"},
    Mistake{"protocol.accepts_gap", "gap", "a record is taken although one before it is missing"},
};

}  // namespace

std::span<const Scope> scopes() {
    return kScopes;
}

const Scope* find_scope(std::string_view name) {
    const auto* found = std::ranges::find(kScopes, name, &Scope::name);
    return found == kScopes.end() ? nullptr : found;
}

std::span<const Mistake> mistakes() {
    return kMistakes;
}

}  // namespace peplos::model
