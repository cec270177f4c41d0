#include "runtime/tls_net.h"

#include <gtest/gtest.h>

#include "runtime/certificates.h"
#include "runtime/system.h"
#include "sim/world.h"

namespace peplos::runtime {
namespace {

using std::chrono::milliseconds;
using std::chrono::seconds;
using ConnectionPtr = std::unique_ptr<Connection>;

// TLS looks at the system's clock.
WallTime wall_now() {
    return SystemClock().wall_now();
}

KeyAndCertificate authority_of(uint64_t cluster) {
    return make_authority(ClusterId(cluster), wall_now()).value();
}

TlsCredentials credentials_of(const KeyAndCertificate& authority, uint64_t node,
                              WallTime now = wall_now()) {
    KeyAndRequest asked = make_key_and_request(NodeId(node)).value();
    std::string certificate = sign(authority, asked.request, NodeId(node), {}, now).value();
    return {asked.key, certificate, authority.certificate};
}

Task<void> accept_one(Listener& listener, std::shared_ptr<ConnectionPtr> to) {
    auto accepted = co_await listener.accept();
    if (accepted) *to = std::move(*accepted);
}

Task<Result<std::string>> read_text(Connection& connection, size_t bytes) {
    Buffer buffer = Buffer::allocate(bytes);
    CO_TRY(co_await connection.read(buffer));
    co_return std::string(reinterpret_cast<const char*>(buffer.data()), bytes);
}

std::vector<Buffer> parts_of(std::string_view text) {
    return {Buffer::copy_of(bytes_of_text(text))};
}

class TlsNetTest : public testing::Test {
  protected:
    // A listener of `server` and what it accepts.
    void listen(const TlsCredentials& credentials, TlsLimits limits = {}) {
        server_net_ =
            TlsNet::make(server_.env().net, server_.env().clock, credentials, limits).value();
        listener_ = world_.run(server_, server_net_->listen("server:1")).value();
        accept();
    }
    void accept() {
        accepted_ = std::make_shared<ConnectionPtr>();
        spawn(server_.executor(), accept_one(*listener_, accepted_));
    }
    Result<ConnectionPtr> connect(const TlsCredentials& credentials) {
        client_net_ = TlsNet::make(world_.env().net, world_.env().clock, credentials).value();
        return world_.run(client_net_->connect("server:1", seconds(1)));
    }
    // Both ends have shaken hands.
    bool is_refused(const TlsCredentials& credentials) {
        auto connection = connect(credentials);
        world_.run_for(milliseconds(50));
        EXPECT_EQ(*accepted_, nullptr);
        if (!connection) return connection.error().code() == Code::permission_denied;
        auto text = world_.run(read_text(**connection, 1));
        return !text && text.error().code() == Code::unavailable;
    }

