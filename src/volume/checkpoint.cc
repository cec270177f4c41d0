#include "volume/checkpoint.h"

#include <algorithm>
#include <array>

#include "base/fault.h"
#include "base/log.h"

namespace peplos::volume {

using format::PageKind;
using format::PageSlot;
using runtime::Task;

namespace {

constexpr uint64_t kBatchBytes = 1 * kMiB;
// A map segment whose run has a smaller live part than this is emptied ...
constexpr double kVictimLiveMax = 0.5;
// ... as long as one checkpoint moves no more than this, or than it writes anyway.
constexpr uint64_t kMoveBytesMin = 1 * kMiB;
// How much of a victim is read at once.
constexpr size_t kMoveWindowPages = 64;

}  // namespace

// The map's side -------------------------------------------------------------------------------

Result<void> BlockMap::begin_checkpoint(Lsn drained_lsn, Lsn meta_lsn) {
    if (checkpoint_state_ != CheckpointState::idle) {
        return fail(Code::busy, "volume {} is being checkpointed already", identity_.volume);
    }
    if (applying_ || failed_lsn_) {
        return fail(Code::busy, "a record is being applied to the map of volume {}",
                    identity_.volume);
    }
    if (!unread_.empty()) {
        return fail(Code::busy, "changes of volume {} wait for map leaves that cannot be read",
                    identity_.volume);
    }
    CHECK(meta_lsn >= applied_lsn_, "a checkpoint at LSN {} after LSN {} was applied", meta_lsn,
          applied_lsn_);
    ++sequence_;
    checkpoint_ = std::make_unique<Checkpoint>(*this, drained_lsn, meta_lsn);
    checkpoint_state_ = CheckpointState::cut;
    return {};
}

Task<Result<RootRef>> BlockMap::write_checkpoint() {
    CHECK(checkpoint_state_ == CheckpointState::cut);
    checkpoint_state_ = CheckpointState::writing;
    Result<RootRef> root = co_await checkpoint_->write();
    checkpoint_state_ = CheckpointState::written;
    if (!root) abort_checkpoint();
    co_return root;
}

void BlockMap::commit_checkpoint() {
    CHECK(checkpoint_state_ == CheckpointState::written);
    if (durable_root_) {
        superseded_.push_back(
            {durable_root_->segment_index, durable_root_->bytes / format::kPlaceUnitBytes});
    }
    durable_root_ = checkpoint_->root();
    durable_drained_lsn_ = checkpoint_->drained_lsn();
    segments_.commit(checkpoint_->meta_lsn());
    for (const Superseded& page : superseded_) {
        segments_.count_live(page.segment_index, -int64_t{page.units});
    }
    superseded_.clear();
    checkpoint_.reset();
    checkpoint_state_ = CheckpointState::idle;
}

void BlockMap::abort_checkpoint() {
    CHECK(checkpoint_state_ == CheckpointState::cut ||
          checkpoint_state_ == CheckpointState::written);
    checkpoint_->restore();
    segments_.abort();
    checkpoint_.reset();
    checkpoint_state_ = CheckpointState::idle;
}

// Cut ------------------------------------------------------------------------------------------

Checkpoint::Checkpoint(BlockMap& map, Lsn drained_lsn, Lsn meta_lsn)
    : map_(map),
      sequence_(map.sequence_),
      drained_lsn_(drained_lsn),
      meta_lsn_(meta_lsn),
      block_count_(map.block_count_),
      mapped_count_(map.segments_.live_block_count()),
      lost_count_(map.lost_count_),
      orphan_count_max_(map.orphan_count_max_) {
    for (uint64_t key = 0; key < map.interiors_.size(); ++key) {
        BlockMap::Interior* interior = map.interiors_[key].get();
        if (interior == nullptr || interior->dirty.none()) continue;
        CHECK(interior->pending.none() && interior->captured.empty());
        interior->pending = std::exchange(interior->dirty, {});
        map.dirty_leaf_count_ -= interior->pending.count();
        keys_.push_back(key);
        bytes_expected_ += interior->pending.count() * format::kPlaceUnitBytes;
        bytes_expected_ += format::kPageBytesMax;
    }
    bytes_expected_ += map.dirty_bytes_;
    choose_victims();
    for (SegmentTable::Page& page : map.segments_.pages_) {
        if (is_victim(page.slot)) page.dirty = true;
    }
    segment_pages_ = map.segments_.cut();
    bytes_expected_ += segment_pages_.size() * format::kPageBytesMax;
}

void Checkpoint::choose_victims() {
    std::vector<std::pair<double, uint32_t>> found;
    for (uint32_t index = 0; index < map_.segments_.index_end(); ++index) {
        const SegmentEntry* entry = map_.segments_.find(index);
        if (entry == nullptr || entry->kind != static_cast<uint8_t>(format::SegmentKind::map) ||
            entry->state != SegmentState::sealed || entry->live_count == 0) {
            continue;
        }
        if (map_.store_.is_to_be_left(index)) {
            victims_.insert(index);
            continue;
        }
        // Measured against the run it takes: the small remains of many checkpoints flow together.
        const uint64_t run = format::segment_run_bytes(
            format::kSegmentDataOffset + uint64_t{entry->block_count} * format::kPlaceUnitBytes);
        const double live = static_cast<double>(entry->live_count) * format::kPlaceUnitBytes /
                            static_cast<double>(run);
        if (live < kVictimLiveMax) found.emplace_back(live, index);
    }
    std::ranges::sort(found);
    uint64_t budget = std::max(kMoveBytesMin, bytes_expected_);
    for (const auto& [live, index] : found) {
        const uint64_t bytes =
            uint64_t{map_.segments_.find(index)->live_count} * format::kPlaceUnitBytes;
        if (bytes > budget) break;
        budget -= bytes;
        bytes_expected_ += bytes;
        victims_.insert(index);
    }
}

void Checkpoint::restore() {
    // In flight and lost: what was encoded into a batch that did not get written.
    for (const Item& item : items_) {
        if (item.kind == Kind::leaf) {
            auto was = map_.interior_of(item.key).dirty[BlockMap::slot_number(item.key)];
            if (!was) ++map_.dirty_leaf_count_;
            was = true;
        } else if (item.kind == Kind::interior) {
            map_.interiors_[item.key]->page_dirty = true;
        }
    }
    items_.clear();
    for (uint64_t key : keys_) {
        BlockMap::Interior& interior = *map_.interiors_[key];
        map_.dirty_leaf_count_ -= interior.dirty.count();
        interior.dirty |= std::exchange(interior.pending, {});
        map_.dirty_leaf_count_ += interior.dirty.count();
        interior.captured.clear();
    }
    // All of them: a page written for a cut that failed leaves out what is still listed.
    for (const SegmentTable::CutPage& page : segment_pages_) {
        map_.segments_.pages_[page.key].dirty = true;
    }
    if (root_)
        map_.superseded_.push_back({root_.segment_index, root_.bytes / format::kPlaceUnitBytes});
}

// Batch ----------------------------------------------------------------------------------------

format::PageIdentity Checkpoint::identity(PageKind kind, uint64_t key) const {
    return map_.identity_of(kind, key, sequence_);
}

// Makes sure that one more page fits into the batch.
Task<Result<void>> Checkpoint::make_room() {
    if (!batch_.empty() && batch_.size() - used_ >= format::kPageBytesMax) {
        co_return Result<void>{};
    }
    CO_TRY(co_await flush());
    batch_ = Buffer::allocate(kBatchBytes);
    co_return Result<void>{};
}

void Checkpoint::push(Kind kind, uint64_t key, uint32_t bytes, uint32_t crc, uint32_t generation) {
    CHECK(bytes % format::kPlaceUnitBytes == 0 && bytes <= format::kPageBytesMax);
    const auto is_leaf = [](Kind k) { return k == Kind::leaf || k == Kind::moved_leaf; };
    CHECK(items_.empty() || is_leaf(items_.back().kind) == is_leaf(kind),
          "leaves share no run of pages, and so no block, with other pages");
    const Place place = Place::make(format::PlaceKind::page, 0, 0, bytes / format::kPlaceUnitBytes);
    items_.push_back({kind, key, used_, {place, crc, generation}});
    used_ += bytes;
}

Task<Result<void>> Checkpoint::flush() {
    if (used_ == 0) co_return Result<void>{};
    const auto size = static_cast<uint32_t>(round_up(used_, kBlockBytes));
    std::memset(batch_.data() + used_, 0, size - used_);
    Buffer pages = batch_.slice(0, size);
    CO_TRY_ASSIGN(const PageRun run, co_await map_.store_.append(std::move(pages)));
    CHECK(run.offset % kBlockBytes == 0 && run.offset + size <= limits::kSegmentBytesMax);
    for (const Item& item : items_) {
        PageSlot slot = item.slot;
        slot.place =
            Place::make(format::PlaceKind::page, run.segment_index,
                        static_cast<uint32_t>((run.offset + item.offset) / format::kPlaceUnitBytes),
                        item.slot.place.length_units());
        install(item, slot);
    }
    items_.clear();
    used_ = 0;
    batch_ = Buffer();
    co_return Result<void>{};
}

void Checkpoint::supersede(const PageSlot& slot) {
    if (!slot) return;
    map_.superseded_.push_back({slot.place.segment_index(), slot.place.length_units()});
}

void Checkpoint::install(const Item& item, const PageSlot& slot) {
    map_.segments_.count_new_page(slot.place.segment_index(), slot.place.length_units());
    if (item.kind == Kind::leaf || item.kind == Kind::moved_leaf) {
        install_leaf(item.key, slot);
    } else if (item.kind == Kind::interior) {
        supersede(std::exchange(map_.interiors_[item.key]->page, slot));
    } else {
        supersede(std::exchange(map_.segments_.pages_[item.key].slot, slot));
    }
}

// `slot` empty: the leaf maps nothing.
void Checkpoint::install_leaf(uint64_t leaf_index, const PageSlot& slot) {
    BlockMap::Slot& at = *map_.slot_of(leaf_index);
    BlockMap::Interior& interior = map_.interior_of(leaf_index);
    const uint32_t number = BlockMap::slot_number(leaf_index);
    CHECK(!interior.pending[number]);
    supersede(at.page);
    if (at.page != slot) interior.page_dirty = true;
    at.page = slot;
    if (interior.dirty[number]) return;  // changed since the cut
    if (BlockMap::is_leaf(at.leaf)) {
        map_.cache_.mark_clean(*at.leaf);
    } else if (at.leaf == BlockMap::emptied()) {
        CHECK(!slot, "leaf {} is empty and has a page", leaf_index);
        at.leaf = nullptr;
    }
}

// Writing --------------------------------------------------------------------------------------

// Requires: make_room().
void Checkpoint::encode_leaf_page(uint64_t leaf_index, std::span<const LeafItem> items) {
    if (items.empty()) {
        install_leaf(leaf_index, {});
        return;
    }
    uint32_t crc = 0;
    const uint32_t bytes =
        encode_leaf(identity(PageKind::leaf, leaf_index), items, batch_rest(), crc);
    push(Kind::leaf, leaf_index, bytes, crc, static_cast<uint32_t>(sequence_));
}

// Encodes one leaf that the cut still needs from `interior`: set aside, or as it is.
void Checkpoint::encode_next(BlockMap::Interior& interior, uint64_t key) {
    if (!interior.captured.empty()) {
        const BlockMap::Captured captured = std::move(interior.captured.back());
        interior.captured.pop_back();
        encode_leaf_page(captured.leaf_index, captured.items);
        return;
    }
    const auto number = static_cast<uint32_t>(interior.pending._Find_first());
    interior.pending[number] = false;
    const Leaf* leaf = interior.slots[number].leaf;
    std::array<LeafItem, format::kLeafEntryCount> items;
    CHECK(leaf != nullptr, "leaf {} of interior page {} was evicted dirty", number, key);
    const uint32_t count = BlockMap::is_leaf(leaf) ? leaf->items(items) : 0;
    encode_leaf_page(key * BlockMap::kSlotCount + number, std::span(items).first(count));
}

Task<Result<void>> Checkpoint::write_leaves() {
    for (uint64_t key : keys_) {
        BlockMap::Interior& interior = *map_.interiors_[key];
        while (interior.pending.any() || !interior.captured.empty()) {
            CO_TRY(co_await make_room());
            // An apply may have moved a leaf from pending to captured meanwhile, never away.
            encode_next(interior, key);
        }
    }
    co_return co_await flush();
}

// Takes a live page of a victim into the batch as it is. Requires: make_room() for it.
Result<void> Checkpoint::copy_page(const PageRead& page, Bytes bytes) {
    std::array<LeafItem, format::kLeafEntryCount> items;
    Result<uint32_t> decoded =
        decode_leaf(bytes, map_.identity_of(PageKind::leaf, page.key), page.slot, items);
    if (!decoded) {
        // It stays where it is, and its segment with it; whoever reads it gets this error.
        LOG_ERROR("map page cannot be moved volume={} leaf={} reason={}", map_.identity_.volume,
                  page.key, decoded.error().text());
        return {};
    }
    std::memcpy(batch_rest().data(), bytes.data(), bytes.size());
    push(Kind::moved_leaf, page.key, static_cast<uint32_t>(bytes.size()), page.slot.crc,
         page.slot.generation);
    return {};
}

// What can be read of the pages. The others stay where they are, and their segment with them.
Task<Result<void>> Checkpoint::read_singly(std::span<const PageRead> pages,
                                           std::vector<std::pair<PageRead, Buffer>>& out) {
    out.clear();
    for (const PageRead& page : pages) {
        Result<Buffer> bytes = co_await map_.reader_.read(page.slot);
        if (bytes) {
            out.emplace_back(page, std::move(*bytes));
        } else if (bytes.error().code() != Code::io_error &&
                   bytes.error().code() != Code::corrupt) {
            co_return fail(std::move(bytes).error());
        }
    }
    co_return Result<void>{};
}

Task<Result<void>> Checkpoint::move_pages() {
    if (victims_.empty()) co_return Result<void>{};
    std::vector<PageRead> pages;
    for (uint64_t key = 0; key < map_.interiors_.size(); ++key) {
        BlockMap::Interior* interior = map_.interiors_[key].get();
        if (interior == nullptr) continue;
        if (is_victim(interior->page)) interior->page_dirty = true;
        for (uint32_t i = 0; i < interior->slot_count; ++i) {
            const PageSlot& slot = interior->slots[i].page;
            if (is_victim(slot)) pages.push_back({slot, key * BlockMap::kSlotCount + i});
        }
    }
    std::ranges::sort(pages, {}, [](const PageRead& page) {
        return std::pair(page.slot.place.segment_index(), page.slot.place.offset_units());
    });
    for (size_t at = 0; at < pages.size(); at += kMoveWindowPages) {
        const size_t end = std::min(pages.size(), at + kMoveWindowPages);
        std::vector<PageRead> window(pages.begin() + static_cast<ptrdiff_t>(at),
                                     pages.begin() + static_cast<ptrdiff_t>(end));
        std::vector<std::pair<PageRead, Buffer>> read;
        PageReader::Handler handler = [&read](const PageRead& page, Bytes bytes) -> Result<void> {
            read.emplace_back(page, Buffer::copy_of(bytes));
            return {};
        };
        auto outcome = co_await map_.reader_.read_all(window, std::move(handler));
        if (!outcome) CO_TRY(co_await read_singly(window, read));
        for (const auto& [page, bytes] : read) {
            CO_TRY(co_await make_room());
            CO_TRY(copy_page(page, bytes.bytes()));
        }
    }
    co_return co_await flush();
}

Task<Result<void>> Checkpoint::write_interiors() {
    for (uint64_t key = 0; key < map_.interiors_.size(); ++key) {
        if (!map_.interiors_[key] || !map_.interiors_[key]->page_dirty) continue;
        CO_TRY(co_await make_room());
        BlockMap::Interior& interior = *map_.interiors_[key];
        interior.page_dirty = false;
        std::array<PageSlot, format::kInteriorSlotCount> slots;
        uint32_t count = 0;
        for (uint32_t i = 0; i < interior.slot_count; ++i) {
            slots[i] = interior.slots[i].page;
            if (slots[i]) count = i + 1;
        }
        if (count == 0) {
            supersede(std::exchange(interior.page, {}));
            continue;
        }
        uint32_t crc = 0;
        const uint32_t bytes = encode_interior(identity(PageKind::interior, key),
                                               std::span(slots).first(count), batch_rest(), crc);
        push(Kind::interior, key, bytes, crc, static_cast<uint32_t>(sequence_));
    }
    co_return co_await flush();
}

Task<Result<void>> Checkpoint::write_segments() {
    for (const SegmentTable::CutPage& page : segment_pages_) {
        if (page.entries.empty()) {
            supersede(std::exchange(map_.segments_.pages_[page.key].slot, {}));
            continue;
        }
        CO_TRY(co_await make_room());
        uint32_t crc = 0;
        const uint32_t bytes = encode_segments(identity(PageKind::segments, page.key), page.entries,
                                               batch_rest(), crc);
        push(Kind::segments, page.key, bytes, crc, static_cast<uint32_t>(sequence_));
    }
    co_return co_await flush();
}

Task<Result<void>> Checkpoint::write_root() {
    format::RootPage root;
    root.drained_lsn = drained_lsn_;
    root.meta_lsn = meta_lsn_;
    root.block_count = block_count_;
    root.mapped_count = mapped_count_;
    root.lost_count = lost_count_;
    root.orphan_count_max = orphan_count_max_;
    for (uint32_t key = 0; key < map_.interiors_.size(); ++key) {
        const auto& interior = map_.interiors_[key];
        if (interior && interior->page) root.interiors.push_back({key, 0, interior->page});
    }
    SegmentTable& segments = map_.segments_;
    for (uint32_t key = 0; key < segments.pages_.size(); ++key) {
        if (segments.pages_[key].slot) {
            root.segment_pages.push_back({key, 0, segments.pages_[key].slot});
        }
    }
    for (uint32_t index = 0; index < segments.index_end(); ++index) {
        const SegmentEntry* entry = segments.find(index);
        if (entry != nullptr && !segments.status(index).omitted &&
            entry->kind == static_cast<uint8_t>(format::SegmentKind::map)) {
            root.map_segments.push_back({index, 0, *entry});
        }
    }
    const uint32_t size = root_page_bytes(root);
    if (size > format::kRootBytesMax) {
        co_return fail(Code::no_space, "the map of volume {} needs a root of {} bytes, at most {}",
                       map_.identity_.volume, size, format::kRootBytesMax);
    }
    Buffer page = Buffer::zeroed(round_up(size, kBlockBytes));
    uint32_t crc = 0;
    const uint32_t bytes = encode_root(identity(PageKind::root, 0), root, page.bytes(), crc);
    CO_TRY_ASSIGN(const PageRun run, co_await map_.store_.append(std::move(page)));
    segments.count_new_page(run.segment_index, bytes / format::kPlaceUnitBytes);
    root_.segment = segments.find(run.segment_index)->id;
    root_.segment_index = run.segment_index;
    root_.offset_units = static_cast<uint32_t>(run.offset / format::kPlaceUnitBytes);
    root_.bytes = bytes;
    root_.crc = crc;
    root_.sequence = sequence_;
    co_return Result<void>{};
}

Task<Result<RootRef>> Checkpoint::write() {
    map_.store_.expect(bytes_expected_);
    CO_TRY(co_await write_leaves());
    CO_TRY(co_await move_pages());
    CO_TRY(co_await write_interiors());
    CO_TRY(co_await write_segments());
    CO_TRY(co_await write_root());
    if (!PLANTED("checkpoint.root_before_pages")) CO_TRY(co_await map_.store_.sync());
    co_return root_;
}

}  // namespace peplos::volume
