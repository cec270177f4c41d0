#pragma once

#include <array>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "peer/server.h"
#include "replica/segment_service.h"
#include "volume/volume_test_rig.h"

// A volume whose segments have copies on several simulated nodes, which talk over simulated
// streams. The journal is node 0's own.
namespace peplos::volume {

inline constexpr uint32_t kTestNodes = 4;
// Which nodes a group has, one bit each; its id is one more.
using NodeBits = uint32_t;
inline GroupId group_of(NodeBits nodes) {
    return GroupId(nodes + 1);
}

class CopiesRig;

class TestPlacement final : public replica::Placement {
  public:
    TestPlacement(CopiesRig& rig, uint32_t node) : rig_(rig), node_(node) {}
    NodeId self() const override { return NodeId(node_ + 1); }
    std::vector<NodeId> nodes_of(GroupId group) const override {
        std::vector<NodeId> out;
        for (uint32_t i = 0; i < kTestNodes; ++i) {
            if (((group.value - 1) >> i & 1) != 0) out.push_back(NodeId(i + 1));
        }
        return out;
    }
    Result<GroupId> choose(VolumeId volume, uint32_t copies,
                           std::span<const NodeId> avoid) override;
    std::vector<NodeId> others() const override {
        std::vector<NodeId> out;
        for (uint32_t i = 0; i < kTestNodes; ++i) {
            if (i != node_) out.push_back(NodeId(i + 1));
        }
        return out;
    }
    replica::RemoteSegments* segments_on(NodeId node) override;
    runtime::Task<Result<void>> fence(NodeId node, VolumeId volume, replica::Claim claim) override;
    replica::SegmentService& service() override;

  private:
    CopiesRig& rig_;
    const uint32_t node_;
};

// One node. What is in `fences` is on its media, so to speak; the rest dies with its process.
struct TestNode {
    sim::Process* process = nullptr;
    std::map<VolumeId, replica::Claim> fences;
    std::unique_ptr<media::Device> device;
    std::unique_ptr<replica::SegmentService> service;
    std::unique_ptr<TestPlacement> placement;
    std::unique_ptr<peer::Server> server;
    std::unique_ptr<peer::Channels> channels;
    std::map<NodeId, std::unique_ptr<replica::RemoteSegments>> remotes;

    bool is_up() const { return process != nullptr; }
};

struct CopiesOptions {
    uint32_t copies = 2;
    uint64_t disk_bytes = 112 * kMiB;
    uint64_t volume_bytes = 16 * kMiB;
    std::map<uint32_t, uint64_t> disk_bytes_of;  // of nodes that have another size
};

class CopiesRig {
  public:
    static constexpr VolumeId kVolume{0xabc};
    static constexpr LineageId kLineage{0xdef};
    static constexpr peer::Method kFence = 0x7f;

    explicit CopiesRig(uint64_t seed, CopiesOptions options = {})
        : options_(std::move(options)), world(seed), model(options_.volume_bytes) {}
    ~CopiesRig() {
        for (uint32_t i = 0; i < kTestNodes; ++i) {
            if (nodes[i].is_up()) crash_node(i);
        }
    }

    void make() {
        for (uint32_t i = 0; i < kTestNodes; ++i) {
            auto formatted = world.run(format(world.env(), path(i), disk_bytes(i)));
            ASSERT_TRUE(formatted) << formatted.error().text();
            start_node(i);
        }
        ASSERT_FALSE(testing::Test::HasFatalFailure());
        open(true);
    }
    static std::string path(uint32_t node) { return fmt::format("disk{}", node); }

    // ---- nodes ----

