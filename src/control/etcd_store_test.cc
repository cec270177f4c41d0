// The store on real etcds that die, hang, fill up, forget and go back.
#include "control/etcd_store.h"

#include <gtest/gtest.h>

#include "control/etcd_mark.h"
#include "control/test_etcd.h"
#include "control/test_run.h"

namespace peplos::control {
namespace {

using std::chrono::milliseconds;
using std::chrono::seconds;

constexpr Duration kLimit = seconds(2);

class EtcdStoreTest : public testing::Test {
  public:
    // Every call ends soon after its limit, whatever etcd does.
    template <typename Make>
    auto bounded(Make make) {
        auto began = std::chrono::steady_clock::now();
        auto result = run_task(context, make());
        // A call may have to settle first which store it speaks to.
        EXPECT_LT(std::chrono::steady_clock::now() - began, 2 * kLimit + seconds(2));
        return result;
    }
    // Until `make()` gives success: what is away for a moment comes back.
    template <typename Make>
    auto until_ok(Make make) {
        auto deadline = std::chrono::steady_clock::now() + seconds(20);
        while (true) {
            auto result = make();
            if (result) return result;
            CHECK(std::chrono::steady_clock::now() < deadline, "{}", result.error().text());
        }
    }

    std::unique_ptr<EtcdStore> connect(const TestEtcd& etcd, std::string mark_file = "",
                                       std::string prefix = "/peplos/") {
        EtcdOptions options;
        options.address.endpoints = etcd.endpoints();
        options.prefix = std::move(prefix);
        options.call_limit = kLimit;
        options.mark_file = std::move(mark_file);
        return run_task(context, connect_when_up(options));
    }
    void stop(Store& store) { EXPECT_TRUE(run_task(context, store.stop())); }
    Result<Revision> set(Store& store, Transaction transaction, Generation demanded = {}) {
        return bounded([&] { return store.compare_and_set(transaction, demanded); });
    }
    Result<std::optional<KeyValue>> get(Store& store, std::string key) {
        return bounded([&] { return store.get(key); });
    }
    Generation generation(Store& store) {
        auto found = run_task(context, store.generation());
        CHECK(found.has_value(), "{}", found.error().text());
        return *found;
    }
    std::optional<KeyValue> read(Store& store, const std::string& key) {
        return *until_ok([&] { return get(store, key); });
    }
    // Changes `key` for certain, as a caller would: after an unknown outcome it reads.
    void change(Store& store, const std::string& key, const std::string& value) {
        until_ok([&]() -> Result<Revision> {
            std::optional<KeyValue> now = read(store, key);
            if (now && now->value == value) return now->mod_revision;
            return set(store, {put(key, now ? now->mod_revision : Revision{}, value)});
        });
    }
    std::vector<Event> next(Watch& watch, size_t count) {
        std::vector<Event> out;
        while (out.size() < count) {
            auto events = until_ok([&] { return run_task(context, watch.next()); });
            out.insert(out.end(), events->begin(), events->end());
        }
        return out;
    }

