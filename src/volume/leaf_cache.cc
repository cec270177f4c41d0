#include "volume/leaf_cache.h"

#include <algorithm>

#include "volume/block_map.h"

namespace peplos::volume {

// Leaf -----------------------------------------------------------------------------------------

MapEntry Leaf::find_sparse(uint32_t block) const {
    const uint16_t* begin = keys_.get();
    const uint16_t* end = begin + count_;
    const uint16_t* at = std::lower_bound(begin, end, block);
    return at != end && *at == block ? entries_[at - keys_.get()] : MapEntry{};
}

void Leaf::copy(uint32_t first, std::span<MapEntry> out) const {
    CHECK(first + out.size() <= kEntryCount);
    if (dense_) {
        std::copy_n(dense_.get() + first, out.size(), out.begin());
        return;
    }
    std::fill(out.begin(), out.end(), MapEntry{});
    const uint16_t* begin = keys_.get();
    const uint16_t* end = begin + count_;
    const uint16_t* at = std::lower_bound(begin, end, first);
    for (; at != end && *at < first + out.size(); ++at) {
        out[*at - first] = entries_[at - keys_.get()];
    }
}

void Leaf::reserve_sparse(uint32_t capacity) {
    CHECK(capacity >= count_ && capacity <= kSparseEntriesMax);
    auto keys = std::make_unique_for_overwrite<uint16_t[]>(capacity);
    auto entries = std::make_unique_for_overwrite<MapEntry[]>(capacity);
    std::copy_n(keys_.get(), count_, keys.get());
    std::copy_n(entries_.get(), count_, entries.get());
    keys_ = std::move(keys);
    entries_ = std::move(entries);
    capacity_ = capacity;
}

void Leaf::make_dense() {
    auto dense = std::make_unique<MapEntry[]>(kEntryCount);
    for (uint32_t i = 0; i < count_; ++i)
        dense[keys_[i]] = entries_[i];
    dense_ = std::move(dense);
    keys_.reset();
    entries_.reset();
    capacity_ = 0;
}

void Leaf::assign(std::span<const LeafItem> items) {
    CHECK(items.size() <= kEntryCount);
    count_ = 0;
    capacity_ = 0;
    keys_.reset();
    entries_.reset();
    dense_.reset();
    if (items.size() > kSparseEntriesMax) {
        dense_ = std::make_unique<MapEntry[]>(kEntryCount);
        for (const LeafItem& item : items)
            dense_[item.index] = item.entry;
    } else if (!items.empty()) {
        reserve_sparse(static_cast<uint32_t>(items.size()));
        for (uint32_t i = 0; i < items.size(); ++i) {
            keys_[i] = static_cast<uint16_t>(items[i].index);
            entries_[i] = items[i].entry;
        }
    }
    count_ = static_cast<uint32_t>(items.size());
}

MapEntry Leaf::exchange_dense(uint32_t block, MapEntry entry) {
    const MapEntry old = std::exchange(dense_[block], entry);
    count_ += (entry ? 1 : 0) - (old ? 1 : 0);
    return old;
}

MapEntry Leaf::exchange(uint32_t block, MapEntry entry) {
    CHECK(block < kEntryCount);
    if (dense_) return exchange_dense(block, entry);
    const auto at = static_cast<uint32_t>(
        std::lower_bound(keys_.get(), keys_.get() + count_, block) - keys_.get());
    if (at < count_ && keys_[at] == block) {
        const MapEntry old = entries_[at];
        if (entry) {
            entries_[at] = entry;
            return old;
        }
        --count_;
        std::copy(keys_.get() + at + 1, keys_.get() + count_ + 1, keys_.get() + at);
        std::copy(entries_.get() + at + 1, entries_.get() + count_ + 1, entries_.get() + at);
        return old;
    }
    if (!entry) return {};
    if (count_ == kSparseEntriesMax) {
        make_dense();
        return exchange_dense(block, entry);
    }
    if (count_ == capacity_) {
        reserve_sparse(std::min(kSparseEntriesMax, std::max(4u, capacity_ + capacity_ / 2)));
    }
    std::copy_backward(keys_.get() + at, keys_.get() + count_, keys_.get() + count_ + 1);
    std::copy_backward(entries_.get() + at, entries_.get() + count_, entries_.get() + count_ + 1);
    keys_[at] = static_cast<uint16_t>(block);
    entries_[at] = entry;
    ++count_;
    return {};
}

uint32_t Leaf::items(std::span<LeafItem> out) const {
    CHECK(out.size() >= count_);
    uint32_t count = 0;
    if (dense_) {
        for (uint32_t i = 0; i < kEntryCount; ++i) {
            if (dense_[i]) out[count++] = {i, dense_[i]};
        }
    } else {
        for (; count < count_; ++count)
            out[count] = {keys_[count], entries_[count]};
    }
    CHECK(count == count_, "leaf {} counts {} blocks and has {}", index_, count_, count);
    return count;
}

uint32_t Leaf::memory_bytes() const {
    const size_t entries =
        dense_ ? kEntryCount * sizeof(MapEntry) : capacity_ * (sizeof(MapEntry) + sizeof(uint16_t));
    return static_cast<uint32_t>(sizeof(Leaf) + entries);
}

// LeafCache ------------------------------------------------------------------------------------

void LeafCache::link(Leaf& leaf) {
    leaf.previous_ = tail_;
    leaf.next_ = nullptr;
    (tail_ != nullptr ? tail_->next_ : head_) = &leaf;
    tail_ = &leaf;
}

void LeafCache::unlink(Leaf& leaf) {
    (leaf.previous_ != nullptr ? leaf.previous_->next_ : head_) = leaf.next_;
    (leaf.next_ != nullptr ? leaf.next_->previous_ : tail_) = leaf.previous_;
    leaf.previous_ = leaf.next_ = nullptr;
}

void LeafCache::charge(Leaf& leaf) {
    const uint32_t now = leaf.memory_bytes();
    if (leaf.charged_bytes_ == 0 && leaf.clean_ && leaf.pins_ == 0) link(leaf);
    bytes_ += uint64_t{now} - leaf.charged_bytes_;
    if (!leaf.clean_) {
        const uint64_t change = uint64_t{now} - leaf.charged_bytes_;
        dirty_bytes_ += change;
        leaf.owner_->dirty_bytes_ += change;
    }
    leaf.charged_bytes_ = now;
    if (bytes_ <= bytes_max_) return;
    pin(leaf);
    evict_to(bytes_max_);
    unpin(leaf);
}

void LeafCache::discharge(Leaf& leaf) {
    CHECK(leaf.pins_ == 0);
    if (leaf.clean_) {
        if (leaf.charged_bytes_ != 0) unlink(leaf);
    } else {
        dirty_bytes_ -= leaf.charged_bytes_;
        leaf.owner_->dirty_bytes_ -= leaf.charged_bytes_;
    }
    bytes_ -= leaf.charged_bytes_;
    leaf.charged_bytes_ = 0;
}

void LeafCache::mark_dirty(Leaf& leaf) {
    if (!leaf.clean_) return;
    if (leaf.pins_ == 0) unlink(leaf);
    leaf.clean_ = false;
    dirty_bytes_ += leaf.charged_bytes_;
    leaf.owner_->dirty_bytes_ += leaf.charged_bytes_;
}

void LeafCache::mark_clean(Leaf& leaf) {
    if (leaf.clean_) return;
    leaf.clean_ = true;
    dirty_bytes_ -= leaf.charged_bytes_;
    leaf.owner_->dirty_bytes_ -= leaf.charged_bytes_;
    if (leaf.pins_ == 0) link(leaf);
}

void LeafCache::pin(Leaf& leaf) {
    if (leaf.pins_++ == 0 && leaf.clean_) unlink(leaf);
}

void LeafCache::unpin(Leaf& leaf) {
    CHECK(leaf.pins_ != 0);
    if (--leaf.pins_ == 0 && leaf.clean_) link(leaf);
}

void LeafCache::evict_to(uint64_t bytes_max) {
    // Two rounds clear every mark; `patience` bounds the second chances.
    size_t patience = 64;
    while (bytes_ > bytes_max && head_ != nullptr) {
        Leaf& leaf = *head_;
        if (leaf.referenced_ && patience != 0) {
            --patience;
            leaf.referenced_ = false;
            unlink(leaf);
            link(leaf);
            continue;
        }
        leaf.owner_->evict(leaf);
        patience = 64;
    }
}

void LeafCache::set_bytes_max(uint64_t bytes_max) {
    bytes_max_ = bytes_max;
    evict_to(bytes_max_);
}

void LeafCache::drop_clean() {
    evict_to(0);
}

}  // namespace peplos::volume
