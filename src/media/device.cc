#include "media/device.h"

#include "base/fault.h"
#include "base/log.h"

namespace peplos::media {
namespace {

using runtime::Durability;
using runtime::Task;

constexpr uint64_t kZeroBytes = 1 * kMiB;
// More unreadable blocks than this in one piece are no latent errors: the device is broken.
constexpr uint64_t kUnreadableBlocksMax = 256;
// What must be zeros on a disk that nobody uses, as far as we look.
constexpr uint64_t kProbeBytes = 2 * kMiB;

bool is_zero(Bytes bytes) {
    return std::ranges::all_of(bytes, [](std::byte b) { return b == std::byte{0}; });
}

// Real writes, not Disk::zero(): a file's extents become written ones, and a durable write into
// them later is only that write.
Task<Result<void>> write_zeros(runtime::Disk& disk, uint64_t offset, uint64_t bytes) {
    Buffer zeros = Buffer::zeroed(std::min(bytes, kZeroBytes));
    for (uint64_t done = 0; done < bytes; done += zeros.size()) {
        Buffer part = zeros.slice(0, std::min<uint64_t>(zeros.size(), bytes - done));
        CO_TRY(co_await disk.write(offset + done, part, Durability::volatile_));
    }
    co_return Result<void>{};
}

Task<Result<void>> refuse_used(runtime::Disk& disk) {
    Buffer probe = Buffer::allocate(kProbeBytes);
    CO_TRY(co_await disk.read(0, probe));
    if (is_zero(std::as_const(probe).bytes())) co_return Result<void>{};
    CO_TRY_ASSIGN(bool is_ours, co_await is_formatted(disk));
    if (is_ours) {
        co_return fail(Code::already_exists,
                       "{} is a Peplos device already, of a node whose control store is not this "
                       "one. What its volumes hold is intact; their names are in that control "
                       "store: bring it back, or a backup of it",
                       disk.name());
    }
    co_return fail(Code::already_exists,
                   "{} is not blank; it is left as it is. If nobody needs what is on it, zero its "
                   "first 2 MiB",
                   disk.name());
}

Task<Result<void>> write_superblocks(runtime::Disk& disk, const format::Superblock& superblock) {
    // One after the other: at every moment one copy is whole.
    for (uint64_t offset : format::kSuperblockOffsets) {
        Buffer block = Buffer::allocate(format::kSuperblockBytes);
        format::encode_superblock(superblock, block.bytes());
        CO_TRY(co_await disk.write(offset, block, Durability::durable));
    }
    co_return Result<void>{};
}

}  // namespace

Task<Result<bool>> is_formatted(runtime::Disk& disk) {
    Result<void> read;
    for (uint64_t offset : format::kSuperblockOffsets) {
        Buffer block = Buffer::allocate(format::kSuperblockBytes);
        Result<void> one = co_await disk.read(offset, block);
        if (!one) {
            read = std::move(one);
            continue;
        }
        auto superblock = format::decode_superblock(std::as_const(block).bytes());
        if (superblock || superblock.error().code() != Code::not_found) co_return true;
    }
    if (!read) co_return fail(std::move(read).error());
    co_return false;
}

Task<Result<void>> format_device(runtime::Disk& disk, FormatOptions options, runtime::Rng& rng) {
    CO_TRY_ASSIGN(format::Superblock superblock,
                  format::plan_device(disk.size_bytes(), options.ring_bytes, options.media_class));
    rng.fill(std::as_writable_bytes(std::span(superblock.device.bytes)));
    superblock.incarnation = Incarnation(rng.next_id());
    if (options.existing == FormatOptions::Existing::refuse) CO_TRY(co_await refuse_used(disk));
    // The old superblocks go first: half-formatted is not formatted.
    for (uint64_t offset : format::kSuperblockOffsets) {
        Buffer block = Buffer::zeroed(format::kSuperblockBytes);
        CO_TRY(co_await disk.write(offset, block, Durability::durable));
    }
    CO_TRY(co_await write_zeros(disk, superblock.unit_table_offset, superblock.unit_table_bytes));
    for (const format::RingPlace& ring : superblock.rings) {
        CO_TRY(co_await write_zeros(disk, ring.offset, ring.bytes));
    }
    CO_TRY(co_await disk.sync());
    CO_TRY(co_await write_superblocks(disk, superblock));
    LOG_INFO("device formatted disk={} device={} incarnation={} units={} ring_bytes={}",
             disk.name(), superblock.device, superblock.incarnation, superblock.unit_count,
             options.ring_bytes);
    co_return Result<void>{};
}

Task<Result<void>> DeviceState::read_salvaging(uint64_t offset, Buffer into,
                                               std::vector<uint64_t>* unreadable) {
    auto whole = co_await disk->read(offset, into);
    if (whole || whole.error().code() != Code::io_error) co_return whole;
    // Halves of what failed, down to single blocks.
    std::vector<Buffer> parts{into};
    uint64_t failed_blocks = 0;
    while (!parts.empty()) {
        Buffer part = std::move(parts.back());
        parts.pop_back();
        uint64_t begin = offset + static_cast<uint64_t>(part.data() - into.data());
        auto read = co_await disk->read(begin, part);
        if (read) continue;
        if (read.error().code() != Code::io_error) co_return read;
        if (part.size() > kBlockBytes) {
            uint64_t half = round_up(part.size() / 2, kBlockBytes);
            parts.push_back(part.slice(half, part.size() - half));
            parts.push_back(part.slice(0, half));
            continue;
        }
        note_failed_read(read.error());
        if (++failed_blocks > kUnreadableBlocksMax) co_return read;
        std::memset(part.data(), 0, part.size());
        if (unreadable != nullptr) unreadable->push_back(begin);
    }
    co_return Result<void>{};
}

void DeviceState::note_failed_read(const Error& error) {
    ++errors.reads;
    errors.last = error.message();
    LOG_ERROR("read failed disk={} device={} error={}", disk->name(), superblock.device,
              error.text());
}

void DeviceState::note_corruption(std::string what) {
    ++errors.corruptions;
    LOG_ERROR("corruption disk={} device={} what=\"{}\"", disk->name(), superblock.device, what);
    errors.last = std::move(what);
}

void DeviceState::fail_for_good(const Error& error) {
    if (failed_) return;
    failed_ = true;
    ++errors.writes;
    errors.last = error.message();
    failure_ = fmt::format("device {} failed and is out of service (nothing is retried on it): {}",
                           disk->name(), error.message());
    LOG_ERROR("device failed disk={} device={} error={}", disk->name(), superblock.device,
              error.text());
}

Error DeviceState::failure() const {
    CHECK(failed_);
    return Error(Code::io_error, failure_);
}

Device::Device(runtime::Env env, std::unique_ptr<runtime::Disk> disk)
    : state_(env, std::move(disk)) {}

Device::~Device() = default;

Task<Result<std::unique_ptr<Device>>> Device::open(runtime::Env env,
                                                   std::unique_ptr<runtime::Disk> disk,
                                                   DeviceOptions options) {
    std::unique_ptr<Device> device(new Device(env, std::move(disk)));
    CO_TRY(co_await device->load_superblock());
    DeviceState& state = device->state_;
    state.superblock.boot = state.superblock.boot.next();
    CO_TRY(co_await write_superblocks(*state.disk, state.superblock));

    device->segments_ = std::make_unique<SegmentStore>(state, options.segments);
    CO_TRY(co_await device->segments_->load());
    const format::RingPlace& place = state.superblock.rings.front();
    device->ring_ = std::make_unique<Ring>(state, place.offset, place.bytes);
    CO_TRY(co_await device->ring_->recover());
    LOG_INFO("device opened disk={} device={} incarnation={} boot={} torn_tail={} corruptions={}",
             state.disk->name(), state.superblock.device, state.superblock.incarnation,
             state.superblock.boot, state.report.torn_tail, state.report.corruptions.size());
    co_return device;
}

Task<Result<void>> Device::load_superblock() {
    const std::string& name = state_.disk->name();
    std::optional<format::Superblock> best;
    std::optional<Error> errors[2];
    for (int i = 0; i < 2; ++i) {
        Buffer block = Buffer::allocate(format::kSuperblockBytes);
        auto found = co_await state_.disk->read(format::kSuperblockOffsets[i], block);
        if (!found) {
            errors[i] = std::move(found).error();
            continue;
        }
        auto decoded = format::decode_superblock(std::as_const(block).bytes());
        if (!decoded) {
            errors[i] = std::move(decoded).error();
        } else if (!best || best->boot < decoded->boot) {
            best = std::move(*decoded);
        }
    }
    if (!best) {
        bool is_blank =
            errors[0]->code() == Code::not_found && errors[1]->code() == Code::not_found;
        const Error& telling = errors[0]->code() == Code::not_found ? *errors[1] : *errors[0];
        if (is_blank) co_return fail(Code::not_found, "{} is not a Peplos device", name);
        co_return fail(telling.code(),
                       "{}: neither superblock can be read: {}; check that it is the right disk, "
                       "and restore its first 2 MiB from a backup, or its volumes",
                       name, telling.message());
    }
    for (int i = 0; i < 2; ++i) {
        if (!errors[i]) continue;
        PROBE("media.device.superblock_repaired");
        if (errors[i]->code() == Code::unsupported) co_return fail(*errors[i]);
        state_.report.superblock_repaired = true;
        state_.report.corruptions.push_back(
            fmt::format("{} at offset {}: {}; mended from the other copy", name,
                        format::kSuperblockOffsets[i], errors[i]->message()));
    }
    if (best->device_bytes > state_.disk->size_bytes()) {
        co_return fail(Code::invalid_argument,
                       "{} has {} bytes but was formatted with {}: restore its size", name,
                       state_.disk->size_bytes(), best->device_bytes);
    }
    state_.superblock = std::move(*best);
    co_return Result<void>{};
}

Task<void> Device::close() {
    if (closed_) co_return;
    closed_ = true;
    if (segments_) co_await segments_->close();
    if (ring_) co_await ring_->close();
}

}  // namespace peplos::media
