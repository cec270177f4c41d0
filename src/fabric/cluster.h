#pragma once

#include "fabric/device_set.h"
#include "fabric/leases.h"
#include "fabric/maintainer.h"
#include "fabric/other_nodes.h"
#include "fabric/ownership_store.h"
#include "peer/channel.h"
#include "peer/server.h"
#include "replica/member_client.h"
#include "replica/member_service.h"
#include "replica/owner_context.h"
#include "replica/placement.h"
#include "replica/segment_service.h"

namespace peplos::fabric {

struct ClusterOptions {
    peer::Self self;
    // Where other nodes reach this one: "host:port"; port 0 is chosen.
    std::string listen;
    // A node says so often that it lives, and how much space it has.
    Duration heartbeat = std::chrono::milliseconds(500);
    replica::OwnerTiming timing;
    MembershipOptions membership;
    MaintainerOptions maintainer;
    LeaseOptions lease;
};

// This node as one of several: its view of the others, how it reaches them, and what it serves to
// them: its members of journals (0x10 to 0x1f), its segments (0x20 to 0x2f), and its word that it
// lives (0x30 to 0x3f).
//
// Life: construct, add_device() for every device that is to serve, start(); stop() once no volume
// is open and before the devices close. Lives on the storage core.
class Cluster final : public OtherNodes, public replica::MemberPorts, public replica::Placement {
  public:
    // The store outlives it.
    Cluster(runtime::Env env, control::Store& store, ClusterOptions options);
    ~Cluster() override;

    // Before start(): whatever a promise of the last process covers is honoured from then on.
    void add_device(const DeviceSet::Member& device);
    // Serves the others. Errors: unavailable (the address is in use), invalid_argument.
    Task<Result<void>> start();
    // The address that was chosen.
    const std::string& address() const { return server_.address(); }
    // Waits for what runs behind logs and claims, and for calls of others. Idempotent.
    Task<void> stop();

    replica::OwnerContext& owners() { return owners_; }
    StoredOwnership& ownership() { return ownership_; }
    Membership& membership() { return membership_; }
    const Maintainer& maintainer() const { return maintainer_; }

    // Nodes, devices and groups were read from the control store.
    bool is_known() const { return membership_.is_known(); }
    // Every node takes nothing of earlier claims of the volume from then on.
    // Errors: unavailable (names who does not answer), fenced.
    Task<Result<void>> fence_all(VolumeId volume, replica::Claim claim);
    // The volume is deleted: its logs go, on every node. Errors: unavailable (names the node).
    Task<Result<void>> drop_logs(VolumeId volume, replica::Claim claim);
    Task<Result<void>> drop_log_here(VolumeId volume) { return members_.drop(volume); }

    // OtherNodes
    bool is_dead(NodeId node) const override;
    std::string name_of(NodeId node) const override;

    // replica::MemberPorts
    replica::LocalMember& local() override { return members_; }
    replica::MemberPort* find(NodeId node) override;
    std::vector<NodeId> nodes() const override;

    // replica::Placement
    NodeId self() const override { return options_.self.node; }
    std::vector<NodeId> nodes_of(GroupId group) const override {
        return membership_.nodes_of(group);
    }
    Result<GroupId> choose(VolumeId volume, uint32_t copies,
                           std::span<const NodeId> avoid) override {
        return membership_.choose_group(volume, copies, avoid);
    }
    std::vector<NodeId> others() const override;
    replica::RemoteSegments* segments_on(NodeId node) override;
    Task<Result<void>> fence(NodeId node, VolumeId volume, replica::Claim claim) override;
    replica::SegmentService& service() override { return segments_; }

  private:
    // What this node uses of another one.
    struct Remote {
        explicit Remote(peer::Channel& channel)
            : channel(channel), members(channel), segments(channel) {}
        peer::Channel& channel;
        replica::MemberClient members;
        replica::RemoteSegments segments;
        bool is_asked = false;  // a heartbeat is under way
    };

    Remote* remote(NodeId node);
    NodeSpace space_here() const;
    void serve_words();
    Task<Result<peer::Message>> on_heartbeat(NodeId from, peer::Message message);
    Task<Result<peer::Message>> on_drop(NodeId from, peer::Message message);
    Task<void> follow_addresses();
    Task<void> beat();
    std::vector<NodeId> silent() const;
    Task<void> ask(NodeId node);
    Task<Result<void>> drop_on(NodeId node, VolumeId volume, replica::Claim claim);

    runtime::Env env_;
    const ClusterOptions options_;
    peer::Server server_;
    peer::Channels channels_;
    std::map<NodeId, std::unique_ptr<Remote>> remotes_;
    LivenessTable liveness_;
    Membership membership_;
    Maintainer maintainer_;
    Leases leases_;
    replica::MemberHost members_;
    replica::MemberService member_service_;
    replica::SegmentService segments_;
    StoredOwnership ownership_;
    replica::OwnerContext owners_;
    std::vector<media::SegmentStore*> stores_;
    bool is_stopping_ = false;
    runtime::Alarm beat_alarm_;
    runtime::Gate gate_;
};

}  // namespace peplos::fabric
