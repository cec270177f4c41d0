#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "control/memory_store.h"
#include "keeper/keeper.h"
#include "sim/world.h"
#include "swarm/operations.h"

// What one run of the simulator does: drawn from its seed (swarm testing: Groce et al., "Swarm
// Testing", 2012). Each run leaves some operations and faults out, so that others get room.
namespace peplos::swarm {

// Draws of a later edition come on top of those of the earlier ones: a seed of an earlier edition
// is the same plan for ever.
enum class Edition : uint8_t { first, second };

// How a life of the simulated daemon ends.
enum class EndOfLife : uint8_t { stop, kill, power_loss };
std::string_view name_of(EndOfLife end);

struct Plan {
    sim::Order order = sim::Order::random;
    sim::DiskProfile disk;
    uint32_t device_count = 1;
    uint64_t device_bytes = 0;
    uint64_t overlay_bytes = 0;
    uint64_t leaf_cache_bytes = 0;
    keeper::KeeperOptions keeper;

    uint32_t volume_count_max = 1;
    uint64_t volume_bytes_max = 0;
    uint32_t workers_per_volume = 1;
    uint64_t operations = 0;  // at least so many in all
    uint64_t faults = 0;      // and so many of these
    uint64_t life_events_max = 0;
    Work work;
    // Of 1,000 steps of the user so many create, remove, grow.
    uint32_t create_permille = 0;
    uint32_t remove_permille = 0;
    uint32_t grow_permille = 0;
    uint32_t scrub_permille = 0;

    uint32_t stop_weight = 1;
    uint32_t kill_weight = 1;
    uint32_t power_loss_weight = 1;

    // Of 1,000 starts of the daemon so many are cut off: the next one begins where they got to.
    uint32_t cut_start_permille = 0;
    // Of 1,000 passes of a FAULT (base/fault.h) so many are true.
    uint32_t site_permille = 0;

    // Faults per 1,000 of the injector's steps (one each 10 to 500 ms).
    uint32_t read_error_permille = 0;
    uint32_t write_error_permille = 0;
    uint32_t slow_permille = 0;
    uint32_t garbled_read_permille = 0;
    uint32_t sync_error_permille = 0;
    uint32_t full_permille = 0;    // writes find no space on the disk
    uint32_t stall_permille = 0;   // of 1 to 60 s
    uint32_t pause_permille = 0;   // of the whole process, up to 10 minutes
    uint32_t outage_permille = 0;  // of the control store, up to 30 s
    // Damage that stays. So many in all, of the kinds whose weight is not 0.
    uint32_t damage_count_max = 0;
    uint32_t latent_weight = 0;     // pages that cannot be read until they are written
    uint32_t lost_weight = 0;       // writes that are acknowledged and never happen
    uint32_t misplaced_weight = 0;  // writes that land elsewhere
    uint32_t rot_weight = 0;        // bits that flip at rest
    // Of 1,000 power losses so many are followed by a start with a wrong disk, or with the control
    // store as an old backup has it.
    uint32_t wrong_disk_permille = 0;
    uint32_t rollback_permille = 0;
    control::MemoryStore::Weather store_weather;
    // A mistake to make, of swarm/planted.h; empty: none.
    std::string planted;

    bool has_disk_errors() const {
        return read_error_permille + write_error_permille + garbled_read_permille +
                   sync_error_permille + full_permille !=
               0;
    }
};

// The plans by name: "swarm" draws everything; the others fix the faults and draw the rest.
std::vector<std::string_view> plan_names();
// Errors: none; an unknown name is the caller's: see plan_names().
Plan draw_plan(std::string_view name, uint64_t seed, Edition edition = Edition::second);
// One line for people.
std::string describe(const Plan& plan);

}  // namespace peplos::swarm
