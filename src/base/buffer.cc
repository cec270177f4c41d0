#include "base/buffer.h"

#include <array>
#include <bit>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <mutex>
#include <sys/mman.h>

#if defined(__has_feature)
#if __has_feature(address_sanitizer)
#include <sanitizer/asan_interface.h>
#endif
#endif
#ifndef ASAN_POISON_MEMORY_REGION
#define ASAN_POISON_MEMORY_REGION(address, size) ((void)(address), (void)(size))
#define ASAN_UNPOISON_MEMORY_REGION(address, size) ((void)(address), (void)(size))
#endif

namespace peplos {
namespace {

// Size classes are powers of two from 4 KiB to 1 MiB; larger memory is not pooled.
constexpr uint32_t kClassCount = 9;
constexpr uint32_t kClassUnpooled = kClassCount;
// The unit in which memory comes from the kernel and goes back: a huge page, where these are on.
constexpr size_t kSlabBytes = 2 * kMiB;
// Slabs without a used block that a class keeps.
constexpr size_t kEmptySlabsMax = 4;

constexpr size_t class_bytes(uint32_t size_class) {
    return size_t{kBlockBytes} << size_class;
}
constexpr size_t slab_blocks(uint32_t size_class) {
    return kSlabBytes / class_bytes(size_class);
}
// A thread's cache takes and gives half of this many blocks at a time.
constexpr size_t cache_blocks_max(uint32_t size_class) {
    return 2 * slab_blocks(size_class);
}

uint32_t class_for(size_t bytes) {
    size_t blocks = div_up(bytes, kBlockBytes);
    auto size_class = static_cast<uint32_t>(std::bit_width(blocks - 1));
    return size_class < kClassCount ? size_class : kClassUnpooled;
}

// kSlabBytes of memory at a multiple of kSlabBytes.
std::byte* map_slab() {
    void* mapped = mmap(nullptr, 2 * kSlabBytes, PROT_READ | PROT_WRITE,
                        MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    CHECK(mapped != MAP_FAILED, "out of memory: {} bytes for buffers", kSlabBytes);
    auto* start = static_cast<std::byte*>(mapped);
    size_t before = round_up(reinterpret_cast<uintptr_t>(start), kSlabBytes) -
                    reinterpret_cast<uintptr_t>(start);
    if (before != 0) munmap(start, before);
    munmap(start + before + kSlabBytes, kSlabBytes - before);
    return start + before;
}

}  // namespace

// Memory of one size class. It is in the class's list while it has free blocks.
struct Buffer::Slab {
    std::byte* memory;
    std::unique_ptr<Block[]> blocks;
    Block* free = nullptr;
    size_t free_count = 0;
    Slab* previous = nullptr;
    Slab* next = nullptr;
};

// What all threads share: per class the slabs with free blocks. Threads come in batches, so the
// lock is rare.
class BufferPool {
  public:
    using Block = Buffer::Block;
    using Slab = Buffer::Slab;

    static BufferPool& instance() {
        // Never destroyed: buffers of static objects come back late.
        static auto* pool = new BufferPool;
        return *pool;
    }

    // A chain of `count` blocks.
    Block* take(uint32_t size_class, size_t count) {
        Class& from = classes_[size_class];
        std::lock_guard lock(from.mutex);
        Block* chain = nullptr;
        while (count != 0) {
            if (from.slabs == nullptr) add_slab(from, size_class);
            Slab* slab = from.slabs;
            if (slab->free_count == slab_blocks(size_class)) --from.empty_count;
            for (; count != 0 && slab->free != nullptr; --count, --slab->free_count) {
                Block* block = slab->free;
                slab->free = block->next;
                block->next = chain;
                chain = block;
            }
            if (slab->free == nullptr) unlink(from, slab);
        }
        return chain;
    }
    // Gives back the first `count` blocks of a chain; returns the rest.
    Block* give(uint32_t size_class, Block* chain, size_t count) noexcept {
        Class& to = classes_[size_class];
        std::lock_guard lock(to.mutex);
        for (; count != 0 && chain != nullptr; --count) {
            Block* block = chain;
            chain = block->next;
            Slab* slab = block->slab;
            if (slab->free == nullptr) link(to, slab);
            block->next = slab->free;
            slab->free = block;
            if (++slab->free_count == slab_blocks(size_class)) ++to.empty_count;
            if (to.empty_count > kEmptySlabsMax) remove_slab(to, slab);
        }
        return chain;
    }

  private:
    struct Class {
        std::mutex mutex;
        Slab* slabs = nullptr;
        size_t empty_count = 0;
    };

