#pragma once

#include <map>
#include <memory>
#include <string>

#include "control/loss_record.h"
#include "control/mount_record.h"
#include "fabric/device_set.h"
#include "fabric/node.h"
#include "fabric/records_io.h"
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
    DeviceSet::Options devices;
    // Time between passes that give freed file-system blocks back; 0: never.
    Duration trim_interval = std::chrono::minutes(10);
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
            shown;          // what a recovery would have cost, when last asked
        bool gone = false;  // removed; whoever waited for the lock finds nothing

        const control::VolumeRecord& record() const { return stored.record; }
        bool is_attached() const { return !path.empty(); }
    };
    using EntryPtr = std::shared_ptr<Entry>;

    // local_node.cc
    Result<runtime::Gate::Pass> enter();
    Result<EntryPtr> find(const std::string& name) const;
    Task<Result<void>> load_cluster();
    Task<Result<void>> load_devices();
    Task<Result<void>> load_volumes();
    Task<void> resume_attached();
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
    bool is_on_host(const Entry& entry) const;

    // local_node_volumes.cc
    Task<Result<VolumeInfo>> create_new(VolumeSpec spec);
    Task<Result<VolumeInfo>> existing(VolumeSpec spec, EntryPtr entry);
    Task<Result<EntryPtr>> adopt(std::string name);
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

    control::ClusterRecord cluster_;
    control::NodeRecord node_;
    WallTime started_at_{};
    DeviceSet devices_;
    std::map<VolumeId, EntryPtr> entries_;
    std::map<std::string, EntryPtr> names_;
    std::map<std::string, int> creating_;  // names with a creation under way
    runtime::WaitList creating_changed_;
    runtime::Mutex device_lock_;
    runtime::Alarm release_alarm_;
    runtime::Alarm release_delay_;
    runtime::Alarm trim_alarm_;
    runtime::Alarm refresh_alarm_;
    Time refreshed_at_{};
    runtime::Event stopping_;
    runtime::Gate gate_;
};

}  // namespace peplos::fabric
