#include "sim/net.h"

#include <algorithm>
#include <charconv>

#include "base/crc32c.h"
#include "sim/world.h"

namespace peplos::sim {
namespace {

constexpr uint64_t kStreamNet = 4;
// A writer whose peer reads nothing is cut off here: it is a bound, not a model of TCP.
constexpr size_t kChunkCountMax = 1 << 20;

Result<void> gone(const std::string& address) {
    return fail(Code::unavailable, "the connection to {} was closed", address);
}

// One end of a stream. `side` 0 connected, 1 accepted.
class SimConnection final : public runtime::Connection {
  public:
    SimConnection(NetFabric* net, std::shared_ptr<Stream> stream, int side)
        : net_(net), stream_(std::move(stream)), side_(side), peer_(stream_->address) {}
    SimConnection(const SimConnection&) = delete;
    SimConnection& operator=(const SimConnection&) = delete;
    ~SimConnection() override { close(); }

    Task<Result<void>> read(Buffer into) override {
        Pipe& pipe = stream_->pipes[1 - side_];
        CHECK(!pipe.reader && pipe.into.empty(), "one reader per connection");
        return asio::async_initiate<const asio::use_awaitable_t<Executor>, void(Result<void>)>(
            [this](auto handler, Buffer buffer) {
                Pipe& from = stream_->pipes[1 - side_];
                from.into = std::move(buffer);
                from.filled = 0;
                from.reader = std::move(handler);
                // Through the queue, so that the reader is never resumed while it suspends.
                from.to->post([net = net_, stream = stream_, index = 1 - side_] {
                    net->pump(stream, index);
                });
            },
            runtime::kUseTask, std::move(into));
    }
    Task<Result<void>> write(std::vector<Buffer> from) override {
        co_await runtime::yield();
        Pipe& pipe = stream_->pipes[side_];
        if (closed_ || pipe.ended || pipe.chunks.size() >= kChunkCountMax) co_return gone(peer_);
        for (const Buffer& buffer : from) {
            if (!buffer.empty()) net_->send(stream_, side_, Buffer::copy_of(buffer.bytes()));
        }
        co_return Result<void>{};
    }
    void close() override {
        if (!std::exchange(closed_, true)) net_->close(stream_);
    }
    const std::string& peer() const override { return peer_; }

  private:
    NetFabric* net_;
    std::shared_ptr<Stream> stream_;
    int side_;
    bool closed_ = false;
    std::string peer_;
};

class SimListener final : public runtime::Listener {
  public:
    SimListener(NetFabric* net, std::shared_ptr<ListenPoint> point, std::string address)
        : net_(net), point_(std::move(point)), address_(std::move(address)) {}
    SimListener(const SimListener&) = delete;
    SimListener& operator=(const SimListener&) = delete;
    ~SimListener() override { close(); }

    Task<Result<std::unique_ptr<runtime::Connection>>> accept() override {
        while (point_->arrived.empty() && !point_->closed) {
            co_await asio::async_initiate<const asio::use_awaitable_t<Executor>, void()>(
                [this](auto handler) { point_->waiting = std::move(handler); }, runtime::kUseTask);
        }
        if (point_->arrived.empty()) co_return fail(Code::unavailable, "{} is closed", address_);
        std::shared_ptr<Stream> stream = std::move(point_->arrived.front());
        point_->arrived.pop_front();
        co_return std::make_unique<SimConnection>(net_, std::move(stream), 1);
    }
    void close() override {
        if (std::exchange(point_->closed, true)) return;
        for (auto& stream : point_->arrived)
            net_->close(stream);
        point_->arrived.clear();
        if (point_->waiting) point_->process->post(std::exchange(point_->waiting, nullptr));
    }
    const std::string& address() const override { return address_; }

