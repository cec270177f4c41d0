#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "base/result.h"
#include "fabric/node.h"
#include "http/json.h"

// What the REST interface says and understands, as plain functions. The schemas that describe it
// to others stand in openapi.cc; a test compares the two.
namespace peplos::api {

using http::Json;

// The one table from our errors to HTTP.
struct ErrorEntry {
    unsigned status;
    std::string_view next;  // what to do where the message itself cannot say it; may be empty
};
ErrorEntry entry_of(Code code);
// {"error": {"code", "message", "next"}}.
Json error_json(const Error& error);
// The error that error_json() wrote; `status` stands in where the body is something else.
Error error_of(const Json& body, unsigned status);

Json health_json(const fabric::Health& health);
Json volume_json(const fabric::VolumeInfo& volume);
Json volumes_json(const std::vector<fabric::VolumeInfo>& volumes);
Json device_json(const fabric::DeviceInfo& device);
Json status_json(const fabric::NodeStatus& status);
Json scrub_json(const fabric::Node::ScrubReport& report);
// Everything that is not green, each with its reason and the next step, beside the data it is from.
Json doctor_json(const fabric::NodeStatus& status, const std::vector<fabric::VolumeInfo>& volumes,
                 const fabric::Node::ScrubReport& report);

Json recovery_json(const fabric::RecoveryReport& report);

Json leftovers_json(const std::vector<fabric::Leftover>& leftovers);

// Requests. Unknown members are refused by name, with the list of known ones.
// Errors: invalid_argument.
Result<fabric::VolumeSpec> volume_spec_of(const Json& body);
Result<uint64_t> new_size_of(const Json& body);
// {"accept_loss": true}, or nothing of it.
Result<fabric::Node::Loss> loss_of(const Json& body);
struct DeviceRequest {
    std::string path;           // absolute
    uint64_t create_bytes = 0;  // 0: the file or block device exists
    std::string media_class;    // "nvme", "ssd", "hdd"; empty: the node finds out
};
Result<DeviceRequest> device_request_of(const Json& body);
// {"force": true}: the caller says that it knows what it does.
Result<void> check_force(const Json& body);

// Prometheus' text format 0.0.4: samples of one name together, under one HELP and TYPE. A name
// or label that the format does not allow is left out rather than spoiling the whole page.
std::string prometheus_text(const std::vector<fabric::Metric>& metrics);

}  // namespace peplos::api
