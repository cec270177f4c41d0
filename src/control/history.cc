#include "control/history.h"

#include <algorithm>

namespace peplos::control {
namespace {

uint64_t bytes_of_event(const Event& event) {
    return sizeof(Event) + event.entry.key.size() + event.entry.value.size();
}

}  // namespace

void History::start_after(Revision revision) {
    events_.clear();
    bytes_ = 0;
    newest_ = revision;
    oldest_ = revision.next();
}

void History::append(std::vector<Event> events) {
    CHECK(!events.empty());
    Revision revision = events.front().entry.mod_revision;
    CHECK(revision > newest_);
    for (Event& event : events) {
        CHECK(event.entry.mod_revision == revision);
        bytes_ += bytes_of_event(event);
        events_.push_back(std::move(event));
    }
    newest_ = revision;
    while (events_.size() > limits::kStoreHistoryEventsMax ||
           bytes_ > limits::kStoreHistoryBytesMax) {
        forget_oldest();
    }
    changed_->wake_all();
}

void History::forget_oldest() {
    CHECK(!events_.empty());
    Revision revision = events_.front().entry.mod_revision;
    while (!events_.empty() && events_.front().entry.mod_revision == revision) {
        bytes_ -= bytes_of_event(events_.front());
        events_.pop_front();
    }
    oldest_ = revision.next();
}

Result<std::shared_ptr<History::Cursor>> History::open(std::string prefix, Revision from) {
    if (from == Revision{}) from = newest_.next();
    if (from < oldest_) {
        return fail(Code::conflict,
                    "the control store remembers changes from revision {} on, not from {}: list "
                    "'{}' and watch from the listing's revision",
                    oldest_.value, from.value, prefix);
    }
    if (cursor_count_ >= limits::kStoreWatchCountMax) {
        return fail(Code::busy, "the control store has {} watches already: close one first",
                    cursor_count_);
    }
    ++cursor_count_;
    auto cursor = std::make_shared<Cursor>();
    cursor->prefix = std::move(prefix);
    cursor->next = from;
    return cursor;
}

void History::close(Cursor& cursor) {
    if (cursor.closed) return;
    cursor.closed = true;
    CHECK(cursor_count_ > 0);
    --cursor_count_;
    changed_->wake_all();
}

Task<Result<std::vector<Event>>> History::next(std::shared_ptr<History> history,
                                               std::shared_ptr<Cursor> cursor) {
    while (true) {
        if (cursor->closed) co_return fail(Code::stopping, "the watch was closed");
        if (history->interruption_) co_return fail(*history->interruption_);
        Result<std::vector<Event>> events = history->take(*cursor);
        if (!events || !events->empty()) co_return events;
        co_await history->changed_->wait();
    }
}

Result<std::vector<Event>> History::take(Cursor& cursor) {
    if (cursor.next < oldest_) {
        return fail(Code::conflict,
                    "a watch of '{}' fell behind: changes {} to {} of the control store are "
                    "forgotten; list and watch anew",
                    cursor.prefix, cursor.next.value, oldest_.value - 1);
    }
    auto before = [](const Event& event, Revision revision) {
        return event.entry.mod_revision < revision;
    };
    auto event = std::lower_bound(events_.begin(), events_.end(), cursor.next, before);
    std::vector<Event> out;
    for (; event != events_.end(); ++event) {
        Revision revision = event->entry.mod_revision;
        bool full = out.size() >= limits::kStoreWatchEventsMax;
        if (full && revision != out.back().entry.mod_revision) break;
        if (event->entry.key.starts_with(cursor.prefix)) out.push_back(*event);
        cursor.next = revision.next();
    }
    return out;
}

void History::interrupt(Error reason) {
    interruption_.emplace(std::move(reason));
    changed_->wake_all();
}

}  // namespace peplos::control
