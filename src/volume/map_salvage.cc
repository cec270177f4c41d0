#include "volume/map_salvage.h"

#include <algorithm>
#include <array>
#include <cstring>

#include "base/fault.h"
#include "volume/salvage.h"

namespace peplos::volume {

using format::PageKind;
using format::Place;
using format::PlaceKind;
using format::RootPage;
using runtime::Task;

namespace {

constexpr uint64_t kPieceBytes = 64 * kKiB;

}  // namespace

PageSlot MapSalvage::FoundPage::slot(uint32_t segment_index) const {
    return {Place::make(PlaceKind::page, segment_index,
                        static_cast<uint32_t>(offset / format::kPlaceUnitBytes),
                        outline.bytes / format::kPlaceUnitBytes),
            outline.crc, static_cast<uint32_t>(outline.identity.sequence)};
}

// ---- the pages that are there, by their own word ----

Task<Result<void>> MapSalvage::scan() {
    if (scanned_) co_return Result<void>{};
    scanned_ = true;
    for (const auto& [id, bytes] : map_segments_)
        CO_TRY(co_await scan_segment(id, bytes));
    co_return Result<void>{};
}

// What cannot be read stays zero: no page begins there.
Task<Result<void>> MapSalvage::scan_segment(SegmentId id, uint64_t bytes) {
    Buffer whole = Buffer::zeroed(bytes);
    for (uint64_t at = 0; at < bytes; at += kPieceBytes) {
        Buffer piece = whole.slice(at, std::min(kPieceBytes, bytes - at));
        Result<void> read = co_await map_.store_.read(id, at, piece);
        if (read) continue;
        if (!is_damage(read.error().code())) co_return read;
        for (uint64_t i = 0; i < piece.size(); i += kBlockBytes) {
            Buffer block = piece.slice(i, kBlockBytes);
            auto again =
                co_await read_patiently([&] { return map_.store_.read(id, at + i, block); });
            if (again.outcome) continue;
            std::memset(block.data(), 0, block.size());
            unreadable_.emplace(id, at + i);
        }
    }
    walk(id, std::as_const(whole).bytes());
    co_return Result<void>{};
}

void MapSalvage::walk(SegmentId id, Bytes bytes) {
    for (uint64_t at = format::kSegmentDataOffset; at + format::kPlaceUnitBytes <= bytes.size();) {
        auto page = format::outline_page(bytes.subspan(at));
        if (!page) {
            static constexpr std::array<std::byte, format::kPlaceUnitBytes> kZeros{};
            if (std::memcmp(bytes.data() + at, kZeros.data(), kZeros.size()) != 0)
                unknown_.emplace(id, at);
            at += format::kPlaceUnitBytes;
            continue;
        }
        const format::PageIdentity& identity = page->identity;
        if (identity.volume == map_.identity_.volume &&
            identity.lineage == map_.identity_.lineage && identity.sequence <= sequence_) {
            pages_.push_back({*page, id, at});
        }
        at += page->bytes;
    }
}

// A page that is known to be lost explains its own bytes, and a block that cannot be read at all:
// a checkpoint puts leaves into no block that another kind of page is in (Checkpoint::push).
void MapSalvage::explain(SegmentId id, uint64_t offset, uint64_t bytes) {
    for (uint64_t at = offset; at < offset + bytes; at += format::kPlaceUnitBytes)
        explained_.emplace(id, at);
}

void MapSalvage::explain(const PageSlot& slot) {
    const SegmentEntry* entry = map_.segments_.find(slot.place.segment_index());
    if (entry != nullptr) explain(entry->id, slot.place.offset_bytes(), slot.place.length_bytes());
}

// Bytes of a map segment that the map uses, which are no page that can be read, and no page that is
// known to be lost: they may have been the newest of a leaf.
bool MapSalvage::has_unknown_bytes() const {
    std::set<std::pair<SegmentId, uint64_t>> explained_blocks;
    for (const auto& [id, at] : explained_)
        explained_blocks.emplace(id, round_down(at, kBlockBytes));
    auto is_doubtful = [this](const auto& places, const auto& explained) {
        return std::ranges::any_of(places, [&](const auto& place) {
            return !explained.contains(place) && index_of(place.first).has_value();
        });
    };
    return is_doubtful(unknown_, explained_) || is_doubtful(unreadable_, explained_blocks);
}

std::optional<uint32_t> MapSalvage::index_of(SegmentId id) const {
    for (uint32_t index = 0; index < map_.segments_.index_end(); ++index) {
        const SegmentEntry* entry = map_.segments_.find(index);
        if (entry != nullptr && entry->id == id) return index;
    }
    return std::nullopt;
}

Task<Result<Buffer>> MapSalvage::read_page(const PageSlot& slot) {
    auto page = co_await read_patiently([&] { return map_.reader_.read(slot); });
    co_return std::move(page.outcome);
}

// ---- root ----

Task<Result<RootPage>> MapSalvage::find_root(RootRef ref, RootPage from_record) {
    auto read = co_await read_patiently([&] { return map_.load_root(ref); });
    Result<RootPage>& root = read.outcome;
    if (root || !is_damage(root.error().code())) co_return std::move(root);
    PROBE("map_salvage.root");
    root_lost_ = true;
    explain(ref.segment, uint64_t{ref.offset_units} * format::kPlaceUnitBytes, ref.bytes);
    findings_.push_back(root.error().message());
    CO_TRY(co_await scan());
    CO_TRY(co_await rebuild_root(ref, &from_record));
    co_return from_record;
}

// The newest page of each key is the root's. Which index a map segment has follows from interior
// pages: they name leaves by index, and the leaves are where they are.
Task<Result<void>> MapSalvage::rebuild_root(RootRef ref, RootPage* root) {
    std::map<std::pair<PageKind, uint64_t>, const FoundPage*> newest;
    std::map<std::tuple<uint64_t, uint32_t, uint64_t>, const FoundPage*> leaves;
    for (const FoundPage& page : pages_) {
        const format::PageIdentity& identity = page.outline.identity;
        const FoundPage*& best = newest[{identity.kind, identity.key}];
        if (best == nullptr || best->outline.identity.sequence <= identity.sequence) best = &page;
        if (identity.kind == PageKind::leaf)
            leaves[{identity.key, page.outline.crc, page.offset}] = &page;
    }
    std::map<SegmentId, uint32_t> indexes{{ref.segment, ref.segment_index}};
    uint32_t index_end = ref.segment_index + 1;
    std::array<PageSlot, format::kInteriorSlotCount> slots;
    for (const auto& [who, page] : newest) {
        if (who.first == PageKind::segments) {
            index_end = std::max<uint32_t>(
                index_end, static_cast<uint32_t>(who.second + 1) * format::kSegmentPageEntryCount);
        }
        if (who.first != PageKind::interior) continue;
        const PageSlot slot = page->slot(0);
        Buffer bytes = Buffer::allocate(round_up(page->outline.bytes + kBlockBytes, kBlockBytes));
        const uint64_t begin = round_down(page->offset, kBlockBytes);
        Buffer window =
            bytes.slice(0, round_up(page->offset + page->outline.bytes, kBlockBytes) - begin);
        CO_TRY(co_await map_.store_.read(page->segment, begin, window));
        const Bytes at =
            std::as_const(window).bytes().subspan(page->offset - begin, page->outline.bytes);
        CO_TRY(decode_interior(at, map_.identity_of(PageKind::interior, who.second), slot, slots));
        for (uint64_t i = 0; i < slots.size(); ++i) {
            if (!slots[i]) continue;
            index_end = std::max(index_end, slots[i].place.segment_index() + 1);
            auto leaf = leaves.find({who.second * format::kInteriorSlotCount + i, slots[i].crc,
                                     slots[i].place.offset_bytes()});
            if (leaf != leaves.end())
                indexes.try_emplace(leaf->second->segment, slots[i].place.segment_index());
        }
    }
    for (const auto& [id, bytes] : map_segments_) {
        auto [place, is_new] = indexes.try_emplace(id, index_end);
        if (is_new) ++index_end;
        SegmentEntry entry;
        entry.id = id;
        entry.kind = static_cast<uint8_t>(format::SegmentKind::map);
        entry.state = SegmentState::sealed;
        root->map_segments.push_back({place->second, 0, entry});
    }
    for (const auto& [who, page] : newest) {
        auto index = indexes.find(page->segment);
        if (index == indexes.end()) continue;
        const format::RootChild child{static_cast<uint32_t>(who.second), 0,
                                      page->slot(index->second)};
        if (who.first == PageKind::interior) root->interiors.push_back(child);
        if (who.first == PageKind::segments) root->segment_pages.push_back(child);
    }
    co_return Result<void>{};
}

// ---- tables and interior pages ----

// Whether the page that the root names could be read, and `load` took it.
Task<Result<bool>> MapSalvage::load_child(const format::RootChild& child, LoadPage load) {
    CO_TRY(map_.count_page(child.slot));
    Result<Buffer> page = co_await read_page(child.slot);
    if (!page && !is_damage(page.error().code())) co_return fail(std::move(page).error());
    Result<void> loaded = page ? (map_.*load)(child.key, child.slot, std::as_const(*page).bytes())
                               : Result<void>(fail(page.error()));
    if (loaded) co_return true;
    findings_.push_back(page ? map_.reader_.corrupt_at(child.slot, loaded.error()).message()
                             : loaded.error().message());
    explain(child.slot);
    co_return false;
}

Task<Result<void>> MapSalvage::load_tables(const RootPage& root) {
    for (const format::RootChild& child : root.segment_pages) {
        CO_TRY_ASSIGN(const bool is_there, co_await load_child(child, &BlockMap::load_segments));
        if (is_there) continue;
        PROBE("map_salvage.table");
        CO_TRY(map_.segments_.restore(child.key, {}, child.slot));
        map_.segments_.pages_[child.key].dirty = true;
        lost_tables_.insert(child.key);
    }
    co_return Result<void>{};
}

Task<Result<void>> MapSalvage::load_interiors(const RootPage& root) {
    for (const format::RootChild& child : root.interiors) {
        CO_TRY_ASSIGN(const bool is_there, co_await load_child(child, &BlockMap::load_interior));
        if (is_there) continue;
        PROBE("map_salvage.interior");
        CO_TRY(co_await scan());
        if (!map_.interiors_[child.key]) map_.make_interior(child.key);
        map_.interiors_[child.key]->page = child.slot;
        map_.interiors_[child.key]->page_dirty = true;
        lost_interiors_.insert(child.key);
        find_leaves(child.key);
    }
    co_return Result<void>{};
}

// The newest leaf of each place, in the map segments that the root lists.
void MapSalvage::find_leaves(uint64_t key) {
    std::map<uint64_t, std::pair<const FoundPage*, uint32_t>> newest;
    std::map<SegmentId, std::optional<uint32_t>> indexes;
    for (const FoundPage& page : pages_) {
        const format::PageIdentity& identity = page.outline.identity;
        if (identity.kind != PageKind::leaf || identity.key / BlockMap::kSlotCount != key) continue;
        auto [index, is_new] = indexes.try_emplace(page.segment);
        if (is_new) index->second = index_of(page.segment);
        if (!index->second) continue;
        auto& best = newest[identity.key];
        if (best.first == nullptr || best.first->outline.identity.sequence < identity.sequence)
            best = {&page, *index->second};
    }
    for (const auto& [leaf_index, found] : newest) {
        const PageSlot slot = found.first->slot(found.second);
        if (BlockMap::slot_number(leaf_index) >= map_.interiors_[key]->slot_count) continue;
        if (!map_.count_page(slot)) continue;
        map_.slot_of(leaf_index)->page = slot;
    }
}

// ---- leaves ----

void MapSalvage::count_leaf(uint64_t leaf_index, std::span<const LeafItem> items) {
    const bool is_unproven =
        root_lost_ || lost_interiors_.contains(leaf_index / BlockMap::kSlotCount);
    for (const LeafItem& item : items) {
        if (!item.entry.is_block()) continue;
        const uint32_t segment = item.entry.place.segment_index();
        const uint64_t lba = leaf_index * limits::kLeafBlocks + item.index;
        if (!disproven_.empty()) {
            if (is_unproven && disproven_.contains(segment)) losses_.push_back({Lba(lba), 1});
            continue;
        }
        ++counts_[segment];
        if (map_.segments_.find(segment) == nullptr)
            missing_[segment].blocks.emplace_back(lba, item.entry);
    }
}

// A leaf that names a segment which the table does not have is of the past: nothing was mapped
// there any more, so that no newer one was written.
bool MapSalvage::is_let_go(uint64_t leaf_index, std::span<const LeafItem> items) const {
    if (!lost_interiors_.contains(leaf_index / BlockMap::kSlotCount)) return false;
    return std::ranges::any_of(items, [this](const LeafItem& item) {
        const uint32_t segment = item.entry.place.segment_index();
        return item.entry.is_block() && map_.segments_.find(segment) == nullptr &&
               !lost_tables_.contains(segment / format::kSegmentPageEntryCount);
    });
}

void MapSalvage::let_go(uint64_t leaf_index) {
    const PageSlot slot = std::exchange(map_.slot_of(leaf_index)->page, {});
    map_.segments_.entry(slot.place.segment_index()).live_count -= slot.place.length_units();
}

Task<Result<void>> MapSalvage::read_leaves() {
    std::array<LeafItem, format::kLeafEntryCount> items;
    for (uint64_t key = 0; key < map_.interiors_.size(); ++key) {
        if (!map_.interiors_[key]) continue;
        for (uint32_t i = 0; i < map_.interiors_[key]->slot_count; ++i) {
            const PageSlot slot = map_.interiors_[key]->slots[i].page;
            if (!slot) continue;
            const uint64_t leaf_index = key * BlockMap::kSlotCount + i;
            Result<Buffer> page = co_await read_page(slot);
            if (!page && !is_damage(page.error().code())) co_return fail(std::move(page).error());
            Result<uint32_t> count =
                page ? decode_leaf(std::as_const(*page).bytes(),
                                   map_.identity_of(PageKind::leaf, leaf_index), slot, items)
                     : Result<uint32_t>(fail(page.error()));
            if (count && is_let_go(leaf_index, std::span(items).first(*count))) {
                let_go(leaf_index);
            } else if (count) {
                count_leaf(leaf_index, std::span(items).first(*count));
            } else if (disproven_.empty()) {
                ++unread_leaves_;  // its blocks are lost when it is needed, as always
            }
        }
    }
    co_return Result<void>{};
}

Task<Result<void>> MapSalvage::load(RootRef ref, RootPage from_record) {
    CHECK(map_.sequence_ == 0 && map_.segments_.segment_count() == 0, "this is for a new map");
    sequence_ = ref.sequence;
    CO_TRY_ASSIGN(RootPage root, co_await find_root(ref, std::move(from_record)));
    map_.block_count_ = root.block_count;
    map_.interiors_.clear();
    map_.interiors_.resize(div_up(root.block_count, BlockMap::kInteriorBlocks));
    for (const format::RootMapSegment& segment : root.map_segments)
        CO_TRY(map_.segments_.restore_map_segment(segment.segment_index, segment.entry));
    if (map_.segments_.find(ref.segment_index) == nullptr) {
        SegmentEntry own;
        own.id = ref.segment;
        own.kind = static_cast<uint8_t>(format::SegmentKind::map);
        CO_TRY(map_.segments_.restore_map_segment(ref.segment_index, own));
    }
    map_.segments_.count_restored_page(ref.segment_index, ref.bytes / format::kPlaceUnitBytes);
    std::erase_if(root.interiors,
                  [&](const auto& child) { return child.key >= map_.interiors_.size(); });
    CO_TRY(co_await load_tables(root));
    CO_TRY(co_await load_interiors(root));
    CO_TRY(co_await read_leaves());
    map_.segments_.finish_restore(root.meta_lsn);
    map_.sequence_ = ref.sequence;
    map_.applied_lsn_ = root.meta_lsn;
    map_.durable_drained_lsn_ = root.drained_lsn;
    map_.durable_root_ = ref;
    map_.lost_count_ = root.lost_count;
    map_.orphan_count_max_ = root.orphan_count_max;
    co_return Result<void>{};
}

// ---- which segment an index meant ----

void MapSalvage::match(std::vector<FoundSegment> found) {
    for (auto& [index, missing] : missing_) {
        auto holds = [&](const FoundSegment& segment) {
            return std::ranges::all_of(missing.blocks, [&](const auto& block) {
                const auto& [lba, entry] = block;
                auto at = std::ranges::lower_bound(segment.index, Lba(lba), {},
                                                   &format::SegmentIndexEntry::lba);
                return at != segment.index.end() && at->lba.value == lba &&
                       at->map_entry(index) == entry;
            });
        };
        auto which = std::ranges::find_if(found, holds);
        SegmentEntry entry;
        if (which != found.end()) {
            entry = which->entry;
            found.erase(which);
        } else {
            // Nothing of it can be read, but its entries must name something until they are lost.
            entry.id = SegmentId{map_.identity_.volume, 0, index};
            entry.kind = static_cast<uint8_t>(format::SegmentKind::data);
            entry.state = SegmentState::sealed;
            entry.block_count = static_cast<uint32_t>(missing.blocks.size());
            for (const auto& block : missing.blocks)
                losses_.push_back({Lba(block.first), 1});
        }
        if (!map_.segments_.add(index, entry)) continue;
        map_.segments_.count_live(index, static_cast<int64_t>(missing.blocks.size()));
    }
}

// ---- proof ----

Task<Result<void>> MapSalvage::prove() {
    SegmentTable& table = map_.segments_;
    uint64_t short_by = 0;
    for (uint32_t index = 0; index < table.index_end(); ++index) {
        const SegmentEntry* entry = table.find(index);
        if (entry == nullptr || entry->kind == static_cast<uint8_t>(format::SegmentKind::map))
            continue;
        auto counted = counts_.find(index);
        const uint64_t named = counted == counts_.end() ? 0 : counted->second;
        if (named == entry->live_count) continue;
        disproven_.insert(index);
        if (named < entry->live_count) short_by += entry->live_count - named;
        // More than there were: some are of leaves that were let go, nobody can say which.
        if (named > entry->live_count)
            table.count_live(index, static_cast<int64_t>(named - entry->live_count));
    }
    // A leaf that cannot be read and an old one in the place of another may make up for each other.
    const bool is_doubtful = unread_leaves_ != 0 || has_unknown_bytes();
    if ((short_by != 0 || is_doubtful) && root_lost_) {
        co_return fail(Code::unavailable,
                       "volume {}: its map cannot be put together: pages that say where blocks lie "
                       "are missing ({} blocks at least); restore a backup",
                       map_.identity_.volume, short_by);
    }
    if (!disproven_.empty()) CO_TRY(co_await read_leaves());
    // Leaves are missing, and older ones may stand in for them: nothing there is proven.
    if (short_by != 0 || is_doubtful) {
        if (is_doubtful && !lost_interiors_.empty()) PROBE("map_salvage.doubtful");
        map_.orphan_count_max_ += short_by;
        for (uint64_t key : lost_interiors_) {
            const uint64_t first = key * BlockMap::kInteriorBlocks;
            losses_.push_back(
                {Lba(first), std::min(BlockMap::kInteriorBlocks, map_.block_count_ - first)});
        }
    }
    std::ranges::sort(losses_, {}, &ZeroExtent::first);
    co_return Result<void>{};
}

}  // namespace peplos::volume