    sim::World world_{1};
    sim::Process& server_ = world_.start("server");
    KeyAndCertificate authority_ = authority_of(1);
    std::unique_ptr<TlsNet> server_net_;
    std::unique_ptr<TlsNet> client_net_;
    std::unique_ptr<Listener> listener_;
    std::shared_ptr<ConnectionPtr> accepted_;
};

TEST_F(TlsNetTest, CarriesBytesAndProvesBothEnds) {
    listen(credentials_of(authority_, 2));
    auto connection = connect(credentials_of(authority_, 1));
    ASSERT_TRUE(connection) << connection.error().text();
    world_.run_for(milliseconds(50));
    ASSERT_NE(*accepted_, nullptr);
    EXPECT_EQ((*connection)->identity(), "0000000000000002");
    EXPECT_EQ((*accepted_)->identity(), "0000000000000001");

    ASSERT_TRUE(world_.run((*connection)->write(parts_of("hello"))));
    EXPECT_EQ(world_.run(server_, read_text(**accepted_, 5)).value(), "hello");
    // Parts that are smaller and larger than a record, and more than is encrypted at once.
    std::string large(900'000, 'x');
    for (size_t i = 0; i < large.size(); i += 1000)
        large[i] = static_cast<char>('a' + i / 1000 % 26);
    std::vector<Buffer> parts;
    for (size_t at = 0, step = 1; at < large.size(); at += step, step = step * 3 % 50'000 + 1) {
        size_t count = std::min(step, large.size() - at);
        parts.push_back(Buffer::copy_of(bytes_of_text(large).subspan(at, count)));
    }
    ASSERT_TRUE(world_.run(server_, (*accepted_)->write(parts)));
    EXPECT_EQ(world_.run(read_text(**connection, large.size())).value(), large);

    (*accepted_)->close();
    auto over = world_.run(read_text(**connection, 1));
    ASSERT_FALSE(over);
    EXPECT_EQ(over.error().code(), Code::unavailable);
}

TEST_F(TlsNetTest, AnotherClustersNodeIsRefusedAtBothEnds) {
    listen(credentials_of(authority_, 2));
    EXPECT_TRUE(is_refused(credentials_of(authority_of(9), 1)));
    // Trusts the server, and is not trusted.
    TlsCredentials stranger = credentials_of(authority_of(9), 1);
    stranger.authorities = authority_.certificate;
    EXPECT_TRUE(is_refused(stranger));
}

TEST_F(TlsNetTest, AnExpiredCertificateIsRefused) {
    listen(credentials_of(authority_, 2));
    WallTime long_ago = wall_now() - kNodeValidity - std::chrono::hours(24);
    EXPECT_TRUE(is_refused(credentials_of(authority_, 1, long_ago)));
}

TEST_F(TlsNetTest, TheAuthorityIsNoNode) {
    TlsCredentials credentials{authority_.key, authority_.certificate, authority_.certificate};
    auto made = TlsNet::make(world_.env().net, world_.env().clock, credentials);
    ASSERT_FALSE(made);
    EXPECT_EQ(made.error().code(), Code::invalid_argument);
    TlsCredentials mixed = credentials_of(authority_, 1);
    mixed.key = credentials_of(authority_, 1).key;
    EXPECT_FALSE(TlsNet::make(world_.env().net, world_.env().clock, mixed));
    TlsCredentials nobody = credentials_of(authority_, 1);
    nobody.authorities.clear();
    EXPECT_FALSE(TlsNet::make(world_.env().net, world_.env().clock, nobody));
    nobody.authorities = nobody.certificate;
    EXPECT_FALSE(TlsNet::make(world_.env().net, world_.env().clock, nobody));
}

TEST_F(TlsNetTest, AnAuthorityIsReplacedWithoutARestart) {
    KeyAndCertificate next = authority_of(1);
    listen(credentials_of(authority_, 2));
    TlsCredentials newer = credentials_of(next, 1);
    newer.authorities = authority_.certificate + next.certificate;
    EXPECT_TRUE(is_refused(newer));
    TlsCredentials both = credentials_of(authority_, 2);
    both.authorities += next.certificate;
    ASSERT_TRUE(server_net_->reload(both));
    auto connection = connect(newer);
    ASSERT_TRUE(connection) << connection.error().text();
    world_.run_for(milliseconds(50));
    ASSERT_NE(*accepted_, nullptr);
    // A reload that fails changes nothing.
    EXPECT_FALSE(server_net_->reload({}));
    accept();
    ASSERT_TRUE(connect(newer));
    world_.run_for(milliseconds(50));
    EXPECT_NE(*accepted_, nullptr);
}

TEST_F(TlsNetTest, WhoSaysNothingHoldsUpNobody) {
    listen(credentials_of(authority_, 2), {.half_open_max = 4});
    std::vector<ConnectionPtr> silent;
    for (int i = 0; i < 6; ++i)
        silent.push_back(world_.run(world_.env().net.connect("server:1", seconds(1))).value());
    auto connection = connect(credentials_of(authority_, 1));
    ASSERT_TRUE(connection) << connection.error().text();
    world_.run_for(milliseconds(50));
    EXPECT_NE(*accepted_, nullptr);
    // The first were given up for the others, these in time.
    EXPECT_FALSE(world_.run(read_text(*silent[0], 1)));
    Time begin = world_.now();
    EXPECT_FALSE(world_.run(read_text(*silent[5], 1)));
    EXPECT_LE(world_.now() - begin, seconds(3));
}

TEST_F(TlsNetTest, AServerThatSaysNothingIsGivenUp) {
    auto plain = world_.run(server_, server_.env().net.listen("server:1")).value();
    auto connection = connect(credentials_of(authority_, 1));
    ASSERT_FALSE(connection);
    EXPECT_EQ(connection.error().code(), Code::unavailable);
    EXPECT_LE(world_.now() - Time(seconds(1000)), seconds(2));
}

TEST_F(TlsNetTest, GarbageIsRefused) {
    listen(credentials_of(authority_, 2));
    auto raw = world_.run(world_.env().net.connect("server:1", seconds(1))).value();
    std::string garbage(1000, 'g');
    ASSERT_TRUE(world_.run(raw->write(parts_of(garbage))));
    // Perhaps an alert, and then the end.
    while (world_.run(read_text(*raw, 1)))
        ;
    EXPECT_EQ(*accepted_, nullptr);
}

Task<Result<std::string>> talk(TlsNet& net) {
    CO_TRY_ASSIGN(auto listener, co_await net.listen("127.0.0.1:0"));
    auto accepted = std::make_shared<ConnectionPtr>();
    Executor executor = co_await this_executor();
    spawn(executor, accept_one(*listener, accepted));
    CO_TRY_ASSIGN(auto connection, co_await net.connect(listener->address(), seconds(5)));
    while (*accepted == nullptr)
        co_await yield();
    std::vector<Buffer> parts = parts_of("over TCP");
    CO_TRY(co_await connection->write(std::move(parts)));
    co_return co_await read_text(**accepted, 8);
}

TEST(TlsNet, RunsOverTcp) {
    auto core = Core::make({.name = "tls"}).value();
    System system(core.get());
    KeyAndCertificate authority = authority_of(1);
    auto net = TlsNet::make(system.env().net, system.env().clock, credentials_of(authority, 1));
    ASSERT_TRUE(net);
    Result<std::string> text;
    auto run = [](Core* c, TlsNet* n, Result<std::string>* out) -> Task<void> {
        *out = co_await talk(*n);
        c->stop();
    };
    spawn(core->executor(), run(core.get(), net->get(), &text));
    core->run();
    ASSERT_TRUE(text) << text.error().text();
    EXPECT_EQ(*text, "over TCP");
}

}  // namespace
}  // namespace peplos::runtime
