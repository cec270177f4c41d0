#pragma once

#include <boost/smart_ptr/intrusive_ptr.hpp>
#include <string_view>
#include <utility>
#include <vector>

#include "base/ids.h"
#include "format/segment_kind.h"
#include "media/segment_store.h"

namespace peplos::volume {

class SegmentPeers;

// What a volume knows of a segment that has copies on other nodes.
struct RemoteCopies {
    SegmentPeers* peers = nullptr;
    SegmentId id;
    GroupId group;
    format::SegmentKind kind = format::SegmentKind::data;
    uint32_t unit_count = 0;
    // The other nodes that have a copy, as far as is known.
    std::vector<NodeId> nodes;
    // Every node of the group has one.
    bool is_complete = true;
    bool is_removed = false;
    uint32_t references = 0;
};
inline void intrusive_ptr_add_ref(RemoteCopies* copies) {
    ++copies->references;
}
void intrusive_ptr_release(RemoteCopies* copies);
using CopiesRef = boost::intrusive_ptr<RemoteCopies>;

// A segment held in existence, wherever its copies lie: on a device of this node, on other nodes,
// or both. Copies of a handle hold too. It does not outlive the volume's SegmentSet.
//
// A read takes this node's copy where there is one, in one call of the store; what it finds
// there is not verified. Whoever finds that it is bad reads another (from_any_copy()).
class SegmentHandle {
  public:
    SegmentHandle() = default;
    SegmentHandle(media::SegmentPin pin, media::SegmentStore* store, CopiesRef copies = {})
        : pin_(std::move(pin)), store_(store), copies_(std::move(copies)) {}

    explicit operator bool() const { return pin_ || copies_; }
    const SegmentId& id() const { return pin_ ? pin_.info().id : copies_->id; }
    format::SegmentKind kind() const { return pin_ ? pin_.info().kind : copies_->kind; }
    uint32_t unit_count() const { return pin_ ? pin_.info().unit_count : copies_->unit_count; }
    uint64_t bytes() const { return unit_count() * limits::kSegmentUnitBytes; }
    // 0: this node's devices alone.
    GroupId group() const { return copies_ ? copies_->group : GroupId{}; }

    // To every copy at once; it succeeds when all have it. Errors: those of SegmentStore, of this
    // node's copy; fenced; unavailable and no_space (of another node's: named. What the copies hold
    // differs by now: the segment is given up).
    runtime::Task<Result<void>> write_vector(uint64_t offset, std::vector<Buffer> from,
                                             runtime::Durability durability) const;
    // Errors: those of SegmentStore, unavailable (no other node with a copy answers).
    runtime::Task<Result<void>> read(uint64_t offset, Buffer into) const {
        return pin_ ? store_->read(pin_, offset, std::move(into))
                    : read_remote(offset, std::move(into));
    }
    // This node's is shortened, or says why not; another's where it can be.
    runtime::Task<Result<void>> shrink(uint64_t bytes) const;

    // ---- one copy of several; this node's, where there is one, is number 0 ----

    uint32_t copy_count() const {
        return (pin_ ? 1 : 0) + (copies_ ? static_cast<uint32_t>(copies_->nodes.size()) : 0);
    }
    bool has_local() const { return static_cast<bool>(pin_); }
    runtime::Task<Result<void>> read_copy(uint32_t copy, uint64_t offset, Buffer into) const;
    // What was read there does not match its checksum or identity.
    Error corrupt_at(uint64_t offset, std::string_view what, uint32_t copy = 0) const;
    // That copy is to be checked and made anew.
    void note_bad(uint32_t copy) const;

    const media::SegmentPin& pin() const { return pin_; }
    media::SegmentStore* store() const { return store_; }
    const CopiesRef& copies() const { return copies_; }

  private:
    runtime::Task<Result<void>> read_remote(uint64_t offset, Buffer into) const;
    NodeId node_of(uint32_t copy) const { return copies_->nodes[copy - (pin_ ? 1 : 0)]; }

    media::SegmentPin pin_;
    media::SegmentStore* store_ = nullptr;
    CopiesRef copies_;
};

}  // namespace peplos::volume
