#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <utility>

#include "base/bytes.h"
#include "base/units.h"

namespace peplos {

// Reference-counted memory aligned to kBlockBytes, and a slice of it.
//
// A Disk operation holds a Buffer until it completes, so a waiter that gives up abandons the wait,
// never the memory. Copies share the bytes; who may write them is the holders' agreement: bytes
// handed to a write or published in the overlay no longer change.
class Buffer {
  public:
    Buffer() = default;
    // `bytes` > 0, contents undefined. Up to 1 MiB it comes from slabs of one power of two each,
    // through a cache of the calling thread; any thread may give it back.
    static Buffer allocate(size_t bytes);
    static Buffer zeroed(size_t bytes);
    static Buffer copy_of(Bytes bytes);

    Buffer(const Buffer& other) noexcept
        : block_(other.block_), data_(other.data_), size_(other.size_) {
        if (block_ != nullptr) block_->references.fetch_add(1, std::memory_order_relaxed);
    }
    Buffer(Buffer&& other) noexcept
        : block_(std::exchange(other.block_, nullptr)),
          data_(std::exchange(other.data_, nullptr)),
          size_(std::exchange(other.size_, 0)) {}
    Buffer& operator=(Buffer other) noexcept {
        std::swap(block_, other.block_);
        std::swap(data_, other.data_);
        std::swap(size_, other.size_);
        return *this;
    }
    ~Buffer() {
        if (block_ != nullptr && block_->references.fetch_sub(1, std::memory_order_acq_rel) == 1) {
            release(block_);
        }
    }

    std::byte* data() { return data_; }
    const std::byte* data() const { return data_; }
    size_t size() const { return size_; }
    bool empty() const { return size_ == 0; }
    MutableBytes bytes() { return {data_, size_}; }
    Bytes bytes() const { return {data_, size_}; }
    // Shares the memory. Requires: offset + size <= this->size().
    Buffer slice(size_t offset, size_t size) const {
        CHECK(offset <= size_ && size <= size_ - offset);
        Buffer out(*this);
        out.data_ += offset;
        out.size_ = size;
        return out;
    }

  private:
    friend class BufferPool;

    struct Slab;
    // Stands apart from the payload, so that a payload of 4 KiB takes one page and no more.
    struct Block {
        std::atomic<uint32_t> references;
        uint32_t size_class;
        std::byte* memory;
        Slab* slab;
        // Of the free list that it is in.
        Block* next;
    };
    static void release(Block* block) noexcept;

    Block* block_ = nullptr;
    std::byte* data_ = nullptr;
    size_t size_ = 0;
};

}  // namespace peplos
