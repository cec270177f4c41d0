#pragma once

#include <cstdint>

#include "base/bytes.h"

namespace peplos::runtime {

// The seam for randomness. Production: getrandom(2). Simulation: the seed.
class Rng {
  public:
    virtual ~Rng() = default;
    virtual void fill(MutableBytes out) = 0;
    uint64_t next() {
        uint64_t value = 0;
        fill(std::as_writable_bytes(std::span(&value, 1)));
        return value;
    }
    // A random id that is not 0.
    uint64_t next_id() {
        uint64_t value = 0;
        while (value == 0)
            value = next();
        return value;
    }
    // Uniform in [0, bound). Requires: bound > 0.
    uint64_t below(uint64_t bound) {
        return static_cast<uint64_t>((static_cast<unsigned __int128>(next()) * bound) >> 64);
    }
};

}  // namespace peplos::runtime
