// peplos-bench-store: creates volume records in an etcd as the node does, several at once, and
// lists them. Prints one JSON object. bench/control.py starts the etcd and adds its size.

#include <CLI/CLI.hpp>
#include <algorithm>
#include <cstdio>
#include <nlohmann/json.hpp>

#include "control/etcd_store.h"
#include "control/records.h"
#include "runtime/core.h"
#include "runtime/gate.h"
#include "runtime/system.h"

namespace peplos::app {
namespace {

using runtime::Task;

struct Wish {
    control::EtcdOptions store;
    uint32_t volume_count = 1000;
    uint32_t depth = 32;
};

struct Run {
    control::Store& store;
    runtime::Env& env;
    uint32_t next = 0;
    uint32_t volume_count = 0;
    std::vector<double> latencies_ms;
    std::optional<Error> failure;
};

double seconds_between(Time from, Time to) {
    return std::chrono::duration<double>(to - from).count();
}

Result<control::Transaction> creation_of(Run& run, uint32_t number) {
    control::VolumeRecord record;
    record.id = VolumeId(run.env.rng.next_id());
    record.name = fmt::format("volume-{:06}", number);
    record.lineage = LineageId(run.env.rng.next_id());
    record.size_bytes = 20 * kGiB;
    record.created_at_s = 1'800'000'000;
    return control::volume_creation(record);
}

Task<void> create_volumes(Run& run) {
    while (run.next < run.volume_count && !run.failure) {
        Result<control::Transaction> creation = creation_of(run, run.next++);
        Time began = run.env.clock.now();
        Result<control::Revision> created = control::Revision{};
        if (creation) {
            created = co_await run.store.compare_and_set(std::move(*creation));
        } else {
            created = fail(std::move(creation).error());
        }
        if (!created) {
            run.failure = created.error();
            co_return;
        }
        run.latencies_ms.push_back(1e3 * seconds_between(began, run.env.clock.now()));
    }
}

double percentile(std::vector<double>& values, double share) {
    if (values.empty()) return 0;
    auto at =
        values.begin() + static_cast<ptrdiff_t>(share * static_cast<double>(values.size() - 1));
    std::nth_element(values.begin(), at, values.end());
    return *at;
}

Task<Result<nlohmann::json>> measure(control::Store& store, runtime::Env& env, const Wish& wish) {
    Run run{.store = store, .env = env, .volume_count = wish.volume_count, .failure = {}};
    runtime::Gate gate;
    Time began = env.clock.now();
    for (uint32_t i = 0; i < wish.depth; ++i)
        gate.spawn(env.executor, create_volumes(run));
    co_await gate.close();
    if (run.failure) co_return fail(*run.failure);
    Time created = env.clock.now();
    CO_TRY_ASSIGN(control::Page all,
                  co_await control::list_all(store, std::string(control::kVolumePrefix)));
    double seconds = seconds_between(began, created);
    co_return nlohmann::json{{"volumes", wish.volume_count},
                             {"creates_per_second", wish.volume_count / seconds},
                             {"p50_ms", percentile(run.latencies_ms, 0.5)},
                             {"p99_ms", percentile(run.latencies_ms, 0.99)},
                             {"listed", all.entries.size()},
                             {"list_seconds", seconds_between(created, env.clock.now())}};
}

Task<void> main_task(runtime::Core& core, runtime::Env& env, const Wish& wish, int& exit_code) {
    auto store = co_await control::EtcdStore::connect(wish.store);
    Result<nlohmann::json> out = nlohmann::json();
    if (store) {
        out = co_await measure(**store, env, wish);
        Result<void> stopped = co_await (*store)->stop();
        if (!stopped) out = fail(std::move(stopped).error());
    } else {
        out = fail(std::move(store).error());
    }
    if (out) {
        std::puts(out->dump().c_str());
    } else {
        std::fprintf(stderr, "peplos-bench-store: %s\n", out.error().text().c_str());
        exit_code = 1;
    }
    core.stop();
}

int run(int argc, char** argv) {
    CLI::App app("Creates volume records in an etcd");
    Wish wish;
    app.add_option("--etcd", wish.store.address.endpoints, "URLs of the etcd")->required();
    app.add_option("--prefix", wish.store.prefix, "of the keys");
    app.add_option("--volumes", wish.volume_count, "how many");
    app.add_option("--depth", wish.depth, "creations at once");
    CLI11_PARSE(app, argc, argv);
    Result<std::unique_ptr<runtime::Core>> core = runtime::Core::make({.name = "bench"});
    if (!core) {
        std::fprintf(stderr, "peplos-bench-store: %s\n", core.error().text().c_str());
        return 1;
    }
    int exit_code = 0;
    runtime::System system(core->get());
    runtime::spawn((*core)->executor(), main_task(**core, system.env(), wish, exit_code));
    (*core)->run();
    return exit_code;
}

}  // namespace
}  // namespace peplos::app

int main(int argc, char** argv) {
    return peplos::app::run(argc, argv);
}
