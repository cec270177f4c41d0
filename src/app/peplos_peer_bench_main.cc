// Measures calls between two cores of this process over loopback: plain TCP and TLS, a payload of
// 4 KiB in the request (a write) or in the answer (a read).
//
//     peplos-peer-bench [SECONDS]
#include <algorithm>
#include <cstdlib>
#include <fmt/format.h>
#include <future>
#include <sys/resource.h>

#include "peer/channel.h"
#include "peer/server.h"
#include "runtime/certificates.h"
#include "runtime/system.h"
#include "runtime/tls_net.h"

namespace peplos {
namespace {

using runtime::Task;

constexpr peer::Method kWrite = 1;
constexpr peer::Method kRead = 2;
constexpr size_t kBodyBytes = 100;

peer::Self self_of(uint64_t node) {
    return {.cluster = ClusterId(1), .node = NodeId(node), .boot = NodeBoot(node)};
}

Task<Result<peer::Message>> take_block(NodeId, peer::Message request) {
    request.payload.clear();
    co_return request;
}

Task<Result<peer::Message>> give_block(NodeId, peer::Message request) {
    request.payload = {Buffer::allocate(kBlockBytes)};
    request.payload_check = peer::PayloadCheck::by_caller;
    co_return request;
}

// One end: a core, its seams, and TLS over them where it is asked for.
struct End {
    explicit End(const char* name)
        : core(runtime::Core::make({.name = name}).value()), system(core.get()) {}
    void secure(const runtime::KeyAndCertificate& authority, uint64_t node) {
        runtime::Env& env = system.env();
        auto asked = runtime::make_key_and_request(NodeId(node)).value();
        std::string certificate =
            runtime::sign(authority, asked.request, NodeId(node), {}, env.clock.wall_now()).value();
        tls = runtime::TlsNet::make(env.net, env.clock,
                                    {asked.key, certificate, authority.certificate})
                  .value();
    }
    runtime::Env env() {
        runtime::Env& plain = system.env();
        runtime::Net& net = tls == nullptr ? plain.net : *tls;
        return {plain.executor, plain.clock, plain.rng, plain.disks, net};
    }

    std::unique_ptr<runtime::Core> core;
    runtime::System system;
    std::unique_ptr<runtime::TlsNet> tls;
};

template <typename T>
Task<void> keep(Task<T> task, std::promise<T>& to) {
    if constexpr (std::is_void_v<T>) {
        co_await std::move(task);
        to.set_value();
    } else {
        to.set_value(co_await std::move(task));
    }
}

template <typename T>
T run_on(runtime::Core& core, Task<T> task) {
    std::promise<T> promise;
    runtime::spawn(core.executor(), keep(std::move(task), promise));
    return promise.get_future().get();
}

struct Load {
    peer::Channel& channel;
    runtime::Clock& clock;
    peer::Method method;
    Time end;
    size_t workers = 0;
    runtime::Event done;
    std::vector<Duration> latencies;
};

Task<void> work(Load& load) {
    Buffer block = Buffer::zeroed(kBlockBytes);
    while (load.clock.now() < load.end) {
        peer::Message request;
        request.body.resize(kBodyBytes);
        request.payload_check = peer::PayloadCheck::by_caller;
        if (load.method == kWrite) request.payload = {block};
        Time begin = load.clock.now();
        auto answer =
            co_await load.channel.call(load.method, std::move(request), std::chrono::seconds(5));
        CHECK(answer.has_value(), "{}", answer.error().text());
        load.latencies.push_back(load.clock.now() - begin);
    }
    if (--load.workers == 0) load.done.set();
}

Task<void> run_load(Load& load, runtime::Executor executor, size_t depth) {
    load.workers = depth;
    for (size_t i = 0; i < depth; ++i)
        runtime::spawn(executor, work(load));
    co_await load.done.wait();
}

double cpu_seconds() {
    rusage usage{};
    getrusage(RUSAGE_SELF, &usage);
    auto seconds = [](const timeval& time) {
        return static_cast<double>(time.tv_sec) + static_cast<double>(time.tv_usec) / 1e6;
    };
    return seconds(usage.ru_utime) + seconds(usage.ru_stime);
}

void measure(End& client, peer::Channel& channel, const char* net, peer::Method method,
             size_t depth, int seconds) {
    runtime::Clock& clock = client.env().clock;
    Load load{channel, clock, method, clock.now() + std::chrono::seconds(seconds), 0, {}, {}};
    uint64_t writes = channel.counters().writes;
    double cpu = cpu_seconds();
    run_on(*client.core, run_load(load, client.core->executor(), depth));
    cpu = cpu_seconds() - cpu;
    auto count = static_cast<double>(load.latencies.size());
    std::ranges::sort(load.latencies);
    auto percentile = [&](double share) {
        auto index = static_cast<size_t>(share * (count - 1));
        return static_cast<double>(load.latencies[index].count()) / 1000;
    };
    fmt::print("| {} | {} | {} | {:.0f} | {:.1f} | {:.1f} | {:.2f} | {:.1f} |\n", net,
               method == kWrite ? "request" : "answer", depth, count / seconds, percentile(0.5),
               percentile(0.99), cpu * 1e6 / count,
               count / static_cast<double>(channel.counters().writes - writes));
}

void measure_net(const char* name, bool is_secure, int seconds) {
    End server_end("bench-server");
    End client_end("bench-client");
    if (is_secure) {
        auto now = server_end.env().clock.wall_now();
        auto authority = runtime::make_authority(ClusterId(1), now).value();
        server_end.secure(authority, 2);
        client_end.secure(authority, 1);
    }
    runtime::Env server_env = server_end.env();
    runtime::Env client_env = client_end.env();
    server_end.core->start();
    client_end.core->start();
    peer::Server server(server_env, self_of(2));
    server.handle(kWrite, take_block);
    server.handle(kRead, give_block);
    auto started = run_on(*server_end.core, server.start("127.0.0.1:0"));
    CHECK(started.has_value(), "{}", started.error().text());
    peer::Channels channels(client_env, self_of(1));
    channels.set_address(NodeId(2), {server.address()});
    peer::Channel& channel = channels.to(NodeId(2));
    for (peer::Method method : {kWrite, kRead}) {
        for (size_t depth : {1, 32})
            measure(client_end, channel, name, method, depth, seconds);
    }
    run_on(*client_end.core, channels.stop());
    run_on(*server_end.core, server.stop());
    client_end.core->stop();
    server_end.core->stop();
}

}  // namespace
}  // namespace peplos

int main(int count, char** arguments) {
    int seconds = count > 1 ? std::max(1, std::atoi(arguments[1])) : 3;
    fmt::print(
        "| Net | 4 KiB in the | QD | Calls/s | p50 us | p99 us | CPU us/call (both ends) | "
        "Calls per write |\n|---|---|---:|---:|---:|---:|---:|---:|\n");
    peplos::measure_net("TCP", false, seconds);
    peplos::measure_net("TLS 1.3", true, seconds);
}
