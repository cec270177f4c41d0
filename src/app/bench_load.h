#pragma once

#include <array>
#include <cstdint>
#include <nlohmann/json.hpp>
#include <string>

#include "runtime/clock.h"
#include "runtime/rng.h"
#include "volume/block_device.h"

namespace peplos::app {

using runtime::Task;

// A closed loop of `depth` operations in flight against one block device.
struct BenchLoad {
    std::string operation = "read";  // "read", "write", "mix"
    bool is_random = false;
    uint32_t block_bytes = 4096;
    uint32_t depth = 1;
    double seconds = 0;
    uint64_t span_bytes = 0;  // 0: the whole device
    uint64_t bytes_max = 0;   // ends after so much, too; 0: `seconds` alone decides
};

// Latencies in buckets of 1/16 of a power of two of nanoseconds: percentiles within 6 %.
class LatencyBuckets {
  public:
    void add(uint64_t nanoseconds);
    double percentile_us(double share) const;
    double mean_us() const { return count_ == 0 ? 0 : sum_us_ / static_cast<double>(count_); }

  private:
    std::array<uint64_t, 64 * 16> counts_{};
    uint64_t count_ = 0;
    double sum_us_ = 0;
};

struct BenchResult {
    uint64_t operations = 0;
    uint64_t bytes = 0;
    double seconds = 0;
    LatencyBuckets latency;
    nlohmann::json json() const;
};

// Errors: invalid_argument, or the first error of the device.
Task<Result<BenchResult>> run_load(runtime::Executor executor, runtime::Clock& clock,
                                   runtime::Rng& rng, volume::BlockDevice& device, BenchLoad load);

// Writes the first `bytes` once, in order, in large pieces of bytes that do not compress.
Task<Result<void>> fill(volume::BlockDevice& device, uint64_t bytes);

// Writes one block in every 4 MiB of the first `bytes`: the map at its least dense.
Task<Result<void>> write_one_block_per_leaf(volume::BlockDevice& device, uint64_t bytes);

}  // namespace peplos::app