    void start_node(uint32_t number) {
        TestNode& node = nodes[number];
        ASSERT_FALSE(node.is_up());
        node.process = &world.start(fmt::format("node{}", number));
        auto opened = world.run(*node.process, open_node(number));
        ASSERT_TRUE(opened) << opened.error().text();
    }
    // Power loss, or kill -9.
    void crash_node(uint32_t number, sim::CrashOptions crash = {}) {
        world.crash(*nodes[number].process, crash);
        drop_objects(number);
    }
    void kill_node(uint32_t number) {
        world.kill(*nodes[number].process);
        drop_objects(number);
    }
    void restart_node(uint32_t number) {
        crash_node(number);
        start_node(number);
    }
    void cut_off(uint32_t number) {
        for (uint32_t i = 0; i < kTestNodes; ++i) {
            if (i != number && nodes[i].is_up() && nodes[number].is_up())
                world.net().partition(*nodes[i].process, *nodes[number].process);
        }
    }

    // ---- the owner, on node 0 ----

    sim::Process& owner() { return *nodes[0].process; }
    template <typename T>
    T run(Task<T> task) {
        return world.run(owner(), std::move(task));
    }
    VolumeParams next_params() {
        return {.id = kVolume,
                .lineage = kLineage,
                .size_bytes = options_.volume_bytes,
                .sector_bytes = 512,
                .epoch = Epoch(++claims),
                .token = OpenToken(1000 + claims),
                .recorded = recorded,
                .copies = options_.copies};
    }
    replica::Claim claim() const { return {NodeId(1), Epoch(claims), OpenToken(1000 + claims)}; }
    Result<void> try_open(bool is_new = false) {
        VolumeParams params = next_params();
        nodes[0].fences[kVolume] = {NodeId(1), params.epoch, params.token};
        auto opened =
            run(is_new ? Volume::create(*resources, params) : Volume::open(*resources, params));
        if (!opened) return fail(std::move(opened).error());
        volume = std::move(*opened);
        recorded = journal->membership_for(params.token);
        return {};
    }
    void open(bool is_new = false) {
        auto opened = try_open(is_new);
        ASSERT_TRUE(opened) << opened.error().text();
    }
    void stop_volume() {
        run(volume->stop());
        volume.reset();
    }
    void crash_owner() { crash_node(0); }
    void recover_owner() {
        start_node(0);
        if (testing::Test::HasFatalFailure()) return;
        open();
    }

    // ---- operations that the model follows ----

    Task<Result<void>> write(uint64_t offset, uint64_t bytes) {
        uint64_t version = model.next_version();
        Buffer data = Buffer::allocate(bytes);
        for (uint64_t i = 0; i < bytes; i += SectorModel::kSector) {
            SectorModel::fill(data.bytes().subspan(i, SectorModel::kSector), offset + i, version);
        }
        model.begin(offset, bytes, version);
        auto outcome = co_await volume->write(offset, std::move(data));
        if (outcome) model.acknowledge(offset, bytes, version);
        co_return outcome;
    }
    Task<Result<void>> zero(uint64_t offset, uint64_t bytes) {
        model.begin(offset, bytes, 0);
        auto outcome = co_await volume->zero(offset, bytes);
        if (outcome) model.acknowledge(offset, bytes, 0);
        co_return outcome;
    }
    Task<std::string> check(uint64_t offset, uint64_t bytes) {
        Buffer into = Buffer::allocate(bytes);
        auto outcome = co_await volume->read(offset, into);
        if (!outcome) co_return outcome.error().text();
        co_return model.check(offset, into.bytes());
    }
    Task<std::string> check_all() {
        for (uint64_t offset = 0; offset < volume->size_bytes(); offset += kMiB) {
            std::string wrong = co_await check(offset, kMiB);
            if (!wrong.empty()) co_return wrong;
        }
        co_return "";
    }
    void expect_all() { EXPECT_EQ(run(check_all()), "") << "seed " << world.seed(); }

    // ---- what lies where ----

