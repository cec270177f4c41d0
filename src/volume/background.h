#pragma once

#include "base/result.h"
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

    // Nothing is drained any more, for good: whoever needs room that only that makes is refused.
    virtual bool is_stopped() const { return false; }

    // Ends all background work for good; waits. Who waits for room gets `stopping`. Fabric calls it
    // when no I/O runs any more and before the devices close. closing() is still allowed.
    virtual runtime::Task<void> stop() = 0;
};

// What those are told who need room when nothing makes any more.
inline Error background_stopped() {
    return Error(Code::stopping,
                 "the node is stopping: nothing makes room any more, so this was refused; repeat "
                 "it once the node runs again");
}

}  // namespace peplos::volume
