#include <set>

#include "replica/member_test_rig.h"

// Power loss at every event of what a member does: what is read back is a state that the machine
// allows.
namespace peplos::replica {
namespace {

struct MemberCrash : MemberTest {
    // What was answered before the power went.
    struct Seen {
        uint64_t opened = 0;  // epoch of the newest open that was answered
        uint64_t begun = 0;   // and of the newest that was asked for
        uint64_t durable = 0;
        uint64_t fenced = 0;
    };

    static constexpr uint64_t value_at(uint64_t epoch, uint64_t lsn) { return epoch * 1000 + lsn; }
    static Record write_at(Stamper& stamper, uint64_t epoch) {
        stamper.epoch = Epoch(epoch);
        uint64_t lsn = stamper.last.value + 1;
        return stamper.stamp(write_of(lsn, value_at(epoch, lsn)));
    }

    // Epoch 1 writes 1..5. Epoch 2 keeps 3, brings 4 of its own, writes 5 and 6. Epoch 3 keeps
    // nothing and brings 4..7, some of epoch 1, some its own: as after other members went on.
    static Task<void> live(MemberTest* test, Seen* seen) {
        Stamper stamper;
        co_await open(test, 1, {}, Lsn(0), seen);
        for (uint64_t i = 0; i < 5; ++i)
            co_await put(test, 1, write_at(stamper, 1), seen);
        co_await fence(test, 2, 1, seen);
        stamper.last = stamper.data = Lsn(3);
        std::vector<Record> come;
        come.push_back(write_at(stamper, 2));
        co_await open(test, 2, std::move(come), Lsn(3), seen);
        co_await put(test, 2, write_at(stamper, 2), seen);
        co_await put(test, 2, write_at(stamper, 2), seen);
        Stamper other;
        other.last = other.data = Lsn(3);
        std::vector<Record> anew;
        anew.push_back(write_at(other, 1));
        anew.push_back(write_at(other, 1));
        anew.push_back(write_at(other, 3));
        anew.push_back(write_at(other, 3));
        co_await open(test, 3, std::move(anew), Lsn(0), seen);
        co_await put(test, 3, write_at(other, 3), seen);
    }
    static Task<void> open(MemberTest* test, uint64_t epoch, std::vector<Record> records, Lsn keep,
                           Seen* seen) {
        OpenCall call = test->open_call(epoch, epoch * 11, std::move(records), keep);
        if (epoch == 3) call.base = {Lsn(3), Lsn(0)};
        const uint64_t last = call.message.last_lsn.value;
        seen->begun = epoch;
        auto said = co_await test->host->open(std::move(call));
        CHECK(said && std::holds_alternative<MemberAnswer>(*said));
        seen->opened = epoch;
        seen->durable = last;
    }
    static Task<void> put(MemberTest* test, uint64_t epoch, Record record, Seen* seen) {
        uint64_t lsn = record.lsn.value;
        auto said =
            co_await test->host->append(test->append_call(epoch, epoch * 11, std::move(record)));
        CHECK(said && std::get<MemberAnswer>(*said).durable_lsn.value >= lsn);
        seen->durable = lsn;
    }
    static Task<void> fence(MemberTest* test, uint64_t epoch, uint64_t proof, Seen* seen) {
        FenceMessage message{claim_of(epoch), test->device, OpenToken(proof * 11)};
        auto said = co_await test->host->fence(kVolume, kLineage, message);
        CHECK(said && std::holds_alternative<FenceAnswer>(*said));
        seen->fenced = epoch;
    }

    // The log that the epoch of its newest open says, up to where it goes.
    static uint64_t expected_at(uint64_t opened, uint64_t lsn) {
        if (opened == 1 || (opened == 2 && lsn <= 3) || (opened == 3 && lsn <= 5))
            return value_at(1, lsn);
        return value_at(opened, lsn);
    }

