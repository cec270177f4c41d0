#include "peer/channel.h"

#include <algorithm>
#include <deque>

#include "base/log.h"
#include "peer/link.h"
#include "peer/wakeups.h"
#include "runtime/alarm.h"
#include "runtime/gate.h"

namespace peplos::peer {
namespace {

using runtime::Connection;
using runtime::Task;

// A connection that breaks sooner than this counts as a failed attempt: the next one waits.
constexpr Duration kStableAfter = std::chrono::seconds(1);
constexpr uint32_t kSlotBits = 16;
static_assert(2 * limits::kPeerCallsMax <= (1u << kSlotBits));

int64_t milliseconds_of(Duration duration) {
    return std::chrono::duration_cast<std::chrono::milliseconds>(duration).count();
}

// An attempt to connect; whoever waits for it may give it up, and it ends by itself.
struct Attempt {
    runtime::Event done;
    std::optional<Result<std::unique_ptr<Connection>>> outcome;
};

Task<void> attempt_to_connect(runtime::Net& net, std::string address,
                              std::shared_ptr<Attempt> attempt) {
    attempt->outcome = co_await net.connect(std::move(address), limits::kPeerConnectTime);
    attempt->done.set();
}

}  // namespace

// States of a call: outside_ until there is room, waiting in queue_ (both certainly not executed),
// sent (in a slot only), ended. It has a slot from begin() to end(), and ends once:
//   outside -> waiting let_in(), when others ended
//   waiting -> sent    fill(), when it is handed to the connection
//   outside, waiting -> ended   its deadline, a failed attempt, stop()
//   sent    -> ended   its answer, its deadline, the loss of the connection, stop()
class Channel::Impl final : public Source {
  public:
    Impl(runtime::Env& env, Self self, NodeId node, ChannelOptions options)
        : env_(env),
          self_(self),
          node_(node),
          options_(options),
          wakeups_(env.executor, env.clock, [this] { look_around(); }) {
        CHECK(node && node != self.node, "a channel leads to another node");
        CHECK(options.calls_max <= limits::kPeerCallsMax);
    }

    Task<Result<Message>> call(Method method, Message request, Duration timeout, Lane lane);
    Task<void> stop();

    void set_addresses(std::vector<std::string> addresses) {
        addresses.resize(std::min<size_t>(addresses.size(), limits::kPeerAddressesMax));
        addresses_ = std::move(addresses);
    }
    bool is_connected() const { return established_ && !link_->is_closed(); }
    uint16_t version() const { return agreement_.version; }
    NodeBoot node_boot() const { return agreement_.boot; }
    const std::string& last_error() const { return last_error_; }
    NodeId node() const { return node_; }
    const Counters& counters() const { return counters_; }

  private:
    struct Call {
        FrameHeader header;
        Message request;
        uint64_t bytes = 0;
        Time deadline;
        bool is_sent = false;
        runtime::Promise<Result<Message>> answer;
    };
    struct Slot {
        Call* call = nullptr;
        // Of the call that is or was here last, so that a late answer finds nobody.
        uint64_t id = 0;
    };

    // Source.
    void fill(Batch& batch) override;
    void written() override {}

    Result<void> check(const Message& request, bool is_let_in) const;
    bool has_room(const Call& call) const;
    void let_in();
    void begin(Call& call);
    void end(Call& call, Result<Message> outcome);
    Call* find(uint64_t id);

    // The life of the connection.
    Task<void> run();
    Task<Result<void>> connect();
    Task<Result<void>> connect_to(std::string address);
    Task<Error> serve_connection();
    Task<void> write(std::shared_ptr<Link> link, std::shared_ptr<runtime::Event> ended);
    Result<void> take_frames();
    void take_answer(Frame frame);
    Task<void> back_off();
    // Ends the calls that wait, or those that were sent.
    void end_waiting(const Error& why);
    void end_sent(const Error& why);

    // What time asks for: deadlines, signs of life.
    void look_around();
    Time end_what_is_late(Time now);
    Time look_for_life(Time now);

    runtime::Env& env_;
    Self self_;
    NodeId node_;
    ChannelOptions options_;
    std::vector<std::string> addresses_;
    size_t address_index_ = 0;
    Counters counters_;

