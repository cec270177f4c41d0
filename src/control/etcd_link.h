#pragma once

#include <memory>
#include <string>
#include <vector>

#include "base/result.h"
#include "base/units.h"
#include "runtime/task.h"

namespace google::protobuf {
class MessageLite;
}

namespace peplos::control {

using runtime::Task;

inline constexpr uint32_t kEtcdEndpointsMax = 16;
inline constexpr uint32_t kEtcdPrefixBytesMax = 256;
// A page of the largest values.
inline constexpr int kEtcdMessageBytesMax = 80 * 1024 * 1024;
inline constexpr Duration kEtcdCallMax = std::chrono::seconds(5);

// Where an etcd is and how its members prove who they are.
struct EtcdAddress {
    // "http://host:port", "https://host:port", "unix:/path" or "host:port" (https when `ca_file` is
    // set); 1 .. kEtcdEndpointsMax.
    std::vector<std::string> endpoints;
    // PEM files; all three or none.
    std::string ca_file;
    std::string cert_file;
    std::string key_file;
};

// How a call ended, in gRPC's words.
struct EtcdReply {
    int code = 0;  // grpc::StatusCode
    std::string message;
    bool ok() const { return code == 0; }
};

// gRPC's codes that are told apart here.
namespace etcd_code {
inline constexpr int kDeadlineExceeded = 4;
inline constexpr int kResourceExhausted = 8;
inline constexpr int kUnavailable = 14;
}  // namespace etcd_code

// One stream in both directions. One write and one read at a time.
class EtcdStream {
  public:
    virtual ~EtcdStream() = default;
    // False: the stream has ended, finish() says why.
    virtual Task<bool> write(const google::protobuf::MessageLite& message) = 0;
    virtual Task<bool> read(google::protobuf::MessageLite& message) = 0;
    // Requires: a write or read gave false, or cancel() was called, and none is in flight.
    virtual Task<EtcdReply> finish() = 0;
    virtual void cancel() = 0;
};

// gRPC: a channel per endpoint, and the one thread that waits for what they bring. Results are
// posted to `home`, on which the link and its streams live; nothing of gRPC is seen outside.
//
// A channel's state tells what was certainly not sent: a call goes out only over a connection that
// stands (is_ready()), and gRPC never repeats one.
class EtcdLink {
  public:
    // Errors: invalid_argument (an endpoint nobody understands), not_found, permission_denied and
    // io_error (a PEM file).
    static Result<std::unique_ptr<EtcdLink>> make(runtime::Executor home,
                                                  const EtcdAddress& address);
    virtual ~EtcdLink() = default;

    virtual size_t endpoint_count() const = 0;
    virtual const std::string& endpoint_name(size_t endpoint) const = 0;
    // Whether its connection stands; asks for one where it does not.
    virtual bool is_ready(size_t endpoint) = 0;
    // Whether the last attempt to connect failed and the next has not begun.
    virtual bool is_refused(size_t endpoint) = 0;
    // Connections that were seen to end, of all endpoints.
    virtual uint64_t loss_count() const = 0;

    virtual Task<void> sleep(Duration duration) = 0;
    // `method`: "/etcdserverpb.KV/Txn". `response` is filled when the reply is ok.
    virtual Task<EtcdReply> call(size_t endpoint, const char* method,
                                 const google::protobuf::MessageLite& request,
                                 google::protobuf::MessageLite& response, Duration limit) = 0;
    // A stream that is open, or the reply that refused it.
    virtual Task<Result<std::shared_ptr<EtcdStream>>> open(size_t endpoint, const char* method) = 0;
    // Ends every call, stream and sleep, now and later. Their tasks go on with an error.
    virtual void cancel_all() = 0;
};

}  // namespace peplos::control