    std::vector<SegmentId> ids_on(uint32_t node) {
        std::vector<SegmentId> out;
        for (const media::SegmentInfo& info : nodes[node].device->segments().list(kVolume))
            out.push_back(info.id);
        return out;
    }
    // How many nodes that are up have this segment.
    uint32_t copies_of(const SegmentId& id) {
        uint32_t count = 0;
        for (TestNode& node : nodes) {
            if (node.is_up() && node.device->segments().find(id)) ++count;
        }
        return count;
    }
    // Every sealed segment has all its copies; once nothing is under way any more.
    void expect_copies() {
        world.run_for(std::chrono::seconds(30));
        for (const SegmentView& segment : volume->segments())
            EXPECT_EQ(copies_of(segment.id), options_.copies) << segment.id.text();
    }
    // Nothing but the volume's segments is anywhere.
    void expect_no_leak() {
        world.run_for(std::chrono::seconds(30));
        std::set<SegmentId> known;
        for (const SegmentView& segment : volume->segments())
            known.insert(segment.id);
        for (uint32_t i = 0; i < kTestNodes; ++i) {
            if (!nodes[i].is_up()) continue;
            for (const SegmentId& id : ids_on(i))
                EXPECT_TRUE(known.contains(id))
                    << "node " << i << " keeps " << id.text() << ", of " << copies_of(id);
        }
    }
    uint64_t device_offset(uint32_t node, const SegmentId& id) {
        media::SegmentPin pin = nodes[node].device->segments().find(id);
        CHECK(pin);
        Buffer block = Buffer::allocate(format::kSuperblockBytes);
        world.disk(path(node)).peek(0, block.bytes());
        auto superblock = format::decode_superblock(std::as_const(block).bytes());
        CHECK(superblock);
        return superblock->units_offset + pin.info().first_unit * limits::kSegmentUnitBytes;
    }

    replica::Claim fence_of(uint32_t node, VolumeId id) const {
        auto found = nodes[node].fences.find(id);
        return found == nodes[node].fences.end() ? replica::Claim{} : found->second;
    }
    bool admits(uint32_t node, VolumeId id, const replica::Claim& claim) const {
        replica::Claim fence = fence_of(node, id);
        return claim == fence || claim.epoch > fence.epoch;
    }
    CopiesOptions options_;

  private:
    uint64_t disk_bytes(uint32_t node) const {
        auto found = options_.disk_bytes_of.find(node);
        return found == options_.disk_bytes_of.end() ? options_.disk_bytes : found->second;
    }
    static std::string address(uint32_t node) { return fmt::format("node{}:7000", node); }
    static Task<Result<void>> format(runtime::Env& env, std::string path, uint64_t bytes) {
        CO_TRY_ASSIGN(auto disk, co_await env.disks.open(path, {.create_bytes = bytes}));
        media::FormatOptions options{.ring_bytes = limits::kRingBytesMin};
        co_return co_await media::format_device(*disk, options, env.rng);
    }
    Task<Result<peer::Message>> on_fence(uint32_t number, peer::Message message) {
        struct Body {
            VolumeId volume;
            replica::Claim claim;
        } body;
        if (message.body.size() != sizeof(body)) co_return fail(Code::corrupt, "no fence");
        std::memcpy(&body, message.body.data(), sizeof(body));
        if (!admits(number, body.volume, body.claim)) co_return fail(Code::fenced, "newer");
        nodes[number].fences[body.volume] = body.claim;
        co_return peer::Message{};
    }
    Task<Result<void>> open_node(uint32_t number) {
        TestNode& node = nodes[number];
        runtime::Env& env = node.process->env();
        CO_TRY_ASSIGN(auto disk, co_await env.disks.open(path(number), {}));
        CO_TRY_ASSIGN(node.device, co_await media::Device::open(env, std::move(disk)));
        auto admit = [this, number](VolumeId id, const replica::Claim& claim) {
            return admits(number, id, claim);
        };
        node.service = std::make_unique<replica::SegmentService>(env, admit);
        node.service->add_store(node.device->segments());
        node.placement = std::make_unique<TestPlacement>(*this, number);
        node.service->set_placement(node.placement.get());
        peer::Self self{
            .cluster = ClusterId(77), .node = NodeId(number + 1), .boot = NodeBoot(++boots_)};
        node.server = std::make_unique<peer::Server>(env, self);
        node.service->bind(*node.server);
        node.server->handle(kFence, [this, number](NodeId, peer::Message message) {
            return on_fence(number, std::move(message));
        });
        CO_TRY(co_await node.server->start(address(number)));
        node.channels = std::make_unique<peer::Channels>(env, self);
        for (uint32_t i = 0; i < kTestNodes; ++i) {
            if (i == number) continue;
            node.channels->set_address(NodeId(i + 1), {address(i)});
            node.remotes[NodeId(i + 1)] =
                std::make_unique<replica::RemoteSegments>(node.channels->to(NodeId(i + 1)));
        }
        if (number != 0) co_return Result<void>{};
        CO_TRY_ASSIGN(journal, co_await replica::LocalJournal::open(env, *node.device));
        cache = std::make_unique<LeafCache>(2 * kMiB);
        overlay = std::make_unique<OverlayBudget>(8 * kMiB);
        space = std::make_unique<SpaceBudget>(std::vector{&node.device->segments()});
        resources.reset(new Resources{env, *journal, *cache, *overlay, *space, &background,
                                      node.placement.get()});
        co_return Result<void>{};
    }
    void drop_objects(uint32_t number) {
        TestNode& node = nodes[number];
        if (number == 0) {
            volume.reset();
            resources.reset();
            space.reset();
            overlay.reset();
            cache.reset();
            journal.reset();
        }
        node.remotes.clear();
        node.channels.reset();
        node.server.reset();
        node.service.reset();
        node.placement.reset();
        node.device.reset();
        node.process = nullptr;
    }
    uint64_t boots_ = 0;

