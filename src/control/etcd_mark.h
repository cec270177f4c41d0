#pragma once

#include <optional>
#include <string>

#include "base/result.h"
#include "control/etcd_requests.h"

namespace peplos::control {

// A small file that remembers what the store was last seen to be (docs/formats/control-store.md).
// A lost or an older one is no harm but that less is noticed, so it is replaced without a sync.

// Nothing when there is none or it makes no sense.
std::optional<etcd::Identity> read_etcd_mark(const std::string& path);
// Errors: io_error, no_space, permission_denied; the file is as before.
Result<void> write_etcd_mark(const std::string& path, const etcd::Identity& identity);

std::string text_of_mark(const etcd::Identity& identity);
std::optional<etcd::Identity> parse_mark(std::string_view text);

}  // namespace peplos::control
