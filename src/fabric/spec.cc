// Sizes, names and options as users write them.

#include <algorithm>
#include <array>
#include <charconv>
#include <cmath>

#include "base/limits.h"
#include "fabric/node.h"

namespace peplos::fabric {
namespace {

// mkfs.xfs (xfsprogs 6.1) refuses anything smaller.
constexpr uint64_t kXfsBytesMin = 300 * kMiB;
constexpr size_t kMkfsOptionsBytesMax = 512;
constexpr size_t kLabelCountMax = 64;
constexpr size_t kLabelBytesMax = 1024;

bool is_letter_or_digit(char c) {
    return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9');
}

std::string shown(std::string_view text) {
    std::string out;
    for (char c : text.substr(0, 40))
        out.push_back(c >= ' ' && c <= '~' ? c : '?');
    if (text.size() > 40) out += "...";
    return out;
}

std::unexpected<Error> bad_size(std::string_view text) {
    return fail(Code::invalid_argument,
                "size \"{}\" is not understood; write a positive whole number with an optional "
                "unit k, m, g or t (powers of 1024), such as 20GiB",
                shown(text));
}

// The shift of a unit such as "", "g", "GB" or "GiB"; -1 when it is none.
int shift_of(std::string_view unit) {
    if (unit.empty()) return 0;
    std::string lower;
    for (char c : unit)
        lower.push_back(c >= 'A' && c <= 'Z' ? static_cast<char>(c + 32) : c);
    if (lower == "b") return 0;
    constexpr std::string_view letters = "kmgt";
    size_t index = letters.find(lower[0]);
    if (index == std::string_view::npos) return -1;
    std::string_view tail = std::string_view(lower).substr(1);
    if (!tail.empty() && tail != "b" && tail != "i" && tail != "ib") return -1;
    return static_cast<int>(10 * (index + 1));
}

Result<void> check_name(const std::string& name) {
    bool ok = !name.empty() && name.size() <= limits::kVolumeNameBytesMax &&
              is_letter_or_digit(name[0]) && std::ranges::all_of(name, [](char c) {
                  return is_letter_or_digit(c) || c == '_' || c == '.' || c == '-';
              });
    if (ok) return {};
    return fail(Code::invalid_argument,
                "volume name \"{}\" is not allowed: write 1 to {} letters, digits, '_', '.' or "
                "'-', the first one a letter or digit",
                shown(name), limits::kVolumeNameBytesMax);
}

Result<void> check_size(const VolumeSpec& spec) {
    uint64_t bytes_min = spec.fs == FsType::xfs ? kXfsBytesMin : limits::kVolumeBytesMin;
    if (spec.size_bytes < bytes_min || spec.size_bytes > limits::kVolumeBytesMax) {
        return fail(Code::invalid_argument,
                    "size {} of volume {} is out of range: an {} volume has {} to {}",
                    print_size(spec.size_bytes), spec.name, name_of(spec.fs), print_size(bytes_min),
                    print_size(limits::kVolumeBytesMax));
    }
    if (spec.size_bytes % kBlockBytes != 0) {
        return fail(Code::invalid_argument,
                    "size {} of volume {} is not a multiple of 4096; the next larger one is {}",
                    spec.size_bytes, spec.name, round_up(spec.size_bytes, kBlockBytes));
    }
    return {};
}

Result<void> check_mkfs_options(const std::string& options) {
    constexpr std::string_view punctuation = " -_=,.:^";
    bool ok = options.size() <= kMkfsOptionsBytesMax && std::ranges::all_of(options, [&](char c) {
                  return is_letter_or_digit(c) || punctuation.contains(c);
              });
    if (ok) return {};
    return fail(Code::invalid_argument,
                "mkfs-options \"{}\" are not allowed: at most {} letters, digits, spaces and "
                "- _ = , . : ^",
                shown(options), kMkfsOptionsBytesMax);
}

Result<void> check_number(std::string_view what, int64_t value, int64_t largest) {
    if (value >= -1 && value <= largest) return {};
    return fail(Code::invalid_argument, "{} {} is out of range: 0 to {}", what, value, largest);
}

Result<void> check_labels(const std::map<std::string, std::string>& labels) {
    if (labels.size() > kLabelCountMax) {
        return fail(Code::invalid_argument, "{} labels are too many: at most {}", labels.size(),
                    kLabelCountMax);
    }
    for (const auto& [key, value] : labels) {
        if (key.empty() || key.size() + value.size() > kLabelBytesMax) {
            return fail(Code::invalid_argument,
                        "label \"{}\" is empty or longer than {} bytes with its value", shown(key),
                        kLabelBytesMax);
        }
    }
    return {};
}

}  // namespace

Result<uint64_t> parse_size(std::string_view text) {
    uint64_t number = 0;
    auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), number);
    if (error != std::errc{} || number == 0) return bad_size(text);
    std::string_view unit = text.substr(static_cast<size_t>(end - text.data()));
    if (unit.starts_with(' ')) unit.remove_prefix(1);
    int shift = shift_of(unit);
    if (shift < 0) return bad_size(text);
    if (number > (UINT64_MAX >> shift)) {
        return fail(Code::invalid_argument, "size \"{}\" is too large; at most {} is possible",
                    shown(text), print_size(limits::kVolumeBytesMax));
    }
    return number << shift;
}

