#include <cstdlib>
#include <iostream>
#include <unistd.h>

#include "app/cli.h"

int main(int argc, char** argv) {
    bool terminal = ::isatty(STDOUT_FILENO) == 1 && std::getenv("NO_COLOR") == nullptr;
    return peplos::app::run_cli(argc, argv, std::cout, std::cerr, terminal);
}
