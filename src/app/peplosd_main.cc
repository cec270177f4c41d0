// peplosd: the daemon of a node.

#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <thread>

#include "app/config.h"
#include "app/daemon.h"
#include "app/logging.h"
#include "base/log.h"

int main(int argc, char** argv) {
    using namespace peplos;
    Result<app::DaemonOptions> options = app::read_options(argc, argv);
    if (!options) {
        std::fprintf(stderr, "peplosd: %s\n", options.error().message().c_str());
        return static_cast<int>(app::ExitStatus::bad_options);
    }
    if (options->answer) {
        std::fputs(options->answer->c_str(), stdout);
        return 0;
    }
    app::start_log(options->config);
    app::Daemon daemon(options->config);
    Result<void> ended = daemon.run();
    if (!ended) {
        LOG_ERROR("peplosd ends why=\"{}\"", ended.error().text());
        std::fprintf(stderr, "peplosd: %s\n", ended.error().message().c_str());
        app::ExitStatus status = app::exit_status_of(ended.error());
        // systemd starts it again after 100 ms, for the sake of the containers that wait; a start
        // that keeps failing need not be repeated ten times a second.
        bool is_supervised = std::getenv("NOTIFY_SOCKET") != nullptr;
        if (is_supervised && status == app::ExitStatus::failed)
            std::this_thread::sleep_for(std::chrono::seconds(2));
        return static_cast<int>(status);
    }
    LOG_INFO("peplosd ended cleanly");
    return 0;
}
