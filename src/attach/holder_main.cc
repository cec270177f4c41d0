// peplos-holder SOCKET [--background]: keeps the FUSE descriptors of attached volumes alive while
// the daemon restarts. With --background it leaves its parent's session and process group, so that
// whatever ends the daemon spares it; a systemd unit runs it without.

#include <cstdio>
#include <fcntl.h>
#include <signal.h>
#include <string>
#include <string_view>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <unistd.h>

#include "attach/holder.h"

namespace {

int ready_pipe = -1;

// Tells the waiting parent, whose exit tells the daemon.
void report_ready() {
    if (ready_pipe < 0) return;
    char ok = 1;
    [[maybe_unused]] ssize_t written = ::write(ready_pipe, &ok, 1);
    ::close(ready_pipe);
    ready_pipe = -1;
}

// Returns in the grandchild only; the parent exits when that serves, or has failed.
void leave_parent() {
    int pipe_fds[2];
    if (::pipe2(pipe_fds, O_CLOEXEC) != 0) ::_exit(1);
    pid_t child = ::fork();
    if (child < 0) ::_exit(1);
    if (child > 0) {
        ::close(pipe_fds[1]);
        char ok = 0;
        ssize_t count = ::read(pipe_fds[0], &ok, 1);
        ::_exit(count == 1 ? 0 : 1);
    }
    ::close(pipe_fds[0]);
    ::setsid();
    if (::fork() != 0) ::_exit(0);
    ready_pipe = pipe_fds[1];
    int null = ::open("/dev/null", O_RDWR | O_CLOEXEC);
    for (int fd = 0; fd <= 2; ++fd)
        ::dup2(null, fd);
    if (::chdir("/") != 0) ::_exit(1);
}

// What holds the kernel's I/O together is the last thing that may be killed for memory.
void protect_from_memory_pressure() {
    int fd = ::open("/proc/self/oom_score_adj", O_WRONLY | O_CLOEXEC);
    if (fd >= 0) {
        [[maybe_unused]] ssize_t written = ::write(fd, "-1000", 5);
        ::close(fd);
    }
    ::mlockall(MCL_CURRENT | MCL_FUTURE);
}

}  // namespace

int main(int argc, char** argv) {
    bool background = argc == 3 && std::string_view(argv[2]) == "--background";
    if (argc != 2 && !background) {
        std::fprintf(stderr, "usage: peplos-holder SOCKET [--background]\n");
        return 2;
    }
    std::string socket_path = argv[1];
    ::signal(SIGPIPE, SIG_IGN);
    ::signal(SIGHUP, SIG_IGN);
    if (background) leave_parent();
    protect_from_memory_pressure();
    auto served = peplos::attach::run_holder(socket_path, &report_ready);
    // A second holder is not needed and not an error for whoever wanted one to run.
    if (!served && served.error().code() == peplos::Code::already_exists) {
        report_ready();
        return 0;
    }
    if (!served) std::fprintf(stderr, "peplos-holder: %s\n", served.error().message().c_str());
    return 1;
}
