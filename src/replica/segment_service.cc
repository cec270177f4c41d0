#include "replica/segment_service.h"

#include <algorithm>

#include "base/fault.h"
#include "base/log.h"
#include "replica/segment_repair.h"

namespace peplos::replica {

using runtime::Task;

namespace {

constexpr size_t kMendingsMax = 1024;

uint64_t total_bytes(const std::vector<Buffer>& buffers) {
    uint64_t sum = 0;
    for (const Buffer& buffer : buffers)
        sum += buffer.size();
    return sum;
}

SegmentCopy copy_of(const media::SegmentInfo& info) {
    return {info.id, info.lineage, info.group, info.kind, info.unit_count};
}

}  // namespace

// ---- calls ----

void SegmentService::bind(peer::Server& server) {
    for (auto method = static_cast<peer::Method>(SegmentMethod::create);
         method <= static_cast<peer::Method>(SegmentMethod::mend); ++method) {
        server.handle(method, [this, method](NodeId, peer::Message request) {
            return handle(method, std::move(request));
        });
    }
}

Task<Result<peer::Message>> SegmentService::handle(peer::Method method, peer::Message message) {
    CO_TRY_ASSIGN(runtime::Gate::Pass pass, gate_.enter());
    if (method < static_cast<uint16_t>(SegmentMethod::create) ||
        method > static_cast<uint16_t>(SegmentMethod::mend)) {
        co_return fail(Code::unsupported, "no segment call has number {}", method);
    }
    CO_TRY_ASSIGN(SegmentRequest request, decode_segment_request(message.body));
    co_return co_await serve(static_cast<SegmentMethod>(method), std::move(request),
                             std::move(message.payload));
}

Task<Result<peer::Message>> SegmentService::serve(SegmentMethod method, SegmentRequest request,
                                                  std::vector<Buffer> payload) {
    Result<SegmentAnswer> heard{SegmentAnswer{}};
    peer::Message out;
    switch (method) {
        case SegmentMethod::create:
            CO_TRY(co_await create(std::move(request)));
            break;
        case SegmentMethod::write:
            CO_TRY(co_await write(std::move(request), std::move(payload)));
            break;
        case SegmentMethod::read: {
            CO_TRY_ASSIGN(Buffer bytes, co_await read(std::move(request)));
            out.payload.push_back(std::move(bytes));
            break;
        }
        case SegmentMethod::sync:
            CO_TRY(co_await sync(std::move(request)));
            break;
        case SegmentMethod::shrink:
            CO_TRY(co_await shrink(std::move(request)));
            break;
        case SegmentMethod::remove:
            heard = co_await remove(std::move(request));
            break;
        case SegmentMethod::list:
            heard = co_await list(std::move(request));
            break;
        case SegmentMethod::adopt:
            heard = co_await adopt(std::move(request));
            break;
        case SegmentMethod::space:
            break;
        case SegmentMethod::mend:
            CO_TRY(queue_mending(request));
            break;
    }
    if (!heard) co_return fail(std::move(heard).error());
    heard->space = space();
    out.body = encode(*heard);
    co_return out;
}

Result<media::PlacedSegment> SegmentService::find(VolumeId volume, const SegmentId& id) const {
    media::PlacedSegment found = media::find_on(stores_, id);
    if (found.pin && found.pin.info().volume == volume) return found;
    return fail(Code::not_found, "segment {} of volume {} is on none of the node's devices", id,
                volume);
}

Task<Result<void>> SegmentService::create(SegmentRequest request) {
    CO_TRY_ASSIGN(SegmentGrants::Pass pass, grants_.enter(request.volume, request.claim));
    if (media::find_on(stores_, request.id).pin) {
        co_return fail(Code::already_exists, "segment {} exists", request.id);
    }
    media::SegmentWish wish{request.id,   request.lineage, request.volume, request.group,
                            request.kind, request.bytes,   request.purpose};
    CO_TRY(co_await media::create_on_emptiest(stores_, wish));
    co_return grants_.grant(request.volume, request.claim, request.id);
}

Task<Result<void>> SegmentService::write(SegmentRequest request, std::vector<Buffer> payload) {
    CO_TRY_ASSIGN(SegmentGrants::Pass pass,
                  grants_.enter(request.volume, request.claim, request.id));
    CO_TRY_ASSIGN(media::PlacedSegment segment, find(request.volume, request.id));
    if (total_bytes(payload) != request.bytes) {
        co_return fail(Code::corrupt, "a write of {} bytes to segment {} came with {}",
                       request.bytes, request.id, total_bytes(payload));
    }
    CO_TRY(co_await segment.store->write_vector(segment.pin, request.offset, std::move(payload),
                                                request.durability));
    // The seal: a sealed segment never changes.
    bool is_seal = request.durability == runtime::Durability::durable &&
                   request.offset <= format::kSegmentFooterOffset &&
                   request.offset + request.bytes > format::kSegmentFooterOffset;
    if (is_seal) grants_.end(request.id);
    co_return Result<void>{};
}

Task<Result<Buffer>> SegmentService::read(SegmentRequest request) {
    CO_TRY_ASSIGN(media::PlacedSegment segment, find(request.volume, request.id));
    if (request.bytes == 0 || request.bytes > kSegmentCallBytesMax) {
        co_return fail(Code::invalid_argument, "one call reads 1 to {} bytes, not {}",
                       kSegmentCallBytesMax, request.bytes);
    }
    Buffer into = Buffer::allocate(request.bytes);
    CO_TRY(co_await segment.store->read(segment.pin, request.offset, into));
    co_return into;
}

Task<Result<void>> SegmentService::sync(SegmentRequest request) {
    std::vector<SegmentGrants::Pass> passes;
    std::set<media::SegmentStore*> stores;
    for (const SegmentId& id : request.ids) {
        CO_TRY_ASSIGN(SegmentGrants::Pass pass, grants_.enter(request.volume, request.claim, id));
        passes.push_back(std::move(pass));
        CO_TRY_ASSIGN(media::PlacedSegment segment, find(request.volume, id));
        stores.insert(segment.store);
    }
    for (media::SegmentStore* store : stores)
        CO_TRY(co_await store->sync());
    co_return Result<void>{};
}

Task<Result<void>> SegmentService::shrink(SegmentRequest request) {
    CO_TRY_ASSIGN(SegmentGrants::Pass pass, grants_.enter(request.volume, request.claim));
    CO_TRY_ASSIGN(media::PlacedSegment segment, find(request.volume, request.id));
    co_return co_await segment.store->shrink(segment.pin, request.bytes);
}

bool SegmentService::is_leaving(VolumeId volume) const {
    return std::ranges::any_of(
        stores_, [volume](const media::SegmentStore* store) { return store->is_leaving(volume); });
}

Task<Result<SegmentAnswer>> SegmentService::remove(SegmentRequest request) {
    SegmentAnswer answer;
    CO_TRY_ASSIGN(SegmentGrants::Pass pass, grants_.enter(request.volume, request.claim));
    for (const SegmentId& id : request.ids) {
        grants_.end(id);
        media::SegmentStore* store = nullptr;
        if (auto segment = find(request.volume, id)) store = segment->store;
        if (store == nullptr) continue;
        auto removed = co_await store->remove(id);
        if (!removed && removed.error().code() != Code::not_found)
            co_return fail(std::move(removed).error());
    }
    answer.is_leaving = is_leaving(request.volume);
    co_return answer;
}

Task<Result<SegmentAnswer>> SegmentService::list(SegmentRequest request) {
    SegmentAnswer answer;
    CO_TRY_ASSIGN(SegmentGrants::Pass pass, grants_.enter(request.volume, request.claim));
    CO_TRY(co_await grants_.settle(request.volume, request.claim));
    for (media::SegmentStore* store : stores_) {
        for (const media::SegmentInfo& info : store->list(request.volume)) {
            if (info.id > request.id) answer.copies.push_back(copy_of(info));
        }
    }
    std::ranges::sort(answer.copies, {}, &SegmentCopy::id);
    answer.is_more = answer.copies.size() > kSegmentListMax;
    if (answer.is_more) answer.copies.resize(kSegmentListMax);
    answer.is_leaving = is_leaving(request.volume);
    co_return answer;
}

Task<Result<SegmentAnswer>> SegmentService::adopt(SegmentRequest request) {
    SegmentAnswer answer;
    CO_TRY(co_await grants_.settle(request.volume, request.claim));
    CO_TRY_ASSIGN(media::PlacedSegment segment, find(request.volume, request.id));
    CO_TRY(grants_.grant(request.volume, request.claim, request.id));
    answer.copies.push_back(copy_of(segment.pin.info()));
    co_return answer;
}

NodeSpace SegmentService::space() const {
    NodeSpace out;
    for (const media::SegmentStore* store : stores_) {
        media::SegmentSpace space = store->space();
        out.total_units += space.total_units;
        out.free_units += space.free_units;
        out.reserve_units += space.reserve_units;
        out.largest_free_run = std::max<uint64_t>(out.largest_free_run, space.largest_free_run);
    }
    return out;
}

// ---- repair ----

Result<void> SegmentService::queue_mending(const SegmentRequest& request) {
    if (placement_ == nullptr) return fail(Code::unsupported, "this node repairs nothing");
    if (mendings_.size() >= kMendingsMax)
        return fail(Code::busy, "{} copies wait to be checked already", mendings_.size());
    SegmentCopy copy{request.id, request.lineage, request.group, request.kind, 1};
    mendings_.push_back({request.volume, request.lineage, copy});
    if (!is_mending_) {
        is_mending_ = true;
        gate_.spawn(env_.executor, mend_queued());
    }
    return {};
}

Task<void> SegmentService::mend_queued() {
    while (!mendings_.empty() && !gate_.is_closed()) {
        Mending next = mendings_.front();
        mendings_.pop_front();
        auto mended = co_await mend(next.volume, next.lineage, next.copy);
        if (!mended) {
            LOG_WARN("copy not mended volume={} segment={} why={}", next.volume, next.copy.id,
                     mended.error().text());
        }
    }
    is_mending_ = false;
}

Task<Result<bool>> SegmentService::mend(VolumeId volume, LineageId lineage, SegmentCopy copy) {
    auto guard = co_await mending_.lock();
    media::PlacedSegment had = media::find_on(stores_, copy.id);
    media::SegmentInfo like;
    if (had.pin) {
        like = had.pin.info();
        auto checked = co_await check_copy(*had.store, had.pin);
        if (checked) co_return false;
        bool is_bad =
            checked.error().code() == Code::corrupt || checked.error().code() == Code::io_error;
        if (!is_bad) co_return fail(std::move(checked).error());
        LOG_WARN("copy is bad volume={} segment={} why={}", volume, copy.id,
                 checked.error().message());
    } else {
        like = {copy.id, lineage, volume, copy.kind, copy.group, 0, 0};
    }
    if (like.volume != volume) {
        co_return fail(Code::invalid_argument, "segment {} is not volume {}'s", copy.id, volume);
    }
    CO_TRY(co_await mend_locked({volume, lineage, copy}, std::move(had), like));
    ++mended_count_;
    LOG_INFO("copy made anew volume={} segment={}", volume, copy.id);
    co_return true;
}

Task<Result<void>> SegmentService::mend_locked(const Mending& what, media::PlacedSegment had,
                                               media::SegmentInfo like) {
    if (placement_ == nullptr) co_return fail(Code::unavailable, "no other node is known");
    media::SegmentStore* store = had.store;
    for (media::SegmentStore* other : stores_) {
        bool is_emptier = store == nullptr ||
                          (!had.store && other->space().free_units > store->space().free_units);
        if (is_emptier) store = other;
    }
    if (store == nullptr) co_return fail(Code::unavailable, "this node has no device");
    Error why(Code::unavailable, fmt::format("no other node has a copy of segment {}", like.id));
    const std::vector<NodeId> nodes = placement_->nodes_of(like.group);
    for (const NodeId& node : nodes) {
        RemoteSegments* source =
            node == placement_->self() ? nullptr : placement_->segments_on(node);
        if (source == nullptr) continue;
        auto made = co_await make_copy_from(*source, *store, like, had.pin);
        if (made) co_return Result<void>{};
        why = std::move(made).error();
        // Another device of this node may have room for it, another source would not help.
        if (why.code() == Code::no_space) break;
    }
    co_return fail(std::move(why).within(fmt::format(
        "the copy of segment {} of volume {} cannot be made anew", like.id, what.volume)));
}

}  // namespace peplos::replica
