#include "peer/server.h"

#include <algorithm>
#include <deque>
#include <list>

#include "base/log.h"
#include "peer/link.h"
#include "peer/wakeups.h"

namespace peplos::peer {

using runtime::Task;

// One connection to a server.
class Session final : public Source {
  public:
    Session(Server& server, std::unique_ptr<runtime::Connection> connection)
        : server_(server),
          link_(server.env_, std::move(connection)),
          wakeups_(server.env_.executor, server.env_.clock, [this] { look_around(); }),
          handshake_end_(server.env_.clock.now() + limits::kPeerHandshakeTime) {
        wakeups_.arm(handshake_end_);
    }

    // Ends when the connection has ended and nothing of it runs any more.
    Task<void> run();
    // No more calls; ends when those under way are answered.
    void drain();
    void close(Error why) { link_.close(std::move(why)); }
    bool is_stranger() const { return !guest_; }
    NodeId guest() const { return guest_; }
    bool is_closed() const { return link_.is_closed(); }

  private:
    struct Answer {
        FrameHeader header;
        Message message;
        uint64_t bytes = 0;
    };

    // Source.
    void fill(Batch& batch) override;
    void written() override;

    Task<void> write();
    Task<void> serve();
    void take(Frame frame);
    void begin_call(Frame frame);
    Task<void> run_call(uint64_t turn, const Handler* handler, Frame frame);
    void refuse(const FrameHeader& request, Error why);
    void answer(const FrameHeader& request, Result<Message> outcome);
    void send(Answer answer);
    bool is_over_bounds() const {
        return calls_ >= server_.options_.calls_max || bytes_ >= server_.options_.bytes_max;
    }
    void end_when_drained();
    void look_around();

    Server& server_;
    Link link_;
    Wakeups wakeups_;
    Time handshake_end_;
    NodeId guest_;  // 0 until the handshake has passed
    Counters* counters_ = nullptr;

    // Calls that are not answered yet, and the bytes of their requests and of answers not written.
    uint32_t calls_ = 0;
    uint64_t bytes_ = 0;
    std::deque<Answer> answers_;
    uint32_t written_calls_ = 0;  // of the batch that is being written
    uint64_t written_bytes_ = 0;
    bool pong_is_due_ = false;
    bool is_paused_ = false;
    runtime::WaitList room_;
    // Handlers start by turns: the executor of a simulation runs tasks in any order.
    uint64_t turn_last_ = 0;
    uint64_t turn_next_ = 1;
    runtime::WaitList turns_;

