#include "docker/messages.h"

// The first byte picks the method, the rest is the body.
extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
    using namespace peplos;
    static constexpr const char* kPaths[] = {"/VolumeDriver.Create", "/VolumeDriver.Mount",
                                             "/VolumeDriver.Get", "/Plugin.Activate",
                                             "/VolumeDriver.Unmount"};
    if (size == 0) return 0;
    std::string_view body(reinterpret_cast<const char*>(data) + 1, size - 1);
    auto call = docker::parse_call("POST", kPaths[data[0] % std::size(kPaths)], body);
    if (!call) {
        (void)http::print(docker::answer_error(call.error()));
        return 0;
    }
    auto spec = docker::spec_of(call->name, call->options);
    if (spec) {
        // What was accepted stays accepted, unchanged, and can be shown.
        CHECK(fabric::validated(*spec) == *spec);
        fabric::VolumeInfo info;
        info.spec = *spec;
        (void)http::print(docker::answer_get(info));
    } else {
        (void)http::print(docker::answer_error(spec.error()));
    }
    return 0;
}