    static void link(Class& to, Slab* slab) noexcept {
        slab->previous = nullptr;
        slab->next = to.slabs;
        if (to.slabs != nullptr) to.slabs->previous = slab;
        to.slabs = slab;
    }
    static void unlink(Class& from, Slab* slab) noexcept {
        (slab->previous == nullptr ? from.slabs : slab->previous->next) = slab->next;
        if (slab->next != nullptr) slab->next->previous = slab->previous;
    }
    static void add_slab(Class& to, uint32_t size_class) {
        size_t count = slab_blocks(size_class);
        auto* slab = new Slab{.memory = map_slab(), .blocks = std::make_unique<Block[]>(count)};
        for (size_t i = count; i-- != 0;) {
            Block& block = slab->blocks[i];
            block.size_class = size_class;
            block.memory = slab->memory + i * class_bytes(size_class);
            block.slab = slab;
            block.next = slab->free;
            slab->free = &block;
        }
        slab->free_count = count;
        ++to.empty_count;
        ASAN_POISON_MEMORY_REGION(slab->memory, kSlabBytes);
        link(to, slab);
    }
    // Requires: every block of it is free. It was counted as empty just now.
    static void remove_slab(Class& from, Slab* slab) noexcept {
        --from.empty_count;
        unlink(from, slab);
        ASAN_UNPOISON_MEMORY_REGION(slab->memory, kSlabBytes);
        munmap(slab->memory, kSlabBytes);
        delete slab;
    }

    std::array<Class, kClassCount> classes_;
};

namespace {

// Set when the thread's cache is gone, which happens before its last objects are.
thread_local bool cache_gone = false;

// Free blocks of one thread, most recently used first.
struct Cache {
    struct Chain {
        BufferPool::Block* first = nullptr;
        size_t count = 0;
    };
    std::array<Chain, kClassCount> chains;

    BufferPool::Block* take(uint32_t size_class) {
        Chain& chain = chains[size_class];
        if (chain.first == nullptr) {
            chain.count = cache_blocks_max(size_class) / 2;
            chain.first = BufferPool::instance().take(size_class, chain.count);
        }
        BufferPool::Block* block = chain.first;
        chain.first = block->next;
        --chain.count;
        return block;
    }
    void give(uint32_t size_class, BufferPool::Block* block) noexcept {
        Chain& chain = chains[size_class];
        block->next = chain.first;
        chain.first = block;
        if (++chain.count <= cache_blocks_max(size_class)) return;
        size_t half = chain.count / 2;
        chain.first = BufferPool::instance().give(size_class, chain.first, half);
        chain.count -= half;
    }
    ~Cache() {
        cache_gone = true;
        for (uint32_t i = 0; i < kClassCount; ++i) {
            BufferPool::instance().give(i, chains[i].first, chains[i].count);
        }
    }
};
thread_local Cache cache;

}  // namespace

Buffer Buffer::allocate(size_t bytes) {
    CHECK(bytes > 0);
    uint32_t size_class = class_for(bytes);
    Block* block = nullptr;
    if (size_class == kClassUnpooled) {
        void* memory = nullptr;
        size_t total = round_up(bytes, kBlockBytes);
        CHECK(posix_memalign(&memory, kBlockBytes, total) == 0, "out of memory: {} bytes", total);
        block = new Block{0, size_class, static_cast<std::byte*>(memory), nullptr, nullptr};
    } else {
        block = cache_gone ? BufferPool::instance().take(size_class, 1) : cache.take(size_class);
        ASAN_UNPOISON_MEMORY_REGION(block->memory, bytes);
    }
    block->references.store(1, std::memory_order_relaxed);
    Buffer out;
    out.block_ = block;
    out.data_ = block->memory;
    out.size_ = bytes;
    return out;
}

Buffer Buffer::zeroed(size_t bytes) {
    Buffer out = allocate(bytes);
    std::memset(out.data_, 0, bytes);
    return out;
}

Buffer Buffer::copy_of(Bytes bytes) {
    Buffer out = allocate(bytes.size());
    std::memcpy(out.data_, bytes.data(), bytes.size());
    return out;
}

void Buffer::release(Block* block) noexcept {
    uint32_t size_class = block->size_class;
    if (size_class == kClassUnpooled) {
        std::free(block->memory);
        delete block;
        return;
    }
    ASAN_POISON_MEMORY_REGION(block->memory, class_bytes(size_class));
    if (cache_gone) {
        block->next = nullptr;
        BufferPool::instance().give(size_class, block, 1);
    } else {
        cache.give(size_class, block);
    }
}

}  // namespace peplos