    std::vector<Slot> slots_;
    std::vector<uint32_t> slots_free_;
    uint64_t call_last_ = 0;
    std::deque<Call*> outside_;
    std::deque<Call*> queue_;
    size_t calls_ = 0;
    uint64_t call_bytes_ = 0;
    size_t sent_ = 0;
    // When the first of the calls that are sent now was sent.
    Time busy_since_;

    std::shared_ptr<Link> link_;  // null between connections
    bool established_ = false;    // the handshake has passed
    Agreement agreement_;
    Time handshake_end_;
    bool ping_is_due_ = false;
    Time pinged_;
    // When look_around() is due at the latest, and since when it has come in time.
    Time look_next_ = Time::max();
    Time awake_since_;
    std::string last_error_;
    uint32_t failures_ = 0;
    std::shared_ptr<Attempt> attempt_;

    bool running_ = false;
    bool stopping_ = false;
    runtime::WaitList work_;
    runtime::Alarm pause_;
    runtime::Gate gate_;
    Wakeups wakeups_;
};

// ---- calls ----

Result<void> Channel::Impl::check(const Message& request, bool is_let_in) const {
    if (stopping_) return fail(Code::stopping, "the channel to node {} is stopping", node_);
    for (const Buffer& buffer : request.payload)
        CHECK(!buffer.empty() && buffer.size() % kBlockBytes == 0, "payload is whole blocks");
    uint64_t payload_bytes = request.payload_bytes();
    if (request.body.size() > limits::kPeerBodyBytesMax ||
        payload_bytes > limits::kPeerPayloadBytesMax) {
        return fail(Code::invalid_argument,
                    "a call of {} + {} bytes to node {}: at most {} + {} are sent at once",
                    request.body.size(), payload_bytes, node_, limits::kPeerBodyBytesMax,
                    limits::kPeerPayloadBytesMax);
    }
    if (!is_let_in && outside_.size() >= options_.calls_max) {
        return fail(Code::busy,
                    "{} calls to node {} wait for {} that are under way: repeat it later",
                    outside_.size(), node_, calls_);
    }
    return {};
}

// One call of any size is always let in.
bool Channel::Impl::has_room(const Call& call) const {
    return calls_ < options_.calls_max &&
           (calls_ == 0 || call_bytes_ + call.bytes <= options_.bytes_max);
}

void Channel::Impl::let_in() {
    while (!stopping_ && !outside_.empty() && has_room(*outside_.front())) {
        Call* call = outside_.front();
        outside_.pop_front();
        begin(*call);
    }
}

Task<Result<Message>> Channel::Impl::call(Method method, Message request, Duration timeout,
                                          Lane lane) {
    ++counters_.calls;
    const bool is_let_in = lane == Lane::control && calls_ < size_t{2} * options_.calls_max;
    auto checked = check(request, is_let_in);
    if (!checked) {
        ++counters_.calls_not_run;
        co_return fail(std::move(checked).error());
    }
    auto pass = gate_.enter();
    CHECK(pass.has_value(), "the gate closes with stopping_");
    Call call;
    call.header.kind = FrameKind::request;
    call.header.method = method;
    call.bytes = request.body.size() + request.payload_bytes();
    call.request = std::move(request);
    call.deadline = env_.clock.now() + timeout;
    wakeups_.arm(call.deadline);
    if (is_let_in) {
        begin(call);
    } else {
        outside_.push_back(&call);
        let_in();
    }
    co_return co_await call.answer.take();
}

void Channel::Impl::begin(Call& call) {
    if (slots_free_.empty()) {
        slots_free_.push_back(static_cast<uint32_t>(slots_.size()));
        slots_.emplace_back();
    }
    uint32_t slot = slots_free_.back();
    slots_free_.pop_back();
    call.header.id = (++call_last_ << kSlotBits) | slot;
    slots_[slot] = {&call, call.header.id};
    ++calls_;
    call_bytes_ += call.bytes;
    queue_.push_back(&call);
    if (!std::exchange(running_, true)) gate_.spawn(env_.executor, run());
    work_.wake_all();
    if (is_connected()) link_->wake_writer();
}

void Channel::Impl::end(Call& call, Result<Message> outcome) {
    auto slot = static_cast<uint32_t>(call.header.id & ((1u << kSlotBits) - 1));
    CHECK(slots_[slot].call == &call);
    slots_[slot].call = nullptr;
    slots_free_.push_back(slot);
    --calls_;
    call_bytes_ -= call.bytes;
    if (call.is_sent) --sent_;
    call.answer.set(std::move(outcome));
    let_in();
}

Channel::Impl::Call* Channel::Impl::find(uint64_t id) {
    uint64_t slot = id & ((1u << kSlotBits) - 1);
    if (slot >= slots_.size() || slots_[slot].id != id) return nullptr;
    return slots_[slot].call;
}

void Channel::Impl::fill(Batch& batch) {
    Time now = env_.clock.now();
    if (std::exchange(ping_is_due_, false)) {
        batch.add({.version = link_->version(), .kind = FrameKind::ping}, Bytes{});
        pinged_ = now;
    }
    while (!queue_.empty() && !batch.is_full()) {
        Call* call = queue_.front();
        queue_.pop_front();
        call->is_sent = true;
        if (++sent_ == 1) {
            busy_since_ = now;
            wakeups_.arm(now + limits::kPeerPingAfter);
        }
        call->header.version = link_->version();
        batch.add(call->header, std::move(call->request));
    }
}

void Channel::Impl::end_waiting(const Error& why) {
    const Error error(Code::unavailable,
                      fmt::format("node {} is not reached: {}", node_, why.message()));
    for (Call* call : std::exchange(outside_, {})) {
        ++counters_.calls_not_run;
        call->answer.set(fail(error));
    }
    for (Call* call : std::exchange(queue_, {})) {
        ++counters_.calls_not_run;
        end(*call, fail(error));
    }
}

void Channel::Impl::end_sent(const Error& why) {
    // By index: the end of one lets another in, which may have a new slot.
    for (size_t i = 0; i < slots_.size(); ++i) {
        Call* call = slots_[i].call;
        if (call == nullptr || !call->is_sent) continue;
        ++counters_.calls_unknown;
        end(*call, fail(Code::outcome_unknown,
                        "the connection to node {} was lost while a call was under way: {}", node_,
                        why.message()));
    }
}

// ---- the connection ----

Task<void> Channel::Impl::run() {
    while (!stopping_) {
        if (queue_.empty()) {
            co_await work_.wait();
            continue;
        }
        auto connected = co_await connect();
        if (stopping_) break;
        if (!connected) {
            ++counters_.connects_failed;
            last_error_ = connected.error().message();
            link_ = nullptr;
            end_waiting(connected.error());
            co_await back_off();
            continue;
        }
        ++counters_.connects;
        last_error_.clear();
        Time since = env_.clock.now();
        Error why = co_await serve_connection();
        ++counters_.connections_lost;
        LOG_DEBUG("connection lost node={} why=\"{}\"", node_, why.text());
        last_error_ = why.message();
        if (env_.clock.now() - since >= kStableAfter) {
            failures_ = 0;
        } else if (!stopping_) {
            co_await back_off();
        }
    }
    link_ = nullptr;
}

Task<void> Channel::Impl::back_off() {
    Duration pause = limits::kPeerBackoffMin * (int64_t{1} << std::min(failures_, 10u));
    ++failures_;
    pause = std::min(pause, limits::kPeerBackoffMax);
    // Between half of it and all of it, so that many who lost the same node do not come at once.
    auto half = static_cast<uint64_t>(pause.count() / 2);
    Duration jittered(static_cast<int64_t>(half + env_.rng.below(half + 1)));
    co_await pause_.wait(env_.clock, jittered);
}

Task<Result<void>> Channel::Impl::connect() {
    std::vector<std::string> addresses = addresses_;
    if (addresses.empty()) co_return fail(Code::unavailable, "no address of it is known");
    std::optional<Error> why;
    for (size_t i = 0; i < addresses.size() && !stopping_; ++i) {
        // The one that worked last first.
        std::string address = addresses[address_index_ % addresses.size()];
        auto connected = co_await connect_to(std::move(address));
        if (connected) co_return connected;
        ++address_index_;
        if (!why.has_value()) why = connected.error();
    }
    if (!why.has_value()) co_return fail(Code::stopping, "the channel is stopping");
    co_return fail(std::move(*why));
}

Task<Result<void>> Channel::Impl::connect_to(std::string address) {
    auto attempt = std::make_shared<Attempt>();
    attempt_ = attempt;
    runtime::spawn(env_.executor, attempt_to_connect(env_.net, std::move(address), attempt));
    co_await attempt->done.wait();
    attempt_ = nullptr;
    if (stopping_) co_return fail(Code::stopping, "the channel is stopping");
    if (!*attempt->outcome) co_return fail(std::move(*attempt->outcome).error());
    link_ = std::make_shared<Link>(env_, std::move(**attempt->outcome));
    link_->count_into(&counters_);
    handshake_end_ = env_.clock.now() + limits::kPeerHandshakeTime;
    wakeups_.arm(handshake_end_);
    // Named, because link_ may be another one after the wait.
    std::shared_ptr<Link> link = link_;
    auto agreed = co_await link->introduce(self_, node_);
    if (stopping_ || !agreed) {
        Error error = agreed ? Error(Code::stopping, "the channel is stopping") : agreed.error();
        link->close(error);
        link_ = nullptr;
        co_return fail(std::move(error));
    }
    agreement_ = *agreed;
    co_return Result<void>{};
}

Task<void> Channel::Impl::write(std::shared_ptr<Link> link, std::shared_ptr<runtime::Event> ended) {
    co_await link->write_loop(*this);
    ended->set();
}

Task<Error> Channel::Impl::serve_connection() {
    std::shared_ptr<Link> link = link_;
    established_ = true;
    busy_since_ = env_.clock.now();
    wakeups_.arm(busy_since_ + limits::kPeerPingAfter);
    auto writer_ended = std::make_shared<runtime::Event>();
    gate_.spawn(env_.executor, write(link, writer_ended));
    while (true) {
        auto taken = take_frames();
        if (!taken) break;
        auto more = co_await link->read_more();
        if (!more) break;
    }
    established_ = false;
    co_await writer_ended->wait();
    link_ = nullptr;
    ping_is_due_ = false;
    end_sent(link->why());
    co_return link->why();
}

Result<void> Channel::Impl::take_frames() {
    while (true) {
        TRY_ASSIGN(std::optional<Frame> frame, link_->take());
        if (!frame.has_value()) return {};
        switch (frame->header.kind) {
            case FrameKind::answer:
            case FrameKind::error:
            case FrameKind::refused:
                take_answer(std::move(*frame));
                break;
            case FrameKind::pong:
                break;
            default:
                link_->close(Error(Code::corrupt, "a frame that no server sends"));
        }
    }
}

void Channel::Impl::take_answer(Frame frame) {
    Call* call = find(frame.header.id);
    // Its caller was told that the outcome is unknown.
    if (call == nullptr) return;
    if (!call->is_sent) {
        link_->close(Error(Code::corrupt, "an answer to a call that was not sent"));
        return;
    }
    if (frame.header.kind == FrameKind::answer) return end(*call, std::move(frame.message));
    Error error = error_of(frame.header.code, frame.message.body);
    ++(frame.header.kind == FrameKind::error ? counters_.calls_failed : counters_.calls_not_run);
    end(*call, fail(std::move(error)));
}

// ---- time ----

void Channel::Impl::look_around() {
    if (stopping_) return;
    Time now = env_.clock.now();
    Time next = end_what_is_late(now);
    next = std::min(next, look_for_life(now));
    look_next_ = next;
    if (next != Time::max()) wakeups_.arm(next);
}

Time Channel::Impl::end_what_is_late(Time now) {
    Time next = Time::max();
    std::erase_if(outside_, [this, now, &next](Call* call) {
        if (call->deadline > now) {
            next = std::min(next, call->deadline);
            return false;
        }
        ++counters_.calls_not_run;
        call->answer.set(fail(Code::busy,
                              "{} calls with {} bytes to node {} are under way, and none "
                              "made room in time: repeat it later",
                              calls_, call_bytes_, node_));
        return true;
    });
    let_in();
    for (size_t i = 0; i < slots_.size(); ++i) {
        Call* call = slots_[i].call;
        if (call == nullptr) continue;
        if (call->deadline > now) {
            next = std::min(next, call->deadline);
            continue;
        }
        if (call->is_sent) {
            ++counters_.calls_unknown;
            end(*call, fail(Code::outcome_unknown, "node {} did not answer in time", node_));
            continue;
        }
        std::erase(queue_, call);
        ++counters_.calls_not_run;
        end(*call, fail(Code::unavailable, "node {} was not reached in time{}{}", node_,
                        last_error_.empty() ? "" : ": ", last_error_));
    }
    return next;
}

// Whoever reads answers a ping at once, and whoever cannot read says so by pongs: so silence means
// that the other end, or the way to it, is dead.
Time Channel::Impl::look_for_life(Time now) {
    if (link_ == nullptr || link_->is_closed()) return Time::max();
    if (!established_) {
        if (now < handshake_end_) return handshake_end_;
        link_->close(
            Error(Code::unavailable,
                  fmt::format("{} did not end the handshake within {} "
                              "ms",
                              link_->peer(), milliseconds_of(limits::kPeerHandshakeTime))));
        return Time::max();
    }
    bool is_busy = sent_ != 0;
    Duration ping_after = is_busy ? limits::kPeerPingAfter : limits::kPeerIdlePingAfter;
    Duration dead_after = is_busy ? limits::kPeerDeadAfter : limits::kPeerIdleDeadAfter;
    // This process itself stood still: what came meanwhile is not read yet.
    if (look_next_ < now && now - look_next_ >= limits::kPeerPingAfter) awake_since_ = now;
    Time heard = std::max(link_->last_received(), awake_since_);
    if (is_busy) heard = std::max(heard, busy_since_);
    if (now - heard >= dead_after) {
        link_->close(Error(Code::unavailable,
                           fmt::format("no sign of life for {} ms", milliseconds_of(now - heard))));
        return Time::max();
    }
    // The other end wants to hear something, too, while it sends a long answer.
    Time said = std::max(link_->last_sent(), pinged_);
    Time ping_next =
        std::min(std::max(heard, pinged_) + ping_after, said + limits::kPeerIdlePingAfter);
    if (ping_next <= now) {
        ping_is_due_ = true;
        link_->wake_writer();
        ping_next = now + ping_after;
    }
    return std::min(ping_next, heard + dead_after);
}

Task<void> Channel::Impl::stop() {
    stopping_ = true;
    const Error error(Code::stopping, fmt::format("the channel to node {} is stopping", node_));
    for (Call* call : std::exchange(outside_, {}))
        call->answer.set(fail(error));
    queue_.clear();
    for (Slot& slot : slots_) {
        if (slot.call != nullptr) end(*slot.call, fail(error));
    }
    if (link_ != nullptr) link_->close(Error(Code::stopping, "the channel is stopping"));
    if (attempt_ != nullptr) attempt_->done.set();
    work_.wake_all();
    pause_.ring();
    co_await gate_.close();
}

// ---- the interface ----

Channel::Channel(runtime::Env& env, Self self, NodeId node, ChannelOptions options)
    : impl_(std::make_unique<Impl>(env, self, node, options)) {}
Channel::~Channel() = default;

void Channel::set_addresses(std::vector<std::string> addresses) {
    impl_->set_addresses(std::move(addresses));
}
Task<Result<Message>> Channel::call(Method method, Message request, Duration timeout, Lane lane) {
    return impl_->call(method, std::move(request), timeout, lane);
}
bool Channel::is_connected() const {
    return impl_->is_connected();
}
uint16_t Channel::version() const {
    return impl_->version();
}
NodeBoot Channel::node_boot() const {
    return impl_->node_boot();
}
const std::string& Channel::last_error() const {
    return impl_->last_error();
}
NodeId Channel::node() const {
    return impl_->node();
}
const Counters& Channel::counters() const {
    return impl_->counters();
}
Task<void> Channel::stop() {
    return impl_->stop();
}

Channels::Channels(runtime::Env& env, Self self, ChannelOptions options)
    : env_(env), self_(self), options_(options) {}
Channels::~Channels() = default;

void Channels::set_address(NodeId node, std::vector<std::string> addresses) {
    to(node).set_addresses(std::move(addresses));
}

Channel& Channels::to(NodeId node) {
    auto& channel = channels_[node];
    if (channel == nullptr) channel = std::make_unique<Channel>(env_, self_, node, options_);
    return *channel;
}

Task<void> Channels::stop() {
    stopping_ = true;
    for (auto& [node, channel] : channels_)
        co_await channel->stop();
}

}  // namespace peplos::peer
