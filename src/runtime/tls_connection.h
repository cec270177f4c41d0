#pragma once

#include <openssl/ssl.h>

#include "runtime/net.h"
#include "runtime/openssl.h"
#include "runtime/tls_net.h"

namespace peplos::runtime {

using OwnedSettings = std::unique_ptr<SSL_CTX, FreeBy<SSL_CTX_free>>;

// What handshakes are made with; replaced as a whole by a reload.
class TlsContext {
  public:
    static Result<OwnedSettings> settings_of(const TlsCredentials& credentials);
    explicit TlsContext(OwnedSettings settings) : settings_(std::move(settings)) {}
    void replace(OwnedSettings settings) { settings_ = std::move(settings); }
    SSL_CTX* settings() { return settings_.get(); }

  private:
    OwnedSettings settings_;
};

enum class TlsSide : uint8_t { client, server };

// TLS on a connection. The library sees memory only: all I/O is the connection's, many records at a
// time.
class TlsConnection final : public Connection {
  public:
    TlsConnection(TlsContext& context, TlsSide side, std::unique_ptr<Connection> inner);

    // Before anything else. Errors: unavailable, permission_denied.
    Task<Result<void>> handshake();

    Task<Result<void>> read(Buffer into) override;
    Task<Result<size_t>> read_some(Buffer into) override;
    Task<Result<void>> write(std::vector<Buffer> from) override;
    void close() override { inner_->close(); }
    const std::string& peer() const override { return inner_->peer(); }
    const std::string& identity() const override { return identity_; }

  private:
    // What can be read without waiting; 0 when bytes are missing.
    Result<size_t> decrypt(MutableBytes into);
    Result<void> encrypt(Bytes from);
    Task<Result<void>> receive();
    // Sends what the library has written.
    Task<Result<void>> flush();
    Result<void> check_identity();
    Error error(int result, std::string_view what);

    std::unique_ptr<SSL, FreeBy<SSL_free>> ssl_;
    // Of ssl_: what came, and what is to go.
    BIO* incoming_;
    BIO* outgoing_;
    std::unique_ptr<Connection> inner_;
    Buffer input_;
    uint64_t records_written_ = 0;
    std::string identity_;
};

}  // namespace peplos::runtime