    uint32_t running_ = 0;  // handlers and the writer
    runtime::WaitList ended_;
    bool draining_ = false;
    Time drain_end_;
    // When look_around() is due at the latest, and since when it has come in time.
    Time look_next_ = Time::max();
    Time awake_since_;
};

struct Server::Sessions {
    std::list<Session*> all;
};

// ---- Session ----

Task<void> Session::run() {
    auto agreed = co_await link_.receive_guest(server_.self_);
    if (!agreed || link_.is_closed()) {
        if (!agreed && agreed.error().code() != Code::unavailable) {
            LOG_WARN("a connection was refused from={} why=\"{}\"", link_.peer(),
                     agreed.error().text());
        }
        if (!agreed) link_.close(agreed.error());
        co_return;
    }
    server_.make_room_for(agreed->node);
    guest_ = agreed->node;
    counters_ = &server_.counters_[guest_];
    ++counters_->connects;
    link_.count_into(counters_);
    if (server_.stopping_) {
        link_.close(Error(Code::stopping, "the server is stopping"));
    } else {
        ++running_;
        server_.gate_.spawn(server_.env_.executor, write());
        co_await serve();
    }
    ++counters_->connections_lost;
    while (running_ != 0)
        co_await ended_.wait();
}

Task<void> Session::write() {
    co_await link_.write_loop(*this);
    --running_;
    ended_.wake_all();
}

Task<void> Session::serve() {
    wakeups_.arm(server_.env_.clock.now() + limits::kPeerIdleDeadAfter);
    while (true) {
        auto frame = link_.take();
        if (!frame) co_return;
        if (frame->has_value()) {
            take(std::move(**frame));
            is_paused_ = is_over_bounds();
            while (is_paused_ && is_over_bounds() && !link_.is_closed()) {
                wakeups_.arm(server_.env_.clock.now() + limits::kPeerPingAfter);
                co_await room_.wait();
            }
            is_paused_ = false;
            continue;
        }
        auto more = co_await link_.read_more();
        if (!more) co_return;
        wakeups_.arm(link_.last_received() + limits::kPeerPingAfter);
    }
}

void Session::take(Frame frame) {
    switch (frame.header.kind) {
        case FrameKind::request:
            return begin_call(std::move(frame));
        case FrameKind::ping:
            pong_is_due_ = true;
            return link_.wake_writer();
        default:
            link_.close(Error(Code::corrupt, "a frame that no channel sends"));
    }
}

void Session::begin_call(Frame frame) {
    ++counters_->calls;
    ++calls_;
    bytes_ += frame.message.body.size() + frame.header.payload_bytes;
    auto found = server_.handlers_.find(frame.header.method);
    if (found == server_.handlers_.end()) {
        return refuse(frame.header,
                      Error(Code::unsupported,
                            fmt::format("node {} knows no call {}: is it of an older version?",
                                        server_.self_.node, frame.header.method)));
    }
    if (draining_) {
        return refuse(frame.header, Error(Code::unavailable,
                                          fmt::format("node {} is stopping", server_.self_.node)));
    }
    ++running_;
    server_.gate_.spawn(server_.env_.executor,
                        run_call(++turn_last_, &found->second, std::move(frame)));
}

Task<void> Session::run_call(uint64_t turn, const Handler* handler, Frame frame) {
    while (turn != turn_next_)
        co_await turns_.wait();
    // The next one may start after this one has run up to where it first waits.
    ++turn_next_;
    turns_.wake_all();
    Message request = std::move(frame.message);
    auto outcome = co_await (*handler)(guest_, std::move(request));
    answer(frame.header, std::move(outcome));
    --running_;
    ended_.wake_all();
}

void Session::refuse(const FrameHeader& request, Error why) {
    ++counters_->calls_not_run;
    Answer out;
    out.header = {.kind = FrameKind::refused, .code = wire_of(why.code()), .id = request.id};
    Bytes text = bytes_of_text(error_text(why.message()));
    out.message.body.assign(text.begin(), text.end());
    bytes_ -= uint64_t{request.body_bytes} + request.payload_bytes;
    send(std::move(out));
}

void Session::answer(const FrameHeader& request, Result<Message> outcome) {
    bytes_ -= uint64_t{request.body_bytes} + request.payload_bytes;
    Answer out;
    out.header.id = request.id;
    if (outcome) {
        out.header.kind = FrameKind::answer;
        out.message = std::move(*outcome);
    } else {
        ++counters_->calls_failed;
        out.header.kind = FrameKind::error;
        out.header.code = wire_of(outcome.error().code());
        Bytes text = bytes_of_text(error_text(outcome.error().message()));
        out.message.body.assign(text.begin(), text.end());
    }
    send(std::move(out));
}

void Session::send(Answer answer) {
    if (link_.is_closed()) {
        --calls_;
        return;
    }
    answer.bytes = answer.message.body.size() + answer.message.payload_bytes();
    bytes_ += answer.bytes;
    answers_.push_back(std::move(answer));
    link_.wake_writer();
}

void Session::fill(Batch& batch) {
    if (std::exchange(pong_is_due_, false))
        batch.add({.version = link_.version(), .kind = FrameKind::pong}, Bytes{});
    while (!answers_.empty() && !batch.is_full()) {
        Answer& answer = answers_.front();
        answer.header.version = link_.version();
        ++written_calls_;
        written_bytes_ += answer.bytes;
        batch.add(answer.header, std::move(answer.message));
        answers_.pop_front();
    }
}

void Session::written() {
    calls_ -= std::exchange(written_calls_, 0);
    bytes_ -= std::exchange(written_bytes_, 0);
    room_.wake_all();
    end_when_drained();
}

void Session::end_when_drained() {
    if (draining_ && calls_ == 0) link_.close(Error(Code::stopping, "the server is stopping"));
    if (link_.is_closed()) room_.wake_all();
}

void Session::drain() {
    draining_ = true;
    drain_end_ = server_.env_.clock.now() + limits::kPeerDeadAfter;
    wakeups_.arm(drain_end_);
    if (is_stranger()) link_.close(Error(Code::stopping, "the server is stopping"));
    end_when_drained();
}

void Session::look_around() {
    if (link_.is_closed()) return room_.wake_all();
    Time now = server_.env_.clock.now();
    if (is_stranger()) {
        if (now < handshake_end_) return wakeups_.arm(handshake_end_);
        return link_.close(Error(Code::unavailable, "the handshake did not end in time"));
    }
    // A guest that does not take the last answers does not hold up a stop.
    if (draining_ && now >= drain_end_ && calls_ == answers_.size() + written_calls_)
        link_.close(Error(Code::stopping, "the server is stopping"));
    // The caller's ping may be on its way behind much else, or nobody reads now.
    bool owes_sign = is_paused_ || link_.last_received() > link_.last_sent();
    if (owes_sign && now - link_.last_sent() >= limits::kPeerPingAfter) {
        pong_is_due_ = true;
        link_.wake_writer();
    }
    // This process itself stood still: what came meanwhile is not read yet.
    if (look_next_ < now && now - look_next_ >= limits::kPeerPingAfter) awake_since_ = now;
    Time dead_at = std::max(link_.last_received(), awake_since_) + 2 * limits::kPeerIdleDeadAfter;
    if (!is_paused_ && now >= dead_at)
        link_.close(Error(Code::unavailable, "no sign of life from the caller"));
    if (link_.is_closed()) return room_.wake_all();
    bool is_often = owes_sign || draining_;
    look_next_ = is_often ? now + limits::kPeerPingAfter : std::max(dead_at, now);
    wakeups_.arm(look_next_);
}

// ---- Server ----

Server::Server(runtime::Env& env, Self self, ServerOptions options)
    : env_(env), self_(self), options_(options), sessions_(std::make_unique<Sessions>()) {}
Server::~Server() = default;

void Server::handle(Method method, Handler handler) {
    CHECK(!started_, "handlers are named before the server starts");
    bool is_new = handlers_.emplace(method, std::move(handler)).second;
    CHECK(is_new, "method {} has a handler", method);
}

Task<Result<void>> Server::start(std::string address) {
    CHECK(!started_ && !stopping_);
    CO_TRY_ASSIGN(listener_, co_await env_.net.listen(std::move(address)));
    if (stopping_) co_return fail(Code::stopping, "the server is stopping");
    started_ = true;
    address_ = listener_->address();
    gate_.spawn(env_.executor, accept_loop());
    co_return Result<void>{};
}

Task<void> Server::accept_loop() {
    while (!stopping_) {
        auto connection = co_await listener_->accept();
        if (stopping_) break;
        if (!connection) {
            LOG_WARN("a connection was not accepted why=\"{}\"", connection.error().text());
            // Out of descriptors, for instance: others end meanwhile.
            co_await env_.clock.sleep_for(limits::kPeerBackoffMin);
            continue;
        }
        auto is_stranger = [](const Session* session) { return session->is_stranger(); };
        auto strangers = std::ranges::count_if(sessions_->all, is_stranger);
        if (sessions_->all.size() >= limits::kPeerConnectionsMax ||
            strangers >= limits::kPeerStrangersMax) {
            LOG_WARN("too many connections from={}", (*connection)->peer());
            continue;
        }
        gate_.spawn(env_.executor, serve(std::move(*connection)));
    }
}

Task<void> Server::serve(std::unique_ptr<runtime::Connection> connection) {
    Session session(*this, std::move(connection));
    auto place = sessions_->all.insert(sessions_->all.end(), &session);
    co_await session.run();
    sessions_->all.erase(place);
}

// A node that comes again and again has lost its old connections, whether we know it or not.
void Server::make_room_for(NodeId node) {
    auto is_of_node = [node](const Session* session) {
        return session->guest() == node && !session->is_closed();
    };
    if (std::ranges::count_if(sessions_->all, is_of_node) < limits::kPeerConnectionsPerNodeMax)
        return;
    auto oldest = std::ranges::find_if(sessions_->all, is_of_node);
    (*oldest)->close(Error(Code::unavailable, "the caller has newer connections"));
}

size_t Server::connection_count() const {
    return static_cast<size_t>(std::ranges::count_if(sessions_->all, [](const Session* session) {
        return !session->is_stranger() && !session->is_closed();
    }));
}

Task<void> Server::stop() {
    stopping_ = true;
    if (listener_ != nullptr) listener_->close();
    for (Session* session : sessions_->all)
        session->drain();
    co_await gate_.close();
}

}  // namespace peplos::peer
