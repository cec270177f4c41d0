#include "api/messages.h"

#include <cmath>
#include <gtest/gtest.h>

#include "api/routes.h"

namespace peplos::api {
namespace {

TEST(VolumeSpecOf, ReadsEveryMember) {
    auto spec = volume_spec_of({{"name", "v"},
                                {"size", "20GiB"},
                                {"fs", "xfs"},
                                {"mkfs_options", "-m crc=1"},
                                {"uid", 1},
                                {"gid", 2},
                                {"mode", "0750"},
                                {"labels", {{"a", "b"}}},
                                {"copies", 1},
                                {"sector_size", 4096}});
    ASSERT_TRUE(spec) << spec.error().text();
    EXPECT_EQ(spec->size_bytes, 20 * kGiB);
    EXPECT_EQ(spec->mode, 0750);
    EXPECT_EQ(spec->labels.at("a"), "b");
    EXPECT_EQ(volume_spec_of({{"name", "v"}, {"size", kGiB}})->size_bytes, kGiB);
}

TEST(VolumeSpecOf, RefusesNonsense) {
    for (const char* text :
         {R"({})", R"({"name":1})", R"({"name":"a/b"})", R"({"name":"v","size":0})",
          R"({"name":"v","size":-1})", R"({"name":"v","size":1e30})",
          R"({"name":"v","size":1048576.5})", R"({"name":"v","size":true})",
          R"({"name":"v","size":99999999999999999999})", R"({"name":"v","mode":750})",
          R"({"name":"v","mode":"rwx"})", R"({"name":"v","uid":-1})",
          R"({"name":"v","uid":18446744073709551615})", R"({"name":"v","labels":[]})",
          R"({"name":"v","labels":{"a":1}})", R"({"name":"v","copies":4})",
          R"({"name":"v","sector_size":1})", R"({"name":"v","fs":"zfs"})"}) {
        auto spec = volume_spec_of(Json::parse(text));
        ASSERT_FALSE(spec) << text;
        EXPECT_EQ(spec.error().code(), Code::invalid_argument);
    }
    auto unknown = volume_spec_of({{"name", "v"}, {"sizeMb", 1}});
    EXPECT_NE(unknown.error().message().find("\"sizeMb\""), std::string::npos);
    EXPECT_NE(unknown.error().message().find("sector_size"), std::string::npos);
}

TEST(DeviceRequestOf, WantsAnAbsolutePath) {
    auto request = device_request_of({{"path", "/var/d"}, {"size", "1GiB"}, {"class", "ssd"}});
    ASSERT_TRUE(request) << request.error().text();
    EXPECT_EQ(request->create_bytes, kGiB);
    EXPECT_FALSE(device_request_of({{"path", "d"}}));
    EXPECT_FALSE(device_request_of({{"path", std::string("/a\0b", 4)}}));
    EXPECT_FALSE(device_request_of({{"path", "/d"}, {"class", "tape"}}));
}

TEST(Errors, KeepTheirCodeThroughHttp) {
    for (int value = 0; value <= static_cast<int>(Code::stopping); ++value) {
        Code code = static_cast<Code>(value);
        Error error(code, "what, why, what next");
        EXPECT_GE(entry_of(code).status, 400u);
        EXPECT_EQ(error_of(error_json(error), entry_of(code).status).code(), code);
    }
    EXPECT_NE(error_of(Json("x"), 502).message().find("502"), std::string::npos);
    EXPECT_NE(error_of({{"error", {{"code", 7}}}}, 502).code(), Code::not_found);
}

TEST(PrometheusText, GroupsAndEscapes) {
    std::string text = prometheus_text({
        {"peplos_b", "Second.", false, {{"volume", "a\"b\\c\nd"}}, 1.5},
        {"peplos_a_total", "First\nline.", true, {}, 12345678901234.0},
        {"peplos_b", "Second.", false, {{"volume", "x"}, {"0bad", "y"}}, INFINITY},
        {"bad name", "Left out.", false, {}, 1},
    });
    EXPECT_EQ(text,
              "# HELP peplos_a_total First\\nline.\n# TYPE peplos_a_total counter\n"
              "peplos_a_total 12345678901234\n"
              "# HELP peplos_b Second.\n# TYPE peplos_b gauge\n"
              "peplos_b{volume=\"a\\\"b\\\\c\\nd\"} 1.5\n"
              "peplos_b{volume=\"x\"} +Inf\n");
}

TEST(Doctor, ListsWhatIsNotGreen) {
    fabric::NodeStatus status;
    status.name = "node1";
    fabric::DeviceInfo device;
    device.path = "/dev/sdb";
    device.health = {fabric::Light::red, "EIO on a write", "replace it"};
    status.devices.push_back(device);
    fabric::Node::ScrubReport report;
    report.problems.push_back("segment 7 is corrupt");
    Json doctor = doctor_json(status, {}, report);
    ASSERT_EQ(doctor["problems"].size(), 2u);
    EXPECT_EQ(doctor["problems"][0]["about"], "device /dev/sdb");
    EXPECT_EQ(doctor["problems"][0]["next"], "replace it");
}

TEST(Routes, KeepAnEncodedSlashInsideAName) {
    EXPECT_EQ(Routes::match("GET", "/v1/volumes/a%2Fb").name, "a%2Fb");
    EXPECT_EQ(Routes::match("GET", "/v1/volumes/a/b").route, nullptr);
    EXPECT_EQ(Routes::match("GET", "/v1/volumes/").route, nullptr);
    EXPECT_EQ(Routes::match("GET", "//v1/volumes").route, nullptr);
    EXPECT_EQ(Routes::match("PUT", "/v1/volumes").allowed, "GET, POST");
    EXPECT_EQ(Routes::match("GET", "/").route, nullptr);
    EXPECT_EQ(Routes::match("GET", "").route, nullptr);
}

// The document names every route and no other, and every schema it refers to exists.
TEST(OpenApi, MatchesTheRoutes) {
    Json document = openapi_document();
    size_t operations = 0;
    for (const auto& [path, methods] : document["paths"].items()) {
        for (const auto& [method, operation] : methods.items()) {
            ++operations;
            std::string upper = method;
            for (char& c : upper)
                c = static_cast<char>(c & ~0x20);
            std::string raw = path;
            if (size_t at = raw.find("{name}"); at != std::string::npos) raw.replace(at, 6, "x");
            Routes::Match match = Routes::match(upper, raw);
            ASSERT_NE(match.route, nullptr) << upper << " " << path;
            EXPECT_EQ(match.route->path, path);
            EXPECT_TRUE(operation["responses"].contains(fmt::format("{}", match.route->status)));
        }
    }
    EXPECT_EQ(operations, Routes::table().size());
    std::string text = document.dump();
    constexpr std::string_view kPrefix = "#/components/schemas/";
    for (size_t at = text.find(kPrefix); at != std::string::npos; at = text.find(kPrefix, at + 1)) {
        size_t begin = at + kPrefix.size();
        std::string name = text.substr(begin, text.find('"', begin) - begin);
        EXPECT_TRUE(document["components"]["schemas"].contains(name)) << name;
    }
}

}  // namespace
}  // namespace peplos::api
