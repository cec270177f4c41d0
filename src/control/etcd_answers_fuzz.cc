#include <cstddef>
#include <cstdint>
#include <string_view>

#include "base/check.h"
#include "control/etcd_mark.h"
#include "control/etcd_requests.h"

// The first byte says what the rest is: a mark file, or the bytes of an answer of etcd.
extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
    using namespace peplos;
    using namespace peplos::control;
    if (size == 0) return 0;
    std::string_view text(reinterpret_cast<const char*>(data + 1), size - 1);
    if (data[0] == 'm') {
        std::optional<etcd::Identity> identity = parse_mark(text);
        if (identity) CHECK(text_of_mark(*identity) == text);
        return 0;
    }
    const etcd::Layout layout("/p/");
    etcdserverpb::TxnResponse response;
    if (!response.ParseFromArray(text.data(), static_cast<int>(text.size()))) return 0;
    Result<etcd::Identity> identity = layout.identity_of(response, data[0] % 3);
    if (identity && !identity->generation.empty()) {
        Result<etcd::GenerationValue> value = etcd::parse_generation(identity->generation);
        CHECK(!value || value->id != 0);
    }
    if (const etcd::RangeResponse* range = etcd::range_of(response, 0)) {
        for (const mvccpb::KeyValue& one : range->kvs()) {
            Result<KeyValue> entry = layout.entry_of(one);
            if (entry) CHECK(check_key(entry->key).has_value() && entry->version > 0);
        }
    }
    Error error = layout.refusal({create("a", ""), put("b", Revision(3), "")}, response);
    CHECK(error.code() == Code::conflict);
    return 0;
}
