#include "attach/workers.h"

#include <array>
#include <cerrno>
#include <chrono>
#include <cstring>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <spawn.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <thread>
#include <unistd.h>

#include "attach/holder.h"

namespace peplos::attach {

namespace {

constexpr size_t kOutputBytesMax = 64 * 1024;

struct Pipe {
    Fd reader;
    Fd writer;
};

bool make_pipe(Pipe& pipe) {
    int fds[2];
    if (::pipe2(fds, O_CLOEXEC) != 0) return false;
    pipe.reader.reset(fds[0]);
    pipe.writer.reset(fds[1]);
    ::fcntl(fds[0], F_SETFL, O_NONBLOCK);
    return true;
}

// Returns 0 or an errno.
int spawn_child(const std::vector<std::string>& argv, int out, int err, pid_t& pid) {
    posix_spawn_file_actions_t actions;
    posix_spawnattr_t attributes;
    posix_spawn_file_actions_init(&actions);
    posix_spawnattr_init(&attributes);
    posix_spawn_file_actions_addopen(&actions, 0, "/dev/null", O_RDONLY, 0);
    posix_spawn_file_actions_adddup2(&actions, out, 1);
    posix_spawn_file_actions_adddup2(&actions, err, 2);
    posix_spawn_file_actions_addclosefrom_np(&actions, 3);
    sigset_t none;
    sigset_t all;
    sigemptyset(&none);
    sigfillset(&all);
    posix_spawnattr_setsigmask(&attributes, &none);
    posix_spawnattr_setsigdefault(&attributes, &all);
    posix_spawnattr_setflags(&attributes, POSIX_SPAWN_SETSIGMASK | POSIX_SPAWN_SETSIGDEF);
    std::vector<char*> arguments;
    arguments.reserve(argv.size() + 1);
    for (const std::string& a : argv)
        arguments.push_back(const_cast<char*>(a.c_str()));
    arguments.push_back(nullptr);
    char path[] = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
    char language[] = "LC_ALL=C";
    char* environment[] = {path, language, nullptr};
    int error =
        ::posix_spawnp(&pid, arguments[0], &actions, &attributes, arguments.data(), environment);
    posix_spawn_file_actions_destroy(&actions);
    posix_spawnattr_destroy(&attributes);
    return error;
}

// Appends what is there; false at the end of the pipe.
bool drain(int fd, std::string& into) {
    std::array<char, 4096> chunk{};
    while (true) {
        ssize_t count = ::read(fd, chunk.data(), chunk.size());
        if (count == 0) return false;
        if (count < 0) return errno == EAGAIN || errno == EINTR;
        size_t room = kOutputBytesMax - std::min(into.size(), kOutputBytesMax);
        into.append(chunk.data(), std::min(static_cast<size_t>(count), room));
    }
}

bool reap(pid_t pid, ChildResult& result) {
    int status = 0;
    if (::waitpid(pid, &status, WNOHANG) != pid) return false;
    result.exit_code = WIFEXITED(status) ? WEXITSTATUS(status) : -1;
    return true;
}

}  // namespace

ChildResult run_child(const std::vector<std::string>& argv, Duration limit) {
    ChildResult result;
    Pipe out;
    Pipe err;
    pid_t pid = 0;
    if (!make_pipe(out) || !make_pipe(err)) {
        result.err = std::strerror(errno);
        return result;
    }
    if (int error = spawn_child(argv, out.writer.get(), err.writer.get(), pid); error != 0) {
        result.err = fmt::format("{} cannot be started: {}", argv[0], std::strerror(error));
        return result;
    }
    out.writer.reset();
    err.writer.reset();
    Fd process(static_cast<int>(::syscall(SYS_pidfd_open, pid, 0)));
    auto deadline = std::chrono::steady_clock::now() + limit;
    bool killed = false;
    while (true) {
        auto left = std::chrono::duration_cast<std::chrono::milliseconds>(
            deadline - std::chrono::steady_clock::now());
        std::array<pollfd, 3> polls{{{process.get(), POLLIN, 0},
                                     {out.reader.get(), POLLIN, 0},
                                     {err.reader.get(), POLLIN, 0}}};
        ::poll(polls.data(), polls.size(), static_cast<int>(std::max<int64_t>(left.count(), 0)));
        if (out.reader.valid() && !drain(out.reader.get(), result.out)) out.reader.reset();
        if (err.reader.valid() && !drain(err.reader.get(), result.err)) err.reader.reset();
        if (reap(pid, result)) break;
        if (std::chrono::steady_clock::now() < deadline) continue;
        result.timed_out = true;
        if (killed) {
            std::thread([pid] { ::waitpid(pid, nullptr, 0); }).detach();
            return result;
        }
        ::kill(pid, SIGKILL);
        killed = true;
        deadline = std::chrono::steady_clock::now() + std::chrono::milliseconds(500);
    }
    if (out.reader.valid()) drain(out.reader.get(), result.out);
    if (err.reader.valid()) drain(err.reader.get(), result.err);
    return result;
}

runtime::Task<ChildResult> Workers::child(std::vector<std::string> argv, Duration limit) {
    std::function<ChildResult()> work = [argv = std::move(argv), limit] {
        return run_child(argv, limit);
    };
    co_return co_await run<ChildResult>(std::move(work));
}

}  // namespace peplos::attach
