#pragma once

#include <openssl/x509.h>

#include "base/ids.h"

namespace peplos::runtime {

// A node's name in its certificate: one subject alternative name, the URI kNodeUri and 16
// hexadecimal digits.
inline constexpr std::string_view kNodeUri = "peplos://node/";

// The node that a certificate or a request names; 0 when it names none, or several.
NodeId node_of(const X509* certificate);
NodeId node_of(X509_REQ* request);

}  // namespace peplos::runtime
