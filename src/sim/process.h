#pragma once

#include <boost/asio/execution.hpp>
#include <boost/asio/execution_context.hpp>
#include <functional>
#include <string>
#include <vector>

#include "runtime/env.h"
#include "sim/random.h"

namespace peplos::sim {

namespace asio = boost::asio;
using runtime::Env;
using runtime::Executor;
using runtime::Task;

class World;

// One simulated operating-system process: an executor, and its view of the seams.
//
// A process that was killed runs nothing any more. What its tasks had on their stacks is destroyed
// at the kill, without running, the task that was spawned last first: a task may own what those use
// that it spawned. The objects that outlive tasks are destroyed afterwards, by the test.
class Process final : public asio::execution_context {
  public:
    Process(World* world, uint32_t number, std::string name);
    ~Process();

    // Valid as long as the world, also after a kill.
    Env& env() { return env_; }
    Executor executor();
    World& world() { return *world_; }
    const std::string& name() const { return name_; }
    uint32_t number() const { return number_; }
    bool is_alive() const { return alive_; }

    // Queues a handler. Where the process is dead it is destroyed at once, without running.
    void post(std::move_only_function<void()> handler);
    // The same for one that may own the frames of a task: during the kill they are destroyed in the
    // order of the tasks.
    void post_of_task(uint64_t task, std::move_only_function<void()> handler);
    uint64_t take_task_number() { return ++task_last_; }

  private:
    friend class World;

    class ProcessClock final : public runtime::Clock {
      public:
        explicit ProcessClock(Process* process) : process_(process) {}
        Time now() override;
        WallTime wall_now() override;
        Task<void> sleep_until(Time deadline) override;

      private:
        Process* process_;
    };
    class ProcessDisks final : public runtime::Disks {
      public:
        explicit ProcessDisks(Process* process) : process_(process) {}
        Task<Result<std::unique_ptr<runtime::Disk>>> open(std::string path,
                                                          runtime::DiskOptions options) override;

      private:
        Process* process_;
    };
    class ProcessNet final : public runtime::Net {
      public:
        explicit ProcessNet(Process* process) : process_(process) {}
        Task<Result<std::unique_ptr<runtime::Connection>>> connect(std::string address,
                                                                   Duration timeout) override;
        Task<Result<std::unique_ptr<runtime::Listener>>> listen(std::string address) override;

      private:
        Process* process_;
    };

    // The frames of a task whose process was killed.
    struct Doomed {
        uint64_t task;
        std::move_only_function<void()> handler;
    };
    // Destroys every suspended task that waits in a runtime::WaitList.
    void destroy_waiters() { shutdown(); }
    void destroy_doomed();

    World* world_;
    uint32_t number_;
    std::string name_;
    bool alive_ = true;
    bool is_dying_ = false;
    Time paused_until_{};  // its events wait until then
    uint64_t task_last_ = 0;
    std::vector<Doomed> doomed_;
    ProcessClock clock_;
    Random rng_;
    ProcessDisks disks_;
    ProcessNet net_;
    Env env_;
};

// The executor of a process, for Asio. Never runs anything inline.
class ProcessExecutor {
  public:
    ProcessExecutor(Process* process, uint64_t task) : process_(process), task_(task) {}

    ProcessExecutor for_new_task() const { return {process_, process_->take_task_number()}; }

    Process& query(asio::execution::context_t) const noexcept { return *process_; }
    static constexpr asio::execution::blocking_t query(asio::execution::blocking_t) noexcept {
        return asio::execution::blocking.never;
    }
    ProcessExecutor require(asio::execution::blocking_t::never_t) const noexcept { return *this; }
    template <typename Function>
    void execute(Function&& function) const {
        process_->post_of_task(task_, std::forward<Function>(function));
    }
    bool operator==(const ProcessExecutor&) const noexcept = default;

  private:
    Process* process_;
    uint64_t task_;  // 0: of none
};

}  // namespace peplos::sim
