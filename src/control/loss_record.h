#pragma once

#include <cstdint>
#include <string>

#include "base/ids.h"
#include "base/result.h"

namespace peplos::control {

// That a volume's user accepted a loss. Written before the recovery and again after it, so that no
// recovery goes unseen. Key: volume-loss/<id>; the newest one of a volume counts.
struct LossRecord {
    int64_t accepted_at_s = 0;
    bool is_done = false;
    std::string what;  // for a person, at most kLossTextBytesMax

    bool operator==(const LossRecord&) const = default;
};

inline constexpr size_t kLossTextBytesMax = 4096;
inline constexpr std::string_view kLossPrefix = "volume-loss/";

std::string loss_key(VolumeId volume);
// The volume of a key below kLossPrefix; an empty id when the key is not one of ours.
VolumeId volume_of_loss_key(const std::string& key);

std::string encode_loss(const LossRecord& record);
// Errors: corrupt, unsupported (written by a newer Peplos). Never throws.
Result<LossRecord> decode_loss(const std::string& value);

}  // namespace peplos::control
