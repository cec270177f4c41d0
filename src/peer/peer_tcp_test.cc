#include <gtest/gtest.h>

#include "peer/channel.h"
#include "peer/server.h"
#include "runtime/certificates.h"
#include "runtime/system.h"
#include "runtime/tls_net.h"

// The same calls over real sockets on loopback, plain and with TLS.
namespace peplos::peer {
namespace {

using runtime::Env;
using runtime::Task;
using std::chrono::seconds;

constexpr Method kEcho = 1;

Self tcp_self(uint64_t node) {
    return {.cluster = ClusterId(1), .node = NodeId(node), .boot = NodeBoot(node)};
}

Task<Result<Message>> echo(NodeId, Message request) {
    co_return request;
}

Message message_of(size_t body_bytes, size_t payload_bytes) {
    Message message;
    message.body.resize(body_bytes, std::byte{3});
    if (payload_bytes != 0) {
        message.payload = {Buffer::zeroed(payload_bytes)};
        message.payload[0].data()[payload_bytes - 1] = std::byte{9};
    }
    return message;
}

struct Count {
    size_t left = 0;
    size_t wrong = 0;
    runtime::Event done;
};

Task<void> call_once(Channel* channel, size_t payload_bytes, Count* count) {
    Message request = message_of(100, payload_bytes);
    auto answer = co_await channel->call(kEcho, std::move(request), seconds(20));
    bool is_right = answer.has_value() && answer->body == message_of(100, 0).body &&
                    answer->payload_bytes() == payload_bytes;
    if (is_right && payload_bytes != 0) {
        const Buffer& last = answer->payload.back();
        is_right = last.data()[last.size() - 1] == std::byte{9};
    }
    count->wrong += !is_right;
    if (--count->left == 0) count->done.set();
}

Task<Result<size_t>> talk(Env& server_env, Env& client_env) {
    Server server(server_env, tcp_self(2));
    server.handle(kEcho, echo);
    std::string address = "127.0.0.1:0";
    CO_TRY(co_await server.start(std::move(address)));
    Channels channels(client_env, tcp_self(1));
    channels.set_address(NodeId(2), {"127.0.0.1:1", server.address()});
    Channel& channel = channels.to(NodeId(2));
    Count count;
    std::vector<size_t> sizes;
    for (size_t i = 0; i < 200; ++i)
        sizes.push_back(i % 40 == 0 ? 3 * kMiB : i % 3 * 4096);
    sizes.push_back(limits::kPeerPayloadBytesMax);
    count.left = sizes.size();
    for (size_t bytes : sizes)
        runtime::spawn(client_env.executor, call_once(&channel, bytes, &count));
    co_await count.done.wait();
    // The server goes: the next call says so.
    co_await server.stop();
    auto gone = co_await channel.call(kEcho, {}, seconds(5));
    if (gone) ++count.wrong;
    co_await channels.stop();
    co_return count.wrong;
}

Task<void> run_and_stop(runtime::Core* core, Env* server, Env* client, Result<size_t>* out) {
    *out = co_await talk(*server, *client);
    core->stop();
}

Result<size_t> run(bool is_secure, uint64_t client_node = 1) {
    auto core = runtime::Core::make({.name = "peer"}).value();
    runtime::System system(core.get());
    Env& plain = system.env();
    std::unique_ptr<runtime::TlsNet> nets[2];
    if (is_secure) {
        WallTime now = plain.clock.wall_now();
        auto authority = runtime::make_authority(ClusterId(1), now).value();
        for (uint64_t i : {0, 1}) {
            NodeId node(i == 0 ? 2 : client_node);
            auto asked = runtime::make_key_and_request(node).value();
            std::string certificate =
                runtime::sign(authority, asked.request, node, {}, now).value();
            nets[i] = runtime::TlsNet::make(plain.net, plain.clock,
                                            {asked.key, certificate, authority.certificate})
                          .value();
        }
    }
    auto env_of = [&](runtime::TlsNet* tls) {
        runtime::Net& net = tls == nullptr ? plain.net : *tls;
        return Env{plain.executor, plain.clock, plain.rng, plain.disks, net};
    };
    Env server = env_of(nets[0].get());
    Env client = env_of(nets[1].get());
    Result<size_t> wrong = 0;
    runtime::spawn(core->executor(), run_and_stop(core.get(), &server, &client, &wrong));
    core->run();
    return wrong;
}

TEST(PeerTcp, CallsOverTcp) {
    auto wrong = run(false);
    ASSERT_TRUE(wrong) << wrong.error().text();
    EXPECT_EQ(*wrong, 0u);
}

TEST(PeerTcp, CallsOverTls) {
    auto wrong = run(true);
    ASSERT_TRUE(wrong) << wrong.error().text();
    EXPECT_EQ(*wrong, 0u);
}

TEST(PeerTcp, ACertificateOfAnotherNodeIsRefused) {
    auto wrong = run(true, 3);
    ASSERT_TRUE(wrong) << wrong.error().text();
    EXPECT_EQ(*wrong, 201u);
}

}  // namespace
}  // namespace peplos::peer
