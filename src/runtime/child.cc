#include "runtime/child.h"

#include <array>
#include <boost/asio/posix/stream_descriptor.hpp>
#include <boost/asio/redirect_error.hpp>
#include <cerrno>
#include <cstring>
#include <fcntl.h>
#include <memory>
#include <signal.h>
#include <spawn.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/check.h"
#include "runtime/boot_clock.h"

namespace peplos::runtime {
namespace {

using Stream = asio::posix::basic_stream_descriptor<Executor>;
using ErrorCode = boost::system::error_code;

// "mkfs.ext4 -q /dev/loop0", for messages.
std::string text_of_command(const std::vector<std::string>& argv) {
    std::string text;
    for (const std::string& word : argv)
        text += (text.empty() ? "" : " ") + word;
    return text;
}

// The bounded beginning of what a stream says.
struct Capture {
    Capture(const Executor& executor, size_t max) : stream(executor), bytes_max(max) {}
    void keep(size_t count) {
        size_t room = bytes_max - std::min(bytes_max, text.size());
        text.append(part.data(), std::min(count, room));
    }
    Stream stream;
    size_t bytes_max;
    std::string text;
    std::array<char, 4096> part{};
    // A read is under way, or its callback is queued.
    bool reading = false;
    bool ending = false;
};

// A started process and everything that listens to it. Callbacks share it, so that it outlives a
// task that is destroyed while it waits; the process does not.
struct RunningChild {
    RunningChild(const Executor& executor, size_t bytes_max)
        : output(executor, bytes_max),
          errors(executor, bytes_max),
          exit(executor),
          timer(executor) {}
    ~RunningChild() { end(); }

    void kill_group() const {
        if (pid > 0) kill(-pid, SIGKILL);
    }
    // Reaps the process, killing it first if it still runs. Its exit code.
    int end() {
        if (pid <= 0) return 0;
        siginfo_t info{};
        waitid(P_PID, static_cast<id_t>(pid), &info, WEXITED | WNOHANG | WNOWAIT);
        if (info.si_pid == 0) kill_group();
        int status = 0;
        while (waitpid(pid, &status, 0) < 0 && errno == EINTR) {
        }
        pid = 0;
        return WIFSIGNALED(status) ? 128 + WTERMSIG(status) : WEXITSTATUS(status);
    }

