#include "runtime/certificates.h"

#include <algorithm>
#include <openssl/x509v3.h>

#include "base/check.h"
#include "runtime/certificate_names.h"
#include "runtime/openssl.h"

namespace peplos::runtime {
namespace {

using OwnedExtension = std::unique_ptr<X509_EXTENSION, FreeBy<X509_EXTENSION_free>>;
using OwnedNames = std::unique_ptr<GENERAL_NAMES, FreeBy<GENERAL_NAMES_free>>;
using OwnedNumber = std::unique_ptr<BIGNUM, FreeBy<BN_free>>;
void free_extensions(STACK_OF(X509_EXTENSION) * all) {
    sk_X509_EXTENSION_pop_free(all, X509_EXTENSION_free);
}
using OwnedExtensions = std::unique_ptr<STACK_OF(X509_EXTENSION), FreeBy<free_extensions>>;

constexpr int kSerialBits = 159;  // RFC 5280 section 4.1.2.2: at most 20 octets, positive
constexpr size_t kHostsMax = 64;

std::string text_of_bio(BIO* bio) {
    char* data = nullptr;
    long bytes = BIO_get_mem_data(bio, &data);
    return {data, static_cast<size_t>(bytes)};
}

Result<OwnedKey> make_key() {
    OwnedKey key(EVP_EC_gen("P-256"));
    if (key == nullptr) return fail(Code::io_error, "no key was made: {}", take_openssl_error());
    return key;
}

std::string pem_of(EVP_PKEY* key) {
    OwnedBio bio(BIO_new(BIO_s_mem()));
    CHECK(PEM_write_bio_PrivateKey(bio.get(), key, nullptr, nullptr, 0, nullptr, nullptr) == 1);
    return text_of_bio(bio.get());
}

std::string pem_of(X509* certificate) {
    OwnedBio bio(BIO_new(BIO_s_mem()));
    CHECK(PEM_write_bio_X509(bio.get(), certificate) == 1);
    return text_of_bio(bio.get());
}

void set_name(X509_NAME* name, const std::string& common_name) {
    auto add = [name](const char* field, const std::string& value) {
        const auto* bytes = reinterpret_cast<const unsigned char*>(value.data());
        CHECK(X509_NAME_add_entry_by_txt(name, field, MBSTRING_UTF8, bytes,
                                         static_cast<int>(value.size()), -1, 0) == 1);
    };
    add("O", "Peplos");
    add("CN", common_name);
}

bool set_serial(X509* certificate) {
    OwnedNumber number(BN_new());
    return BN_rand(number.get(), kSerialBits, BN_RAND_TOP_ONE, BN_RAND_BOTTOM_ANY) == 1 &&
           BN_to_ASN1_INTEGER(number.get(), X509_get_serialNumber(certificate)) != nullptr;
}

void set_validity(X509* certificate, WallTime now, Duration validity) {
    ASN1_TIME_set(X509_getm_notBefore(certificate), unix_seconds(now - kClockSkewMax));
    ASN1_TIME_set(X509_getm_notAfter(certificate), unix_seconds(now + validity));
}

// `value` is text of our own making, in OpenSSL's language for extensions.
bool add_extension(X509* certificate, X509* issuer, int nid, const std::string& value) {
    X509V3_CTX context;
    X509V3_set_ctx(&context, issuer, certificate, nullptr, nullptr, 0);
    OwnedExtension extension(X509V3_EXT_conf_nid(nullptr, &context, nid, value.c_str()));
    return extension != nullptr && X509_add_ext(certificate, extension.get(), -1) == 1;
}

// Built by hand, because the texts come from users.
bool add_name(GENERAL_NAMES* names, int type, const std::string& value) {
    std::unique_ptr<GENERAL_NAME, FreeBy<GENERAL_NAME_free>> name(GENERAL_NAME_new());
    ASN1_STRING* text = nullptr;
    if (type == GEN_IPADD) {
        text = a2i_IPADDRESS(value.c_str());
    } else {
        text = ASN1_IA5STRING_new();
        ASN1_STRING_set(text, value.data(), static_cast<int>(value.size()));
    }
    if (name == nullptr || text == nullptr) return false;
    GENERAL_NAME_set0_value(name.get(), type, text);
    return sk_GENERAL_NAME_push(names, name.release()) > 0;
}

bool is_address(const std::string& host) {
    std::unique_ptr<ASN1_OCTET_STRING, FreeBy<ASN1_OCTET_STRING_free>> address(
        a2i_IPADDRESS(host.c_str()));
    ERR_clear_error();
    return address != nullptr;
}

bool is_dns_name(const std::string& host) {
    auto is_allowed = [](char c) {
        return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') ||
               c == '-' || c == '.' || c == '_';
    };
    return !host.empty() && host.size() <= 253 && std::ranges::all_of(host, is_allowed);
}

Result<OwnedNames> names_of(NodeId node, const std::vector<std::string>& hosts) {
    OwnedNames names(GENERAL_NAMES_new());
    bool added = add_name(names.get(), GEN_URI, fmt::format("{}{}", kNodeUri, node));
    if (hosts.size() > kHostsMax)
        return fail(Code::invalid_argument, "{} names of one node: at most {}", hosts.size(),
                    kHostsMax);
    for (const std::string& host : hosts) {
        bool is_ip = is_address(host);
        if (!is_ip && !is_dns_name(host))
            return fail(Code::invalid_argument, "'{}' is neither an address nor a host's name",
                        host);
        added = added && add_name(names.get(), is_ip ? GEN_IPADD : GEN_DNS, host);
    }
    if (!added) return fail(Code::io_error, "no name was made: {}", take_openssl_error());
    return names;
}

NodeId node_of(const GENERAL_NAMES* names) {
    NodeId found;
    for (int i = 0; i < sk_GENERAL_NAME_num(names); ++i) {
        const GENERAL_NAME* name = sk_GENERAL_NAME_value(names, i);
        if (name->type != GEN_URI) continue;
        const ASN1_IA5STRING* uri = name->d.uniformResourceIdentifier;
        std::string_view text(reinterpret_cast<const char*>(ASN1_STRING_get0_data(uri)),
                              static_cast<size_t>(ASN1_STRING_length(uri)));
        if (!text.starts_with(kNodeUri)) continue;
        NodeId node(parse_hex_id(text.substr(kNodeUri.size())));
        // Two names, or one that is none: who is it?
        if (found || !node) return {};
        found = node;
    }
    return found;
}

Result<WallTime> time_of(const ASN1_TIME* time) {
    int days = 0;
    int seconds = 0;
    std::unique_ptr<ASN1_TIME, FreeBy<ASN1_TIME_free>> epoch(ASN1_TIME_set(nullptr, 0));
    if (ASN1_TIME_diff(&days, &seconds, epoch.get(), time) != 1)
        return fail(Code::invalid_argument, "a certificate with an impossible time");
    return WallTime(std::chrono::hours(24) * days + std::chrono::seconds(seconds));
}

}  // namespace

NodeId node_of(const X509* certificate) {
    OwnedNames names(static_cast<GENERAL_NAMES*>(
        X509_get_ext_d2i(certificate, NID_subject_alt_name, nullptr, nullptr)));
    return names == nullptr ? NodeId{} : node_of(names.get());
}

NodeId node_of(X509_REQ* request) {
    OwnedExtensions extensions(X509_REQ_get_extensions(request));
    if (extensions == nullptr) return {};
    OwnedNames names(static_cast<GENERAL_NAMES*>(
        X509V3_get_d2i(extensions.get(), NID_subject_alt_name, nullptr, nullptr)));
    return names == nullptr ? NodeId{} : node_of(names.get());
}

Result<KeyAndCertificate> make_authority(ClusterId cluster, WallTime now) {
    TRY_ASSIGN(OwnedKey key, make_key());
    OwnedCertificate made(X509_new());
    X509* certificate = made.get();
    X509_set_version(certificate, X509_VERSION_3);
    set_name(X509_get_subject_name(certificate), fmt::format("Peplos cluster {}", cluster));
    set_name(X509_get_issuer_name(certificate), fmt::format("Peplos cluster {}", cluster));
    set_validity(certificate, now, kAuthorityValidity);
    X509_set_pubkey(certificate, key.get());
    bool done =
        set_serial(certificate) &&
        add_extension(certificate, certificate, NID_basic_constraints,
                      "critical,CA:TRUE,pathlen:0") &&
        add_extension(certificate, certificate, NID_key_usage, "critical,keyCertSign,cRLSign") &&
        add_extension(certificate, certificate, NID_subject_key_identifier, "hash") &&
        X509_sign(certificate, key.get(), EVP_sha256()) != 0;
    if (!done) return fail(Code::io_error, "no authority was made: {}", take_openssl_error());
    return KeyAndCertificate{pem_of(key.get()), pem_of(certificate)};
}

Result<KeyAndRequest> make_key_and_request(NodeId node) {
    CHECK(node);
    TRY_ASSIGN(OwnedKey key, make_key());
    OwnedRequest made(X509_REQ_new());
    X509_REQ* request = made.get();
    set_name(X509_REQ_get_subject_name(request), fmt::format("node {}", node));
    X509_REQ_set_pubkey(request, key.get());
    TRY_ASSIGN(OwnedNames names, names_of(node, {}));
    OwnedExtensions extensions(sk_X509_EXTENSION_new_null());
    OwnedExtension extension(X509V3_EXT_i2d(NID_subject_alt_name, 0, names.get()));
    bool done = extension != nullptr &&
                sk_X509_EXTENSION_push(extensions.get(), extension.release()) > 0 &&
                X509_REQ_add_extensions(request, extensions.get()) == 1 &&
                X509_REQ_sign(request, key.get(), EVP_sha256()) != 0;
    if (!done) return fail(Code::io_error, "no request was made: {}", take_openssl_error());
    OwnedBio bio(BIO_new(BIO_s_mem()));
    CHECK(PEM_write_bio_X509_REQ(bio.get(), request) == 1);
    return KeyAndRequest{pem_of(key.get()), text_of_bio(bio.get())};
}

Result<std::string> sign(const KeyAndCertificate& authority, const std::string& request,
                         NodeId node, const std::vector<std::string>& hosts, WallTime now) {
    CHECK(node);
    TRY_ASSIGN(OwnedKey key, key_of_pem(authority.key));
    TRY_ASSIGN(OwnedCertificate issuer, certificate_of_pem(authority.certificate));
    if (X509_check_private_key(issuer.get(), key.get()) != 1) {
        ERR_clear_error();
        return fail(Code::invalid_argument, "the authority's key is not that of its certificate");
    }
    OwnedRequest asked(PEM_read_bio_X509_REQ(bio_of(request).get(), nullptr, nullptr, nullptr));
    EVP_PKEY* subject = asked == nullptr ? nullptr : X509_REQ_get0_pubkey(asked.get());
    // The signature proves that who asks has the key.
    if (subject == nullptr || X509_REQ_verify(asked.get(), subject) != 1)
        return fail(Code::invalid_argument, "not a signed request: {}", take_openssl_error());
    if (NodeId named = node_of(asked.get()); named != node) {
        return fail(Code::invalid_argument, "a request of node {} where node {} was expected",
                    named, node);
    }
    TRY_ASSIGN(OwnedNames names, names_of(node, hosts));
    OwnedCertificate made(X509_new());
    X509* certificate = made.get();
    X509_set_version(certificate, X509_VERSION_3);
    set_name(X509_get_subject_name(certificate), fmt::format("node {}", node));
    X509_set_issuer_name(certificate, X509_get_subject_name(issuer.get()));
    set_validity(certificate, now, kNodeValidity);
    X509_set_pubkey(certificate, subject);
    bool done =
        set_serial(certificate) &&
        add_extension(certificate, issuer.get(), NID_basic_constraints, "critical,CA:FALSE") &&
        add_extension(certificate, issuer.get(), NID_key_usage, "critical,digitalSignature") &&
        add_extension(certificate, issuer.get(), NID_ext_key_usage, "serverAuth,clientAuth") &&
        add_extension(certificate, issuer.get(), NID_authority_key_identifier, "keyid") &&
        X509_add1_ext_i2d(certificate, NID_subject_alt_name, names.get(), 0, X509V3_ADD_DEFAULT) ==
            1 &&
        X509_sign(certificate, key.get(), EVP_sha256()) != 0;
    if (!done) return fail(Code::io_error, "no certificate was made: {}", take_openssl_error());
    return pem_of(certificate);
}

Result<CertificateFacts> read_certificate(const std::string& certificate) {
    TRY_ASSIGN(OwnedCertificate read, certificate_of_pem(certificate));
    CertificateFacts facts;
    facts.node = node_of(read.get());
    TRY_ASSIGN(facts.begins, time_of(X509_get0_notBefore(read.get())));
    TRY_ASSIGN(facts.ends, time_of(X509_get0_notAfter(read.get())));
    OwnedNumber serial(ASN1_INTEGER_to_BN(X509_get0_serialNumber(read.get()), nullptr));
    char* hex = serial == nullptr ? nullptr : BN_bn2hex(serial.get());
    if (hex == nullptr) return fail(Code::invalid_argument, "a certificate without a serial");
    facts.serial = hex;
    OPENSSL_free(hex);
    return facts;
}

}  // namespace peplos::runtime
