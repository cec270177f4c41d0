#pragma once

#include <cstdint>
#include <map>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "base/ids.h"
#include "base/result.h"

namespace peplos::control {

// Year 9999: later times cannot be printed as RFC 3339.
inline constexpr int64_t kRecordTimeMax = 253'402'300'799;

// Reads one JSON object that nobody has vouched for, field by field. After the first thing that is
// wrong every further read gives a default: call finish() once, at the end, and believe nothing
// before. Fields that nobody asked for are an error too.
class JsonFields {
  public:
    // Parses text without throwing; refuses repeated fields and more than limits::kJsonDepthMax
    // levels. `what` names the record in messages.
    static Result<nlohmann::json> parse(std::string_view text, std::string_view what);

    // Borrows both. Requires: `object` outlives this.
    JsonFields(const nlohmann::json& object, std::string_view what);

    uint64_t number(const char* name, uint64_t max);
    int64_t time_s(const char* name);
    std::optional<uint32_t> optional_number(const char* name, uint32_t max);
    std::string text(const char* name);
    std::vector<std::string> texts(const char* name, size_t count_max);
    std::map<std::string, std::string> text_map(const char* name, size_t count_max);
    // 16 hexadecimal digits, lower case.
    template <typename Id>
    Id id(const char* name) {
        return Id(hex_id(name));
    }
    DeviceId device_id(const char* name);
    // An array whose elements are read by further JsonFields; empty when it is not one.
    const nlohmann::json& objects(const char* name, size_t count_max);
    // The value whose name in `names` is the field's text.
    template <typename Enum, size_t kCount>
    Enum choice(const char* name, const std::pair<Enum, std::string_view> (&names)[kCount]) {
        std::string found = text(name);
        for (const auto& [value, value_name] : names) {
            if (value_name == found) return value;
        }
        refuse(name, "has an unknown value");
        return names[0].first;
    }

    void refuse(const char* name, std::string_view why);
    // Errors: corrupt, naming the first field that was wrong.
    Result<void> finish();

  private:
    const nlohmann::json* take(const char* name);
    uint64_t hex_id(const char* name);

    const nlohmann::json& object_;
    std::string what_;
    size_t taken_ = 0;
    std::optional<Error> error_;
};

}  // namespace peplos::control
