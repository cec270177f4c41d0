#include "replica/journal_test_rig.h"

// Power loss against a model.
namespace peplos::replica {
namespace {

// What one volume's log must hold: every acknowledged value by LSN.
struct Model {
    std::map<uint64_t, uint64_t> written;  // LSN -> value, acknowledged or not
    uint64_t acked = 0;
    uint64_t drained = 0;
};

Task<void> work(VolumeLog& log, uint64_t seed, Model* model) {
    sim::Random random(seed);
    for (int i = 0; i < 30; ++i) {
        uint64_t value = random.draw();
        bool is_seal = model->acked > model->drained && random.chance(150);
        bool is_root = !is_seal && random.chance(100);
        uint64_t covered = model->acked;
        Record record = is_seal   ? seal_of(Lsn(covered))
                        : is_root ? root_of(Lsn(model->drained), Lsn(covered))
                                  : write_of(i, value, 1 + static_cast<uint32_t>(value % 5));
        Admission admission = log.try_admit(record);
        CHECK(static_cast<bool>(admission));
        record.lsn = log.next_lsn();
        Lsn lsn = record.lsn;
        model->written[lsn.value] = is_seal || is_root ? 0 : value;
        AppendTicket ticket = log.submit(std::move(record), std::move(admission));
        Result<void> outcome = co_await log.wait(std::move(ticket));
        if (!outcome) co_return;
        model->acked = std::max(model->acked, lsn.value);
        if (is_seal) {
            model->drained = covered;
            log.trim(Lsn(covered), Lsn(0));
        }
        if (is_root) log.trim(Lsn(model->drained), Lsn(covered));
    }
}

void check_against(const Model& model, const LogTail& tail, const std::vector<Record>& records) {
    ASSERT_EQ(tail.outcome, LogOutcome::complete) << tail.reason;
    ASSERT_GE(tail.last_lsn.value, model.acked) << "an acknowledged record is gone";
    ASSERT_GE(tail.drained_lsn.value, model.drained);
    uint64_t previous = 0, expected_data = tail.drained_lsn.value;
    for (const Record& record : records) {
        ASSERT_GT(record.lsn.value, previous) << "in LSN order";
        previous = record.lsn.value;
        ASSERT_TRUE(model.written.contains(previous));
        if (record.type != RecordType::write) continue;
        ASSERT_GT(previous, expected_data);
        ASSERT_EQ(value_of(record, 0), model.written.at(previous));
        // Every data record between is there.
        for (uint64_t lsn = expected_data + 1; lsn < previous; ++lsn) {
            ASSERT_EQ(model.written.at(lsn), 0u) << "LSN " << lsn << " is missing";
        }
        expected_data = previous;
    }
}

TEST(JournalCrash, TheLogMatchesTheModelAfterEveryPowerLoss) {
    uint64_t unacked_kept = 0;
    for (uint64_t seed = 1; seed <= 40; ++seed) {
        sim::World world(seed);
        Node node;
        ASSERT_TRUE(world.run(format_disk(world.env())));
        std::array<Model, 3> models;
        std::map<VolumeId, Membership> recorded;
        for (uint64_t life = 1; life <= 3; ++life) {
            ASSERT_TRUE(world.run(start(world.env(), &node)));
            std::array<std::unique_ptr<VolumeLog>, 3> logs;
            for (uint64_t v = 0; v < 3; ++v) {
                OpenRequest request{VolumeId(v + 1), LineageId(1), Epoch(life),
                                    OpenToken(life * 10 + v), std::nullopt};
                if (recorded.contains(request.volume)) request.recorded = recorded[request.volume];
                auto log = world.run(node.journal->open(request));
                ASSERT_TRUE(log) << log.error().text();
                logs[v] = std::move(*log);
                Collector collector;
                ASSERT_TRUE(world.run(logs[v]->replay(collector)));
                check_against(models[v], logs[v]->tail(), collector.records);
                if (testing::Test::HasFatalFailure()) GTEST_FAIL() << "seed " << seed;
                unacked_kept += logs[v]->tail().last_lsn.value > models[v].acked ? 1 : 0;
                // What was found stays found.
                models[v].acked = logs[v]->tail().last_lsn.value;
                models[v].drained = logs[v]->tail().drained_lsn.value;
                models[v].written.erase(models[v].written.upper_bound(models[v].acked),
                                        models[v].written.end());
                // A crash may fall between the open and its record: both tokens must do.
                if (world.random().chance(700))
                    recorded[request.volume] = node.journal->membership_for(request.token);
                else if (!recorded.contains(request.volume))
                    recorded[request.volume] = node.journal->membership_for(request.token);
                runtime::spawn(world.env().executor,
                               work(*logs[v], seed * 100 + life * 10 + v, &models[v]));
            }
            uint64_t events = world.random().pick(900);
            for (uint64_t i = 0; i < events; ++i) {
                if (!world.step()) break;
            }
            world.crash();
            for (auto& log : logs)
                log.reset();
            node.reset();
        }
    }
    EXPECT_GT(unacked_kept, 0u);
}

}  // namespace
}  // namespace peplos::replica
