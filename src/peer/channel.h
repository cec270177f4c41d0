#pragma once

#include <map>
#include <memory>
#include <string>
#include <vector>

#include "peer/message.h"
#include "runtime/env.h"

namespace peplos::peer {

struct ChannelOptions {
    // Calls that wait for the connection or are under way, and the bytes of their requests. As many
    // again may wait until one of these ends.
    uint32_t calls_max = limits::kPeerCallsMax;
    uint64_t bytes_max = limits::kPeerCallBytesMax;
};

// Control calls do not wait behind bulk ones: while these wait for room, as many of the others
// as calls_max are let in beside them, whatever their bytes.
enum class Lane : uint8_t { control, bulk };

// Calls to one other node, over one connection that is made when it is first needed and made again
// after it was lost. Lives on one executor.
//
// Invariants
//   1. A call is sent at most once: repeating is the caller's decision.
//   2. Calls of one lane are sent in the order in which call() was awaited.
//   3. Every call ends by its deadline, whatever the network does.
//   4. A call that ended `unavailable` by the channel, `busy` or `unsupported` by the server was
//      never handed to a handler.
class Channel {
  public:
    // `node` is who must be at the other end.
    Channel(runtime::Env& env, Self self, NodeId node, ChannelOptions options = {});
    Channel(const Channel&) = delete;
    Channel& operator=(const Channel&) = delete;
    // Requires: stopped, or nothing runs on its executor any more.
    ~Channel();

    // Where the node listens; tried in turn. May change at any time, for the next connection.
    void set_addresses(std::vector<std::string> addresses);

    // Sends the request and waits for the answer, at most `timeout`. Where too many are under way
    // it waits for room. Before a connection exists the call waits for it; when the attempt fails
    // it ends at once. Errors: unavailable (certainly not executed: no connection, never sent, or
    // refused by a server that stops), busy (certainly not executed: no room in time), unsupported
    // (certainly not executed: the server knows no such method), invalid_argument (larger than the
    // limits), outcome_unknown (sent, and then the connection was lost or no answer came in time),
    // stopping (stop() was called; executed or not), or what the handler answered, code and
    // message.
    runtime::Task<Result<Message>> call(Method method, Message request, Duration timeout,
                                        Lane lane = Lane::bulk);

    // Whether a connection exists and nothing says that it is dead. A hint: it may be now.
    bool is_connected() const;
    // The version agreed on with the node, the last time; 0 before that.
    uint16_t version() const;
    // The process at the other end of the last connection; another one than before: it restarted.
    NodeBoot node_boot() const;
    // Why there is no connection; empty while there is one, or before the first attempt.
    const std::string& last_error() const;
    NodeId node() const;
    const Counters& counters() const;

    // Ends every call with `stopping`, and the connection. Idempotent.
    runtime::Task<void> stop();

  private:
    class Impl;
    std::unique_ptr<Impl> impl_;
};

// The channels of this node, by the node at their other end. Lives on one executor.
class Channels {
  public:
    Channels(runtime::Env& env, Self self, ChannelOptions options = {});
    Channels(const Channels&) = delete;
    Channels& operator=(const Channels&) = delete;
    ~Channels();

    // What whoever knows the members says; calls to a node without one are `unavailable`.
    void set_address(NodeId node, std::vector<std::string> addresses);
    // Made when it is first asked for; lives as long as this object.
    Channel& to(NodeId node);
    // Every channel that was made.
    const std::map<NodeId, std::unique_ptr<Channel>>& all() const { return channels_; }
    runtime::Task<void> stop();

  private:
    runtime::Env& env_;
    Self self_;
    ChannelOptions options_;
    std::map<NodeId, std::unique_ptr<Channel>> channels_;
    bool stopping_ = false;
};

}  // namespace peplos::peer
