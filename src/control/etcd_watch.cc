#include "control/etcd_watch.h"

#include "base/log.h"

namespace peplos::control {
namespace {

using etcdserverpb::WatchRequest;
using etcdserverpb::WatchResponse;

constexpr const char* kWatch = "/etcdserverpb.Watch/Watch";
constexpr Duration kPause = std::chrono::milliseconds(50);
// How long a reader waits in silence for a store that is away.
constexpr Duration kOutOfReach = std::chrono::seconds(5);

Error fell_behind(const std::string& prefix, std::string_view why) {
    return Error(Code::conflict,
                 fmt::format("a watch of '{}' fell behind: {}; list and watch anew", prefix, why));
}

}  // namespace

EtcdWatch::EtcdWatch(EtcdSession& session, std::string prefix, Revision from)
    : session_(session),
      prefix_(std::move(prefix)),
      next_(static_cast<int64_t>(std::min<uint64_t>(from.value, INT64_MAX))),
      reached_(std::chrono::steady_clock::now()) {}

Task<void> EtcdWatch::pump() {
    auto self = shared_from_this();
    while (!closed_ && !ended_) {
        Result<void> followed = co_await follow();
        stream_.reset();
        parts_.clear();
        parts_bytes_ = 0;
        if (closed_ || ended_) co_return;
        Code code = followed.error().code();
        bool passes = code == Code::unavailable || code == Code::outcome_unknown;
        if (!passes) {
            end(followed.error());
            co_return;
        }
        if (!is_open_ || std::chrono::steady_clock::now() - reached_ >= kOutOfReach) {
            out_of_reach_.emplace(Code::unavailable, followed.error().message());
            changed_.wake_all();
        }
        co_await session_.link().sleep(kPause);
    }
}

Task<Result<void>> EtcdWatch::follow() {
    CO_TRY(co_await session_.settle_identity());
    if (generation_ == Generation{}) generation_ = session_.generation();
    if (generation_ != session_.generation()) {
        co_return fail(fell_behind(prefix_, "the control store was put back from a backup"));
    }
    CO_TRY_ASSIGN(size_t endpoint, co_await session_.choose());
    CO_TRY_ASSIGN(stream_, co_await session_.link().open(endpoint, kWatch));
    if (closed_) stream_->cancel();
    std::shared_ptr<EtcdStream> stream = stream_;
    Result<void> followed = co_await receive(*stream);
    EtcdReply reply = co_await stream->finish();
    if (!followed) co_return followed;
    session_.doubt(endpoint);
    co_return fail(Code::unavailable, "the control store does not answer: {}", reply.message);
}

Task<Result<void>> EtcdWatch::receive(EtcdStream& stream) {
    WatchRequest request;
    etcdserverpb::WatchCreateRequest* create = request.mutable_create_request();
    std::string begin = session_.layout().key_of(prefix_);
    create->set_range_end(etcd::end_of_prefix(begin));
    create->set_key(std::move(begin));
    if (next_ > 0) create->set_start_revision(std::max<int64_t>(1, next_ - 1));
    create->set_progress_notify(true);
    create->set_fragment(true);
    progress_ = 0;
    if (!co_await stream.write(request)) co_return Result<void>();
    WatchResponse response;
    while (co_await stream.read(response)) {
        if (closed_) co_return Result<void>();
        CO_TRY(take(response));
    }
    co_return Result<void>();
}

Result<void> EtcdWatch::take(WatchResponse& response) {
    if (!session_.is_known(response.header().cluster_id())) {
        return fail(Code::unavailable, "another etcd answers than before");
    }
    reached_ = std::chrono::steady_clock::now();
    out_of_reach_.reset();
    if (response.canceled()) {
        if (response.compact_revision() > 0) {
            return fail(
                fell_behind(prefix_, fmt::format("etcd has forgotten what was before revision {}",
                                                 response.compact_revision())));
        }
        return fail(Code::unavailable, "etcd ends the watch: {}", response.cancel_reason());
    }
    if (response.created()) {
        if (next_ == 0) next_ = response.header().revision() + 1;
        is_open_ = true;
        changed_.wake_all();
        return {};
    }
    if (response.events_size() == 0 && !response.fragment() && parts_.empty()) {
        // Of two notices in a row the earlier one's revision is past doubt: some etcds send a
        // notice before the events that it covers.
        next_ = std::max(next_, progress_ + 1);
        progress_ = response.header().revision();
        return {};
    }
    for (mvccpb::Event& event : *response.mutable_events()) {
        parts_bytes_ += event.kv().key().size() + event.kv().value().size() + sizeof(Event);
        parts_.push_back(std::move(event));
    }
    if (parts_bytes_ + events_bytes_ > limits::kStoreHistoryBytesMax) {
        return fail(fell_behind(prefix_, "too many bytes wait"));
    }
    if (response.fragment()) return {};
    return take_events();
}

Result<void> EtcdWatch::take_events() {
    int64_t newest = next_ - 1;
    for (mvccpb::Event& part : parts_) {
        int64_t revision = part.kv().mod_revision();
        if (revision < next_) continue;
        if (revision < newest) return fail(Code::corrupt, "etcd sends changes out of order");
        newest = revision;
        Event& event = events_.emplace_back();
        if (part.type() == mvccpb::Event::PUT) {
            TRY_ASSIGN(event.entry, session_.layout().entry_of(part.kv()));
        } else {
            const std::string& data = session_.layout().data_prefix();
            if (!part.kv().key().starts_with(data)) {
                return fail(Code::corrupt, "etcd sends a change of a key nobody asked for");
            }
            event.kind = Event::Kind::removed;
            event.entry.key = part.kv().key().substr(data.size());
            event.entry.mod_revision = Revision(static_cast<uint64_t>(revision));
        }
        events_bytes_ += event.entry.key.size() + event.entry.value.size() + sizeof(Event);
    }
    parts_.clear();
    parts_bytes_ = 0;
    next_ = newest + 1;
    if (events_.size() > limits::kStoreHistoryEventsMax) {
        return fail(fell_behind(prefix_, fmt::format("{} changes wait", events_.size())));
    }
    changed_.wake_all();
    return {};
}

Task<Result<void>> EtcdWatch::opened() {
    while (!is_open_ && !ended_ && !out_of_reach_)
        co_await changed_.wait();
    if (ended_) co_return fail(*ended_);
    if (is_open_) co_return Result<void>();
    co_return fail(*out_of_reach_);
}

Task<Result<std::vector<Event>>> EtcdWatch::next() {
    while (true) {
        if (ended_) co_return fail(*ended_);
        if (!events_.empty()) co_return hand_out();
        if (out_of_reach_) {
            Error error = *out_of_reach_;
            // The next call waits as long again.
            out_of_reach_.reset();
            reached_ = std::chrono::steady_clock::now();
            co_return fail(std::move(error));
        }
        co_await changed_.wait();
    }
}

std::vector<Event> EtcdWatch::hand_out() {
    std::vector<Event> out;
    while (!events_.empty()) {
        const KeyValue& entry = events_.front().entry;
        bool full = out.size() >= limits::kStoreWatchEventsMax;
        if (full && entry.mod_revision != out.back().entry.mod_revision) break;
        events_bytes_ -= entry.key.size() + entry.value.size() + sizeof(Event);
        out.push_back(std::move(events_.front()));
        events_.pop_front();
    }
    return out;
}

void EtcdWatch::end(Error why) {
    if (ended_) return;
    ended_.emplace(std::move(why));
    events_.clear();
    events_bytes_ = 0;
    changed_.wake_all();
}

void EtcdWatch::close(Error reason) {
    closed_ = true;
    end(std::move(reason));
    if (stream_) stream_->cancel();
}

}  // namespace peplos::control
