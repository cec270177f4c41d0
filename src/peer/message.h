#pragma once

#include <cstddef>
#include <functional>
#include <string>
#include <vector>

#include "base/buffer.h"
#include "base/ids.h"
#include "base/limits.h"
#include "base/result.h"
#include "runtime/task.h"

namespace peplos::peer {

// What is called. A number means the same for ever: a request whose meaning or bytes change gets a
// new one, and a node that does not know it refuses the call as `unsupported`.
using Method = uint16_t;

// Who computes the checksum of a payload on the wire. The header and the body always have one.
enum class PayloadCheck : uint8_t {
    by_link,    // the link: a payload that was damaged on its way breaks the connection
    by_caller,  // nobody here: the body carries checksums of the blocks, and the receiver checks
};

// A call's arguments, or its answer.
struct Message {
    // Small, encoded by the room above; at most limits::kPeerBodyBytesMax.
    std::vector<std::byte> body;
    // Bulk data, in order; whole blocks of kBlockBytes in every buffer; at most
    // limits::kPeerPayloadBytesMax in all. Never copied on the way out, so the bytes do not change
    // until the call has ended (and not while a buffer is shared). What arrives lies in buffers of
    // limits::kPeerPayloadBufferBytes, the last one shorter, aligned for O_DIRECT.
    std::vector<Buffer> payload;
    PayloadCheck payload_check = PayloadCheck::by_link;

    uint64_t payload_bytes() const {
        uint64_t sum = 0;
        for (const Buffer& buffer : payload)
            sum += buffer.size();
        return sum;
    }
};

// What a node does when it is called. Handlers of one connection are started in the order in which
// the calls were sent (a handler has started when its task runs up to where it first waits); they
// may end in any order. It lives as long as its server, its task until it ends.
using Handler = std::function<runtime::Task<Result<Message>>(NodeId from, Message request)>;

enum class Role : uint8_t {
    node = 1,
    tool = 2,  // a program of an operator's, no member of the cluster
};

// Protocol versions that a side speaks, both ends included.
struct VersionRange {
    uint16_t min = 0;
    uint16_t max = 0;
    bool operator==(const VersionRange&) const = default;
};
inline constexpr VersionRange kVersions{1, 1};

// Who a node is, as it says to others in the handshake.
struct Self {
    ClusterId cluster;
    NodeId node;
    NodeBoot boot;  // random, new with every start of the process
    Role role = Role::node;
    VersionRange versions = kVersions;
};

// What passed between this node and one other, since the start.
struct Counters {
    uint64_t calls = 0;             // begun
    uint64_t calls_failed = 0;      // ended with an error of the handler's
    uint64_t calls_not_run = 0;     // certainly not executed
    uint64_t calls_unknown = 0;     // sent, and then no answer
    uint64_t bytes_sent = 0;        // of requests or answers, with headers
    uint64_t bytes_received = 0;    //
    uint64_t writes = 0;            // gather writes: what was waiting goes out as one
    uint64_t connects = 0;          // connections made
    uint64_t connects_failed = 0;   // attempts that were not
    uint64_t connections_lost = 0;  // that were made, and broke
};

}  // namespace peplos::peer
