#pragma once

#include <nlohmann/json.hpp>
#include <string>
#include <string_view>

#include "base/check.h"
#include "base/ids.h"
#include "base/limits.h"
#include "base/result.h"
#include "control/json_fields.h"

// What the records of the control store share: their text, and the bounds of their fields. For the
// room's own sources; everybody else uses records.h and cluster_records.h.
namespace peplos::control {

template <typename Enum>
using EnumName = std::pair<Enum, std::string_view>;

template <typename Enum, size_t kCount>
std::string_view find_name(const EnumName<Enum> (&names)[kCount], Enum value) {
    for (const auto& [known, name] : names) {
        if (known == value) return name;
    }
    CHECK(false, "an enumerator without a name: {}", static_cast<int>(value));
    return {};
}

// A record that breaks a bound of ours.
template <typename... Args>
std::unexpected<Error> wrong(fmt::format_string<Args...> format, Args&&... args) {
    return fail(Code::invalid_argument, format, std::forward<Args>(args)...);
}

// Errors of each: invalid_argument.
Result<void> check_id(std::string_view what, uint64_t id);
// No control characters. Whether it is UTF-8 shows when it is printed.
Result<void> check_text(std::string_view what, std::string_view text, size_t bytes_max);
// A SHA-256 as 64 hexadecimal digits, lower case.
Result<void> check_sha256(std::string_view what, std::string_view digits);
Result<void> check_time(std::string_view what, int64_t time_s);

// The text to store. Errors: invalid_argument (text that is not UTF-8, or too long).
Result<std::string> print_record(nlohmann::json object, uint32_t version, std::string_view what);

// Parses `value`, refuses versions above `version_max`, lets `read(fields, record, version)` fill a
// record and checks it. Errors: unsupported, corrupt.
template <typename Record, typename Read>
Result<Record> read_record(std::string_view value, uint32_t version_max, std::string_view what,
                           Read read) {
    TRY_ASSIGN(nlohmann::json object, JsonFields::parse(value, what));
    JsonFields fields(object, what);
    uint64_t version = fields.number("record_version", UINT32_MAX);
    if (version > version_max) {
        return fail(Code::unsupported,
                    "{} has version {}, this peplosd knows up to {}: upgrade this node", what,
                    version, version_max);
    }
    if (version == 0) fields.refuse("record_version", "is not 1 or more");
    Record record;
    read(fields, record, static_cast<uint32_t>(version));
    TRY(fields.finish());
    if (Result<void> checked = check_record(record); !checked) {
        return fail(Code::corrupt, "{}: {}", what, checked.error().message());
    }
    return record;
}

}  // namespace peplos::control
