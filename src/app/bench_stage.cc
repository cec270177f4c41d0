#include "app/bench_stage.h"

namespace peplos::app {

BenchStage::BenchStage(runtime::Core& core, BenchStageOptions options)
    : core_(core),
      options_(std::move(options)),
      system_(&core),
      leaf_cache_(options_.leaf_cache_bytes),
      overlay_(options_.overlay_bytes),
      space_({}) {}

Task<Result<void>> BenchStage::format() {
    runtime::DiskOptions disk_options{options_.device_bytes};
    CO_TRY_ASSIGN(std::unique_ptr<runtime::Disk> disk,
                  co_await system_.env().disks.open(options_.path, disk_options));
    media::FormatOptions format_options;
    format_options.existing = media::FormatOptions::Existing::overwrite;
    if (options_.ring_bytes != 0) format_options.ring_bytes = options_.ring_bytes;
    CO_TRY(co_await media::format_device(*disk, format_options, system_.env().rng));
    CO_TRY(co_await use(std::move(disk)));
    if (!options_.prezero) co_return Result<void>();
    // As on a device in use: every unit was written once, nothing is an unwritten extent.
    for (;;) {
        CO_TRY_ASSIGN(uint64_t written, co_await device_->segments().prezero(64 * kMiB));
        if (written == 0) break;
    }
    co_return Result<void>();
}

Task<Result<void>> BenchStage::open_device() {
    CO_TRY_ASSIGN(std::unique_ptr<runtime::Disk> disk,
                  co_await system_.env().disks.open(options_.path, runtime::DiskOptions{}));
    co_return co_await use(std::move(disk));
}

Task<Result<void>> BenchStage::use(std::unique_ptr<runtime::Disk> disk) {
    CO_TRY_ASSIGN(device_, co_await media::Device::open(system_.env(), std::move(disk)));
    CO_TRY_ASSIGN(journal_, co_await replica::LocalJournal::open(system_.env(), *device_));
    space_.add_store(&device_->segments());
    keeper_ = std::make_unique<keeper::Keeper>(system_.env());
    keeper_->share(overlay_, space_, leaf_cache_);
    keeper_->start();
    resources_ = std::make_unique<volume::Resources>(
        volume::Resources{system_.env(), *journal_, leaf_cache_, overlay_, space_, keeper_.get()});
    co_return Result<void>();
}

Task<Result<std::unique_ptr<volume::Volume>>> BenchStage::open_volume(VolumeId id, uint64_t bytes) {
    volume::VolumeParams params;
    params.id = id;
    params.lineage = LineageId(id.value);
    params.size_bytes = bytes;
    params.epoch = Epoch(1);
    params.token = OpenToken(system_.env().rng.next_id());
    for (const replica::RetainedVolume& retained : journal_->volumes()) {
        if (retained.volume != id) continue;
        params.epoch = retained.fence.next();
        params.recorded = replica::Membership{device_->incarnation(), retained.token};
    }
    bool is_new = !params.recorded.has_value();
    std::unique_ptr<volume::Volume> volume;
    if (is_new) {
        CO_TRY_ASSIGN(volume, co_await volume::Volume::create(*resources_, std::move(params)));
    } else {
        CO_TRY_ASSIGN(volume, co_await volume::Volume::open(*resources_, std::move(params)));
    }
    keeper_->opened(*volume);
    co_return volume;
}

Task<Result<void>> BenchStage::open_volumes() {
    CO_TRY_ASSIGN(volume_, co_await open_volume(VolumeId(1), options_.volume_bytes));
    if (options_.beside_bytes == 0) co_return Result<void>();
    CO_TRY_ASSIGN(beside_, co_await open_volume(VolumeId(2), options_.beside_bytes));
    co_return Result<void>();
}

Task<Result<void>> BenchStage::close_volume(std::unique_ptr<volume::Volume> volume) {
    if (volume == nullptr) co_return Result<void>();
    co_await keeper_->closing(*volume);
    co_return co_await volume->close();
}

Task<Result<void>> BenchStage::close_volumes() {
    Result<void> closed = co_await close_volume(std::move(volume_));
    Result<void> beside_closed = co_await close_volume(std::move(beside_));
    co_return closed ? beside_closed : closed;
}

Task<void> BenchStage::stop_keeper() {
    co_await keeper_->stop();
}

Task<void> BenchStage::close() {
    Result<void> closed = co_await close_volumes();
    if (!closed) std::fprintf(stderr, "peplos-bench: %s\n", closed.error().text().c_str());
    if (keeper_ != nullptr) co_await keeper_->stop();
    if (journal_ != nullptr) co_await journal_->stop();
    if (device_ != nullptr) co_await device_->close();
    keeper_.reset();
    resources_.reset();
    journal_.reset();
    device_.reset();
}

double BenchStage::stored_share() const {
    uint64_t total = uint64_t{device_->segments().space().total_units} * limits::kSegmentUnitBytes;
    return static_cast<double>(volume_->stats().live_bytes) / static_cast<double>(total);
}

uint64_t BenchStage::stored_bytes() const {
    uint64_t bytes = 0;
    for (const media::SegmentInfo& segment : device_->segments().list())
        bytes += segment.bytes();
    return bytes;
}

}  // namespace peplos::app
