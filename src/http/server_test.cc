#include "http/server.h"

#include <fstream>
#include <gtest/gtest.h>
#include <sys/stat.h>

#include "http/calls.h"
#include "http/json.h"
#include "http/test_world.h"

namespace peplos::http {
namespace {

using runtime::Task;

// Answers with what it understood; "/hang" waits, "/throw" throws.
struct Echo {
    runtime::Event go;
    int hanging_count = 0;
    Task<Response> handle(Request request) {
        if (request.path == "/throw") throw std::runtime_error("planted");
        if (request.path == "/hang") {
            ++hanging_count;
            co_await go.wait();
        }
        co_return Response{
            200,
            "text/plain",
            fmt::format("{} {} {} {} {}", request.method, request.path, request.query, request.host,
                        request.body),
            {{"X-Peer", fmt::format("{}", request.peer.has_value() ? request.peer->pid : -1)}}};
    }
};

Response describe(unsigned status, std::string message) {
    return {status, "text/plain", std::move(message), {}};
}

class ServerTest : public ::testing::Test {
  protected:
    void start(Server::Options options) {
        options.name = "test";
        options.describe = describe;
        server_ = std::make_unique<Server>(
            core_.executor(), std::move(options),
            [this](Request request) { return echo_.handle(std::move(request)); });
        core_.run([this] {
            auto fd = listen_on_unix(path_);
            ASSERT_TRUE(fd) << fd.error().text();
            server_->serve(std::move(*fd), Transport::unix_socket);
            auto tcp = listen_on_loopback(0);
            ASSERT_TRUE(tcp) << tcp.error().text();
            port_ = port_of(*tcp);
            server_->serve(std::move(*tcp), Transport::tcp);
        });
    }
    void SetUp() override { start({}); }
    void restart(Server::Options options) {
        stop();
        start(std::move(options));
    }
    void stop() {
        core_.run([this] { echo_.go.set(); });
        core_.run_task([this] { return server_->stop(); });
        core_.run([this] { echo_.go.reset(); });
    }
    void TearDown() override {
        stop();
        core_.stop();
    }
    void wait_until_hanging() {
        while (core_.run([this] { return echo_.hanging_count; }) == 0) {
        }
    }
    static std::string get(const std::string& path) {
        return "GET " + path + " HTTP/1.1\r\nHost: h\r\n\r\n";
    }

