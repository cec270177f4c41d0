#pragma once

#include <span>

#include "replica/protocol.h"

namespace peplos::replica {

// Which members a journal gets. The one place that knows groups, free space and who is alive.
class EnsembleChooser {
  public:
    virtual ~EnsembleChooser() = default;

    // A good ensemble for the volume: the node that asks is in it, and none of `avoid`, which are
    // silent or failed. Of the present members those that are good stay, on their device. Tokens
    // are not looked at. Fewer than `copies` only where the volume's policy allows that.
    // None: it cannot be had now.
    virtual Members choose(VolumeId volume, uint32_t copies, const Members& present,
                           std::span<const NodeId> avoid) = 0;
};

}  // namespace peplos::replica
