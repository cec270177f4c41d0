#include "control/etcd_link.h"

#include <cerrno>
#include <cstring>
#include <fstream>
#include <google/protobuf/message_lite.h>
#include <grpcpp/alarm.h>
#include <grpcpp/channel.h>
#include <grpcpp/create_channel.h>
#include <grpcpp/generic/generic_stub.h>
#include <grpcpp/security/credentials.h>
#include <set>
#include <sstream>
#include <thread>

#include "base/check.h"

namespace peplos::control {
namespace {

namespace asio = boost::asio;
using google::protobuf::MessageLite;
using Deadline = std::chrono::system_clock::time_point;

// etcd hangs up on clients that ping more often than every 5 s.
constexpr int kPingIntervalMs = 6'000;
constexpr int kPingPatienceMs = 2'000;
constexpr int kReconnectMinMs = 100;
constexpr int kReconnectMaxMs = 1'000;

Deadline deadline_in(Duration duration) {
    return std::chrono::system_clock::now() +
           std::chrono::duration_cast<Deadline::duration>(duration);
}

grpc::ByteBuffer packed(const MessageLite& message) {
    grpc::Slice slice(message.SerializeAsString());
    return grpc::ByteBuffer(&slice, 1);
}

bool unpack(const grpc::ByteBuffer& bytes, MessageLite& message) {
    std::vector<grpc::Slice> slices;
    if (!bytes.Dump(&slices).ok()) return false;
    std::string text;
    for (const grpc::Slice& slice : slices)
        text.append(reinterpret_cast<const char*>(slice.begin()), slice.size());
    return message.ParseFromString(text);
}

EtcdReply reply_of(const grpc::Status& status) {
    return {static_cast<int>(status.error_code()), status.error_message()};
}

// What the completion queue hands back. Deletes itself after `done`.
struct Tag {
    virtual ~Tag() = default;
    virtual void complete(bool ok) = 0;
};

// Posts `ok` to the task that waits for it.
struct Waiting final : Tag {
    Waiting(runtime::Executor executor, std::move_only_function<void(bool)> handler)
        : home(std::move(executor)), resume(std::move(handler)) {}
    void complete(bool ok) override {
        asio::post(home, [resume = std::move(resume), ok]() mutable { resume(ok); });
        delete this;
    }
    runtime::Executor home;
    std::move_only_function<void(bool)> resume;
};

// Hands `begin(tag)` to gRPC and waits until the queue gives the tag back.
template <typename Begin>
Task<bool> completion_of(runtime::Executor home, Begin begin) {
    auto initiate = [home = std::move(home), begin = std::move(begin)](auto handler) mutable {
        auto resume = [handler = std::move(handler)](bool ok) mutable { std::move(handler)(ok); };
        begin(static_cast<Tag*>(new Waiting(std::move(home), std::move(resume))));
    };
    co_return co_await asio::async_initiate<const asio::use_awaitable_t<runtime::Executor>,
                                            void(bool)>(std::move(initiate), runtime::kUseTask);
}

Result<std::string> read_pem(const std::string& path) {
    std::ifstream file(path, std::ios::binary);
    if (!file) {
        Code code = errno == EACCES ? Code::permission_denied : Code::not_found;
        return fail(code, "cannot read {}, which the connection to etcd needs: {}", path,
                    std::strerror(errno));
    }
    // Not by iterators, which throw where a read fails (of a directory, too).
    std::ostringstream text;
    text << file.rdbuf();
    if (!text || !file)
        return fail(Code::io_error, "cannot read {}, which the connection to etcd needs", path);
    return std::move(text).str();
}

Result<std::shared_ptr<grpc::ChannelCredentials>> credentials_of(const EtcdAddress& address) {
    if (address.ca_file.empty()) return grpc::InsecureChannelCredentials();
    grpc::SslCredentialsOptions options;
    TRY_ASSIGN(options.pem_root_certs, read_pem(address.ca_file));
    TRY_ASSIGN(options.pem_cert_chain, read_pem(address.cert_file));
    TRY_ASSIGN(options.pem_private_key, read_pem(address.key_file));
    return grpc::SslCredentials(options);
}

// gRPC's name of an endpoint.
Result<std::string> target_of(std::string endpoint, bool is_tls) {
    std::string whole = endpoint;
    if (endpoint.starts_with("unix:/")) return whole;
    for (std::string_view scheme : {"http://", "https://"}) {
        if (!endpoint.starts_with(scheme)) continue;
        endpoint.erase(0, scheme.size());
        if ((scheme == "https://") != is_tls) {
            return fail(Code::invalid_argument,
                        "the etcd endpoint {} {} files ca, cert and key: name all three with "
                        "https, none with http",
                        whole, is_tls ? "goes without the" : "needs the");
        }
    }
    while (endpoint.ends_with('/'))
        endpoint.pop_back();
    bool ok = !endpoint.empty() && endpoint.rfind(':') != std::string::npos &&
              endpoint.find('/') == std::string::npos && !endpoint.ends_with(':');
    if (ok) return "dns:///" + endpoint;
    return fail(Code::invalid_argument,
                "the etcd endpoint \"{}\" is none: write http://HOST:PORT, https://HOST:PORT or "
                "unix:/PATH",
                whole);
}

grpc::ChannelArguments arguments(size_t index) {
    grpc::ChannelArguments out;
    out.SetInt(GRPC_ARG_KEEPALIVE_TIME_MS, kPingIntervalMs);
    out.SetInt(GRPC_ARG_KEEPALIVE_TIMEOUT_MS, kPingPatienceMs);
    out.SetInt(GRPC_ARG_HTTP2_MAX_PINGS_WITHOUT_DATA, 0);
    out.SetInt(GRPC_ARG_INITIAL_RECONNECT_BACKOFF_MS, kReconnectMinMs);
    out.SetInt(GRPC_ARG_MIN_RECONNECT_BACKOFF_MS, kReconnectMinMs);
    out.SetInt(GRPC_ARG_MAX_RECONNECT_BACKOFF_MS, kReconnectMaxMs);
    // A repeated transaction could be one too many: only its sender decides.
    out.SetInt(GRPC_ARG_ENABLE_RETRIES, 0);
    out.SetInt(GRPC_ARG_ENABLE_HTTP_PROXY, 0);
    // Two stores of one process share no connection.
    out.SetInt(GRPC_ARG_USE_LOCAL_SUBCHANNEL_POOL, 1);
    out.SetMaxReceiveMessageSize(kEtcdMessageBytesMax);
    out.SetInt("peplos.endpoint", static_cast<int>(index));
    return out;
}

struct Endpoint {
    std::string name;
    std::shared_ptr<grpc::Channel> channel;
    std::unique_ptr<grpc::GenericStub> stub;
    bool was_ready = false;
};

// The contexts and alarms that are in use, so that they can be cancelled. `home` only.
struct Active {
    std::set<grpc::ClientContext*> contexts;
    std::set<grpc::Alarm*> alarms;
    bool cancelled = false;
};

class Registered {
  public:
    Registered(std::shared_ptr<Active> active, grpc::ClientContext& context)
        : active_(std::move(active)), context_(context) {
        active_->contexts.insert(&context_);
        if (active_->cancelled) context_.TryCancel();
    }
    Registered(const Registered&) = delete;
    Registered& operator=(const Registered&) = delete;
    ~Registered() { active_->contexts.erase(&context_); }

