#include "replica/segment_repair.h"

#include <algorithm>

#include "base/crc32c.h"
#include "base/fault.h"
#include "format/map_page.h"

namespace peplos::replica {

using format::SegmentFooter;
using runtime::Task;

namespace {

constexpr uint64_t kRepairPieceBytes = kSegmentCallBytesMax;

Result<SegmentFooter> verify_front(Bytes front, const SegmentIdentity& expected) {
    TRY_ASSIGN(std::optional<SegmentFooter> sealed,
               format::decode_segment_front(front, expected.id));
    if (!sealed) return fail(Code::unavailable, "segment {} is not sealed", expected.id);
    if (sealed->header.volume != expected.volume || sealed->header.lineage != expected.lineage) {
        return fail(Code::corrupt, "segment {} says that it belongs to volume {}, lineage {}",
                    expected.id, sealed->header.volume, sealed->header.lineage);
    }
    if (sealed->bytes() > limits::kSegmentBytesMax) {
        return fail(Code::corrupt, "segment {} claims {} bytes", expected.id, sealed->bytes());
    }
    return *sealed;
}

// Every page vouches for itself; between batches there is padding.
Result<void> verify_pages(Bytes data) {
    for (size_t at = 0; at < data.size();) {
        auto page = format::verify_page(data.subspan(at));
        if (page) {
            at += *page;
        } else if (page.error().code() == Code::not_found) {
            at = round_up(at + 1, kBlockBytes);
        } else {
            return fail(std::move(page).error().within(
                fmt::format("at {}", format::kSegmentDataOffset + at)));
        }
    }
    return {};
}

Result<void> verify_blocks(Bytes bytes, const SegmentFooter& footer) {
    TRY_ASSIGN(std::vector<format::SegmentIndexEntry> entries,
               format::decode_segment_index(footer, bytes.subspan(footer.index_offset())));
    for (const format::SegmentIndexEntry& entry : entries) {
        uint64_t offset = uint64_t{entry.offset_units} * format::kPlaceUnitBytes;
        if (crc32c(bytes.subspan(offset, kBlockBytes)) == entry.crc) continue;
        return fail(Code::corrupt, "at {}: block {} does not match its checksum", offset,
                    entry.lba);
    }
    return {};
}

// Reads by `read(offset, into)` what the front says that there is.
template <typename Read>
Task<Result<Buffer>> read_whole(Read read, SegmentIdentity expected, uint64_t bytes_max) {
    Buffer front = Buffer::allocate(format::kSegmentDataOffset);
    CO_TRY(co_await read(0, front));
    CO_TRY_ASSIGN(const SegmentFooter footer, verify_front(std::as_const(front).bytes(), expected));
    const uint64_t bytes = footer.bytes();
    if (bytes > bytes_max) {
        co_return fail(Code::corrupt, "segment {} claims {} bytes of {}", expected.id, bytes,
                       bytes_max);
    }
    Buffer whole = Buffer::allocate(bytes);
    std::memcpy(whole.data(), front.data(), front.size());
    for (uint64_t at = front.size(); at < bytes; at += kRepairPieceBytes) {
        Buffer piece = whole.slice(at, std::min(kRepairPieceBytes, bytes - at));
        CO_TRY(co_await read(at, std::move(piece)));
    }
    co_return whole;
}

}  // namespace

Result<SegmentFooter> verify_segment(Bytes bytes, const SegmentIdentity& expected) {
    if (bytes.size() < format::kSegmentDataOffset)
        return fail(Code::corrupt, "segment {} has {} bytes", expected.id, bytes.size());
    TRY_ASSIGN(SegmentFooter footer,
               verify_front(bytes.first(format::kSegmentDataOffset), expected));
    if (footer.bytes() > bytes.size()) {
        return fail(Code::corrupt, "segment {} claims {} bytes of {}", expected.id, footer.bytes(),
                    bytes.size());
    }
    if (footer.header.kind == format::SegmentKind::map) {
        TRY(verify_pages(bytes.subspan(format::kSegmentDataOffset, footer.data_bytes)));
    } else {
        TRY(verify_blocks(bytes, footer));
    }
    return footer;
}

Task<Result<void>> check_copy(media::SegmentStore& store, media::SegmentPin pin) {
    const SegmentIdentity expected{pin.info().id, pin.info().volume, pin.info().lineage};
    auto read = [&store, &pin](uint64_t offset, Buffer into) {
        return store.read(pin, offset, std::move(into));
    };
    CO_TRY_ASSIGN(Buffer whole, co_await read_whole(read, expected, pin.info().bytes()));
    CO_TRY(verify_segment(std::as_const(whole).bytes(), expected));
    co_return Result<void>{};
}

Task<Result<media::SegmentPin>> make_copy_from(RemoteSegments& source, media::SegmentStore& store,
                                               media::SegmentInfo like, media::SegmentPin bad) {
    const SegmentIdentity expected{like.id, like.volume, like.lineage};
    auto read = [&source, &like](uint64_t offset, Buffer into) {
        return source.read(like.volume, like.id, offset, std::move(into));
    };
    CO_TRY_ASSIGN(Buffer whole, co_await read_whole(read, expected, limits::kSegmentBytesMax));
    CO_TRY_ASSIGN(const SegmentFooter footer,
                  verify_segment(std::as_const(whole).bytes(), expected));
    like.kind = footer.header.kind;
    CO_TRY_ASSIGN(media::SegmentPin copy, store.make_copy(like, footer.bytes()));
    for (uint64_t at = 0; at < whole.size(); at += kRepairPieceBytes) {
        std::vector<Buffer> from{whole.slice(at, std::min(kRepairPieceBytes, whole.size() - at))};
        CO_TRY(
            co_await store.write_vector(copy, at, std::move(from), runtime::Durability::volatile_));
    }
    CO_TRY(co_await store.put_in_place(copy, std::move(bad)));
    PROBE("replica.segment.mended");
    co_return copy;
}

}  // namespace peplos::replica
