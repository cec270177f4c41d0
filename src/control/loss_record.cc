#include "control/loss_record.h"

#include <nlohmann/json.hpp>

#include "control/json_fields.h"

namespace peplos::control {
namespace {

constexpr uint32_t kLossVersion = 1;

}  // namespace

std::string loss_key(VolumeId volume) {
    return fmt::format("{}{}", kLossPrefix, volume);
}

VolumeId volume_of_loss_key(const std::string& key) {
    if (!key.starts_with(kLossPrefix)) return {};
    return VolumeId(parse_hex_id(std::string_view(key).substr(kLossPrefix.size())));
}

std::string encode_loss(const LossRecord& record) {
    nlohmann::json root = {{"record_version", kLossVersion},
                           {"accepted_at_s", record.accepted_at_s},
                           {"is_done", record.is_done ? 1 : 0},
                           {"what", record.what.substr(0, kLossTextBytesMax)}};
    return root.dump(-1, ' ', false, nlohmann::json::error_handler_t::replace);
}

Result<LossRecord> decode_loss(const std::string& value) {
    TRY_ASSIGN(nlohmann::json root, JsonFields::parse(value, "a loss record"));
    JsonFields fields(root, "a loss record");
    if (fields.number("record_version", UINT32_MAX) > kLossVersion)
        return fail(Code::unsupported, "a loss record was written by a newer Peplos");
    LossRecord record;
    record.accepted_at_s = fields.time_s("accepted_at_s");
    record.is_done = fields.number("is_done", 1) != 0;
    record.what = fields.text("what");
    TRY(fields.finish());
    return record;
}

}  // namespace peplos::control
