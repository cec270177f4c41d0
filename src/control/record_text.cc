#include "control/record_text.h"

namespace peplos::control {

Result<void> check_id(std::string_view what, uint64_t id) {
    if (id == 0) return wrong("{} has no id", what);
    return {};
}

Result<void> check_text(std::string_view what, std::string_view text, size_t bytes_max) {
    if (text.size() > bytes_max) {
        return wrong("{} has {} bytes, at most {} are allowed", what, text.size(), bytes_max);
    }
    for (char letter : text) {
        auto byte = static_cast<unsigned char>(letter);
        if (byte < 0x20 || byte == 0x7f) {
            return wrong("{} holds the control character 0x{:02x}", what, byte);
        }
    }
    return {};
}

Result<void> check_sha256(std::string_view what, std::string_view digits) {
    bool fits = digits.size() == 64;
    for (char digit : digits) {
        fits = fits && ((digit >= '0' && digit <= '9') || (digit >= 'a' && digit <= 'f'));
    }
    if (!fits) return wrong("{} is not a SHA-256 of 64 hexadecimal digits", what);
    return {};
}

Result<void> check_time(std::string_view what, int64_t time_s) {
    if (time_s < 0 || time_s > kRecordTimeMax) return wrong("{} is not in 1970 to 9999", what);
    return {};
}

Result<std::string> print_record(nlohmann::json object, uint32_t version, std::string_view what) {
    object["record_version"] = version;
    std::string text;
    // The library throws when a text is not UTF-8; here is where that ends.
    try {
        text = object.dump();
    } catch (const std::exception&) {
        return wrong("{} holds text that is not UTF-8", what);
    }
    if (text.size() > limits::kStoreValueBytesMax) {
        return wrong("{} takes {} bytes, at most {} fit", what, text.size(),
                     limits::kStoreValueBytesMax);
    }
    return text;
}

}  // namespace peplos::control
