#include "model/monitor.h"

#include <algorithm>

#include "base/check.h"

namespace peplos::model {

bool Monitor::is_empty() const {
    return std::ranges::all_of(possible_, [](uint64_t word) { return word == 0; });
}

void Monitor::step(unsigned code_now, bool& changed) {
    unsigned value = code_now & 3;
    unsigned done = (code_now >> 2) & 7;
    unsigned read = code_now >> 5;
    auto add = [this, &changed](uint8_t to) {
        if (has(to)) return;
        set(to);
        changed = true;
    };
    for (unsigned i = 0; i < kWritesMax; ++i) {
        bool is_open = status_[i] == Status::begun && (done >> i & 1) == 0;
        if (is_open) add(code(i + 1, done | 1u << i, read));
    }
    if (is_reading_ && read == 0) add(code(value, done, value + 1));
}

void Monitor::close() {
    bool changed = true;
    while (changed) {
        changed = false;
        for (unsigned at = 0; at < 256; ++at) {
            if (has(static_cast<uint8_t>(at))) step(at, changed);
        }
    }
}

void Monitor::begin_write(uint8_t value, Epoch epoch) {
    CHECK(value >= 1 && value <= kWritesMax && !is_begun(value));
    status_[value - 1] = Status::begun;
    epoch_[value - 1] = epoch;
    close();
}

bool Monitor::end_write(uint8_t value) {
    status_[value - 1] = Status::ended;
    for (unsigned at = 0; at < 256; ++at) {
        bool is_done = (at >> 2 >> (value - 1) & 1) != 0;
        if (!is_done) possible_[at / 64] &= ~(uint64_t{1} << (at % 64));
    }
    return !is_empty();
}

void Monitor::begin_read() {
    CHECK(!is_reading_);
    is_reading_ = true;
    close();
}

bool Monitor::end_read(uint8_t value) {
    std::array<uint64_t, 4> before = possible_;
    possible_ = {};
    for (unsigned at = 0; at < 256; ++at) {
        bool was = (before[at / 64] >> (at % 64) & 1) != 0;
        if (was && at >> 5 == value + 1u) set(static_cast<uint8_t>(at & 31));
    }
    is_reading_ = false;
    return !is_empty();
}

void Monitor::drop_read() {
    if (!is_reading_) return;
    std::array<uint64_t, 4> before = possible_;
    possible_ = {};
    for (unsigned at = 0; at < 256; ++at) {
        if ((before[at / 64] >> (at % 64) & 1) != 0) set(static_cast<uint8_t>(at & 31));
    }
    is_reading_ = false;
}

void Monitor::settle(Epoch epoch) {
    for (unsigned i = 0; i < kWritesMax; ++i) {
        if (status_[i] == Status::begun && epoch_[i] < epoch) status_[i] = Status::settled;
    }
}

bool Monitor::read_now(uint8_t value) {
    std::array<uint64_t, 4> kept{};
    for (unsigned at = 0; at < 256; ++at) {
        bool is_so = has(static_cast<uint8_t>(at)) && (at & 3) == value;
        if (is_so) kept[at / 64] |= uint64_t{1} << (at % 64);
    }
    possible_ = kept;
    return !is_empty();
}

}  // namespace peplos::model