  public:
    sim::World world;
    SectorModel model;
    NoWork background;
    std::array<TestNode, kTestNodes> nodes;
    std::unique_ptr<replica::LocalJournal> journal;
    std::unique_ptr<LeafCache> cache;
    std::unique_ptr<OverlayBudget> overlay;
    std::unique_ptr<SpaceBudget> space;
    std::unique_ptr<Resources> resources;
    std::unique_ptr<Volume> volume;
    uint64_t claims = 0;
    std::optional<replica::Membership> recorded;
};

// Groups with node 0, none of `avoid`; by chance which.
inline Result<GroupId> TestPlacement::choose(VolumeId, uint32_t copies,
                                             std::span<const NodeId> avoid) {
    std::vector<NodeBits> possible;
    for (NodeBits bits = 1; bits < 1u << kTestNodes; bits += 2) {
        bool is_good = static_cast<uint32_t>(std::popcount(bits)) == copies;
        for (NodeId node : avoid)
            is_good = is_good && (bits >> (node.value - 1) & 1) == 0;
        if (is_good) possible.push_back(bits);
    }
    if (possible.empty()) return fail(Code::unavailable, "no group of {} nodes", copies);
    return group_of(possible[rig_.world.random().pick(possible.size())]);
}

inline replica::RemoteSegments* TestPlacement::segments_on(NodeId node) {
    auto& remotes = rig_.nodes[node_].remotes;
    auto found = remotes.find(node);
    return found == remotes.end() ? nullptr : found->second.get();
}

inline replica::SegmentService& TestPlacement::service() {
    return *rig_.nodes[node_].service;
}

inline runtime::Task<Result<void>> TestPlacement::fence(NodeId node, VolumeId volume,
                                                        replica::Claim claim) {
    struct Body {
        VolumeId volume;
        replica::Claim claim;
    } body{volume, claim};
    peer::Message message;
    message.body.resize(sizeof(body));
    std::memcpy(message.body.data(), &body, sizeof(body));
    auto answered = co_await rig_.nodes[node_].channels->to(node).call(
        CopiesRig::kFence, std::move(message), std::chrono::seconds(2));
    if (!answered) co_return fail(std::move(answered).error());
    co_return Result<void>{};
}

}  // namespace peplos::volume
