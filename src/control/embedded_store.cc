#include "control/embedded_store.h"

#include <atomic>
#include <boost/asio/executor_work_guard.hpp>
#include <boost/asio/io_context.hpp>
#include <thread>

#include "base/check.h"
#include "control/embedded_database.h"
#include "control/history.h"

namespace peplos::control {

namespace asio = boost::asio;

// The store's own core. What is below the line belongs to it alone; other cores post.
class EmbeddedStore::Thread {
  public:
    Thread() : guard_(context_.get_executor()), thread_([this] { context_.run(); }) {}
    Thread(const Thread&) = delete;
    Thread& operator=(const Thread&) = delete;
    ~Thread() {
        context_.stop();
        join();
        history->abandon();
    }

    runtime::Executor executor() { return context_.get_executor(); }
    // Lets what was posted finish, then ends. Never called from the thread itself.
    void join() {
        guard_.reset();
        if (thread_.joinable()) thread_.join();
    }

    // Runs the blocking `work(Thread&)` there and brings its result back; bounded.
    template <typename Work>
    auto call(Work work) -> Task<std::invoke_result_t<Work&, Thread&>> {
        if (waiting_.fetch_add(1) >= limits::kStoreMailboxCountMax) {
            waiting_.fetch_sub(1);
            co_return fail(Code::busy, "the control store has {} calls waiting: repeat later",
                           limits::kStoreMailboxCountMax);
        }
        auto result = co_await call_always(std::move(work));
        waiting_.fetch_sub(1);
        co_return result;
    }
    // The same, past the bound: for what there is one of.
    template <typename Work>
    auto call_always(Work work) -> Task<std::invoke_result_t<Work&, Thread&>> {
        auto make = [this, work = std::move(work)]() mutable { return run(*this, work); };
        co_return co_await runtime::call_on(executor(), std::move(make));
    }

    // ---- the thread's own ----
    std::unique_ptr<EmbeddedDatabase> database;
    std::shared_ptr<History> history = std::make_shared<History>();

    Result<void> usable() const {
        if (!database) return fail(Code::stopping, "the control store is stopping");
        return {};
    }

  private:
    // Borrows `work`, which call_on keeps until this has ended.
    template <typename Work>
    static auto run(Thread& thread, Work& work) -> Task<std::invoke_result_t<Work&, Thread&>> {
        co_return work(thread);
    }

    asio::io_context context_{1};
    asio::executor_work_guard<asio::io_context::executor_type> guard_;
    std::atomic<uint32_t> waiting_ = 0;
    std::thread thread_;
};

// Called from the caller's core; the cursor is the store thread's.
class EmbeddedStore::ThreadWatch final : public Watch {
  public:
    ThreadWatch(std::shared_ptr<Thread> thread, std::shared_ptr<History::Cursor> cursor)
        : thread_(std::move(thread)), cursor_(std::move(cursor)) {}
    ~ThreadWatch() override { close(); }

    Task<Result<std::vector<Event>>> next() override {
        auto make = [history = thread_->history, cursor = cursor_] {
            return History::next(history, cursor);
        };
        return runtime::call_on(thread_->executor(), std::move(make));
    }
    void close() override {
        asio::post(thread_->executor(),
                   [history = thread_->history, cursor = cursor_] { history->close(*cursor); });
    }

  private:
    std::shared_ptr<Thread> thread_;
    std::shared_ptr<History::Cursor> cursor_;
};

EmbeddedStore::EmbeddedStore(std::shared_ptr<Thread> thread) : thread_(std::move(thread)) {}

EmbeddedStore::~EmbeddedStore() = default;

Task<Result<std::unique_ptr<EmbeddedStore>>> EmbeddedStore::open(Options options) {
    auto thread = std::make_shared<Thread>();
    auto work = [options = std::move(options)](Thread& own) -> Result<void> {
        TRY_ASSIGN(own.database, EmbeddedDatabase::open(options));
        own.history->start_after(own.database->revision());
        return {};
    };
    CO_TRY(co_await thread->call(std::move(work)));
    co_return std::unique_ptr<EmbeddedStore>(new EmbeddedStore(std::move(thread)));
}

Task<Result<std::optional<KeyValue>>> EmbeddedStore::get(std::string key) {
    CO_TRY(check_key(key));
    auto work = [key = std::move(key)](Thread& own) -> Result<std::optional<KeyValue>> {
        TRY(own.usable());
        return own.database->get(key);
    };
    co_return co_await thread_->call(std::move(work));
}

Task<Result<Page>> EmbeddedStore::list(ListRequest request) {
    CO_TRY(check_list(request));
    auto work = [request = std::move(request)](Thread& own) -> Result<Page> {
        TRY(own.usable());
        return own.database->list(request);
    };
    co_return co_await thread_->call(std::move(work));
}

Task<Result<Generation>> EmbeddedStore::generation() {
    auto work = [](Thread& own) -> Result<Generation> {
        TRY(own.usable());
        return own.database->generation();
    };
    co_return co_await thread_->call(std::move(work));
}

Task<Result<Revision>> EmbeddedStore::compare_and_set(Transaction transaction,
                                                      Generation demanded) {
    CO_TRY(check_transaction(transaction));
    auto work = [transaction = std::move(transaction), demanded](Thread& own) -> Result<Revision> {
        TRY(own.usable());
        TRY(check_generation(demanded, own.database->generation()));
        TRY_ASSIGN(std::vector<Event> events, own.database->apply(transaction));
        if (!events.empty()) own.history->append(std::move(events));
        CHECK(own.history->newest() == own.database->revision());
        return own.database->revision();
    };
    co_return co_await thread_->call(std::move(work));
}

Task<Result<std::unique_ptr<Watch>>> EmbeddedStore::watch(std::string prefix, Revision from) {
    using Cursor = std::shared_ptr<History::Cursor>;
    auto work = [prefix = std::move(prefix), from](Thread& own) -> Result<Cursor> {
        TRY(own.usable());
        return own.history->open(prefix, from);
    };
    CO_TRY_ASSIGN(Cursor cursor, co_await thread_->call(std::move(work)));
    co_return std::make_unique<ThreadWatch>(thread_, std::move(cursor));
}

Task<Result<void>> EmbeddedStore::copy_to(std::string path) {
    auto work = [path = std::move(path)](Thread& own) -> Result<void> {
        TRY(own.usable());
        return own.database->copy_to(path);
    };
    co_return co_await thread_->call(std::move(work));
}

Task<Result<void>> EmbeddedStore::stop() {
    auto work = [](Thread& own) -> Result<void> {
        own.history->interrupt(Error(Code::stopping, "the control store is stopping"));
        own.database.reset();
        return {};
    };
    if (stopped_) co_return Result<void>{};
    stopped_ = true;
    co_return co_await thread_->call_always(std::move(work));
}

}  // namespace peplos::control
