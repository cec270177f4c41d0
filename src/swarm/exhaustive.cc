#include "swarm/exhaustive.h"

#include <array>
#include <fmt/format.h>
#include <memory>
#include <optional>
#include <set>
#include <stdexcept>

#include "media/device.h"
#include "replica/local_journal.h"
#include "sim/world.h"
#include "swarm/history.h"
#include "swarm/recording.h"
#include "volume/background.h"
#include "volume/leaf_cache.h"
#include "volume/volume.h"

namespace peplos::swarm {

using runtime::Task;

namespace {

constexpr const char* kPath = "/disk";
constexpr uint64_t kDiskBytes = 112 * kMiB;
constexpr uint64_t kVolumeBytes = kMiB;
constexpr uint64_t kGrowBytes = 64 * kKiB;
constexpr VolumeId kVolume{0xabc};
constexpr std::array<std::string_view, kStepCount> kStepNames = {
    "write", "flush", "trim", "grow", "drain", "clean", "checkpoint", "restart"};

uint64_t at_block(uint64_t block) {
    return block * kBlockBytes;
}

// A volume does here only what a step says.
class Idle final : public volume::Background {
  public:
    void opened(volume::Volume&) override {}
    Task<void> closing(volume::Volume&) override { co_return; }
    void wants(volume::Volume&) override {}
    Task<bool> make_room() override { co_return false; }
    Task<void> stop() override { co_return; }
};

// What was promised, and what the control store knows.
struct Promise {
    History history{1, kVolumeBytes};
    uint64_t size_min = kVolumeBytes;
    uint64_t size_max = kVolumeBytes;
    uint64_t epoch = 0;
    std::optional<replica::Membership> recorded;
};

// One volume on one device; all of it dies with its process.
class Stack {
  public:
    explicit Stack(const runtime::Env& env) : env_(env) {}

    Task<Result<void>> format() {
        CO_TRY_ASSIGN(auto disk, co_await env_.disks.open(kPath, {}));
        media::FormatOptions options{.ring_bytes = limits::kRingBytesMin};
        co_return co_await media::format_device(*disk, options, env_.rng);
    }
    // As LocalNode does it: claim, fence and recover, record. Updates what `promise` knows.
    Task<Result<void>> open(Promise& promise, bool is_new) {
        CO_TRY_ASSIGN(auto disk, co_await env_.disks.open(kPath, {}));
        CO_TRY_ASSIGN(device_, co_await media::Device::open(env_, std::move(disk)));
        CO_TRY_ASSIGN(journal_, co_await replica::LocalJournal::open(env_, *device_));
        cache_ = std::make_unique<volume::LeafCache>(4 * kMiB);
        overlay_ = std::make_unique<volume::OverlayBudget>(16 * kMiB);
        space_ = std::make_unique<volume::SpaceBudget>(std::vector{&device_->segments()});
        resources_.reset(
            new volume::Resources{env_, *journal_, *cache_, *overlay_, *space_, &background_});
        ++promise.epoch;
        volume::VolumeParams params{.id = kVolume,
                                    .lineage = LineageId(0xdef),
                                    .size_bytes = kVolumeBytes,
                                    .sector_bytes = History::kSector,
                                    .epoch = Epoch(promise.epoch),
                                    .token = OpenToken(1000 + promise.epoch),
                                    .recorded = promise.recorded};
        if (is_new) {
            CO_TRY_ASSIGN(volume_, co_await volume::Volume::create(*resources_, params));
        } else {
            CO_TRY_ASSIGN(volume_, co_await volume::Volume::open(*resources_, params));
        }
        promise.recorded = journal_->membership_for(params.token);
        co_return Result<void>{};
    }
    Task<void> stop() {
        if (volume_) co_await volume_->stop();
        volume_.reset();
        resources_.reset();
        if (journal_) co_await journal_->stop();
        if (device_) co_await device_->close();
        space_.reset();
        overlay_.reset();
        cache_.reset();
        journal_.reset();
        device_.reset();
    }
    volume::Volume& volume() { return *volume_; }

  private:
    runtime::Env env_;
    Idle background_;
    std::unique_ptr<media::Device> device_;
    std::unique_ptr<replica::LocalJournal> journal_;
    std::unique_ptr<volume::LeafCache> cache_;
    std::unique_ptr<volume::OverlayBudget> overlay_;
    std::unique_ptr<volume::SpaceBudget> space_;
    std::unique_ptr<volume::Resources> resources_;
    std::unique_ptr<volume::Volume> volume_;
};

sim::WorldOptions world_options() {
    sim::WorldOptions options;
    options.order = sim::Order::fifo;
    return options;
}

// A world with one volume, and its user.
class Life {
  public:
    Life(uint64_t seed, const std::string& planted, Promise known)
        : world(seed, world_options()), promise(std::move(known)) {
        if (!planted.empty()) world.faults().plant(planted);
        world.make_disk(kPath, kDiskBytes);
        stack = std::make_unique<Stack>(world.env());
    }
    ~Life() {
        world.kill();  // frames before the objects that they use
        stack.reset();
    }
    Life(const Life&) = delete;

