#pragma once

#include <map>
#include <memory>
#include <string>

#include "control/loss_record.h"
#include "control/mount_record.h"
#include "fabric/cluster.h"
#include "fabric/device_set.h"
#include "fabric/node.h"
#include "fabric/records_io.h"
#include "replica/claimer.h"
#include "runtime/alarm.h"
#include "runtime/gate.h"
#include "runtime/sync.h"
#include "volume/background.h"
#include "volume/volume.h"

namespace peplos::fabric {

// Scrubs the node's volumes and tells of the work behind them; the room `keeper` implements it.
class Scrubber {
  public:
    virtual ~Scrubber() = default;
    virtual Result<void> start_scrub() = 0;
    virtual Node::ScrubReport scrub_report() const = 0;
    // The last background work that failed; nothing when none did.
    struct Failure {
        std::string what;
        Time at{};
    };
    virtual std::optional<Failure> last_failure() const = 0;
};

struct LocalNodeOptions {
    std::string name;
    // Who this node is; none: the only node that the control store knows, or a new one.
    NodeId id;
    DeviceSet::Options devices;
    // Time between passes that give freed file-system blocks back; 0: never.
    Duration trim_interval = std::chrono::minutes(10);
    // One of several nodes: what the others change is followed, and volumes have copies there.
    std::optional<ClusterOptions> cluster;
    // The sizes of file systems that status shows are at most about this old.
    Duration refresh_interval = std::chrono::seconds(5);
};

// One node's volumes: who owns them, who has them mounted, where their journals are.
//
// Invariants
//   1. A volume is served only under a claimed epoch: claim (compare-and-set), fence, recover,
//      record the new ensemble, then serve (DESIGN section 5; a restart is a takeover from
//      oneself).
//   2. One change of a volume at a time: each entry's lock is held from decision to record.
//   3. A holder is on record before Mount answers, and off record only after Unmount was asked.
//   4. A volume's bytes are deleted only after its record says `deleting`; a restart goes on.
//   5. A volume is detached only when the kernel agrees that nobody uses it.
//   6. Only a volume's owner has it mounted: a mount is recorded together with a check that the
//      volume is still owned here, a claim together with one that the owner before has no mount.
//      In a cluster the record stays until the file system is off the host: what the kernel still
//      has of it is written before another node may claim the volume.
//
// Lives on the storage core. start() once, stop() before destruction.
class LocalNode final : public Node {
  public:
    LocalNode(runtime::Env env, control::Store& store, LocalNodeOptions options);
    ~LocalNode() override;

    // The parts above fabric's floor; each outlives the node or is null. Before start().
    void set_attachments(Attachments* attachments) { attachments_ = attachments; }
    void set_background(volume::Background* background) { background_ = background; }
    void set_scrubber(Scrubber* scrubber) { scrubber_ = scrubber; }

    // Null: the only node.
    Cluster* cluster() { return cluster_.get(); }
    // The budgets that whatever works behind the volumes has to know.
    DeviceSet& devices() { return devices_; }

    // Reads the control store (a store without a cluster record is a new cluster of one node),
    // opens the devices, takes back what the kernel still has attached, goes on with deletions.
    // Devices and volumes that fail are reported by status(), they do not fail start().
    Task<Result<void>> start();
    // Stops serving; attached volumes stay attached, their I/O waits for the next daemon.
    Task<void> stop();

    runtime::Executor executor() const override { return env_.executor; }
    Task<Result<VolumeInfo>> create_volume(VolumeSpec spec) override;
    Task<Result<void>> remove_volume(std::string name) override;
    Task<Result<VolumeInfo>> volume(std::string name) override;
    Task<Result<std::vector<VolumeInfo>>> volumes() override;
    Task<Result<std::string>> grow_volume(std::string name, uint64_t size_bytes) override;
    Task<Result<std::string>> mount(std::string name, std::string holder) override;
    Task<Result<void>> unmount(std::string name, std::string holder) override;
    Task<Result<void>> forget_holders() override;
    Task<Result<NodeStatus>> status() override;
    Task<Result<DeviceInfo>> add_device(std::string path, uint64_t create_bytes,
                                        std::string media_class) override;
    Task<Result<void>> start_scrub() override;
    Task<Result<ScrubReport>> scrub_report() override;
    Task<Result<RecoveryReport>> recover_volume(std::string name, Loss loss) override;
    Task<Result<uint64_t>> trim_volume(std::string name) override;
    Task<Result<void>> detach_forced(std::string name) override;
    Task<Result<std::vector<Leftover>>> leftovers() override;
    Task<Result<std::vector<Leftover>>> mend_leftovers() override;
    Task<std::vector<Metric>> metrics() override;

