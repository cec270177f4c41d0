#include "http/json.h"

#include <algorithm>
#include <array>
#include <ctime>
#include <limits>

#include "base/limits.h"

namespace peplos::http {
namespace {

constexpr size_t kQuotedBytesMax = 64;

// The depth of nesting, counted before any parser builds a tree from it.
size_t depth_of(std::string_view text) {
    size_t depth = 0, deepest = 0;
    bool inside_string = false;
    for (size_t index = 0; index < text.size(); ++index) {
        char c = text[index];
        if (inside_string) {
            if (c == '\\') ++index;
            if (c == '"') inside_string = false;
        } else if (c == '"') {
            inside_string = true;
        } else if (c == '[' || c == '{') {
            deepest = std::max(deepest, ++depth);
        } else if ((c == ']' || c == '}') && depth > 0) {
            --depth;
        }
    }
    return deepest;
}

// Learns where a parse failed, without exceptions and without building anything.
struct ErrorPosition : nlohmann::json_sax<Json> {
    size_t position = 0;
    bool null() override { return true; }
    bool boolean(bool) override { return true; }
    bool number_integer(number_integer_t) override { return true; }
    bool number_unsigned(number_unsigned_t) override { return true; }
    bool number_float(number_float_t, const string_t&) override { return true; }
    bool string(string_t&) override { return true; }
    bool binary(binary_t&) override { return true; }
    bool start_object(size_t) override { return true; }
    bool key(string_t&) override { return true; }
    bool end_object() override { return true; }
    bool start_array(size_t) override { return true; }
    bool end_array() override { return true; }
    bool parse_error(size_t at, const std::string&, const nlohmann::detail::exception&) override {
        position = at;
        return false;
    }
};

}  // namespace

Result<Json> parse_object(std::string_view text) {
    if (text.empty()) {
        return fail(Code::invalid_argument, "the request has no body: send a JSON object");
    }
    size_t depth = depth_of(text);
    if (depth > limits::kJsonDepthMax) {
        return fail(Code::invalid_argument, "the JSON is nested {} deep, at most {} is allowed",
                    depth, limits::kJsonDepthMax);
    }
    Json value = Json::parse(text, nullptr, /*allow_exceptions=*/false);
    if (value.is_discarded()) {
        ErrorPosition where;
        Json::sax_parse(text, &where);
        return fail(Code::invalid_argument,
                    "the body is not valid JSON: it breaks at byte {} of {}{}", where.position,
                    text.size(), where.position >= text.size() ? " (truncated?)" : "");
    }
    if (!value.is_object()) {
        return fail(Code::invalid_argument, "the body is a JSON {}, an object is needed",
                    value.type_name());
    }
    return value;
}

std::string print(const Json& value) {
    return value.dump(-1, ' ', false, Json::error_handler_t::replace);
}

std::string quoted(std::string_view text) {
    std::string out = "\"";
    for (char c : text.substr(0, kQuotedBytesMax)) {
        if (c >= 0x20 && c < 0x7f && c != '"' && c != '\\') {
            out += c;
        } else {
            out += fmt::format("\\x{:02x}", static_cast<unsigned char>(c));
        }
    }
    if (text.size() > kQuotedBytesMax) out += "...";
    return out + '"';
}

std::string rfc3339(WallTime time) {
    std::time_t seconds = unix_seconds(time);
    std::tm parts{};
    if (::gmtime_r(&seconds, &parts) == nullptr) return "";
    std::array<char, 32> text{};
    size_t size = std::strftime(text.data(), text.size(), "%Y-%m-%dT%H:%M:%SZ", &parts);
    return std::string(text.data(), size);
}

Result<std::optional<std::string>> text_member(const Json& object, const char* name) {
    auto found = object.find(name);
    if (found == object.end() || found->is_null()) return std::nullopt;
    if (!found->is_string()) {
        return fail(Code::invalid_argument, "\"{}\" is a JSON {}, a string is needed", name,
                    found->type_name());
    }
    return found->get_ref<const std::string&>();
}

Result<std::optional<int64_t>> integer_member(const Json& object, const char* name) {
    auto found = object.find(name);
    if (found == object.end() || found->is_null()) return std::nullopt;
    bool too_large = found->is_number_unsigned() &&
                     found->get<uint64_t>() > uint64_t{std::numeric_limits<int64_t>::max()};
    if (!found->is_number_integer() || too_large) {
        return fail(Code::invalid_argument, "\"{}\" is not a whole number that fits 64 bits", name);
    }
    return found->get<int64_t>();
}

}  // namespace peplos::http