    // Called after each answer.
    std::function<void()> answered = [] {};

    void require(Result<void> outcome, std::string_view what) {
        if (!outcome) throw std::runtime_error(fmt::format("{}: {}", what, outcome.error().text()));
    }
    void open(bool is_new) {
        require(world.run(stack->open(promise, is_new)), "open");
        answered();
    }
    void write(uint64_t offset, uint64_t bytes) {
        ++running_;
        runtime::spawn(world.env().executor, write_one(offset, bytes));
    }
    void zero(uint64_t offset, uint64_t bytes) {
        ++running_;
        runtime::spawn(world.env().executor, zero_one(offset, bytes));
    }
    void wait() {
        while (running_ != 0) {
            if (!world.step()) throw std::runtime_error("nothing is ready and no timer is set");
        }
        require(std::exchange(outcome_, Result<void>{}), "I/O");
    }
    void restart() {
        world.run(stack->stop());
        open(false);
    }
    void grow() {
        uint64_t bytes = promise.size_min + kGrowBytes;
        promise.size_max = bytes;
        require(world.run(stack->volume().grow(bytes)), "grow");
        promise.size_min = bytes;
        promise.history.grow(bytes);
        answered();
    }
    void clean() {
        std::vector<uint32_t> indexes;
        for (const volume::SegmentView& segment : stack->volume().segments()) {
            if (segment.kind != format::SegmentKind::map) indexes.push_back(segment.index);
        }
        require(world.run(stack->volume().relocate(std::move(indexes), 0)), "clean");
    }
    void run(Step step);
    // "" or what is wrong with what the volume holds.
    std::string verify();

    sim::World world;
    Promise promise;
    std::unique_ptr<Stack> stack;

  private:
    Task<void> write_one(uint64_t offset, uint64_t bytes) {
        uint32_t version = promise.history.begin_write(offset, bytes, false);
        Buffer data = Buffer::allocate(bytes);
        for (uint64_t i = 0; i < bytes; i += History::kSector) {
            promise.history.fill(data.bytes().subspan(i, History::kSector), offset + i, version);
        }
        end(co_await stack->volume().write(offset, std::move(data)), offset, bytes, version);
    }
    Task<void> zero_one(uint64_t offset, uint64_t bytes) {
        uint32_t version = promise.history.begin_write(offset, bytes, true);
        end(co_await stack->volume().zero(offset, bytes), offset, bytes, version);
    }
    void end(Result<void> outcome, uint64_t offset, uint64_t bytes, uint32_t version) {
        --running_;
        if (outcome) promise.history.end_write(offset, bytes, version);
        if (!outcome) outcome_ = std::move(outcome);
        answered();
    }

    uint32_t running_ = 0;
    Result<void> outcome_;
};

void Life::run(Step step) {
    switch (step) {
        case Step::write:
            // One through the journal, one straight into a segment, side by side; and a part of a
            // block.
            write(at_block(2), 2 * kBlockBytes);
            write(at_block(32), 33 * kBlockBytes);
            write(at_block(20) + History::kSector, History::kSector);
            return wait();
        case Step::flush:
            return require(world.run(stack->volume().flush()), "flush");
        case Step::trim:
            zero(at_block(1), 9 * kBlockBytes);
            zero(at_block(50), 30 * kBlockBytes);
            return wait();
        case Step::grow:
            return grow();
        case Step::drain:
            return require(world.run(stack->volume().drain()), "drain");
        case Step::clean:
            return clean();
        case Step::checkpoint:
            return require(world.run(stack->volume().checkpoint()), "checkpoint");
        case Step::restart:
            return restart();
    }
}

std::string Life::verify() {
    uint64_t size = stack->volume().size_bytes();
    if (size < promise.size_min || size > promise.size_max) {
        return fmt::format("{} bytes, promised were {} to {}", size, promise.size_min,
                           promise.size_max);
    }
    promise.size_min = promise.size_max = size;
    promise.history.grow(size);
    Buffer all = Buffer::allocate(size);
    Moment began = promise.history.begin_read();
    for (uint64_t offset = 0; offset < size; offset += kGrowBytes) {
        auto read = world.run(stack->volume().read(offset, all.slice(offset, kGrowBytes)));
        if (!read) return fmt::format("a read at {}: {}", offset, read.error().text());
    }
    std::string wrong = promise.history.end_read(0, all.bytes(), began);
    return wrong.empty() ? promise.history.settle() : wrong;
}

// Something of everything: blocks that were drained, overwritten, trimmed, and one in the journal.
void prepare(Life& life) {
    life.require(life.world.run(life.stack->format()), "format");
    life.open(true);
    life.write(0, 64 * kBlockBytes);
    life.wait();
    life.run(Step::drain);
    life.write(at_block(16), 16 * kBlockBytes);
    life.zero(at_block(40), 8 * kBlockBytes);
    life.wait();
    life.run(Step::drain);
    life.run(Step::checkpoint);
    life.write(at_block(4), 4 * kBlockBytes);
    life.wait();
}

struct State {
    Image image;
    std::shared_ptr<const Promise> promise;
    uint64_t point;
};

// What a recovery makes of a state, and whether life goes on from there.
std::string check_state(const State& state, const std::string& planted, bool is_long) {
    Life life(2, planted, *state.promise);
    for (const auto& [page, content] : state.image.pages())
        life.world.disk(kPath).poke(page * kBlockBytes, *content);
    std::string wrong = life.promise.history.settle();
    if (!wrong.empty()) return wrong;
    life.open(false);
    wrong = life.verify();
    if (!wrong.empty() || !is_long) return wrong;
    life.run(Step::write);
    life.run(Step::drain);
    life.run(Step::clean);
    life.run(Step::checkpoint);
    life.restart();
    return life.verify();
}

class Walk {
  public:
    Walk(const ExhaustiveOptions& options, ExhaustiveReport& report)
        : options_(options), report_(report) {}

