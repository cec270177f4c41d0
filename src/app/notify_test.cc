#include "app/notify.h"

#include <array>
#include <cstdlib>
#include <cstring>
#include <gtest/gtest.h>
#include <string>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

namespace peplos::app {
namespace {

TEST(Notify, ReachesTheManagersSocket) {
    std::string path = "/tmp/peplos-notify-" + std::to_string(::getpid());
    ::unlink(path.c_str());
    int fd = ::socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    ASSERT_GE(fd, 0);
    sockaddr_un address{};
    address.sun_family = AF_UNIX;
    std::strcpy(address.sun_path, path.c_str());
    ASSERT_EQ(::bind(fd, reinterpret_cast<sockaddr*>(&address), sizeof address), 0);
    ::setenv("NOTIFY_SOCKET", path.c_str(), 1);
    notify_manager("READY=1");
    ::unsetenv("NOTIFY_SOCKET");
    notify_manager("READY=1");  // nobody asked: nothing happens
    std::array<char, 64> got{};
    EXPECT_EQ(::recv(fd, got.data(), got.size(), 0), 7);
    EXPECT_STREQ(got.data(), "READY=1");
    EXPECT_LT(::recv(fd, got.data(), got.size(), 0), 0);
    ::close(fd);
    ::unlink(path.c_str());
}

}  // namespace
}  // namespace peplos::app
