#pragma once

#include <deque>
#include <map>
#include <memory>
#include <optional>
#include <vector>

#include "sim/disk.h"
#include "sim/fault_plan.h"
#include "sim/net.h"
#include "sim/process.h"

// A world on one thread, from one seed. Everything that happens is an event; the same seed gives
// the same events in the same order, and so the same event_hash().
//
//     sim::World world(seed);
//     auto volume = world.run(open_volume(world.env(), "disk0"));
//     world.run(write_some(**volume));
//     world.crash();       // power loss: tasks vanish, unsynced sectors are kept, lost or torn
//     volume = {};         // destroy the objects of the dead process before opening anew
//     auto again = world.run(open_volume(world.env(), "disk0"));
//
// Time is virtual: it stands still while anything is ready and then jumps to the next timer.
// A world outlives every object that uses it. Objects whose tasks are still suspended must not be
// destroyed while their process lives: stop them, or kill the process first.
namespace peplos::sim {

enum class Order : uint8_t {
    random,  // ready handlers run in seeded random order: stricter than a real core, on purpose
    fifo,    // as a real core does it
};

struct WorldOptions {
    Order order = Order::random;
    DiskProfile disk;
    NetProfile net;
    // run() fails when the simulated time or the events that it took exceed this.
    Duration run_time_max = std::chrono::hours(1);
    uint64_t run_event_count_max = 500'000'000;
};

class World {
  public:
    explicit World(uint64_t seed, WorldOptions options = {});
    World(const World&) = delete;
    World& operator=(const World&) = delete;
    ~World();

    // The current process: the first one, or the one that the last crash() or kill() started.
    Process& process() { return *current_; }
    Env& env() { return current_->env(); }
    // Another process beside it, a node of a cluster for instance. Its disks and addresses share
    // one name space with those of all others.
    Process& start(std::string name);

    // Runs `task` on the current (or the given) process, and everything else, until it ends.
    // Throws std::runtime_error, which fails a test with a clear message, when nothing is ready and
    // no timer is set (a deadlock) or a limit of the options is exceeded; all processes are killed
    // before it throws.
    template <typename T>
    T run(Task<T> task);
    template <typename T>
    T run(Process& process, Task<T> task);
    // Runs at most `events` more events; nothing when the task has not ended by then. A test that
    // calls it with 0, 1, 2, ... and then crash() has crashed at every point.
    template <typename T>
    std::optional<T> run_events(Task<T> task, uint64_t events);

    // Runs one event. False when nothing is ready and no timer is set.
    bool step();
    // Runs until nothing is ready and no timer is set.
    void run_until_idle();
    void run_for(Duration duration);

    // kill -9 of the current process. What it had in flight may reach the media or not; completed
    // writes stay. A new process follows it. Call it between events only.
    void kill();
    // Power loss of the current process's machine: kill(), and each disk that it opened loses,
    // keeps, tears or reorders what was not durable. A new process follows it.
    void crash() { crash(CrashOptions{}); }
    void crash(CrashOptions options);
    // The same for a given process; nothing follows it.
    void kill(Process& process);
    void crash(Process& process, CrashOptions options = {});

    // Everything stands still meanwhile but the clock, as after SIGSTOP or a frozen guest; then all
    // that is due is due at once. May be called inside an event.
    void pause(Duration duration) { now_ += duration; }
    // One process stands still meanwhile, and all others go on.
    void pause(Process& process, Duration duration) {
        process.paused_until_ = std::max(process.paused_until_, now_ + duration);
    }

    // The device behind a path: made here or by the first open with create_bytes.
    DiskMedia& make_disk(const std::string& path, uint64_t bytes);
    // Requires: it exists.
    DiskMedia& disk(const std::string& path);
    // Null where there is none.
    DiskMedia* find_disk(const std::string& path);

    NetFabric& net() { return net_; }
    FaultPlan& faults() { return faults_; }
    // A stream for the test's own choices.
    Random& random() { return test_random_; }
    uint64_t seed() const { return seed_; }
    const WorldOptions& options() const { return options_; }
    // Whether a process of that name lives: a machine that answers.
    bool is_up(std::string_view name) const;

