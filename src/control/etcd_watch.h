#pragma once

#include <deque>
#include <memory>
#include <string>

#include "control/etcd_session.h"

namespace peplos::control {

// The changes below one prefix, from a stream that is opened anew, on any member, whenever it ends.
//
// Invariants
//   1. Everything of a revision below next_ was queued or is none of ours; nothing from next_ on
//   was.
//   2. A stream begins one revision before next_: etcd keeps no removals at the very revision to
//      which it compacted, and says nothing of that; from one before it refuses.
//   3. All events belong to one generation of the store.
//
// Lives on the store's thread, shared by its pump and its readers.
class EtcdWatch : public std::enable_shared_from_this<EtcdWatch> {
  public:
    EtcdWatch(EtcdSession& session, std::string prefix, Revision from);

    // Reads streams until close() or an end that no other stream mends. Spawn it once.
    Task<void> pump();
    // Until etcd has taken the watch on. Errors: as Store::watch().
    Task<Result<void>> opened();
    Task<Result<std::vector<Event>>> next();
    void close(Error reason);
    bool is_closed() const { return closed_; }

  private:
    using TimePoint = std::chrono::steady_clock::time_point;

    // One stream from beginning to end. Errors: why it ended.
    Task<Result<void>> follow();
    // Success: it ended by itself.
    Task<Result<void>> receive(EtcdStream& stream);
    Result<void> take(etcdserverpb::WatchResponse& response);
    Result<void> take_events();
    std::vector<Event> hand_out();
    void end(Error why);

    EtcdSession& session_;
    const std::string prefix_;
    Generation generation_;
    int64_t next_ = 0;  // 0: from whatever is now
    int64_t progress_ = 0;
    std::vector<mvccpb::Event> parts_;  // of a response in fragments
    uint64_t parts_bytes_ = 0;
    std::deque<Event> events_;
    uint64_t events_bytes_ = 0;
    std::shared_ptr<EtcdStream> stream_;
    std::optional<Error> ended_;
    std::optional<Error> out_of_reach_;
    TimePoint reached_;
    bool is_open_ = false;
    bool closed_ = false;
    runtime::WaitList changed_;
};

}  // namespace peplos::control
