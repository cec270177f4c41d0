#include "attach/fs_signature.h"

#include <array>
#include <cstring>
#include <string_view>

#include "fabric/node.h"

namespace peplos::attach {

namespace {

struct Magic {
    size_t offset;
    std::string_view bytes;
    std::string_view name;
};

using namespace std::string_view_literals;

// Offsets and magics as in the formats' own specifications. ext4 and xfs come first; partition
// tables last, since a file system's boot sector may carry 55 AA too.
constexpr std::array kMagics = {
    Magic{0x438, "\x53\xef"sv, "ext4"},
    Magic{0, "XFSB"sv, "xfs"},
    Magic{0x10040, "_BHRfS_M"sv, "btrfs"},
    Magic{0, "LUKS\xba\xbe"sv, "LUKS"},
    Magic{0x218, "LVM2 001"sv, "LVM2"},
    Magic{0xff6, "SWAPSPACE2"sv, "swap"},
    Magic{0x8001, "CD001"sv, "ISO 9660"},
    Magic{0x10034, "ReIsEr"sv, "ReiserFS"},
    Magic{0x400, "\x10\x20\xf5\xf2"sv, "F2FS"},
    Magic{3, "NTFS    "sv, "NTFS"},
    Magic{3, "EXFAT   "sv, "exFAT"},
    Magic{82, "FAT32   "sv, "FAT"},
    Magic{54, "FAT1"sv, "FAT"},
    Magic{0, "QFI\xfb"sv, "QCOW2 image"},
    Magic{0, "hsqs"sv, "squashfs"},
    Magic{0x1000, "\xfc\x4e\x2b\xa9"sv, "Linux RAID"},
    Magic{0x200, "EFI PART"sv, "GPT partition table"},
    Magic{0x1fe, "\x55\xaa"sv, "partition table"},
};

uint32_t u32(Bytes bytes, size_t offset) {
    uint32_t value = 0;
    if (offset + sizeof(value) <= bytes.size()) {
        std::memcpy(&value, bytes.data() + offset, sizeof(value));
    }
    return value;
}

}  // namespace

std::optional<Signature> find_signature(Bytes start) {
    for (const Magic& magic : kMagics) {
        if (start.size() < magic.offset + magic.bytes.size()) continue;
        if (std::memcmp(start.data() + magic.offset, magic.bytes.data(), magic.bytes.size()) != 0) {
            continue;
        }
        Signature found{std::string(magic.name), std::nullopt};
        if (magic.name == "ext4") found.fs = fabric::FsType::ext4;
        if (magic.name == "xfs") found.fs = fabric::FsType::xfs;
        return found;
    }
    return std::nullopt;
}

uint64_t fs_bytes_of(Bytes start) {
    auto found = find_signature(start);
    if (!found || !found->fs) return 0;
    if (*found->fs == fabric::FsType::ext4) {
        // s_blocks_count_lo/hi, s_log_block_size; the high half counts with the 64bit feature.
        bool wide = (u32(start, 0x400 + 0x60) & 0x80) != 0;
        uint64_t blocks = u32(start, 0x404);
        if (wide) blocks |= uint64_t{u32(start, 0x400 + 0x150)} << 32;
        uint32_t shift = u32(start, 0x418);
        return shift > 6 || blocks > (uint64_t{1} << 48) ? 0 : blocks << (10 + shift);
    }
    // sb_blocksize (32 bits) and sb_dblocks (64 bits), big-endian.
    uint64_t block_bytes = __builtin_bswap32(u32(start, 4));
    uint64_t blocks =
        (uint64_t{__builtin_bswap32(u32(start, 8))} << 32) | __builtin_bswap32(u32(start, 12));
    return block_bytes > 65536 || blocks > (uint64_t{1} << 46) ? 0 : block_bytes * blocks;
}

Result<void> check_signature(const fabric::AttachSpec& spec, Bytes start) {
    auto found = find_signature(start);
    std::string_view wanted = fabric::name_of(spec.fs);
    if (spec.blank) {
        // Our own mkfs, cut short by a crash, leaves its signature before the record changes.
        if (!found || found->fs == spec.fs) return {};
        return fail(Code::permission_denied,
                    "volume {} was never formatted by Peplos, yet it carries foreign data ({}); "
                    "it is left untouched: copy the data away, or remove the volume and create a "
                    "new one",
                    spec.name, found->name);
    }
    if (found && found->fs == spec.fs) return {};
    return fail(Code::corrupt,
                "volume {} should carry {}, but {} was found at its start; it is not mounted: "
                "check what wrote to it, then restore it or remove the volume",
                spec.name, wanted, found ? found->name : std::string("no file system"));
}

}  // namespace peplos::attach
