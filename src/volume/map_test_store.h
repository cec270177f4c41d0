#pragma once

#include <algorithm>
#include <array>
#include <boost/asio/io_context.hpp>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <map>
#include <optional>
#include <unordered_map>
#include <vector>

#include "base/crc32c.h"
#include "runtime/task.h"
#include "sim/random.h"
#include "volume/block_map.h"

// What tests of the block map share: segments in RAM, and a way to run tasks to their end.
namespace peplos::volume::map_testing {

using runtime::Task;

// Map segments in RAM. Appends and reads yield to other tasks; faults on demand.
class RamPageStore final : public PageStore {
  public:
    explicit RamPageStore(uint64_t segment_bytes = 256 * kKiB) : segment_bytes_(segment_bytes) {}

    void attach(BlockMap* map) {
        map_ = map;
        open_.reset();
    }
    void expect(uint64_t) override {}

    Task<Result<PageRun>> append(Buffer pages) override {
        co_await runtime::yield();
        if (appends_until_error_ && (*appends_until_error_)-- == 0) {
            appends_until_error_.reset();
            co_return fail(Code::no_space, "no space for pages, as asked");
        }
        const uint64_t size = pages.size();
        if (open_ && end_ + size > std::max(segment_bytes_, end_)) close_segment();
        if (!open_) CO_TRY(open_segment(size));
        auto& bytes = segments_[id_of(*open_)];
        bytes.resize(end_ + size);
        std::memcpy(bytes.data() + end_, pages.data(), size);
        const PageRun run{*open_, end_};
        end_ += size;
        appended_bytes_ += size;
        co_await runtime::yield();
        co_return run;
    }
    Task<Result<void>> sync() override {
        co_await runtime::yield();
        if (open_) close_segment();
        co_return Result<void>{};
    }
    uint32_t copy_count(SegmentId) const override { return 1; }
    runtime::Task<Result<void>> read_copy(SegmentId segment, uint32_t, uint64_t offset,
                                          Buffer into) override {
        return read(segment, offset, std::move(into));
    }
    void note_bad(SegmentId, uint32_t) override {}
    bool is_to_be_left(uint32_t) const override { return false; }
    Error corrupt_at(SegmentId, uint64_t, Error error) override { return error; }
    Task<Result<void>> read(SegmentId segment, uint64_t offset, Buffer into) override {
        ++read_count_;
        if (reads_held_) co_await released_.wait();
        co_await runtime::yield();
        if (reads_until_error_ && (*reads_until_error_)-- == 0) {
            reads_until_error_.reset();
            co_return fail(Code::unavailable, "a read failed, as asked");
        }
        auto at = segments_.find(segment);
        if (at == segments_.end()) co_return fail(Code::not_found, "no segment {}", segment);
        CHECK(offset % kBlockBytes == 0 && into.size() % kBlockBytes == 0);
        if (offset + into.size() > at->second.size()) {
            co_return fail(Code::io_error, "read behind the end of segment {}", segment);
        }
        std::memcpy(into.data(), at->second.data() + offset, into.size());
        co_return Result<void>{};
    }

    void remove(SegmentId id) { segments_.erase(id); }
    void hold_reads() {
        reads_held_ = true;
        released_.reset();
    }
    void release_reads() {
        reads_held_ = false;
        released_.set();
    }
    std::unordered_map<SegmentId, std::vector<std::byte>>& segments() { return segments_; }

    uint64_t read_count_ = 0;
    uint64_t appended_bytes_ = 0;
    std::optional<uint32_t> appends_until_error_;
    std::optional<uint32_t> reads_until_error_;

  private:
    SegmentId id_of(uint32_t index) { return map_->segments().find(index)->id; }
    Result<void> open_segment(uint64_t size) {
        CHECK(map_ != nullptr && size <= 8 * kMiB);
        TRY_ASSIGN(const uint32_t index, map_->segments().reserve());
        SegmentEntry entry;
        entry.id = {VolumeId(77), 1, ++sequence_};
        entry.kind = static_cast<uint8_t>(format::SegmentKind::map);
        entry.state = SegmentState::open;
        TRY(map_->segments().add(index, entry));
        open_ = index;
        end_ = format::kSegmentDataOffset;
        return {};
    }
    void close_segment() {
        map_->segments().seal(*open_, 0);
        open_.reset();
    }

