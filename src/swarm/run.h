#pragma once

#include <map>
#include <memory>
#include <string>
#include <vector>

#include "control/memory_store.h"
#include "sim/world.h"
#include "swarm/daemon.h"
#include "swarm/history.h"
#include "swarm/host.h"
#include "swarm/operations.h"
#include "swarm/plan.h"
#include "swarm/trace.h"

namespace peplos::swarm {

// What runs did: of one, or summed over many.
struct RunCounts {
    uint64_t events = 0;
    uint64_t operations = 0;  // reads, writes, zeros that the checker saw
    uint64_t stops = 0;
    uint64_t kills = 0;
    uint64_t power_losses = 0;
    uint64_t cut_starts = 0;    // of which each ends in a kill or power loss
    uint64_t volumes_hurt = 0;  // closed by damage, and given up
    uint64_t recoveries = 0;    // of these, that were opened again with what was left
    uint64_t lost_ends = 0;     // lost writes that nobody could have noticed, made good
    Duration simulated{};
    std::map<std::string, uint64_t, std::less<>> faults;  // injected, by class
    std::map<std::string, uint64_t, std::less<>> probes;
    std::map<std::string, uint64_t, std::less<>> passes;  // of each FAULT

    void add(const RunCounts& other);
    // Crashes (a start that was cut off is one of them) and what else was injected.
    uint64_t fault_count() const;
};

struct RunReport {
    std::string problem;  // empty: nothing wrong was found
    uint64_t event_hash = 0;
    RunCounts counts;
};

// A planted mistake (empty: none), and of 1,000 passes of each FAULT so many true.
void prepare_sites(sim::FaultPlan& faults, const std::string& planted, uint32_t permille);

// One run: a host with a daemon (LocalNode, Keeper, journals, devices; the production code) that
// lives and dies as the plan says, users that read and write volumes, and a checker beside them.
//
// Everything that a crash destroys lies in the daemon's objects; what the world remembers (the
// history, the host, the control store, the disks) lies here.
class Run {
  public:
    // `trace` outlives the run.
    Run(uint64_t seed, Plan plan, Trace& trace);
    ~Run();

    // Once. Never throws; a CHECK of production code still aborts the program.
    RunReport execute();

  private:
    // A volume as its user knows it.
    struct Disk {
        std::string name;
        VolumeId id;
        uint64_t number = 0;
        std::unique_ptr<History> history;
        uint64_t asked_bytes = 0;  // grows up to this size may have happened
        bool mounted = false;
        bool leaving = false;  // being removed: no new operations
        bool removal_asked = false;
        bool hurt = false;   // damage keeps it closed
        uint32_t busy = 0;   // operations of workers under way
        Operations pending;  // writes and zeros that nobody has answered
    };
    class Failed;

    // ---- lives of the daemon (run.cc)
    void live_all();
    void start_daemon();
    void cut_starts();
    Task<Result<void>> start_node();
    void live(EndOfLife end, uint64_t events);
    void end_life(EndOfLife end);
    void drop_daemon();
    void wait_for_tasks(Duration most);
    EndOfLife draw_end();
    void settle_all();
    void finish();
    uint64_t operation_count() const;
    Task<void> check_everything();
    Task<void> remove_everything();
    Task<void> wait_for_space();
    // Of segments, on all devices.
    Task<Result<uint64_t>> used_bytes();

    // ---- what users do (run_work.cc)
    void spawn_work();
    void start(Task<void> task);
    Task<void> counted(Task<void> task);
    Task<void> pick_up_all();
    Task<void> pick_up(Disk& disk);
    void find_closed(Disk& disk, const std::string& what, const Error& error);
    Task<void> accept_loss(Disk& disk);
    Task<void> give_up(Disk& disk);
    Task<void> worker(Disk& disk);
    Task<void> resend(Disk& disk, Operations::iterator operation);
    Task<void> user();
    Task<void> injector();
    Task<bool> one_operation(Disk& disk);
    bool is_repeated_later(const Disk& disk, const Operation& drawn) const;
    Task<bool> perform(Disk& disk, Operations::iterator operation);
    Task<void> read_some(Disk& disk, uint64_t offset, uint64_t bytes);
    Task<void> create_one();
    Task<void> remove_one(Disk& disk);
    Task<void> grow_one(Disk& disk);

    // ---- what breaks (run_faults.cc)
    void inject();
    void inject_damage();
    void add_fault(std::string_view kind, sim::DiskFault fault);
    void spoil_a_page(sim::DiskMedia& disk);
    void spoil_log_end(sim::DiskMedia& disk);
    void rot_a_page();
    void stand_still();
    Task<void> outage();
    void end_faults_of_a_life();
    void find_logs();
    sim::DiskMedia& a_disk();
    void visit_with_wrong_disk();
    Task<void> read_what_is_served();
    void maybe_roll_back();
    Task<void> forget_rolled_back();
    bool is_damaged() const { return damage_count_ != 0; }
    // Makes an error that this plan does not explain the run's problem.
    void judge(const Error& error, const std::string& what);
    void note(std::string line);
    Duration pause(uint64_t low_us, uint64_t high_us) {
        return std::chrono::microseconds(random_.between(low_us, high_us));
    }

    const Plan plan_;
    Trace& trace_;
    sim::World world_;
    sim::Random random_;
    control::MemoryStore store_;
    SimHost host_;
    std::unique_ptr<SimDaemon> daemon_;
    std::vector<std::unique_ptr<Disk>> disks_;
    std::vector<std::unique_ptr<Disk>> removed_;
    const Time began_;
    uint64_t disk_next_ = 1;
    uint64_t task_count_ = 0;
    bool closing_ = false;         // no new operations in this life
    bool strict_ = false;          // the faults are over
    bool is_wrong_disk_ = false;   // one is in the place of another
    bool has_orphans_ = false;     // space is taken by what nobody knows any more
    bool is_rolled_back_ = false;  // since the last start
    uint64_t damage_count_ = 0;
    uint64_t unit_table_offset_ = 0;
    std::vector<control::MemoryStore::Backup> backups_;
    std::string problem_;
    RunReport report_;
};

}  // namespace peplos::swarm
