#include "app/bench_load.h"

#include <bit>

#include "base/limits.h"
#include "runtime/sync.h"

namespace peplos::app {
namespace {

// xorshift64*: the load's own cheap randomness; nothing depends on its quality.
uint64_t next_random(uint64_t& state) {
    state ^= state >> 12;
    state ^= state << 25;
    state ^= state >> 27;
    return state * 0x2545f4914f6cdd1dULL;
}

void scramble(Buffer& buffer, uint64_t seed) {
    uint64_t state = seed | 1;
    for (size_t offset = 0; offset + 8 <= buffer.size(); offset += 8) {
        uint64_t value = next_random(state);
        std::memcpy(buffer.data() + offset, &value, 8);
    }
}

// What the workers of one load share.
struct Shared {
    Shared(volume::BlockDevice& d, runtime::Clock& c, BenchLoad l)
        : device(d), clock(c), load(std::move(l)) {}
    volume::BlockDevice& device;
    runtime::Clock& clock;
    BenchLoad load;
    uint64_t block_count = 0;
    uint64_t block_next = 0;
    uint64_t operations_left = UINT64_MAX;
    Time deadline;
    BenchResult result;
    std::optional<Error> error;
    uint32_t running = 0;
    runtime::Event done;
};

Task<void> worker(Shared& shared, uint64_t seed) {
    uint64_t state = seed | 1;
    Buffer from = Buffer::allocate(shared.load.block_bytes);
    scramble(from, seed);
    Time now = shared.clock.now();
    while (now < shared.deadline && !shared.error && shared.operations_left != 0) {
        --shared.operations_left;
        uint64_t block = shared.load.is_random ? next_random(state) % shared.block_count
                                               : shared.block_next++ % shared.block_count;
        bool is_read = shared.load.operation == "read" ||
                       (shared.load.operation == "mix" && next_random(state) % 10 < 7);
        uint64_t offset = block * shared.load.block_bytes;
        Result<void> done;
        if (is_read) {
            done = co_await shared.device.read(offset, Buffer::allocate(shared.load.block_bytes));
        } else {
            // Bytes given to a small write may be kept: each has a buffer of its own. Those of a
            // large one go to a segment as they are, and are not copied for fio either.
            Buffer buffer = from;
            if (from.size() < limits::kLargeWriteBytes) {
                buffer = Buffer::copy_of(from.bytes());
                std::memcpy(buffer.data(), &state, sizeof(state));
            }
            done = co_await shared.device.write(offset, std::move(buffer));
        }
        Time after = shared.clock.now();
        if (!done) {
            if (!shared.error) shared.error = done.error();
            break;
        }
        shared.result.latency.add(static_cast<uint64_t>((after - now).count()));
        ++shared.result.operations;
        now = after;
    }
    if (--shared.running == 0) shared.done.set();
}

}  // namespace

void LatencyBuckets::add(uint64_t nanoseconds) {
    uint64_t value = std::max<uint64_t>(nanoseconds, 16);
    auto power = static_cast<uint32_t>(std::bit_width(value) - 1);
    uint64_t fraction = (value >> (power - 4)) & 15;
    ++counts_[power * 16 + fraction];
    ++count_;
    sum_us_ += static_cast<double>(nanoseconds) / 1000;
}

double LatencyBuckets::percentile_us(double share) const {
    auto wanted = static_cast<uint64_t>(share * static_cast<double>(count_));
    uint64_t seen = 0;
    for (size_t i = 0; i < counts_.size(); ++i) {
        seen += counts_[i];
        if (seen > wanted) {
            return static_cast<double>(uint64_t{16 + i % 16} << (i / 16)) / 16 / 1000;
        }
    }
    return 0;
}

nlohmann::json BenchResult::json() const {
    return {{"operations", operations},
            {"seconds", seconds},
            {"iops", static_cast<double>(operations) / seconds},
            {"mb_per_s", static_cast<double>(bytes) / seconds / 1e6},
            {"mean_us", latency.mean_us()},
            {"p50_us", latency.percentile_us(0.5)},
            {"p99_us", latency.percentile_us(0.99)},
            {"p999_us", latency.percentile_us(0.999)}};
}

Task<Result<BenchResult>> run_load(runtime::Executor executor, runtime::Clock& clock,
                                   runtime::Rng& rng, volume::BlockDevice& device, BenchLoad load) {
    uint64_t span =
        load.span_bytes == 0 ? device.size_bytes() : std::min(load.span_bytes, device.size_bytes());
    if (load.block_bytes == 0 || load.block_bytes % device.sector_bytes() != 0 ||
        load.block_bytes > limits::kIoBytesMax || load.block_bytes > span || load.depth == 0 ||
        load.depth > limits::kVolumeIoCountMax) {
        co_return fail(Code::invalid_argument, "block size or depth out of range");
    }
    auto shared = std::make_unique<Shared>(device, clock, load);
    shared->block_count = span / load.block_bytes;
    if (load.bytes_max != 0) shared->operations_left = load.bytes_max / load.block_bytes;
    Time begin = clock.now();
    shared->deadline = begin + std::chrono::nanoseconds(static_cast<int64_t>(load.seconds * 1e9));
    shared->running = load.depth;
    for (uint32_t i = 0; i < load.depth; ++i) {
        runtime::spawn(executor, worker(*shared, rng.next()));
    }
    co_await shared->done.wait();
    if (shared->error) co_return fail(std::move(*shared->error));
    shared->result.seconds = std::chrono::duration<double>(clock.now() - begin).count();
    shared->result.bytes = shared->result.operations * load.block_bytes;
    co_return std::move(shared->result);
}

Task<Result<void>> fill(volume::BlockDevice& device, uint64_t bytes) {
    Buffer piece = Buffer::allocate(kMiB);
    scramble(piece, 0x9e3779b97f4a7c15ULL);
    for (uint64_t offset = 0; offset < bytes; offset += kMiB) {
        Buffer copy = Buffer::copy_of(std::as_const(piece).bytes());
        std::memcpy(copy.data(), &offset, sizeof(offset));
        CO_TRY(co_await device.write(offset, std::move(copy)));
    }
    co_return Result<void>();
}

namespace {

// What the writers of a sparse volume share.
struct SparseFill {
    explicit SparseFill(volume::BlockDevice& d) : device(d) {}
    volume::BlockDevice& device;
    Buffer piece;
    uint64_t next = 0;
    uint64_t end = 0;
    Result<void> outcome;
    uint32_t running = 0;
    runtime::Event done;
};

Task<void> write_leaves(SparseFill& shared) {
    constexpr uint64_t kLeafBytes = uint64_t{limits::kLeafBlocks} * kBlockBytes;
    while (shared.next + kBlockBytes <= shared.end && shared.outcome) {
        uint64_t offset = std::exchange(shared.next, shared.next + kLeafBytes);
        Buffer copy = Buffer::copy_of(std::as_const(shared.piece).bytes());
        Result<void> written = co_await shared.device.write(offset, std::move(copy));
        if (!written) shared.outcome = std::move(written);
    }
    if (--shared.running == 0) shared.done.set();
}

}  // namespace

Task<Result<void>> write_one_block_per_leaf(volume::BlockDevice& device, uint64_t bytes) {
    SparseFill shared(device);
    shared.piece = Buffer::allocate(kBlockBytes);
    scramble(shared.piece, 0x9e3779b97f4a7c15ULL);
    shared.end = std::min(bytes, device.size_bytes());
    shared.running = 32;
    runtime::Executor executor = co_await runtime::this_executor();
    for (uint32_t i = shared.running; i != 0; --i)
        runtime::spawn(executor, write_leaves(shared));
    co_await shared.done.wait();
    co_return std::move(shared.outcome);
}

}  // namespace peplos::app
