#pragma once

#include <string>

#include "base/ids.h"

namespace peplos::fabric {

// What this node knows of the others of its cluster without asking them. Lives on the storage core.
class OtherNodes {
  public:
    virtual ~OtherNodes() = default;
    // It has been silent for so long that its volumes are taken over unasked. A hint, never a
    // proof: fences decide.
    virtual bool is_dead(NodeId node) const = 0;
    // As people know it; its id where it has no name here.
    virtual std::string name_of(NodeId node) const = 0;
};

}  // namespace peplos::fabric
