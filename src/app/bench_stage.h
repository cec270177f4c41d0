#pragma once

#include <memory>
#include <string>

#include "keeper/keeper.h"
#include "media/device.h"
#include "replica/local_journal.h"
#include "runtime/core.h"
#include "runtime/system.h"
#include "volume/leaf_cache.h"
#include "volume/volume.h"

namespace peplos::app {

using runtime::Task;

struct BenchStageOptions {
    std::string path;
    uint64_t device_bytes = 8 * kGiB;
    uint64_t ring_bytes = 0;  // 0: the default
    uint64_t volume_bytes = 4 * kGiB;
    uint64_t leaf_cache_bytes = limits::kLeafCacheBytesDefault;
    uint64_t overlay_bytes = limits::kOverlayBytesDefault;
};

// One device with one volume on it, as a node would hold them, without a control store: the journal
// itself says which epoch and token came last.
class BenchStage {
  public:
    BenchStage(runtime::Core& core, BenchStageOptions options);

    // Makes the device anew and opens it.
    Task<Result<void>> format();
    Task<Result<void>> open_device();
    // The volume that the journal knows, or a new one of options.volume_bytes.
    Task<Result<void>> open_volume();
    Task<Result<void>> close_volume();
    Task<void> close();

    volume::Volume& volume() { return *volume_; }
    uint64_t stored_bytes() const;
    // The live blocks' share of all units: how full the device is.
    double stored_share() const;
    runtime::Executor executor() { return core_.executor(); }
    runtime::Clock& clock() { return system_.env().clock; }
    runtime::Rng& rng() { return system_.env().rng; }

  private:
    Task<Result<void>> use(std::unique_ptr<runtime::Disk> disk);

    runtime::Core& core_;
    BenchStageOptions options_;
    runtime::System system_;
    volume::LeafCache leaf_cache_;
    volume::OverlayBudget overlay_;
    volume::SpaceBudget space_;
    std::unique_ptr<media::Device> device_;
    std::unique_ptr<replica::Journal> journal_;
    std::unique_ptr<volume::Resources> resources_;
    std::unique_ptr<keeper::Keeper> keeper_;
    std::unique_ptr<volume::Volume> volume_;
};

}  // namespace peplos::app
