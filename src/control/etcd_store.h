#pragma once

#include <memory>
#include <string>

#include "control/etcd_link.h"
#include "control/store.h"

namespace peplos::control {

struct EtcdOptions {
    EtcdAddress address;
    // All keys of the store lie below it; ends with '/', so that one etcd serves others, too.
    std::string prefix = "/peplos/";
    // Of one call, at most kEtcdCallMax. While etcd does not answer, calls end sooner.
    Duration call_limit = std::chrono::seconds(3);
    // Where to remember over a restart what the store was last seen to be, so that one that was put
    // back meanwhile is noticed. Empty: not at all.
    std::string mark_file;
};

// The control store of a cluster: an etcd.
//
// It has a thread of its own with a bounded mailbox, and one that waits for gRPC. A call is made to
// a member that stands and goes over to another when that is safe. What the store was last seen to
// be is part of every transaction, so a transaction is never applied to a store that went back
// without somebody having noticed it (docs/decisions/20261130-store-generation.md).
class EtcdStore final : public Store {
  public:
    // Connects, and makes the store when there is none below the prefix.
    // Errors: invalid_argument, not_found, permission_denied (the options, a PEM file), unavailable
    // (no etcd answers), corrupt, unsupported (it is no etcd v3).
    static Task<Result<std::unique_ptr<EtcdStore>>> connect(EtcdOptions options);

    // Requires: stop() was awaited, or no call is in flight.
    ~EtcdStore() override;

    Task<Result<std::optional<KeyValue>>> get(std::string key) override;
    Task<Result<Page>> list(ListRequest request) override;
    using Store::compare_and_set;
    Task<Result<Revision>> compare_and_set(Transaction transaction, Generation demanded) override;
    Task<Result<Generation>> generation() override;
    Task<Result<std::unique_ptr<Watch>>> watch(std::string prefix, Revision from) override;
    Task<Result<void>> stop() override;

    // Makes etcd forget what was before `revision`. etcd does so by itself when it is told to
    // (--auto-compaction-retention).
    Task<Result<void>> compact(Revision revision);

  private:
    class Thread;
    class ThreadWatch;
    explicit EtcdStore(std::shared_ptr<Thread> thread);

    std::shared_ptr<Thread> thread_;
};

// Errors: invalid_argument: a prefix has 1 to kEtcdPrefixBytesMax printable characters and
// ends with '/'.
Result<void> check_etcd_prefix(std::string_view prefix);

}  // namespace peplos::control
