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
    uint64_t beside_bytes = 0;  // size of a second volume beside the first; 0: none
    bool prezero = true;        // a new device is written once before it is used
};

// One device with a volume or two on it, as a node would hold them, without a control store: the
// journal itself says which epoch and token came last.
class BenchStage {
  public:
    BenchStage(runtime::Core& core, BenchStageOptions options);

    // Makes the device anew and opens it.
    Task<Result<void>> format();
    Task<Result<void>> open_device();
    // The volumes that the journal knows, or new ones of the sizes that the options say.
    Task<Result<void>> open_volumes();
    Task<Result<void>> close_volumes();
    // From now on nothing is drained or cleaned.
    Task<void> stop_keeper();
    Task<void> close();

    volume::Volume& volume() { return *volume_; }
    volume::Volume* beside() { return beside_.get(); }
    uint64_t leaf_cache_used_bytes() const { return leaf_cache_.bytes(); }
    media::RingStats ring_stats() const { return device_->ring().stats(); }
    uint64_t stored_bytes() const;
    // The live blocks' share of all units: how full the device is.
    double stored_share() const;
    runtime::Executor executor() { return core_.executor(); }
    runtime::Clock& clock() { return system_.env().clock; }
    runtime::Rng& rng() { return system_.env().rng; }

  private:
    Task<Result<void>> use(std::unique_ptr<runtime::Disk> disk);
    Task<Result<std::unique_ptr<volume::Volume>>> open_volume(VolumeId id, uint64_t bytes);
    Task<Result<void>> close_volume(std::unique_ptr<volume::Volume> volume);

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
    std::unique_ptr<volume::Volume> beside_;
};

}  // namespace peplos::app
