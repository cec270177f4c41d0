// What reads all of a map: load after a restart, audit.

#include <algorithm>
#include <array>

#include "volume/block_map.h"
#include "volume/checkpoint.h"
#include "volume/patient_read.h"

namespace peplos::volume {

using format::PageKind;
using format::PageSlot;
using format::RootPage;
using runtime::Task;

namespace {

// The two highest bits of a page's key tell the kinds apart; none of them: a leaf.
constexpr uint64_t kInteriorBit = uint64_t{1} << 63;
constexpr uint64_t kTableBit = uint64_t{1} << 62;

}  // namespace

// Counts a page that the root reaches in its map segment.
Result<void> BlockMap::count_page(const PageSlot& slot) {
    const uint32_t index = slot.place.segment_index();
    const SegmentEntry* segment = segments_.find(index);
    if (segment == nullptr || segment->kind != static_cast<uint8_t>(format::SegmentKind::map)) {
        return fail(Code::corrupt,
                    "the map of volume {} has a page in segment index {}, which the root does not "
                    "list as a map segment",
                    identity_.volume, index);
    }
    segments_.count_restored_page(index, slot.place.length_units());
    return {};
}

Task<Result<RootPage>> BlockMap::load_root(RootRef ref) {
    const uint64_t offset = uint64_t{ref.offset_units} * format::kPlaceUnitBytes;
    if (ref.bytes == 0 || ref.bytes > format::kRootBytesMax ||
        ref.bytes % format::kPlaceUnitBytes != 0 || !ref.segment || ref.sequence == 0 ||
        ref.segment_index > limits::kSegmentIndexMax ||
        offset + ref.bytes > limits::kSegmentBytesMax) {
        co_return fail(Code::corrupt,
                       "the root record of volume {} names no possible place: segment {} at {}, "
                       "{}+{} bytes",
                       identity_.volume, ref.segment, ref.segment_index, offset, ref.bytes);
    }
    const uint64_t begin = round_down(offset, kBlockBytes);
    Buffer bytes = Buffer::allocate(round_up(offset + ref.bytes, kBlockBytes) - begin);
    Result<RootPage> root = fail(Code::not_found, "map segment {} has no copy", ref.segment);
    bool is_away = false;
    for (uint32_t copy = 0; copy == 0 || copy < store_.copy_count(ref.segment); ++copy) {
        auto read = co_await store_.read_copy(ref.segment, copy, begin, bytes);
        const Bytes page = bytes.bytes().subspan(offset - begin, ref.bytes);
        Result<RootPage> decoded = read ? decode_root(page, identity_of(PageKind::root, 0), ref)
                                        : Result<RootPage>(std::unexpected(read.error()));
        if (decoded && copy != 0) store_.note_bad(ref.segment, 0);
        if (decoded) co_return decoded;
        is_away = is_away || !is_damage(decoded.error().code());
        if (copy == 0 && read) {
            root = fail(store_.corrupt_at(ref.segment, offset, std::move(decoded).error()));
        } else if (copy == 0) {
            root = std::move(decoded);
        }
    }
    if (is_away && is_damage(root.error().code())) {
        co_return fail(Code::unavailable,
                       "{}; another copy may be good, and its node does not "
                       "answer",
                       root.error().message());
    }
    co_return root;
}

Result<void> BlockMap::load_interior(uint64_t key, const PageSlot& slot, Bytes page) {
    std::array<PageSlot, format::kInteriorSlotCount> pages;
    TRY(decode_interior(page, identity_of(PageKind::interior, key), slot, pages));
    make_interior(key);
    Interior& interior = *interiors_[key];
    interior.page = slot;
    for (uint32_t i = 0; i < pages.size(); ++i) {
        if (!pages[i]) continue;
        if (i >= interior.slot_count) {
            return fail(Code::corrupt, "interior page {} of volume {} maps behind its end", key,
                        identity_.volume);
        }
        TRY(count_page(pages[i]));
        interior.slots[i].page = pages[i];
    }
    return {};
}

Result<void> BlockMap::load_segments(uint64_t key, const PageSlot& slot, Bytes page) {
    std::vector<SegmentEntry> entries(format::kSegmentPageEntryCount);
    TRY(decode_segments(page, identity_of(PageKind::segments, key), slot, entries));
    return segments_.restore(static_cast<uint32_t>(key), entries, slot);
}

Task<Result<void>> BlockMap::load(RootRef ref) {
    CHECK(sequence_ == 0 && segments_.segment_count() == 0, "load() is for a new map");
    CO_TRY_ASSIGN(RootPage root, co_await load_root(ref));
    block_count_ = root.block_count;
    interiors_.clear();
    interiors_.resize(div_up(block_count_, kInteriorBlocks));
    for (const format::RootMapSegment& segment : root.map_segments) {
        if ((segment.entry.id == ref.segment) != (segment.segment_index == ref.segment_index)) {
            co_return fail(Code::corrupt,
                           "the root of volume {} lists its segment {} at {}, not {}",
                           identity_.volume, ref.segment, segment.segment_index, ref.segment_index);
        }
        CO_TRY(segments_.restore_map_segment(segment.segment_index, segment.entry));
    }
    // Opened for the root itself, its segment is in no list.
    if (segments_.find(ref.segment_index) == nullptr) {
        SegmentEntry own;
        own.id = ref.segment;
        own.kind = static_cast<uint8_t>(format::SegmentKind::map);
        CO_TRY(segments_.restore_map_segment(ref.segment_index, own));
    }
    segments_.count_restored_page(ref.segment_index, ref.bytes / format::kPlaceUnitBytes);
    std::vector<PageRead> pages;
    pages.reserve(root.interiors.size() + root.segment_pages.size());
    for (const format::RootChild& child : root.interiors)
        pages.push_back({child.slot, child.key | kInteriorBit});
    for (const format::RootChild& child : root.segment_pages) {
        pages.push_back({child.slot, child.key | kTableBit});
    }
    for (const PageRead& page : pages)
        CO_TRY(count_page(page.slot));
    PageReader::Handler handler = [this](const PageRead& page, Bytes bytes) {
        return (page.key & kInteriorBit) != 0
                   ? load_interior(page.key & ~kInteriorBit, page.slot, bytes)
                   : load_segments(page.key & ~kTableBit, page.slot, bytes);
    };
    CO_TRY(co_await reader_.read_all(std::move(pages), std::move(handler)));
    if (segments_.live_block_count() != root.mapped_count) {
        co_return fail(Code::corrupt, "the root of volume {} maps {} blocks, its segments have {}",
                       identity_.volume, root.mapped_count, segments_.live_block_count());
    }
    segments_.finish_restore(root.meta_lsn);
    sequence_ = ref.sequence;
    applied_lsn_ = root.meta_lsn;
    durable_drained_lsn_ = root.drained_lsn;
    durable_root_ = ref;
    lost_count_ = root.lost_count;
    orphan_count_max_ = root.orphan_count_max;
    co_return Result<void>{};
}

// Audit ----------------------------------------------------------------------------------------

namespace {

// Live counts as the map itself says: blocks per data segment, units per map segment.
using Counts = std::vector<uint64_t>;

void count(Counts& counts, Place place, uint64_t amount) {
    if (counts.size() <= place.segment_index()) counts.resize(place.segment_index() + 1);
    counts[place.segment_index()] += amount;
}

// How many of them name a block.
uint64_t count_blocks(Counts& counts, std::span<const LeafItem> items) {
    uint64_t blocks = 0;
    for (const LeafItem& item : items) {
        if (!item.entry.is_block()) continue;
        count(counts, item.entry.place, 1);
        ++blocks;
    }
    return blocks;
}

}  // namespace

Task<Result<BlockMap::Audit>> BlockMap::audit() {
    CHECK(!applying_ && checkpoint_state_ == CheckpointState::idle);
    Audit audit;
    Counts counts;
    std::vector<PageRead> pages;
    std::array<LeafItem, format::kLeafEntryCount> items;
    const auto count_page_units = [&](const PageSlot& slot) {
        if (slot) count(counts, slot.place, slot.place.length_units());
    };
    for (uint64_t key = 0; key < interiors_.size(); ++key) {
        const Interior* interior = interiors_[key].get();
        if (interior == nullptr) continue;
        count_page_units(interior->page);
        for (uint32_t i = 0; i < interior->slot_count; ++i) {
            const Slot& slot = interior->slots[i];
            count_page_units(slot.page);
            if (is_leaf(slot.leaf)) {
                const uint32_t item_count = slot.leaf->items(items);
                audit.mapped_count += count_blocks(counts, std::span(items).first(item_count));
                audit.leaf_count += item_count != 0 ? 1 : 0;
            } else if (slot.leaf == nullptr && slot.page) {
                pages.push_back({slot.page, key * kSlotCount + i});
            }
        }
    }
    PageReader::Handler handler = [&](const PageRead& page, Bytes bytes) -> Result<void> {
        TRY_ASSIGN(const uint32_t item_count,
                   decode_leaf(bytes, identity_of(PageKind::leaf, page.key), page.slot, items));
        audit.mapped_count += count_blocks(counts, std::span(items).first(item_count));
        ++audit.leaf_count;
        return {};
    };
    CO_TRY(co_await reader_.read_all(std::move(pages), std::move(handler)));
    for (const SegmentTable::Page& page : segments_.pages_)
        count_page_units(page.slot);
    if (durable_root_) {
        const uint32_t units = durable_root_->bytes / format::kPlaceUnitBytes;
        count(counts, Place::make(format::PlaceKind::page, durable_root_->segment_index, 0, 1),
              units);
    }
    for (const Superseded& page : superseded_) {
        count(counts, Place::make(format::PlaceKind::page, page.segment_index, 0, 1), page.units);
    }
    counts.resize(std::max<size_t>(counts.size(), segments_.index_end()));
    for (uint32_t index = 0; index < counts.size(); ++index) {
        const SegmentEntry* segment = segments_.find(index);
        const uint64_t live = segment == nullptr ? 0 : segment->live_count;
        if (live == counts[index]) continue;
        audit.mismatches.push_back(fmt::format(
            "segment {} at index {} counts {} alive, the map names {}",
            segment == nullptr ? SegmentId{} : segment->id, index, live, counts[index]));
    }
    co_return audit;
}

// Scrub ----------------------------------------------------------------------------------------

std::vector<PageRead> BlockMap::pages_in(uint32_t segment_index) const {
    std::vector<PageRead> pages;
    const auto add = [&](const PageSlot& slot, uint64_t key) {
        if (slot && slot.place.segment_index() == segment_index) pages.push_back({slot, key});
    };
    for (uint64_t key = 0; key < interiors_.size(); ++key) {
        const Interior* interior = interiors_[key].get();
        if (interior == nullptr) continue;
        add(interior->page, key | kInteriorBit);
        for (uint32_t i = 0; i < interior->slot_count; ++i)
            add(interior->slots[i].page, key * kSlotCount + i);
    }
    for (uint64_t key = 0; key < segments_.pages_.size(); ++key)
        add(segments_.pages_[key].slot, key | kTableBit);
    return pages;
}

Result<void> BlockMap::check_page(const PageRead& page, Bytes bytes) const {
    if ((page.key & kInteriorBit) != 0) {
        std::array<PageSlot, format::kInteriorSlotCount> slots;
        const uint64_t key = page.key & ~kInteriorBit;
        return decode_interior(bytes, identity_of(PageKind::interior, key), page.slot, slots);
    }
    if ((page.key & kTableBit) != 0) {
        std::vector<SegmentEntry> entries(format::kSegmentPageEntryCount);
        const uint64_t key = page.key & ~kTableBit;
        return decode_segments(bytes, identity_of(PageKind::segments, key), page.slot, entries);
    }
    std::array<LeafItem, format::kLeafEntryCount> items;
    TRY_ASSIGN(const uint32_t count,
               decode_leaf(bytes, identity_of(PageKind::leaf, page.key), page.slot, items));
    const auto lost =
        std::ranges::count_if(std::span(items).first(count), &MapEntry::is_lost, &LeafItem::entry);
    if (lost == 0) return {};
    const uint64_t first = page.key * limits::kLeafBlocks;
    return fail(Code::not_found,
                "volume {}: {} of the blocks {} to {} are lost, the map leaf that said where they "
                "lie could not be read; restore them from a backup, or free them",
                identity_.volume, lost, first,
                std::min(first + limits::kLeafBlocks, block_count_) - 1);
}

Task<uint64_t> BlockMap::scrub_segment(uint32_t index, std::vector<std::string>& problems) {
    uint64_t bytes_checked = 0;
    std::vector<PageRead> pages = pages_in(index);
    for (const PageRead& page : pages) {
        Result<Buffer> bytes = co_await reader_.read(page.slot);
        bytes_checked += page.slot.place.length_bytes();
        Result<void> checked;
        if (!bytes) {
            checked = fail(std::move(bytes).error());
        } else if (checked = check_page(page, bytes->bytes()); !checked) {
            checked = fail(reader_.corrupt_at(page.slot, std::move(checked).error()));
        }
        if (!checked) problems.push_back(checked.error().message());
    }
    if (durable_root_ && durable_root_->segment_index == index) {
        Result<RootPage> root = co_await load_root(*durable_root_);
        bytes_checked += durable_root_->bytes;
        if (!root) problems.push_back(root.error().message());
    }
    co_return bytes_checked;
}

uint64_t BlockMap::memory_bytes() const {
    uint64_t bytes = sizeof(BlockMap) + interiors_.capacity() * sizeof(interiors_[0]) +
                     segments_.memory_bytes() + superseded_.capacity() * sizeof(Superseded);
    for (const auto& interior : interiors_) {
        if (interior) bytes += sizeof(Interior) + interior->slot_count * sizeof(Slot);
    }
    return bytes;
}

uint64_t BlockMap::leaf_count() const {
    uint64_t count = 0;
    for (const auto& interior : interiors_) {
        if (!interior) continue;
        for (uint32_t i = 0; i < interior->slot_count; ++i) {
            const Slot& slot = interior->slots[i];
            count += slot.page || slot.leaf != nullptr ? 1 : 0;
        }
    }
    return count;
}

}  // namespace peplos::volume