    TestDirectory directory_;
    std::string path_ = directory_.file("s/http.sock");
    uint16_t port_ = 0;
    Echo echo_;
    TestCore core_;
    std::unique_ptr<Server> server_;
};

TEST_F(ServerTest, KeepsConnectionsAliveAndReadsPipelinedRequests) {
    RawClient client(path_);
    RawAnswer answer = client.request(get("/a%20b?x=1"));
    EXPECT_EQ(answer.status, 200);
    EXPECT_EQ(answer.body, "GET /a b x=1 h ");
    EXPECT_NE(answer.header.find(fmt::format("X-Peer: {}", ::getpid())), std::string::npos);
    client.send(get("/1") + get("/2"));
    EXPECT_EQ(client.receive().body, "GET /1  h ");
    EXPECT_EQ(client.receive().body, "GET /2  h ");
    client.send(
        "POST /p HTTP/1.1\r\nHost:\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n");
    EXPECT_EQ(client.receive().body, "POST /p   abc");
    client.send("GET /last HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n");
    EXPECT_EQ(client.receive().status, 200);
    EXPECT_TRUE(client.at_end());
}

TEST_F(ServerTest, ServesLoopbackTcp) {
    RawClient client(port_);
    EXPECT_EQ(client.request(get("/tcp")).body, "GET /tcp  h ");
}

TEST_F(ServerTest, AnswersExpectContinue) {
    RawClient client(path_);
    client.send("POST /p HTTP/1.1\r\nHost:\r\nExpect: 100-continue\r\nContent-Length: 2\r\n\r\n");
    EXPECT_EQ(client.receive().status, 100);
    client.send("ab");
    EXPECT_EQ(client.receive().body, "POST /p   ab");
}

TEST_F(ServerTest, RefusesWhatIsTooLargeOrNotHttp) {
    struct Case {
        std::string bytes;
        int status;
    };
    std::string large(10 << 20, 'x');
    std::string at_limit(limits::kHttpBodyBytesMax, 'x');
    for (const Case& one : {
             Case{fmt::format("POST / HTTP/1.1\r\nContent-Length: {}\r\n\r\n{}", at_limit.size(),
                              at_limit),
                  200},
             Case{fmt::format("POST / HTTP/1.1\r\nContent-Length: {}\r\n\r\n{}", large.size(),
                              large),
                  413},
             Case{fmt::format("POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n{:x}\r\n{}",
                              large.size(), large),
                  413},
             Case{"POST / HTTP/1.1\r\nContent-Length: 99999999999999999999999\r\n\r\n", 400},
             Case{"POST / HTTP/1.1\r\nContent-Length: -1\r\n\r\n", 400},
             Case{"GET / HTTP/1.1\r\nX: " + std::string(20'000, 'y') + "\r\n\r\n", 431},
             Case{"GET /" + std::string(20'000, 'y') + " HTTP/1.1\r\n\r\n", 431},
             Case{"hello\r\n\r\n", 400},
             Case{"GET / HTTP/9.9\r\n\r\n", 400},
         }) {
        RawClient client(path_);
        client.send(one.bytes);
        EXPECT_EQ(client.receive().status, one.status) << one.bytes.substr(0, 60);
    }
    // A request cut short.
    RawClient client(path_);
    client.send("POST / HTTP/1.1\r\nContent-Length: 10\r\n\r\nabc");
    client.finish_sending();
    EXPECT_EQ(client.receive().status, 400);
}

TEST_F(ServerTest, SurvivesAHandlerThatThrows) {
    RawClient client(path_);
    EXPECT_EQ(client.request(get("/throw")).status, 500);
    EXPECT_EQ(client.request(get("/a")).status, 200);
}

// A client may end between the open and the read of its /proc/PID/stat, which then fails as that of
// a folder does.
TEST(PeerProcess, WhatCannotBeReadIsGone) {
    EXPECT_NE(read_started_ticks("/proc/self/stat"), 0u);
    EXPECT_EQ(read_started_ticks("/proc"), 0u);
    EXPECT_EQ(read_started_ticks("/proc/0/stat"), 0u);
    EXPECT_EQ(read_started_ticks("/dev/null"), 0u);
}

TEST_F(ServerTest, SlowClientsAreCutOff) {
    restart({.request_timeout = std::chrono::milliseconds(30)});
    RawClient slow(path_);
    slow.send("GET / HT");
    EXPECT_TRUE(slow.at_end());
    EXPECT_EQ(RawClient(path_).request(get("/a")).status, 200);
}

TEST_F(ServerTest, IdleConnectionsEndWhereThatIsAsked) {
    restart({.idle_timeout = std::chrono::milliseconds(30)});
    RawClient client(path_);
    EXPECT_EQ(client.request(get("/a")).status, 200);
    EXPECT_TRUE(client.at_end());
}

TEST_F(ServerTest, AtTheLimitTheLongestIdleConnectionMakesRoom) {
    restart({.connection_count_max = 2});
    RawClient first(path_), second(path_);
    EXPECT_EQ(first.request(get("/1")).status, 200);
    EXPECT_EQ(second.request(get("/2")).status, 200);
    RawClient third(path_);
    EXPECT_EQ(third.request(get("/3")).status, 200);
    EXPECT_TRUE(first.at_end());
    EXPECT_EQ(second.request(get("/2")).status, 200);
}

TEST_F(ServerTest, AtTheLimitBusyConnectionsKeepTheirPlace) {
    restart({.connection_count_max = 1});
    RawClient busy(path_);
    busy.send(get("/hang"));
    wait_until_hanging();
    RawClient other(path_);
    RawAnswer answer = other.receive();
    EXPECT_EQ(answer.status, 503);
    EXPECT_NE(answer.body.find("connections are in use"), std::string::npos);
    core_.run([this] { echo_.go.set(); });
    EXPECT_EQ(busy.receive().status, 200);
}

TEST_F(ServerTest, StopAnswersWhatIsUnderWay) {
    RawClient busy(path_), idle(path_);
    EXPECT_EQ(idle.request(get("/a")).status, 200);
    EXPECT_EQ(busy.request(get("/a")).status, 200);
    busy.send(get("/hang"));
    wait_until_hanging();
    core_.run([this] { server_->refuse_new(); });
    EXPECT_TRUE(idle.at_end());
    core_.run([this] { echo_.go.set(); });
    RawAnswer answer = busy.receive();
    EXPECT_EQ(answer.status, 200);
    EXPECT_NE(answer.header.find("Connection: close"), std::string::npos);
    EXPECT_TRUE(busy.at_end());
}

TEST(ListenOnUnix, TakesOverAStaleSocketOnly) {
    TestDirectory directory;
    std::string path = directory.file("a.sock");
    {
        auto first = listen_on_unix(path);
        ASSERT_TRUE(first) << first.error().text();
        struct stat state{};
        ASSERT_EQ(::stat(path.c_str(), &state), 0);
        EXPECT_EQ(state.st_mode & 07777, 0600u);
        auto second = listen_on_unix(path);
        ASSERT_FALSE(second);
        EXPECT_EQ(second.error().code(), Code::busy);
    }
    auto third = listen_on_unix(path);  // nobody serves it any more
    ASSERT_TRUE(third) << third.error().text();
    EXPECT_TRUE(RawClient(path).connected());
    remove_socket_file(path);
    EXPECT_FALSE(std::filesystem::exists(path));
}

TEST(ListenOnUnix, RefusesUnsafePlaces) {
    TestDirectory directory;
    std::ofstream(directory.file("file")) << "precious";
    auto file = listen_on_unix(directory.file("file"));
    ASSERT_FALSE(file);
    EXPECT_EQ(file.error().code(), Code::invalid_argument);
    EXPECT_EQ(std::filesystem::file_size(directory.file("file")), 8u);

    std::filesystem::create_directory(directory.file("open"));
    ::chmod(directory.file("open").c_str(), 0777);
    auto open = listen_on_unix(directory.file("open/a.sock"));
    ASSERT_FALSE(open);
    EXPECT_EQ(open.error().code(), Code::permission_denied);

    EXPECT_EQ(listen_on_unix(directory.file(std::string(120, 'x'))).error().code(),
              Code::invalid_argument);
}

TEST(ActivatedSockets, AreOnlyOurs) {
    ::setenv("LISTEN_PID", "1", 1);
    ::setenv("LISTEN_FDS", "1", 1);
    auto others = take_activated_sockets();
    ASSERT_TRUE(others);
    EXPECT_TRUE(others->empty());
    ::setenv("LISTEN_PID", fmt::format("{}", ::getpid()).c_str(), 1);
    ::setenv("LISTEN_FDS", "many", 1);
    EXPECT_FALSE(take_activated_sockets());
    EXPECT_EQ(::getenv("LISTEN_FDS"), nullptr);
}

TEST(ParseObject, BoundsWhatItReads) {
    EXPECT_TRUE(parse_object(R"({"a":"]]]{{{\"["})"));
    std::string nested = "{\"a\":" + std::string(31, '[') + std::string(31, ']') + "}";
    EXPECT_TRUE(parse_object(nested));
    std::string deep = "{\"a\":" + std::string(32, '[') + std::string(32, ']') + "}";
    EXPECT_NE(parse_object(deep).error().message().find("nested"), std::string::npos);
    EXPECT_NE(parse_object(R"({"a":)").error().message().find("truncated"), std::string::npos);
    for (const char* text :
         {"", "[]", "null", "{", "{\"a\":1}x", "{'a':1}", "\xff", "{\"\xff\":1}"}) {
        auto parsed = parse_object(text);
        ASSERT_FALSE(parsed) << text;
        EXPECT_EQ(parsed.error().code(), Code::invalid_argument);
    }
    EXPECT_EQ(quoted("a\"\n\xff"), "\"a\\x22\\x0a\\xff\"");
    EXPECT_EQ(print(Json("\xff")), "\"\xef\xbf\xbd\"");
}

Task<Result<int>> answer(int value) {
    co_return value;
}

TEST(Calls, AnswersStoppingWhenGivenUp) {
    TestCore home;
    boost::asio::io_context never_runs;
    Calls calls(home.executor(), never_runs.get_executor());
    std::optional<Result<int>> result;
    auto ask = [&]() -> Task<void> {
        auto make = [] { return answer(1); };
        result = co_await calls.ask("a call", Effect::changes, std::chrono::hours(1), make);
    };
    std::thread stopper([&] {
        while (home.run([&] { return calls.in_flight_count(); }) == 0) {
        }
        home.run([&] { calls.give_up(); });
    });
    home.run_task(ask);
    stopper.join();
    ASSERT_TRUE(result.has_value());
    EXPECT_EQ(result->error().code(), Code::stopping);
}

TEST(Calls, TellsReadsFromChangesWhenOverdue) {
    TestCore home;
    boost::asio::io_context never_runs;
    Calls calls(home.executor(), never_runs.get_executor());
    for (Effect effect : {Effect::reads, Effect::changes}) {
        auto ask = [&]() -> Task<void> {
            auto make = [] { return answer(1); };
            auto got = co_await calls.ask("a call", effect, std::chrono::milliseconds(1), make);
            EXPECT_EQ(got.error().code(),
                      effect == Effect::reads ? Code::unavailable : Code::outcome_unknown);
        };
        home.run_task(ask);
    }
}

}  // namespace
}  // namespace peplos::http
