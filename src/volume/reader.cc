#include <bitset>

#include "base/crc32c.h"
#include "volume/core.h"
#include "volume/patient_read.h"

namespace peplos::volume {

namespace {

constexpr uint32_t kReadBlocksMax = limits::kIoBytesMax / kBlockBytes + 1;

// Neighbours in the volume that are neighbours in a segment: one read.
struct Run {
    SegmentHandle handle;
    format::Place place;  // of the first block
    uint32_t first = 0;   // block in the buffer
    uint32_t count = 0;
};

// One read of whole blocks, after the places are known.
struct ReadPlan {
    Lba first;
    Buffer into;
    boost::container::small_vector<Run, 2> runs;
    boost::container::small_vector<uint32_t, 8> crcs;  // per block, where a run covers it
    size_t pending = 0;
    Result<void> outcome;
    runtime::WaitList done;
};

// Pins the segment at once: after the next suspension it might be gone.
bool add_block(VolumeCore& core, ReadPlan& plan, uint32_t block, format::MapEntry entry) {
    plan.crcs[block] = entry.crc;
    if (!plan.runs.empty()) {
        Run& last = plan.runs.back();
        if (last.first + last.count == block &&
            last.place.segment_index() == entry.place.segment_index() &&
            last.place.offset_bytes() + uint64_t{last.count} * kBlockBytes ==
                entry.place.offset_bytes()) {
            ++last.count;
            return true;
        }
    }
    const SegmentHandle* handle = core.segments.find(entry.place.segment_index());
    if (handle == nullptr) return false;
    plan.runs.push_back(Run{*handle, entry.place, block, 1});
    return true;
}

Result<void> verify_run(VolumeCore& core, const ReadPlan& plan, const Run& run, Bytes bytes,
                        uint32_t copy) {
    for (uint32_t i = 0; i < run.count; ++i) {
        bool is_good =
            crc32c(bytes.subspan(size_t{i} * kBlockBytes, kBlockBytes)) == plan.crcs[run.first + i];
        if (is_good || PLANTED("read.believes_anything")) [[likely]]
            continue;
        format::Place place = format::Place::block(
            run.place.segment_index(), run.place.offset_bytes() + uint64_t{i} * kBlockBytes);
        Lba lba(plan.first.value + run.first + i);
        return fail(core.corrupt_block(run.handle, place, lba, copy));
    }
    return {};
}

Task<Result<void>> read_run_copy(VolumeCore& core, ReadPlan& plan, Run& run, uint32_t copy) {
    Buffer into = plan.into.slice(run.first * kBlockBytes, run.count * kBlockBytes);
    CO_TRY(co_await run.handle.read_copy(copy, run.place.offset_bytes(), into));
    co_return verify_run(core, plan, run, into.bytes(), copy);
}

Task<Result<void>> read_run(VolumeCore& core, ReadPlan& plan, Run& run) {
    Buffer into = plan.into.slice(run.first * kBlockBytes, run.count * kBlockBytes);
    auto outcome = co_await run.handle.read(run.place.offset_bytes(), into);
    if (outcome) outcome = verify_run(core, plan, run, into.bytes(), 0);
    if (outcome || run.handle.copy_count() <= 1) [[likely]]
        co_return outcome;
    auto read = [&core, &plan, &run](uint32_t copy) {
        return read_run_copy(core, plan, run, copy);
    };
    co_return co_await from_any_copy(run.handle, read);
}

Task<void> read_run_beside(VolumeCore& core, ReadPlan& plan, Run& run) {
    auto outcome = co_await read_run(core, plan, run);
    if (!outcome && plan.outcome) plan.outcome = std::move(outcome);
    if (--plan.pending == 0) plan.done.wake_all();
}

Task<Result<void>> read_runs(VolumeCore& core, ReadPlan& plan) {
    if (plan.runs.size() == 1) co_return co_await read_run(core, plan, plan.runs.front());
    plan.pending = plan.runs.size() - 1;
    for (size_t i = 1; i < plan.runs.size(); ++i) {
        runtime::spawn(core.resources.env.executor, read_run_beside(core, plan, plan.runs[i]));
    }
    auto outcome = co_await read_run(core, plan, plan.runs.front());
    while (plan.pending != 0)
        co_await plan.done.wait();
    if (!outcome) co_return outcome;
    co_return std::move(plan.outcome);
}

}  // namespace

Error VolumeCore::corrupt_block(const SegmentHandle& handle, format::Place place, Lba lba,
                                uint32_t copy) {
    ++counters.corrupt_blocks;
    return handle.corrupt_at(
        place.offset_bytes(),
        fmt::format("block {} does not match its checksum; restore it from a copy or a backup",
                    lba),
        copy);
}

Error VolumeCore::lost_block(Lba lba) const {
    uint64_t first = round_down(lba.value, limits::kLeafBlocks);
    return Error(Code::corrupt,
                 fmt::format("volume {}: block {} (4096 bytes at {}) is lost: the map leaf that "
                             "said where blocks {} to {} lie could not be read; restore it from a "
                             "backup (writing it makes it readable again)",
                             params.id, lba, lba.value * kBlockBytes, first,
                             std::min(first + limits::kLeafBlocks, map->block_count()) - 1));
}

Task<Result<void>> VolumeCore::read_blocks(Lba first, Buffer into) {
    auto block_count = static_cast<uint32_t>(into.size() / kBlockBytes);
    CHECK(block_count <= kReadBlocksMax);
    ReadPlan plan{.first = first, .into = into};
    plan.crcs.resize(block_count);
    std::bitset<kReadBlocksMax> missing;
    uint32_t low = block_count, high = 0;
    bool found_all = true;
    for (uint32_t i = 0; i < block_count; ++i) {
        Overlay::Found found = overlay.find(first.value + i);
        std::byte* out = into.data() + size_t{i} * kBlockBytes;
        if (found.kind == Overlay::Kind::zero) {
            std::memset(out, 0, kBlockBytes);
        } else if (found.kind == Overlay::Kind::miss) {
            missing.set(i);
            low = std::min(low, i);
            high = i;
        } else if (!found.entry->is_reference()) {
            std::memcpy(out, found.entry->data.data(), kBlockBytes);
        } else {
            found_all &= add_block(*this, plan, i, {found.entry->place, found.entry->crc, 0});
        }
    }
    if (low < block_count) {
        boost::container::small_vector<MapEntry, 4> entries(high - low + 1);
        Lba start(first.value + low);
        if (!map->lookup_cached(start, entries)) CO_TRY(co_await map->lookup(start, entries));
        for (uint32_t i = low; i <= high; ++i) {
            if (!missing.test(i)) continue;
            if (entries[i - low].is_lost()) co_return fail(lost_block(Lba(first.value + i)));
            if (entries[i - low]) {
                found_all &= add_block(*this, plan, i, entries[i - low]);
            } else {
                std::memset(into.data() + size_t{i} * kBlockBytes, 0, kBlockBytes);
            }
        }
    }
    if (!found_all) {
        co_return fail(segments.not_located(
            Code::corrupt, fmt::format("volume {}: a segment that the map names near block {}",
                                       params.id, first)));
    }
    if (plan.runs.empty()) co_return Result<void>{};
    co_return co_await read_runs(*this, plan);
}

Task<Result<void>> VolumeCore::read_partial(uint64_t offset, Buffer into) {
    uint64_t first = round_down(offset, kBlockBytes);
    Buffer whole = Buffer::allocate(round_up(offset + into.size(), kBlockBytes) - first);
    CO_TRY(co_await read_blocks(Lba(first / kBlockBytes), whole));
    std::memcpy(into.data(), whole.data() + (offset - first), into.size());
    co_return Result<void>{};
}

Task<Result<void>> VolumeCore::read_once(uint64_t offset, Buffer into) {
    bool is_whole = offset % kBlockBytes == 0 && into.size() % kBlockBytes == 0 &&
                    reinterpret_cast<uintptr_t>(into.data()) % kBlockBytes == 0;
    if (is_whole) return read_blocks(Lba(offset / kBlockBytes), std::move(into));
    return read_partial(offset, std::move(into));
}

Task<Result<void>> VolumeCore::read_again(uint64_t offset, Buffer into) {
    CO_TRY(co_await read_once(offset, std::move(into)));
    if (!log->may_read()) co_return co_await log->renew_promises();
    co_return Result<void>{};
}

Task<Result<void>> VolumeCore::read(uint64_t offset, Buffer into) {
    auto pass = gate.enter();
    if (!pass) co_return fail(std::move(pass).error());
    CO_TRY(check_access(offset, into.size()));
    if (running >= limits::kVolumeIoCountMax) {
        co_await enter_slot();
    } else {
        ++running;
    }
    Time start = resources.env.clock.now();
    Result<void> outcome = co_await read_once(offset, into);
    // Another node may own the volume by now, and have written it.
    if (outcome && !log->may_read()) [[unlikely]]
        outcome = co_await log->renew_promises();
    if (!outcome) [[unlikely]] {
        auto again = [this, offset, &into] { return read_again(offset, into); };
        outcome = co_await wait_for_nodes(std::move(outcome), again);
    }
    ++counters.read.count;
    counters.read.bytes += into.size();
    counters.read.latency.add(resources.env.clock.now() - start);
    if (!outcome) ++counters.read.errors;
    leave_slot();
    co_return outcome;
}

}  // namespace peplos::volume
