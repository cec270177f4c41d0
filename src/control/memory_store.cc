#include "control/memory_store.h"

#include "base/check.h"
#include "control/history.h"

namespace peplos::control {
namespace {

class MemoryWatch final : public Watch {
  public:
    MemoryWatch(std::shared_ptr<History> history, std::shared_ptr<History::Cursor> cursor)
        : history_(std::move(history)), cursor_(std::move(cursor)) {}
    ~MemoryWatch() override { history_->close(*cursor_); }

    Task<Result<std::vector<Event>>> next() override { return History::next(history_, cursor_); }
    void close() override { history_->close(*cursor_); }

  private:
    std::shared_ptr<History> history_;
    std::shared_ptr<History::Cursor> cursor_;
};

}  // namespace

MemoryStore::MemoryStore() : history_(std::make_shared<History>()) {}

MemoryStore::~MemoryStore() {
    history_->abandon();
}

void MemoryStore::set_available(bool available) {
    available_ = available;
    if (available) {
        history_->resume();
    } else {
        history_->interrupt(Error(Code::unavailable, "the control store does not answer"));
    }
}

void MemoryStore::set_weather(Weather weather, runtime::Rng& rng, runtime::Clock& clock) {
    weather_ = weather;
    rng_ = &rng;
    clock_ = &clock;
}

void MemoryStore::restore(Backup backup) {
    entries_ = std::move(backup.entries);
    revision_ = backup.revision;
    generation_ = generation_.next();
    history_ = std::make_shared<History>();
    history_->start_after(revision_);
}

// The way to the store: may be slow, may be cut.
Task<Result<void>> MemoryStore::arrive() {
    co_await linger();
    if (stopped_) co_return fail(Code::stopping, "the control store is stopping");
    bool cut = rng_ != nullptr && rng_->below(1000) < weather_.unavailable_permille;
    if (!available_ || cut) co_return fail(Code::unavailable, "the control store does not answer");
    co_return Result<void>{};
}

Task<void> MemoryStore::linger() {
    if (clock_ == nullptr || weather_.delay_max.count() <= 0) co_return;
    uint64_t bound = static_cast<uint64_t>(weather_.delay_max.count());
    Duration delay(static_cast<int64_t>(rng_->below(bound)));
    co_await clock_->sleep_for(delay);
}

Task<Result<std::optional<KeyValue>>> MemoryStore::get(std::string key) {
    CO_TRY(check_key(key));
    CO_TRY(co_await arrive());
    std::optional<KeyValue> found;
    if (auto entry = entries_.find(key); entry != entries_.end()) found = entry->second;
    co_await linger();
    co_return found;
}

Task<Result<Page>> MemoryStore::list(ListRequest request) {
    CO_TRY(check_list(request));
    CO_TRY(co_await arrive());
    Page page;
    page.revision = revision_;
    uint64_t bytes = 0;
    auto entry = request.after < request.prefix ? entries_.lower_bound(request.prefix)
                                                : entries_.upper_bound(request.after);
    for (; entry != entries_.end() && entry->first.starts_with(request.prefix); ++entry) {
        if (page.entries.size() == request.count_max || bytes > limits::kStoreListBytesMax) {
            page.more = true;
            break;
        }
        bytes += entry->second.value.size();
        page.entries.push_back(entry->second);
    }
    co_await linger();
    co_return page;
}

Result<void> MemoryStore::compare(const Transaction& transaction, Generation demanded) const {
    TRY(check_generation(demanded, generation_));
    for (const Operation& operation : transaction) {
        if (!operation.expected) continue;
        auto entry = entries_.find(operation.key);
        Revision present = entry == entries_.end() ? Revision{} : entry->second.mod_revision;
        if (present != *operation.expected) {
            return fail(Code::conflict, "'{}' is at revision {}, not {}: read it again",
                        operation.key, present.value, operation.expected->value);
        }
    }
    return {};
}

Revision MemoryStore::apply(Transaction transaction) {
    Revision revision = revision_.next();
    std::vector<Event> events;
    for (Operation& operation : transaction) {
        auto entry = entries_.find(operation.key);
        if (operation.kind == Operation::Kind::remove && entry != entries_.end()) {
            Event& event = events.emplace_back(Event::Kind::removed, KeyValue{});
            event.entry.key = operation.key;
            event.entry.mod_revision = revision;
            entries_.erase(entry);
        } else if (operation.kind == Operation::Kind::put) {
            KeyValue& changed = entries_[operation.key];
            if (changed.version == 0) changed.create_revision = revision;
            ++changed.version;
            changed.mod_revision = revision;
            changed.key = std::move(operation.key);
            changed.value = std::move(operation.value);
            events.push_back({Event::Kind::put, changed});
        }
    }
    if (events.empty()) return revision_;
    revision_ = revision;
    history_->append(std::move(events));
    return revision_;
}

Task<Result<Generation>> MemoryStore::generation() {
    CO_TRY(co_await arrive());
    Generation generation = generation_;
    co_await linger();
    co_return generation;
}

Task<Result<Revision>> MemoryStore::compare_and_set(Transaction transaction, Generation demanded) {
    CO_TRY(check_transaction(transaction));
    CO_TRY(co_await arrive());
    std::optional<Mishap> mishap;
    if (!mishaps_.empty()) {
        mishap = mishaps_.front();
        mishaps_.pop_front();
    } else if (rng_ != nullptr && rng_->below(1000) < weather_.unknown_permille) {
        mishap = rng_->below(2) == 0 ? Mishap::unknown_applied : Mishap::unknown_lost;
    }
    if (mishap == Mishap::unavailable) {
        co_return fail(Code::unavailable, "the control store does not answer");
    }
    Result<Revision> result = revision_;
    if (mishap != Mishap::unknown_lost) {
        if (auto compared = compare(transaction, demanded); compared) {
            result = apply(std::move(transaction));
        } else {
            result = fail(std::move(compared).error());
        }
    }
    co_await linger();
    if (mishap.has_value()) {
        co_return fail(Code::outcome_unknown,
                       "the control store did not answer in time: read before anything else");
    }
    co_return result;
}

Task<Result<std::unique_ptr<Watch>>> MemoryStore::watch(std::string prefix, Revision from) {
    CO_TRY(co_await arrive());
    CO_TRY_ASSIGN(auto cursor, history_->open(std::move(prefix), from));
    co_return std::make_unique<MemoryWatch>(history_, std::move(cursor));
}

Task<Result<void>> MemoryStore::stop() {
    stopped_ = true;
    history_->interrupt(Error(Code::stopping, "the control store is stopping"));
    co_return Result<void>{};
}

}  // namespace peplos::control
