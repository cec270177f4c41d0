#pragma once

#include <list>
#include <memory>
#include <string>

#include "sim/random.h"
#include "swarm/history.h"
#include "volume/block_device.h"

// What the users of simulated volumes ask for.
namespace peplos::swarm {

using runtime::Task;

struct Operation {
    enum class Kind : uint8_t { read, write, zero };

    Kind kind = Kind::read;
    uint64_t offset = 0;
    uint64_t bytes = 0;
    uint32_t version = 0;  // of writes and zeros

    bool overlaps(const Operation& other) const {
        return offset < other.offset + other.bytes && other.offset < offset + bytes;
    }
};
using Operations = std::list<Operation>;

// Weights of operations; 0: never.
struct Work {
    uint32_t write_weight = 0;
    uint32_t small_write_weight = 0;  // below 4 KiB
    uint32_t large_write_weight = 0;  // 128 KiB and more
    uint32_t zero_weight = 0;
    uint32_t read_weight = 0;
    // Of 1,000 operations so many go to a small hot range.
    uint32_t hot_permille = 0;
};

Work draw_work(sim::Random& random);
// Of a volume of so many bytes; without a version.
Operation draw_operation(sim::Random& random, const Work& work, uint64_t volume_bytes);
std::string describe(const Operation& operation, std::string_view volume);
// A write or a zero, on the device; of a write the bytes come from the history.
Task<Result<void>> carry_out(volume::BlockDevice& device, const History& history,
                             Operation operation);

}  // namespace peplos::swarm
