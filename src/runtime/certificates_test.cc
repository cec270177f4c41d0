#include "runtime/certificates.h"

#include <gtest/gtest.h>

namespace peplos::runtime {
namespace {

constexpr WallTime kNow{std::chrono::seconds(1'767'225'600)};
constexpr NodeId kNode(0xabcdef0123456789);

class CertificatesTest : public testing::Test {
  protected:
    void SetUp() override {
        auto made = make_authority(ClusterId(7), kNow);
        ASSERT_TRUE(made) << made.error().text();
        authority_ = *made;
        auto asked = make_key_and_request(kNode);
        ASSERT_TRUE(asked) << asked.error().text();
        asked_ = *asked;
    }
    Code refused(const KeyAndCertificate& authority, const std::string& request, NodeId node,
                 const std::vector<std::string>& hosts = {}) {
        auto signed_one = sign(authority, request, node, hosts, kNow);
        EXPECT_FALSE(signed_one);
        return signed_one ? Code::conflict : signed_one.error().code();
    }
    KeyAndCertificate authority_;
    KeyAndRequest asked_;
};

TEST_F(CertificatesTest, ANodeIsSigned) {
    auto made =
        sign(authority_, asked_.request, kNode, {"10.0.0.1", "::1", "host-a.example"}, kNow);
    ASSERT_TRUE(made) << made.error().text();
    auto facts = read_certificate(*made);
    ASSERT_TRUE(facts);
    EXPECT_EQ(facts->node, kNode);
    EXPECT_EQ(facts->begins, kNow - kClockSkewMax);
    EXPECT_EQ(facts->ends, kNow + kNodeValidity);
    auto again = sign(authority_, asked_.request, kNode, {}, kNow);
    EXPECT_NE(read_certificate(*again)->serial, facts->serial);
}

TEST_F(CertificatesTest, TheAuthorityIsOfNoNodeAndLastsTenYears) {
    auto facts = read_certificate(authority_.certificate);
    ASSERT_TRUE(facts);
    EXPECT_FALSE(facts->node);
    EXPECT_EQ(facts->ends, kNow + kAuthorityValidity);
    EXPECT_GT(facts->ends - kNow, std::chrono::years(10) - std::chrono::days(2));
}

TEST_F(CertificatesTest, ARequestOfAnotherNodeIsRefused) {
    EXPECT_EQ(refused(authority_, asked_.request, NodeId(5)), Code::invalid_argument);
}

TEST_F(CertificatesTest, ARequestThatWasChangedIsRefused) {
    std::string changed = asked_.request;
    size_t middle = changed.size() / 2;
    changed[middle] = changed[middle] == 'A' ? 'B' : 'A';
    EXPECT_EQ(refused(authority_, changed, kNode), Code::invalid_argument);
    EXPECT_EQ(refused(authority_, "", kNode), Code::invalid_argument);
    EXPECT_EQ(refused(authority_, authority_.certificate, kNode), Code::invalid_argument);
}

TEST_F(CertificatesTest, AnAuthorityWithAnothersKeyIsRefused) {
    auto other = make_authority(ClusterId(7), kNow);
    KeyAndCertificate mixed{other->key, authority_.certificate};
    EXPECT_EQ(refused(mixed, asked_.request, kNode), Code::invalid_argument);
}

TEST_F(CertificatesTest, HostsAreAddressesOrNames) {
    EXPECT_EQ(refused(authority_, asked_.request, kNode, {"a b"}), Code::invalid_argument);
    EXPECT_EQ(refused(authority_, asked_.request, kNode, {"URI:peplos://node/1"}),
              Code::invalid_argument);
    EXPECT_EQ(refused(authority_, asked_.request, kNode, std::vector<std::string>(65, "a")),
              Code::invalid_argument);
}

TEST(Certificates, WhatIsNoneIsRefused) {
    EXPECT_FALSE(read_certificate(""));
    EXPECT_FALSE(read_certificate("-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----"));
}

}  // namespace
}  // namespace peplos::runtime
