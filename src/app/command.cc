#include "app/command.h"

#include <array>
#include <cerrno>
#include <chrono>
#include <cstring>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <spawn.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/units.h"

namespace peplos::app {
namespace {

constexpr size_t kOutputBytesMax = 1 * kMiB;

int milliseconds_until(std::chrono::steady_clock::time_point end) {
    auto left = std::chrono::duration_cast<std::chrono::milliseconds>(
                    end - std::chrono::steady_clock::now())
                    .count();
    return left < 0 ? 0 : static_cast<int>(left);
}

// Reads until the end of the stream; false when the time is over.
bool read_all(int fd, std::chrono::steady_clock::time_point end, std::string& out) {
    std::array<char, 64 * kKiB> buffer{};
    while (true) {
        pollfd waited{.fd = fd, .events = POLLIN, .revents = 0};
        int ready = ::poll(&waited, 1, milliseconds_until(end));
        if (ready < 0 && errno == EINTR) continue;
        if (ready <= 0) return false;
        ssize_t got = ::read(fd, buffer.data(), buffer.size());
        if (got < 0 && errno == EINTR) continue;
        if (got <= 0) return true;
        size_t room = kOutputBytesMax - std::min(kOutputBytesMax, out.size());
        out.append(buffer.data(), std::min(room, static_cast<size_t>(got)));
    }
}

}  // namespace

Result<CommandResult> run_command(const std::vector<std::string>& words, int seconds) {
    std::array<int, 2> ends{};
    if (::pipe2(ends.data(), O_CLOEXEC) != 0) {
        return fail(Code::io_error, "cannot make a pipe: {}", std::strerror(errno));
    }
    std::vector<char*> argv;
    argv.reserve(words.size() + 1);
    for (const std::string& word : words)
        argv.push_back(const_cast<char*>(word.c_str()));
    argv.push_back(nullptr);
    posix_spawn_file_actions_t actions;
    posix_spawn_file_actions_init(&actions);
    posix_spawn_file_actions_addopen(&actions, 0, "/dev/null", O_RDONLY, 0);
    posix_spawn_file_actions_adddup2(&actions, ends[1], 1);
    posix_spawn_file_actions_adddup2(&actions, ends[1], 2);
    pid_t pid = 0;
    int error = ::posix_spawnp(&pid, argv[0], &actions, nullptr, argv.data(), environ);
    posix_spawn_file_actions_destroy(&actions);
    ::close(ends[1]);
    if (error != 0) {
        ::close(ends[0]);
        Code code = error == ENOENT ? Code::not_found : Code::io_error;
        return fail(code, "cannot run {}: {}", words[0], std::strerror(error));
    }
    CommandResult result;
    auto end = std::chrono::steady_clock::now() + std::chrono::seconds(seconds);
    bool ended = read_all(ends[0], end, result.output);
    ::close(ends[0]);
    if (!ended) ::kill(pid, SIGKILL);
    int status = 0;
    while (::waitpid(pid, &status, 0) < 0 && errno == EINTR) {
    }
    if (!ended) return fail(Code::unavailable, "{} took longer than {} s", words[0], seconds);
    result.exit_code = WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
    return result;
}

}  // namespace peplos::app
