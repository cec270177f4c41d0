#include <array>
#include <cctype>
#include <limits>

#include "base/limits.h"
#include "fabric/node.h"

namespace peplos::fabric {
namespace {

// mkfs.xfs (xfsprogs 6.1) refuses anything smaller.
constexpr uint64_t kXfsBytesMin = 300 * kMiB;
constexpr size_t kMkfsOptionsBytesMax = 256;
constexpr size_t kLabelCountMax = 64;
constexpr size_t kLabelKeyBytesMax = 128;
constexpr size_t kLabelValueBytesMax = 256;
constexpr int64_t kOwnerMax = std::numeric_limits<uint32_t>::max() - 1;  // -1 means "leave"
constexpr int64_t kModeMax = 07777;

bool is_letter_or_digit(char c) {
    return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9');
}

// User text inside a message: printable, bounded.
std::string shown(std::string_view text) {
    constexpr size_t kBytesMax = 64;
    std::string out = "\"";
    for (char c : text.substr(0, kBytesMax)) {
        if (c >= 0x20 && c < 0x7f && c != '"' && c != '\\') {
            out += c;
        } else {
            out += fmt::format("\\x{:02x}", static_cast<unsigned char>(c));
        }
    }
    return out + (text.size() > kBytesMax ? "...\"" : "\"");
}

std::unexpected<Error> bad_size(std::string_view text, std::string_view why) {
    return fail(Code::invalid_argument,
                "size {} {}: give a whole number above 0 with an optional unit, k, m, g or t "
                "(powers of 1024), such as 20GiB, 20G or 21474836480",
                shown(text), why);
}

// The power of 1024 that a unit stands for; -1 when it is none. "", "b", "k", "kb", "kib", ...
int power_of(std::string_view unit) {
    std::string lower;
    for (char c : unit)
        lower += static_cast<char>(std::tolower(static_cast<unsigned char>(c)));
    if (lower.empty() || lower == "b") return 0;
    constexpr std::string_view kPrefixes = "kmgt";
    size_t at = kPrefixes.find(lower[0]);
    if (at == std::string_view::npos) return -1;
    std::string_view rest = std::string_view(lower).substr(1);
    if (!rest.empty() && rest != "b" && rest != "i" && rest != "ib") return -1;
    return static_cast<int>(at) + 1;
}

Result<void> check_size(uint64_t bytes, FsType fs) {
    uint64_t bytes_min = fs == FsType::xfs ? kXfsBytesMin : limits::kVolumeBytesMin;
    if (bytes % kBlockBytes != 0) {
        return fail(Code::invalid_argument, "size {} is not a multiple of {} bytes: use {} or {}",
                    bytes, kBlockBytes, round_down(bytes, kBlockBytes),
                    round_up(bytes, kBlockBytes));
    }
    if (bytes < bytes_min || bytes > limits::kVolumeBytesMax) {
        return fail(Code::invalid_argument, "size {} is out of range: an {} volume has {} to {}",
                    print_size(bytes), name_of(fs), print_size(bytes_min),
                    print_size(limits::kVolumeBytesMax));
    }
    return {};
}

// Options that make mkfs do something else than make a file system on the volume.
std::string_view refused_mkfs_letters(FsType fs) {
    return fs == FsType::ext4 ? "nSdlcz" : "Np";
}

Result<void> check_mkfs_options(std::string_view options, FsType fs) {
    if (options.empty()) return {};
    if (options.size() > kMkfsOptionsBytesMax) {
        return fail(Code::invalid_argument, "mkfs-options has {} bytes, at most {} are allowed",
                    options.size(), kMkfsOptionsBytesMax);
    }
    constexpr std::string_view kMarks = " -_=,.:^";
    for (char c : options) {
        if (is_letter_or_digit(c) || kMarks.find(c) != std::string_view::npos) continue;
        return fail(Code::invalid_argument,
                    "mkfs-options {} holds a character that is not allowed: letters, digits, "
                    "spaces and -_=,.:^ are",
                    shown(options));
    }
    if (options[0] != '-') {
        return fail(Code::invalid_argument,
                    "mkfs-options {} has to begin with an option such as -m", shown(options));
    }
    std::string_view refused = refused_mkfs_letters(fs);
    for (size_t at = 0; at + 1 < options.size(); ++at) {
        bool begins = options[at] == '-' && (at == 0 || options[at - 1] == ' ');
        if (begins && refused.find(options[at + 1]) != std::string_view::npos) {
            return fail(Code::invalid_argument,
                        "mkfs-options: -{} is not allowed for {}, it does not make a fresh file "
                        "system on the volume: leave it out",
                        options[at + 1], name_of(fs));
        }
    }
    return {};
}

bool is_plain_text(std::string_view text) {
    for (char c : text) {
        if (static_cast<unsigned char>(c) < 0x20 || c == 0x7f) return false;
    }
    return true;
}

Result<void> check_labels(const std::map<std::string, std::string>& labels) {
    if (labels.size() > kLabelCountMax) {
        return fail(Code::invalid_argument, "{} labels are too many, at most {} are allowed",
                    labels.size(), kLabelCountMax);
    }
    for (const auto& [key, value] : labels) {
        if (key.empty() || key.size() > kLabelKeyBytesMax || !is_plain_text(key) ||
            value.size() > kLabelValueBytesMax || !is_plain_text(value)) {
            return fail(Code::invalid_argument,
                        "label {} is not allowed: a key has 1 to {} bytes, a value up to {}, no "
                        "control characters",
                        shown(key), kLabelKeyBytesMax, kLabelValueBytesMax);
        }
    }
    return {};
}

Result<void> check_range(std::string_view what, int64_t value, int64_t max,
                         std::string_view allowed) {
    if (value >= -1 && value <= max) return {};
    return fail(Code::invalid_argument, "{} {} is out of range: {} is allowed", what, value,
                allowed);
}

}  // namespace

Result<uint64_t> parse_size(std::string_view text) {
    uint64_t value = 0;
    size_t at = 0;
    for (; at < text.size() && text[at] >= '0' && text[at] <= '9'; ++at) {
        if (__builtin_mul_overflow(value, uint64_t{10}, &value) ||
            __builtin_add_overflow(value, static_cast<uint64_t>(text[at] - '0'), &value)) {
            return bad_size(text, "is too large");
        }
    }
    if (at == 0) return bad_size(text, text.starts_with('-') ? "is negative" : "is not a number");
    std::string_view unit = text.substr(at);
    while (unit.starts_with(' '))
        unit.remove_prefix(1);
    int power = power_of(unit);
    if (power < 0) return bad_size(text, "is not a whole number with a known unit");
    for (; power > 0; --power) {
        if (__builtin_mul_overflow(value, kKiB, &value)) return bad_size(text, "is too large");
    }
    if (value == 0) return bad_size(text, "is 0");
    return value;
}

std::string print_size(uint64_t bytes) {
    constexpr std::array<std::string_view, 6> kUnits = {"KiB", "MiB", "GiB", "TiB", "PiB", "EiB"};
    if (bytes < kKiB) return fmt::format("{} B", bytes);
    uint64_t unit = kKiB;
    size_t index = 0;
    while (index + 1 < kUnits.size() && bytes / kKiB >= unit) {
        unit *= kKiB;
        ++index;
    }
    // Tenths, rounded to the nearest; what rounds up to 1024 takes the next unit.
    uint64_t tenths =
        static_cast<uint64_t>((static_cast<unsigned __int128>(bytes) * 10 + unit / 2) / unit);
    if (tenths >= 10 * kKiB && index + 1 < kUnits.size()) {
        tenths = 10;
        ++index;
    }
    if (tenths % 10 == 0) return fmt::format("{} {}", tenths / 10, kUnits[index]);
    return fmt::format("{}.{} {}", tenths / 10, tenths % 10, kUnits[index]);
}

Result<void> check_name(std::string_view name) {
    bool good =
        !name.empty() && name.size() <= limits::kVolumeNameBytesMax && is_letter_or_digit(name[0]);
    for (char c : name)
        good = good && (is_letter_or_digit(c) || c == '_' || c == '.' || c == '-');
    if (good) return {};
    return fail(Code::invalid_argument,
                "volume name {} is not allowed: use 1 to {} letters, digits, \"_\", \".\" and "
                "\"-\", beginning with a letter or digit",
                shown(name), limits::kVolumeNameBytesMax);
}

Result<VolumeSpec> validated(VolumeSpec spec) {
    TRY(check_name(spec.name));
    if (spec.size_bytes == 0) spec.size_bytes = limits::kVolumeBytesDefault;
    TRY(check_size(spec.size_bytes, spec.fs));
    if (spec.copies < 1 || spec.copies > limits::kEnsembleMembersMax) {
        return fail(Code::invalid_argument, "copies={} cannot be kept: a volume has 1 to {} copies",
                    spec.copies, limits::kEnsembleMembersMax);
    }
    if (spec.sector_bytes != 512 && spec.sector_bytes != 4096) {
        return fail(Code::invalid_argument, "sector size {} is not known: 512 or 4096 is allowed",
                    spec.sector_bytes);
    }
    TRY(check_mkfs_options(spec.mkfs_options, spec.fs));
    TRY(check_range("uid", spec.uid, kOwnerMax, "0 to 4294967294"));
    TRY(check_range("gid", spec.gid, kOwnerMax, "0 to 4294967294"));
    TRY(check_range("mode", spec.mode, kModeMax, "an octal number from 0 to 7777"));
    TRY(check_labels(spec.labels));
    return spec;
}

Result<FsType> parse_fs(std::string_view text) {
    for (FsType fs : {FsType::ext4, FsType::xfs}) {
        if (text == name_of(fs)) return fs;
    }
    return fail(Code::invalid_argument, "file system {} is not known: ext4 or xfs is allowed",
                shown(text));
}

std::string_view name_of(FsType fs) {
    return fs == FsType::ext4 ? "ext4" : "xfs";
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