    boost::asio::io_context context;
};

TEST_F(EtcdStoreTest, GoesOverToAnotherMemberAndBack) {
    TestEtcd etcd(3);
    auto store = connect(etcd);
    change(*store, "a", "0");
    for (size_t dead = 0; dead < 3; ++dead) {
        etcd.kill(dead);
        for (int i = 0; i < 5; ++i)
            change(*store, "a", fmt::format("{}-{}", dead, i));
        etcd.start(dead);
        change(*store, "a", fmt::format("{} is back", dead));
    }
    etcd.kill(0);
    etcd.kill(1);
    for (int i = 0; i < 3; ++i) {
        Result<Revision> lost = set(*store, {put("a", std::nullopt, "x")});
        ASSERT_FALSE(lost);
        EXPECT_TRUE(lost.error().code() == Code::unavailable ||
                    lost.error().code() == Code::outcome_unknown)
            << lost.error().text();
        EXPECT_EQ(get(*store, "a").error().code(), Code::unavailable);
    }
    etcd.start(0);
    etcd.start(1);
    change(*store, "a", "all");
    EXPECT_EQ(read(*store, "a")->value, "all");
    stop(*store);
}

TEST_F(EtcdStoreTest, WatchesOverTheDeathOfAnyMember) {
    TestEtcd etcd(3);
    auto store = connect(etcd);
    auto watch = *run_task(context, store->watch("", Revision{}));
    std::vector<std::string> wanted, seen;
    for (size_t dead = 0; dead < 3; ++dead) {
        etcd.kill(dead);
        for (int i = 0; i < 5; ++i) {
            wanted.push_back(fmt::format("{}-{}", dead, i));
            change(*store, "a", wanted.back());
        }
        for (const Event& event : next(*watch, 5))
            seen.push_back(event.entry.value);
        etcd.start(dead);
        change(*store, "b", fmt::format("{} is back", dead));
        next(*watch, 1);
    }
    EXPECT_EQ(seen, wanted);
    watch.reset();
    stop(*store);
}

TEST_F(EtcdStoreTest, TellsAWatchWhatWasForgottenWhileItWasCut) {
    TestEtcd etcd(1);
    auto store = connect(etcd);
    auto quiet = *run_task(context, store->watch("quiet", Revision{}));
    auto busy = *run_task(context, store->watch("busy", Revision{}));
    for (int i = 0; i < 20; ++i)
        change(*store, "busy", fmt::format("{}", i));
    Revision newest = read(*store, "busy")->mod_revision;
    EXPECT_EQ(next(*busy, 20).back().entry.mod_revision, newest);
    ASSERT_TRUE(run_task(context, store->compact(newest)));
    etcd.kill(0);
    etcd.start(0);
    // It knows nothing of the twenty changes of others, and etcd has forgotten them.
    Result<std::vector<Event>> lost = run_task(context, quiet->next());
    while (!lost && lost.error().code() == Code::unavailable)
        lost = run_task(context, quiet->next());
    EXPECT_EQ(lost.error().code(), Code::conflict) << lost.error().text();
    // It has seen all that was forgotten.
    change(*store, "busy", "more");
    EXPECT_EQ(next(*busy, 1).front().entry.value, "more");
    quiet.reset();
    busy.reset();
    stop(*store);
}

TEST_F(EtcdStoreTest, LeavesOpenWhatAPausedEtcdMayStillDo) {
    TestEtcd etcd(1);
    auto store = connect(etcd);
    ASSERT_TRUE(set(*store, {create("a", "1")}));
    Revision before = read(*store, "a")->mod_revision;
    etcd.signal(0, SIGSTOP);
    Result<Revision> open = set(*store, {put("a", before, "2")});
    EXPECT_EQ(open.error().code(), Code::outcome_unknown) << open.error().text();
    EXPECT_EQ(get(*store, "a").error().code(), Code::unavailable);
    auto began = std::chrono::steady_clock::now();
    EXPECT_FALSE(get(*store, "a"));
    // Once etcd is known to be silent nobody waits the full limit any more.
    EXPECT_LT(std::chrono::steady_clock::now() - began, seconds(1) + milliseconds(500));
    etcd.signal(0, SIGCONT);
    change(*store, "a", "2");
    EXPECT_EQ(read(*store, "a")->value, "2");
    EXPECT_EQ(read(*store, "a")->version, 2u);  // done once
    stop(*store);
}

TEST_F(EtcdStoreTest, NoticesASnapshotThatWasPutBack) {
    TestEtcd etcd(1);
    auto store = connect(etcd);
    ASSERT_TRUE(set(*store, {create("a", "1")}));
    const std::string snapshot = etcd.folder() + "/snapshot";
    ASSERT_TRUE(etcd.control({"snapshot", "save", snapshot}));
    ASSERT_TRUE(set(*store, {create("b", "1")}));
    Generation first = generation(*store);
    // The default token gives the very cluster id again, another token another one.
    for (const char* token : {"etcd-cluster", "other"}) {
        etcd.kill(0);
        ASSERT_TRUE(etcd.restore(snapshot, token));
        etcd.start(0);
        Result<Revision> lost = until_ok([&]() -> Result<Result<Revision>> {
                                    auto one = set(*store, {create("c", "1")}, first);
                                    if (!one && one.error().code() == Code::unavailable)
                                        return fail(one.error());
                                    return one;
                                }).value();
        ASSERT_FALSE(lost) << token;
        EXPECT_EQ(lost.error().code(), Code::conflict) << lost.error().text();
        EXPECT_FALSE(read(*store, "b"));
        EXPECT_FALSE(read(*store, "c"));
        Generation second = generation(*store);
        EXPECT_NE(second, first);
        EXPECT_TRUE(set(*store, {create("d", "1")}, second));
        EXPECT_EQ(read(*store, "a")->value, "1");
        first = second;
    }
    stop(*store);
}

TEST_F(EtcdStoreTest, NoticesItAlsoWhenOthersHaveWrittenMoreSince) {
    TestEtcd etcd(1);
    auto store = connect(etcd);
    ASSERT_TRUE(set(*store, {create("a", "1")}));
    const std::string snapshot = etcd.folder() + "/snapshot";
    ASSERT_TRUE(etcd.control({"snapshot", "save", snapshot}));
    ASSERT_TRUE(set(*store, {create("b", "1")}));
    Generation first = generation(*store);
    auto watch = *run_task(context, store->watch("", Revision{}));
    etcd.kill(0);
    ASSERT_TRUE(etcd.restore(snapshot, "etcd-cluster"));
    etcd.start(0);
    {
        // A newcomer cannot know.
        auto other = connect(etcd);
        for (int i = 0; i < 10; ++i)
            change(*other, "b", fmt::format("{}", i));
        stop(*other);
    }
    EXPECT_FALSE(set(*store, {create("c", "1")}, first));
    EXPECT_NE(generation(*store), first);
    Result<std::vector<Event>> seen = run_task(context, watch->next());
    while (!seen && seen.error().code() == Code::unavailable)
        seen = run_task(context, watch->next());
    ASSERT_FALSE(seen);
    EXPECT_EQ(seen.error().code(), Code::conflict);
    watch.reset();
    stop(*store);
}

TEST_F(EtcdStoreTest, NoticesItOverARestartOfItsOwn) {
    TestEtcd etcd(1);
    const std::string mark = etcd.folder() + "/mark";
    auto store = connect(etcd, mark);
    ASSERT_TRUE(set(*store, {create("a", "1")}));
    const std::string snapshot = etcd.folder() + "/snapshot";
    ASSERT_TRUE(etcd.control({"snapshot", "save", snapshot}));
    ASSERT_TRUE(set(*store, {create("b", "1")}));
    Generation first = generation(*store);
    stop(*store);
    store = connect(etcd, mark);  // nothing happened
    EXPECT_EQ(generation(*store), first);
    stop(*store);
    etcd.kill(0);
    ASSERT_TRUE(etcd.restore(snapshot, "etcd-cluster"));
    etcd.start(0);
    auto unaware = connect(etcd);
    EXPECT_EQ(generation(*unaware), first);
    store = connect(etcd, mark);
    EXPECT_NE(generation(*store), first);
    // Whoever did not know is refused by its next change.
    EXPECT_EQ(set(*unaware, {create("c", "1")}, first).error().code(), Code::conflict);
    stop(*unaware);
    stop(*store);
}

TEST_F(EtcdStoreTest, SaysThatEtcdIsFullAndReadsOn) {
    TestEtcd etcd(1, {"--quota-backend-bytes", "4194304"});
    auto store = connect(etcd);
    Result<Revision> full = Revision{};
    int count = 0;
    for (; full && count < 1000; ++count) {
        std::string value = fmt::format("{} {}", count, std::string(60 * kKiB, 'x'));
        full = set(*store, {put(fmt::format("{}", count % 8), std::nullopt, value)});
    }
    ASSERT_FALSE(full);
    EXPECT_EQ(full.error().code(), Code::no_space) << full.error().text();
    EXPECT_EQ(set(*store, {put("a", std::nullopt, "")}).error().code(), Code::no_space);
    // Nothing of what was refused is there.
    EXPECT_FALSE(read(*store, "a"));
    std::string last = read(*store, fmt::format("{}", (count - 2) % 8))->value;
    EXPECT_TRUE(last.starts_with(fmt::format("{} ", count - 2)));
    Revision newest = run_task(context, list_all(*store, ""))->revision;
    ASSERT_TRUE(run_task(context, store->compact(newest)));
    ASSERT_TRUE(etcd.control({"defrag"}));
    ASSERT_TRUE(etcd.control({"alarm", "disarm"}));
    change(*store, "a", "1");
    stop(*store);
}

TEST_F(EtcdStoreTest, SharesAnEtcdWithOthers) {
    TestEtcd etcd(1);
    auto one = connect(etcd, "", "/peplos/one/");
    auto two = connect(etcd, "", "/peplos/two/");
    EXPECT_NE(generation(*one), generation(*two));
    auto watch = *run_task(context, one->watch("", Revision{}));
    ASSERT_TRUE(set(*two, {create("a", "2")}));
    ASSERT_TRUE(set(*one, {create("a", "1")}));
    std::vector<Event> seen = next(*watch, 1);
    ASSERT_EQ(seen.size(), 1u);
    EXPECT_EQ(seen.front().entry.value, "1");
    EXPECT_EQ(run_task(context, list_all(*two, ""))->entries.size(), 1u);
    watch.reset();
    stop(*one);
    stop(*two);
}

// A CA, and a certificate that it signed, for both sides.
struct Certificates {
    explicit Certificates(const std::string& folder, const std::string& name)
        : ca(folder + "/" + name + "-ca.pem"),
          cert(folder + "/" + name + ".pem"),
          key(folder + "/" + name + ".key") {
        const std::string log = folder + "/openssl.log", ca_key = ca + ".key",
                          request = key + ".csr";
        std::vector<std::string> fresh = {"openssl", "req",      "-newkey",
                                          "ec",      "-pkeyopt", "ec_paramgen_curve:prime256v1",
                                          "-nodes"};
        auto with = [&fresh](std::vector<std::string> more) {
            more.insert(more.begin(), fresh.begin(), fresh.end());
            return more;
        };
        CHECK(run_process(
                  with({"-x509", "-keyout", ca_key, "-out", ca, "-subj", "/CN=ca", "-days", "2"}),
                  log) == 0);
        CHECK(run_process(with({"-keyout", key, "-out", request, "-subj", "/CN=node", "-addext",
                                "subjectAltName=IP:127.0.0.1"}),
                          log) == 0);
        CHECK(
            run_process({"openssl", "x509", "-req", "-in", request, "-CA", ca, "-CAkey", ca_key,
                         "-CAcreateserial", "-copy_extensions", "copy", "-out", cert, "-days", "2"},
                        log) == 0);
    }
    EtcdAddress address(const TestEtcd& etcd) const { return {etcd.endpoints(), ca, cert, key}; }

