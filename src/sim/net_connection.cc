#include "sim/net.h"
#include "sim/world.h"

// The Net seam of a simulated process.
namespace peplos::sim {
namespace {

// A write is cut into pieces of at most this much, each with a delay of its own.
constexpr size_t kPieceBytes = 64 * kKiB;

Result<void> gone(const std::string& address) {
    return fail(Code::unavailable, "the connection to {} was closed", address);
}

// One end of a stream. `side` 0 connected, 1 accepted.
class SimConnection final : public runtime::Connection {
  public:
    SimConnection(NetFabric* net, std::shared_ptr<Stream> stream, int side)
        : net_(net),
          stream_(std::move(stream)),
          side_(side),
          peer_(stream_->address),
          identity_(net->identity_of(*stream_->pipes[side].to)) {}
    SimConnection(const SimConnection&) = delete;
    SimConnection& operator=(const SimConnection&) = delete;
    ~SimConnection() override { close(); }

    Task<Result<void>> read(Buffer into) override { return start_read(std::move(into), true); }
    Task<Result<size_t>> read_some(Buffer into) override {
        std::shared_ptr<Stream> stream = stream_;
        int side = side_;
        CO_TRY(co_await start_read(std::move(into), false));
        co_return stream->pipes[1 - side].filled;
    }
    Task<Result<void>> write(std::vector<Buffer> from) override {
        co_await runtime::yield();
        for (const Buffer& buffer : from) {
            for (size_t done = 0; done < buffer.size(); done += kPieceBytes) {
                Pipe& pipe = stream_->pipes[side_];
                while (!is_over() && !net_->has_room(pipe))
                    co_await wait_for_room();
                if (is_over()) co_return gone(peer_);
                size_t count = std::min(kPieceBytes, buffer.size() - done);
                net_->send(stream_, side_, Buffer::copy_of(buffer.bytes().subspan(done, count)));
            }
        }
        co_return is_over() ? gone(peer_) : Result<void>{};
    }
    void close() override {
        // A process that is dead left its streams when it died.
        bool is_alive = stream_->pipes[side_].from->is_alive();
        if (!std::exchange(closed_, true) && is_alive) net_->close(stream_, side_);
    }
    const std::string& peer() const override { return peer_; }
    const std::string& identity() const override { return identity_; }

  private:
    bool is_over() const { return closed_ || stream_->pipes[side_].is_shut; }
    Task<Result<void>> start_read(Buffer into, bool wants_all) {
        Pipe& pipe = stream_->pipes[1 - side_];
        CHECK(!pipe.reader && pipe.into.empty(), "one reader per connection");
        CHECK(!into.empty());
        pipe.wants_all = wants_all;
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
    Task<void> wait_for_room() {
        return asio::async_initiate<const asio::use_awaitable_t<Executor>, void()>(
            [this](auto handler) {
                Pipe& pipe = stream_->pipes[side_];
                CHECK(!pipe.writer, "one writer per connection");
                pipe.writer = std::move(handler);
            },
            runtime::kUseTask);
    }

    NetFabric* net_;
    std::shared_ptr<Stream> stream_;
    int side_;
    bool closed_ = false;
    std::string peer_;
    std::string identity_;
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
            net_->close(stream, 1);
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
