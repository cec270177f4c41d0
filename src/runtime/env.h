#pragma once

#include "runtime/clock.h"
#include "runtime/disk.h"
#include "runtime/net.h"
#include "runtime/rng.h"
#include "runtime/task.h"

namespace peplos::runtime {

// What a component gets of the world. References outlive every component.
struct Env {
    Executor executor;
    Clock& clock;
    Rng& rng;
    Disks& disks;
    Net& net;
};

}  // namespace peplos::runtime
