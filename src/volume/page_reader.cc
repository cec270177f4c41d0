#include "volume/page_reader.h"

#include <algorithm>
#include <optional>

#include "base/fault.h"
#include "runtime/sync.h"
#include "volume/patient_read.h"

namespace peplos::volume {

using runtime::Task;

namespace {

constexpr uint64_t kWindowBytesMax = 1 * kMiB;
constexpr uint64_t kGapBytesMax = 32 * kKiB;
constexpr size_t kWorkerCount = 16;

uint64_t end_of(format::Place place) {
    return place.offset_bytes() + place.length_bytes();
}

// Whether this is the page that its parent names.
bool is_page(const format::PageSlot& slot, Bytes bytes) {
    auto page = format::outline_page(bytes);
    return page && page->crc == slot.crc && page->bytes == slot.place.length_bytes();
}

}  // namespace

// What the workers of one read_all share.
struct PageReader::Reading {
    std::vector<PageRead> pages;  // by place
    std::vector<size_t> windows;  // first page of each, then pages.size()
    Handler handler;
    size_t next = 0;
    size_t running = 0;
    std::optional<Error> error;
    runtime::Event done;
};

Result<SegmentId> PageReader::segment_of(format::Place place) const {
    const SegmentEntry* entry = segments_.find(place.segment_index());
    if (entry == nullptr || entry->kind != static_cast<uint8_t>(format::SegmentKind::map)) {
        return fail(Code::corrupt, "a map page is said to be in segment index {}: no map segment",
                    place.segment_index());
    }
    return entry->id;
}

Error PageReader::corrupt_at(const format::PageSlot& slot, Error error) const {
    Result<SegmentId> id = segment_of(slot.place);
    if (!id) return error;
    return store_.corrupt_at(*id, slot.place.offset_bytes(), std::move(error));
}

Task<Result<Buffer>> PageReader::read_copy(format::PageSlot slot, uint32_t copy) {
    CO_TRY_ASSIGN(const SegmentId id, segment_of(slot.place));
    const uint64_t begin = round_down(slot.place.offset_bytes(), kBlockBytes);
    const uint64_t end = round_up(end_of(slot.place), kBlockBytes);
    Buffer bytes = Buffer::allocate(end - begin);
    CO_TRY(co_await store_.read_copy(id, copy, begin, bytes));
    co_return bytes.slice(slot.place.offset_bytes() - begin, slot.place.length_bytes());
}

Task<Result<Buffer>> PageReader::read_better(format::PageSlot slot, Result<Buffer> first) {
    CO_TRY_ASSIGN(const SegmentId id, segment_of(slot.place));
    if (first && is_page(slot, std::as_const(*first).bytes())) co_return first;
    if (!first && !is_of_one_copy(first.error().code())) co_return first;
    const bool is_bad = first.has_value() || is_damage(first.error().code());
    const uint32_t count = store_.copy_count(id);
    bool is_away = !is_bad;
    for (uint32_t copy = 1; copy < count; ++copy) {
        Result<Buffer> other = co_await read_copy(slot, copy);
        if (other && is_page(slot, std::as_const(*other).bytes())) {
            PROBE("volume.map.other_copy");
            if (is_bad) store_.note_bad(id, 0);
            co_return other;
        }
        is_away = is_away || (!other && !is_damage(other.error().code()));
    }
    if (!is_away || (!first && !is_bad)) co_return first;
    co_return fail(Code::unavailable,
                   "a map page in segment {} at {} is bad here; another copy may be good, and its "
                   "node does not answer",
                   id, slot.place.offset_bytes());
}

Task<Result<Buffer>> PageReader::read(format::PageSlot slot) {
    CO_TRY_ASSIGN(const SegmentId id, segment_of(slot.place));
    Result<Buffer> first = co_await read_copy(slot, 0);
    if (!has_copies(id)) co_return first;
    co_return co_await read_better(slot, std::move(first));
}

Task<Result<void>> PageReader::hand_over(const PageRead& page, Bytes at, Reading& reading) {
    Result<void> handled;
    if (at.empty()) {
        CO_TRY_ASSIGN(Buffer better, co_await read(page.slot));
        handled = reading.handler(page, std::as_const(better).bytes());
    } else {
        handled = reading.handler(page, at);
    }
    if (!handled) co_return fail(corrupt_at(page.slot, std::move(handled).error()));
    co_return Result<void>{};
}

Task<Result<void>> PageReader::read_window(std::shared_ptr<Reading> reading, size_t window) {
    const size_t first = reading->windows[window];
    const size_t last = reading->windows[window + 1] - 1;
    // Places come from disk: they may overlap.
    uint64_t last_end = 0;
    for (size_t i = first; i <= last; ++i) {
        last_end = std::max(last_end, end_of(reading->pages[i].slot.place));
    }
    const format::Place front = reading->pages[first].slot.place;
    CO_TRY_ASSIGN(const SegmentId id, segment_of(front));
    const uint64_t begin = round_down(front.offset_bytes(), kBlockBytes);
    const uint64_t end = round_up(last_end, kBlockBytes);
    Buffer bytes = Buffer::allocate(end - begin);
    auto outcome = co_await store_.read(id, begin, bytes);
    const bool has_others = has_copies(id);
    if (!outcome && !has_others) co_return outcome;
    for (size_t i = first; i <= last; ++i) {
        const PageRead& page = reading->pages[i];
        Bytes at = std::as_const(bytes).bytes().subspan(page.slot.place.offset_bytes() - begin,
                                                        page.slot.place.length_bytes());
        // By itself then, out of whichever copy has it.
        if (!outcome || (has_others && !is_page(page.slot, at))) at = {};
        CO_TRY(co_await hand_over(page, at, *reading));
    }
    co_return Result<void>{};
}

Task<void> PageReader::work(std::shared_ptr<Reading> reading) {
    while (!reading->error && reading->next + 1 < reading->windows.size()) {
        const size_t window = reading->next++;
        Result<void> result = co_await read_window(reading, window);
        if (!result && !reading->error) reading->error = std::move(result).error();
    }
    if (--reading->running == 0) reading->done.set();
}

Task<Result<void>> PageReader::read_all(std::vector<PageRead> pages, Handler handler) {
    if (pages.empty()) co_return Result<void>{};
    if (gate_.is_closed()) co_return fail(Code::stopping, "the volume is closing");
    auto reading = std::make_shared<Reading>();
    reading->handler = std::move(handler);
    std::ranges::sort(pages, {}, [](const PageRead& page) {
        return std::pair(page.slot.place.segment_index(), page.slot.place.offset_units());
    });
    uint64_t begin = 0;
    for (size_t i = 0; i < pages.size(); ++i) {
        const format::Place place = pages[i].slot.place;
        const format::Place before = i == 0 ? place : pages[i - 1].slot.place;
        if (i == 0 || place.segment_index() != before.segment_index() ||
            place.offset_bytes() > end_of(before) + kGapBytesMax ||
            end_of(place) > begin + kWindowBytesMax) {
            reading->windows.push_back(i);
            begin = place.offset_bytes();
        }
    }
    reading->windows.push_back(pages.size());
    reading->pages = std::move(pages);
    reading->running = std::min(kWorkerCount, reading->windows.size() - 1);
    const size_t spawned = reading->running - 1;
    for (size_t i = 0; i < spawned; ++i)
        gate_.spawn(executor_, work(reading));
    co_await work(reading);
    co_await reading->done.wait();
    if (reading->error) co_return fail(std::move(*reading->error));
    co_return Result<void>{};
}

}  // namespace peplos::volume
