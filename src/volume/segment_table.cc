#include "volume/segment_table.h"

#include <algorithm>
#include <utility>

#include "base/check.h"
#include "base/fault.h"

namespace peplos::volume {
namespace {

bool is_map(const SegmentEntry& entry) {
    return entry.kind == static_cast<uint8_t>(format::SegmentKind::map);
}
bool is_dead(const SegmentEntry& entry) {
    return entry.state == SegmentState::sealed && entry.live_count == 0;
}

}  // namespace

void SegmentTable::grow_to(uint32_t index) {
    while (chunks_.size() <= index / kChunkEntries)
        chunks_.push_back(std::make_unique<Chunk>());
    while (pages_.size() <= index / kPageEntries)
        pages_.emplace_back();
    for (; index_end_ <= index; ++index_end_)
        free_.insert(free_.end(), index_end_);
}

bool SegmentTable::is_used(uint32_t index) const {
    return index < index_end_ &&
           chunks_[index / kChunkEntries]->status[index % kChunkEntries].phase == Phase::used;
}

void SegmentTable::touch(uint32_t index) {
    // Map segments are not in the pages: the root lists them.
    if (!is_map(entry(index))) pages_[index / kPageEntries].dirty = true;
}

Result<uint32_t> SegmentTable::reserve() {
    if (free_.empty()) {
        if (index_end_ > limits::kSegmentIndexMax) {
            return fail(Code::no_space, "all {} segment indexes of the volume are in use",
                        index_end_);
        }
        grow_to(index_end_);
    }
    const uint32_t index = *free_.begin();
    free_.erase(free_.begin());
    status(index) = {.phase = Phase::reserved};
    return index;
}

void SegmentTable::release(uint32_t index) {
    CHECK(index < index_end_ && status(index).phase == Phase::reserved);
    status(index) = {};
    free_.insert(index);
}

Result<void> SegmentTable::add(uint32_t index, const SegmentEntry& given) {
    if (index > limits::kSegmentIndexMax) {
        return fail(Code::corrupt, "segment {} wants index {}, the highest is {}", given.id, index,
                    limits::kSegmentIndexMax);
    }
    // A record that lies must not make the table huge: indexes are handed out lowest first.
    if (index >= index_end_ && index - index_end_ > 64 * kPageEntries) {
        return fail(Code::corrupt, "segment {} wants index {}, the table ends at {}", given.id,
                    index, index_end_);
    }
    CHECK(given.id && format::is_segment_kind(given.kind));
    CHECK(given.state == SegmentState::open || given.state == SegmentState::sealed);
    grow_to(index);
    SegmentEntry& at = entry(index);
    if (is_used(index)) {
        if (at.id != given.id || at.kind != given.kind || given.block_count < at.live_count) {
            return fail(Code::corrupt, "segment {} wants index {}, which is segment {}'s", given.id,
                        index, at.id);
        }
    } else {
        free_.erase(index);
        status(index) = {.phase = Phase::used};
        ++segment_count_;
        at = SegmentEntry{};
    }
    const uint32_t live_count = at.live_count;
    if (!is_map(given)) total_block_count_ += uint64_t{given.block_count} - at.block_count;
    at = given;
    at.live_count = live_count;
    touch(index);
    note_if_dead(index);
    return {};
}

void SegmentTable::seal(uint32_t index, uint32_t block_count) {
    CHECK(is_used(index));
    SegmentEntry& at = entry(index);
    // The map itself counts the units of map segments.
    if (!is_map(at)) {
        CHECK(block_count >= at.live_count);
        total_block_count_ += uint64_t{block_count} - at.block_count;
        at.block_count = block_count;
    }
    at.state = SegmentState::sealed;
    touch(index);
    note_if_dead(index);
}

const SegmentEntry* SegmentTable::find(uint32_t index) const {
    if (!is_used(index)) return nullptr;
    return &chunks_[index / kChunkEntries]->entries[index % kChunkEntries];
}

void SegmentTable::count_live(uint32_t index, int64_t delta) {
    CHECK(is_used(index), "segment index {} is not in use", index);
    SegmentEntry& at = entry(index);
    const int64_t now = int64_t{at.live_count} + delta;
    CHECK(now >= 0 && now <= at.block_count, "segment {} at {}: {} of {} blocks alive", at.id,
          index, now, at.block_count);
    at.live_count = static_cast<uint32_t>(now);
    if (!is_map(at)) {
        live_block_count_ += static_cast<uint64_t>(delta);
        pages_[index / kPageEntries].dirty = true;
    }
    if (now == 0) note_if_dead(index);
}

void SegmentTable::correct_live(uint32_t index, uint32_t live_count) {
    CHECK(is_used(index));
    SegmentEntry& at = entry(index);
    CHECK(!is_map(at) && live_count <= at.live_count);
    live_block_count_ -= at.live_count - live_count;
    at.live_count = live_count;
    touch(index);
}

void SegmentTable::note_if_dead(uint32_t index) {
    if (is_dead(entry(index)) && !status(index).taken) dead_.push_back(index);
}

std::vector<CleanCandidate> SegmentTable::candidates(Lsn now, uint32_t count_max) const {
    std::vector<CleanCandidate> out;
    for (uint32_t index = 0; index < index_end_; ++index) {
        const SegmentEntry* at = find(index);
        if (at == nullptr || is_map(*at) || at->state != SegmentState::sealed ||
            at->live_count == 0 || at->live_count >= at->block_count) {
            continue;
        }
        const double u = static_cast<double>(at->live_count) / at->block_count;
        const Lsn born = std::min(at->age_lsn, now);
        const double age = static_cast<double>(now.value - born.value) + 1;
        out.push_back({index, at->id, age * (1 - u) / (1 + u), at->live_count, at->block_count});
    }
    // Ties by index, so that the same state always yields the same choice.
    const auto better = [](const CleanCandidate& a, const CleanCandidate& b) {
        return a.score != b.score ? a.score > b.score : a.index < b.index;
    };
    const size_t count = std::min<size_t>(count_max, out.size());
    std::partial_sort(out.begin(), out.begin() + static_cast<ptrdiff_t>(count), out.end(), better);
    out.resize(count);
    return out;
}

std::vector<DeadSegment> SegmentTable::take_deletable() {
    std::vector<DeadSegment> out = std::exchange(deletable_, {});
    std::vector<uint32_t> later;
    for (uint32_t index : dead_) {
        if (!is_used(index) || !is_dead(entry(index)) || status(index).taken) continue;
        // A map segment is dead only once no durable root names it; it needs no record's cover.
        const SegmentEntry& at = entry(index);
        bool is_covered = at.sealed_lsn <= durable_meta_lsn_ || PLANTED("clean.removes_too_early");
        if (!is_map(at) && !is_covered) {
            if (later.empty() || later.back() != index) later.push_back(index);
            continue;
        }
        status(index).taken = true;
        out.push_back({index, at.id});
    }
    dead_ = std::move(later);
    return out;
}

void SegmentTable::hand_back(std::span<const DeadSegment> dead) {
    for (const DeadSegment& segment : dead) {
        if (is_used(segment.index) && entry(segment.index).id == segment.id) {
            status(segment.index).taken = false;
            note_if_dead(segment.index);
        } else {
            deletable_.push_back(segment);  // its index was freed meanwhile
        }
    }
}

uint64_t SegmentTable::memory_bytes() const {
    return chunks_.size() * (sizeof(Chunk) + sizeof(void*)) + pages_.size() * sizeof(Page) +
           free_.size() * 40 + dead_.capacity() * sizeof(uint32_t);
}

std::vector<SegmentTable::CutPage> SegmentTable::cut() {
    std::vector<CutPage> out;
    // What is dead now stays dead: the root leaves it out, and its commit frees the index.
    for (uint32_t index = 0; index < index_end_; ++index) {
        if (!is_used(index) || !is_dead(entry(index))) continue;
        status(index).omitted = true;
        touch(index);
    }
    for (uint32_t key = 0; key < pages_.size(); ++key) {
        if (!pages_[key].dirty) continue;
        pages_[key].dirty = false;
        CutPage page{key, {}};
        const uint32_t end = std::min((key + 1) * kPageEntries, index_end_);
        for (uint32_t index = key * kPageEntries; index < end; ++index) {
            const SegmentEntry* at = find(index);
            const bool listed = at != nullptr && !is_map(*at) && !status(index).omitted;
            page.entries.push_back(listed ? *at : SegmentEntry{});
        }
        while (!page.entries.empty() && page.entries.back() == SegmentEntry{}) {
            page.entries.pop_back();
        }
        out.push_back(std::move(page));
    }
    return out;
}

void SegmentTable::commit(Lsn meta_lsn) {
    durable_meta_lsn_ = meta_lsn;
    for (uint32_t index = 0; index < index_end_; ++index) {
        if (!status(index).omitted) continue;
        SegmentEntry& at = entry(index);
        CHECK(is_used(index) && is_dead(at), "segment {} at {} came back to life", at.id, index);
        if (!status(index).taken) deletable_.push_back({index, at.id});
        if (!is_map(at)) total_block_count_ -= at.block_count;
        at = SegmentEntry{};
        status(index) = {};
        --segment_count_;
        free_.insert(index);
    }
}

void SegmentTable::abort() {
    for (uint32_t index = 0; index < index_end_; ++index) {
        if (!status(index).omitted) continue;
        status(index).omitted = false;
        touch(index);
    }
}

Result<void> SegmentTable::restore(uint32_t key, std::span<const SegmentEntry> entries,
                                   const format::PageSlot& slot) {
    for (uint32_t i = 0; i < entries.size(); ++i) {
        if (entries[i].state == SegmentState::none) continue;
        const uint32_t index = key * kPageEntries + i;
        if (is_used(index)) {
            return fail(Code::corrupt, "the segment table lists segment {} at {}, segment {}'s",
                        entries[i].id, index, entry(index).id);
        }
        grow_to(index);
        free_.erase(index);
        status(index) = {.phase = Phase::used};
        entry(index) = entries[i];
        ++segment_count_;
        live_block_count_ += entries[i].live_count;
        total_block_count_ += entries[i].block_count;
        note_if_dead(index);
    }
    grow_to(std::max(index_end_, key * kPageEntries + 1) - 1);
    pages_[key] = {slot, false};
    return {};
}

Result<void> SegmentTable::restore_map_segment(uint32_t index, const SegmentEntry& given) {
    if (is_used(index)) {
        return fail(Code::corrupt, "the root lists segment {} at index {}, which is segment {}'s",
                    given.id, index, entry(index).id);
    }
    grow_to(index);
    free_.erase(index);
    status(index) = {.phase = Phase::used};
    SegmentEntry& at = entry(index);
    at = given;
    at.live_count = 0;
    at.state = SegmentState::sealed;  // nobody appends to it after a restart
    ++segment_count_;
    return {};
}

void SegmentTable::count_restored_page(uint32_t index, uint32_t units) {
    SegmentEntry& at = entry(index);
    CHECK(is_used(index) && is_map(at));
    at.live_count += units;
    at.block_count = std::max(at.block_count, at.live_count);
}

void SegmentTable::count_new_page(uint32_t index, uint32_t units) {
    SegmentEntry& at = entry(index);
    CHECK(is_used(index) && is_map(at), "pages went to segment index {}, not a map segment", index);
    at.block_count += units;
    at.live_count += units;
}

void SegmentTable::finish_restore(Lsn meta_lsn) {
    durable_meta_lsn_ = meta_lsn;
    for (uint32_t index = 0; index < index_end_; ++index) {
        if (!is_used(index) || !is_map(entry(index)) || entry(index).live_count != 0) continue;
        deletable_.push_back({index, entry(index).id});
        entry(index) = SegmentEntry{};
        status(index) = {};
        --segment_count_;
        free_.insert(index);
    }
}

}  // namespace peplos::volume