    // What is wrong with what was read back; empty: nothing.
    std::string problem_after(const Seen& seen) {
        MemberLog::Stored stored = node.journal->stored_of(kVolume);
        const uint64_t opened = stored.opened_by.epoch.value;
        if (stored.is_damaged) return "damaged";
        if (host->fence_of(kVolume).value < std::max(seen.fenced, seen.opened))
            return "a fence that was answered is gone";
        if (opened < seen.opened || opened > seen.begun)
            return fmt::format("opened by {}, not {} to {}", opened, seen.opened, seen.begun);
        if (stored.token.value != opened * 11) return "a token of another open";
        if (opened == seen.opened && stored.last_lsn.value < seen.durable)
            return fmt::format("ends at {}, not {}", stored.last_lsn, seen.durable);
        FenceAnswer said = fenced(fence_as(9, opened * 11));
        if (said.outcome != (opened == 0 ? LogOutcome::unknown : LogOutcome::complete))
            return "a wrong outcome";
        if (opened == 0) return "";
        uint64_t due = opened == 3 ? 4 : 1;
        for (const Record& record : read(9)) {
            if (record.lsn.value != due || value_of(record, 0) != expected_at(opened, due))
                return fmt::format("opened by {}: LSN {} has {}, where LSN {} is due", opened,
                                   record.lsn, value_of(record, 0), due);
            ++due;
        }
        if (due != said.last_lsn.value + 1) return fmt::format("LSN {} is missing", due);
        return "";
    }
    using MemberTest::fence;
    using MemberTest::open;
    Message fence_as(uint64_t epoch, uint64_t token) {
        FenceMessage message{claim_of(epoch, kOther), device, OpenToken(token)};
        return ok(world.run(host->fence(kVolume, kLineage, message)));
    }
    // A life up to each of its events, and what is wrong with what is then read back. Ends with the
    // first problem, or when the life has ended by itself.
    std::string crash_everywhere(std::set<uint64_t>* met) {
        bool is_over = false;
        for (uint64_t events = 0; !is_over; ++events) {
            Seen seen;
            runtime::spawn(world.env().executor, live(this, &seen));
            for (uint64_t i = 0; i < events && world.step(); ++i)
                is_over = seen.opened == 3 && seen.durable == 8;
            power_cut();
            std::string problem = problem_after(seen);
            if (!problem.empty()) return fmt::format("after {} events: {}", events, problem);
            met->insert(node.journal->stored_of(kVolume).opened_by.epoch.value);
            ok(world.run(host->drop(kVolume)));
            restart();
        }
        return "";
    }
};

TEST_F(MemberCrash, AtEveryEventTheLogIsOneThatTheMachineAllows) {
    std::set<uint64_t> met;
    EXPECT_EQ(crash_everywhere(&met), "");
    EXPECT_EQ(met, (std::set<uint64_t>{0, 1, 2, 3}));
}

struct MemberMistake : MemberCrash, testing::WithParamInterface<const char*> {};

TEST_P(MemberMistake, IsFound) {
    world.faults().plant(GetParam());
    std::set<uint64_t> met;
    EXPECT_NE(crash_everywhere(&met), "");
    EXPECT_GT(world.faults().planted_count(), 0u);
}
INSTANTIATE_TEST_SUITE_P(Planted, MemberMistake,
                         testing::Values("member.half_an_open_counts", "member.cuts_nothing_off"),
                         [](const auto& info) {
                             std::string name(info.param);
                             std::ranges::replace(name, '.', '_');
                             return name;
                         });

struct HalfAnOpen : MemberCrash {
    // An open of many frames is cut off by a power loss, with records of a higher epoch than those
    // of the log, at LSNs that it has. Where the open came to nothing, another one keeps the log.
    std::string cut_off_everywhere(uint64_t* halves) {
        for (uint64_t events = 0; events < 60; ++events) {
            stamper = {};
            fill(3);
            Stamper next;
            next.epoch = Epoch(2);
            std::vector<Record> come;
            for (uint64_t i = 0; i < 40; ++i)
                come.push_back(next.stamp(write_of(i, 7000 + i, 16)));
            std::ignore = world.run_events(host->open(open_call(3, 33, come)), events);
            power_cut();
            MemberLog::Stored stored = node.journal->stored_of(kVolume);
            if (stored.opened_by.epoch == Epoch(3) &&
                (stored.is_damaged || stored.last_lsn != Lsn(40)))
                return fmt::format("after {} events an open counts up to {}", events,
                                   stored.last_lsn);
            if (stored.opened_by.epoch == Epoch(1)) {
                ++*halves;
                std::ignore = MemberTest::fence(4, 11);
                answer(MemberTest::open(open_call(4, 44, {}, Lsn(3), kOther)));
                power_cut();
                if (fenced(MemberTest::fence(5, 44)).last_lsn != Lsn(3)) return "a longer log";
                for (const Record& record : read(5)) {
                    if (value_of(record, 0) != 100 * record.lsn.value)
                        return fmt::format("after {} events LSN {} is another", events, record.lsn);
                }
            }
            ok(world.run(host->drop(kVolume)));
            restart();
        }
        return "";
    }
};

TEST_F(HalfAnOpen, NeverCounts) {
    uint64_t halves = 0;
    EXPECT_EQ(cut_off_everywhere(&halves), "");
    EXPECT_GT(halves, 10u);
}

TEST_F(HalfAnOpen, ThatIsOnRecordTooEarlyIsFound) {
    world.faults().plant("member.opens_before_its_records");
    uint64_t halves = 0;
    EXPECT_NE(cut_off_everywhere(&halves), "");
}

// The frame of the newest open cannot be read any more: what is found is a log of the past.
TEST_F(MemberCrash, ALostFenceIsDamage) {
    for (bool is_mistaken : {false, true}) {
        if (is_mistaken) world.faults().plant("member.believes_an_old_fence");
        stamper = {};
        fill(3);
        std::ignore = MemberTest::fence(2, 11);
        const uint64_t sequence = node.device->ring().newest_sequence() + 1;
        OpenCall call = open_call(2, 22, {}, Lsn(3), kOther);
        call.message.recorded = OpenToken(11);
        answer(MemberTest::open(call));
        const uint64_t offset = node.device->ring().device_offset_of({sequence, 0, 0});
        world.run(host->stop());
        host.reset();
        end();
        world.disk(kPath).corrupt(offset + 100);
        begin();
        make_host();
        bool is_found = fenced(MemberTest::fence(3, 11)).outcome == LogOutcome::unknown;
        EXPECT_EQ(is_found, !is_mistaken);
        if (is_mistaken) break;
        restart();
        EXPECT_EQ(fenced(MemberTest::fence(4, 11)).outcome, LogOutcome::unknown) << "for good";
        EXPECT_EQ(refused(append(1, 11, stamper.stamp(write_of(4, 4)))), Refusal::Reason::fenced);
        ok(world.run(host->drop(kVolume)));
        restart();
    }
}

// Nothing that comes after a seal says that it was acknowledged, and a claimer adopts what lies
// before it.
TEST_F(MemberCrash, ASealThatIsUndoneHasTrimmedNothing) {
    for (bool is_mistaken : {false, true}) {
        if (is_mistaken) world.faults().plant("member.trims_what_may_be_undone");
        stamper = {};
        fill(3);
        answer(append(1, 11, stamper.stamp(seal_of(Lsn(3)))));
        std::ignore = MemberTest::fence(2, 11);
        answer(MemberTest::open(open_call(2, 22, {}, Lsn(3), kOther)));
        bool is_whole = lsns_of(read(2)) == std::vector<uint64_t>{1, 2, 3};
        EXPECT_EQ(is_whole, !is_mistaken);
        ok(world.run(host->drop(kVolume)));
        restart();
    }
}

}  // namespace
}  // namespace peplos::replica
