#pragma once

#include <functional>
#include <map>
#include <memory>
#include <set>
#include <vector>

#include "fabric/attachments.h"
#include "runtime/sync.h"

// For tests of this room.
namespace peplos::fabric {

using runtime::Task;

// A host that mounts nothing: it remembers what it was asked, and refuses when told.
class FakeHost final : public Attachments {
  public:
    Task<Result<AttachInfo>> attach(AttachSpec spec, std::shared_ptr<volume::BlockDevice> device,
                                    Formatted formatted) override {
        while (slow.contains(spec.id))
            co_await slow_done.wait();
        if (refuse_attach) co_return fail(Code::unavailable, "the host refuses");
        if (damaged) {
            devices.try_emplace(spec.id, std::move(device));
            unmounted.insert(spec.id);
            co_return fail(Code::corrupt, "the file system needs repair");
        }
        if (devices.contains(spec.id)) {
            unmounted.erase(spec.id);
            co_return info_for(spec.id);
        }
        if (spec.blank) {
            ++formats;
            CO_TRY(co_await formatted(spec.id));
        }
        devices[spec.id] = std::move(device);
        unmounted.erase(spec.id);
        co_return info_for(spec.id);
    }
    // Like the real one: the host's own mount goes, then the kernel says who has another.
    Task<Result<void>> detach(VolumeId id) override {
        if (!devices.contains(id)) co_return fail(Code::not_found, "not attached");
        if (busy) {
            unmounted.insert(id);
            co_return fail(Code::busy, "the kernel says that pid 7 uses it");
        }
        devices.erase(id);
        outgrown.erase(id);
        co_return Result<void>();
    }
    Task<Result<void>> detach_forced(VolumeId id) override {
        devices.erase(id);
        std::erase(surviving, id);
        std::erase_if(left, [id](const Leftover& one) { return one.id == id; });
        co_return Result<void>();
    }
    Task<Result<std::vector<VolumeId>>> find_surviving() override {
        if (before_resuming) before_resuming();
        co_return surviving;
    }
    Task<Result<AttachInfo>> resume(AttachSpec spec,
                                    std::shared_ptr<volume::BlockDevice> device) override {
        devices[spec.id] = std::move(device);
        co_return info_for(spec.id);
    }
    Task<Result<std::string>> grow(VolumeId id) override {
        if (!grows_online) outgrown.insert(id);
        co_return std::string(grows_online ? "grown online" : "at the next mount");
    }
    Task<Result<uint64_t>> trim(VolumeId id) override {
        trimmed.push_back(id);
        ++trims_running;
        most_trims_running = std::max(most_trims_running, trims_running);
        co_await runtime::yield();
        --trims_running;
        co_return uint64_t{0};
    }
    Result<AttachInfo> info(VolumeId id) const override {
        if (!devices.contains(id)) return fail(Code::not_found, "not attached");
        return info_for(id);
    }
    Task<std::vector<Leftover>> leftovers() override { co_return left; }
    Task<Result<void>> mend_leftovers(VolumeId id) override {
        std::erase_if(left, [id](const Leftover& one) { return one.id == id; });
        co_return Result<void>();
    }
    Task<void> refresh() override {
        ++refreshes;
        co_return;
    }
    std::vector<AttachInfo> list() const override { return {}; }
    Task<void> pause_all() override {
        while (is_request_waiting)
            co_await request_done.wait();
        devices.clear();
    }

    std::map<VolumeId, std::shared_ptr<volume::BlockDevice>> devices;
    std::vector<VolumeId> surviving;
    std::function<void()> before_resuming;
    std::set<VolumeId> unmounted;  // attached, but without a mount of ours
    std::set<VolumeId> outgrown;   // their file systems are smaller than their devices
    std::vector<Leftover> left;
    std::set<VolumeId> slow;  // attaching these waits for slow_done
    runtime::WaitList slow_done;
    std::vector<VolumeId> trimmed;
    int trims_running = 0;
    int most_trims_running = 0;
    int formats = 0;
    int refreshes = 0;
    bool damaged = false;
    bool busy = false;
    bool grows_online = true;
    bool refuse_attach = false;
    bool is_request_waiting = false;  // for room that only the background makes
    runtime::WaitList request_done;

  private:
    AttachInfo info_for(VolumeId id) const {
        AttachInfo info;
        info.id = id;
        info.way = "fake";
        info.grows_at_mount = outgrown.contains(id);
        if (!unmounted.contains(id)) info.path = fmt::format("/mnt/{}/data", id);
        return info;
    }
};

}  // namespace peplos::fabric
