#include "replica/ack_watch.h"

namespace peplos::replica {

size_t AckWatch::bucket_of(uint64_t us) {
    if (us < 4) return us;
    auto power = static_cast<size_t>(std::bit_width(us)) - 1;
    return std::min(power * 4 - 4 + ((us >> (power - 2)) & 3), kBuckets - 1);
}

// What is in the bucket is below this.
uint64_t AckWatch::end_of(size_t bucket) {
    if (bucket < 4) return bucket + 1;
    size_t power = (bucket + 4) / 4;
    return (uint64_t{4} + bucket % 4 + 1) << (power - 2);
}

void AckWatch::note(Duration took) {
    auto us = std::chrono::duration_cast<std::chrono::microseconds>(took).count();
    ++counts_[bucket_of(static_cast<uint64_t>(std::max<int64_t>(us, 0)))];
    if (++samples_ < kSamplesMax) return;
    samples_ = 0;
    for (uint32_t& count : counts_) {
        count /= 2;
        samples_ += count;
    }
}

Duration AckWatch::limit(const OwnerTiming& timing) const {
    uint32_t above = samples_ / 1000;
    size_t bucket = kBuckets;
    for (uint32_t seen = 0; bucket > 0 && seen <= above; --bucket)
        seen += counts_[bucket - 1];
    Duration usual = std::chrono::microseconds(samples_ == 0 ? 0 : end_of(bucket));
    Duration base = std::max(timing.silence_min, 3 * usual);
    return std::min<Duration>(base * (int64_t{1} << strikes_), timing.silence_max);
}

bool AckWatch::is_silent(Time now, const OwnerTiming& timing) {
    if (strikes_ != 0 && now - struck_ > kStrikeLasts) strikes_ = 0;
    bool is_it = outstanding_ != 0 && now - since_ >= limit(timing);
    was_silent_ = was_silent_ || is_it;
    return is_it;
}

}  // namespace peplos::replica
