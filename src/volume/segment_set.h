#pragma once

#include <utility>
#include <vector>

#include "base/ids.h"
#include "format/segment_layout.h"
#include "media/segment_store.h"
#include "volume/resources.h"

namespace peplos::volume {

// A segment on one of the node's devices, held in existence.
struct SegmentHandle {
    media::SegmentPin pin;
    media::SegmentStore* store = nullptr;

    explicit operator bool() const { return store != nullptr; }
    uint64_t bytes() const { return pin.info().bytes(); }
    const SegmentId& id() const { return pin.info().id; }
};

// Where a volume's segments lie: segment index -> device and pin. Every segment in use stays
// pinned here, so a read takes it without a search; what is removed keeps its units until the last
// reader's copy of the pin is gone.
class SegmentSet {
  public:
    SegmentSet(SpaceBudget& space, VolumeId volume, LineageId lineage, Epoch epoch)
        : space_(space), volume_(volume), lineage_(lineage), epoch_(epoch) {}

    // A new segment, its header written (not synced), on the device with the most free units.
    // Errors: no_space (no device has such a run), io_error.
    runtime::Task<Result<SegmentHandle>> create(format::SegmentKind kind, uint8_t lifetime_class,
                                                uint64_t bytes, media::Purpose purpose);
    // Whether create() would find a run now.
    bool has_room(uint64_t bytes, media::Purpose purpose) const;
    format::SegmentHeader header_of(SegmentId id, format::SegmentKind kind,
                                    uint8_t lifetime_class) const;

    // Searches the devices; empty when none has it.
    SegmentHandle locate(const SegmentId& id) const;
    // nullptr: the index names no segment of this node.
    const SegmentHandle* find(uint32_t index) const {
        return index < handles_.size() && handles_[index] ? &handles_[index] : nullptr;
    }
    void put(uint32_t index, SegmentHandle handle);
    // Without effect where the index names another segment by now: an index is used again.
    void forget(uint32_t index, const SegmentId& id);
    // Lets go of everything.
    void clear() { handles_.clear(); }
    // Bytes of the units of all segments in use; visits each.
    uint64_t stored_bytes() const;

    // Removes a segment from its device; one that is gone already is fine.
    runtime::Task<Result<void>> remove(SegmentId id);
    // Makes what was written to any of the devices durable.
    runtime::Task<Result<void>> sync_all();

    SpaceBudget& space() { return space_; }

  private:
    SpaceBudget& space_;
    const VolumeId volume_;
    const LineageId lineage_;
    const Epoch epoch_;
    uint32_t sequence_ = 0;
    std::vector<SegmentHandle> handles_;
};

}  // namespace peplos::volume