    Time now() const { return now_; }
    WallTime wall_now() const;
    uint64_t event_count() const { return event_count_; }
    // Covers every event: which one, when, of whom, and the bytes that reached a disk or the net.
    uint64_t event_hash() const { return hash_; }

    // ---- for the parts of the world ----

    // Runs `run` at `time` as an event of `process`, or of the world where `process` is null; never
    // when the process has died before.
    void at(Time time, Process* process, std::move_only_function<void()> run);
    void post(Process* process, std::move_only_function<void()> run);
    void note(uint64_t value) { hash_ = mix_bits(hash_ ^ value) + 0x9e3779b97f4a7c15ULL; }

  private:
    struct Event {
        uint64_t number;
        Process* process;
        std::move_only_function<void()> run;
    };
    struct Timer {
        Time time;
        Event event;
        // The earliest on top of the heap; equal times in the order in which they were set.
        bool operator<(const Timer& other) const {
            return time != other.time ? time > other.time : event.number > other.event.number;
        }
    };
    template <typename T>
    struct Outcome {
        std::optional<T> value;
    };

    template <typename T>
    static Task<void> keep(Task<T> task, std::shared_ptr<Outcome<T>> outcome);
    static Task<void> keep_done(Task<void> task, std::shared_ptr<Outcome<bool>> outcome);
    template <typename T>
    T finish(Process& process, const std::shared_ptr<Outcome<T>>& outcome, Task<void> task);
    void make_ready_what_is_due();
    void drop_events_of(Process& process);
    void end(Process& process, Leaving leaving);
    void succeed();
    // Kills everything, then throws.
    [[noreturn]] void give_up(std::string_view why);
    void kill_all();

    uint64_t seed_;
    WorldOptions options_;
    Random order_random_;
    Random disk_random_;
    Random test_random_;
    FaultPlan faults_;
    Time now_;
    uint64_t event_next_ = 0;
    uint64_t event_count_ = 0;
    uint64_t hash_;
    bool running_ = false;
    Process* running_process_ = nullptr;
    std::deque<Event> ready_;
    std::vector<Timer> timers_;
    std::map<std::string, std::unique_ptr<DiskMedia>> disks_;
    NetFabric net_;
    std::vector<std::unique_ptr<Process>> processes_;
    Process* current_ = nullptr;
};

// ---- implementation ----

template <typename T>
Task<void> World::keep(Task<T> task, std::shared_ptr<Outcome<T>> outcome) {
    outcome->value.emplace(co_await std::move(task));
}

template <typename T>
T World::finish(Process& process, const std::shared_ptr<Outcome<T>>& outcome, Task<void> task) {
    CHECK(process.is_alive(), "run() on a process that was killed");
    runtime::spawn(process.executor(), std::move(task));
    Time end = now_ + options_.run_time_max;
    uint64_t events_end = event_count_ + options_.run_event_count_max;
    while (!outcome->value.has_value()) {
        if (!step()) give_up("nothing is ready and no timer is set: the task waits for ever");
        if (now_ > end) give_up("the task did not end within run_time_max of simulated time");
        if (event_count_ > events_end) give_up("the task did not end within run_event_count_max");
        if (!process.is_alive()) give_up("the process of the task was killed");
    }
    return std::move(*outcome->value);
}

template <typename T>
T World::run(Process& process, Task<T> task) {
    if constexpr (std::is_void_v<T>) {
        auto outcome = std::make_shared<Outcome<bool>>();
        finish(process, outcome, keep_done(std::move(task), outcome));
    } else {
        auto outcome = std::make_shared<Outcome<T>>();
        return finish(process, outcome, keep(std::move(task), outcome));
    }
}

template <typename T>
T World::run(Task<T> task) {
    return run(process(), std::move(task));
}

template <typename T>
std::optional<T> World::run_events(Task<T> task, uint64_t events) {
    auto outcome = std::make_shared<Outcome<T>>();
    runtime::spawn(process().executor(), keep(std::move(task), outcome));
    for (uint64_t i = 0; i < events && !outcome->value.has_value(); ++i) {
        if (!step()) break;
    }
    return std::move(outcome->value);
}

}  // namespace peplos::sim
