#pragma once

#include <memory>
#include <utility>

#include "media/device.h"

namespace peplos::media {

// The disk of tests that have one.
inline constexpr const char* kTestDisk = "disk0";

inline runtime::Task<Result<std::unique_ptr<Device>>> open_device(runtime::Env& env) {
    CO_TRY_ASSIGN(auto disk, co_await env.disks.open(kTestDisk, {}));
    co_return co_await Device::open(env, std::move(disk));
}

}  // namespace peplos::media
