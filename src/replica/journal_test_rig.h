#pragma once

#include <cstring>
#include <gtest/gtest.h>
#include <map>
#include <memory>
#include <vector>

#include "base/crc32c.h"
#include "replica/local_journal.h"
#include "sim/world.h"

namespace peplos::replica {

using format::Record;
using format::RecordType;

inline constexpr uint64_t kDiskBytes = 64 * kMiB;
inline constexpr uint64_t kRingBytes = limits::kRingBytesMin;
inline constexpr const char* kPath = "disk0";

// One process's hold on the device.
struct Node {
    std::unique_ptr<media::Device> device;
    std::unique_ptr<LocalJournal> journal;
    void reset() {
        journal.reset();
        device.reset();
    }
};

inline Task<Result<void>> format_disk(runtime::Env& env) {
    CO_TRY_ASSIGN(auto disk, co_await env.disks.open(kPath, {.create_bytes = kDiskBytes}));
    media::FormatOptions options;
    options.ring_bytes = kRingBytes;
    options.existing = media::FormatOptions::Existing::overwrite;
    co_return co_await media::format_device(*disk, options, env.rng);
}

inline Task<Result<void>> start(runtime::Env& env, Node* node) {
    CO_TRY_ASSIGN(auto disk, co_await env.disks.open(kPath, {}));
    CO_TRY_ASSIGN(node->device, co_await media::Device::open(env, std::move(disk)));
    CO_TRY_ASSIGN(node->journal, co_await LocalJournal::open(env, *node->device));
    co_return Result<void>{};
}

inline Task<void> stop(Node* node) {
    co_await node->journal->stop();
    co_await node->device->close();
}

inline Buffer block_of(uint64_t value) {
    Buffer out = Buffer::allocate(kBlockBytes);
    for (size_t i = 0; i < out.size(); i += 8)
        std::memcpy(out.data() + i, &value, 8);
    return out;
}

inline Record write_of(uint64_t lba, uint64_t value, uint32_t blocks = 1) {
    Record record;
    record.type = RecordType::write;
    record.lba = Lba(lba);
    record.block_count = blocks;
    for (uint32_t i = 0; i < blocks; ++i) {
        record.payload.push_back(block_of(value + i));
        record.crcs.push_back(crc32c(std::as_const(record.payload.back()).bytes()));
    }
    return record;
}

inline Record seal_of(Lsn drained) {
    Record record;
    record.type = RecordType::seal;
    record.body = format::SealBody{drained, {}, {}};
    return record;
}

inline Record root_of(Lsn drained, Lsn meta) {
    Record record;
    record.type = RecordType::root;
    record.body = format::RootBody{.drained_lsn = drained, .meta_lsn = meta, .size_blocks = 9};
    return record;
}

inline uint64_t value_of(const Record& record, size_t block) {
    uint64_t value = 0;
    std::memcpy(&value, record.payload[0].data() + block * kBlockBytes, 8);
    return value;
}

struct Collector final : RecordVisitor {
    Task<Result<void>> on_record(Record record) override {
        records.push_back(std::move(record));
        co_return Result<void>{};
    }
    std::vector<Record> records;
};

// A replay that takes as long as a test wishes: nothing moves meanwhile.
struct SlowVisitor final : RecordVisitor {
    Task<Result<void>> on_record(Record) override {
        co_await go_on.wait();
        co_return Result<void>{};
    }
    runtime::Event go_on;
};

inline Task<void> replay_slowly(VolumeLog& log, SlowVisitor& visitor, bool* is_over) {
    *is_over = (co_await log.replay(visitor)).has_value();
}

struct JournalTest : testing::Test {
    void SetUp() override {
        ok(world.run(format_disk(world.env())));
        begin();
    }
    void TearDown() override {
        if (node.journal) end();
    }
    template <typename T>
    T ok(Result<T> result) {
        if (!result) throw std::runtime_error(result.error().text());
        if constexpr (!std::is_void_v<T>) return std::move(*result);
    }
    void begin() { ok(world.run(start(world.env(), &node))); }
    void end() {
        world.run(stop(&node));
        node.reset();
    }
    void crash(sim::CrashMode mode = sim::CrashMode::by_seed) {
        world.crash({.mode = mode});
        node.reset();
    }
    OpenRequest request(VolumeId volume, uint64_t epoch) {
        OpenRequest out;
        out.volume = volume;
        out.lineage = LineageId(volume.value + 100);
        out.epoch = Epoch(epoch);
        out.token = OpenToken(1000 + epoch);
        if (recorded.contains(volume)) out.recorded = recorded[volume];
        return out;
    }
    std::unique_ptr<VolumeLog> open(VolumeId volume, uint64_t epoch) {
        OpenRequest asked = request(volume, epoch);
        auto log = ok(world.run(node.journal->open(asked)));
        if (log->tail().outcome == LogOutcome::complete)
            recorded[volume] = node.journal->membership_for(asked.token);
        return log;
    }
    Lsn put(VolumeLog& log, Record record) { return ok(world.run(log.append(std::move(record)))); }
    std::vector<Record> replay(VolumeLog& log) {
        Collector collector;
        ok(world.run(log.replay(collector)));
        return std::move(collector.records);
    }

    sim::World world{3};
    Node node;
    std::map<VolumeId, Membership> recorded;  // the control store
};

}  // namespace peplos::replica
