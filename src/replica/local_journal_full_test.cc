#include "replica/journal_test_rig.h"

// A journal that is full up to what only the moving of its oldest records may take.
namespace peplos::replica {
namespace {

constexpr VolumeId kFiller(5000);
constexpr VolumeId kHog(6000);
constexpr uint64_t kHogs = 4;  // beside it
constexpr VolumeId kReplayed(7000);

// What the oldest frame holds: a record of each of many volumes.
struct Oldest {
    uint64_t writes = 0;   // of a block
    uint64_t zeros = 0;    // small
    uint64_t intents = 0;  // of about 4 KiB each
    uint64_t volumes() const { return writes + zeros + intents; }
    Record record(uint64_t i) const {
        if (i < writes) return write_of(7, i);
        Record out;
        out.type = RecordType::zero;
        out.block_count = 3;
        if (i < writes + zeros) return out;
        return intent_of(255);
    }
    static Record intent_of(size_t count) {
        Record out;
        out.type = RecordType::delete_intent;
        format::DeleteIntentBody body;
        for (size_t i = 0; i < count; ++i)
            body.segments.push_back(SegmentId{VolumeId(7), 1, static_cast<uint32_t>(i + 1)});
        out.body = std::move(body);
        return out;
    }
};

struct FullJournalTest : JournalTest {
    media::Ring& ring() { return node.device->ring(); }
    // Where the next frame begins in the ring, if it fits there.
    uint64_t head() {
        uint64_t newest = ring().newest_sequence();
        uint64_t base =
            format::plan_device(kDiskBytes, kRingBytes, format::MediaClass::nvme)->rings[0].offset;
        return ring().device_offset_of({newest, 0, 0}) - base;
    }
    // Goes around the ring at least once, until a frame lies at `place` or a little behind it.
    void turn_to(uint64_t place) {
        auto filler = open(kFiller, 1);
        uint64_t before = head();
        bool has_wrapped = false;
        for (int i = 0; !has_wrapped || head() < place; ++i) {
            ASSERT_LT(i, 5000);
            bool is_near = has_wrapped && head() + 160 * kKiB >= place;
            Lsn last = put(*filler, write_of(1, i, is_near ? 1 : 32));
            has_wrapped = has_wrapped || head() < before;
            before = head();
            if (i % 10 != 9) continue;
            Lsn seal = put(*filler, seal_of(last));
            put(*filler, root_of(last, seal));
            filler->trim(last, seal);
        }
        filler.reset();
        ok(world.run(node.journal->drop(kFiller)));
    }
    // One frame with a record of each volume, of which nothing else lies before it.
    void make_oldest(const Oldest& oldest) {
        std::vector<std::unique_ptr<VolumeLog>> logs;
        for (uint64_t i = 1; i <= oldest.volumes(); ++i)
            logs.push_back(open(VolumeId(i), 2));
        turn_to(place);
        std::vector<AppendTicket> tickets;
        for (uint64_t i = 0; i < oldest.volumes(); ++i) {
            Record record = oldest.record(i);
            Admission admission = logs[i]->try_admit(record);
            ASSERT_TRUE(admission);
            record.lsn = logs[i]->next_lsn();
            tickets.push_back(logs[i]->submit(std::move(record), std::move(admission)));
        }
        for (uint64_t i = 0; i < oldest.volumes(); ++i)
            ok(world.run(logs[i]->wait(std::move(tickets[i]))));
        sequence = ring().newest_sequence();
        replayed = open(kReplayed, 1);
        put(*replayed, write_of(1, 1));
        runtime::spawn(world.env().executor, replay_slowly(*replayed, *visitor, &is_replayed));
        logs.clear();
        for (uint64_t i = 1; i <= oldest.volumes(); ++i)
            open(VolumeId(i), 3).reset();
        ASSERT_EQ(ring().tail_sequence(), sequence);
    }
    // Writes of some volumes, then meta records until not even they find room.
    void fill_up() {
        for (uint64_t i = kHog.value + 1; i <= kHog.value + kHogs; ++i) {
            auto log = open(VolumeId(i), 1);
            Record record = write_of(1, i, 32);
            while (Admission admission = log->try_admit(record)) {
                record.lsn = log->next_lsn();
                AppendTicket ticket = log->submit(std::move(record), std::move(admission));
                ok(world.run(log->wait(std::move(ticket))));
                record = write_of(1, i, 32);
            }
        }
        auto hog = open(kHog, 1);
        for (size_t count : {4096, 512, 1}) {
            Record record = Oldest::intent_of(count);
            Result<Lsn> appended;
            do {
                appended = world.run(hog->append(record));
            } while (appended);
            ASSERT_EQ(appended.error().code(), Code::busy) << appended.error().text();
        }
    }
    void free_all() {
        for (uint64_t i = kHog.value; i <= kHog.value + kHogs; ++i)
            ok(world.run(node.journal->drop(VolumeId(i))));
    }
    // Of a journal that is formatted anew, and full when this returns.
    void make_full(const Oldest& oldest, uint64_t at) {
        end();
        ok(world.run(format_disk(world.env())));
        recorded.clear();
        begin();
        place = at;
        visitor = std::make_unique<SlowVisitor>();
        is_replayed = false;
        make_oldest(oldest);
        if (!HasFatalFailure()) fill_up();
    }

