#pragma once

#include <memory>
#include <string>
#include <vector>

#include "control/memory_store.h"
#include "sim/world.h"
#include "swarm/cluster_plan.h"
#include "swarm/daemon.h"
#include "swarm/history.h"
#include "swarm/host.h"
#include "swarm/reachable_store.h"
#include "swarm/run.h"
#include "swarm/trace.h"

namespace peplos::swarm {

// One run of several hosts, each with a daemon (LocalNode with its Cluster, Keeper, journals,
// devices; the production code), on one control store. Containers run somewhere, move when somebody
// moves them, and are started elsewhere when their host seems dead; whoever was left behind goes on
// writing for as long as it is let. A checker sees all of them as users of one volume.
//
// What it demands
//   1. Per sector linearizable, over all hosts: nothing acknowledged is lost, nothing stale is
//   read.
//   2. When a container was started elsewhere, what its predecessor had under way has happened or
//      never will.
//   3. An operation of a container that nobody moved gets no error, however long it waits.
//   4. A volume moves only away from hosts that were disturbed, or that let go of it.
//   5. With the faults over everything pending ends; every byte is right, also from another host;
//      removed volumes leave nothing on any device.
class ClusterRun {
  public:
    // `trace` outlives the run.
    ClusterRun(uint64_t seed, ClusterPlan plan, Trace& trace);
    ~ClusterRun();

    // Once. Never throws; a CHECK of production code still aborts the program.
    RunReport execute();

  private:
    struct Node {
        Node(NodeId id, std::string name, sim::Random stream)
            : id(id), name(std::move(name)), way(stream) {}

        enum class State : uint8_t {
            down,  // until boot_at
            starting,
            up,
            stopping,  // ends by itself, and is `stopped` then
            stopped,
        };
        NodeId id;
        std::string name;
        sim::Process* process = nullptr;  // of the daemon that lives, or lived last
        SimHost host;
        StoreWay way;
        std::unique_ptr<ReachableStore> store;
        std::unique_ptr<SimDaemon> daemon;  // null: none lives
        State state = State::down;
        Time boot_at{};
        Time stops_by{};
        // Nothing has happened to it since.
        Time calm_since{};
        Time paused_until{};
        bool has_device = false;
    };
    struct Volume;
    // A container's use of a volume, on one host. It may go on when another one has begun
    // elsewhere.
    struct Mounting {
        Volume* volume = nullptr;
        Node* node = nullptr;
        std::string holder;
        Operations pending;        // writes and zeros that nobody has answered
        uint32_t busy = 0;         // operations under way
        uint32_t workers = 0;      // of the daemon that lives
        bool leaving = false;      // no new operations
        bool failed = false;       // got an I/O error: the container has ended
        bool left_behind = false;  // was given up by its user
        bool ended = false;
        bool unmounting = false;
        Time began{};
    };
    using MountingPtr = std::shared_ptr<Mounting>;
    // A start of a container on a host, which may take long.
    struct Attempt {
        Node* node = nullptr;
        sim::Process* process = nullptr;
        std::string holder;
        bool given_up = false;
        bool is_over = false;
        Time began{};
    };
    using AttemptPtr = std::shared_ptr<Attempt>;
    struct Volume {
        std::string name;
        uint64_t number = 0;
        uint64_t bytes = 0;
        uint32_t copies = 2;
        VolumeId id;
        std::unique_ptr<History> history;
        // How often a container was started: what was under way before is settled.
        uint64_t starts = 0;
        // Where the last one was.
        Node* latest = nullptr;
        MountingPtr current;
        std::vector<MountingPtr> left;     // left behind, or about to be gone
        AttemptPtr attempt;                // the one whose end is waited for
        std::vector<AttemptPtr> attempts;  // under way, also those that were given up
        bool is_created = false;
        bool is_creating = false;
        bool is_gone = false;
        // Where its container is to run, if anywhere special.
        Node* wanted = nullptr;
    };
    class Failed;

    // ---- nodes (cluster_run.cc)
    void give_birth();
    void boot(Node& node);
    Task<void> start_node(Node& node, SimDaemon& daemon);
    Task<void> stop_node(Node& node, SimDaemon& daemon);
    void end_daemon(Node& node, EndOfLife end);
    void tend(Node& node);
    void live();
    void step(Duration least, Duration most);
    void finish();
    bool are_all_up() const;
    uint64_t operation_count() const;
    std::string state() const;
    Task<void> say_why(const Volume& volume, Node& node);
    void wait_until(std::string_view what, const std::function<bool()>& done);
    fabric::LocalNodeOptions options_of(const Node& node, sim::Process& process) const;
    Task<void> add_device(Node& node, SimDaemon& daemon);

    // ---- containers (cluster_work.cc)
    void tend(Volume& volume);
    void tend_current(Volume& volume);
    void tend_left(Volume& volume);
    void serve_again(const MountingPtr& mounting);
    void leave(Volume& volume);
    void create(Volume& volume);
    Task<void> create_on(Volume& volume, Node& node, SimDaemon& daemon);
    void start_container(Volume& volume);
    Task<void> mount_on(Volume& volume, AttemptPtr attempt, SimDaemon& daemon);
    void mounted(Volume& volume, const AttemptPtr& attempt);
    void check_alone(const Volume& volume, const Node& node);
    Task<void> unmount(MountingPtr mounting, SimDaemon& daemon);
    Task<void> worker(MountingPtr mounting);
    Task<void> resend(MountingPtr mounting, Operation operation);
    static bool is_repeated_later(const Mounting& mounting, const Operation& drawn);
    Task<bool> perform(MountingPtr mounting, Operation operation);
    Task<bool> read_some(MountingPtr mounting, Operation operation);
    void note_error(Mounting& mounting, const Error& error, const std::string& what);
    Task<void> check_all(MountingPtr mounting);
    void check_on(Volume& volume, Node& node);
    Task<void> remove_on(Volume& volume, SimDaemon& daemon);
    Task<void> wait_for_space(Node& node, SimDaemon& daemon);
    Node* any_node_up();
    bool is_calm(const Node& node) const;

    // ---- what breaks (cluster_faults.cc)
    void inject();
    void break_node(ClusterFault fault, Node& node);
    void break_way(ClusterFault fault, Node& node, Node& other);
    void count(ClusterFault fault, const Node& node, std::string_view more = {});
    void cut_off(Node& node);
    void disturb(Node& node);
    void heal();
    void note(std::string line);
    void fail_with(std::string problem) {
        if (problem_.empty()) problem_ = std::move(problem);
    }
    Duration pause(Duration most) {
        return Duration(
            static_cast<int64_t>(random_.between(1, static_cast<uint64_t>(most.count()))));
    }
    Node& a_node() { return *nodes_[random_.pick(nodes_.size())]; }

    const ClusterPlan plan_;
    Trace& trace_;
    sim::World world_;
    sim::Random random_;
    control::MemoryStore store_;
    std::vector<std::unique_ptr<Node>> nodes_;
    std::vector<std::unique_ptr<Volume>> volumes_;
    const Time began_;
    uint64_t holder_next_ = 1;
    bool closing_ = false;  // no new operations
    std::string problem_;
    RunReport report_;
};

}  // namespace peplos::swarm
