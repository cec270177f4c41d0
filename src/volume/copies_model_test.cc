#include "volume/copies_test_rig.h"

namespace peplos::volume {
namespace {

using std::chrono::milliseconds;
using std::chrono::seconds;

// Random operations on a volume with copies, while nodes come and go and copies rot.
class CopiesModelRun {
  public:
    CopiesModelRun(CopiesRig& rig, uint64_t steps) : rig_(rig), steps_(steps) {}

    Task<std::string> run() {
        for (uint64_t i = 0; i < steps_; ++i) {
            std::string wrong = co_await step();
            if (!wrong.empty()) co_return fmt::format("step {}: {}", i, wrong);
        }
        co_return "";
    }

  private:
    sim::Random& random() { return rig_.world.random(); }

    // What needs other nodes may fail while some are away; nothing is lost by it.
    static std::string note(const Result<void>& outcome) {
        if (outcome) return "";
        const Code code = outcome.error().code();
        bool is_away = code == Code::unavailable || code == Code::no_space || code == Code::busy;
        return is_away ? "" : outcome.error().text();
    }
    Task<std::string> step() {
        switch (random().pick(12)) {
            case 0:
                co_return note(co_await rig_.volume->drain());
            case 1:
                co_return note(co_await rig_.volume->checkpoint());
            case 2:
                co_return co_await clean();
            case 3:
            case 4:
                co_return co_await check_some();
            case 5:
                co_return co_await scrub_one();
            default:
                co_return co_await write_one();
        }
    }
    Task<std::string> clean() {
        std::vector<uint32_t> indexes;
        std::vector<SegmentView> segments = rig_.volume->segments();
        for (const SegmentView& segment : segments) {
            if (segment.kind != format::SegmentKind::map && random().chance(400))
                indexes.push_back(segment.index);
        }
        co_return note(co_await rig_.volume->relocate(std::move(indexes), 2));
    }
    Task<std::string> scrub_one() {
        std::vector<SegmentView> segments = rig_.volume->segments();
        if (segments.empty()) co_return "";
        auto found = co_await rig_.volume->scrub(segments[random().pick(segments.size())].index);
        co_return found ? "" : found.error().text();
    }
    // A read may have to wait for a node that is away, where this one's copy has rotted.
    Task<std::string> check_some() {
        uint64_t blocks = rig_.volume->size_bytes() / kBlockBytes;
        uint64_t count = 1 + random().pick(64);
        uint64_t first = random().pick(blocks - count);
        Buffer into = Buffer::allocate(count * kBlockBytes);
        auto outcome = co_await rig_.volume->read(first * kBlockBytes, into);
        if (!outcome) co_return note(outcome);
        co_return rig_.model.check(first * kBlockBytes, into.bytes());
    }
    Task<std::string> write_one() {
        uint64_t bytes = rig_.volume->size_bytes();
        uint64_t range = random().chance(500) ? 256 * kKiB : bytes;
        uint64_t size = 0;
        uint64_t unit = kBlockBytes;
        uint64_t kind = random().pick(10);
        if (kind < 4) {
            size = (1 + random().pick(16)) * kBlockBytes;
        } else if (kind < 8) {
            size = std::min<uint64_t>(range, 128 * kKiB + random().pick(96) * kBlockBytes);
        } else {
            unit = 512;
            size = (1 + random().pick(64)) * 512;
        }
        uint64_t offset = random().pick((range - size) / unit + 1) * unit;
        if (kind == 9) co_return note(co_await rig_.zero(offset, size));
        co_return note(co_await rig_.write(offset, size));
    }

    CopiesRig& rig_;
    uint64_t steps_;
};

// One fault at a time, so that every block has a good copy somewhere.
class Nemesis {
  public:
    explicit Nemesis(CopiesRig& rig) : rig_(rig) {}

    void act() {
        sim::Random& random = rig_.world.random();
        if (away_) {
            come_back();
            return;
        }
        victim_ = 1 + static_cast<uint32_t>(random.pick(kTestNodes - 1));
        switch (random.pick(5)) {
            case 0:
                rig_.crash_node(victim_);
                away_ = Away::down;
                break;
            case 1:
                rig_.kill_node(victim_);
                away_ = Away::down;
                break;
            case 2:
                rig_.cut_off(victim_);
                away_ = Away::cut;
                break;
            case 3:
                rig_.restart_node(victim_);
                break;
            default:
                rot();
        }
    }
    void come_back() {
        if (away_ == Away::down) rig_.start_node(victim_);
        if (away_ == Away::cut) rig_.world.net().heal();
        away_.reset();
    }
    uint64_t rotten() const { return rotten_; }

  private:
    enum class Away : uint8_t { down, cut };

