// peplos-bench: loads the storage engine in its own process, without a door in front, and prints
// one JSON object per run. bench/run.py sets it beside fio on the raw file of the same disk.

#include <CLI/CLI.hpp>
#include <csignal>
#include <cstdio>
#include <fstream>
#include <nlohmann/json.hpp>
#include <sys/resource.h>
#include <unistd.h>

#include "app/bench_load.h"
#include "app/bench_stage.h"
#include "runtime/core.h"
#include "runtime/system.h"

namespace peplos::app {
namespace {

double cpu_seconds() {
    rusage usage{};
    getrusage(RUSAGE_SELF, &usage);
    auto seconds = [](const timeval& t) {
        return static_cast<double>(t.tv_sec) + static_cast<double>(t.tv_usec) / 1e6;
    };
    return seconds(usage.ru_utime) + seconds(usage.ru_stime);
}

// What this process had the kernel write to storage, page cache or not (see proc(5)).
uint64_t written_to_storage() {
    std::ifstream counters("/proc/self/io");
    std::string name;
    uint64_t value = 0;
    while (counters >> name >> value) {
        if (name == "write_bytes:") return value;
    }
    return 0;
}

struct Wish {
    BenchStageOptions stage;
    BenchLoad load;
    bool prepare = false;
    uint32_t fill_percent = 100;
    // Leaves mapped one block each, over this many bytes: what a restart has to survive.
    uint64_t sparse_bytes = 0;
    // Written at the end, with nothing drained any more: what a restart has to replay.
    uint64_t undrained_bytes = 0;
    bool leave_dirty = false;
    // Percent of the span to write over before the measurement, with the same operations.
    uint32_t overwrite_percent = 0;
    // The figures include draining and a checkpoint after the load.
    bool with_drain = false;
};

uint64_t resident_bytes() {
    std::ifstream status("/proc/self/statm");
    uint64_t total = 0, resident = 0;
    status >> total >> resident;
    return resident * static_cast<uint64_t>(sysconf(_SC_PAGESIZE));
}

nlohmann::json memory_of(BenchStage& stage) {
    uint64_t map_bytes = stage.volume().stats().map_bytes;
    if (stage.beside() != nullptr) map_bytes += stage.beside()->stats().map_bytes;
    return {{"map_bytes", map_bytes},
            {"leaf_cache_used_bytes", stage.leaf_cache_used_bytes()},
            {"resident_bytes", resident_bytes()}};
}

Task<Result<nlohmann::json>> prepare(BenchStage& stage, const Wish& wish) {
    CO_TRY(co_await stage.format());
    CO_TRY(co_await stage.open_volumes());
    if (stage.beside() != nullptr) {
        CO_TRY(co_await write_one_block_per_leaf(*stage.beside(), stage.beside()->size_bytes()));
    }
    if (wish.sparse_bytes != 0) {
        CO_TRY(co_await write_one_block_per_leaf(stage.volume(), wish.sparse_bytes));
    } else {
        uint64_t bytes = stage.volume().size_bytes() / 100 * wish.fill_percent;
        CO_TRY(co_await fill(stage.volume(), round_down(bytes, kMiB)));
    }
    CO_TRY(co_await stage.close_volumes());
    co_return nlohmann::json{{"prepared_bytes", stage.stored_bytes()}};
}

// Writes so much that no drain takes any more; returns the bytes written.
Task<Result<uint64_t>> leave_undrained(BenchStage& stage, uint64_t bytes) {
    // So that what is left undrained is this, and has room in memory.
    CO_TRY(co_await stage.volume().drain());
    co_await stage.stop_keeper();
    BenchLoad last{.operation = "write", .is_random = true, .depth = 32, .seconds = 600};
    last.bytes_max = bytes;
    CO_TRY_ASSIGN(BenchResult written,
                  co_await run_load(stage.executor(), stage.clock(), stage.rng(), stage.volume(),
                                    std::move(last)));
    co_return written.bytes;
}

Task<Result<nlohmann::json>> measure(BenchStage& stage, const Wish& wish) {
    Time before_open = stage.clock().now();
    uint64_t resident_before = resident_bytes();
    CO_TRY(co_await stage.open_device());
    double device_seconds =
        std::chrono::duration<double>(stage.clock().now() - before_open).count();
    CO_TRY(co_await stage.open_volumes());
    double open_seconds = std::chrono::duration<double>(stage.clock().now() - before_open).count();
    nlohmann::json out = {{"open_seconds", open_seconds},
                          {"open_device_seconds", device_seconds},
                          {"ring_used_bytes", stage.ring_stats().used_bytes},
                          {"undrained_bytes", stage.volume().stats().undrained_bytes},
                          {"live_bytes", stage.volume().stats().live_bytes},
                          {"resident_bytes_before", resident_before},
                          {"memory_at_open", memory_of(stage)}};
    if (wish.load.seconds > 0) {
        if (wish.overwrite_percent != 0) {
            BenchLoad first = wish.load;
            uint64_t span = first.span_bytes == 0 ? stage.volume().size_bytes() : first.span_bytes;
            first.bytes_max = span / 100 * wish.overwrite_percent;
            first.seconds = 3600;
            CO_TRY(co_await run_load(stage.executor(), stage.clock(), stage.rng(), stage.volume(),
                                     first));
        }
        volume::VolumeStats before = stage.volume().stats();
        uint64_t storage_before = written_to_storage();
        double cpu_before = cpu_seconds();
        CO_TRY_ASSIGN(BenchResult result,
                      co_await run_load(stage.executor(), stage.clock(), stage.rng(),
                                        stage.volume(), wish.load));
        if (wish.with_drain) {
            Time begin = stage.clock().now();
            CO_TRY(co_await stage.volume().drain());
            CO_TRY(co_await stage.volume().checkpoint());
            double took = std::chrono::duration<double>(stage.clock().now() - begin).count();
            result.seconds += took;
            out["drain_seconds"] = took;
        }
        double cpu = cpu_seconds() - cpu_before;
        uint64_t storage_bytes = written_to_storage() - storage_before;
        volume::VolumeStats after = stage.volume().stats();
        out.update(result.json());
        out["cpu_us_per_op"] =
            result.operations == 0 ? 0.0 : cpu * 1e6 / static_cast<double>(result.operations);
        out["storage_bytes"] = storage_bytes;
        out["stored_share"] = stage.stored_share();
        out["written_bytes"] = after.write.bytes - before.write.bytes;
        out["drained_bytes"] = after.drained_bytes - before.drained_bytes;
        out["relocated_bytes"] = after.relocated_bytes - before.relocated_bytes;
        out["checkpoint_bytes"] = after.checkpoint_bytes - before.checkpoint_bytes;
        out["memory"] = memory_of(stage);
        out["ring_written_bytes"] = stage.ring_stats().appended_bytes;
    }
    if (wish.undrained_bytes != 0) {
        CO_TRY_ASSIGN(out["left_undrained_bytes"],
                      co_await leave_undrained(stage, wish.undrained_bytes));
    }
    if (wish.leave_dirty) {
        std::puts(out.dump().c_str());
        std::fflush(stdout);
        raise(SIGKILL);
    }
    CO_TRY(co_await stage.close_volumes());
    co_return out;
}

Task<void> main_task(runtime::Core& core, BenchStage& stage, const Wish& wish, int& exit_code) {
    Result<nlohmann::json> out = Result<nlohmann::json>();
    if (wish.prepare) {
        out = co_await prepare(stage, wish);
    } else {
        out = co_await measure(stage, wish);
    }
    co_await stage.close();
    if (out) {
        std::puts(out->dump().c_str());
    } else {
        std::fprintf(stderr, "peplos-bench: %s\n", out.error().text().c_str());
        exit_code = 1;
    }
    core.stop();
}

int run(int argc, char** argv) {
    CLI::App app("Loads the Peplos engine without a door in front");
    Wish wish;
    app.require_subcommand(1);
    auto* prepare_command = app.add_subcommand("prepare", "format the file and fill a volume");
    auto* run_command = app.add_subcommand("run", "open the prepared volume and load it");
    for (auto* command : {prepare_command, run_command}) {
        command->add_option("--file", wish.stage.path, "the device file")->required();
        command->add_option("--leaf-cache", wish.stage.leaf_cache_bytes, "bytes of cached leaves");
        command->add_option("--overlay", wish.stage.overlay_bytes, "bytes of undrained data");
    }
    prepare_command->add_option("--bytes", wish.stage.device_bytes, "size of the file");
    prepare_command->add_option("--ring", wish.stage.ring_bytes, "size of the journal");
    for (auto* command : {prepare_command, run_command}) {
        command->add_option("--volume", wish.stage.volume_bytes, "size of the volume");
        command->add_option("--beside", wish.stage.beside_bytes,
                            "size of a second volume with one block in every 4 MiB; 0: none");
    }
    bool no_prezero = false;
    prepare_command->add_flag("--no-prezero", no_prezero, "leave the new file unwritten");
    prepare_command->add_option("--fill", wish.fill_percent, "percent of the volume to write");
    prepare_command->add_option("--sparse", wish.sparse_bytes, "one block per 4 MiB, up to here");
    run_command->add_option("--op", wish.load.operation, "read, write or mix (70 % reads)");
    run_command->add_flag("--random", wish.load.is_random, "random offsets");
    run_command->add_option("--bs", wish.load.block_bytes, "bytes per operation");
    run_command->add_option("--qd", wish.load.depth, "operations in flight");
    run_command->add_option("--seconds", wish.load.seconds, "how long; 0: open and close only");
    run_command->add_option("--span", wish.load.span_bytes, "bytes of the volume to use; 0: all");
    run_command->add_option("--overwrite", wish.overwrite_percent,
                            "percent of the span to write over before measuring");
    run_command->add_flag("--with-drain", wish.with_drain,
                          "drain and checkpoint after the load, as part of it");
    run_command->add_option("--undrained", wish.undrained_bytes,
                            "bytes to write at the end that are not drained any more");
    run_command->add_flag("--leave-dirty", wish.leave_dirty, "end by SIGKILL, without a close");
    CLI11_PARSE(app, argc, argv);
    wish.prepare = prepare_command->parsed();
    wish.stage.prezero = !no_prezero;

    Result<std::unique_ptr<runtime::Core>> core = runtime::Core::make({.name = "storage"});
    if (!core) {
        std::fprintf(stderr, "peplos-bench: %s\n", core.error().text().c_str());
        return 1;
    }
    int exit_code = 0;
    {
        BenchStage stage(**core, wish.stage);
        runtime::spawn((*core)->executor(), main_task(**core, stage, wish, exit_code));
        (*core)->run();
    }
    return exit_code;
}

}  // namespace
}  // namespace peplos::app

int main(int argc, char** argv) {
    return peplos::app::run(argc, argv);
}