    uint64_t segment_bytes_;
    BlockMap* map_ = nullptr;
    std::unordered_map<SegmentId, std::vector<std::byte>> segments_;
    std::optional<uint32_t> open_;
    uint64_t end_ = 0;
    uint32_t sequence_ = 0;
    bool reads_held_ = false;
    runtime::Event released_;
};

// Runs a task to its end on `context`; the test fails when it does not get there.
template <typename T>
T run(runtime::asio::io_context& context, Task<T> task) {
    std::optional<T> out;
    runtime::spawn(context.get_executor(), [](Task<T> t, std::optional<T>* to) -> Task<void> {
        to->emplace(co_await std::move(t));
    }(std::move(task), &out));
    context.restart();
    context.poll();
    CHECK(out.has_value(), "a task of the test did not end");
    return std::move(*out);
}
inline void run(runtime::asio::io_context& context, Task<void> task) {
    runtime::spawn(context.get_executor(), std::move(task));
    context.restart();
    context.poll();
}

// A map on RAM segments, with helpers that make data segments and records.
class MapFixture {
  public:
    explicit MapFixture(uint64_t block_count, uint64_t cache_bytes = 64 * kMiB,
                        uint64_t map_segment_bytes = 256 * kKiB)
        : cache(cache_bytes), store(map_segment_bytes) {
        make(block_count);
    }
    ~MapFixture() { run(context, map->close()); }
    void make(uint64_t block_count) {
        map = std::make_unique<BlockMap>(kIdentity, block_count, cache, store,
                                         context.get_executor());
        store.attach(map.get());
    }
    // Brings in a data segment; returns its index.
    uint32_t add_segment(Lsn lsn, uint32_t block_count) {
        auto index = map->segments().reserve();
        CHECK(index.has_value());
        SegmentEntry entry;
        entry.id = {VolumeId(9), 1, ++data_sequence};
        entry.kind = static_cast<uint8_t>(format::SegmentKind::data);
        entry.state = SegmentState::sealed;
        entry.sealed_lsn = entry.age_lsn = lsn;
        entry.block_count = block_count;
        CHECK(map->segments().add(*index, entry).has_value());
        return *index;
    }
    static MapEntry entry_at(uint32_t segment, uint32_t position) {
        return {Place::block(segment, format::segment_block_offset(position)),
                static_cast<uint32_t>(mix_bits(uint64_t{segment} << 32 | position)), 0};
    }
    Result<void> apply(MapChange change) { return run(context, map->apply(change)); }
    // One drain: a new segment with a block for each LBA (ascending).
    void write(Lsn lsn, const std::vector<uint64_t>& lbas) {
        const uint32_t segment = add_segment(lsn, static_cast<uint32_t>(lbas.size()));
        std::vector<MapUpdate> updates;
        updates.reserve(lbas.size());
        for (uint32_t i = 0; i < lbas.size(); ++i) {
            updates.push_back({Lba(lbas[i]), entry_at(segment, i)});
        }
        Result<void> result = apply({lsn, {}, updates, {}});
        CHECK(result.has_value(), "{}", result.error().text());
    }
    MapEntry lookup(uint64_t lba) {
        MapEntry out;
        Result<void> result = run(context, map->lookup(Lba(lba), std::span(&out, 1)));
        CHECK(result.has_value(), "{}", result.error().text());
        return out;
    }
    // A whole checkpoint; deletes what becomes deletable.
    RootRef checkpoint(Lsn lsn) {
        CHECK(map->begin_checkpoint(lsn, lsn).has_value());
        Result<RootRef> root = run(context, map->write_checkpoint());
        CHECK(root.has_value(), "{}", root.error().text());
        map->commit_checkpoint();
        remove_dead();
        return *root;
    }
    void remove_dead() {
        for (const DeadSegment& dead : map->segments().take_deletable())
            store.remove(dead.id);
    }
    // A new process: the map from `root`, or the error of loading it.
    Result<void> reload(RootRef root) {
        run(context, map->close());
        map.reset();
        make(0);
        return run(context, map->load(root));
    }
    void expect_audit_clean() {
        Result<BlockMap::Audit> audit = run(context, map->audit());
        ASSERT_TRUE(audit.has_value()) << audit.error().text();
        EXPECT_THAT(audit->mismatches, ::testing::IsEmpty());
        EXPECT_EQ(audit->mapped_count, map->mapped_count());
    }

    static constexpr MapIdentity kIdentity{VolumeId(0x11), LineageId(0x22)};
    runtime::asio::io_context context;
    LeafCache cache;
    RamPageStore store;
    std::unique_ptr<BlockMap> map;
    uint32_t data_sequence = 0;
};

}  // namespace peplos::volume::map_testing
