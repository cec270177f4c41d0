#include "volume/segment_handle.h"

#include "volume/segment_peers.h"

namespace peplos::volume {

using runtime::Task;

void intrusive_ptr_release(RemoteCopies* copies) {
    if (--copies->references == 0) copies->peers->last_reference_gone(copies);
}

Task<Result<void>> SegmentHandle::write_vector(uint64_t offset, std::vector<Buffer> from,
                                               runtime::Durability durability) const {
    if (!copies_) return store_->write_vector(pin_, offset, std::move(from), durability);
    return copies_->peers->write(*this, offset, std::move(from), durability);
}

Task<Result<void>> SegmentHandle::shrink(uint64_t bytes) const {
    if (!copies_) return store_->shrink(pin_, bytes);
    return copies_->peers->shrink(*this, bytes);
}

Task<Result<void>> SegmentHandle::read_remote(uint64_t offset, Buffer into) const {
    return copies_->peers->read_any(*this, offset, std::move(into));
}

Task<Result<void>> SegmentHandle::read_copy(uint32_t copy, uint64_t offset, Buffer into) const {
    if (pin_ && copy == 0) return store_->read(pin_, offset, std::move(into));
    // They may be fewer by now, or none be known.
    if (copy >= copy_count()) return read_remote(offset, std::move(into));
    return copies_->peers->read(node_of(copy), id(), offset, std::move(into));
}

Error SegmentHandle::corrupt_at(uint64_t offset, std::string_view what, uint32_t copy) const {
    if (pin_ && copy == 0) return store_->corrupt_at(pin_, offset, what);
    return Error(Code::corrupt, fmt::format("node {} (segment {}, {} bytes in): {}", node_of(copy),
                                            id(), offset, what));
}

void SegmentHandle::note_bad(uint32_t copy) const {
    if (!copies_) return;
    NodeId node = pin_ && copy == 0 ? NodeId{} : node_of(copy);
    copies_->peers->note_bad(id(), node);
}

}  // namespace peplos::volume
