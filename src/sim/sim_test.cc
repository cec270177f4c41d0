#include <gtest/gtest.h>
#include <set>

#include "runtime/gate.h"
#include "sim/world.h"

namespace peplos::sim {
namespace {

using std::chrono::hours;
using std::chrono::microseconds;
using std::chrono::seconds;

constexpr uint64_t kDiskBytes = 16 * kMiB;

Buffer filled(size_t bytes, int value) {
    Buffer buffer = Buffer::allocate(bytes);
    std::memset(buffer.data(), value, bytes);
    return buffer;
}

// The open disk, which lives in the test so that a crash finds it there.
std::unique_ptr<runtime::Disk> open_disk(World& world, std::string path = "disk0") {
    auto disk = world.run(world.env().disks.open(path, {.create_bytes = kDiskBytes}));
    if (!disk) throw std::runtime_error(disk.error().text());
    return std::move(*disk);
}

Task<int> sleep_and_count(Env& env, Duration duration, int value) {
    co_await env.clock.sleep_for(duration);
    co_return value;
}

TEST(World, TimeJumpsToTheNextTimer) {
    World world(1);
    Time start = world.now();
    EXPECT_EQ(world.run(sleep_and_count(world.env(), seconds(5), 7)), 7);
    EXPECT_EQ(world.now() - start, seconds(5));
}

Task<void> wait_for_ever(runtime::Event& event) {
    co_await event.wait();
}

TEST(World, NamesADeadlock) {
    World world(77);
    runtime::Event event;
    try {
        world.run(wait_for_ever(event));
        FAIL() << "the deadlock was not noticed";
    } catch (const std::runtime_error& error) {
        EXPECT_NE(std::string(error.what()).find("seed 77"), std::string::npos) << error.what();
    }
}

Task<void> tick(Env& env, std::string* log, char name, int times) {
    for (int i = 0; i < times; ++i) {
        co_await env.clock.sleep_for(microseconds(env.rng.below(3)));
        *log += name;
    }
}

std::string ticks(uint64_t seed, uint64_t* hash, Order order = Order::random) {
    World world(seed, {.order = order});
    std::string log;
    for (char name : {'a', 'b', 'c'}) {
        runtime::spawn(world.env().executor, tick(world.env(), &log, name, 10));
    }
    world.run_until_idle();
    *hash = world.event_hash();
    return log;
}

TEST(World, TheSeedDecidesEverything) {
    uint64_t first = 0, again = 0, other = 0;
    std::string log = ticks(5, &first);
    EXPECT_EQ(ticks(5, &again), log);
    EXPECT_EQ(first, again);
    EXPECT_NE(ticks(6, &other), log);
    EXPECT_NE(first, other);
}

// Notices when its frame is destroyed.
struct Witness {
    explicit Witness(int* c) : count(c) {}
    Witness(const Witness&) = delete;
    Witness& operator=(const Witness&) = delete;
    ~Witness() { ++*count; }
    int* count;
};

Task<void> witness_event(runtime::Event& event, int* destroyed, int* ran) {
    Witness witness(destroyed);
    co_await event.wait();
    ++*ran;
}
Task<void> witness_sleep(Env& env, int* destroyed, int* ran) {
    Witness witness(destroyed);
    co_await env.clock.sleep_for(hours(1));
    ++*ran;
}
Task<void> witness_lock(runtime::Mutex& mutex, runtime::Event& event, int* destroyed, int* ran) {
    Witness witness(destroyed);
    auto guard = co_await mutex.lock();
    co_await event.wait();
    ++*ran;
}
Task<void> witness_read(runtime::Disk& disk, int* destroyed, int* ran) {
    Witness witness(destroyed);
    auto result = co_await disk.read(0, Buffer::allocate(kBlockBytes));
    ++*ran;
}

TEST(World, AKillDestroysEveryFrameAndRunsNone) {
    int destroyed = 0, ran = 0;
    World world(3);
    auto disk = open_disk(world);
    {
        runtime::Event event;
        runtime::Mutex mutex;
        runtime::Gate gate;
        Executor executor = world.env().executor;
        gate.spawn(executor, witness_event(event, &destroyed, &ran));
        gate.spawn(executor, witness_sleep(world.env(), &destroyed, &ran));
        gate.spawn(executor, witness_lock(mutex, event, &destroyed, &ran));
        gate.spawn(executor, witness_lock(mutex, event, &destroyed, &ran));
        gate.spawn(executor, witness_read(*disk, &destroyed, &ran));
        for (int i = 0; i < 12; ++i)
            world.step();
        gate.spawn(executor, witness_event(event, &destroyed, &ran));
        world.kill();
        EXPECT_EQ(gate.inside_count(), 0u);
        EXPECT_FALSE(mutex.is_locked());
    }
    world.run_until_idle();
    EXPECT_EQ(ran, 0);
    EXPECT_GE(destroyed, 5);
}

Task<Result<void>> write_at(runtime::Disk& disk, uint64_t offset, int value, Durability durability,
                            uint32_t blocks = 1) {
    Buffer buffer = filled(blocks * kBlockBytes, value);
    co_return co_await disk.write(offset, buffer, durability);
}
Task<Result<int>> read_at(runtime::Disk& disk, uint64_t offset) {
    Buffer buffer = Buffer::allocate(kBlockBytes);
    CO_TRY(co_await disk.read(offset, buffer));
    co_return static_cast<int>(buffer.bytes()[0]);
}

TEST(SimDisk, ReadsWhatWasWrittenAndZerosElsewhere) {
    World world(4);
    auto disk = open_disk(world);
    ASSERT_TRUE(world.run(write_at(*disk, 8192, 5, Durability::volatile_, 2)));
    EXPECT_EQ(world.run(read_at(*disk, 8192)).value(), 5);
    EXPECT_EQ(world.run(read_at(*disk, 12288)).value(), 5);
    EXPECT_EQ(world.run(read_at(*disk, 0)).value(), 0);
    ASSERT_TRUE(world.run(disk->zero(0, kDiskBytes)));
    EXPECT_EQ(world.run(read_at(*disk, 8192)).value(), 0);
    auto outside = world.run(read_at(*disk, kDiskBytes));
    ASSERT_FALSE(outside);
    EXPECT_EQ(outside.error().code(), Code::invalid_argument);
}

TEST(SimDisk, DurableAndSyncedWritesSurviveEveryCrash) {
    for (uint64_t seed = 0; seed < 50; ++seed) {
        World world(seed);
        auto disk = open_disk(world);
        ASSERT_TRUE(world.run(write_at(*disk, 0, 1, Durability::durable)));
        ASSERT_TRUE(world.run(write_at(*disk, 4096, 2, Durability::volatile_)));
        ASSERT_TRUE(world.run(disk->sync()));
        ASSERT_TRUE(world.run(write_at(*disk, 0, 3, Durability::volatile_)));
        ASSERT_TRUE(world.run(write_at(*disk, 0, 4, Durability::durable)));
        EXPECT_EQ(world.disk("disk0").unsynced_page_count(), 0u);
        world.crash();
        disk = open_disk(world);
        EXPECT_EQ(world.run(read_at(*disk, 0)).value(), 4);
        EXPECT_EQ(world.run(read_at(*disk, 4096)).value(), 2);
    }
}

TEST(SimDisk, ACrashKeepsLosesAndTearsWhatWasNotSynced) {
    bool old_seen = false, middle_seen = false, new_seen = false, torn_seen = false;
    for (uint64_t seed = 0; seed < 200; ++seed) {
        World world(seed);
        auto disk = open_disk(world);
        ASSERT_TRUE(world.run(write_at(*disk, 0, 1, Durability::durable)));
        ASSERT_TRUE(world.run(write_at(*disk, 0, 2, Durability::volatile_)));
        ASSERT_TRUE(world.run(write_at(*disk, 0, 3, Durability::volatile_)));
        world.crash();
        std::array<std::byte, kBlockBytes> page;
        world.disk("disk0").peek(0, page);
        std::set<std::byte> values(page.begin(), page.end());
        for (std::byte value : values)
            EXPECT_TRUE(int(value) >= 1 && int(value) <= 3);
        torn_seen |= values.size() > 1;
        old_seen |= values == std::set{std::byte{1}};
        middle_seen |= values == std::set{std::byte{2}};
        new_seen |= values == std::set{std::byte{3}};
    }
    EXPECT_TRUE(old_seen && middle_seen && new_seen && torn_seen);
}

Task<bool> write_many(runtime::Disk& disk) {
    for (int i = 1; i <= 3; ++i) {
        auto result = co_await write_at(disk, 0, i, Durability::durable, 4);
        if (!result) co_return false;
    }
    co_return true;
}

TEST(SimDisk, CanBeCrashedAtEveryEvent) {
    bool torn_seen = false;
    uint64_t points = 0;
    for (uint64_t seed = 0; seed < 20; ++seed) {
        for (uint64_t events = 0;; ++events, ++points) {
            World world(seed);
            auto disk = open_disk(world);
            bool done = world.run_events(write_many(*disk), events).has_value();
            world.crash();
            std::array<std::byte, 4 * kBlockBytes> all;
            world.disk("disk0").peek(0, all);
            torn_seen |= std::set<std::byte>(all.begin(), all.end()).size() > 1;
            if (!done) continue;
            EXPECT_EQ(all[0], std::byte{3});
            break;
        }
    }
    EXPECT_TRUE(torn_seen);
    EXPECT_GE(points, 60u);
}

TEST(SimDisk, IsHeldByOneProcess) {
    World world(9);
    auto disk = open_disk(world);
    auto second = world.run(world.env().disks.open("disk0", {}));
    ASSERT_FALSE(second);
    EXPECT_EQ(second.error().code(), Code::busy);
    auto missing = world.run(world.env().disks.open("disk1", {}));
    ASSERT_FALSE(missing);
    EXPECT_EQ(missing.error().code(), Code::not_found);
    world.kill();
    auto after = world.run(world.env().disks.open("disk0", {}));
    ASSERT_TRUE(after);
    // The dead process's object goes last and must not take the lock along.
    disk.reset();
    EXPECT_FALSE(world.run(world.env().disks.open("disk0", {})));
}

TEST(SimDisk, FailsAsItIsTold) {
    World world(10);
    auto disk = open_disk(world);
    DiskMedia& media = world.disk("disk0");
    ASSERT_TRUE(world.run(write_at(*disk, 4096, 1, Durability::durable)));
    media.add_fault({.operation = DiskOperation::read,
                     .effect = DiskEffect::io_error,
                     .offset = 4096,
                     .bytes = 1,
                     .skip = 1,
                     .count = 1});
    EXPECT_TRUE(world.run(read_at(*disk, 4096)));
    EXPECT_TRUE(world.run(read_at(*disk, 0)));
    EXPECT_EQ(world.run(read_at(*disk, 4096)).error().code(), Code::io_error);
    EXPECT_TRUE(world.run(read_at(*disk, 4096)));

    media.add_fault({.operation = DiskOperation::write, .effect = DiskEffect::lost, .count = 1});
    EXPECT_TRUE(world.run(write_at(*disk, 4096, 2, Durability::durable)));
    EXPECT_EQ(world.run(read_at(*disk, 4096)).value(), 1);
    media.add_fault({.operation = DiskOperation::write,
                     .effect = DiskEffect::misplaced,
                     .count = 1,
                     .delta = 4096});
    EXPECT_TRUE(world.run(write_at(*disk, 4096, 3, Durability::durable)));
    EXPECT_EQ(world.run(read_at(*disk, 4096)).value(), 1);
    EXPECT_EQ(world.run(read_at(*disk, 8192)).value(), 3);
    media.add_fault({.operation = DiskOperation::write, .effect = DiskEffect::no_space});
    EXPECT_EQ(world.run(write_at(*disk, 0, 1, Durability::durable)).error().code(), Code::no_space);
    media.clear_faults();
    media.corrupt(4096);
    EXPECT_EQ(world.run(read_at(*disk, 4096)).value(), 1 ^ 0x10);
}

TEST(SimDisk, AFailedSyncIsNeverMadeGoodByASecondOne) {
    World world(11);
    auto disk = open_disk(world);
    ASSERT_TRUE(world.run(write_at(*disk, 0, 1, Durability::volatile_)));
    world.disk("disk0").add_fault(
        {.operation = DiskOperation::sync, .effect = DiskEffect::io_error, .count = 1});
    EXPECT_FALSE(world.run(disk->sync()));
    EXPECT_TRUE(world.run(disk->sync()));
    world.crash({.mode = CrashMode::lose});
    std::array<std::byte, 1> first;
    world.disk("disk0").peek(0, first);
    EXPECT_EQ(first[0], std::byte{0});
}

bool decide() {
    return FAULT("test.decision");
}

TEST(FaultPlan, AnswersFaultsAndCountsProbes) {
    EXPECT_FALSE(decide());
    World world(12);
    world.faults().arm("test.decision", 1, 1);
    EXPECT_FALSE(decide());
    EXPECT_TRUE(decide());
    EXPECT_FALSE(decide());
    PROBE("test.path");
    EXPECT_EQ(world.faults().probe_count("test.path"), 1u);
    EXPECT_EQ(world.faults().fault_count("test.decision"), 1u);
}

Task<void> echo(Env& env, runtime::Listener& listener) {
    auto accepted = co_await listener.accept();
    if (!accepted) co_return;
    std::unique_ptr<runtime::Connection> connection = std::move(*accepted);
    for (;;) {
        Buffer buffer = Buffer::allocate(4);
        if (!co_await connection->read(buffer)) co_return;
        std::vector<Buffer> parts{buffer.slice(0, 1), buffer.slice(1, 3)};
        if (!co_await connection->write(parts)) co_return;
        co_await env.clock.sleep_for(microseconds(1));
    }
}

Task<Result<std::string>> ask(runtime::Connection& connection, std::string text) {
    std::vector<Buffer> parts{Buffer::copy_of(bytes_of_text(text))};
    CO_TRY(co_await connection.write(parts));
    Buffer answer = Buffer::allocate(text.size());
    CO_TRY(co_await connection.read(answer));
    co_return std::string(reinterpret_cast<const char*>(answer.data()), answer.size());
}

TEST(SimNet, CarriesCutsAndBreaksStreams) {
    World world(13);
    Process& server = world.start("server");
    auto listener = world.run(server, server.env().net.listen("server:0"));
    ASSERT_TRUE(listener);
    runtime::spawn(server.executor(), echo(server.env(), **listener));
    auto refused = world.run(world.env().net.connect("server:1", seconds(1)));
    ASSERT_FALSE(refused);
    EXPECT_EQ(refused.error().code(), Code::unavailable);
    auto connection = world.run(world.env().net.connect((*listener)->address(), seconds(1)));
    ASSERT_TRUE(connection);
    EXPECT_EQ(world.run(ask(**connection, "abcd")).value(), "abcd");
    EXPECT_EQ(world.run(ask(**connection, "efghijkl")).value(), "efghijkl");

    world.net().partition(world.process(), server);
    EXPECT_FALSE(world.run_events(ask(**connection, "mnop"), 20).has_value());
    EXPECT_FALSE(world.run(world.env().net.connect((*listener)->address(), seconds(1))));
    world.net().heal();
    world.run_for(seconds(1));
    EXPECT_EQ(world.run(ask(**connection, "qrst")).value(), "qrst");
    world.kill(server);
    auto after = world.run(ask(**connection, "uvwx"));
    ASSERT_FALSE(after);
    EXPECT_EQ(after.error().code(), Code::unavailable);
}

Task<void> spin(uint64_t times) {
    for (uint64_t i = 0; i < times; ++i)
        co_await runtime::yield();
}

TEST(World, IsFast) {
    World world(14);
    for (int i = 0; i < 8; ++i)
        runtime::spawn(world.env().executor, spin(20'000));
    auto start = std::chrono::steady_clock::now();
    world.run_until_idle();
    std::chrono::duration<double> took = std::chrono::steady_clock::now() - start;
    RecordProperty("events_per_second", std::to_string(double(world.event_count()) / took.count()));
    EXPECT_GE(world.event_count(), 160'000u);
}

}  // namespace
}  // namespace peplos::sim
