#include "api/token.h"

#include <array>
#include <cerrno>
#include <fcntl.h>
#include <sys/random.h>
#include <sys/stat.h>
#include <system_error>
#include <unistd.h>

#include "http/listen.h"

namespace peplos::api {
namespace {

constexpr size_t kTokenBytes = 32;

std::string error_text(int number) {
    return std::generic_category().message(number);
}

bool is_token(std::string_view text) {
    if (text.size() != 2 * kTokenBytes) return false;
    for (char c : text) {
        if (!((c >= '0' && c <= '9') || (c >= 'a' && c <= 'f'))) return false;
    }
    return true;
}

Result<std::string> read_token(const std::string& path, int fd) {
    struct stat state{};
    if (::fstat(fd, &state) != 0) return fail(Code::io_error, "{}: {}", path, error_text(errno));
    bool foreign = state.st_uid != 0 && state.st_uid != ::geteuid();
    if (foreign || !S_ISREG(state.st_mode) || (state.st_mode & 077) != 0) {
        return fail(Code::permission_denied,
                    "the token file {} can be read by others (mode {:o}): run `chmod 600 {}`, or "
                    "remove it and restart peplosd to get a new token",
                    path, state.st_mode & 07777, path);
    }
    std::array<char, 4 * kTokenBytes> text{};
    ssize_t count = ::read(fd, text.data(), text.size());
    std::string token(text.data(), count < 0 ? 0 : static_cast<size_t>(count));
    while (token.ends_with('\n'))
        token.pop_back();
    if (!is_token(token)) {
        return fail(Code::corrupt,
                    "the token file {} holds no token: remove it and restart peplosd", path);
    }
    return token;
}

Result<std::string> create_token(const std::string& path) {
    std::array<unsigned char, kTokenBytes> random{};
    if (::getrandom(random.data(), random.size(), 0) != static_cast<ssize_t>(random.size())) {
        return fail(Code::io_error, "no random bytes for the token: {}", error_text(errno));
    }
    std::string token;
    for (unsigned char byte : random)
        token += fmt::format("{:02x}", byte);
    // Complete under a private name, then renamed: a crash leaves no half-written token.
    std::string fresh = fmt::format("{}.{}", path, ::getpid());
    ::unlink(fresh.c_str());
    http::Fd fd(::open(fresh.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC, 0600));
    std::string line = token + "\n";
    if (fd.get() < 0 ||
        ::write(fd.get(), line.data(), line.size()) != static_cast<ssize_t>(line.size()) ||
        ::fsync(fd.get()) != 0 || ::rename(fresh.c_str(), path.c_str()) != 0) {
        int number = errno;
        ::unlink(fresh.c_str());
        return fail(Code::io_error, "cannot write the token file {}: {}", path, error_text(number));
    }
    return token;
}

}  // namespace

Result<std::string> load_or_create_token(const std::string& path) {
    http::Fd fd(::open(path.c_str(), O_RDONLY | O_NOFOLLOW | O_CLOEXEC));
    if (fd.get() >= 0) return read_token(path, fd.get());
    if (errno == ENOENT) return create_token(path);
    return fail(Code::io_error, "cannot open the token file {}: {}", path, error_text(errno));
}

bool is_same_secret(std::string_view left, std::string_view right) {
    unsigned difference = left.size() == right.size() ? 0 : 1;
    for (size_t index = 0; index < left.size() && index < right.size(); ++index) {
        difference |= static_cast<unsigned>(left[index] ^ right[index]);
    }
    return difference == 0;
}

}  // namespace peplos::api
