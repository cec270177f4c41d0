#pragma once

// A Node of plain maps, for the tests of doors. It lives on its executor like the real one.

#include <algorithm>
#include <map>
#include <string>
#include <vector>

#include "fabric/node.h"
#include "runtime/sync.h"

namespace peplos::fabric {

class FakeNode final : public Node {
  public:
    explicit FakeNode(runtime::Executor executor) : executor_(std::move(executor)) {}

    // Public state: touch it on the executor only.
    std::map<std::string, VolumeInfo> volumes_by_name;
    std::map<std::string, std::vector<std::string>> holders;
    std::vector<std::string> calls;  // "create x", "mount x id", ...
    std::vector<Metric> metric_list;
    std::vector<Leftover> leftover_list;
    std::optional<Error> next_error;  // the next call fails with it
    runtime::Event running;           // calls wait until it is set

    runtime::Executor executor() const override { return executor_; }

    runtime::Task<Result<VolumeInfo>> create_volume(VolumeSpec spec) override {
        CO_TRY(co_await begin("create " + spec.name));
        CO_TRY_ASSIGN(spec, validated(std::move(spec)));
        auto found = volumes_by_name.find(spec.name);
        if (found != volumes_by_name.end()) {
            if (found->second.spec == spec) co_return found->second;
            co_return fail(Code::already_exists, "volume \"{}\" exists and differs in size",
                           spec.name);
        }
        VolumeInfo info;
        info.id = VolumeId(volumes_by_name.size() + 1);
        info.spec = spec;
        info.created_at = WallTime(std::chrono::seconds(1'700'000'000));
        info.host = "node1";
        info.state = "available";
        volumes_by_name.emplace(spec.name, info);
        ++created_count;
        co_return info;
    }
    runtime::Task<Result<void>> remove_volume(std::string name) override {
        CO_TRY(co_await begin("remove " + name));
        if (!holders[name].empty()) {
            co_return fail(Code::busy, "volume \"{}\" is mounted by {}", name, holders[name][0]);
        }
        if (volumes_by_name.erase(name) == 0) co_return missing(name);
        co_return Result<void>();
    }
    runtime::Task<Result<VolumeInfo>> volume(std::string name) override {
        CO_TRY(co_await begin("volume " + name));
        auto found = volumes_by_name.find(name);
        if (found == volumes_by_name.end()) co_return missing(name);
        VolumeInfo info = found->second;
        info.holders = holders[name];
        if (!info.holders.empty()) info.attach = attach_info(info);
        co_return info;
    }
    runtime::Task<Result<std::vector<VolumeInfo>>> volumes() override {
        CO_TRY(co_await begin("volumes"));
        std::vector<VolumeInfo> out;
        for (const auto& [name, info] : volumes_by_name)
            out.push_back(info);
        co_return out;
    }
    runtime::Task<Result<std::string>> grow_volume(std::string name, uint64_t bytes) override {
        CO_TRY(co_await begin("grow " + name));
        auto found = volumes_by_name.find(name);
        if (found == volumes_by_name.end()) co_return missing(name);
        found->second.spec.size_bytes = bytes;
        co_return "grown online";
    }
    runtime::Task<Result<std::string>> mount(std::string name, std::string holder) override {
        CO_TRY(co_await begin("mount " + name + " " + holder));
        auto found = volumes_by_name.find(name);
        if (found == volumes_by_name.end()) co_return missing(name);
        holders[name].push_back(holder);
        co_return attach_info(found->second).path;
    }
    runtime::Task<Result<void>> unmount(std::string name, std::string holder) override {
        CO_TRY(co_await begin("unmount " + name + " " + holder));
        auto& list = holders[name];
        auto found = std::find(list.begin(), list.end(), holder);
        if (found != list.end()) list.erase(found);
        co_return Result<void>();
    }
    runtime::Task<Result<void>> forget_holders() override {
        CO_TRY(co_await begin("forget"));
        holders.clear();
        co_return Result<void>();
    }
    runtime::Task<Result<NodeStatus>> status() override {
        CO_TRY(co_await begin("status"));
        NodeStatus out;
        out.id = NodeId(7);
        out.name = "node1";
        out.version = "0.1.0";
        out.capacity_bytes = 100 * kGiB;
        out.free_bytes = 60 * kGiB;
        out.volume_count = static_cast<uint32_t>(volumes_by_name.size());
        DeviceInfo device;
        device.path = "/var/lib/peplos/device0";
        device.media_class = "nvme";
        device.bytes = 100 * kGiB;
        out.devices.push_back(device);
        co_return out;
    }
    runtime::Task<Result<DeviceInfo>> add_device(std::string path, uint64_t create_bytes,
                                                 std::string media_class) override {
        CO_TRY(co_await begin("device " + path));
        DeviceInfo out;
        out.path = path;
        out.bytes = create_bytes;
        out.media_class = media_class;
        co_return out;
    }
    runtime::Task<Result<void>> start_scrub() override { co_return co_await begin("scrub"); }
    runtime::Task<Result<ScrubReport>> scrub_report() override {
        CO_TRY(co_await begin("scrub_report"));
        ScrubReport report;
        report.segments_done = report.segments_total = 3;
        co_return report;
    }
    runtime::Task<Result<RecoveryReport>> recover_volume(std::string name, Loss loss) override {
        CO_TRY(co_await begin((loss == Loss::accept ? "recover! " : "recover ") + name));
        if (!volumes_by_name.contains(name)) co_return missing(name);
        RecoveryReport report;
        report.is_done = loss == Loss::accept;
        report.findings = {"/dev/sdx at offset 4096: journal frame 3 cannot be read"};
        report.losses = {"the newest writes"};
        report.lost_bytes = 8192;
        report.message = "what is above is lost";
        co_return report;
    }
    runtime::Task<Result<uint64_t>> trim_volume(std::string name) override {
        CO_TRY(co_await begin("trim " + name));
        if (!volumes_by_name.contains(name)) co_return missing(name);
        co_return 4096;
    }
    runtime::Task<Result<void>> detach_forced(std::string name) override {
        CO_TRY(co_await begin("detach " + name));
        if (!volumes_by_name.contains(name)) co_return missing(name);
        holders[name].clear();
        co_return Result<void>();
    }
    runtime::Task<Result<std::vector<Leftover>>> leftovers() override {
        CO_TRY(co_await begin("leftovers"));
        co_return leftover_list;
    }
    runtime::Task<Result<std::vector<Leftover>>> mend_leftovers() override {
        CO_TRY(co_await begin("mend_leftovers"));
        co_return std::exchange(leftover_list, {});
    }
    runtime::Task<std::vector<Metric>> metrics() override {
        (void)co_await begin("metrics");
        co_return metric_list;
    }

    int created_count = 0;

  private:
    runtime::Task<Result<void>> begin(std::string call) {
        calls.push_back(std::move(call));
        if (!running.is_set()) co_await running.wait();
        if (next_error.has_value()) {
            Error error = *next_error;
            next_error.reset();
            co_return fail(error);
        }
        co_return Result<void>();
    }
    static AttachInfo attach_info(const VolumeInfo& volume) {
        AttachInfo out;
        out.id = volume.id;
        out.way = "fuse";
        out.why = "the kernel has no ublk_drv";
        out.device = "/dev/loop7";
        out.path = fmt::format("/var/lib/peplos/mnt/{}/data", volume.id);
        return out;
    }
    static std::unexpected<Error> missing(const std::string& name) {
        return fail(Code::not_found, "no volume \"{}\": see `peplos volume ls`", name);
    }

    runtime::Executor executor_;
};

}  // namespace peplos::fabric
