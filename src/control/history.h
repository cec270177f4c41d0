#pragma once

#include <deque>
#include <memory>
#include <string>
#include <vector>

#include "control/store.h"
#include "runtime/sync.h"

namespace peplos::control {

// The last changes of a store, bounded in count and bytes, and the watches that read them.
//
// A watch is a cursor into this one queue, so that a slow watcher costs nothing: when its place has
// left the queue it is told so (`conflict`). Lives on one executor.
class History {
  public:
    struct Cursor {
        std::string prefix;
        Revision next;  // the first revision not yet handed out
        bool closed = false;
    };

    // Forgets everything up to and including `revision`.
    void start_after(Revision revision);
    // The changes of one transaction, all of one revision, newer than every earlier one.
    void append(std::vector<Event> events);
    Revision newest() const { return newest_; }

    // Errors: conflict (`from` is no longer remembered), busy (limits::kStoreWatchCountMax).
    Result<std::shared_ptr<Cursor>> open(std::string prefix, Revision from);
    // Ends a next() that waits for this cursor.
    void close(Cursor& cursor);
    // See Watch::next().
    static Task<Result<std::vector<Event>>> next(std::shared_ptr<History> history,
                                                 std::shared_ptr<Cursor> cursor);

    // Ends every next() with `reason`, now and later, until resume().
    void interrupt(Error reason);
    void resume() { interruption_.reset(); }
    // Destroys the waiting tasks without running them. For a store that goes away under them.
    void abandon() { changed_ = std::make_unique<runtime::WaitList>(); }

  private:
    Result<std::vector<Event>> take(Cursor& cursor);
    void forget_oldest();

    std::deque<Event> events_;
    uint64_t bytes_ = 0;
    Revision newest_;
    Revision oldest_{1};  // every change from here on is in events_
    uint32_t cursor_count_ = 0;
    std::optional<Error> interruption_;
    std::unique_ptr<runtime::WaitList> changed_ = std::make_unique<runtime::WaitList>();
};

}  // namespace peplos::control
