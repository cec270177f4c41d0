#pragma once

#include <memory>
#include <utility>
#include <vector>

#include "base/ids.h"
#include "format/segment_layout.h"
#include "volume/resources.h"
#include "volume/segment_handle.h"
#include "volume/segment_peers.h"

namespace peplos::volume {

// Where a volume's segments lie: segment index -> the copies. Every segment in use stays held
// here, so a read takes it without a search; what is removed keeps its units until the last
// reader's handle is gone.
class SegmentSet {
  public:
    // `peers` null: every segment lies on this node alone.
    SegmentSet(SpaceBudget& space, VolumeId volume, LineageId lineage, Epoch epoch,
               std::unique_ptr<SegmentPeers> peers);

    // A new segment, its header written (not synced), on the device with the most free units; with
    // copies on other nodes where the volume is to have some.
    // Errors: no_space (no device has such a run), io_error; unavailable, fenced (other nodes).
    runtime::Task<Result<SegmentHandle>> create(format::SegmentKind kind, uint8_t lifetime_class,
                                                uint64_t bytes, media::Purpose purpose);
    // Whether create() would find a run now.
    bool has_room(uint64_t bytes, media::Purpose purpose) const;
    // Free units, and those that user data may take, as in SpaceBudget; of the scarcest node that a
    // new segment goes to.
    uint64_t free_units() const;
    int64_t headroom_units() const;
    bool try_promise(uint64_t units);
    format::SegmentHeader header_of(SegmentId id, format::SegmentKind kind,
                                    uint8_t lifetime_class) const;

    // Searches the devices, and what other nodes have; empty when none has it. `group`: where a
    // record says that it is; 0: it says nothing, or this node alone.
    SegmentHandle locate(const SegmentId& id, GroupId group = {}) const;
    // Of one that was not located: `code`, or unavailable where a node that may have it does not
    // answer (named). `what` begins the message.
    Error not_located(Code code, std::string what) const;
    // nullptr: the index names no segment that could be found.
    const SegmentHandle* find(uint32_t index) const {
        return index < handles_.size() && handles_[index] ? &handles_[index] : nullptr;
    }
    void put(uint32_t index, SegmentHandle handle);
    // Without effect where the index names another segment by now: an index is used again.
    void forget(uint32_t index, const SegmentId& id);
    // Lets go of everything, for good.
    void clear();
    // Bytes of the units of all segments in use, on one node each; visits each.
    uint64_t stored_bytes() const;

    // Removes a segment from its device; one that is gone already is fine. Other nodes' copies
    // follow when the last handle is gone.
    runtime::Task<Result<void>> remove(SegmentId id);
    // Makes what was written to these segments durable in all copies.
    runtime::Task<Result<void>> sync(std::vector<SegmentHandle> handles);
    // Whoever holds the volume now goes on writing a segment that is not sealed. Errors:
    // unavailable (not every copy can be had), fenced.
    runtime::Task<Result<void>> adopt(SegmentHandle handle);

    // Checks this node's copy as a whole and makes a bad one anew out of another node's; true: it
    // did. Errors: as SegmentService::mend(). Requires: the segment has copies.
    runtime::Task<Result<bool>> mend_here(SegmentHandle handle);

    SpaceBudget& space() { return space_; }
    SegmentPeers* peers() const { return peers_.get(); }
    // Goes up when another node could not do its part in what failed: again, elsewhere.
    uint64_t copy_failures() const { return peers_ ? peers_->failures() : 0; }

  private:
    void refresh(const SegmentId& id);
    bool has_copies() const { return peers_ && peers_->is_wanted(); }
    runtime::Task<Result<SegmentHandle>> create_bare(SegmentId id, format::SegmentKind kind,
                                                     uint64_t bytes, media::Purpose purpose);

    SpaceBudget& space_;
    const VolumeId volume_;
    const LineageId lineage_;
    const Epoch epoch_;
    uint32_t sequence_ = 0;
    const std::unique_ptr<SegmentPeers> peers_;
    std::vector<SegmentHandle> handles_;
};

}  // namespace peplos::volume