  private:
    NetFabric* net_;
    std::shared_ptr<ListenPoint> point_;
    std::string address_;
};

}  // namespace

NetFabric::NetFabric(World* world, NetProfile profile, uint64_t seed)
    : world_(world), profile_(profile), random_(seed, kStreamNet) {}

Duration NetFabric::delay() {
    auto low = static_cast<uint64_t>(profile_.delay.low.count());
    auto high = static_cast<uint64_t>(profile_.delay.high.count());
    return Duration(random_.between(low, std::max(low, high)));
}

bool NetFabric::is_cut(const Process* a, const Process* b) const {
    return cut_.contains(std::minmax(a->number(), b->number()));
}

void NetFabric::partition(const Process& a, const Process& b) {
    cut_.insert(std::minmax(a.number(), b.number()));
}

void NetFabric::heal() {
    cut_.clear();
    pump_all();
}

void NetFabric::pump_all() {
    std::erase_if(streams_, [](const auto& stream) { return stream.expired(); });
    for (const auto& weak : std::vector(streams_)) {
        auto stream = weak.lock();
        for (int pipe : {0, 1})
            pump_later(stream, pipe, world_->now());
    }
}

void NetFabric::pump_later(const std::shared_ptr<Stream>& stream, int pipe, Time time) {
    world_->at(time, stream->pipes[pipe].to, [this, stream, pipe] { pump(stream, pipe); });
}

void NetFabric::reset(const Process& a, const Process& b) {
    for (const auto& weak : std::vector(streams_)) {
        auto stream = weak.lock();
        if (stream == nullptr) continue;
        auto ends = std::minmax(stream->pipes[0].from->number(), stream->pipes[0].to->number());
        if (ends != std::minmax(a.number(), b.number())) continue;
        for (Pipe& pipe : stream->pipes)
            pipe.chunks.clear();
        close(stream);
    }
}

Result<std::shared_ptr<ListenPoint>> NetFabric::listen(Process* process, std::string& address) {
    size_t colon = address.rfind(':');
    if (colon == std::string::npos) {
        return fail(Code::invalid_argument, "{} is not host:port", address);
    }
    if (address.substr(colon) == ":0") {
        address = fmt::format("{}:{}", address.substr(0, colon), port_next_++);
    }
    auto& place = listeners_[address];
    if (place != nullptr && !place->closed) {
        return fail(Code::unavailable, "{} is in use by {}", address, place->process->name());
    }
    place = std::make_shared<ListenPoint>();
    place->process = process;
    return place;
}

void NetFabric::connect(Process* from, const std::string& address, Duration timeout,
                        ConnectHandler done) {
    auto it = listeners_.find(address);
    Process* to = it == listeners_.end() ? nullptr : it->second->process;
    auto shared = std::make_shared<ConnectHandler>(std::move(done));
    if (to != nullptr && is_cut(from, to)) {
        world_->at(world_->now() + timeout, from, [shared] { (*shared)(nullptr); });
        return;
    }
    Time answer = world_->now() + std::min(timeout, delay());
    world_->at(answer, from, [this, from, address, shared] {
        auto found = listeners_.find(address);
        if (found == listeners_.end() || found->second->closed ||
            !found->second->process->is_alive()) {
            return (*shared)(nullptr);
        }
        ListenPoint& point = *found->second;
        auto stream = std::make_shared<Stream>();
        stream->address = address;
        stream->pipes[0].from = stream->pipes[1].to = from;
        stream->pipes[0].to = stream->pipes[1].from = point.process;
        streams_.push_back(stream);
        point.arrived.push_back(stream);
        if (point.waiting) point.process->post(std::exchange(point.waiting, nullptr));
        (*shared)(std::move(stream));
    });
}

void NetFabric::send(const std::shared_ptr<Stream>& stream, int index, Buffer bytes) {
    Pipe& pipe = stream->pipes[index];
    Time arrives = world_->now() + delay();
    if (!pipe.chunks.empty()) arrives = std::max(arrives, pipe.chunks.back().arrives);
    world_->note(crc32c(bytes.bytes()));
    pipe.chunks.push_back({arrives, std::move(bytes)});
    pump_later(stream, index, arrives);
}

void NetFabric::pump(const std::shared_ptr<Stream>& stream, int index) {
    Pipe& pipe = stream->pipes[index];
    if (!pipe.reader) return;
    bool cut = is_cut(pipe.from, pipe.to);
    while (!cut && pipe.filled < pipe.into.size() && !pipe.chunks.empty()) {
        Pipe::Chunk& chunk = pipe.chunks.front();
        if (chunk.arrives > world_->now()) break;
        size_t count = std::min(pipe.into.size() - pipe.filled, chunk.bytes.size());
        std::memcpy(pipe.into.data() + pipe.filled, chunk.bytes.data(), count);
        pipe.filled += count;
        chunk.bytes = chunk.bytes.slice(count, chunk.bytes.size() - count);
        if (chunk.bytes.empty()) pipe.chunks.pop_front();
    }
    bool full = pipe.filled == pipe.into.size();
    bool over = pipe.ended && pipe.chunks.empty() && !cut;
    if (!full && !over) return;
    pipe.into = {};
    Pipe::Handler reader = std::exchange(pipe.reader, nullptr);
    reader(full ? Result<void>{} : gone(stream->address));
}

void NetFabric::close(const std::shared_ptr<Stream>& stream) {
    for (int index : {0, 1}) {
        Pipe& pipe = stream->pipes[index];
        pipe.ended = true;
        Time arrives = world_->now() + delay();
        if (!pipe.chunks.empty()) arrives = std::max(arrives, pipe.chunks.back().arrives);
        pump_later(stream, index, arrives);
    }
}

void NetFabric::drop(Process* process) {
    for (auto& [address, point] : listeners_) {
        if (point->process != process) continue;
        point->closed = true;
        point->arrived.clear();
        auto waiting = std::exchange(point->waiting, nullptr);
    }
    for (const auto& weak : std::vector(streams_)) {
        auto stream = weak.lock();
        if (stream == nullptr) continue;
        bool touched = false;
        for (Pipe& pipe : stream->pipes) {
            touched = touched || pipe.to == process;
            if (pipe.to != process) continue;
            pipe.chunks.clear();
            auto reader = std::exchange(pipe.reader, nullptr);
        }
        if (touched) close(stream);
    }
}

// ---- the seam ----

Task<Result<std::unique_ptr<runtime::Connection>>> Process::ProcessNet::connect(std::string address,
                                                                                Duration timeout) {
    NetFabric& net = process_->world().net();
    auto stream = co_await asio::async_initiate<const asio::use_awaitable_t<Executor>,
                                                void(std::shared_ptr<Stream>)>(
        [this, &net, &address, timeout](auto handler) {
            net.connect(process_, address, timeout, std::move(handler));
        },
        runtime::kUseTask);
    if (stream == nullptr) {
        co_return fail(Code::unavailable, "{} does not answer: is it running there?", address);
    }
    co_return std::make_unique<SimConnection>(&net, std::move(stream), 0);
}

Task<Result<std::unique_ptr<runtime::Listener>>> Process::ProcessNet::listen(std::string address) {
    NetFabric& net = process_->world().net();
    auto point = net.listen(process_, address);
    if (!point) co_return fail(std::move(point).error());
    co_return std::make_unique<SimListener>(&net, std::move(*point), address);
}

}  // namespace peplos::sim
