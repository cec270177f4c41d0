// peplos-sim: runs the storage engine in a simulated world from a seed, breaks what can break, and
// checks every answer. The same seed gives the same run and the same event hash.

#include <CLI/CLI.hpp>
#include <array>
#include <chrono>
#include <csignal>
#include <cstdio>
#include <cstring>
#include <fmt/format.h>
#include <limits>
#include <malloc.h>
#include <set>
#include <spdlog/sinks/ringbuffer_sink.h>
#include <spdlog/spdlog.h>
#include <unistd.h>

#include "base/fault.h"
#include "swarm/cluster_run.h"
#include "swarm/exhaustive.h"
#include "swarm/planted.h"
#include "swarm/run.h"

namespace peplos::app {
namespace {

using Wall = std::chrono::steady_clock;

struct Wish {
    uint64_t seed = 1;
    uint64_t runs = 1;
    uint64_t step = 1;
    double minutes = 0;
    std::string config = "swarm";
    std::string planted;
    size_t trace_lines = 60;
    uint32_t exhaustive = 0;  // 0: from seeds
    std::string sequence;     // for exhaustive; empty: all
    uint64_t shard = 0;
    uint64_t shards = 1;
    bool verbose = false;
};

std::string replay_command(const Wish& wish, uint64_t seed) {
    std::string planted = wish.planted.empty() ? "" : " --plant " + wish.planted;
    return fmt::format("peplos-sim --seed {} --config {}{}", seed, wish.config, planted);
}

// What a run leaves behind that ends in a failed CHECK or a crash: the command that replays it.
std::array<char, 512> last_words{};

void say_last_words(int) {
    ssize_t written = write(STDERR_FILENO, last_words.data(), std::strlen(last_words.data()));
    (void)written;
    _exit(134);
}

// A sanitizer that has a handler of its own says more.
void say_last_words_on(int signal) {
    struct sigaction now{};
    if (sigaction(signal, nullptr, &now) == 0 && now.sa_handler == SIG_DFL)
        std::signal(signal, say_last_words);
}

void prepare_last_words(std::string_view what, std::string_view replay) {
    auto end = fmt::format_to_n(last_words.data(), last_words.size() - 1,
                                "FAIL {}: the program aborted\n  replay: {}\n", what, replay);
    *end.out = '\0';
}

// The last lines of the log, for a failure's report.
std::shared_ptr<spdlog::sinks::ringbuffer_sink_mt> keep_log() {
    auto log = std::make_shared<spdlog::sinks::ringbuffer_sink_mt>(20);
    auto logger = std::make_shared<spdlog::logger>("sim", log);
    logger->set_pattern("%l %v");
    spdlog::set_default_logger(logger);
    return log;
}

// Several nodes; the others are one.
constexpr std::string_view kClusterConfig = "cluster";

swarm::RunReport run_seed(const Wish& wish, uint64_t seed) {
    auto log = keep_log();
    prepare_last_words(fmt::format("seed {}", seed), replay_command(wish, seed));
    swarm::Trace trace(wish.trace_lines);
    std::string description;
    auto run = [&]<typename RunOf>(auto plan, std::type_identity<RunOf>) {
        plan.planted = wish.planted;
        description = swarm::describe(plan);
        if (wish.verbose) fmt::print("seed {}: {}\n", seed, description);
        return RunOf(seed, std::move(plan), trace).execute();
    };
    swarm::RunReport report =
        wish.config == kClusterConfig
            ? run(swarm::draw_cluster_plan(seed), std::type_identity<swarm::ClusterRun>())
            : run(swarm::draw_plan(wish.config, seed), std::type_identity<swarm::Run>());
    if (report.problem.empty()) return report;
    fmt::print("FAIL seed {} hash {:016x} after {} events: {}\n  plan: {}\n  replay: {}\n", seed,
               report.event_hash, report.counts.events, report.problem, description,
               replay_command(wish, seed));
    for (const std::string& line : trace.lines())
        fmt::print("    {}\n", line);
    for (const std::string& line : log->last_formatted())
        fmt::print("    log: {}", line);
    return report;
}

// Rare paths and decisions that no run came to: what the simulator does not try.
void print_never_reached(const swarm::RunCounts& totals) {
    std::set<std::string_view> never;
    for (const base::Site* site = base::sites_begin; site != base::sites_end; ++site) {
        if (site->kind == base::SiteKind::planted) continue;
        bool is_probe = site->kind == base::SiteKind::probe;
        const auto& reached = is_probe ? totals.probes : totals.passes;
        if (!reached.contains(std::string_view(site->name))) never.insert(site->name);
    }
    for (std::string_view name : never)
        fmt::print("  never reached: {}\n", name);
}

void print_totals(const swarm::RunCounts& totals, uint64_t runs, double seconds) {
    double simulated = std::chrono::duration<double>(totals.simulated).count();
    fmt::print(
        "{} runs, {} events, {} operations checked, {} stops, {} kills, {} power losses, {} starts "
        "cut off; {} volumes closed by damage, {} of them recovered, {} lost ends of journals made "
        "good; {:.0f} s "
        "simulated in {:.0f} s, {:.0f} runs an hour\n",
        runs, totals.events, totals.operations, totals.stops, totals.kills, totals.power_losses,
        totals.cut_starts, totals.volumes_hurt, totals.recoveries, totals.lost_ends, simulated,
        seconds, seconds > 0 ? static_cast<double>(runs) * 3600 / seconds : 0);
    for (const auto& [name, count] : totals.faults) {
        fmt::print("  fault {} {}, {:.1f} in an hour of simulated time\n", name, count,
                   static_cast<double>(count) * 3600 / simulated);
    }
    for (const auto& [name, count] : totals.probes)
        fmt::print("  probe {} {}\n", name, count);
    for (const auto& [name, count] : totals.passes)
        fmt::print("  fault site {} {}\n", name, count);
    print_never_reached(totals);
}

// What the published count of seeds means by one.
constexpr uint64_t kFullRunOperations = 2'000;
constexpr uint64_t kFullRunFaults = 20;

int run_all(const Wish& wish) {
    swarm::RunCounts totals;
    uint64_t full_runs = 0;
    uint64_t runs = 0;
    Wall::time_point begin = Wall::now();
    auto seconds = [begin] { return std::chrono::duration<double>(Wall::now() - begin).count(); };
    uint64_t failed = 0;
    uint64_t failed_max = wish.planted.empty() ? 5 : 1;
    for (uint64_t seed = wish.seed; failed < failed_max; seed += wish.step) {
        bool enough = wish.minutes > 0 ? seconds() >= wish.minutes * 60 : runs >= wish.runs;
        if (enough) break;
        swarm::RunReport report = run_seed(wish, seed);
        ++runs;
        totals.add(report.counts);
        bool is_full = report.counts.operations >= kFullRunOperations &&
                       report.counts.fault_count() >= kFullRunFaults;
        full_runs += is_full ? 1 : 0;
        if (!report.problem.empty()) {
            ++failed;
        } else if (wish.verbose || (wish.minutes == 0 && wish.runs == 1)) {
            fmt::print("ok seed {} hash {:016x}\n", seed, report.event_hash);
        }
        std::fflush(stdout);
    }
    print_totals(totals, runs, seconds());
    fmt::print("{} of {} runs had at least {} operations and {} faults\n", full_runs, runs,
               kFullRunOperations, kFullRunFaults);
    fmt::print("{} passed, {} failed\n", runs - failed, failed);
    return failed == 0 ? 0 : 1;
}

int run_all_sequences(const Wish& wish) {
    swarm::ExhaustiveOptions options{.depth = wish.exhaustive,
                                     .shard = wish.shard,
                                     .shards = wish.shards,
                                     .planted = wish.planted};
    std::string wrong;
    options.only = swarm::steps_of(wish.sequence, &wrong);
    if (!wrong.empty()) {
        fmt::print(stderr, "peplos-sim: no step is called {:?}\n", wrong);
        return 2;
    }
    keep_log();
    auto replay = [&wish](std::string_view sequence) {
        std::string planted = wish.planted.empty() ? "" : " --plant " + wish.planted;
        return fmt::format("peplos-sim --exhaustive {} --sequence {}{}", wish.exhaustive, sequence,
                           planted);
    };
    options.progress = [&](const std::vector<swarm::Step>& steps) {
        std::string names;
        for (swarm::Step step : steps)
            names += (names.empty() ? "" : ",") + std::string(swarm::name_of(step));
        prepare_last_words("sequence " + names, replay(names));
    };
    Wall::time_point begin = Wall::now();
    swarm::ExhaustiveReport report = swarm::run_exhaustive(options);
    double seconds = std::chrono::duration<double>(Wall::now() - begin).count();
    if (!report.problem.empty()) {
        fmt::print("FAIL sequence {}: {}\n  replay: {}\n", report.sequence, report.problem,
                   replay(report.sequence));
    }
    fmt::print(
        "{} sequences, {} crash points, {} crash states, {} of them distinct and recovered, in "
        "{:.0f} s\n",
        report.sequences, report.crash_points, report.crash_states, report.distinct_states,
        seconds);
    bool is_good = report.problem.empty();
    fmt::print("{} passed, {} failed\n", is_good ? 1 : 0, is_good ? 0 : 1);
    return is_good ? 0 : 1;
}

int main_with(int argc, char** argv) {
    Wish wish;
    CLI::App app("Runs the storage engine in a simulated world, from a seed.", "peplos-sim");
    app.add_option("--seed", wish.seed, "the first seed")->capture_default_str();
    app.add_option("--runs", wish.runs, "so many seeds")->capture_default_str();
    app.add_option("--step", wish.step, "from one seed to the next, to share seeds out")
        ->check(CLI::PositiveNumber);
    app.add_option("--minutes", wish.minutes, "go on for so long instead of --runs")
        ->check(CLI::NonNegativeNumber);
    std::vector<std::string> names;
    for (std::string_view name : swarm::plan_names())
        names.emplace_back(name);
    names.emplace_back(kClusterConfig);
    app.add_option("--config", wish.config, "what is drawn")
        ->check(CLI::IsMember(names))
        ->capture_default_str();
    std::vector<std::string> mistakes;
    mistakes.reserve(std::size(swarm::kMistakes));
    for (const swarm::Mistake& mistake : swarm::kMistakes)
        mistakes.emplace_back(mistake.name);
    app.add_option("--plant", wish.planted, "make this mistake: it must be found")
        ->check(CLI::IsMember(mistakes))
        ->group("Testing the simulator");
    app.add_flag_callback(
           "--list-planted",
           [] {
               for (const swarm::Mistake& mistake : swarm::kMistakes)
                   fmt::print("{}\t{}\t{}\n", mistake.name, mistake.config, mistake.what);
               throw CLI::Success();
           },
           "print the mistakes that --plant knows")
        ->group("Testing the simulator");
    app.add_option("--trace", wish.trace_lines, "lines of history that a failure prints");
    app.add_flag("--verbose", wish.verbose, "a line for each seed");
    app.add_option("--exhaustive", wish.exhaustive,
                   "instead: every sequence of so many operations and fewer, cut off everywhere")
        ->check(CLI::Range(1, 4));
    app.add_option("--sequence", wish.sequence, "of these only this one, as write,drain,restart");
    app.add_option("--shard", wish.shard, "of --shards parts this one, from 0");
    app.add_option("--shards", wish.shards, "shares the sequences out")->check(CLI::PositiveNumber);
    CLI11_PARSE(app, argc, argv);
    for (int signal : {SIGABRT, SIGSEGV, SIGBUS, SIGILL, SIGFPE})
        say_last_words_on(signal);
    return wish.exhaustive != 0 ? run_all_sequences(wish) : run_all(wish);
}

}  // namespace
}  // namespace peplos::app

int main(int argc, char** argv) {
    // Worlds come and go by the thousand. Their memory stays here for the next one: given back to
    // the kernel each time, its pages cost ten times as much as what is computed in them.
    ::mallopt(M_MMAP_MAX, 0);
    ::mallopt(M_TRIM_THRESHOLD, std::numeric_limits<int>::max());
    return peplos::app::main_with(argc, argv);
}
