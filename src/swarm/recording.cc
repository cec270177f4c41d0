#include "swarm/recording.h"

#include <algorithm>
#include <cstring>

#include "base/crc32c.h"
#include "base/ids.h"

namespace peplos::swarm {

namespace {

uint64_t sum_of(uint64_t page, const Image::PagePtr& content) {
    if (content == nullptr) return 0;
    uint64_t low = crc32c(std::as_bytes(std::span(*content)));
    uint64_t middle = 0;
    std::memcpy(&middle, content->data() + kBlockBytes / 2, sizeof(middle));
    return mix_bits(mix_bits(page + 1) ^ low) ^ mix_bits(middle ^ (page << 32));
}

Image::PagePtr copy_of(const std::byte* content) {
    auto page = std::make_shared<Image::Page>();
    std::memcpy(page->data(), content, kBlockBytes);
    bool is_zero = std::ranges::all_of(*page, [](std::byte b) { return b == std::byte{0}; });
    return is_zero ? nullptr : page;
}

}  // namespace

void Image::put(uint64_t page, PagePtr content) {
    auto at = pages_.find(page);
    if (at != pages_.end()) {
        sum_ -= sum_of(page, at->second);
        pages_.erase(at);
    }
    if (content == nullptr) return;
    sum_ += sum_of(page, content);
    pages_.emplace(page, std::move(content));
}

Image::PagePtr Image::get(uint64_t page) const {
    auto at = pages_.find(page);
    return at == pages_.end() ? nullptr : at->second;
}

void Recording::submitted(uint64_t id, const sim::DiskMedia::Request& request) {
    using sim::DiskOperation;
    if (request.operation == DiskOperation::read) return;
    if (request.operation == DiskOperation::sync) {
        Sync sync{id, {}};
        for (const Write& write : pending_) {
            if (!write.is_in_flight) sync.covered.push_back(write.id);
        }
        syncs_.push_back(std::move(sync));
        return;
    }
    Write write{id, request.offset / kBlockBytes, {}, true, true};
    if (request.operation == DiskOperation::write) {
        write.is_durable = request.durability == sim::Durability::durable;
        for (const Buffer& buffer : request.buffers) {
            for (size_t at = 0; at < buffer.size(); at += kBlockBytes)
                write.pages.push_back(copy_of(buffer.data() + at));
        }
    } else {
        write.pages.resize(request.bytes / kBlockBytes);
    }
    pending_.push_back(std::move(write));
    changed_();
}

void Recording::completed(uint64_t id, bool succeeded) {
    CHECK(succeeded, "a recording is of disks without faults");
    auto sync = std::ranges::find(syncs_, id, &Sync::id);
    if (sync != syncs_.end()) {
        std::vector<uint64_t> covered = std::move(sync->covered);
        syncs_.erase(sync);
        for (auto it = pending_.begin(); it != pending_.end();) {
            auto next = std::next(it);
            if (std::ranges::find(covered, it->id) != covered.end()) {
                land(durable_, *it, 0, it->pages.size());
                pending_.erase(it);
            }
            it = next;
        }
        changed_();
        return;
    }
    auto write = std::ranges::find(pending_, id, &Write::id);
    if (write == pending_.end()) return;  // a read
    write->is_in_flight = false;
    if (write->is_durable) {
        land(durable_, *write, 0, write->pages.size());
        pending_.erase(write);
    }
    changed_();
}

void Recording::settle() {
    for (const Write& write : pending_) {
        if (!write.is_in_flight) land(durable_, write, 0, write.pages.size());
    }
    std::erase_if(pending_, [](const Write& write) { return !write.is_in_flight; });
}

void Recording::land(Image& image, const Write& write, size_t begin, size_t end) {
    for (size_t i = begin; i < end; ++i)
        image.put(write.first_page + i, write.pages[i]);
}

void Recording::each_image(const std::function<void(const Image&)>& visit) const {
    std::vector<const Write*> writes;
    for (const Write& write : pending_)
        writes.push_back(&write);
    auto with = [&](auto is_landed) {
        Image image = durable_;
        for (size_t i = 0; i < writes.size(); ++i) {
            if (is_landed(i)) land(image, *writes[i], 0, writes[i]->pages.size());
        }
        visit(image);
    };
    if (writes.size() <= kSubsetWritesMax) {
        for (uint64_t subset = 0; subset < uint64_t{1} << writes.size(); ++subset)
            with([subset](size_t i) { return (subset >> i & 1) != 0; });
    } else {
        with([](size_t) { return false; });
        with([](size_t) { return true; });
        for (size_t one = 0; one < writes.size(); ++one) {
            with([one](size_t i) { return i == one; });
            with([one](size_t i) { return i != one; });
        }
    }
    visit_halves(visit);
}

// One write in part, with all that was submitted before it and with nothing else.
void Recording::visit_halves(const std::function<void(const Image&)>& visit) const {
    for (auto cut = pending_.begin(); cut != pending_.end(); ++cut) {
        for (bool is_with_earlier : {false, true}) {
            if (is_with_earlier && cut == pending_.begin()) continue;
            Image before = durable_;
            for (auto it = pending_.begin(); is_with_earlier && it != cut; ++it)
                land(before, *it, 0, it->pages.size());
            size_t half = cut->pages.size() / 2;
            if (half != 0) {
                Image first = before;
                land(first, *cut, 0, half);
                visit(first);
                Image second = before;
                land(second, *cut, half, cut->pages.size());
                visit(second);
            }
            // The first page: old and new sectors.
            Image::PagePtr old = before.get(cut->first_page);
            Image::PagePtr fresh = cut->pages.front();
            Image::Page mixed{};
            if (old != nullptr) mixed = *old;
            if (fresh != nullptr) {
                std::memcpy(mixed.data(), fresh->data(), kBlockBytes / 2);
            } else {
                std::memset(mixed.data(), 0, kBlockBytes / 2);
            }
            Image torn = before;
            torn.put(cut->first_page, copy_of(mixed.data()));
            visit(torn);
        }
    }
}

}  // namespace peplos::swarm
