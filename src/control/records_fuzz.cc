#include <cstddef>
#include <cstdint>
#include <string_view>

#include "base/check.h"
#include "control/cluster_records.h"

namespace {

using namespace peplos;

// Whatever is accepted must print, and read back as the same.
template <typename Record>
void try_decode(std::string_view text) {
    Result<Record> record = control::decode<Record>(text);
    if (!record) return;
    Result<std::string> printed = control::encode(*record);
    CHECK(printed.has_value(), "{}", printed.error().text());
    Result<Record> again = control::decode<Record>(*printed);
    CHECK(again.has_value(), "{}", again.error().text());
    CHECK(*again == *record);
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
    std::string_view text(reinterpret_cast<const char*>(data), size);
    try_decode<control::ClusterRecord>(text);
    try_decode<control::NodeRecord>(text);
    try_decode<control::DeviceRecord>(text);
    try_decode<control::VolumeRecord>(text);
    try_decode<control::VolumeNameRecord>(text);
    try_decode<control::GroupRecord>(text);
    try_decode<control::JoinTokenRecord>(text);
    try_decode<control::MaintainerRecord>(text);
    return 0;
}