  private:
    struct Entry {
        StoredVolume stored;
        runtime::Mutex lock;
        std::shared_ptr<volume::Volume> open;  // null: not served now
        DeviceSet::Member* home = nullptr;     // while open
        control::MountRecord mounts;
        std::string path;                         // what containers get, while attached
        std::string problem;                      // why it cannot be served, empty when it can
        uint64_t used_bytes_seen = 0;             // of the last time it was open
        bool is_damaged = false;                  // its device stays on the host, for a repair
        bool is_unreadable = false;               // damage keeps it closed: `problem` says what
        std::optional<control::LossRecord> loss;  // what its user accepted last
        std::optional<volume::LossReport>
            shown;                    // what a recovery would have cost, when last asked
        bool gone = false;            // removed; whoever waited for the lock finds nothing
        bool is_mount_stale = false;  // `mounts` is not what the store has
        bool is_stale = false;        // the store has a newer record
        bool is_refreshing = false;
        // The kernel keeps it attached since an earlier daemon, with what that one wrote; this one
        // does not serve it yet.
        bool is_surviving = false;
        bool is_resuming = false;      // an attempt to serve it follows
        std::string told_of_resuming;  // why it was not, the last time
        runtime::Alarm resume_delay;
        int detaches_waiting = 0;               // for the lock: no claim begins
        replica::ReplicatedLog* log = nullptr;  // of `open`, in a cluster
        replica::Claimer* claimer = nullptr;    // while this node claims it

        const control::VolumeRecord& record() const { return stored.record; }
        bool is_attached() const { return !path.empty(); }
    };
    using EntryPtr = std::shared_ptr<Entry>;

    // local_node.cc
    Result<runtime::Gate::Pass> enter();
    Result<EntryPtr> find(const std::string& name) const;
    Task<Result<void>> load_cluster();
    Task<Result<void>> load_devices();
    Task<Result<void>> start_cluster();
    Task<Result<void>> load_volumes();
    Task<Result<void>> resume_attached();
    Task<void> resume_later(EntryPtr entry, Duration first);
    Task<bool> try_to_resume(Entry& entry);
    // What this node serves, or the host still has of it, is older than what another node made of
    // it.
    bool is_overtaken(const Entry& entry) const;
    Task<void> forget_mounts(Entry& entry);
    Task<bool> survives(const Entry& entry);
    Task<void> recover_tails();
    Task<Result<void>> open_volume(Entry& entry);
    Result<DeviceSet::Member*> home_of(const Entry& entry);
    Task<Result<void>> claim(Entry& entry, DeviceSet::Member& home);
    Task<Result<void>> change_record(Entry& entry, control::VolumeRecord record);
    Task<Error> look_again(Entry& entry, Error why);
    volume::VolumeParams params_of(const Entry& entry);
    Error note_unopened(Entry& entry, Error why) const;
    Task<Result<void>> close_volume(Entry& entry);
    Task<void> drop_faulted(Entry& entry);
    Task<void> stop_background(runtime::Alarm* is_quiet);
    Task<void> give_up_logs(runtime::Alarm* is_stopped, const bool* has_stopped);
    bool is_on_host(const Entry& entry) const;

