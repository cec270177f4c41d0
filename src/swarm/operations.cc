#include "swarm/operations.h"

#include <fmt/format.h>

#include "base/limits.h"

namespace peplos::swarm {

namespace {

constexpr uint64_t kHotBytes = 256 * kKiB;

}  // namespace

Work draw_work(sim::Random& random) {
    Work work;
    work.write_weight = static_cast<uint32_t>(random.between(1, 10));
    work.small_write_weight = random.maybe(5);
    work.large_write_weight = random.maybe(3);
    work.zero_weight = random.maybe(4);
    work.read_weight = static_cast<uint32_t>(random.between(1, 6));
    work.hot_permille = static_cast<uint32_t>(random.pick(1000));
    return work;
}

Operation draw_operation(sim::Random& random, const Work& work, uint64_t volume_bytes) {
    Operation out{Operation::Kind::write, 0, 0, 0};
    auto draw_range = [&](uint64_t unit, uint64_t count_max) {
        uint64_t range = volume_bytes;
        if (random.chance(work.hot_permille)) range = std::min(range, kHotBytes);
        out.bytes = random.between(1, std::min(count_max, range / unit)) * unit;
        out.offset = random.pick((range - out.bytes) / unit + 1) * unit;
    };
    uint64_t small_end = work.write_weight + work.small_write_weight;
    uint64_t large_end = small_end + work.large_write_weight;
    uint64_t zero_end = large_end + work.zero_weight;
    uint64_t drawn = random.pick(zero_end + work.read_weight);
    if (drawn < work.write_weight) {
        draw_range(kBlockBytes, 16);
    } else if (drawn < small_end) {
        draw_range(History::kSector, 20);
    } else if (drawn < large_end) {
        draw_range(kBlockBytes, limits::kIoBytesMax / kBlockBytes);
        // Most large writes come in round pieces.
        if (random.chance(700) && volume_bytes >= kMiB) {
            out.bytes = 128 * kKiB << random.pick(4);
            out.offset = random.pick(volume_bytes / out.bytes) * out.bytes;
        }
    } else if (drawn < zero_end) {
        out.kind = Operation::Kind::zero;
        draw_range(random.chance(500) ? kBlockBytes : History::kSector, 2048);
    } else {
        out.kind = Operation::Kind::read;
        draw_range(random.chance(500) ? kBlockBytes : History::kSector, 64);
    }
    return out;
}

std::string describe(const Operation& operation, std::string_view volume) {
    if (operation.kind == Operation::Kind::read)
        return fmt::format("read {} [{}, +{})", volume, operation.offset, operation.bytes);
    return fmt::format("{} {} [{}, +{}) version {}",
                       operation.kind == Operation::Kind::zero ? "zero" : "write", volume,
                       operation.offset, operation.bytes, operation.version);
}

Task<Result<void>> carry_out(volume::BlockDevice& device, const History& history,
                             Operation operation) {
    if (operation.kind == Operation::Kind::zero)
        co_return co_await device.zero(operation.offset, operation.bytes);
    Buffer data = Buffer::allocate(operation.bytes);
    for (uint64_t i = 0; i < operation.bytes; i += History::kSector) {
        history.fill(data.bytes().subspan(i, History::kSector), operation.offset + i,
                     operation.version);
    }
    co_return co_await device.write(operation.offset, std::move(data));
}

}  // namespace peplos::swarm
