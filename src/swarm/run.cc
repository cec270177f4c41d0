#include "swarm/run.h"

#include <fmt/format.h>
#include <stdexcept>

namespace peplos::swarm {

namespace {

constexpr uint64_t kWorkStream = 0x3041;
// With the faults over, whatever is pending ends within this much simulated time.
constexpr Duration kPatience = std::chrono::minutes(20);
constexpr int kStartTriesMax = 50;
constexpr uint64_t kShortLifeEvents = 500;
constexpr int kCutsMax = 4;

sim::WorldOptions world_options(const Plan& plan) {
    sim::WorldOptions options;
    options.order = plan.order;
    options.disk = plan.disk;
    return options;
}

}  // namespace

// Ends a run from anywhere outside coroutines.
class Run::Failed : public std::runtime_error {
  public:
    using std::runtime_error::runtime_error;
};

void RunCounts::add(const RunCounts& other) {
    events += other.events;
    operations += other.operations;
    stops += other.stops;
    kills += other.kills;
    power_losses += other.power_losses;
    cut_starts += other.cut_starts;
    volumes_hurt += other.volumes_hurt;
    recoveries += other.recoveries;
    lost_ends += other.lost_ends;
    for (const auto& [name, count] : other.faults)
        faults[name] += count;
    simulated += other.simulated;
    for (const auto& [name, count] : other.probes)
        probes[name] += count;
    for (const auto& [name, count] : other.passes)
        passes[name] += count;
}

uint64_t RunCounts::fault_count() const {
    uint64_t count = kills + power_losses;
    for (const auto& [name, injected] : faults)
        count += injected;
    return count;
}

void prepare_sites(sim::FaultPlan& faults, const std::string& planted, uint32_t permille) {
    if (!planted.empty()) faults.plant(planted);
    if (permille == 0) return;
    for (const base::Site* site = base::sites_begin; site != base::sites_end; ++site) {
        if (site->kind == base::SiteKind::fault) faults.arm_chance(site->name, permille);
    }
}

Run::Run(uint64_t seed, Plan plan, Trace& trace)
    : plan_(std::move(plan)),
      trace_(trace),
      world_(seed, world_options(plan_)),
      random_(seed, kWorkStream),
      began_(world_.now()) {
    prepare_sites(world_.faults(), plan_.planted, plan_.site_permille);
}

Run::~Run() {
    // Frames before the objects that they use.
    if (daemon_ != nullptr) world_.kill();
    drop_daemon();
}

RunReport Run::execute() {
    try {
        live_all();
        finish();
    } catch (const std::runtime_error& error) {
        report_.problem = error.what();
    }
    report_.event_hash = world_.event_hash();
    report_.counts.events = world_.event_count();
    report_.counts.simulated = world_.now() - began_;
    report_.counts.probes = world_.faults().probes();
    report_.counts.passes = world_.faults().passes();
    if (!plan_.planted.empty())
        report_.counts.probes["planted " + plan_.planted] = world_.faults().planted_count();
    report_.counts.operations = operation_count();
    return report_;
}

uint64_t Run::operation_count() const {
    uint64_t count = 0;
    for (const auto* group : {&disks_, &removed_}) {
        for (const auto& disk : *group)
            count += disk->history->operation_count();
    }
    return count;
}

void Run::note(std::string line) {
    double seconds = std::chrono::duration<double>(world_.now() - Time{}).count();
    trace_.add(fmt::format("{:12.6f} {}", seconds, line));
}

// Inside coroutines nothing is thrown: the first problem ends the run at its next event.
void Run::judge(const Error& error, const std::string& what) {
    note(fmt::format("{}: {}", what, error.text()));
    bool possible = error.code() == Code::no_space || error.code() == Code::stopping;
    if ((plan_.has_disk_errors() && !strict_) || is_damaged() || is_wrong_disk_) {
        possible |= error.code() == Code::io_error || error.code() == Code::corrupt ||
                    error.code() == Code::outcome_unknown || error.code() == Code::unavailable ||
                    error.code() == Code::fenced || error.code() == Code::not_found;
    }
    if (!possible && problem_.empty()) {
        problem_ =
            fmt::format("{} failed without a fault that explains it: {}", what, error.text());
    }
}

void Run::live_all() {
    start_daemon();
    for (uint32_t i = 0; i < plan_.device_count; ++i) {
        auto added = world_.run(
            daemon_->node.add_device(fmt::format("/disk{}", i), plan_.device_bytes, "ssd"));
        if (!added) throw Failed("adding a device: " + added.error().text());
    }
    find_logs();
    for (int lives = 0; lives < 200; ++lives) {
        bool has_worked = operation_count() >= plan_.operations;
        if (has_worked && report_.counts.fault_count() >= plan_.faults) break;
        EndOfLife end = draw_end();
        uint64_t life_events = random_.between(1, plan_.life_events_max);
        // What is left is to crash often enough.
        live(end, has_worked ? std::min(life_events, kShortLifeEvents) : life_events);
        end_life(end);
        if (end == EndOfLife::power_loss) visit_with_wrong_disk();
        if (end == EndOfLife::power_loss) maybe_roll_back();
        cut_starts();
        start_daemon();
    }
}

EndOfLife Run::draw_end() {
    uint64_t sum = plan_.stop_weight + plan_.kill_weight + plan_.power_loss_weight;
    uint64_t drawn = random_.pick(sum);
    if (drawn < plan_.stop_weight) return EndOfLife::stop;
    if (drawn < plan_.stop_weight + plan_.kill_weight) return EndOfLife::kill;
    return EndOfLife::power_loss;
}

// A start that is cut off: what a recovery has done, and what it was about to do, meets the next
// one. Each cut is drawn small as often as large.
void Run::cut_starts() {
    if (plan_.cut_start_permille == 0) return;
    for (int i = 0; i < kCutsMax && random_.chance(plan_.cut_start_permille); ++i) {
        daemon_ = std::make_unique<SimDaemon>(world_.env(), store_, plan_, host_);
        uint64_t events = random_.pick(uint64_t{2} << random_.pick(11));
        auto started = world_.run_events(daemon_->node.start(), events);
        for (uint64_t left = random_.pick(events + 1); started && left > 0; --left)
            world_.step();
        EndOfLife end =
            draw_end() == EndOfLife::power_loss ? EndOfLife::power_loss : EndOfLife::kill;
        note(fmt::format("start cut off after {} events: {}", events, name_of(end)));
        ++report_.counts.cut_starts;
        end_life(end);
    }
}

// The control store may be away: then systemd starts the daemon again.
void Run::start_daemon() {
    for (int i = 0; i < kStartTriesMax; ++i) {
        daemon_ = std::make_unique<SimDaemon>(world_.env(), store_, plan_, host_);
        Result<void> started = world_.run(daemon_->node.start());
        note(fmt::format("daemon started: {}", started ? "ok" : started.error().text()));
        if (started) return;
        bool is_store = started.error().code() == Code::unavailable ||
                        started.error().code() == Code::outcome_unknown;
        if (!is_store) throw Failed("the daemon does not start: " + started.error().text());
        world_.run(daemon_->stop());
        drop_daemon();
    }
    throw Failed("the daemon does not start, however often it tries");
}

void Run::live(EndOfLife end, uint64_t events) {
    closing_ = false;
    world_.run(pick_up_all());
    if (!problem_.empty()) throw Failed(problem_);
    rot_a_page();
    store_.set_weather(plan_.store_weather, random_, world_.env().clock);
    note(fmt::format("life of {} events, then {}", events, name_of(end)));
    spawn_work();
    for (uint64_t i = 0; i < events && !closing_; ++i) {
        if (!world_.step()) throw Failed("nothing is ready and no timer is set");
        if (!problem_.empty()) throw Failed(problem_);
    }
}

void Run::end_life(EndOfLife end) {
    note(fmt::format("end of life: {}", name_of(end)));
    end_faults_of_a_life();
    switch (end) {
        case EndOfLife::stop:
            ++report_.counts.stops;
            closing_ = true;
            store_.set_weather({}, random_, world_.env().clock);
            world_.run(daemon_->stop());
            wait_for_tasks(kPatience);
            world_.run(host_.pause_all());
            break;
        case EndOfLife::kill:
            ++report_.counts.kills;
            world_.kill();
            host_.lose_daemon();
            break;
        case EndOfLife::power_loss:
            ++report_.counts.power_losses;
            world_.crash();
            host_.lose_host();
            break;
    }
    task_count_ = 0;
    for (auto& disk : disks_)
        disk->busy = 0;
    drop_daemon();
    store_.set_weather({}, random_, world_.env().clock);
    for (auto& disk : disks_) {
        disk->mounted = disk->mounted && end != EndOfLife::power_loss;
        // The kernel asks again for what was not answered, but for that it has to live.
        if (end == EndOfLife::power_loss) disk->pending.clear();
        std::erase_if(disk->pending,
                      [](const Operation& o) { return o.kind == Operation::Kind::read; });
    }
    if (!problem_.empty()) throw Failed(problem_);
    settle_all();
}

void Run::drop_daemon() {
    host_.lose_daemon();
    daemon_.reset();
}

// A history is settled where nothing will be asked again.
void Run::settle_all() {
    for (auto& disk : disks_) {
        if (!disk->pending.empty()) continue;
        std::string wrong = disk->history->settle();
        if (!wrong.empty()) throw Failed(fmt::format("volume {}: {}", disk->name, wrong));
    }
}

void Run::wait_for_tasks(Duration most) {
    Time end = world_.now() + most;
    while (task_count_ != 0) {
        if (!world_.step()) throw Failed("operations wait, but nothing is ready");
        if (!problem_.empty()) throw Failed(problem_);
        if (world_.now() > end) throw Failed("operations do not end although the faults are over");
    }
}

// The faults are over: what is pending ends, every byte is right, and all space comes back.
void Run::finish() {
    note("the faults are over");
    for (const auto& [name, count] : world_.faults().passes())
        world_.faults().disarm(name);
    for (const auto& [name, count] : world_.faults().faults())
        report_.counts.faults["FAULT site"] += count;
    world_.run(pick_up_all());
    if (!problem_.empty()) throw Failed(problem_);
    closing_ = strict_ = true;
    for (auto& disk : disks_) {
        for (auto operation = disk->pending.begin(); operation != disk->pending.end();) {
            auto next = std::next(operation);
            start(resend(*disk, operation));
            operation = next;
        }
    }
    wait_for_tasks(kPatience);
    for (auto& disk : disks_) {
        if (disk->pending.empty()) continue;
        throw Failed(fmt::format("volume {}: {} operations were not answered", disk->name,
                                 disk->pending.size()));
    }
    world_.run(check_everything());
    if (!problem_.empty()) throw Failed(problem_);
    settle_all();
    world_.run(remove_everything());
    if (!problem_.empty()) throw Failed(problem_);
    // What damage hides and what a rollback has orphaned stays, until a person looks at it.
    if (!is_damaged() && !has_orphans_) world_.run(wait_for_space());
    if (!problem_.empty()) throw Failed(problem_);
    world_.run(daemon_->stop());
    drop_daemon();
}

Task<void> Run::check_everything() {
    for (auto& disk : disks_) {
        for (uint64_t offset = 0; offset < disk->history->size_bytes(); offset += kMiB) {
            uint64_t bytes = std::min<uint64_t>(kMiB, disk->history->size_bytes() - offset);
            co_await read_some(*disk, offset, bytes);
        }
    }
}

Task<void> Run::remove_everything() {
    while (!disks_.empty() && problem_.empty()) {
        Disk& last = *disks_.back();
        co_await remove_one(last);
        if (problem_.empty() && !disks_.empty() && disks_.back().get() == &last) {
            if (is_damaged()) {
                removed_.push_back(std::move(disks_.back()));
                disks_.pop_back();
                continue;
            }
            problem_ = "volume " + last.name + " cannot be removed";
        }
    }
}

Task<Result<uint64_t>> Run::used_bytes() {
    CO_TRY_ASSIGN(fabric::NodeStatus status, co_await daemon_->node.status());
    uint64_t sum = 0;
    for (const fabric::DeviceInfo& device : status.devices)
        sum += device.segment_bytes_total - device.segment_bytes_free;
    co_return sum;
}

Task<void> Run::wait_for_space() {
    Time end = world_.now() + kPatience;
    while (problem_.empty()) {
        auto used = co_await used_bytes();
        if (used && *used == 0) co_return;
        if (world_.now() > end) {
            problem_ = used ? fmt::format("space leaks: {} bytes after every volume is gone", *used)
                            : "no status: " + used.error().text();
        }
        co_await world_.env().clock.sleep_for(std::chrono::milliseconds(500));
    }
}

}  // namespace peplos::swarm
