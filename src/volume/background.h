#pragma once

#include "runtime/task.h"

namespace peplos::volume {

class Volume;

// What works behind the volumes of a node (the keeper), as fabric and the volumes see it.
//
// Fabric calls opened() right after Volume::open() or create() and awaits closing() before it
// calls close(), stop() or destroys the object: afterwards nothing of the background touches it.
// The volumes call wants() themselves. Lives on the storage core.
class Background {
  public:
    virtual ~Background() = default;
    virtual void opened(Volume& volume) = 0;
    // Ends the background's work on the volume (at the next bounded step) and forgets it.
    virtual runtime::Task<void> closing(Volume& volume) = 0;

    // Something crossed a bound: look at the volume's pressure() soon. Called at most once per
    // bound crossed, synchronously, from hot paths: it only takes a note.
    virtual void wants(Volume& volume) = 0;

    // The devices are full for user data: gains units by whatever gains them (drains, checkpoints,
    // removals, cleaning) and resolves when some were gained, or with false when nothing can be.
    // Many may wait at once. Never called from the background's own work.
    virtual runtime::Task<bool> make_room() = 0;

    // Ends all background work for good; waits. Fabric calls it when no I/O runs any more and
    // before the devices close. closing() is still allowed.
    virtual runtime::Task<void> stop() = 0;
};

}  // namespace peplos::volume