    // local_node_cluster.cc
    Task<Result<EntryPtr>> look_up(std::string name);
    EntryPtr take_up(StoredVolume stored);
    bool is_elsewhere(const Entry& entry) const;
    struct Elsewhere {
        std::string where;        // empty: it is mounted nowhere else
        bool is_leaving = false;  // nobody holds it there any more: it soon will not be
        control::Transaction also;
    };
    Task<Result<Elsewhere>> mounts_elsewhere(const control::VolumeRecord& record);
    Task<Result<void>> check_unmounted(const Entry& entry);
    Task<Result<std::optional<control::Transaction>>> condition_of(control::VolumeRecord record,
                                                                   replica::CompareAndSet cas);
    Task<void> follow_volumes(control::Revision from);
    Task<Result<control::Revision>> list_anew();
    void note_event(const control::Event& event);
    void note_stale(const EntryPtr& entry);
    Task<void> take_up_later(VolumeId id);
    Task<void> refresh(EntryPtr entry);
    Task<Result<void>> refresh_once(Entry& entry);
    Task<void> give_up(Entry& entry, std::string why);
    void forget(Entry& entry);

    // local_node_replicated.cc
    Task<Result<void>> open_replicated(Entry& entry);
    Task<Result<void>> wait_for_view(const Entry& entry);
    Task<Result<std::unique_ptr<replica::ReplicatedLog>>> claim_replicated(Entry& entry);
    Task<Result<void>> serve(Entry& entry, std::unique_ptr<replica::ReplicatedLog> log);
    Task<Result<void>> prepare_deletion(Entry& entry, control::VolumeRecord& record,
                                        control::Transaction& also);
    Task<Result<void>> finish_replicated_deletion(StoredVolume stored);

    // local_node_volumes.cc
    Task<Result<VolumeInfo>> create_new(VolumeSpec spec);
    Task<Result<VolumeInfo>> existing(VolumeSpec spec, EntryPtr entry);
    Task<Result<void>> remove_entry(EntryPtr entry);
    Task<Result<void>> finish_deletion(StoredVolume stored);
    Task<void> finish_deletion_later(StoredVolume stored);
    Task<Result<std::string>> grow_entry(EntryPtr entry, uint64_t size_bytes);

    // local_node_mounts.cc
    Task<Result<std::string>> mount_entry(EntryPtr entry, std::string holder);
    Task<Result<void>> attach_entry(Entry& entry);
    Task<Result<void>> record_formatted(VolumeId id);
    Task<Result<void>> store_mounts(Entry& entry);
    Task<Result<void>> take_down(Entry& entry);
    Task<Result<void>> release(Entry& entry);
    Task<void> release_loop();
    Task<void> trim_loop();
    Task<void> refresh_loop();
    void want_fresh_sizes();
    Task<void> mend_one(VolumeId id, std::vector<Leftover>* all, std::vector<Leftover>* mended);
    Task<Result<uint64_t>> trim_entry(Entry& entry);
    AttachSpec attach_spec(const Entry& entry) const;

    // local_node_recovery.cc
    Task<Result<RecoveryReport>> recover_entry(EntryPtr entry, Loss loss);
    Task<Result<volume::LossReport>> salvage(
        Entry& entry, Loss loss, std::optional<volume::LossReport> accepted = std::nullopt);
    Task<Result<void>> store_loss(Entry& entry, control::LossRecord record);

    // local_node_status.cc
    VolumeInfo info_of(const Entry& entry) const;
    Health health_of(const Entry& entry) const;
    Health background_health() const;

    runtime::Env env_;
    control::Store& store_;
    LocalNodeOptions options_;
    Attachments* attachments_ = nullptr;
    volume::Background* background_ = nullptr;
    Scrubber* scrubber_ = nullptr;

    control::ClusterRecord cluster_record_;
    control::NodeRecord node_;
    WallTime started_at_{};
    DeviceSet devices_;
    // Null: the only node. It outlives the volumes, and the devices it.
    std::unique_ptr<Cluster> cluster_;
    control::Revision loaded_at_;  // the volumes' records, from the store
    std::unique_ptr<control::Watch> watch_;
    std::map<VolumeId, EntryPtr> entries_;
    std::map<std::string, EntryPtr> names_;
    std::map<std::string, int> creating_;  // names with a creation under way
    runtime::WaitList creating_changed_;
    runtime::Mutex device_lock_;
    runtime::Alarm release_alarm_;
    runtime::Alarm release_delay_;
    runtime::Alarm trim_alarm_;
    runtime::Alarm refresh_alarm_;
    runtime::Alarm follow_delay_;
    Time refreshed_at_{};
    runtime::Event stopping_;
    runtime::Gate gate_;
};

}  // namespace peplos::fabric
