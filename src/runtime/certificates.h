#pragma once

#include <string>
#include <vector>

#include "base/ids.h"
#include "base/result.h"
#include "base/units.h"

// The certificates of a cluster: an authority of its own, and one certificate per node, by which
// nodes know each other. All texts are PEM; keys are P-256, which etcd and gRPC take, too.
namespace peplos::runtime {

inline constexpr auto kAuthorityValidity = std::chrono::hours(24 * 3653);
inline constexpr auto kNodeValidity = std::chrono::hours(24 * 366);
// Certificates count from this long before they are made: clocks of nodes differ.
inline constexpr auto kClockSkewMax = std::chrono::hours(1);

struct KeyAndCertificate {
    std::string key;  // a secret
    std::string certificate;
};
struct KeyAndRequest {
    std::string key;      // a secret: it never leaves the node that made it
    std::string request;  // PKCS #10
};

// A new authority, signed by itself; it can sign nodes, and no other authority.
// Errors: io_error (no randomness).
Result<KeyAndCertificate> make_authority(ClusterId cluster, WallTime now);
Result<KeyAndRequest> make_key_and_request(NodeId node);
// The certificate of the node that made the request, for servers and clients. `node` is what the
// signer knows of it: a request that names another node is refused. `hosts` are further names (IP
// addresses or DNS names), for etcd, which looks at them.
// Errors: invalid_argument (not such a request, a signature that does not hold, an authority whose
// key and certificate do not belong together).
Result<std::string> sign(const KeyAndCertificate& authority, const std::string& request,
                         NodeId node, const std::vector<std::string>& hosts, WallTime now);

struct CertificateFacts {
    NodeId node;  // 0: not of a node
    std::string serial;
    WallTime begins;
    WallTime ends;
};
// Errors: invalid_argument.
Result<CertificateFacts> read_certificate(const std::string& certificate);

}  // namespace peplos::runtime
