#include "sim/process.h"

#include <algorithm>

#include "sim/world.h"

namespace peplos::sim {

Process::Process(World* world, uint32_t number, std::string name)
    : world_(world),
      number_(number),
      name_(std::move(name)),
      clock_(this),
      rng_(world->seed(), uint64_t{number} + 1000),
      disks_(this),
      net_(this),
      env_{executor(), clock_, rng_, disks_, net_} {}

Process::~Process() = default;

Executor Process::executor() {
    return ProcessExecutor(this, 0);
}

void Process::post(std::move_only_function<void()> handler) {
    if (alive_) world_->post(this, std::move(handler));
}

void Process::post_of_task(uint64_t task, std::move_only_function<void()> handler) {
    if (alive_) {
        world_->post(this, std::move(handler));
    } else if (is_dying_) {
        doomed_.push_back({task, std::move(handler)});
    }
}

// Whatever is destroyed may bring more.
void Process::destroy_doomed() {
    while (!doomed_.empty()) {
        auto last = std::ranges::max_element(doomed_, {}, &Doomed::task);
        Doomed next = std::move(*last);
        doomed_.erase(last);
        next.handler = nullptr;
    }
    is_dying_ = false;
}

Time Process::ProcessClock::now() {
    return process_->world_->now();
}

WallTime Process::ProcessClock::wall_now() {
    return process_->world_->wall_now();
}

Task<void> Process::ProcessClock::sleep_until(Time deadline) {
    return asio::async_initiate<const asio::use_awaitable_t<Executor>, void()>(
        [](auto handler, Process* process, Time when) {
            process->world().at(when, process, std::move(handler));
        },
        runtime::kUseTask, process_, deadline);
}

Task<Result<std::unique_ptr<runtime::Disk>>> Process::ProcessDisks::open(
    std::string path, runtime::DiskOptions options) {
    World& world = process_->world();
    DiskMedia* media = world.find_disk(path);
    if (media == nullptr) {
        if (options.create_bytes == 0) {
            co_return fail(Code::not_found, "{} does not exist: create it or name another", path);
        }
        media = &world.make_disk(path, options.create_bytes);
    }
    if (Process* holder = media->lock(process_)) {
        co_return fail(Code::busy, "{} is in use by process {}: stop it first", path,
                       holder->name());
    }
    co_return std::make_unique<SimDisk>(process_, media);
}

}  // namespace peplos::sim
