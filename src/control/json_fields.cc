#include "control/json_fields.h"

#include <set>

#include "base/limits.h"

namespace peplos::control {
namespace {

using nlohmann::json;

const json kNoObjects = json::array();

}  // namespace

Result<json> JsonFields::parse(std::string_view text, std::string_view what) {
    if (text.size() > limits::kStoreValueBytesMax) {
        return fail(Code::corrupt, "{} has {} bytes, more than a record can have", what,
                    text.size());
    }
    std::string_view wrong;
    std::vector<std::set<std::string>> names;
    auto watch = [&](int depth, json::parse_event_t event, json& parsed) {
        if (event == json::parse_event_t::object_start) names.emplace_back();
        if (event == json::parse_event_t::object_end) names.pop_back();
        if (depth >= static_cast<int>(limits::kJsonDepthMax)) wrong = "is nested too deep";
        if (event == json::parse_event_t::key) {
            bool is_new = names.back().insert(parsed.get_ref<const std::string&>()).second;
            if (!is_new) wrong = "repeats a field";
        }
        return true;
    };
    json parsed;
    try {
        parsed = json::parse(text, watch, /*allow_exceptions=*/false);
    } catch (const std::exception& error) {
        return fail(Code::corrupt, "{} is not JSON: {}", what, error.what());
    }
    if (!wrong.empty()) return fail(Code::corrupt, "{} {}", what, wrong);
    if (!parsed.is_object()) return fail(Code::corrupt, "{} is not a JSON object", what);
    return parsed;
}

JsonFields::JsonFields(const json& object, std::string_view what) : object_(object), what_(what) {
    if (!object_.is_object()) error_.emplace(Code::corrupt, what_ + " is not a JSON object");
}

void JsonFields::refuse(const char* name, std::string_view why) {
    if (error_) return;
    error_.emplace(Code::corrupt, fmt::format("{}: the field '{}' {}", what_, name, why));
}

const json* JsonFields::take(const char* name) {
    if (error_) return nullptr;
    auto found = object_.find(name);
    if (found == object_.end()) {
        refuse(name, "is missing");
        return nullptr;
    }
    ++taken_;
    return &*found;
}

uint64_t JsonFields::number(const char* name, uint64_t max) {
    const json* field = take(name);
    if (field == nullptr) return 0;
    if (!field->is_number_unsigned() || field->get<uint64_t>() > max) {
        refuse(name, fmt::format("is not a whole number from 0 to {}", max));
        return 0;
    }
    return field->get<uint64_t>();
}

int64_t JsonFields::time_s(const char* name) {
    return static_cast<int64_t>(number(name, kRecordTimeMax));
}

std::optional<uint32_t> JsonFields::optional_number(const char* name, uint32_t max) {
    if (!error_) {
        auto found = object_.find(name);
        if (found != object_.end() && found->is_null()) {
            ++taken_;
            return std::nullopt;
        }
    }
    return static_cast<uint32_t>(number(name, max));
}

std::string JsonFields::text(const char* name) {
    const json* field = take(name);
    if (field == nullptr) return {};
    if (!field->is_string()) {
        refuse(name, "is not a text");
        return {};
    }
    return field->get_ref<const std::string&>();
}

std::vector<std::string> JsonFields::texts(const char* name, size_t count_max) {
    const json* field = take(name);
    std::vector<std::string> out;
    if (field == nullptr) return out;
    if (!field->is_array() || field->size() > count_max) {
        refuse(name, fmt::format("is not a list of at most {} texts", count_max));
        return out;
    }
    for (const json& element : *field) {
        if (!element.is_string()) {
            refuse(name, "holds something that is not a text");
            return {};
        }
        out.push_back(element.get_ref<const std::string&>());
    }
    return out;
}

std::map<std::string, std::string> JsonFields::text_map(const char* name, size_t count_max) {
    const json* field = take(name);
    std::map<std::string, std::string> out;
    if (field == nullptr) return out;
    if (!field->is_object() || field->size() > count_max) {
        refuse(name, fmt::format("is not an object of at most {} texts", count_max));
        return out;
    }
    for (const auto& [key, element] : field->items()) {
        if (!element.is_string()) {
            refuse(name, "holds something that is not a text");
            return {};
        }
        out.emplace(key, element.get_ref<const std::string&>());
    }
    return out;
}

uint64_t JsonFields::hex_id(const char* name) {
    std::string digits = text(name);
    uint64_t value = parse_hex_id(digits);
    if (fmt::format("{:016x}", value) != digits) {
        refuse(name, "is not an id of 16 hexadecimal digits");
    }
    return value;
}

DeviceId JsonFields::device_id(const char* name) {
    std::string digits = text(name);
    DeviceId id;
    if (digits.size() == 32) {
        uint64_t halves[] = {parse_hex_id(std::string_view(digits).substr(0, 16)),
                             parse_hex_id(std::string_view(digits).substr(16))};
        for (size_t i = 0; i < 16; ++i) {
            id.bytes[i] = static_cast<uint8_t>(halves[i / 8] >> (56 - 8 * (i % 8)));
        }
    }
    if (id.text() != digits) refuse(name, "is not a device id of 32 hexadecimal digits");
    return id;
}

const json& JsonFields::objects(const char* name, size_t count_max) {
    const json* field = take(name);
    if (field == nullptr) return kNoObjects;
    if (field->is_array() && field->size() <= count_max) return *field;
    refuse(name, fmt::format("is not a list of at most {} entries", count_max));
    return kNoObjects;
}

Result<void> JsonFields::finish() {
    if (error_) return fail(std::move(*error_));
    if (taken_ != object_.size()) {
        return fail(Code::corrupt, "{} has {} fields that this Peplos does not know", what_,
                    object_.size() - taken_);
    }
    return {};
}

}  // namespace peplos::control
