#pragma once

#include <gtest/gtest.h>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "media/device.h"
#include "replica/local_journal.h"
#include "sim/world.h"
#include "volume/background.h"
#include "volume/leaf_cache.h"
#include "volume/volume.h"

#define ASSERT_OK(...)                                      \
    do {                                                    \
        auto&& ok_result = (__VA_ARGS__);                   \
        ASSERT_TRUE(ok_result) << ok_result.error().text(); \
    } while (false)

namespace peplos::volume {

using runtime::Task;

// A volume on a simulated device, and beside it what every sector may contain.
struct RigOptions {
    uint64_t disk_bytes = 112 * kMiB;
    uint64_t volume_bytes = 32 * kMiB;
    uint64_t overlay_bytes = 8 * kMiB;
    uint64_t cache_bytes = 2 * kMiB;
    uint64_t ring_bytes = limits::kRingBytesMin;
    sim::WorldOptions world;
};

// What a sector may read as: versions of its content, 0 for zeros. More than one while a write is
// neither acknowledged nor refuted.
class SectorModel {
  public:
    static constexpr uint32_t kSector = 512;
    explicit SectorModel(uint64_t bytes) : possible_(bytes / kSector, {0}) {}

    void grow(uint64_t bytes) { possible_.resize(bytes / kSector, {0}); }
    uint64_t next_version() { return ++version_; }
    void begin(uint64_t offset, uint64_t bytes, uint64_t version) {
        each(offset, bytes, [&](auto& versions) { versions.push_back(version); });
    }
    void acknowledge(uint64_t offset, uint64_t bytes, uint64_t version) {
        each(offset, bytes, [&](auto& versions) { versions = {version}; });
    }
    // The write certainly did not happen.
    void refute(uint64_t offset, uint64_t bytes, uint64_t version) {
        each(offset, bytes, [&](auto& versions) { std::erase(versions, version); });
    }
    static void fill(MutableBytes out, uint64_t offset, uint64_t version) {
        if (version == 0) {
            std::memset(out.data(), 0, out.size());
            return;
        }
        for (size_t i = 0; i < out.size(); i += 8) {
            uint64_t word = mix_bits((offset + i) * 1'000'003 + version);
            std::memcpy(out.data() + i, &word, 8);
        }
    }
    // Empty when every sector is one of its possible versions, which from then on is the one.
    std::string check(uint64_t offset, Bytes content) {
        std::array<std::byte, kSector> want;
        for (size_t i = 0; i < content.size(); i += kSector) {
            auto& versions = possible_[(offset + i) / kSector];
            bool found = false;
            for (uint64_t version : versions) {
                fill(want, offset + i, version);
                if (std::memcmp(want.data(), content.data() + i, kSector) != 0) continue;
                versions = {version};
                found = true;
                break;
            }
            if (!found) {
                return fmt::format("offset {}: none of {} possible versions (newest {})",
                                   offset + i, versions.size(), versions.back());
            }
        }
        return {};
    }

  private:
    template <typename Change>
    void each(uint64_t offset, uint64_t bytes, Change change) {
        for (uint64_t i = offset / kSector; i < (offset + bytes) / kSector; ++i) {
            change(possible_[i]);
        }
    }
    std::vector<std::vector<uint64_t>> possible_;
    uint64_t version_ = 0;
};

// Lets a test decide alone when a volume drains.
class NoWork final : public Background {
  public:
    void opened(Volume&) override {}
    Task<void> closing(Volume&) override { co_return; }
    void wants(Volume&) override {}
    Task<bool> make_room() override { co_return false; }
    Task<void> stop() override { co_return; }
};

class Rig {
  public:
    explicit Rig(uint64_t seed, RigOptions options = {})
        : options_(options), world(seed, options.world), model(options.volume_bytes) {}
    ~Rig() {
        if (volume) stop();
        // What still runs of it goes before what it refers to.
        world.kill();
    }

    static constexpr VolumeId kVolume{0xabc};
    static constexpr const char* kPath = "disk0";