  private:
    std::shared_ptr<Active> active_;
    grpc::ClientContext& context_;
};

void ask_for_leader(grpc::ClientContext& context) {
    // A member without a leader then says so at once, and before it does anything.
    context.AddMetadata("hasleader", "true");
}

class Stream final : public EtcdStream {
  public:
    Stream(runtime::Executor home, std::shared_ptr<Active> active)
        : home_(std::move(home)), registered_(std::move(active), context_) {
        ask_for_leader(context_);
    }
    ~Stream() override { context_.TryCancel(); }

    Task<bool> start(grpc::GenericStub& stub, const char* method, grpc::CompletionQueue& queue) {
        stream_ = stub.PrepareCall(&context_, method, &queue);
        auto begin = [this](Tag* tag) { stream_->StartCall(tag); };
        co_return co_await completion_of(home_, begin);
    }
    Task<bool> write(const MessageLite& message) override {
        grpc::ByteBuffer bytes = packed(message);
        auto begin = [this, &bytes](Tag* tag) { stream_->Write(bytes, tag); };
        co_return co_await completion_of(home_, begin);
    }
    Task<bool> read(MessageLite& message) override {
        grpc::ByteBuffer bytes;
        auto begin = [this, &bytes](Tag* tag) { stream_->Read(&bytes, tag); };
        bool is_read = co_await completion_of(home_, begin);
        if (!is_read) co_return false;
        co_return unpack(bytes, message);
    }
    Task<EtcdReply> finish() override {
        context_.TryCancel();
        grpc::Status status;
        auto begin = [this, &status](Tag* tag) { stream_->Finish(&status, tag); };
        co_await completion_of(home_, begin);
        co_return reply_of(status);
    }
    void cancel() override { context_.TryCancel(); }

  private:
    runtime::Executor home_;
    grpc::ClientContext context_;
    Registered registered_;
    std::unique_ptr<grpc::GenericClientAsyncReaderWriter> stream_;
};

class Link final : public EtcdLink {
  public:
    Link(runtime::Executor home, std::vector<Endpoint> endpoints)
        : home_(std::move(home)), endpoints_(std::move(endpoints)), thread_([this] { reap(); }) {}
    ~Link() override {
        cancel_all();
        queue_.Shutdown();
        thread_.join();
    }

