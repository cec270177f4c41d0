#pragma once

#include <map>
#include <memory>
#include <set>
#include <vector>

#include "fabric/attachments.h"

namespace peplos::swarm {

using runtime::Task;

// The kernel of a simulated host, as far as attach/ makes use of it: it outlives the daemon, which
// may die while volumes stay attached, and takes up a device again when a new one resumes.
class SimHost final : public fabric::Attachments {
  public:
    // The device of an attached volume; null while nobody serves it.
    std::shared_ptr<volume::BlockDevice> device(VolumeId id) const {
        auto found = devices_.find(id);
        return found == devices_.end() ? nullptr : found->second;
    }
    bool is_attached(VolumeId id) const { return attached_.contains(id); }
    // The daemon is gone; what it served stays attached.
    void lose_daemon() { devices_.clear(); }
    // The host itself went down.
    void lose_host() {
        devices_.clear();
        attached_.clear();
    }

    Task<Result<fabric::AttachInfo>> attach(fabric::AttachSpec spec,
                                            std::shared_ptr<volume::BlockDevice> device,
                                            Formatted formatted) override {
        if (spec.blank) CO_TRY(co_await formatted(spec.id));
        if (is_paused_) co_return fail(Code::stopping, "the daemon stops");
        attached_.insert(spec.id);
        devices_[spec.id] = std::move(device);
        co_return info_for(spec.id);
    }
    Task<Result<void>> detach(VolumeId id) override {
        forget(id);
        co_return Result<void>();
    }
    Task<Result<void>> detach_forced(VolumeId id) override {
        forget(id);
        co_return Result<void>();
    }
    // The first call of each daemon.
    Task<Result<std::vector<VolumeId>>> find_surviving() override {
        is_paused_ = false;
        co_return std::vector<VolumeId>(attached_.begin(), attached_.end());
    }
    Task<Result<fabric::AttachInfo>> resume(fabric::AttachSpec spec,
                                            std::shared_ptr<volume::BlockDevice> device) override {
        if (is_paused_) co_return fail(Code::stopping, "the daemon stops");
        devices_[spec.id] = std::move(device);
        co_return info_for(spec.id);
    }
    Task<Result<std::string>> grow(VolumeId) override { co_return std::string("grown online"); }
    Task<Result<uint64_t>> trim(VolumeId) override { co_return uint64_t{0}; }
    Task<std::vector<fabric::Leftover>> leftovers() override {
        co_return std::vector<fabric::Leftover>();
    }
    Task<Result<void>> mend_leftovers(VolumeId id) override {
        forget(id);
        co_return Result<void>();
    }
    Task<void> refresh() override { co_return; }
    Result<fabric::AttachInfo> info(VolumeId id) const override {
        if (!attached_.contains(id)) return fail(Code::not_found, "not attached");
        return info_for(id);
    }
    std::vector<fabric::AttachInfo> list() const override { return {}; }
    Task<void> pause_all() override {
        is_paused_ = true;
        devices_.clear();
        co_return;
    }

  private:
    void forget(VolumeId id) {
        attached_.erase(id);
        devices_.erase(id);
    }
    static fabric::AttachInfo info_for(VolumeId id) {
        fabric::AttachInfo info;
        info.id = id;
        info.way = "simulated";
        info.path = "/simulated";
        return info;
    }

    bool is_paused_ = false;
    std::set<VolumeId> attached_;
    std::map<VolumeId, std::shared_ptr<volume::BlockDevice>> devices_;
};

}  // namespace peplos::swarm
