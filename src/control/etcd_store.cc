#include "control/etcd_store.h"

#include <atomic>
#include <boost/asio/executor_work_guard.hpp>
#include <boost/asio/io_context.hpp>
#include <set>
#include <thread>

#include "base/check.h"
#include "base/log.h"
#include "control/etcd_mark.h"
#include "control/etcd_session.h"
#include "control/etcd_watch.h"
#include "runtime/gate.h"
#include "runtime/system.h"

namespace peplos::control {

namespace asio = boost::asio;

namespace {

constexpr Duration kMarkInterval = std::chrono::seconds(1);
// Values of 64 KiB fill a page of the smallest etcd message so; smaller ones come in larger parts.
constexpr uint32_t kListPartMin = 64;

Error stopping() {
    return Error(Code::stopping, "the control store is stopping");
}

}  // namespace

// The store's own core. What is below the line belongs to it alone; other cores post.
class EtcdStore::Thread {
  public:
    Thread() : guard_(context_.get_executor()), thread_([this] { context_.run(); }) {}
    Thread(const Thread&) = delete;
    Thread& operator=(const Thread&) = delete;
    ~Thread() {
        link.reset();  // what it still brings is posted to a context that is there
        context_.stop();
        guard_.reset();
        thread_.join();
    }

    runtime::Executor executor() { return context_.get_executor(); }

    // Runs the task that make(Thread&) gives on the thread and brings its result back; bounded.
    template <typename Make>
    auto call(Make make) -> std::invoke_result_t<Make&, Thread&> {
        if (waiting_.fetch_add(1) >= limits::kStoreMailboxCountMax) {
            waiting_.fetch_sub(1);
            co_return fail(Code::busy, "the control store has {} calls waiting: repeat later",
                           limits::kStoreMailboxCountMax);
        }
        auto run = [this, make = std::move(make)]() mutable { return enter(*this, make); };
        auto result = co_await runtime::call_on(executor(), std::move(run));
        waiting_.fetch_sub(1);
        co_return result;
    }

    // ---- the thread's own ----
    Task<Result<void>> open(EtcdOptions options);
    Task<Result<Page>> list(ListRequest request);
    Task<Result<std::shared_ptr<EtcdWatch>>> watch(std::string prefix, Revision from);
    Task<Result<void>> stop();

    std::unique_ptr<EtcdLink> link;
    std::unique_ptr<EtcdSession> session;

  private:
    // Borrows `make`, which call_on keeps until this has ended.
    template <typename Make>
    static auto enter(Thread& thread, Make& make) -> std::invoke_result_t<Make&, Thread&> {
        CO_TRY_ASSIGN(auto pass, thread.gate_.enter());
        co_return co_await make(thread);
    }
    Task<void> keep_mark();
    void write_mark();

