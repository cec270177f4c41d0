#pragma once

#include <bit>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <span>
#include <type_traits>

#include "base/check.h"

namespace peplos {

static_assert(std::endian::native == std::endian::little,
              "formats are little-endian and read in place");

using Bytes = std::span<const std::byte>;
using MutableBytes = std::span<std::byte>;

template <typename T>
Bytes bytes_of(const T& object) {
    static_assert(std::is_trivially_copyable_v<T>);
    return std::as_bytes(std::span<const T, 1>(&object, 1));
}
inline Bytes bytes_of_text(std::string_view text) {
    return std::as_bytes(std::span(text.data(), text.size()));
}

// Reads fields from bytes that nobody has vouched for. After a read past the end `ok()` is false
// for good and every further read gives zeros: check once, at the end.
class ByteReader {
  public:
    explicit ByteReader(Bytes bytes) : bytes_(bytes) {}

    template <typename T>
    T read() {
        static_assert(std::is_trivially_copyable_v<T>);
        T value{};
        Bytes from = take(sizeof(T));
        if (from.size() == sizeof(T)) std::memcpy(&value, from.data(), sizeof(T));
        return value;
    }
    Bytes take(size_t count) {
        if (!ok_ || count > bytes_.size() - offset_) {
            ok_ = false;
            return {};
        }
        Bytes out = bytes_.subspan(offset_, count);
        offset_ += count;
        return out;
    }
    bool ok() const { return ok_; }
    size_t offset() const { return offset_; }
    size_t remaining() const { return bytes_.size() - offset_; }

  private:
    Bytes bytes_;
    size_t offset_ = 0;
    bool ok_ = true;
};

// Writes fields into a buffer whose size the caller computed; running over is our own bug.
class ByteWriter {
  public:
    explicit ByteWriter(MutableBytes bytes) : bytes_(bytes) {}

    template <typename T>
    void write(const T& value) {
        put(bytes_of(value));
    }
    void put(Bytes from) {
        CHECK(from.size() <= bytes_.size() - offset_);
        if (!from.empty()) std::memcpy(bytes_.data() + offset_, from.data(), from.size());
        offset_ += from.size();
    }
    void zero_to(size_t end) {
        CHECK(end >= offset_ && end <= bytes_.size());
        std::memset(bytes_.data() + offset_, 0, end - offset_);
        offset_ = end;
    }
    size_t offset() const { return offset_; }

  private:
    MutableBytes bytes_;
    size_t offset_ = 0;
};

}  // namespace peplos
