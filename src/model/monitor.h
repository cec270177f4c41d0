#pragma once

#include <array>
#include <cstdint>
#include <string>

#include "base/ids.h"

namespace peplos::model {

inline constexpr uint8_t kWritesMax = 3;

// Whether what the users saw is linearizable, of one block: every set of writes that may have taken
// effect so far, in every order, is followed at once. A write whose owner is gone is settled when
// the next owner begins to serve: from then on it has taken effect or never will (P3, P4).
//
// Values: 0 is the empty block; write number n writes n.
class Monitor {
  public:
    Monitor() { set(0); }

    void begin_write(uint8_t value, Epoch epoch);
    // False: no order explains it.
    bool end_write(uint8_t value);
    void begin_read();
    bool end_read(uint8_t value);
    // Nobody got an answer.
    void drop_read();
    bool is_reading() const { return is_reading_; }
    // An owner of this epoch begins to serve.
    void settle(Epoch epoch);
    // A read that begins and ends at once.
    bool read_now(uint8_t value);

    bool is_acknowledged(uint8_t value) const { return status_[value - 1] == Status::ended; }
    bool is_begun(uint8_t value) const { return status_[value - 1] != Status::none; }

    void fields(this auto& self, auto&& visit) {
        for (uint8_t i = 0; i < kWritesMax; ++i)
            visit(self.status_[i], self.epoch_[i]);
        visit(self.is_reading_);
        for (auto& word : self.possible_)
            visit(word);
    }

  private:
    enum class Status : uint8_t { none, begun, ended, settled };

    // One explanation: the block's value, which writes took effect, and what the pending read
    // returns (value + 1; 0: not yet decided).
    static constexpr uint8_t code(unsigned value, unsigned done, unsigned read) {
        return static_cast<uint8_t>(value | (done << 2) | (read << 5));
    }
    bool has(uint8_t code) const { return ((possible_[code / 64] >> (code % 64)) & 1) != 0; }
    void set(uint8_t code) { possible_[code / 64] |= uint64_t{1} << (code % 64); }
    bool is_empty() const;
    // Adds what may have happened meanwhile.
    void close();
    void step(unsigned code, bool& changed);

    std::array<Status, kWritesMax> status_{};
    std::array<Epoch, kWritesMax> epoch_{};
    bool is_reading_ = false;
    std::array<uint64_t, 4> possible_{};
};

}  // namespace peplos::model
