#include "api/door.h"

#include <fstream>
#include <gtest/gtest.h>
#include <sys/stat.h>

#include "api/client.h"
#include "api/token.h"
#include "fabric/fake_node.h"
#include "http/test_world.h"

namespace peplos::api {
namespace {

using http::RawAnswer;
using http::RawClient;

class DoorTest : public ::testing::Test {
  protected:
    void SetUp() override {
        node_.running.set();
        Options options;
        options.socket_path = path_;
        options.tcp_port = 0;
        options.token_path = token_path_;
        options.call_deadline = std::chrono::milliseconds(100);
        options.stop_grace = std::chrono::milliseconds(50);
        door_ = std::make_unique<Door>(door_core_.executor(), node_, std::move(options));
        auto started = door_core_.run([this] { return door_->start(); });
        ASSERT_TRUE(started) << started.error().text();
    }
    void TearDown() override {
        door_core_.run_task([this] { return door_->stop(); });
        node_core_.run([this] { node_.running.set(); });
        while (door_core_.run([this] { return door_->in_flight_count(); }) != 0) {
        }
        door_core_.stop();
        node_core_.stop();
    }
    static std::string request(const std::string& method, const std::string& path,
                               const std::string& more = "", const std::string& body = "") {
        return fmt::format("{} {} HTTP/1.1\r\nHost: localhost:80\r\n{}Content-Length: {}\r\n\r\n{}",
                           method, path, more, body.size(), body);
    }
    RawAnswer over_tcp(const std::string& bytes) {
        RawClient client(door_->tcp_port());
        return client.request(bytes);
    }
    static std::string code_in(const RawAnswer& answer) {
        Json body = Json::parse(answer.body, nullptr, false);
        if (!body.is_object() || !body.contains("error")) return "no error: " + answer.body;
        EXPECT_FALSE(body["error"].value("message", "").empty());
        EXPECT_TRUE(body["error"].contains("next"));
        return body["error"].value("code", "");
    }

