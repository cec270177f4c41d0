#pragma once

#include <cstdint>
#include <optional>
#include <string>

#include "base/bytes.h"
#include "fabric/attachments.h"

// What lies at the start of a volume, judged by magic numbers. mkfs runs only over nothing (or
// over its own unfinished work), and only a file system that Peplos made is mounted.
namespace peplos::attach {

// Enough of a volume's first bytes for every signature known here.
inline constexpr size_t kSignatureBytes = 128 * 1024;

struct Signature {
    std::string name;  // "ext4", "xfs", "LVM2", ...
    std::optional<fabric::FsType> fs;
};

// The first signature found; nullopt when none is known (an empty volume, or unknown data).
// `start` may be shorter than kSignatureBytes on a small volume.
std::optional<Signature> find_signature(Bytes start);

// The size that an ext4 or xfs superblock in `start` claims; 0 when there is none.
uint64_t fs_bytes_of(Bytes start);

// Whether the volume may be formatted or mounted, given what the record says (`blank`) and what is
// there. Errors: conflict-free codes for people: busy never; permission_denied (foreign data, says
// what to do), corrupt (formatted by us, but the signature is missing or differs).
Result<void> check_signature(const fabric::AttachSpec& spec, Bytes start);

}  // namespace peplos::attach
