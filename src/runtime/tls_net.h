#pragma once

#include <memory>
#include <string>

#include "runtime/clock.h"
#include "runtime/net.h"

namespace peplos::runtime {

// PEM texts of a node (certificates.h).
struct TlsCredentials {
    std::string key;
    std::string certificate;
    // Whose certificates count: one authority, or two while one takes over from the other.
    std::string authorities;
};

struct TlsLimits {
    // For a handshake, on both ends.
    Duration handshake_time = std::chrono::seconds(2);
    // Handshakes of one listener that are not through; beyond that the oldest is given up.
    size_t half_open_max = 64;
    // Connections that nobody has accepted yet.
    size_t waiting_max = 64;
};

class TlsContext;

// The Net seam over another one, with TLS 1.3 in which both ends prove who they are: their
// certificate chains to an authority of the cluster and names a node, which is the connection's
// identity(). Everything else is refused.
class TlsNet final : public Net {
  public:
    // `inner` and `clock` outlive it. Errors: invalid_argument (texts that are no such things, or
    // do not belong together).
    static Result<std::unique_ptr<TlsNet>> make(Net& inner, Clock& clock,
                                                const TlsCredentials& credentials,
                                                TlsLimits limits = {});
    ~TlsNet() override;

    // For connections made from now on, by listeners that exist, too. What exists goes on.
    // Errors: invalid_argument; nothing has changed then.
    Result<void> reload(const TlsCredentials& credentials);

    // Errors: also permission_denied (the other end is no node of this cluster). With TLS 1.3 a
    // connection that the other end refuses may be made here, and fails with the first read.
    Task<Result<std::unique_ptr<Connection>>> connect(std::string address,
                                                      Duration timeout) override;
    // Who does not pass the handshake is dropped, and never shows in accept().
    Task<Result<std::unique_ptr<Listener>>> listen(std::string address) override;

  private:
    TlsNet(Net& inner, Clock& clock, std::shared_ptr<TlsContext> context, TlsLimits limits);

    Net& inner_;
    Clock& clock_;
    // Shared with connections and listeners, which may outlive it.
    std::shared_ptr<TlsContext> context_;
    TlsLimits limits_;
};

}  // namespace peplos::runtime
