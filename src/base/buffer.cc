#include "base/buffer.h"

#include <array>
#include <bit>
#include <cstdlib>
#include <cstring>
#include <vector>

namespace peplos {
namespace {

// Size classes are powers of two from 4 KiB to 1 MiB; larger memory is not pooled.
constexpr uint32_t kClassCount = 9;
constexpr uint32_t kClassUnpooled = kClassCount;
// At most this much idle memory per class and thread.
constexpr size_t kIdleBytesMax = 8 * kMiB;

size_t class_bytes(uint32_t size_class) {
    return size_t{kBlockBytes} << size_class;
}

uint32_t class_for(size_t bytes) {
    size_t blocks = div_up(bytes, kBlockBytes);
    auto size_class = static_cast<uint32_t>(std::bit_width(blocks - 1));
    return size_class < kClassCount ? size_class : kClassUnpooled;
}

struct Pool {
    std::array<std::vector<void*>, kClassCount> idle;
    bool alive = true;
    ~Pool() {
        alive = false;
        for (auto& blocks : idle) {
            for (void* block : blocks)
                std::free(block);
        }
    }
};
thread_local Pool pool;

}  // namespace

// The header stands behind the payload, so that the payload starts at an aligned address.
Buffer Buffer::allocate(size_t bytes) {
    CHECK(bytes > 0);
    uint32_t size_class = class_for(bytes);
    size_t capacity =
        size_class == kClassUnpooled ? round_up(bytes, kBlockBytes) : class_bytes(size_class);
    void* memory = nullptr;
    if (size_class != kClassUnpooled && !pool.idle[size_class].empty()) {
        memory = pool.idle[size_class].back();
        pool.idle[size_class].pop_back();
    } else {
        size_t total = round_up(capacity + sizeof(Block), 64);
        CHECK(posix_memalign(&memory, kBlockBytes, total) == 0, "out of memory: {} bytes", total);
    }
    auto* base = static_cast<std::byte*>(memory);
    auto* block = new (base + capacity) Block{1, size_class, base};
    Buffer out;
    out.block_ = block;
    out.data_ = base;
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
    void* memory = block->memory;
    if (size_class != kClassUnpooled && pool.alive &&
        pool.idle[size_class].size() * class_bytes(size_class) < kIdleBytesMax) {
        pool.idle[size_class].push_back(memory);
    } else {
        std::free(memory);
    }
}

}  // namespace peplos