    uint64_t place = 0;
    uint64_t sequence = 0;
    std::unique_ptr<SlowVisitor> visitor;
    std::unique_ptr<VolumeLog> replayed;
    bool is_replayed = false;
};

// While a volume is replayed nothing moves, and meanwhile the ring fills. Then the oldest frame, of
// which every record is needed, must find its way to the front by itself: nobody can append
// anything before that.
TEST_F(FullJournalTest, TheOldestFrameIsMovedWhenNothingElseFits) {
    const uint64_t kept = ring().ring_bytes() - ring().free_bytes(media::Urgency::meta);
    // Small records alone; some with payload; as large as a frame can be.
    for (const Oldest& oldest : {Oldest{0, 400, 0}, Oldest{60, 200, 0}, Oldest{64, 0, 57}}) {
        // How far from the ring's end it is full: the copy fits before the end, or does not.
        for (uint64_t left : {800 * kKiB, 100 * kKiB}) {
            SCOPED_TRACE(fmt::format("{} volumes, {} bytes left", oldest.volumes(), left));
            make_full(oldest, kept - left);
            if (HasFatalFailure()) return;
            ASSERT_EQ(ring().tail_sequence(), sequence);
            uint64_t moved_before = node.journal->stats().reappended_records;
            free_all();
            visitor->go_on.set();
            world.run_until_idle();
            EXPECT_TRUE(is_replayed);
            EXPECT_GT(ring().tail_sequence(), sequence);
            EXPECT_GE(node.journal->stats().reappended_records - moved_before, oldest.volumes());
            EXPECT_GT(ring().free_bytes(media::Urgency::user), 4 * kMiB);
            if (HasFailure()) return;
            auto log = open(VolumeId(9000), 1);
            put(*log, write_of(1, 1, 32));
            log.reset();
            replayed.reset();
            crash();
            begin();
            for (uint64_t i = 1; i <= oldest.volumes(); i += 20) {
                log = open(VolumeId(i), 4);
                EXPECT_EQ(log->tail().outcome, LogOutcome::complete) << log->tail().reason;
                EXPECT_EQ(replay(*log).size(), 1u);
                log.reset();
            }
            ASSERT_FALSE(HasFailure());
        }
    }
}

TEST_F(FullJournalTest, WhatIsLostOfTheOldestFrameDoesNotHoldItForEver) {
    const uint64_t kept = ring().ring_bytes() - ring().free_bytes(media::Urgency::meta);
    make_full({60, 200, 0}, kept - 800 * kKiB);
    if (HasFatalFailure()) return;
    world.disk(kPath).corrupt(ring().device_offset_of({sequence + 1, 0, 0}) - 100);
    free_all();
    visitor->go_on.set();
    world.run_until_idle();
    EXPECT_GT(ring().tail_sequence(), sequence);
    EXPECT_GT(ring().free_bytes(media::Urgency::user), 4 * kMiB);
    replayed.reset();
    crash();
    begin();
    free_all();
    world.run_until_idle();
    EXPECT_EQ(open(VolumeId(60), 4)->tail().outcome, LogOutcome::unknown);
    auto other = open(VolumeId(59), 4);
    EXPECT_EQ(other->tail().outcome, LogOutcome::complete) << other->tail().reason;
    EXPECT_EQ(replay(*other).size(), 1u);
}

TEST_F(FullJournalTest, OpensWithDamageInARingThatIsFullToTheReserve) {
    const uint64_t kept = ring().ring_bytes() - ring().free_bytes(media::Urgency::meta);
    make_full({60, 200, 0}, kept - 800 * kKiB);
    if (HasFatalFailure()) return;
    const uint64_t place = ring().device_offset_of({sequence + 1, 0, 0}) - 100;
    replayed.reset();
    crash(sim::CrashMode::keep);
    world.disk(kPath).corrupt(place);
    begin();
    free_all();
    world.run_until_idle();
    EXPECT_EQ(open(VolumeId(60), 4)->tail().outcome, LogOutcome::unknown);
    EXPECT_EQ(open(VolumeId(59), 4)->tail().outcome, LogOutcome::complete);
}

// Volumes that nobody can drain (damage keeps them closed) hold most of the ring. It turns around
// them for those that are served.
TEST_F(FullJournalTest, WhatClosedVolumesHoldIsMovedOutOfTheWay) {
    for (uint64_t i = 1; i <= 2; ++i) {
        auto hog = open(VolumeId(i), 1);
        while (Admission admission = hog->try_admit(write_of(1, 1, 32))) {
            Record record = write_of(i, hog->next_lsn().value, 32);
            record.lsn = hog->next_lsn();
            AppendTicket ticket = hog->submit(std::move(record), std::move(admission));
            ok(world.run(hog->wait(std::move(ticket))));
        }
    }
    auto served = open(VolumeId(3), 1);
    const uint64_t bytes = 5 * ring().ring_bytes();
    for (uint64_t done = 0; done < bytes; done += 32 * kBlockBytes) {
        Record record = write_of(done / kBlockBytes, done, 32);
        Admission admission = served->try_admit(record);
        ASSERT_TRUE(admission) << "after " << done << " bytes";
        record.lsn = served->next_lsn();
        AppendTicket ticket = served->submit(std::move(record), std::move(admission));
        ok(world.run(served->wait(std::move(ticket))));
        Lsn last(served->next_lsn().value - 1);
        if (served->retained_bytes() < kMiB) continue;
        Lsn seal = put(*served, seal_of(last));
        put(*served, root_of(last, seal));
        served->trim(last, seal);
        world.run_until_idle();
    }
    served.reset();
    crash();
    begin();
    for (uint64_t i = 1; i <= 2; ++i) {
        auto hog = open(VolumeId(i), 2);
        EXPECT_EQ(hog->tail().outcome, LogOutcome::complete) << hog->tail().reason;
        EXPECT_GT(replay(*hog).size(), 20u);
    }
}

Task<void> admit(VolumeLog& log, Record record, Result<Admission>* out, bool* is_over) {
    *out = co_await log.admit(record);
    *is_over = true;
}

// Who waits for its share is granted it in the moment in which all who wait are refused: it does
// not go on to wait for the ring, where nobody would come again.
TEST_F(FullJournalTest, ARefusalReachesWhoWasJustGrantedItsShare) {
    auto hog = open(VolumeId(1), 1);
    put(*hog, write_of(1, 1));  // keeps the ring's tail where it is
    auto greedy = open(VolumeId(2), 1);
    const Record record = write_of(1, 1, 32);
    while (Admission admission = greedy->try_admit(record)) {
        admission = Admission();
        put(*greedy, write_of(1, 1, 32));
    }
    std::vector<std::unique_ptr<VolumeLog>> others;
    for (uint64_t i = 3; ring().free_bytes(media::Urgency::user) > kMiB; ++i) {
        others.push_back(open(VolumeId(i), 1));
        while (Admission admission = others.back()->try_admit(record)) {
            admission = Admission();
            put(*others.back(), write_of(1, 1, 32));
        }
    }
    Lsn last(greedy->next_lsn().value - 1);
    Lsn seal = put(*greedy, seal_of(last));
    put(*greedy, root_of(last, seal));
    while (Admission admission = others.back()->try_admit(write_of(1, 1))) {
        admission = Admission();
        put(*others.back(), write_of(1, 1));
    }
    Result<Admission> outcome = fail(Code::busy, "none yet");
    bool is_over = false;
    runtime::spawn(world.env().executor, admit(*greedy, record, &outcome, &is_over));
    world.run_until_idle();
    ASSERT_FALSE(is_over);
    greedy->trim(last, seal);
    greedy->refuse_waiting(Error(Code::stopping, "no room any more"), VolumeLog::Waiting::own);
    world.run_until_idle();
    ASSERT_TRUE(is_over);
    ASSERT_FALSE(outcome);
    EXPECT_EQ(outcome.error().code(), Code::stopping);
}

}  // namespace
}  // namespace peplos::replica
