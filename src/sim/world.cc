#include "sim/world.h"

#include <algorithm>
#include <stdexcept>

namespace peplos::sim {
namespace {

// Streams of the seed (random.h).
constexpr uint64_t kStreamOrder = 1;
constexpr uint64_t kStreamCrash = 2;
constexpr uint64_t kStreamTest = 3;
// A boot time that is not 0, so that a forgotten initialization shows.
constexpr Time kTimeAtStart{std::chrono::seconds(1000)};
// 2026-01-01 00:00:00 UTC.
constexpr WallTime kWallTimeAtStart{std::chrono::seconds(1'767'225'600)};

}  // namespace

World::World(uint64_t seed, WorldOptions options)
    : seed_(seed),
      options_(options),
      order_random_(seed, kStreamOrder),
      disk_random_(seed, kStreamCrash),
      test_random_(seed, kStreamTest),
      faults_(seed),
      now_(kTimeAtStart),
      hash_(mix_bits(seed)),
      net_(this, options.net, seed) {
    runtime::executor_of_task = [](const Executor& spawner) {
        const auto* of_process = spawner.target<ProcessExecutor>();
        return of_process == nullptr ? spawner : Executor(of_process->for_new_task());
    };
    current_ = &start("main");
}

World::~World() {
    kill_all();
    ready_.clear();
    timers_.clear();
}

WallTime World::wall_now() const {
    return kWallTimeAtStart + (now_ - kTimeAtStart);
}

Process& World::start(std::string name) {
    auto number = static_cast<uint32_t>(processes_.size() + 1);
    processes_.push_back(std::make_unique<Process>(this, number, std::move(name)));
    return *processes_.back();
}

void World::post(Process* process, std::move_only_function<void()> run) {
    ready_.push_back({++event_next_, process, std::move(run)});
}

void World::at(Time time, Process* process, std::move_only_function<void()> run) {
    if (process != nullptr && !process->alive_) return;
    timers_.push_back({std::max(time, now_), {++event_next_, process, std::move(run)}});
    std::push_heap(timers_.begin(), timers_.end());
}

void World::make_ready_what_is_due() {
    now_ = std::max(now_, timers_.front().time);
    while (!timers_.empty() && timers_.front().time <= now_) {
        std::pop_heap(timers_.begin(), timers_.end());
        ready_.push_back(std::move(timers_.back().event));
        timers_.pop_back();
    }
}

bool World::step() {
    CHECK(!running_, "step() from inside an event");
    if (ready_.empty()) {
        if (timers_.empty()) return false;
        make_ready_what_is_due();
    }
    if (options_.order == Order::random && ready_.size() > 1) {
        size_t index = order_random_.pick(ready_.size());
        if (index != 0) std::swap(ready_.front(), ready_[index]);
    }
    Event event = std::move(ready_.front());
    ready_.pop_front();
    if (event.process != nullptr && event.process->paused_until_ > now_) {
        timers_.push_back({event.process->paused_until_, std::move(event)});
        std::push_heap(timers_.begin(), timers_.end());
        return true;
    }
    ++event_count_;
    uint64_t process_number = event.process == nullptr ? 0 : event.process->number();
    note(event.number ^ (process_number << 48) ^
         mix_bits(static_cast<uint64_t>(now_.time_since_epoch().count())));
    running_ = true;
    running_process_ = event.process;
    event.run();
    event.run = nullptr;
    running_ = false;
    running_process_ = nullptr;
    return true;
}

void World::run_until_idle() {
    while (step()) {
    }
}

void World::run_for(Duration duration) {
    Time end = now_ + duration;
    while (!ready_.empty() || (!timers_.empty() && timers_.front().time <= end))
        step();
    now_ = end;
}

// Frames that are destroyed may drop further events; so the events leave the queues first.
void World::drop_events_of(Process& process) {
    std::vector<Event> gone;
    auto of_process = [&](const Event& event) { return event.process == &process; };
    std::deque<Event> kept;
    for (Event& event : ready_) {
        if (of_process(event)) {
            gone.push_back(std::move(event));
        } else {
            kept.push_back(std::move(event));
        }
    }
    ready_ = std::move(kept);
    auto timers_kept = std::partition(timers_.begin(), timers_.end(),
                                      [&](const Timer& timer) { return !of_process(timer.event); });
    for (auto it = timers_kept; it != timers_.end(); ++it)
        gone.push_back(std::move(it->event));
    timers_.erase(timers_kept, timers_.end());
    std::make_heap(timers_.begin(), timers_.end());
    std::ranges::sort(gone, {}, &Event::number);
    for (Event& event : gone)
        event.run = nullptr;
}

bool World::is_up(std::string_view name) const {
    return std::ranges::any_of(processes_, [name](const auto& process) {
        return process->is_alive() && process->name() == name;
    });
}

void World::kill(Process& process) {
    end(process, Leaving::closed);
}

void World::end(Process& process, Leaving leaving) {
    CHECK(running_process_ != &process, "a process cannot kill itself: do it between events");
    if (!process.alive_) return;
    process.alive_ = false;
    process.is_dying_ = true;
    note(0xdead0000 + process.number());
    for (auto& [path, media] : disks_)
        media->drop_in_flight(&process, disk_random_);
    net_.drop(&process, leaving);
    drop_events_of(process);
    process.destroy_waiters();
    process.destroy_doomed();
    for (auto& [path, media] : disks_)
        media->unlock(&process);
}

void World::crash(Process& process, CrashOptions options) {
    end(process, Leaving::silent);
    for (auto& [path, media] : disks_) {
        if (media->was_used_by(&process)) media->lose_power(disk_random_, options);
    }
}

void World::succeed() {
    current_ = &start(current_->name());
}

void World::kill() {
    kill(*current_);
    succeed();
}

void World::crash(CrashOptions options) {
    crash(*current_, options);
    succeed();
}

void World::kill_all() {
    for (auto& process : processes_)
        kill(*process);
}

void World::give_up(std::string_view why) {
    std::string message = fmt::format(
        "simulation stopped: {} (seed {}, {} events, {} us of simulated time, process {})", why,
        seed_, event_count_,
        std::chrono::duration_cast<std::chrono::microseconds>(now_ - kTimeAtStart).count(),
        current_->name());
    kill_all();
    throw std::runtime_error(message);
}

Task<void> World::keep_done(Task<void> task, std::shared_ptr<Outcome<bool>> outcome) {
    co_await std::move(task);
    outcome->value = true;
}

DiskMedia& World::make_disk(const std::string& path, uint64_t bytes) {
    CHECK(bytes % kBlockBytes == 0 && bytes > 0, "a disk of {} bytes", bytes);
    CHECK(find_disk(path) == nullptr, "{} exists", path);
    auto media = std::make_unique<DiskMedia>(this, path, bytes, options_.disk);
    return *disks_.emplace(path, std::move(media)).first->second;
}

DiskMedia* World::find_disk(const std::string& path) {
    auto it = disks_.find(path);
    return it == disks_.end() ? nullptr : it->second.get();
}

DiskMedia& World::disk(const std::string& path) {
    DiskMedia* media = find_disk(path);
    CHECK(media != nullptr, "no disk {}", path);
    return *media;
}

}  // namespace peplos::sim
