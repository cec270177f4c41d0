#pragma once

#include <cstdint>

#include "base/bytes.h"

namespace peplos {

// CRC-32C (Castagnoli, RFC 3720 appendix B.4): crc32c("123456789") == 0xe3069283.
// `seed` is the CRC of the bytes before, 0 for none: crc32c(b, crc32c(a)) == crc32c(a + b).
uint32_t crc32c(Bytes bytes, uint32_t seed = 0);

// The CRC of kBlockBytes zeros: what an unwritten block reads as.
inline constexpr uint32_t kZeroBlockCrc = 0x98f94189;

}  // namespace peplos
