#pragma once

#include <string_view>

namespace peplos::app {

// Tells the service manager (sd_notify(3)): "READY=1", "STOPPING=1", "STATUS=...". Does nothing
// when no manager asked for it (NOTIFY_SOCKET). Never blocks; a lost message is no error.
void notify_manager(std::string_view state);

}  // namespace peplos::app
