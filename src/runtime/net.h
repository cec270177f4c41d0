#pragma once

#include <memory>
#include <string>
#include <vector>

#include "base/buffer.h"
#include "base/result.h"
#include "runtime/task.h"

namespace peplos::runtime {

// An ordered, reliable byte stream to a peer. Lives on one executor; one reader and one writer.
// Errors: unavailable (the peer is gone or the stream was closed).
class Connection {
  public:
    virtual ~Connection() = default;
    // Fills all of `into`.
    virtual Task<Result<void>> read(Buffer into) = 0;
    // Waits for at least one byte and fills `into` with what is there then; returns how many bytes.
    // Requires: `into` is not empty.
    virtual Task<Result<size_t>> read_some(Buffer into) = 0;
    // Writes all bytes of all buffers in order; resolves when the kernel has them. Whether they
    // reach the peer is not known, after an error not even how many left.
    virtual Task<Result<void>> write(std::vector<Buffer> from) = 0;
    // Ends reads and writes under way, and both directions.
    virtual void close() = 0;
    // "host:port", for messages.
    virtual const std::string& peer() const = 0;
    // Who the other end has proven to be (the node id of its certificate, 16 hexadecimal digits);
    // empty where the Net asks for no proof.
    virtual const std::string& identity() const = 0;
};

class Listener {
  public:
    virtual ~Listener() = default;
    // Errors: unavailable (after close(): for good; else the caller goes on accepting).
    virtual Task<Result<std::unique_ptr<Connection>>> accept() = 0;
    virtual void close() = 0;
    // The bound address, with the port that was chosen.
    virtual const std::string& address() const = 0;
};

// The seam for the network between nodes. Addresses are "host:port".
class Net {
  public:
    virtual ~Net() = default;
    // Errors: unavailable (refused, unreachable or not answered before `timeout`),
    // invalid_argument (not an address), permission_denied (no proof of identity that counts).
    virtual Task<Result<std::unique_ptr<Connection>>> connect(std::string address,
                                                              Duration timeout) = 0;
    virtual Task<Result<std::unique_ptr<Listener>>> listen(std::string address) = 0;
};

}  // namespace peplos::runtime
