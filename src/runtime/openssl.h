#pragma once

#include <memory>
#include <openssl/bio.h>
#include <openssl/err.h>
#include <openssl/evp.h>
#include <openssl/pem.h>
#include <openssl/x509.h>
#include <string>

#include "base/result.h"

// Owners of OpenSSL's objects; for files of `runtime` that use it.
namespace peplos::runtime {

template <auto kFree>
struct FreeBy {
    template <typename T>
    void operator()(T* object) const {
        kFree(object);
    }
};
using OwnedKey = std::unique_ptr<EVP_PKEY, FreeBy<EVP_PKEY_free>>;
using OwnedCertificate = std::unique_ptr<X509, FreeBy<X509_free>>;
using OwnedRequest = std::unique_ptr<X509_REQ, FreeBy<X509_REQ_free>>;
using OwnedBio = std::unique_ptr<BIO, FreeBy<BIO_free>>;

// Takes what OpenSSL has to say about its last failure.
inline std::string take_openssl_error() {
    char text[256] = "no reason given";
    if (unsigned long code = ERR_peek_last_error()) ERR_error_string_n(code, text, sizeof(text));
    ERR_clear_error();
    return text;
}

// A view of the text; outlives not it.
inline OwnedBio bio_of(const std::string& text) {
    return OwnedBio(BIO_new_mem_buf(text.data(), static_cast<int>(text.size())));
}

// Errors: invalid_argument.
inline Result<OwnedKey> key_of_pem(const std::string& pem) {
    OwnedKey key(PEM_read_bio_PrivateKey(bio_of(pem).get(), nullptr, nullptr, nullptr));
    if (key == nullptr)
        return fail(Code::invalid_argument, "not a private key: {}", take_openssl_error());
    return key;
}
inline Result<OwnedCertificate> certificate_of_pem(const std::string& pem) {
    OwnedCertificate certificate(PEM_read_bio_X509(bio_of(pem).get(), nullptr, nullptr, nullptr));
    if (certificate == nullptr)
        return fail(Code::invalid_argument, "not a certificate: {}", take_openssl_error());
    return certificate;
}

}  // namespace peplos::runtime