    // In one copy of a sealed segment whose other copies are all there and good.
    void rot() {
        std::vector<SegmentView> segments = rig_.volume->segments();
        sim::Random& random = rig_.world.random();
        if (segments.empty()) return;
        const SegmentView& segment = segments[random.pick(segments.size())];
        if (rig_.copies_of(segment.id) != rig_.options_.copies) return;
        uint32_t node = static_cast<uint32_t>(random.pick(kTestNodes));
        if (rotten_ != 0 && node != rotten_node_) return;
        if (!rig_.nodes[node].is_up() || !rig_.nodes[node].device->segments().find(segment.id))
            return;
        rotten_node_ = node;
        ++rotten_;
        uint64_t at = random.pick(64) * kBlockBytes;
        rig_.world.disk(CopiesRig::path(node))
            .corrupt(rig_.device_offset(node, segment.id) + at, 16);
    }

    CopiesRig& rig_;
    std::optional<Away> away_;
    uint32_t victim_ = 0;
    uint32_t rotten_node_ = 0;
    uint64_t rotten_ = 0;
};

struct Outcome {
    std::string wrong;
    bool is_done = false;
};
Task<void> keep(CopiesModelRun& model, Outcome& outcome) {
    outcome.wrong = co_await model.run();
    outcome.is_done = true;
}

void run_with_faults(CopiesRig& rig, CopiesModelRun& model) {
    Nemesis nemesis(rig);
    Outcome outcome;
    runtime::spawn(rig.owner().executor(), keep(model, outcome));
    for (int i = 0; i < 4000 && !outcome.is_done; ++i) {
        rig.world.run_for(milliseconds(20 + static_cast<int64_t>(rig.world.random().pick(400))));
        if (!outcome.is_done && rig.world.random().chance(300)) nemesis.act();
        if (testing::Test::HasFatalFailure()) return;
    }
    nemesis.come_back();
    for (int i = 0; i < 1000 && !outcome.is_done; ++i)
        rig.world.run_for(seconds(1));
    ASSERT_TRUE(outcome.is_done) << "seed " << rig.world.seed();
    ASSERT_EQ(outcome.wrong, "") << "seed " << rig.world.seed();
}

TEST(CopiesModel, NodesComeAndGo) {
    for (uint32_t copies : {2u, 3u}) {
        for (uint64_t seed = 1; seed <= 4; ++seed) {
            CopiesRig rig(seed * 10 + copies, {.copies = copies});
            rig.make();
            for (int round = 0; round < 3 && !HasFailure(); ++round) {
                CopiesModelRun model(rig, 120);
                run_with_faults(rig, model);
                ASSERT_FALSE(HasFailure()) << "seed " << seed << " copies " << copies;
                rig.world.run_for(seconds(15));
                rig.expect_all();
                rig.crash_owner();
                rig.recover_owner();
                ASSERT_FALSE(HasFailure()) << "seed " << seed << " copies " << copies;
                rig.expect_all();
            }
            auto drained = rig.run(rig.volume->drain());
            ASSERT_TRUE(drained) << drained.error().text();
            ASSERT_TRUE(rig.run(rig.volume->checkpoint()));
            ASSERT_TRUE(rig.run(rig.volume->checkpoint()));
            rig.expect_copies();
            rig.expect_no_leak();
            rig.stop_volume();
            auto destroyed =
                rig.run(Volume::destroy(*rig.resources, CopiesRig::kVolume, rig.claim()));
            ASSERT_TRUE(destroyed) << destroyed.error().text();
            for (uint32_t i = 0; i < kTestNodes; ++i)
                EXPECT_TRUE(rig.ids_on(i).empty()) << "node " << i;
            ASSERT_FALSE(HasFailure()) << "seed " << seed << " copies " << copies;
        }
    }
}

TEST(CopiesModel, TheOwnersPowerGoesAtAnyMoment) {
    for (uint64_t seed = 100; seed < 106; ++seed) {
        CopiesRig rig(seed, {.copies = 2 + static_cast<uint32_t>(seed % 2)});
        rig.make();
        for (int round = 0; round < 3; ++round) {
            CopiesModelRun model(rig, 1000);
            Outcome outcome;
            runtime::spawn(rig.owner().executor(), keep(model, outcome));
            uint64_t events = 100 + rig.world.random().pick(8000);
            for (uint64_t i = 0; i < events && rig.world.step(); ++i) {
            }
            ASSERT_EQ(outcome.wrong, "") << "seed " << seed;
            // With it, now and then, that of another node.
            uint32_t other = static_cast<uint32_t>(rig.world.random().pick(kTestNodes));
            rig.crash_owner();
            if (other != 0) rig.restart_node(other);
            rig.recover_owner();
            ASSERT_FALSE(HasFailure()) << "seed " << seed << " round " << round;
            rig.expect_all();
            ASSERT_FALSE(HasFailure()) << "seed " << seed << " round " << round;
        }
        auto drained = rig.run(rig.volume->drain());
        ASSERT_TRUE(drained) << drained.error().text();
        ASSERT_TRUE(rig.run(rig.volume->checkpoint()));
        ASSERT_TRUE(rig.run(rig.volume->checkpoint()));
        rig.expect_copies();
        rig.expect_no_leak();
        ASSERT_FALSE(HasFailure()) << "seed " << seed;
    }
}

}  // namespace
}  // namespace peplos::volume
