#pragma once

#include "keeper/keeper.h"

namespace peplos::keeper {

// Checks one segment of a volume that is not open: seal, index and every block. One that was never
// sealed says nothing about itself and is skipped: its data are in the journal.
runtime::Task<void> scrub_unopened(media::SegmentStore& store, SegmentId id, ScrubReport& report);

}  // namespace peplos::keeper
