#pragma once

#include <cstdint>
#include <cstring>

#include "base/ids.h"
#include "runtime/rng.h"

namespace peplos::sim {

// A seeded stream of numbers (SplitMix64, Steele et al. 2014): the same seed gives the same
// stream on every machine. Each part of the world has a stream of its own, so that a change in one
// part does not shift the choices of another.
class Random final : public runtime::Rng {
  public:
    explicit Random(uint64_t seed) : state_(seed) {}
    Random(uint64_t seed, uint64_t stream) : state_(mix_bits(seed + 1) ^ mix_bits(~stream)) {}

    uint64_t draw() {
        state_ += 0x9e3779b97f4a7c15ULL;
        uint64_t z = state_;
        z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9ULL;
        z = (z ^ (z >> 27)) * 0x94d049bb133111ebULL;
        return z ^ (z >> 31);
    }
    // Uniform in [0, bound). Requires: bound > 0.
    uint64_t pick(uint64_t bound) {
        return static_cast<uint64_t>((static_cast<unsigned __int128>(draw()) * bound) >> 64);
    }
    // Uniform in [low, high]. Requires: low <= high.
    uint64_t between(uint64_t low, uint64_t high) { return low + pick(high - low + 1); }
    // True in `permille` of 1,000 cases.
    bool chance(uint32_t permille) { return pick(1000) < permille; }
    // 0 in half of the cases, so that runs differ in kind and not only in number; else up to max.
    uint32_t maybe(uint32_t max) { return chance(500) ? 0 : static_cast<uint32_t>(1 + pick(max)); }

    void fill(MutableBytes out) override {
        while (!out.empty()) {
            uint64_t value = draw();
            size_t count = out.size() < sizeof(value) ? out.size() : sizeof(value);
            std::memcpy(out.data(), &value, count);
            out = out.subspan(count);
        }
    }

  private:
    uint64_t state_;
};

}  // namespace peplos::sim
