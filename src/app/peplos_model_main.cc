// peplos-model: tries every order of messages, writes, crashes and claims on a small cluster with
// the replication protocol's own state machines, and checks what the users see.

#include <CLI/CLI.hpp>
#include <chrono>
#include <cstdio>
#include <cstring>
#include <fmt/format.h>

#include "base/fault.h"
#include "model/scopes.h"
#include "model/search.h"

namespace peplos::app {
namespace {

class Plant final : public base::FaultHooks {
  public:
    explicit Plant(const char* name) : name_(name) { base::fault_hooks = this; }
    Plant(const Plant&) = delete;
    ~Plant() override { base::fault_hooks = nullptr; }
    bool fault(const char*) override { return false; }
    void probe(const char*) override {}
    bool planted(const char* name) override { return std::strcmp(name_, name) == 0; }

  private:
    const char* name_;
};

struct Wish {
    std::vector<std::string> scopes;
    std::vector<std::string> planted;
    bool is_testing_itself = false;
    bool is_silent = false;
    model::SearchOptions options;
};

model::SearchReport run(const Wish& wish, const model::Scope& scope, std::string_view planted) {
    using Wall = std::chrono::steady_clock;
    Wall::time_point begin = Wall::now();
    model::SearchReport report = model::search(scope, wish.options);
    double seconds = std::chrono::duration<double>(Wall::now() - begin).count();
    fmt::print("{} {}: {} states, {} steps, depth {}, {} messages, {} fair runs, {:.1f} s{}\n",
               planted.empty() ? "scope" : planted, scope.name, report.states, report.steps,
               report.depth, report.messages, report.progress_checks, seconds,
               report.is_complete ? "" : ", not all of them");
    return report;
}

void print_trace(const model::SearchReport& report) {
    fmt::print("  {}\n", report.problem);
    for (const std::string& line : report.trace)
        fmt::print("    {}\n", line);
}

int run_all(const Wish& wish) {
    int passed = 0;
    int failed = 0;
    auto count = [&passed, &failed](bool is_good) { ++(is_good ? passed : failed); };
    for (const model::Scope& scope : model::scopes()) {
        bool is_wanted = wish.scopes.empty() || std::ranges::count(wish.scopes, scope.name) != 0;
        if (!is_wanted || !wish.planted.empty()) continue;
        model::SearchReport report = run(wish, scope, "");
        bool is_good = report.problem.empty() && report.is_complete;
        if (!is_good) fmt::print("FAIL {}: {}\n", scope.name, report.problem);
        if (!report.problem.empty()) print_trace(report);
        count(is_good);
        std::fflush(stdout);
    }
    for (const model::Mistake& mistake : model::mistakes()) {
        bool is_named = std::ranges::count(wish.planted, mistake.name) != 0;
        if (!is_named && (!wish.is_testing_itself || !wish.planted.empty())) continue;
        std::string_view name = wish.scopes.empty() ? mistake.scope : wish.scopes.front();
        Plant plant(mistake.name.data());
        model::SearchReport report = run(wish, *model::find_scope(name), mistake.name);
        bool is_found = !report.problem.empty();
        if (!is_found) fmt::print("FAIL {}: {}: not found\n", mistake.name, mistake.what);
        if (is_found && is_named) print_trace(report);
        if (is_found && !is_named) fmt::print("  found: {}\n", report.problem);
        count(is_found);
        std::fflush(stdout);
    }
    fmt::print("{} passed, {} failed\n", passed, failed);
    return failed == 0 ? 0 : 1;
}

int main_with(int argc, char** argv) {
    Wish wish;
    CLI::App app("Tries every order of events on the replication protocol.", "peplos-model");
    app.add_option("--scope", wish.scopes, "only these configurations");
    app.add_option("--plant", wish.planted, "make this mistake, and show how it is found");
    app.add_flag("--self-test", wish.is_testing_itself, "then make every mistake: each is found");
    app.add_option("--states", wish.options.states_max, "at most, for a configuration");
    app.add_option("--progress", wish.options.progress_every,
                   "every so many states: is the volume served again? 0: never");
    CLI11_PARSE(app, argc, argv);
    return run_all(wish);
}

}  // namespace
}  // namespace peplos::app

int main(int argc, char** argv) {
    return peplos::app::main_with(argc, argv);
}
