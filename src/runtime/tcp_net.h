#pragma once

#include "runtime/net.h"

namespace peplos::runtime {

// The Net seam over TCP, on the io_context of whoever calls. "[::1]:7000" names an IPv6 address.
class TcpNet final : public Net {
  public:
    Task<Result<std::unique_ptr<Connection>>> connect(std::string address,
                                                      Duration timeout) override;
    Task<Result<std::unique_ptr<Listener>>> listen(std::string address) override;
};

struct HostPort {
    std::string host;
    std::string port;
};
// Errors: invalid_argument.
Result<HostPort> parse_address(std::string_view address);

}  // namespace peplos::runtime
