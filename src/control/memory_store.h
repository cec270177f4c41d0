#pragma once

#include <deque>
#include <map>
#include <memory>
#include <string>

#include "control/store.h"
#include "runtime/clock.h"
#include "runtime/rng.h"

namespace peplos::control {

class History;

// A control store in memory for simulated tests: deterministic, and as unfriendly as asked. It may
// outlive the simulated processes that use it; all of them run on one thread.
class MemoryStore final : public Store {
  public:
    // What the next compare_and_set does instead of answering.
    enum class Mishap : uint8_t {
        unavailable,      // nothing changes, and the caller is told so
        unknown_applied,  // applied, but the answer is outcome_unknown
        unknown_lost,     // not applied, and the answer is outcome_unknown
    };

    // Chances in 1,000 and a delay drawn from the seed, for long runs.
    struct Weather {
        uint32_t unavailable_permille = 0;
        uint32_t unknown_permille = 0;  // one half of them applied
        Duration delay_max{};           // before and after the call takes effect
    };

    MemoryStore();
    ~MemoryStore() override;

    // Mishaps are used up one per compare_and_set, in order.
    void queue_mishap(Mishap mishap) { mishaps_.push_back(mishap); }
    // The same for the one after the next `count`.
    void cut_after(int count, Mishap mishap) {
        mishaps_.assign(static_cast<size_t>(count), std::nullopt);
        mishaps_.emplace_back(mishap);
    }
    // While false every call answers `unavailable`, and so do watches.
    void set_available(bool available);
    // Both seams outlive the store.
    void set_weather(Weather weather, runtime::Rng& rng, runtime::Clock& clock);

    // All that it holds, and back to that: as after a restore from a backup, revisions too.
    struct Backup {
        std::map<std::string, KeyValue, std::less<>> entries;
        Revision revision;
    };
    Backup backup() const { return {entries_, revision_}; }
    // The generation is another one afterwards. Requires: nobody watches.
    void restore(Backup backup);

    Revision revision() const { return revision_; }
    size_t key_count() const { return entries_.size(); }

    Task<Result<std::optional<KeyValue>>> get(std::string key) override;
    Task<Result<Page>> list(ListRequest request) override;
    using Store::compare_and_set;
    Task<Result<Revision>> compare_and_set(Transaction transaction, Generation demanded) override;
    Task<Result<Generation>> generation() override;
    Task<Result<std::unique_ptr<Watch>>> watch(std::string prefix, Revision from) override;
    Task<Result<void>> stop() override;

  private:
    Task<Result<void>> arrive();
    Task<void> linger();
    Result<void> compare(const Transaction& transaction, Generation demanded) const;
    Revision apply(Transaction transaction);

    std::map<std::string, KeyValue, std::less<>> entries_;
    Revision revision_;
    Generation generation_{1};
    std::shared_ptr<History> history_;
    std::deque<std::optional<Mishap>> mishaps_;
    Weather weather_;
    runtime::Rng* rng_ = nullptr;
    runtime::Clock* clock_ = nullptr;
    bool available_ = true;
    bool stopped_ = false;
};

}  // namespace peplos::control
