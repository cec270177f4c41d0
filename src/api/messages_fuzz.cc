#include "api/messages.h"
#include "api/routes.h"
#include "http/server.h"

// The first byte picks what is read, the rest is a body or a path.
extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
    using namespace peplos;
    if (size == 0) return 0;
    std::string_view text(reinterpret_cast<const char*>(data) + 1, size - 1);
    if (data[0] % 4 == 3) {
        api::Routes::Match match = api::Routes::match("GET", text);
        (void)fabric::check_name(http::percent_decoded(match.name));
        return 0;
    }
    auto body = http::parse_object(text);
    if (!body) {
        (void)http::print(api::error_json(body.error()));
        return 0;
    }
    (void)api::error_of(*body, 500);
    if (data[0] % 4 == 0) {
        auto spec = api::volume_spec_of(*body);
        if (!spec) return 0;
        CHECK(fabric::validated(*spec) == *spec);
        fabric::VolumeInfo info;
        info.spec = *spec;
        (void)http::print(api::volume_json(info));
    } else if (data[0] % 4 == 1) {
        (void)api::new_size_of(*body);
    } else {
        (void)api::device_request_of(*body);
    }
    return 0;
}
