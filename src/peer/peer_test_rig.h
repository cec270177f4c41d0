#pragma once

#include <map>
#include <memory>
#include <string>
#include <vector>

#include "peer/channel.h"
#include "peer/server.h"
#include "sim/world.h"

// Two simulated nodes that call each other, a history of what happened to each call, and the rules
// that it must keep.
namespace peplos::peer {

inline constexpr Method kEcho = 1;     // answers what it was asked
inline constexpr Method kRecord = 2;   // body: the call's number; see PeerRig
inline constexpr Method kUnknown = 9;  // nobody's
inline constexpr std::string_view kAddress = "b:7000";

inline Self self_of(uint64_t node, uint64_t boot = 1) {
    return {.cluster = ClusterId(0xc1), .node = NodeId(node), .boot = NodeBoot(boot)};
}

inline std::vector<std::byte> body_of(std::string_view text) {
    Bytes bytes = bytes_of_text(text);
    return {bytes.begin(), bytes.end()};
}

inline Message message_of(uint64_t number) {
    Message message;
    Bytes bytes = bytes_of(number);
    message.body.assign(bytes.begin(), bytes.end());
    return message;
}

inline uint64_t number_of(const Message& message) {
    return ByteReader(message.body).read<uint64_t>();
}

class PeerRig {
  public:
    struct Call {
        Time deadline;
        Time ended;
        uint32_t starts = 0;
        bool is_abandoned = false;  // its caller died
        std::optional<Result<Message>> outcome;
    };

    explicit PeerRig(uint64_t seed, sim::WorldOptions options = {})
        : world(seed, options), client(&world.start("a")), server_process(&world.start("b")) {
        start_client();
    }

    void start_client() {
        channels = std::make_unique<Channels>(client->env(), self_of(1, ++boots_), bounds);
        channels->set_address(NodeId(2), {std::string(kAddress)});
    }
    Channel& channel() { return channels->to(NodeId(2)); }
    void start_server(ServerOptions options = {}) {
        server = std::make_unique<Server>(server_process->env(), self_of(2, ++boots_), options);
        server->handle(kEcho, [](NodeId, Message request) { return echo(std::move(request)); });
        server->handle(kRecord, [this](NodeId, Message request) {
            return record(this, server_process, std::move(request));
        });
        auto started = world.run(*server_process, server->start(std::string(kAddress)));
        CHECK(started.has_value(), "{}", started.error().text());
    }
    // With everything on it; another process of its name follows.
    void end_server(bool is_crash) {
        is_crash ? world.crash(*server_process) : world.kill(*server_process);
        server = nullptr;
        server_process = &world.start("b");
    }
    void end_client(bool is_crash) {
        is_crash ? world.crash(*client) : world.kill(*client);
        channels = nullptr;
        for (Call& call : calls)
            call.is_abandoned = call.is_abandoned || !call.outcome.has_value();
        client = &world.start("a");
        start_client();
    }

    // Begins a call in the background.
    void begin_call(Duration timeout, size_t payload_bytes = 0) {
        calls.push_back({.deadline = world.now() + timeout});
        Message request = message_of(calls.size() - 1);
        if (payload_bytes != 0) request.payload = {Buffer::zeroed(payload_bytes)};
        runtime::spawn(client->executor(),
                       make_call(this, &channel(), calls.size() - 1, std::move(request), timeout));
    }
    Result<Message> call(Method method, Message request,
                         Duration timeout = std::chrono::seconds(1)) {
        return world.run(*client, channel().call(method, std::move(request), timeout));
    }
    void stop() {
        world.run(*client, channels->stop());
        if (server != nullptr) world.run(*server_process, server->stop());
    }

    // Empty when every call's outcome is true and came in time.
    std::string judge() const {
        for (size_t i = 0; i < calls.size(); ++i) {
            std::string wrong = judge(calls[i]);
            if (!wrong.empty()) return fmt::format("call {}: {}", i, wrong);
        }
        return {};
    }

    // Of the client that starts next.
    ChannelOptions bounds;
    // What kRecord does: it waits `work_max` at most, and then fails as `conflict` or answers.
    Duration work_max = std::chrono::milliseconds(20);
    uint32_t fail_permille = 100;
    uint32_t payload_permille = 100;  // of answers

    sim::World world;
    sim::Process* client;
    sim::Process* server_process;
    std::unique_ptr<Server> server;
    std::unique_ptr<Channels> channels;
    std::vector<Call> calls;
    std::vector<uint64_t> starts;  // numbers of calls, in the order in which handlers started

  private:
    static runtime::Task<Result<Message>> echo(Message request) { co_return request; }
    static runtime::Task<Result<Message>> record(PeerRig* rig, sim::Process* process,
                                                 Message request) {
        uint64_t number = number_of(request);
        ++rig->calls[number].starts;
        rig->starts.push_back(number);
        auto most = static_cast<uint64_t>(rig->work_max.count());
        Duration work(static_cast<int64_t>(process->env().rng.below(most + 1)));
        if (work.count() != 0) co_await process->env().clock.sleep_for(work);
        if (process->env().rng.below(1000) < rig->fail_permille)
            co_return fail(Code::conflict, "{}", number);
        Message answer = message_of(number + 1);
        if (process->env().rng.below(1000) < rig->payload_permille)
            answer.payload = {Buffer::zeroed(64 * kKiB)};
        co_return answer;
    }
    static runtime::Task<void> make_call(PeerRig* rig, Channel* channel, size_t index,
                                         Message request, Duration timeout) {
        auto outcome = co_await channel->call(kRecord, std::move(request), timeout);
        rig->calls[index].outcome = std::move(outcome);
        rig->calls[index].ended = rig->world.now();
    }
    std::string judge(const Call& call) const {
        size_t index = static_cast<size_t>(&call - calls.data());
        if (call.starts > 1) return "was executed twice";
        if (!call.outcome.has_value()) return call.is_abandoned ? "" : "never ended";
        if (call.ended > call.deadline + std::chrono::milliseconds(1)) return "ended late";
        if (call.outcome->has_value()) {
            if (call.starts != 1) return "was answered, and not executed";
            return number_of(**call.outcome) == index + 1 ? "" : "has another call's answer";
        }
        const Error& error = call.outcome->error();
        switch (error.code()) {
            case Code::conflict:
                if (call.starts != 1) return "failed, and was not executed";
                return error.message() == fmt::format("{}", index) ? "" : "has another's error";
            case Code::unavailable:
            case Code::busy:
                return call.starts == 0 ? "" : "was executed: " + error.text();
            case Code::outcome_unknown:
            case Code::stopping:
                return "";
            default:
                return "ended with " + error.text();
        }
    }

    uint64_t boots_ = 0;
};

}  // namespace peplos::peer
