#pragma once

#include <string>
#include <vector>

#include "model/world.h"

namespace peplos::model {

// From this state on nothing breaks any more, everything sent arrives, and owners and claimers do
// what they are for. Says why the volume is then not served with a new write acknowledged, although
// enough copies are left; also when one more node stays silent for good, where the copies allow
// it. Empty: it is. Tells what happens in `story`, unless null.
std::string check_progress(const Scope& scope, Post& post, const World& world,
                           std::vector<std::string>* story);

}  // namespace peplos::model
