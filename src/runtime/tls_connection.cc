#include "runtime/tls_connection.h"

#include <algorithm>
#include <openssl/x509v3.h>

#include "base/check.h"
#include "runtime/certificate_names.h"

namespace peplos::runtime {
namespace {

constexpr size_t kRecordBytes = 16 * kKiB;
constexpr size_t kInputBytes = 128 * kKiB;
// Encrypted at once, before the bytes are handed on.
constexpr size_t kFlushBytes = 256 * kKiB;
// AES-GCM wants a new key after 2^24.5 full records (RFC 8446 section 5.5).
constexpr uint64_t kRecordsPerKey = uint64_t{1} << 22;
constexpr const char* kCiphers = "TLS_AES_128_GCM_SHA256:TLS_AES_256_GCM_SHA384";

// Every certificate of the text counts.
Result<void> trust(SSL_CTX* settings, const std::string& authorities) {
    OwnedBio bio = bio_of(authorities);
    X509_STORE* store = SSL_CTX_get_cert_store(settings);
    size_t count = 0;
    while (true) {
        OwnedCertificate authority(PEM_read_bio_X509(bio.get(), nullptr, nullptr, nullptr));
        if (authority == nullptr) break;
        if (X509_check_ca(authority.get()) == 0)
            return fail(Code::invalid_argument, "a certificate of the authorities is not of one");
        if (X509_STORE_add_cert(store, authority.get()) != 1)
            return fail(Code::invalid_argument, "an authority is not taken: {}",
                        take_openssl_error());
        ++count;
    }
    ERR_clear_error();
    if (count == 0) return fail(Code::invalid_argument, "no authority is given");
    return {};
}

}  // namespace

Result<OwnedSettings> TlsContext::settings_of(const TlsCredentials& credentials) {
    TRY_ASSIGN(OwnedKey key, key_of_pem(credentials.key));
    TRY_ASSIGN(OwnedCertificate certificate, certificate_of_pem(credentials.certificate));
    if (!node_of(certificate.get()))
        return fail(Code::invalid_argument, "the certificate names no node");
    OwnedSettings settings(SSL_CTX_new(TLS_method()));
    SSL_CTX* out = settings.get();
    bool done = out != nullptr && SSL_CTX_set_min_proto_version(out, TLS1_3_VERSION) == 1 &&
                SSL_CTX_set_ciphersuites(out, kCiphers) == 1 &&
                SSL_CTX_use_certificate(out, certificate.get()) == 1 &&
                SSL_CTX_use_PrivateKey(out, key.get()) == 1 && SSL_CTX_check_private_key(out) == 1;
    if (!done) {
        return fail(Code::invalid_argument, "the key and the certificate are not taken: {}",
                    take_openssl_error());
    }
    TRY(trust(out, credentials.authorities));
    SSL_CTX_set_verify(out, SSL_VERIFY_PEER | SSL_VERIFY_FAIL_IF_NO_PEER_CERT, nullptr);
    // No resumption: a certificate is looked at for every connection.
    SSL_CTX_set_num_tickets(out, 0);
    SSL_CTX_set_session_cache_mode(out, SSL_SESS_CACHE_OFF);
    SSL_CTX_set_read_ahead(out, 1);
    SSL_CTX_set_default_read_buffer_len(out, kInputBytes);
    return settings;
}

TlsConnection::TlsConnection(TlsContext& context, TlsSide side, std::unique_ptr<Connection> inner)
    : ssl_(SSL_new(context.settings())),
      incoming_(BIO_new(BIO_s_mem())),
      outgoing_(BIO_new(BIO_s_mem())),
      inner_(std::move(inner)),
      input_(Buffer::allocate(kInputBytes)) {
    CHECK(ssl_ != nullptr && incoming_ != nullptr && outgoing_ != nullptr);
    SSL_set_bio(ssl_.get(), incoming_, outgoing_);
    if (side == TlsSide::client) {
        SSL_set_connect_state(ssl_.get());
    } else {
        SSL_set_accept_state(ssl_.get());
    }
}

Error TlsConnection::error(int result, std::string_view what) {
    int kind = SSL_get_error(ssl_.get(), result);
    std::string why =
        kind == SSL_ERROR_ZERO_RETURN ? "the other end has closed it" : take_openssl_error();
    ERR_clear_error();
    return {Code::unavailable, fmt::format("{} {} ended: {}", what, peer(), why)};
}

Task<Result<void>> TlsConnection::receive() {
    CO_TRY_ASSIGN(size_t count, co_await inner_->read_some(input_));
    int taken = BIO_write(incoming_, input_.data(), static_cast<int>(count));
    CHECK(taken == static_cast<int>(count), "out of memory");
    co_return Result<void>{};
}

Task<Result<void>> TlsConnection::flush() {
    size_t bytes = BIO_pending(outgoing_);
    if (bytes == 0) co_return Result<void>{};
    std::vector<Buffer> parts{Buffer::allocate(bytes)};
    int taken = BIO_read(outgoing_, parts[0].data(), static_cast<int>(bytes));
    CHECK(taken == static_cast<int>(bytes));
    co_return co_await inner_->write(std::move(parts));
}

Task<Result<void>> TlsConnection::handshake() {
    while (true) {
        ERR_clear_error();
        int result = SSL_do_handshake(ssl_.get());
        if (result == 1) break;
        if (SSL_get_error(ssl_.get(), result) != SSL_ERROR_WANT_READ) {
            long verdict = SSL_get_verify_result(ssl_.get());
            Error why = error(result, "the handshake with");
            // The other end is told why, if it listens.
            [[maybe_unused]] auto told = co_await flush();
            if (verdict == X509_V_OK) co_return fail(Code::permission_denied, "{}", why.message());
            co_return fail(Code::permission_denied, "the certificate of {} does not count: {}",
                           peer(), X509_verify_cert_error_string(verdict));
        }
        CO_TRY(co_await flush());
        CO_TRY(co_await receive());
    }
    CO_TRY(co_await flush());
    co_return check_identity();
}

Result<void> TlsConnection::check_identity() {
    OwnedCertificate certificate(SSL_get1_peer_certificate(ssl_.get()));
    bool is_proven = certificate != nullptr && SSL_get_verify_result(ssl_.get()) == X509_V_OK;
    NodeId node = is_proven ? node_of(certificate.get()) : NodeId{};
    if (!node) return fail(Code::permission_denied, "the certificate of {} names no node", peer());
    identity_ = text_of(node);
    return {};
}

Result<size_t> TlsConnection::decrypt(MutableBytes into) {
    size_t done = 0;
    while (done < into.size()) {
        ERR_clear_error();
        size_t count = 0;
        int result = SSL_read_ex(ssl_.get(), into.data() + done, into.size() - done, &count);
        if (result != 1) {
            if (SSL_get_error(ssl_.get(), result) == SSL_ERROR_WANT_READ || done != 0) break;
            return fail(error(result, "reading from"));
        }
        done += count;
    }
    return done;
}

Task<Result<size_t>> TlsConnection::read_some(Buffer into) {
    while (true) {
        CO_TRY_ASSIGN(size_t count, decrypt(into.bytes()));
        if (count != 0) co_return count;
        CO_TRY(co_await receive());
    }
}

Task<Result<void>> TlsConnection::read(Buffer into) {
    while (!into.empty()) {
        CO_TRY_ASSIGN(size_t count, co_await read_some(into));
        into = into.slice(count, into.size() - count);
    }
    co_return Result<void>{};
}

Result<void> TlsConnection::encrypt(Bytes from) {
    if (++records_written_ % kRecordsPerKey == 0)
        SSL_key_update(ssl_.get(), SSL_KEY_UPDATE_NOT_REQUESTED);
    ERR_clear_error();
    size_t count = 0;
    int result = SSL_write_ex(ssl_.get(), from.data(), from.size(), &count);
    if (result != 1) return fail(error(result, "writing to"));
    CHECK(count == from.size());
    return {};
}

// Small parts share a record.
Task<Result<void>> TlsConnection::write(std::vector<Buffer> from) {
    Buffer record = Buffer::allocate(kRecordBytes);
    size_t used = 0;
    for (const Buffer& part : from) {
        for (size_t done = 0; done < part.size();) {
            size_t count = std::min(kRecordBytes - used, part.size() - done);
            if (used == 0 && count == kRecordBytes) {
                CO_TRY(encrypt(part.bytes().subspan(done, count)));
            } else {
                std::memcpy(record.data() + used, part.data() + done, count);
                used += count;
            }
            done += count;
            if (used == kRecordBytes) {
                CO_TRY(encrypt(record.bytes()));
                used = 0;
            }
            if (static_cast<size_t>(BIO_pending(outgoing_)) >= kFlushBytes)
                CO_TRY(co_await flush());
        }
    }
    if (used != 0) CO_TRY(encrypt(record.bytes().subspan(0, used)));
    co_return co_await flush();
}

}  // namespace peplos::runtime
