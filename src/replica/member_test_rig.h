#pragma once

#include "replica/journal_test_rig.h"
#include "replica/member_host.h"

namespace peplos::replica {

inline constexpr NodeId kSelf(1), kOwner(2), kOther(3);
inline constexpr VolumeId kVolume(7);
inline constexpr LineageId kLineage(107);

inline Claim claim_of(uint64_t epoch, NodeId owner = kOwner) {
    return {owner, Epoch(epoch), OpenToken(epoch * 1000)};
}

// Stamps records as an owner does: LSNs, chains, the epoch.
struct Stamper {
    Record stamp(Record record) {
        record.volume = kVolume;
        record.lineage = kLineage;
        record.epoch = epoch;
        record.lsn = last = last.next();
        record.prev_data_lsn = data;
        record.prev_meta_lsn = meta;
        record.root_lsn = root;
        record.settled_lsn = settled;
        if (format::is_data(record.type)) data = record.lsn;
        if (format::is_meta(record.type)) meta = record.lsn;
        if (record.type == RecordType::root) root = record.lsn;
        return record;
    }
    Epoch epoch{1};
    Lsn last, data, meta, root, settled;
};

struct MemberTest : JournalTest {
    void SetUp() override {
        JournalTest::SetUp();
        make_host();
    }
    void TearDown() override {
        if (host) world.run(host->stop());
        host.reset();
        JournalTest::TearDown();
    }
    void make_host() {
        host = std::make_unique<MemberHost>(world.env(), kSelf, Timing{});
        device = node.device->incarnation();
        host->add_device(node.device->id(), device, *node.journal);
    }
    void restart() {
        world.run(host->stop());
        host.reset();
        end();
        begin();
        make_host();
    }
    void power_cut(sim::CrashMode mode = sim::CrashMode::by_seed) {
        world.crash({.mode = mode});
        host.reset();
        node.reset();
        begin();
        make_host();
    }

    OpenCall open_call(uint64_t epoch, uint64_t token, std::vector<Record> records = {},
                       Lsn keep = {}, NodeId owner = kOwner) {
        OpenCall call{kVolume, kLineage, {}, 0, 1, {}, std::move(records)};
        call.message = {.claim = claim_of(epoch, owner),
                        .version = ++version,
                        .incarnation = device,
                        .token = OpenToken(token),
                        .recorded = {},
                        .keep_lsn = keep,
                        .last_lsn = call.records.empty() ? keep : call.records.back().lsn,
                        .sent_at = world.now()};
        return call;
    }
    AppendCall append_call(uint64_t epoch, uint64_t token, Record record) {
        AppendMessage message{claim_of(epoch), OpenToken(token), record.lsn, world.now()};
        return {kVolume, message, std::move(record)};
    }
    Message open(OpenCall call) { return ok(world.run(host->open(std::move(call)))); }
    Message append(uint64_t epoch, uint64_t token, Record record) {
        return ok(world.run(host->append(append_call(epoch, token, std::move(record)))));
    }
    Message fence(uint64_t epoch, uint64_t token, NodeId owner = kOther) {
        FenceMessage message{claim_of(epoch, owner), device, OpenToken(token)};
        return ok(world.run(host->fence(kVolume, kLineage, message)));
    }
    std::vector<Record> read(uint64_t epoch, NodeId owner = kOther, Lsn after = {}) {
        LogRecords out = ok(
            world.run(host->read_log(kVolume, claim_of(epoch, owner), device, after, 64 * kMiB)));
        EXPECT_TRUE(out.is_last);
        return std::move(out.records);
    }
    static std::vector<uint64_t> lsns_of(const std::vector<Record>& records) {
        std::vector<uint64_t> out;
        for (const Record& record : records)
            out.push_back(record.lsn.value);
        return out;
    }
    static MemberAnswer answer(const Message& message) { return std::get<MemberAnswer>(message); }
    static FenceAnswer fenced(const Message& message) { return std::get<FenceAnswer>(message); }
    static Refusal::Reason refused(const Message& message) {
        return std::get<Refusal>(message).reason;
    }
    // An open log with `count` writes under epoch 1.
    void fill(uint64_t count) {
        answer(open(open_call(1, 11)));
        for (uint64_t i = 1; i <= count; ++i) {
            stamper.settled = Lsn(i - 1);
            MemberAnswer said = answer(append(1, 11, stamper.stamp(write_of(i, 100 * i))));
            ASSERT_EQ(said.durable_lsn, Lsn(i));
        }
    }

    std::unique_ptr<MemberHost> host;
    Incarnation device;
    Stamper stamper;
    uint64_t version = 0;
};

}  // namespace peplos::replica
