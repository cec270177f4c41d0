#pragma once

#include <array>
#include <bit>

#include "replica/owner_context.h"

namespace peplos::replica {

// Whether a member is silent: decides from when it was asked and when it answered. No I/O, no
// clock.
//
// A member that was found silent and then answers after all was only slow: the limit doubles for a
// while, so that an ensemble does not go to and fro.
class AckWatch {
  public:
    void on_sent(Time now) {
        if (outstanding_++ == 0) since_ = now;
    }
    // A call ended; `is_answer`: by a word of the member.
    void on_end(Time now, bool is_answer) {
        --outstanding_;
        if (is_answer) heard(now);
    }
    void heard(Time now) {
        since_ = now;
        if (!std::exchange(was_silent_, false)) return;
        strikes_ = std::min(strikes_ + 1, kStrikesMax);
        struck_ = now;
    }
    // One acknowledgement took so long.
    void note(Duration took);
    // This process stood still meanwhile.
    void forgive(Time now) { since_ = std::max(since_, now); }

    Duration limit(const OwnerTiming& timing) const;
    // Call it now and then: it also forgets strikes.
    bool is_silent(Time now, const OwnerTiming& timing);
    bool has_outstanding() const { return outstanding_ != 0; }

  private:
    static constexpr uint32_t kStrikesMax = 4;
    static constexpr Duration kStrikeLasts = std::chrono::minutes(1);
    // Four buckets for each power of two of microseconds; halved when they are many.
    static constexpr size_t kBuckets = 128;
    static constexpr uint32_t kSamplesMax = 1 << 16;
    static size_t bucket_of(uint64_t us);
    static uint64_t end_of(size_t bucket);

    uint32_t outstanding_ = 0;
    Time since_{};
    bool was_silent_ = false;
    uint32_t strikes_ = 0;
    Time struck_{};
    uint32_t samples_ = 0;
    std::array<uint32_t, kBuckets> counts_{};
};

}  // namespace peplos::replica
