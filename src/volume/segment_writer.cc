#include "volume/segment_writer.h"

#include <algorithm>

#include "volume/patient_read.h"

namespace peplos::volume {

using format::SegmentIndexEntry;
using runtime::Durability;
using runtime::Task;

namespace {

// Buffers per gathered write: 1 MiB, so that foreground I/O gets in between.
constexpr size_t kBlocksPerWrite = 256;

}  // namespace

RunChoice choose_run(uint64_t block_count, uint64_t run_bytes_max) {
    uint64_t run = limits::kSegmentBytesMin;
    // The next size up as long as its upper half would be nearly full.
    while (run * 2 <= run_bytes_max &&
           block_count >= format::segment_block_count_max(run) +
                              format::segment_block_count_max(run) / 8 * 7) {
        run *= 2;
    }
    uint64_t most = format::segment_block_count_max(run);
    return {run, static_cast<uint32_t>(std::min(block_count, most))};
}

uint64_t run_units_for_blocks(uint64_t block_count) {
    uint64_t units = 0;
    while (block_count != 0) {
        RunChoice run = choose_run(block_count, limits::kSegmentBytesMax);
        units += run.bytes / limits::kSegmentUnitBytes;
        block_count -= run.blocks;
    }
    return units;
}

Task<Result<WrittenSegment>> write_segment(SegmentSet& set, format::SegmentKind kind,
                                           uint8_t lifetime_class,
                                           std::span<const SegmentBlock> blocks, uint64_t run_bytes,
                                           media::Purpose purpose) {
    CHECK(!blocks.empty() && blocks.size() <= format::segment_block_count_max(run_bytes));
    auto created = co_await set.create(kind, lifetime_class, run_bytes, purpose);
    if (!created) co_return fail(std::move(created).error());
    SegmentHandle handle = std::move(*created);

    std::vector<SegmentIndexEntry> entries(blocks.size());
    for (size_t i = 0; i < blocks.size(); ++i) {
        SegmentIndexEntry& entry = entries[i];
        entry.lba = blocks[i].lba;
        entry.lsn = blocks[i].lsn;
        entry.old_place = blocks[i].old_place;
        entry.offset_units =
            static_cast<uint32_t>(format::segment_block_offset(i) / format::kPlaceUnitBytes);
        entry.crc = blocks[i].crc;
    }
    for (size_t i = 0; i < blocks.size(); i += kBlocksPerWrite) {
        size_t end = std::min(i + kBlocksPerWrite, blocks.size());
        std::vector<Buffer> from;
        from.reserve(end - i);
        for (size_t j = i; j < end; ++j) {
            CHECK(blocks[j].data.size() == kBlockBytes);
            from.push_back(blocks[j].data);
        }
        auto written = co_await handle.write_vector(format::segment_block_offset(i),
                                                    std::move(from), Durability::volatile_);
        if (!written) co_return fail(std::move(written).error());
    }
    co_return co_await write_index(set, std::move(handle), kind, lifetime_class, entries,
                                   static_cast<uint32_t>(blocks.size()));
}

Task<Result<WrittenSegment>> write_index(SegmentSet& set, SegmentHandle handle,
                                         format::SegmentKind kind, uint8_t lifetime_class,
                                         std::span<const SegmentIndexEntry> entries,
                                         uint32_t block_end) {
    CHECK(!entries.empty());
    WrittenSegment out;
    out.footer.header = set.header_of(handle.id(), kind, lifetime_class);
    out.footer.entry_count = static_cast<uint32_t>(entries.size());
    out.footer.data_bytes = uint64_t{block_end} * kBlockBytes;
    auto [low, high] = std::ranges::minmax_element(entries, {}, &SegmentIndexEntry::lsn);
    out.footer.lsn_min = low->lsn;
    out.footer.lsn_max = high->lsn;
    Buffer index = Buffer::allocate(out.footer.index_bytes());
    out.footer.index_crc = format::encode_segment_index(entries, index.bytes());
    CHECK(out.footer.bytes() <= handle.bytes());
    std::vector<Buffer> from{std::move(index)};
    Durability durability =
        kind == format::SegmentKind::large ? Durability::durable : Durability::volatile_;
    auto written =
        co_await handle.write_vector(out.footer.index_offset(), std::move(from), durability);
    if (!written) co_return fail(std::move(written).error());
    out.written_bytes = out.footer.bytes();
    out.handle = std::move(handle);
    co_return out;
}

Task<Result<void>> seal_segment(WrittenSegment& segment) {
    bool with_header = segment.footer.header.kind == format::SegmentKind::large;
    std::vector<Buffer> from;
    if (with_header) {
        from.push_back(Buffer::allocate(kBlockBytes));
        format::encode_segment_header(segment.footer.header, from.back().bytes());
    }
    from.push_back(Buffer::allocate(kBlockBytes));
    format::encode_segment_footer(segment.footer, from.back().bytes());
    uint64_t offset = with_header ? format::kSegmentHeaderOffset : format::kSegmentFooterOffset;
    SegmentHandle handle = segment.handle;
    co_return co_await handle.write_vector(offset, std::move(from), Durability::durable);
}

Task<Result<void>> give_back_unused(SegmentHandle handle, format::SegmentFooter footer) {
    if (format::segment_run_bytes(footer.bytes()) >= handle.bytes()) co_return Result<void>{};
    co_return co_await handle.shrink(footer.bytes());
}

Task<Result<SealedIndex>> read_index(SegmentHandle handle) {
    auto read = [&handle](uint32_t copy) { return read_index_copy(handle, copy); };
    co_return co_await from_any_copy(handle, read);
}

Task<Result<SealedIndex>> read_index_copy(SegmentHandle handle, uint32_t copy) {
    Buffer front = Buffer::allocate(format::kSegmentDataOffset);
    CO_TRY(co_await handle.read_copy(copy, 0, front));
    auto corrupt = [&handle, copy](uint64_t offset, const Error& error) {
        if (error.code() != Code::corrupt) return error;
        return handle.corrupt_at(offset, error.message(), copy);
    };
    auto decoded = format::decode_segment_front(front.bytes(), handle.id());
    if (!decoded) co_return fail(corrupt(0, decoded.error()));
    if (!decoded->has_value()) {
        co_return fail(handle.corrupt_at(format::kSegmentFooterOffset,
                                         "it was sealed, and its footer is gone", copy));
    }
    SealedIndex out;
    out.footer = **decoded;
    if (out.footer.entry_count == 0) co_return out;
    if (out.footer.bytes() > handle.bytes()) {
        co_return fail(handle.corrupt_at(
            format::kSegmentFooterOffset,
            fmt::format("it claims {} bytes in a run of {}", out.footer.bytes(), handle.bytes()),
            copy));
    }
    Buffer index = Buffer::allocate(out.footer.index_bytes());
    CO_TRY(co_await handle.read_copy(copy, out.footer.index_offset(), index));
    auto entries = format::decode_segment_index(out.footer, index.bytes());
    if (!entries) co_return fail(corrupt(out.footer.index_offset(), entries.error()));
    out.entries = std::move(*entries);
    co_return out;
}

}  // namespace peplos::volume