    size_t endpoint_count() const override { return endpoints_.size(); }
    const std::string& endpoint_name(size_t endpoint) const override {
        return endpoints_.at(endpoint).name;
    }
    bool is_ready(size_t endpoint) override {
        Endpoint& one = endpoints_.at(endpoint);
        bool is_now = one.channel->GetState(true) == GRPC_CHANNEL_READY;
        if (one.was_ready && !is_now) ++losses_;
        one.was_ready = is_now;
        return is_now;
    }
    bool is_refused(size_t endpoint) override {
        return endpoints_.at(endpoint).channel->GetState(true) == GRPC_CHANNEL_TRANSIENT_FAILURE;
    }
    uint64_t loss_count() const override { return losses_; }

    Task<void> sleep(Duration duration) override;
    Task<EtcdReply> call(size_t endpoint, const char* method, const MessageLite& request,
                         MessageLite& response, Duration limit) override;
    Task<Result<std::shared_ptr<EtcdStream>>> open(size_t endpoint, const char* method) override;
    void cancel_all() override {
        active_->cancelled = true;
        for (grpc::ClientContext* context : active_->contexts)
            context->TryCancel();
        for (grpc::Alarm* alarm : active_->alarms)
            alarm->Cancel();
    }

  private:
    void reap() {
        void* tag = nullptr;
        bool ok = false;
        while (queue_.Next(&tag, &ok))
            static_cast<Tag*>(tag)->complete(ok);
    }

    runtime::Executor home_;
    std::vector<Endpoint> endpoints_;
    std::shared_ptr<Active> active_ = std::make_shared<Active>();
    uint64_t losses_ = 0;
    grpc::CompletionQueue queue_;
    std::thread thread_;
};

Task<void> Link::sleep(Duration duration) {
    if (active_->cancelled) co_return;
    grpc::Alarm alarm;
    std::shared_ptr<Active> active = active_;
    active->alarms.insert(&alarm);
    auto begin = [this, &alarm, duration](Tag* tag) {
        alarm.Set(&queue_, deadline_in(duration), tag);
    };
    co_await completion_of(home_, begin);
    active->alarms.erase(&alarm);
}

Task<EtcdReply> Link::call(size_t endpoint, const char* method, const MessageLite& request,
                           MessageLite& response, Duration limit) {
    grpc::ClientContext context;
    context.set_deadline(deadline_in(limit));
    ask_for_leader(context);
    Registered registered(active_, context);
    grpc::ByteBuffer bytes = packed(request);
    grpc::ByteBuffer answer;
    grpc::Status status;
    auto reader = endpoints_.at(endpoint).stub->PrepareUnaryCall(&context, method, bytes, &queue_);
    auto begin = [&reader, &answer, &status](Tag* tag) {
        reader->StartCall();
        reader->Finish(&answer, &status, tag);
    };
    co_await completion_of(home_, begin);
    if (status.ok() && !unpack(answer, response)) {
        co_return EtcdReply{grpc::StatusCode::INTERNAL, "the answer cannot be read"};
    }
    co_return reply_of(status);
}

Task<Result<std::shared_ptr<EtcdStream>>> Link::open(size_t endpoint, const char* method) {
    auto stream = std::make_shared<Stream>(home_, active_);
    Endpoint& one = endpoints_.at(endpoint);
    if (co_await stream->start(*one.stub, method, queue_)) {
        co_return std::shared_ptr<EtcdStream>(std::move(stream));
    }
    EtcdReply reply = co_await stream->finish();
    co_return fail(Code::unavailable, "etcd at {} gives no stream: {}", one.name, reply.message);
}

}  // namespace

Result<std::unique_ptr<EtcdLink>> EtcdLink::make(runtime::Executor home,
                                                 const EtcdAddress& address) {
    size_t count = address.endpoints.size();
    if (count == 0 || count > kEtcdEndpointsMax) {
        return fail(Code::invalid_argument, "an etcd has 1 to {} endpoints, {} are named",
                    kEtcdEndpointsMax, count);
    }
    bool is_tls = !address.ca_file.empty();
    if (is_tls != !address.cert_file.empty() || is_tls != !address.key_file.empty()) {
        return fail(Code::invalid_argument,
                    "etcd's files ca, cert and key belong together: name all three or none");
    }
    TRY_ASSIGN(std::shared_ptr<grpc::ChannelCredentials> credentials, credentials_of(address));
    std::vector<Endpoint> endpoints;
    for (const std::string& name : address.endpoints) {
        TRY_ASSIGN(std::string target, target_of(name, is_tls));
        Endpoint& one = endpoints.emplace_back();
        one.name = name;
        one.channel = grpc::CreateCustomChannel(target, credentials, arguments(endpoints.size()));
        one.stub = std::make_unique<grpc::GenericStub>(one.channel);
    }
    return std::unique_ptr<EtcdLink>(new Link(std::move(home), std::move(endpoints)));
}

}  // namespace peplos::control