    std::string ca;
    std::string cert;
    std::string key;
};

TEST_F(EtcdStoreTest, ProvesItselfAndAsksForProof) {
    std::string folder = testing::TempDir() + "peplos-tls-XXXXXX";
    ASSERT_NE(::mkdtemp(folder.data()), nullptr);
    Certificates ours(folder, "ours"), others(folder, "others");
    {
        TestEtcd etcd(1, {"--cert-file", ours.cert, "--key-file", ours.key, "--trusted-ca-file",
                          ours.ca, "--client-cert-auth"});
        EtcdOptions options;
        options.address = ours.address(etcd);
        options.call_limit = kLimit;
        auto store = run_task(context, connect_when_up(options));
        change(*store, "a", "1");
        stop(*store);
        // etcd is not the one that our CA knows, and it does not know us.
        options.address = others.address(etcd);
        EXPECT_EQ(run_task(context, EtcdStore::connect(options)).error().code(), Code::unavailable);
        options.address.ca_file = ours.ca;
        EXPECT_EQ(run_task(context, EtcdStore::connect(options)).error().code(), Code::unavailable);
    }
    std::filesystem::remove_all(folder);
}

TEST_F(EtcdStoreTest, RefusesWhatCannotWork) {
    auto refused = [this](EtcdOptions options) {
        auto began = std::chrono::steady_clock::now();
        auto store = run_task(context, EtcdStore::connect(options));
        EXPECT_LT(std::chrono::steady_clock::now() - began, seconds(5));
        CHECK(!store.has_value());
        return store.error().code();
    };
    EtcdOptions options;
    EXPECT_EQ(refused(options), Code::invalid_argument);
    for (const char* endpoint : {"ftp://x:1", "http://x", "https://x:1", "x:", ""}) {
        options.address.endpoints = {endpoint};
        EXPECT_EQ(refused(options), Code::invalid_argument) << endpoint;
    }
    options.address.endpoints = {fmt::format("http://127.0.0.1:{}", free_port())};
    EXPECT_EQ(refused(options), Code::unavailable);
    for (const char* prefix : {"", "/peplos", "/a b/"}) {
        options.prefix = prefix;
        EXPECT_EQ(refused(options), Code::invalid_argument) << prefix;
    }
    options.prefix = "/peplos/";
    options.address.ca_file = "/nonexistent/ca";
    EXPECT_EQ(refused(options), Code::invalid_argument);
    options.address.cert_file = options.address.key_file = "/nonexistent/file";
    options.address.endpoints = {"https://127.0.0.1:1"};
    EXPECT_EQ(refused(options), Code::not_found);
}

TEST(EtcdMarkTest, ReadsBackWhatItWroteAndNothingElse) {
    etcd::Identity identity{7, etcd::generation_text(5, 7), 42, "abc"};
    std::string text = text_of_mark(identity);
    EXPECT_EQ(parse_mark(text), identity);
    for (size_t i = 0; i < text.size(); ++i) {
        std::string bad = text;
        bad[i] = static_cast<char>(bad[i] ^ 1);
        EXPECT_FALSE(parse_mark(bad)) << i;
        EXPECT_FALSE(parse_mark(text.substr(0, i))) << i;
    }
    EXPECT_FALSE(parse_mark(text + "x"));
    EXPECT_FALSE(etcd::parse_generation(etcd::generation_text(0, 7)));
}

}  // namespace
}  // namespace peplos::control
