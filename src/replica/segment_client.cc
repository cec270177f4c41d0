#include "replica/segment_client.h"

#include <algorithm>
#include <bit>

namespace peplos::replica {

using runtime::Task;

namespace {

// A node that lives and says nothing for so long has a device that hangs.
constexpr Duration kCallTime = std::chrono::seconds(10);

SegmentRequest request_of(const SegmentActor& actor) {
    SegmentRequest request;
    request.volume = actor.volume;
    request.lineage = actor.lineage;
    request.claim = actor.claim;
    return request;
}

}  // namespace

RemoteSegments::RemoteSegments(peer::Channel& channel)
    : RemoteSegments(channel.node(),
                     [&channel](peer::Method method, peer::Message message, Duration timeout) {
                         return channel.call(method, std::move(message), timeout);
                     }) {}

Task<Result<RemoteSegments::Answer>> RemoteSegments::ask(SegmentMethod method,
                                                         SegmentRequest request,
                                                         std::vector<Buffer> payload) {
    peer::Message message{.body = encode(request), .payload = std::move(payload)};
    auto answered = co_await call_(static_cast<uint16_t>(method), std::move(message), kCallTime);
    if (!answered) {
        Error error = std::move(answered).error();
        // It is the node that stops, not who asks it.
        if (error.code() == Code::stopping) error = Error(Code::unavailable, error.message());
        co_return fail(std::move(error).within(fmt::format("node {}", node_)));
    }
    auto decoded = decode_segment_answer(answered->body);
    if (!decoded) {
        co_return fail(Code::outcome_unknown, "node {}: {}", node_, decoded.error().message());
    }
    space_ = decoded->space;
    co_return Answer{std::move(*decoded), std::move(answered->payload)};
}

Task<Result<void>> RemoteSegments::create(SegmentActor actor, SegmentId id, GroupId group,
                                          format::SegmentKind kind, uint64_t bytes,
                                          media::Purpose purpose) {
    SegmentRequest request = request_of(actor);
    request.id = id;
    request.group = group;
    request.kind = kind;
    request.bytes = bytes;
    request.purpose = purpose;
    CO_TRY(co_await ask(SegmentMethod::create, std::move(request)));
    co_return Result<void>{};
}

Task<Result<void>> RemoteSegments::write(SegmentActor actor, SegmentId id, uint64_t offset,
                                         std::vector<Buffer> from, runtime::Durability durability) {
    for (size_t next = 0; next < from.size();) {
        SegmentRequest request = request_of(actor);
        request.id = id;
        request.offset = offset;
        request.durability = durability;
        std::vector<Buffer> part;
        while (next < from.size() && request.bytes < kSegmentCallBytesMax) {
            uint64_t room = kSegmentCallBytesMax - request.bytes;
            Buffer& buffer = from[next];
            if (buffer.size() <= room) {
                request.bytes += buffer.size();
                part.push_back(std::move(from[next++]));
            } else {
                request.bytes += room;
                part.push_back(buffer.slice(0, room));
                buffer = buffer.slice(room, buffer.size() - room);
            }
        }
        offset += request.bytes;
        CO_TRY(co_await ask(SegmentMethod::write, std::move(request), std::move(part)));
    }
    co_return Result<void>{};
}

Task<Result<void>> RemoteSegments::read_piece(VolumeId volume, SegmentId id, uint64_t offset,
                                              Buffer into) {
    SegmentRequest request;
    request.volume = volume;
    request.id = id;
    request.offset = offset;
    request.bytes = into.size();
    CO_TRY_ASSIGN(Answer answer, co_await ask(SegmentMethod::read, std::move(request)));
    size_t done = 0;
    for (const Buffer& part : answer.payload) {
        if (part.size() > into.size() - done) break;
        std::memcpy(into.data() + done, part.data(), part.size());
        done += part.size();
    }
    if (done == into.size()) co_return Result<void>{};
    co_return fail(Code::corrupt, "node {}: {} of {} bytes of segment {} in its answer", node_,
                   done, into.size(), id);
}

Task<Result<void>> RemoteSegments::read(VolumeId volume, SegmentId id, uint64_t offset,
                                        Buffer into) {
    for (uint64_t done = 0; done < into.size();) {
        uint64_t bytes = std::min<uint64_t>(into.size() - done, kSegmentCallBytesMax);
        Buffer piece = into.slice(done, bytes);
        CO_TRY(co_await read_piece(volume, id, offset + done, std::move(piece)));
        done += bytes;
    }
    co_return Result<void>{};
}

Task<Result<void>> RemoteSegments::sync(SegmentActor actor, std::vector<SegmentId> ids) {
    SegmentRequest request = request_of(actor);
    request.ids = std::move(ids);
    CO_TRY(co_await ask(SegmentMethod::sync, std::move(request)));
    co_return Result<void>{};
}

Task<Result<void>> RemoteSegments::shrink(SegmentActor actor, SegmentId id, uint64_t bytes) {
    SegmentRequest request = request_of(actor);
    request.id = id;
    request.bytes = bytes;
    CO_TRY(co_await ask(SegmentMethod::shrink, std::move(request)));
    co_return Result<void>{};
}

Task<Result<bool>> RemoteSegments::remove(SegmentActor actor, std::vector<SegmentId> ids) {
    SegmentRequest request = request_of(actor);
    request.ids = std::move(ids);
    CO_TRY_ASSIGN(Answer answer, co_await ask(SegmentMethod::remove, std::move(request)));
    co_return !answer.answer.is_leaving;
}

Task<Result<RemoteSegments::Listing>> RemoteSegments::list(SegmentActor actor) {
    Listing out;
    for (;;) {
        SegmentRequest request = request_of(actor);
        if (!out.copies.empty()) request.id = out.copies.back().id;
        SegmentId after = request.id;
        CO_TRY_ASSIGN(Answer answer, co_await ask(SegmentMethod::list, std::move(request)));
        for (const SegmentCopy& copy : answer.answer.copies) {
            if (copy.id <= after) {
                co_return fail(Code::corrupt, "node {}: segments listed out of order", node_);
            }
            after = copy.id;
            out.copies.push_back(copy);
        }
        out.is_leaving = answer.answer.is_leaving;
        if (!answer.answer.is_more || answer.answer.copies.empty()) co_return out;
    }
}

Task<Result<SegmentCopy>> RemoteSegments::adopt(SegmentActor actor, SegmentId id) {
    SegmentRequest request = request_of(actor);
    request.id = id;
    CO_TRY_ASSIGN(Answer answer, co_await ask(SegmentMethod::adopt, std::move(request)));
    if (answer.answer.copies.size() != 1 || answer.answer.copies[0].id != id) {
        co_return fail(Code::outcome_unknown, "node {}: another segment than {} was adopted", node_,
                       id);
    }
    co_return answer.answer.copies[0];
}

Task<Result<void>> RemoteSegments::mend(VolumeId volume, LineageId lineage, SegmentCopy copy) {
    SegmentRequest request;
    request.volume = volume;
    request.lineage = lineage;
    request.id = copy.id;
    request.group = copy.group;
    request.kind = copy.kind;
    CO_TRY(co_await ask(SegmentMethod::mend, std::move(request)));
    co_return Result<void>{};
}

Task<Result<void>> RemoteSegments::refresh_space() {
    CO_TRY(co_await ask(SegmentMethod::space, SegmentRequest{}));
    co_return Result<void>{};
}

bool RemoteSegments::has_room(uint64_t bytes, media::Purpose purpose) const {
    if (!space_) return true;
    uint64_t units = std::bit_ceil(div_up(bytes, limits::kSegmentUnitBytes));
    uint64_t reserve = purpose == media::Purpose::user ? space_->reserve_units : 0;
    return space_->free_units >= units + reserve && space_->largest_free_run >= units;
}

}  // namespace peplos::replica