    // Formats the device and creates the volume.
    void make() {
        auto formatted = world.run(format(world.env(), options_));
        ASSERT_TRUE(formatted) << formatted.error().text();
        start_node();
        open(true);
    }
    void start_node() {
        auto started = world.run(open_node());
        ASSERT_TRUE(started) << started.error().text();
    }
    // All of a restart in one task, so that a test can cut it anywhere.
    Task<Result<void>> open_all() {
        CO_TRY(co_await open_node());
        CO_TRY_ASSIGN(volume, co_await Volume::open(*resources, next_params()));
        co_return Result<void>{};
    }
    Task<Result<void>> open_node() {
        CO_TRY_ASSIGN(device, co_await open_device(world.env()));
        CO_TRY_ASSIGN(journal, co_await replica::LocalJournal::open(world.env(), *device));
        cache = std::make_unique<LeafCache>(options_.cache_bytes);
        overlay = std::make_unique<OverlayBudget>(options_.overlay_bytes);
        space = std::make_unique<SpaceBudget>(std::vector{&device->segments()});
        resources.reset(new Resources{world.env(), *journal, *cache, *overlay, *space, background});
        co_return Result<void>{};
    }
    VolumeParams next_params() {
        return {.id = kVolume,
                .lineage = LineageId(0xdef),
                .size_bytes = options_.volume_bytes,
                .sector_bytes = 512,
                .epoch = Epoch(++claims),
                .token = OpenToken(1000 + claims),
                .recorded = recorded};
    }
    Result<void> try_open(bool is_new = false) {
        VolumeParams params = next_params();
        auto opened = world.run(is_new ? Volume::create(*resources, params)
                                       : Volume::open(*resources, params));
        if (!opened) return fail(std::move(opened).error());
        volume = std::move(*opened);
        recorded = journal->membership_for(params.token);
        return {};
    }
    void open(bool is_new = false) {
        auto opened = try_open(is_new);
        ASSERT_TRUE(opened) << opened.error().text();
    }
    Task<Result<LossReport>> recover_volume(replica::OnLoss on_loss,
                                            std::optional<LossReport> accepted = std::nullopt) {
        VolumeParams params = next_params();
        co_return co_await Volume::recover(*resources, std::move(params), on_loss,
                                           std::move(accepted));
    }
    // The clean way down of the whole node.
    void stop() {
        if (volume) world.run(volume->stop());
        volume.reset();
        stop_node();
    }
    void stop_node() {
        world.run(journal->stop());
        world.run(device->close());
        drop_objects();
    }
    void reopen() {
        stop();
        start_node();
        open();
    }
    void crash(sim::CrashOptions crash_options = {}) {
        world.crash(crash_options);
        drop_objects();
    }
    void recover() {
        start_node();
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
        if (!outcome && outcome.error().code() == Code::no_space && bytes <= kBlockBytes) {
            model.refute(offset, bytes, version);
        }
        co_return outcome;
    }
    Task<Result<void>> zero(uint64_t offset, uint64_t bytes) {
        model.begin(offset, bytes, 0);
        auto outcome = co_await volume->zero(offset, bytes);
        if (outcome) model.acknowledge(offset, bytes, 0);
        co_return outcome;
    }
    // "" or what is wrong.
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
    void expect_all() { EXPECT_EQ(world.run(check_all()), "") << "seed " << world.seed(); }

  private:
    static Task<Result<void>> format(runtime::Env& env, RigOptions wish) {
        CO_TRY_ASSIGN(auto disk, co_await env.disks.open(kPath, {.create_bytes = wish.disk_bytes}));
        media::FormatOptions options{.ring_bytes = wish.ring_bytes};
        co_return co_await media::format_device(*disk, options, env.rng);
    }
    static Task<Result<std::unique_ptr<media::Device>>> open_device(runtime::Env& env) {
        CO_TRY_ASSIGN(auto disk, co_await env.disks.open(kPath, {}));
        co_return co_await media::Device::open(env, std::move(disk));
    }
    void drop_objects() {
        volume.reset();
        resources.reset();
        space.reset();
        overlay.reset();
        cache.reset();
        journal.reset();
        device.reset();
    }
    RigOptions options_;

  public:
    sim::World world;
    SectorModel model;
    Background* background = nullptr;
    std::unique_ptr<media::Device> device;
    std::unique_ptr<replica::LocalJournal> journal;
    std::unique_ptr<LeafCache> cache;
    std::unique_ptr<OverlayBudget> overlay;
    std::unique_ptr<SpaceBudget> space;
    std::unique_ptr<Resources> resources;
    std::unique_ptr<Volume> volume;
    // What a control store would know: the epochs claimed, and the newest membership.
    uint64_t claims = 0;
    std::optional<replica::Membership> recorded;
};

}  // namespace peplos::volume
