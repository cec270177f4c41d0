#include "swarm/plan.h"

#include <fmt/format.h>

#include "base/check.h"

namespace peplos::swarm {

namespace {

constexpr uint64_t kPlanStream = 0x91a7;
constexpr uint64_t kSecondStream = 0x91a8;

void draw_node(Plan& plan, sim::Random& random) {
    plan.order = random.chance(700) ? sim::Order::random : sim::Order::fifo;
    plan.device_count = random.chance(700) ? 1 : 2;
    plan.device_bytes = random.between(96, 320) * kMiB;
    plan.overlay_bytes = random.between(2, 24) * kMiB;
    plan.leaf_cache_bytes = random.between(256, 4096) * kKiB;
    keeper::KeeperOptions& keeper = plan.keeper;
    keeper.drain_bytes = random.between(256, 16 * 1024) * kKiB;
    keeper.replay_bytes_max = random.between(1, 64) * kMiB;
    keeper.replay_records_max = random.between(4, 512);
    keeper.checkpoint_interval = std::chrono::milliseconds(random.between(50, 20'000));
    keeper.tick = std::chrono::milliseconds(random.between(5, 500));
    keeper.free_share_min = static_cast<double>(random.between(20, 700)) / 1000;
    keeper.scrub_bytes_per_second = random.between(1, 500) * kMiB;
    keeper.prezero_bytes = random.chance(500) ? 0 : 8 * kMiB;
}

void draw_users(Plan& plan, sim::Random& random) {
    plan.volume_count_max = static_cast<uint32_t>(random.between(1, 5));
    plan.volume_bytes_max = random.between(2, 48) * kMiB;
    plan.workers_per_volume = static_cast<uint32_t>(random.between(1, 8));
    plan.operations = random.between(2'000, 4'000);
    plan.life_events_max = random.chance(300) ? 500 : random.between(500, 8'000);
    plan.work = draw_work(random);
    plan.create_permille = random.maybe(300);
    plan.remove_permille = random.maybe(100);
    plan.grow_permille = random.maybe(100);
    plan.scrub_permille = random.maybe(50);
}

void draw_ends(Plan& plan, sim::Random& random) {
    plan.stop_weight = random.maybe(3);
    plan.kill_weight = random.maybe(5);
    plan.power_loss_weight = static_cast<uint32_t>(random.between(1, 8));
}

void draw_store(Plan& plan, sim::Random& random) {
    plan.store_weather.unavailable_permille = random.maybe(50);
    plan.store_weather.unknown_permille = random.maybe(50);
    plan.store_weather.delay_max = std::chrono::milliseconds(random.maybe(200));
}

void draw_disk_faults(Plan& plan, sim::Random& random) {
    plan.slow_permille = random.maybe(100);
    plan.read_error_permille = random.maybe(100);
    plan.write_error_permille = random.maybe(60);
    plan.garbled_read_permille = random.maybe(100);
}

// A device of its own kind: which of two operations ends first hangs on how long each takes.
void draw_disk_profile(Plan& plan, sim::Random& random) {
    auto slower = [&random](sim::LatencyRange& range) {
        range.high *= static_cast<int64_t>(1) << random.pick(8);
        if (random.chance(300)) range.low = range.high / 2;
    };
    slower(plan.disk.read);
    slower(plan.disk.write);
    slower(plan.disk.durable_write);
    slower(plan.disk.sync);
}

void draw_second_edition(Plan& plan, sim::Random& random) {
    if (random.chance(600)) draw_disk_profile(plan, random);
    if (random.chance(500))
        plan.cut_start_permille = static_cast<uint32_t>(random.between(50, 600));
    // The work behind the volumes in small steps: many seals, roots and cleanings side by side.
    if (random.chance(400)) plan.keeper.drain_bytes = random.between(4, 256) * kKiB;
    if (random.chance(300)) plan.keeper.replay_records_max = random.between(1, 8);
    if (random.chance(300)) plan.life_events_max = random.between(50, 1'000);
    if (random.chance(200)) plan.grow_permille = 500;
    plan.site_permille = random.maybe(20);
}

void draw_second_faults(Plan& plan, sim::Random& random) {
    if (plan.has_disk_errors()) {
        plan.sync_error_permille = random.maybe(60);
        plan.full_permille = random.maybe(30);
    }
    plan.stall_permille = random.maybe(40);
    plan.pause_permille = random.maybe(20);
    plan.outage_permille = random.maybe(20);
    plan.wrong_disk_permille = random.chance(400) ? 100 : 0;
    plan.rollback_permille = random.chance(300) ? 60 : 0;
}

void draw_damage(Plan& plan, sim::Random& random) {
    plan.damage_count_max = static_cast<uint32_t>(random.between(1, 16));
    plan.latent_weight = static_cast<uint32_t>(random.pick(3));
    plan.lost_weight = static_cast<uint32_t>(random.pick(3));
    plan.misplaced_weight = static_cast<uint32_t>(random.pick(3));
    plan.rot_weight = 1;
}

}  // namespace

std::string_view name_of(EndOfLife end) {
    switch (end) {
        case EndOfLife::stop:
            return "stop";
        case EndOfLife::kill:
            return "kill -9";
        case EndOfLife::power_loss:
            return "power loss";
    }
    return "?";
}

std::vector<std::string_view> plan_names() {
    return {"swarm", "crash", "calm", "disk", "sync", "damage"};
}

Plan draw_plan(std::string_view name, uint64_t seed, Edition edition) {
    sim::Random random(seed, kPlanStream);
    Plan plan;
    draw_node(plan, random);
    draw_users(plan, random);
    draw_ends(plan, random);
    if (name == "swarm") {
        draw_store(plan, random);
        // Half of the runs have honest disks: there every error is a bug.
        if (random.chance(500)) draw_disk_faults(plan, random);
    } else if (name == "disk") {
        draw_disk_faults(plan, random);
    } else if (name == "calm") {
        plan.stop_weight = 1;
        plan.kill_weight = plan.power_loss_weight = 0;
    } else {
        CHECK(name == "crash" || name == "sync" || name == "damage", "no plan {}", name);
    }
    if (edition == Edition::first) return plan;
    sim::Random second(seed, kSecondStream);
    draw_second_edition(plan, second);
    if (name == "calm") plan.cut_start_permille = 0;
    if (name != "calm") plan.faults = 20;
    if (name == "swarm" || name == "disk") draw_second_faults(plan, second);
    // A failed sync is the only fault: whatever is lost after it was believed to be durable.
    if (name == "sync") plan.sync_error_permille = static_cast<uint32_t>(second.between(50, 500));
    if (name == "damage" || (name == "swarm" && second.chance(100))) draw_damage(plan, second);
    return plan;
}

std::string describe(const Plan& plan) {
    return fmt::format(
        "{} device(s) of {} MiB, overlay {} MiB, leaf cache {} KiB, up to {} volume(s) of {} MiB "
        "with {} worker(s); weights write {} small {} large {} zero {} read {}, hot {}; ends stop "
        "{} kill {} power {}, life {} events; starts cut {}; faults read {} write {} slow {} "
        "garbled {} sync {} full {} stall {} pause {}, store {}/{} outage {} rollback {}, wrong "
        "disk {}, damage {}: latent {} lost {} misplaced {} rot {}",
        plan.device_count, plan.device_bytes / kMiB, plan.overlay_bytes / kMiB,
        plan.leaf_cache_bytes / kKiB, plan.volume_count_max, plan.volume_bytes_max / kMiB,
        plan.workers_per_volume, plan.work.write_weight, plan.work.small_write_weight,
        plan.work.large_write_weight, plan.work.zero_weight, plan.work.read_weight,
        plan.work.hot_permille, plan.stop_weight, plan.kill_weight, plan.power_loss_weight,
        plan.life_events_max, plan.cut_start_permille, plan.read_error_permille,
        plan.write_error_permille, plan.slow_permille, plan.garbled_read_permille,
        plan.sync_error_permille, plan.full_permille, plan.stall_permille, plan.pause_permille,
        plan.store_weather.unavailable_permille, plan.store_weather.unknown_permille,
        plan.outage_permille, plan.rollback_permille, plan.wrong_disk_permille,
        plan.damage_count_max, plan.latent_weight, plan.lost_weight, plan.misplaced_weight,
        plan.rot_weight);
}

}  // namespace peplos::swarm
