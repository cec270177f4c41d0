#pragma once

#include <memory>
#include <string>

#include "control/etcd_link.h"
#include "control/etcd_requests.h"
#include "runtime/rng.h"
#include "runtime/sync.h"

namespace peplos::control {

// The conversation with an etcd: which member to ask, what an error means, and whether this is
// still the store that it was.
//
// Promises
//   1. A change is sent once. It is sent again only where etcd said that it did not begin it.
//   2. A call ends within its limit, whatever the members do. For kImpatienceTime after a call that
//      nobody answered the limit is kImpatience, so that a row of calls does not add up to minutes.
//   3. A store that went back is noticed: no later than with the first call after the connection
//      that brought the news ended. Whoever notices gives the store another generation, so that
//      every other session is refused by its next change.
//
// Lives on the store's thread.
class EtcdSession {
  public:
    static constexpr Duration kImpatience = std::chrono::milliseconds(500);
    static constexpr Duration kImpatienceTime = std::chrono::seconds(5);

    struct Options {
        std::string prefix;
        Duration call_limit = std::chrono::seconds(3);
        // The last identity that an earlier session saw; nothing: this one believes what it finds.
        std::optional<etcd::Identity> remembered;
    };

    EtcdSession(EtcdLink& link, runtime::Rng& rng, Options options);

    // Finds out which history the store has; makes a new store where there is none.
    Task<Result<void>> begin();

    // A transaction without changes, asked again elsewhere when a member fails. Its last two
    // ranges, from `identity_at` on, are the identity, which is checked. Errors: unavailable,
    // conflict (`request` names a revision that is compacted), corrupt, ...
    Task<Result<etcd::TxnResponse>> read(etcd::TxnRequest request, int identity_at);
    // Errors as Store::compare_and_set().
    Task<Result<Revision>> change(Transaction transaction, Generation demanded);
    // Any other call, sent once to one member that answers.
    // Errors: unavailable (certainly not sent), outcome_unknown, and what etcd says.
    Task<Result<void>> ask(const char* method, const google::protobuf::MessageLite& request,
                           google::protobuf::MessageLite& response);

    // A member to open a stream to. Errors: unavailable.
    Task<Result<size_t>> choose();
    // What a stream showed about a member.
    void doubt(size_t endpoint);
    // Asks which store this is, when a connection ended since it was last asked.
    // Errors: unavailable, corrupt.
    Task<Result<void>> settle_identity();
    // Whether a header of a stream is of the store that this session knows.
    bool is_known(uint64_t cluster_id) const { return cluster_id == seen_.cluster_id; }

    EtcdLink& link() { return link_; }
    const etcd::Layout& layout() const { return layout_; }
    const etcd::Identity& identity() const { return seen_; }
    Generation generation() const;

  private:
    using TimePoint = std::chrono::steady_clock::time_point;

    struct Sent {
        EtcdReply reply;
        bool was_sent = false;
    };
    // Sends to a member that stands; `may_repeat`: also again.
    Task<Sent> send(const char* method, const google::protobuf::MessageLite& request,
                    google::protobuf::MessageLite& response, bool may_repeat);
    Task<Result<size_t>> choose_until(TimePoint deadline);
    Duration limit() const;
    void note_silence();
    void note(size_t endpoint, const EtcdReply& reply);

    // Takes in what an answer to a call that was sent when `then` was known shows.
    Task<Result<void>> observe(etcd::Identity now, etcd::Identity then);
    Task<Result<bool>> contains(const etcd::Identity& earlier);
    // Gives the store, which is `now`, another generation.
    Task<Result<void>> renew(etcd::Identity now, const char* why);
    Task<Result<void>> look();

    EtcdLink& link_;
    runtime::Rng& rng_;
    Options options_;
    etcd::Layout layout_;
    etcd::Identity seen_;
    size_t preferred_ = 0;
    std::vector<TimePoint> doubted_until_;
    TimePoint impatient_until_;
    uint64_t losses_settled_ = 0;
    runtime::Mutex settling_;
};

}  // namespace peplos::control