std::string print_size(uint64_t bytes) {
    constexpr std::array<std::string_view, 7> units = {"B",   "KiB", "MiB", "GiB",
                                                       "TiB", "PiB", "EiB"};
    size_t unit = 0;
    double value = static_cast<double>(bytes);
    // 1023.95 would print as 1024.0: the next unit begins there.
    while (value >= (unit == 0 ? 1024.0 : 1023.95) && unit + 1 < units.size()) {
        value /= 1024;
        ++unit;
    }
    double rounded = std::round(value * 10) / 10;
    if (rounded == std::floor(rounded)) return fmt::format("{:.0f} {}", rounded, units[unit]);
    return fmt::format("{:.1f} {}", rounded, units[unit]);
}

Result<VolumeSpec> validated(VolumeSpec spec) {
    TRY(check_name(spec.name));
    if (spec.size_bytes == 0) spec.size_bytes = limits::kVolumeBytesDefault;
    TRY(check_size(spec));
    if (spec.copies != 1) {
        return fail(Code::invalid_argument,
                    "copies={} is not possible on a single node; use copies=1", spec.copies);
    }
    if (spec.sector_bytes != 512 && spec.sector_bytes != 4096) {
        return fail(Code::invalid_argument, "sector size {} is unknown; known: 512, 4096",
                    spec.sector_bytes);
    }
    TRY(check_mkfs_options(spec.mkfs_options));
    TRY(check_number("uid", spec.uid, INT64_C(4294967294)));
    TRY(check_number("gid", spec.gid, INT64_C(4294967294)));
    if (spec.mode < -1 || spec.mode > 07777) {
        return fail(Code::invalid_argument, "mode {:o} is out of range: 0 to 7777 (octal)",
                    spec.mode);
    }
    TRY(check_labels(spec.labels));
    return spec;
}

Result<FsType> parse_fs(std::string_view text) {
    if (text == "ext4") return FsType::ext4;
    if (text == "xfs") return FsType::xfs;
    return fail(Code::invalid_argument, "file system \"{}\" is unknown; known: ext4, xfs",
                shown(text));
}

std::string_view name_of(FsType fs) {
    return fs == FsType::xfs ? "xfs" : "ext4";
}

std::string_view name_of(Light light) {
    switch (light) {
        case Light::green:
            return "green";
        case Light::yellow:
            return "yellow";
        case Light::red:
            return "red";
    }
    return "red";
}

}  // namespace peplos::fabric
