#pragma once

#include <array>
#include <string_view>

namespace peplos::swarm {

struct Mistake {
    std::string_view name;  // of its PLANTED (base/fault.h)
    std::string_view what;
    std::string_view config = "swarm";  // of peplos-sim, where it is found soonest
};

// Mistakes that the simulator can be told to make: each must be found (tests/planted.py).
inline constexpr std::array kMistakes = {
    Mistake{"journal.volatile_commit", "a frame of the ring is acknowledged before it is durable"},
    Mistake{"journal.settles_too_early", "a frame calls those in flight before it settled"},
    Mistake{"journal.lets_go_too_much", "the ring forgets one record that is not drained yet"},
    Mistake{"recovery.keeps_given_up", "a frame that a recovery gave up comes back with the next"},
    Mistake{"recovery.skips_trims", "a replay passes over trims that were not drained"},
    Mistake{"recovery.believes_torn_reference", "a large write counts although its bytes are torn"},
    Mistake{"write.volatile_payload", "a large write is acknowledged before its bytes are durable"},
    Mistake{"read.believes_anything", "a block is served whatever its checksum says"},
    Mistake{"drain.seals_before_sync", "a seal names segments that are not durable yet"},
    Mistake{"drain.claims_too_much", "a seal covers writes that came after the drain began"},
    Mistake{"trim.is_not_sealed", "a drain forgets trims, and what was there comes back"},
    Mistake{"map.skips_an_update", "a drained block keeps its old place in the map"},
    Mistake{"checkpoint.root_before_pages", "a root names map pages that are not durable yet"},
    Mistake{"checkpoint.claims_too_much", "a root covers changes that came after its cut"},
    Mistake{"clean.undoes_overwrites", "a cleaning puts back what was overwritten meanwhile"},
    Mistake{"clean.removes_too_early", "a dead segment goes before a root covers its death"},
    Mistake{"segments.volatile_entry", "the unit table's entry of a segment is not durable"},
    Mistake{"sync.is_tried_again", "a sync that failed counts when the next one does not fail",
            "sync"},
    Mistake{"device.any_will_do", "a wiped or swapped device is taken for the old one, now empty"},
    Mistake{"claim.trusts_the_store", "the epoch follows a control store that went back"},
    Mistake{"recovery.unreadable_is_empty", "journal that cannot be read counts as never written",
            "damage"},
    Mistake{"attach.forgets_survivors", "what the host kept attached is not served again"},
    Mistake{"grow.is_not_journaled", "a volume's new size is forgotten by a crash"},
    Mistake{"attach.is_never_overtaken", "a host serves what another one has taken over",
            "cluster"},
    Mistake{"claim.robs_the_living", "a volume is taken from a host that has it mounted",
            "cluster"},
};

}  // namespace peplos::swarm