    http::TestDirectory directory_;
    std::string path_ = directory_.file("api.sock");
    std::string token_path_ = directory_.file("api.token");
    http::TestCore node_core_, door_core_;
    fabric::FakeNode node_{node_core_.executor()};
    Client client_{path_};
    std::unique_ptr<Door> door_;
};

TEST_F(DoorTest, TheLifeOfAVolume) {
    Json create = {{"name", "data"}, {"size", "1GiB"}, {"labels", {{"app", "db"}}}};
    auto made = client_.post("/v1/volumes", create);
    ASSERT_TRUE(made) << made.error().text();
    EXPECT_EQ((*made)["size_bytes"], kGiB);
    EXPECT_TRUE(client_.post("/v1/volumes", create));  // repeats
    create["size"] = "2GiB";
    EXPECT_EQ(client_.post("/v1/volumes", create).error().code(), Code::already_exists);
    EXPECT_EQ((*client_.get("/v1/volumes"))["volumes"].size(), 1u);
    EXPECT_EQ((*client_.get("/v1/volumes/data"))["labels"]["app"], "db");
    auto grown = client_.patch("/v1/volumes/data", {{"size", "3GiB"}});
    ASSERT_TRUE(grown) << grown.error().text();
    EXPECT_EQ((*grown)["message"], "grown online");
    EXPECT_EQ((*client_.post("/v1/volumes/data/trim"))["trimmed_bytes"], 4096);
    auto shown = client_.post("/v1/volumes/data/recover", Json::object());
    ASSERT_TRUE(shown) << shown.error().text();
    EXPECT_EQ((*shown)["is_done"], false);
    EXPECT_EQ((*shown)["losses"][0], "the newest writes");
    auto done = client_.post("/v1/volumes/data/recover", {{"accept_loss", true}});
    ASSERT_TRUE(done) << done.error().text();
    EXPECT_EQ((*done)["is_done"], true);
    EXPECT_EQ(client_.post("/v1/volumes/data/recover", {{"accept_loss", "yes"}}).error().code(),
              Code::invalid_argument);
    EXPECT_EQ(client_.post("/v1/volumes/data/detach", Json::object()).error().code(),
              Code::invalid_argument);
    EXPECT_TRUE(client_.post("/v1/volumes/data/detach", {{"force", true}}));
    EXPECT_TRUE(client_.remove("/v1/volumes/data"));
    auto gone = client_.get("/v1/volumes/data");
    EXPECT_EQ(gone.error().code(), Code::not_found);
    EXPECT_EQ(gone.error().message(), "no volume \"data\": see `peplos volume ls`");
}

TEST_F(DoorTest, TheNodeAsAWhole) {
    EXPECT_EQ((*client_.get("/healthz"))["light"], "green");
    EXPECT_EQ((*client_.get("/v1/status"))["name"], "node1");
    EXPECT_EQ((*client_.get("/v1/devices"))["devices"].size(), 1u);
    auto device = client_.post("/v1/devices", {{"path", "/var/d"}, {"size", "1GiB"}});
    ASSERT_TRUE(device) << device.error().text();
    EXPECT_EQ((*device)["bytes"], kGiB);
    EXPECT_TRUE(client_.post("/v1/scrub"));
    EXPECT_EQ((*client_.get("/v1/scrub"))["segments_done"], 3);
    EXPECT_TRUE((*client_.get("/v1/doctor"))["problems"].empty());
    node_core_.run([this] { node_.metric_list = {{"peplos_up", "Up.", false, {}, 1}}; });
    auto metrics = client_.get_text("/metrics");
    ASSERT_TRUE(metrics) << metrics.error().text();
    EXPECT_EQ(*metrics, "# HELP peplos_up Up.\n# TYPE peplos_up gauge\npeplos_up 1\n");
}

// Every answer has exactly the members that the served document promises.
TEST_F(DoorTest, AnswersAreWhatTheDocumentSays) {
    ASSERT_TRUE(client_.post("/v1/volumes", {{"name", "x"}}));
    auto document = client_.get("/openapi.json");
    ASSERT_TRUE(document) << document.error().text();
    EXPECT_EQ(*document, openapi_document());
    for (const Routes::Route& route : Routes::table()) {
        if (route.response_schema.empty() || route.method == "DELETE") continue;
        std::string path(route.path);
        if (size_t at = path.find("{name}"); at != std::string::npos) path.replace(at, 6, "x");
        Json body = Json::object();
        if (route.request_schema == "VolumeCreate") body = {{"name", "x"}};
        if (route.request_schema == "VolumeGrow") body = {{"size", "20GiB"}};
        if (route.request_schema == "DeviceAdd") body = {{"path", "/d"}};
        if (route.request_schema == "Recover") body = {{"accept_loss", true}};
        if (route.request_schema == "Force") body = {{"force", true}};
        RawClient raw(path_);
        RawAnswer answer =
            raw.request(request(std::string(route.method), path, "", http::print(body)));
        EXPECT_EQ(answer.status, static_cast<int>(route.status)) << path << answer.body;
        Json got = Json::parse(answer.body, nullptr, false);
        Json promised = (*document)["components"]["schemas"][std::string(route.response_schema)];
        std::set<std::string> have, want;
        for (const auto& [name, value] : got.items())
            have.insert(name);
        for (const auto& [name, value] : promised["properties"].items())
            want.insert(name);
        EXPECT_EQ(have, want) << route.method << " " << path;
    }
}

TEST_F(DoorTest, TcpShowsLittleAndChangesNothingWithoutTheToken) {
    for (const Routes::Route& route : Routes::table()) {
        std::string path(route.path);
        if (size_t at = path.find("{name}"); at != std::string::npos) path.replace(at, 6, "x");
        RawAnswer answer = over_tcp(request(std::string(route.method), path));
        bool open = route.access == Access::open;
        EXPECT_EQ(answer.status, open ? 200 : 401) << route.method << " " << path;
        EXPECT_TRUE(!open || route.method == "GET");
        EXPECT_EQ(answer.header.find("Access-Control"), std::string::npos);
    }
    auto calls = node_core_.run([this] { return node_.calls; });
    EXPECT_EQ(calls, (std::vector<std::string>{"status", "metrics", "status"}));

    struct stat state{};
    ASSERT_EQ(::stat(token_path_.c_str(), &state), 0);
    EXPECT_EQ(state.st_mode & 07777, 0600u);
    std::string token;
    std::ifstream(token_path_) >> token;
    EXPECT_EQ(token.size(), 64u);
    std::string good = "Authorization: Bearer " + token + "\r\n";
    EXPECT_EQ(over_tcp(request("POST", "/v1/volumes", good, R"({"name":"x"})")).status, 201);
    for (std::string bad : {token.substr(1), token + "0", std::string(64, '0'), std::string()}) {
        std::string header = "Authorization: Bearer " + bad + "\r\n";
        EXPECT_EQ(over_tcp(request("DELETE", "/v1/volumes/x", header)).status, 401);
    }
    EXPECT_EQ(over_tcp(request("DELETE", "/v1/volumes/x", good)).status, 200);
}

TEST_F(DoorTest, TcpRefusesForeignHosts) {
    auto status = [this](const std::string& host) {
        return over_tcp("GET /healthz HTTP/1.1\r\n" + host + "\r\n").status;
    };
    EXPECT_EQ(status("Host: 127.0.0.1:8080\r\n"), 200);
    EXPECT_EQ(status("Host: [::1]:8080\r\n"), 200);
    EXPECT_EQ(status("Host: [::1]\r\n"), 200);
    EXPECT_EQ(status("Host: evil.example:8080\r\n"), 403);
    EXPECT_EQ(status("Host: localhost.evil.example\r\n"), 403);
    EXPECT_EQ(status("Host: 127.0.0.1.evil.example\r\n"), 403);
    EXPECT_EQ(status("Host: \r\n"), 403);
    EXPECT_EQ(status(""), 403);
}

TEST_F(DoorTest, BadInputGetsCleanErrors) {
    struct Case {
        std::string bytes;
        int status;
        std::string code;
    };
    std::string deep = R"({"name":)" + std::string(1000, '[') + std::string(1000, ']') + "}";
    for (const Case& one : {
             Case{request("POST", "/v1/volumes", "", R"({"name":"a)"), 400, "invalid_argument"},
             Case{request("POST", "/v1/volumes", "", deep), 400, "invalid_argument"},
             Case{request("POST", "/v1/volumes"), 400, "invalid_argument"},
             Case{request("POST", "/v1/volumes", "", "[]"), 400, "invalid_argument"},
             Case{request("POST", "/v1/volumes", "", R"({"name":"a\u0000b"})"), 400,
                  "invalid_argument"},
             Case{request("POST", "/v1/volumes", "", std::string(10 << 20, ' ')), 413,
                  "invalid_argument"},
             Case{request("GET", "/v1/volumes/a%00b"), 400, "invalid_argument"},
             Case{request("GET", "/v1/volumes/%2e%2e"), 400, "invalid_argument"},
             Case{request("GET", "/v1/volumes/..%2f..%2fetc"), 400, "invalid_argument"},
             Case{request("GET", "/v1/nothing"), 404, "not_found"},
             Case{request("GET", "/v1/volumes/nobody"), 404, "not_found"},
             Case{request("OPTIONS", "/v1/volumes"), 405, "invalid_argument"},
             Case{request("PUT", "/v1/volumes/x"), 405, "invalid_argument"},
             Case{"GET\r\n\r\n", 400, "invalid_argument"},
         }) {
        RawClient client(path_);
        RawAnswer answer = client.request(one.bytes);
        EXPECT_EQ(answer.status, one.status) << one.bytes.substr(0, 80);
        EXPECT_EQ(code_in(answer), one.code) << one.bytes.substr(0, 80);
    }
    EXPECT_EQ(node_core_.run([this] { return node_.created_count; }), 0);
}

TEST_F(DoorTest, AHangingNodeIsAnsweredForInTime) {
    node_core_.run([this] { node_.running.reset(); });
    EXPECT_EQ(client_.get("/v1/status").error().code(), Code::unavailable);
    EXPECT_EQ(client_.get("/healthz").error().code(), Code::unavailable);
    EXPECT_EQ(client_.get_text("/metrics").error().code(), Code::unavailable);
    auto created = client_.post("/v1/volumes", {{"name", "x"}});
    EXPECT_EQ(created.error().code(), Code::outcome_unknown);
    EXPECT_NE(created.error().message().find("peplos doctor"), std::string::npos);
    EXPECT_TRUE(client_.get("/openapi.json"));
    node_core_.run([this] { node_.running.set(); });
}

TEST_F(DoorTest, NodeErrorsKeepTheirCode) {
    for (Code code : {Code::no_space, Code::corrupt, Code::fenced, Code::stopping}) {
        node_core_.run([&] { node_.next_error = Error(code, "planted"); });
        auto got = client_.get("/v1/status");
        ASSERT_FALSE(got);
        EXPECT_EQ(got.error().code(), code);
    }
}

TEST(Client, SaysHowToStartTheDaemon) {
    http::TestDirectory directory;
    auto missing = Client(directory.file("none.sock")).get("/v1/status");
    EXPECT_EQ(missing.error().code(), Code::unavailable);
    EXPECT_NE(missing.error().message().find("systemctl start peplosd"), std::string::npos);
    EXPECT_FALSE(Client(directory.file(std::string(200, 'x'))).get("/v1/status"));
    // Listens, never answers.
    auto silent = http::listen_on_unix(directory.file("silent.sock"));
    ASSERT_TRUE(silent) << silent.error().text();
    Client client(directory.file("silent.sock"), std::chrono::milliseconds(20));
    EXPECT_EQ(client.get("/v1/status").error().code(), Code::outcome_unknown);
    EXPECT_EQ(Client::path_part("a/b c"), "a%2Fb%20c");
}

TEST(Token, IsMadeOnceAndKept) {
    http::TestDirectory directory;
    std::string path = directory.file("token");
    auto first = load_or_create_token(path);
    ASSERT_TRUE(first) << first.error().text();
    EXPECT_EQ(load_or_create_token(path), *first);
    ::chmod(path.c_str(), 0644);
    EXPECT_EQ(load_or_create_token(path).error().code(), Code::permission_denied);
    ::chmod(path.c_str(), 0600);
    std::ofstream(path, std::ios::trunc) << "short";
    EXPECT_EQ(load_or_create_token(path).error().code(), Code::corrupt);
    EXPECT_TRUE(is_same_secret("abc", "abc"));
    EXPECT_FALSE(is_same_secret("abc", "abd"));
    EXPECT_FALSE(is_same_secret("", "abc"));
}

}  // namespace
}  // namespace peplos::api