    asio::io_context context_{1};
    asio::executor_work_guard<asio::io_context::executor_type> guard_;
    std::atomic<uint32_t> waiting_ = 0;
    runtime::SystemRng rng_;
    std::string mark_file_;
    etcd::Identity marked_;
    std::set<std::shared_ptr<EtcdWatch>> watches_;
    bool is_begun_ = false;
    bool stopping_ = false;
    runtime::Gate gate_;
    runtime::Gate background_;
    std::thread thread_;
};

Task<Result<void>> EtcdStore::Thread::open(EtcdOptions options) {
    CO_TRY_ASSIGN(link, EtcdLink::make(executor(), options.address));
    EtcdSession::Options session_options;
    session_options.prefix = std::move(options.prefix);
    session_options.call_limit = options.call_limit;
    mark_file_ = std::move(options.mark_file);
    if (!mark_file_.empty()) session_options.remembered = read_etcd_mark(mark_file_);
    session = std::make_unique<EtcdSession>(*link, rng_, std::move(session_options));
    CO_TRY(co_await session->begin());
    is_begun_ = true;
    if (!mark_file_.empty()) background_.spawn(executor(), keep_mark());
    co_return Result<void>();
}

Task<void> EtcdStore::Thread::keep_mark() {
    while (!stopping_) {
        write_mark();
        co_await link->sleep(kMarkInterval);
    }
}

void EtcdStore::Thread::write_mark() {
    // What a session that did not begin has seen is no reason to forget what was remembered.
    if (!is_begun_ || mark_file_.empty() || session->identity() == marked_) return;
    Result<void> written = write_etcd_mark(mark_file_, session->identity());
    if (!written) {
        LOG_WARN("etcd's mark is not kept why=\"{}\"", written.error().text());
    }
    marked_ = session->identity();
}

// The parts of a page are of one revision. Where etcd compacts it meanwhile, the page ends early.
Task<Result<Page>> EtcdStore::Thread::list(ListRequest request) {
    const etcd::Layout& layout = session->layout();
    std::string prefix = layout.key_of(request.prefix);
    const std::string end = etcd::end_of_prefix(prefix);
    std::string begin = std::move(prefix);
    if (!request.after.empty()) begin = std::max(begin, layout.key_of(request.after) + '\0');
    Page page;
    uint64_t bytes = 0;
    int64_t revision = 0;
    while (true) {
        auto left = static_cast<uint32_t>(request.count_max - page.entries.size());
        uint64_t typical = page.entries.empty() ? 0 : 1 + bytes / page.entries.size();
        uint64_t room = limits::kStoreListBytesMax - std::min(bytes, limits::kStoreListBytesMax);
        uint64_t part = typical == 0 ? kListPartMin : room / typical + 1;
        auto count = static_cast<uint32_t>(std::min<uint64_t>(left, part));
        etcdserverpb::TxnRequest asked = layout.list(begin, end, count, revision);
        Result<etcdserverpb::TxnResponse> answer = co_await session->read(std::move(asked), 1);
        bool is_forgotten = !answer && answer.error().code() == Code::conflict;
        if (is_forgotten && !page.entries.empty()) {
            page.more = true;
            co_return page;
        }
        if (!answer) co_return fail(std::move(answer).error());
        const etcd::RangeResponse* range = etcd::range_of(*answer, 0);
        if (range == nullptr) co_return fail(Code::corrupt, "etcd's answer lacks the list");
        if (revision == 0) revision = answer->header().revision();
        page.revision = Revision(static_cast<uint64_t>(revision));
        for (const mvccpb::KeyValue& one : range->kvs()) {
            CO_TRY_ASSIGN(KeyValue entry, layout.entry_of(one));
            bytes += entry.value.size();
            page.entries.push_back(std::move(entry));
        }
        page.more = range->more();
        bool full = page.entries.size() >= request.count_max || bytes > limits::kStoreListBytesMax;
        if (!page.more || full || range->kvs_size() == 0) co_return page;
        begin = layout.key_of(page.entries.back().key) + '\0';
    }
}

Task<Result<std::shared_ptr<EtcdWatch>>> EtcdStore::Thread::watch(std::string prefix,
                                                                  Revision from) {
    std::erase_if(watches_, [](const auto& watch) { return watch->is_closed(); });
    if (watches_.size() >= limits::kStoreWatchCountMax) {
        co_return fail(Code::busy, "the control store has {} watches already: close one first",
                       watches_.size());
    }
    auto watch = std::make_shared<EtcdWatch>(*session, std::move(prefix), from);
    watches_.insert(watch);
    background_.spawn(executor(), watch->pump());
    Result<void> opened = co_await watch->opened();
    if (!opened) {
        watch->close(opened.error());
        co_return fail(std::move(opened).error());
    }
    if (stopping_) co_return fail(stopping());
    co_return watch;
}

// Calls in flight end by themselves, within their limit.
Task<Result<void>> EtcdStore::Thread::stop() {
    stopping_ = true;
    for (const std::shared_ptr<EtcdWatch>& watch : watches_)
        watch->close(stopping());
    co_await gate_.close();
    write_mark();
    if (link) link->cancel_all();
    co_await background_.close();
    watches_.clear();
    co_return Result<void>();
}

// Called from the caller's core; the watch is the store thread's.
class EtcdStore::ThreadWatch final : public Watch {
  public:
    ThreadWatch(std::shared_ptr<Thread> thread, std::shared_ptr<EtcdWatch> watch)
        : thread_(std::move(thread)), watch_(std::move(watch)) {}
    ~ThreadWatch() override { close(); }

    Task<Result<std::vector<Event>>> next() override {
        auto make = [watch = watch_] { return next_of(watch); };
        return runtime::call_on(thread_->executor(), std::move(make));
    }
    void close() override {
        asio::post(thread_->executor(), [watch = watch_] {
            watch->close(Error(Code::stopping, "the watch was closed"));
        });
    }

  private:
    static Task<Result<std::vector<Event>>> next_of(std::shared_ptr<EtcdWatch> watch) {
        co_return co_await watch->next();
    }

