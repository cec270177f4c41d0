#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "base/buffer.h"
#include "base/units.h"

// What a volume may answer, from what was written: the checker of the simulator.
namespace peplos::swarm {

// Moments are counted, not timed: each begin and each end of an operation has one of its own.
using Moment = uint64_t;
inline constexpr Moment kNever = UINT64_MAX;

// The operations on one volume, per 512-byte sector, and whether they are linearizable.
//
// Each sector is a register whose writes have unique values, so that the history can be checked
// exactly: for each value, its write and the reads that returned it form a zone from the first end
// to the last begin; the history is linearizable when no two forward zones overlap and no backward
// zone lies inside a forward one (Gibbons and Korach, "Testing shared memories", 1997). Writes of
// zeros (trim) all look alike: a read of zeros must fit at least one of them, and is put into that
// one's zone where it fits only one.
//
// Sectors of a block that were only ever written together share one register: what holds for one
// holds for all.
//
// A write that failed or was cut off by a crash may have happened or not, but not after settle().
// One that no read has seen by then is left out; one that was seen happened.
class History {
  public:
    static constexpr uint32_t kSector = 512;

    // `salt` makes the content of volumes differ, so that bytes of another volume are noticed.
    History(uint64_t salt, uint64_t bytes);

    uint64_t size_bytes() const { return blocks_.size() * kBlockBytes; }
    // The new part reads as zeros. Requires: whole blocks of 4 KiB.
    void grow(uint64_t bytes);

    // The number of a write; its bytes come from fill().
    uint32_t begin_write(uint64_t offset, uint64_t bytes, bool zeros);
    void end_write(uint64_t offset, uint64_t bytes, uint32_t version);
    // The number of a write that must not happen: a read of its bytes is an error.
    uint32_t refuse_write() { return ++version_; }
    // What write `version` puts at `offset`. Shape: whole sectors.
    void fill(MutableBytes out, uint64_t offset, uint32_t version) const;

    Moment begin_read() { return ++now_; }
    // "" or what is wrong with the answer of a read that began at `began`.
    std::string end_read(uint64_t offset, Bytes content, Moment began);

    // "" or what is wrong with bytes that may be older than what was promised, but may be nothing
    // that was never here.
    std::string check_origin(uint64_t offset, Bytes content) const;

    // No operation is in flight, and what was cut off never happens any more.
    // "" or the first sector whose history is not linearizable; what can not be read any more is
    // forgotten.
    std::string settle();

    // The newest: two histories of one moment with the same beginnings are the same.
    Moment moment() const { return now_; }
    uint64_t operation_count() const { return operation_count_; }

  private:
    // One value of a sector: its write, and the reads that returned it.
    struct Value {
        uint32_t version = 0;
        bool zeros = false;
        bool seen = false;
        Moment write_begin = 0;
        Moment write_end = kNever;
        Moment first_end = kNever;
        Moment last_begin = 0;

        bool operator==(const Value&) const = default;
    };
    // The values of some sectors that follow each other.
    using Register = std::vector<Value>;
    // One register of all its sectors, or one of each.
    using Block = std::vector<Register>;
    static constexpr size_t kSectors = kBlockBytes / kSector;

    static void split(Block& block);
    static void merge(Block& block);
    // Calls `use` with each register of the range, which splits blocks that it covers in part.
    template <typename Use>
    void for_registers(uint64_t offset, uint64_t bytes, Use use);
    std::string note_block(Block& block, uint64_t offset, Bytes content, Moment began, Moment end);
    std::string note_read(Register& values, uint64_t offset, Bytes content, Moment began,
                          Moment end);
    std::string note_version(Register& values, uint64_t offset, uint64_t version, Moment began,
                             Moment end);
    std::string note_zeros(Register& values, uint64_t offset, Moment began, Moment end);
    std::string settle_register(Register& values, uint64_t offset, Moment settled);
    static bool is_overwritten(const Register& values, const Value& value, Moment began);
    std::string about(const Register& values) const;

    uint64_t salt_;
    std::vector<Block> blocks_;
    uint32_t version_ = 0;
    Moment now_ = 1;
    uint64_t operation_count_ = 0;
};

}  // namespace peplos::swarm
