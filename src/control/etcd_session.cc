#include "control/etcd_session.h"

#include <google/protobuf/message_lite.h>

#include "base/log.h"

namespace peplos::control {

namespace {

using etcd::Identity;
using etcdserverpb::TxnRequest;
using etcdserverpb::TxnResponse;

constexpr const char* kTxn = "/etcdserverpb.KV/Txn";
constexpr Duration kDoubt = std::chrono::seconds(3);
// A member that refuses connections for so long is away.
constexpr Duration kRefusal = std::chrono::milliseconds(300);
constexpr Duration kLookAgain = std::chrono::milliseconds(10);
// A read leaves a member that does not answer for another one after this share of its limit.
constexpr int kReadAttempts = 3;

bool says(const EtcdReply& reply, std::string_view words) {
    return reply.message.find(words) != std::string::npos;
}

// etcd says these before it hands a request to its log.
bool was_not_begun(const EtcdReply& reply) {
    return reply.code == etcd_code::kUnavailable &&
           (says(reply, "etcdserver: no leader") || says(reply, "not supported for learner"));
}

bool may_be_better_elsewhere(const EtcdReply& reply) {
    return reply.code == etcd_code::kUnavailable || reply.code == etcd_code::kDeadlineExceeded;
}

// What a refusal means that says for certain that nothing was done; nullopt for every other reply.
std::optional<Code> certain_code(const EtcdReply& reply) {
    constexpr int kInvalidArgument = 3, kPermissionDenied = 7, kFailedPrecondition = 9,
                  kOutOfRange = 11, kUnimplemented = 12, kUnauthenticated = 16;
    if (says(reply, "database space exceeded")) return Code::no_space;
    if (says(reply, "too many requests")) return Code::busy;
    if (says(reply, "has been compacted")) return Code::conflict;
    if (says(reply, "corrupt cluster")) return Code::corrupt;
    switch (reply.code) {
        case kInvalidArgument:
        case kFailedPrecondition:
        case kOutOfRange:
            return Code::invalid_argument;
        case kPermissionDenied:
        case kUnauthenticated:
            return Code::permission_denied;
        case kUnimplemented:
            return Code::unsupported;
        default:
            return std::nullopt;
    }
}

const char* advice_of(Code code) {
    switch (code) {
        case Code::no_space:
            return ": compact and defragment etcd, then `etcdctl alarm disarm`";
        case Code::corrupt:
            return ": see `etcdctl alarm list`";
        default:
            return "";
    }
}

}  // namespace

EtcdSession::EtcdSession(EtcdLink& link, runtime::Rng& rng, Options options)
    : link_(link),
      rng_(rng),
      options_(std::move(options)),
      layout_(options_.prefix),
      doubted_until_(link.endpoint_count()) {}

Generation EtcdSession::generation() const {
    Result<etcd::GenerationValue> value = etcd::parse_generation(seen_.generation);
    return value ? Generation(value->id) : Generation{};
}

// ---- which member ----

Task<Result<size_t>> EtcdSession::choose() {
    return choose_until(std::chrono::steady_clock::now() + limit());
}

Task<Result<size_t>> EtcdSession::choose_until(TimePoint deadline) {
    const TimePoint began = std::chrono::steady_clock::now();
    const size_t count = link_.endpoint_count();
    while (true) {
        TimePoint now = std::chrono::steady_clock::now();
        bool all_refused = true;
        std::optional<size_t> doubtful;
        for (size_t i = 0; i < count; ++i) {
            size_t endpoint = (preferred_ + i) % count;
            if (!link_.is_ready(endpoint)) {
                all_refused = all_refused && link_.is_refused(endpoint);
                continue;
            }
            all_refused = false;
            if (doubted_until_[endpoint] <= now) {
                preferred_ = endpoint;
                co_return endpoint;
            }
            if (!doubtful) doubtful = endpoint;
        }
        // One that hung a moment ago is asked only where no other connection is being made.
        if (doubtful && (count == 1 || now - began >= kRefusal)) co_return *doubtful;
        if (now >= deadline || (all_refused && now - began >= kRefusal)) {
            co_return fail(Code::unavailable,
                           "the control store does not answer: no etcd of {} ({} in all) can be "
                           "reached; see that etcd runs there",
                           link_.endpoint_name(preferred_), count);
        }
        co_await link_.sleep(kLookAgain);
    }
}

void EtcdSession::doubt(size_t endpoint) {
    doubted_until_.at(endpoint) = std::chrono::steady_clock::now() + kDoubt;
    if (preferred_ == endpoint) preferred_ = (endpoint + 1) % link_.endpoint_count();
}

void EtcdSession::note(size_t endpoint, const EtcdReply& reply) {
    if (may_be_better_elsewhere(reply)) return doubt(endpoint);
    impatient_until_ = {};
    doubted_until_.at(endpoint) = {};
}

Duration EtcdSession::limit() const {
    bool is_impatient = std::chrono::steady_clock::now() < impatient_until_;
    return is_impatient ? std::min(kImpatience, options_.call_limit) : options_.call_limit;
}

// A call that had its full time: an etcd that is only slow gets it again a little later.
void EtcdSession::note_silence() {
    TimePoint now = std::chrono::steady_clock::now();
    if (now >= impatient_until_) impatient_until_ = now + kImpatienceTime;
}

// ---- calls ----

Task<EtcdSession::Sent> EtcdSession::send(const char* method,
                                          const google::protobuf::MessageLite& request,
                                          google::protobuf::MessageLite& response,
                                          bool may_repeat) {
    const Duration whole = limit();
    const TimePoint deadline = std::chrono::steady_clock::now() + whole;
    while (true) {
        Result<size_t> endpoint = co_await choose_until(deadline);
        if (!endpoint) {
            note_silence();
            co_return Sent{{etcd_code::kUnavailable, endpoint.error().message()}, false};
        }
        Duration left = deadline - std::chrono::steady_clock::now();
        if (may_repeat && link_.endpoint_count() > 1) left = std::min(left, whole / kReadAttempts);
        left = std::max(left, Duration(std::chrono::milliseconds(1)));
        EtcdReply reply = co_await link_.call(*endpoint, method, request, response, left);
        note(*endpoint, reply);
        bool begun = !was_not_begun(reply);
        bool again = !begun || (may_repeat && may_be_better_elsewhere(reply));
        bool late = std::chrono::steady_clock::now() + kLookAgain >= deadline;
        if (reply.ok() || !again || late) {
            if (may_be_better_elsewhere(reply)) note_silence();
            co_return Sent{std::move(reply), begun};
        }
        co_await link_.sleep(kLookAgain);
    }
}

namespace {

Error error_of(const EtcdReply& reply, bool was_sent) {
    if (std::optional<Code> code = certain_code(reply)) {
        return Error(*code, fmt::format("etcd refuses: {}{}", reply.message, advice_of(*code)));
    }
    if (!was_sent) return Error(Code::unavailable, reply.message);
    return Error(
        Code::outcome_unknown,
        fmt::format("the control store did not answer in time ({}): whether the change was "
                    "made is open; read before anything else",
                    reply.message));
}

Error error_of_read(const EtcdReply& reply) {
    Error error = error_of(reply, true);
    if (error.code() != Code::outcome_unknown) return error;
    if (says(reply, "the control store")) return Error(Code::unavailable, reply.message);
    return Error(Code::unavailable,
                 fmt::format("the control store does not answer: {}", reply.message));
}

}  // namespace

Task<Result<TxnResponse>> EtcdSession::read(TxnRequest request, int identity_at) {
    CO_TRY(co_await settle_identity());
    const Identity then = seen_;
    TxnResponse response;
    Sent sent = co_await send(kTxn, request, response, true);
    if (!sent.reply.ok()) co_return fail(error_of_read(sent.reply));
    CO_TRY_ASSIGN(Identity now, layout_.identity_of(response, identity_at));
    CO_TRY(co_await observe(std::move(now), then));
    co_return response;
}

Task<Result<Revision>> EtcdSession::change(Transaction transaction, Generation demanded) {
    CO_TRY(co_await settle_identity());
    CO_TRY(check_generation(demanded, generation()));
    const Identity then = seen_;
    const std::string mark = fmt::format("{:016x}", rng_.next());
    TxnRequest request = layout_.change(transaction, then, mark);
    TxnResponse response;
    Sent sent = co_await send(kTxn, request, response, false);
    if (!sent.reply.ok()) co_return fail(error_of(sent.reply, sent.was_sent));
    const int64_t revision = response.header().revision();
    if (!response.succeeded()) {
        CO_TRY_ASSIGN(Identity now, layout_.identity_of(response, 0));
        CO_TRY(co_await observe(std::move(now), then));
        CO_TRY(check_generation(demanded, generation()));
        co_return fail(layout_.refusal(transaction, response));
    }
    if (response.header().cluster_id() != then.cluster_id) {
        // A copy of the store, so new that it holds all that this session ever saw.
        ++losses_settled_;  // never equal again before somebody has looked
        CO_TRY(co_await look());
        co_return fail(Code::outcome_unknown,
                       "the control store was put back from a backup during a change; read before "
                       "anything else");
    }
    bool is_newer = seen_.generation == then.generation && revision > seen_.mark_revision;
    if (etcd::surely_changes(transaction) && is_newer) {
        seen_.mark_revision = revision;
        seen_.mark = mark;
    }
    co_return Revision(static_cast<uint64_t>(revision));
}

Task<Result<void>> EtcdSession::ask(const char* method,
                                    const google::protobuf::MessageLite& request,
                                    google::protobuf::MessageLite& response) {
    Sent sent = co_await send(method, request, response, false);
    if (sent.reply.ok()) co_return Result<void>();
    co_return fail(error_of(sent.reply, sent.was_sent));
}

// ---- which store ----

Task<Result<void>> EtcdSession::begin() {
    TxnResponse response;
    Sent sent = co_await send(kTxn, layout_.identity(), response, true);
    if (!sent.reply.ok()) co_return fail(error_of_read(sent.reply));
    CO_TRY_ASSIGN(Identity now, layout_.identity_of(response, 0));
    if (now.generation.empty()) {
        if (now.mark_revision != 0) co_return fail(etcd::parse_generation("").error());
        CO_TRY(co_await renew(now, ""));
    }
    if (seen_.generation.empty()) seen_ = now;
    CO_TRY(co_await look());
    if (!options_.remembered || options_.remembered->generation != seen_.generation) {
        co_return Result<void>();
    }
    seen_ = *options_.remembered;
    co_return co_await look();
}

Task<Result<void>> EtcdSession::settle_identity() {
    for (size_t i = 0; i < link_.endpoint_count(); ++i)
        link_.is_ready(i);
    if (link_.loss_count() == losses_settled_) co_return Result<void>();
    auto guard = co_await settling_.lock();
    if (link_.loss_count() == losses_settled_) co_return Result<void>();
    co_return co_await look();
}

// Asks for the identity, and whether what was seen last is part of the present history.
Task<Result<void>> EtcdSession::look() {
    const uint64_t losses = link_.loss_count();
    const Identity then = seen_;
    TxnResponse response;
    Sent sent = co_await send(kTxn, layout_.identity(), response, true);
    if (!sent.reply.ok()) co_return fail(error_of_read(sent.reply));
    CO_TRY_ASSIGN(Identity now, layout_.identity_of(response, 0));
    CO_TRY(co_await observe(now, then));
    if (seen_.generation == then.generation && then.mark_revision != 0) {
        CO_TRY_ASSIGN(bool is_contained, co_await contains(then));
        if (!is_contained) CO_TRY(co_await renew(now, "it lacks what was there before"));
    }
    losses_settled_ = losses;
    co_return Result<void>();
}

// True also when etcd has compacted the revision and cannot tell.
Task<Result<bool>> EtcdSession::contains(const Identity& earlier) {
    TxnResponse response;
    const TxnRequest request = layout_.mark_at(earlier.mark_revision);
    Sent sent = co_await send(kTxn, request, response, true);
    if (says(sent.reply, "has been compacted")) co_return true;
    if (says(sent.reply, "is a future revision")) co_return false;
    if (!sent.reply.ok()) co_return fail(error_of_read(sent.reply));
    const etcd::RangeResponse* range = etcd::range_of(response, 0);
    bool same = range != nullptr && range->kvs_size() > 0 &&
                range->kvs(0).mod_revision() == earlier.mark_revision &&
                range->kvs(0).value() == earlier.mark;
    co_return same;
}

Task<Result<void>> EtcdSession::observe(Identity now, Identity then) {
    CO_TRY_ASSIGN(etcd::GenerationValue value, etcd::parse_generation(now.generation));
    if (value.cluster_id != now.cluster_id) {
        co_return co_await renew(std::move(now), "etcd has another cluster id");
    }
    if (now.generation != then.generation) {
        if (now.generation != seen_.generation) {
            LOG_WARN("the control store was put back from a backup generation={:016x}", value.id);
            seen_ = std::move(now);
        }
        co_return Result<void>();
    }
    if (now.cluster_id != then.cluster_id) {
        co_return co_await renew(std::move(now), "etcd has another cluster id");
    }
    bool went_back = now.mark_revision < then.mark_revision ||
                     (now.mark_revision == then.mark_revision && now.mark != then.mark);
    if (went_back) co_return co_await renew(std::move(now), "it went back");
    if (now.generation == seen_.generation && now.mark_revision > seen_.mark_revision) {
        seen_ = std::move(now);
    }
    co_return Result<void>();
}

// Whoever loses the race to another session finds that one's generation.
Task<Result<void>> EtcdSession::renew(Identity now, const char* why) {
    const std::string fresh = etcd::generation_text(rng_.next_id(), now.cluster_id);
    TxnResponse response;
    const TxnRequest request = layout_.renewal(now, fresh);
    Sent sent = co_await send(kTxn, request, response, true);
    if (!sent.reply.ok()) co_return fail(error_of_read(sent.reply));
    CO_TRY_ASSIGN(seen_, layout_.identity_of(response, response.succeeded() ? 1 : 0));
    if (*why != '\0') {
        LOG_WARN("the control store was put back from a backup: {} generation={:016x}", why,
                 generation().value);
    }
    co_return Result<void>();
}

}  // namespace peplos::control