    std::shared_ptr<Thread> thread_;
    std::shared_ptr<EtcdWatch> watch_;
};

Result<void> check_etcd_prefix(std::string_view prefix) {
    bool sound = !prefix.empty() && prefix.size() <= kEtcdPrefixBytesMax && prefix.ends_with('/');
    for (char c : prefix)
        sound = sound && c > ' ' && c < '\x7f';
    if (sound) return {};
    return fail(
        Code::invalid_argument,
        "the prefix \"{}\" of the keys in etcd must be 1 to {} printable characters and end "
        "with '/'",
        prefix, kEtcdPrefixBytesMax);
}

EtcdStore::EtcdStore(std::shared_ptr<Thread> thread) : thread_(std::move(thread)) {}

EtcdStore::~EtcdStore() = default;

Task<Result<std::unique_ptr<EtcdStore>>> EtcdStore::connect(EtcdOptions options) {
    CO_TRY(check_etcd_prefix(options.prefix));
    if (options.call_limit <= Duration{} || options.call_limit > kEtcdCallMax) {
        co_return fail(Code::invalid_argument, "a call to etcd may last up to {} s",
                       std::chrono::duration_cast<std::chrono::seconds>(kEtcdCallMax).count());
    }
    auto thread = std::make_shared<Thread>();
    auto open = [&options](Thread& own) { return own.open(std::move(options)); };
    Result<void> opened = co_await thread->call(open);
    std::unique_ptr<EtcdStore> store(new EtcdStore(std::move(thread)));
    if (opened) co_return store;
    Result<void> stopped = co_await store->stop();
    if (!stopped) LOG_DEBUG("etcd store why=\"{}\"", stopped.error().text());
    co_return fail(std::move(opened).error());
}

namespace {

Task<Result<std::optional<KeyValue>>> get_from(EtcdSession& session, std::string key) {
    etcdserverpb::TxnRequest request = session.layout().get(key);
    CO_TRY_ASSIGN(etcdserverpb::TxnResponse answer, co_await session.read(std::move(request), 1));
    const etcd::RangeResponse* range = etcd::range_of(answer, 0);
    if (range == nullptr) co_return fail(Code::corrupt, "etcd's answer lacks the key");
    std::optional<KeyValue> found;
    if (range->kvs_size() > 0) {
        CO_TRY_ASSIGN(found, session.layout().entry_of(range->kvs(0)));
    }
    co_return found;
}

Task<Result<Generation>> generation_of(EtcdSession& session) {
    CO_TRY(co_await session.read(session.layout().identity(), 0));
    co_return session.generation();
}

Task<Result<void>> compact_at(EtcdSession& session, Revision revision) {
    etcdserverpb::CompactionRequest request;
    request.set_revision(static_cast<int64_t>(revision.value));
    etcdserverpb::CompactionResponse response;
    co_return co_await session.ask("/etcdserverpb.KV/Compact", request, response);
}

}  // namespace

Task<Result<std::optional<KeyValue>>> EtcdStore::get(std::string key) {
    CO_TRY(check_key(key));
    auto make = [key = std::move(key)](Thread& own) { return get_from(*own.session, key); };
    co_return co_await thread_->call(std::move(make));
}

Task<Result<Page>> EtcdStore::list(ListRequest request) {
    CO_TRY(check_list(request));
    auto make = [request = std::move(request)](Thread& own) { return own.list(request); };
    co_return co_await thread_->call(std::move(make));
}

Task<Result<Revision>> EtcdStore::compare_and_set(Transaction transaction, Generation demanded) {
    CO_TRY(check_transaction(transaction));
    auto make = [transaction = std::move(transaction), demanded](Thread& own) {
        return own.session->change(transaction, demanded);
    };
    co_return co_await thread_->call(std::move(make));
}

Task<Result<Generation>> EtcdStore::generation() {
    auto make = [](Thread& own) { return generation_of(*own.session); };
    co_return co_await thread_->call(std::move(make));
}

Task<Result<std::unique_ptr<Watch>>> EtcdStore::watch(std::string prefix, Revision from) {
    auto make = [prefix = std::move(prefix), from](Thread& own) { return own.watch(prefix, from); };
    CO_TRY_ASSIGN(std::shared_ptr<EtcdWatch> watch, co_await thread_->call(std::move(make)));
    co_return std::make_unique<ThreadWatch>(thread_, std::move(watch));
}

Task<Result<void>> EtcdStore::compact(Revision revision) {
    auto make = [revision](Thread& own) { return compact_at(*own.session, revision); };
    co_return co_await thread_->call(std::move(make));
}

Task<Result<void>> EtcdStore::stop() {
    // The thread must not own itself: whoever gives it up last waits for its end.
    auto make = [thread = thread_.get()] { return thread->stop(); };
    co_return co_await runtime::call_on(thread_->executor(), std::move(make));
}

}  // namespace peplos::control
