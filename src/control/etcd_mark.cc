#include "control/etcd_mark.h"

#include <cerrno>
#include <charconv>
#include <cstdio>
#include <cstring>
#include <fcntl.h>
#include <fstream>
#include <unistd.h>

#include "base/crc32c.h"

namespace peplos::control {
namespace {

constexpr std::string_view kHead = "peplos-etcd-mark 1\n";
constexpr size_t kMarkBytesMax = 256;

uint32_t crc_of(std::string_view text) {
    return crc32c(bytes_of_text(text));
}

// The text up to `end`, which is taken off as well.
std::optional<std::string_view> take_line(std::string_view& text) {
    size_t end = text.find('\n');
    if (end == std::string_view::npos) return std::nullopt;
    std::string_view line = text.substr(0, end);
    text.remove_prefix(end + 1);
    return line;
}

template <typename Number>
bool parse_number(std::string_view text, int base, Number& number) {
    auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), number, base);
    return error == std::errc{} && end == text.data() + text.size();
}

}  // namespace

std::string text_of_mark(const etcd::Identity& identity) {
    std::string text = fmt::format("{}{:016x}\n{}\n{}\n{}\n", kHead, identity.cluster_id,
                                   identity.generation, identity.mark_revision, identity.mark);
    return fmt::format("{}{:08x}\n", text, crc_of(text));
}

std::optional<etcd::Identity> parse_mark(std::string_view text) {
    if (text.size() > kMarkBytesMax || !text.starts_with(kHead)) return std::nullopt;
    std::string_view rest = text.substr(kHead.size());
    etcd::Identity identity;
    uint32_t crc = 0;
    auto cluster = take_line(rest), generation = take_line(rest), revision = take_line(rest),
         mark = take_line(rest);
    std::string_view covered = text.substr(0, text.size() - rest.size());
    auto sum = take_line(rest);
    bool sound = cluster && generation && revision && mark && sum && rest.empty() &&
                 parse_number(*sum, 16, crc) && crc == crc_of(covered) &&
                 parse_number(*cluster, 16, identity.cluster_id) &&
                 parse_number(*revision, 10, identity.mark_revision) &&
                 identity.mark_revision >= 0 && etcd::parse_generation(*generation).has_value();
    if (!sound) return std::nullopt;
    identity.generation = *generation;
    identity.mark = *mark;
    return identity;
}

std::optional<etcd::Identity> read_etcd_mark(const std::string& path) {
    std::ifstream file(path, std::ios::binary);
    std::string text(kMarkBytesMax + 1, '\0');
    file.read(text.data(), static_cast<std::streamsize>(text.size()));
    text.resize(static_cast<size_t>(std::max<std::streamsize>(0, file.gcount())));
    return parse_mark(text);
}

Result<void> write_etcd_mark(const std::string& path, const etcd::Identity& identity) {
    const std::string fresh = path + ".new";
    const std::string text = text_of_mark(identity);
    int file = ::open(fresh.c_str(), O_CREAT | O_TRUNC | O_WRONLY | O_CLOEXEC, 0600);
    bool ok = file >= 0;
    if (ok) ok = ::write(file, text.data(), text.size()) == static_cast<ssize_t>(text.size());
    int error = ok ? 0 : errno;
    if (file >= 0) ::close(file);
    if (ok && std::rename(fresh.c_str(), path.c_str()) != 0) error = errno;
    if (error == 0) return {};
    Code code = error == ENOSPC || error == EDQUOT ? Code::no_space : Code::io_error;
    if (error == EACCES || error == EPERM || error == EROFS) code = Code::permission_denied;
    return fail(code, "cannot write {}: {}", path, std::strerror(error));
}

}  // namespace peplos::control