    void all(uint32_t length_max) {
        if (!options_.only.empty()) {
            for (size_t length = 1; length <= options_.only.size() && report_.problem.empty();
                 ++length) {
                one({options_.only.begin(),
                     options_.only.begin() + static_cast<ptrdiff_t>(length)});
            }
            return;
        }
        for (uint32_t length = 1; length <= length_max; ++length)
            longer({}, length);
    }

  private:
    void longer(std::vector<Step> steps, uint32_t length) {
        if (!report_.problem.empty()) return;
        if (steps.size() == length) {
            if (number_++ % options_.shards == options_.shard) one(steps);
            return;
        }
        for (size_t i = 0; i < kStepCount; ++i) {
            steps.push_back(static_cast<Step>(i));
            longer(steps, length);
            steps.pop_back();
        }
    }
    void one(const std::vector<Step>& steps) {
        if (options_.progress) options_.progress(steps);
        ++report_.sequences;
        std::string problem;
        try {
            problem = run(steps);
        } catch (const std::runtime_error& error) {
            problem = error.what();
        }
        if (problem.empty()) return;
        report_.problem = std::move(problem);
        for (Step step : steps) {
            if (!report_.sequence.empty()) report_.sequence += ',';
            report_.sequence += name_of(step);
        }
    }
    std::string run(const std::vector<Step>& steps);
    void take(const Recording& recording, const Promise& promise);

    const ExhaustiveOptions& options_;
    ExhaustiveReport& report_;
    uint64_t number_ = 0;
    std::vector<State> states_;
    std::set<uint64_t> seen_;
};

void Walk::take(const Recording& recording, const Promise& promise) {
    ++report_.crash_points;
    auto shared = std::make_shared<const Promise>(promise);
    uint64_t promised = shared->history.moment() ^ (shared->size_max << 20) ^ shared->epoch << 50;
    recording.each_image([&](const Image& image) {
        ++report_.crash_states;
        if (!seen_.insert(mix_bits(image.sum()) ^ promised).second) return;
        ++report_.distinct_states;
        states_.push_back({image, shared, report_.crash_points});
    });
}

// The points of all steps but the last are those of a shorter sequence.
std::string Walk::run(const std::vector<Step>& steps) {
    states_.clear();
    seen_.clear();
    {
        Life life(1, options_.planted, Promise{});
        bool is_last = false;
        Recording recording([&] {
            if (is_last) take(recording, life.promise);
        });
        life.world.disk(kPath).set_observer(&recording);
        prepare(life);
        recording.settle();
        for (size_t i = 0; i < steps.size(); ++i) {
            is_last = i + 1 == steps.size();
            life.answered = [&] {
                if (is_last) take(recording, life.promise);
            };
            life.run(steps[i]);
        }
        take(recording, life.promise);
        std::string wrong = life.verify();
        if (!wrong.empty()) return "without a crash: " + wrong;
        is_last = false;
    }
    for (size_t i = 0; i < states_.size(); ++i) {
        std::string wrong;
        try {
            wrong = check_state(states_[i], options_.planted, i % 4 == 0);
        } catch (const std::runtime_error& error) {
            wrong = error.what();
        }
        if (!wrong.empty()) {
            return fmt::format("crash point {}, state {} of {}: {}", states_[i].point, i,
                               states_.size(), wrong);
        }
    }
    return "";
}

}  // namespace

std::string_view name_of(Step step) {
    return kStepNames[static_cast<size_t>(step)];
}

std::vector<Step> steps_of(std::string_view names, std::string* wrong) {
    std::vector<Step> steps;
    while (!names.empty()) {
        std::string_view word = names.substr(0, names.find(','));
        names.remove_prefix(std::min(names.size(), word.size() + 1));
        auto found = std::ranges::find(kStepNames, word);
        if (found == kStepNames.end()) {
            *wrong = word;
            return {};
        }
        steps.push_back(static_cast<Step>(found - kStepNames.begin()));
    }
    return steps;
}

ExhaustiveReport run_exhaustive(const ExhaustiveOptions& options) {
    ExhaustiveReport report;
    Walk(options, report).all(options.depth);
    return report;
}

}  // namespace peplos::swarm