    Capture output;
    Capture errors;
    // Readable when the process has ended (pidfd_open(2)).
    Stream exit;
    BootTimer timer;
    pid_t pid = 0;
    bool timed_out = false;
};

void listen(std::shared_ptr<RunningChild> child, Capture* capture) {
    capture->reading = true;
    capture->stream.async_read_some(asio::buffer(capture->part),
                                    [child, capture](ErrorCode error, size_t count) {
                                        capture->keep(count);
                                        capture->reading = false;
                                        if (!error && !capture->ending) listen(child, capture);
                                    });
}

// Takes what is left in the pipe after the process has ended. A grandchild that holds the other end
// is not waited for.
Task<void> finish(Capture& capture) {
    ErrorCode error;
    capture.ending = true;
    capture.stream.cancel(error);
    while (capture.reading)
        co_await yield();
    capture.stream.non_blocking(true, error);
    while (!error) {
        size_t count = capture.stream.read_some(asio::buffer(capture.part), error);
        if (!error) capture.keep(count);
    }
}

struct Pipe {
    int read_end = -1;
    int write_end = -1;
    Pipe() = default;
    Pipe(const Pipe&) = delete;
    Pipe& operator=(const Pipe&) = delete;
    ~Pipe() {
        if (read_end >= 0) close(read_end);
        if (write_end >= 0) close(write_end);
    }
    bool open() {
        int ends[2];
        if (pipe2(ends, O_CLOEXEC) != 0) return false;
        read_end = ends[0];
        write_end = ends[1];
        return true;
    }
};

std::vector<std::string> child_environment() {
    std::vector<std::string> out{"LC_ALL=C"};
    for (char** entry = environ; *entry != nullptr; ++entry) {
        std::string_view text = *entry;
        if (!text.starts_with("LC_") && !text.starts_with("LANG")) out.emplace_back(text);
    }
    return out;
}

std::vector<char*> pointers_to(std::vector<std::string>& words) {
    std::vector<char*> out;
    out.reserve(words.size() + 1);
    for (std::string& word : words)
        out.push_back(word.data());
    out.push_back(nullptr);
    return out;
}

// 0 or an errno.
int spawn_process(std::vector<std::string>& argv, const Pipe& output, const Pipe& errors,
                  pid_t* pid) {
    posix_spawn_file_actions_t actions;
    posix_spawnattr_t attributes;
    posix_spawn_file_actions_init(&actions);
    posix_spawnattr_init(&attributes);
    posix_spawn_file_actions_addopen(&actions, STDIN_FILENO, "/dev/null", O_RDONLY, 0);
    posix_spawn_file_actions_adddup2(&actions, output.write_end, STDOUT_FILENO);
    posix_spawn_file_actions_adddup2(&actions, errors.write_end, STDERR_FILENO);
    sigset_t none, all;
    sigemptyset(&none);
    sigfillset(&all);
    posix_spawnattr_setpgroup(&attributes, 0);
    posix_spawnattr_setsigmask(&attributes, &none);
    posix_spawnattr_setsigdefault(&attributes, &all);
    posix_spawnattr_setflags(
        &attributes, POSIX_SPAWN_SETPGROUP | POSIX_SPAWN_SETSIGMASK | POSIX_SPAWN_SETSIGDEF);
    std::vector<std::string> environment = child_environment();
    std::vector<char*> words = pointers_to(argv);
    std::vector<char*> settings = pointers_to(environment);
    int error = posix_spawnp(pid, words[0], &actions, &attributes, words.data(), settings.data());
    posix_spawnattr_destroy(&attributes);
    posix_spawn_file_actions_destroy(&actions);
    return error;
}

Result<void> start(RunningChild& child, std::vector<std::string>& argv) {
    Pipe output, errors;
    int error = output.open() && errors.open() ? 0 : errno;
    if (error == 0) error = spawn_process(argv, output, errors, &child.pid);
    if (error != 0) child.pid = 0;
    if (error == ENOENT) {
        return fail(Code::not_found, "the program {} is not installed", argv[0]);
    }
    if (error == EACCES || error == EPERM) {
        return fail(Code::permission_denied, "{} may not be run: {}", argv[0],
                    std::strerror(error));
    }
    int exit_fd =
        error == 0 ? static_cast<int>(syscall(SYS_pidfd_open, child.pid, O_NONBLOCK)) : -1;
    if (error == 0 && exit_fd < 0) error = errno;
    if (error != 0) {
        child.end();
        return fail(Code::unavailable, "'{}' cannot be started: {}", text_of_command(argv),
                    std::strerror(error));
    }
    child.exit.assign(exit_fd);
    child.output.stream.assign(std::exchange(output.read_end, -1));
    child.errors.stream.assign(std::exchange(errors.read_end, -1));
    return {};
}

}  // namespace

Task<Result<ChildResult>> run_child(std::vector<std::string> argv, ChildOptions options) {
    CHECK(!argv.empty());
    Executor executor = co_await asio::this_coro::executor;
    auto child = std::make_shared<RunningChild>(executor, options.output_bytes_max);
    CO_TRY(start(*child, argv));
    listen(child, &child->output);
    listen(child, &child->errors);
    child->timer.expires_after(options.time_max);
    child->timer.async_wait([child](ErrorCode error) {
        if (error || child->pid <= 0) return;
        child->timed_out = true;
        child->kill_group();
    });
    ErrorCode error;
    co_await child->exit.async_wait(Stream::wait_read, asio::redirect_error(kUseTask, error));
    child->timer.cancel();
    co_await finish(child->output);
    co_await finish(child->errors);
    int exit_code = child->end();
    if (child->timed_out) {
        co_return fail(Code::unavailable, "'{}' did not end within {} s and was killed",
                       text_of_command(argv),
                       std::chrono::duration_cast<std::chrono::seconds>(options.time_max).count());
    }
    co_return ChildResult{exit_code, std::move(child->output.text), std::move(child->errors.text)};
}

Task<Result<std::string>> run_child_checked(std::vector<std::string> argv, ChildOptions options) {
    std::string command = text_of_command(argv);
    CO_TRY_ASSIGN(ChildResult result, co_await run_child(std::move(argv), options));
    if (result.exit_code != 0) {
        std::string said = result.errors.empty() ? result.output : result.errors;
        while (!said.empty() && said.back() == '\n')
            said.pop_back();
        co_return fail(Code::io_error, "'{}' failed with exit code {}: {}", command,
                       result.exit_code, said);
    }
    co_return std::move(result.output);
}

}  // namespace peplos::runtime
