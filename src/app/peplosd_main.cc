// peplosd: the daemon of a node.

#include <cstdio>

#include "app/config.h"
#include "app/daemon.h"
#include "app/logging.h"
#include "base/log.h"

int main(int argc, char** argv) {
    using namespace peplos;
    Result<app::DaemonOptions> options = app::read_options(argc, argv);
    if (!options) {
        std::fprintf(stderr, "peplosd: %s\n", options.error().message().c_str());
        return 2;
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
        return 1;
    }
    LOG_INFO("peplosd ended cleanly");
    return 0;
}
