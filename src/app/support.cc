#include "app/support.h"

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstring>
#include <fcntl.h>
#include <filesystem>
#include <fstream>
#include <stdlib.h>
#include <sys/stat.h>
#include <unistd.h>

#include "app/command.h"

namespace peplos::app {
namespace {

constexpr std::array<std::string_view, 7> kSecretWords = {
    "password", "passwd", "secret", "token", "apikey", "api_key", "authorization"};

char lower(char c) {
    return c >= 'A' && c <= 'Z' ? static_cast<char>(c + 32) : c;
}

bool is_word(char c) {
    return (lower(c) >= 'a' && lower(c) <= 'z') || (c >= '0' && c <= '9') || c == '_' || c == '-' ||
           c == '.';
}

bool is_space(char c) {
    return c == ' ' || c == '\t';
}

// Where the next name that contains a secret word ends, from `from` on; npos when none follows.
size_t end_of_secret_name(std::string_view line, size_t from) {
    size_t best = std::string_view::npos;
    for (std::string_view word : kSecretWords) {
        auto found =
            std::search(line.begin() + static_cast<ptrdiff_t>(from), line.end(), word.begin(),
                        word.end(), [](char a, char b) { return lower(a) == b; });
        if (found == line.end()) continue;
        size_t at = static_cast<size_t>(found - line.begin()) + word.size();
        best = std::min(best, at);
    }
    while (best < line.size() && is_word(line[best]))
        ++best;
    return best;
}

// The value that follows a name ending at `at` ("=" or ":", quotes and blanks allowed), as
// [begin, end); begin == npos when there is none.
std::pair<size_t, size_t> value_after(std::string_view line, size_t at) {
    constexpr size_t kNone = std::string_view::npos;
    auto skip_blanks = [&] {
        while (at < line.size() && is_space(line[at]))
            ++at;
    };
    if (at < line.size() && line[at] == '"') ++at;
    skip_blanks();
    if (at >= line.size() || (line[at] != '=' && line[at] != ':')) return {kNone, kNone};
    ++at;
    skip_blanks();
    size_t begin = at;
    if (at < line.size() && line[at] == '"') {
        size_t quote = line.find('"', at + 1);
        return {begin, quote == kNone ? line.size() : quote + 1};
    }
    // "Authorization: Bearer abc": the scheme belongs to the value.
    for (std::string_view scheme : {"Bearer ", "Basic ", "bearer ", "basic "}) {
        if (line.substr(at).starts_with(scheme)) at += scheme.size();
    }
    while (at < line.size() && !is_space(line[at]) && line[at] != ',' && line[at] != ';' &&
           line[at] != '"' && line[at] != '}') {
        ++at;
    }
    return {begin, at};
}

std::string line_without_secrets(std::string_view line) {
    std::string out;
    size_t done = 0;
    size_t at = 0;
    while ((at = end_of_secret_name(line, at)) != std::string_view::npos) {
        auto [begin, end] = value_after(line, at);
        if (begin == std::string_view::npos || begin == end) continue;
        out += line.substr(done, begin - done);
        out += "[removed]";
        done = end;
        at = end;
    }
    out += line.substr(done);
    return out;
}

constexpr size_t kLineBytesMax = 4096;

}  // namespace

std::string without_secrets(std::string_view text) {
    std::string out;
    bool inside_pem = false;
    while (!text.empty()) {
        size_t end = text.find('\n');
        std::string line(text.substr(0, end));
        text.remove_prefix(end == std::string_view::npos ? text.size() : end + 1);
        if (line.find("-----BEGIN") != std::string::npos &&
            line.find("PRIVATE KEY") != std::string::npos) {
            inside_pem = true;
        }
        if (inside_pem) {
            if (line.find("-----END") != std::string::npos) {
                inside_pem = false;
                out += "[private key removed]\n";
            }
            continue;
        }
        if (line.size() > kLineBytesMax) line = line.substr(0, kLineBytesMax) + " [cut]";
        out += line_without_secrets(line);
        out.push_back('\n');
    }
    return out;
}

Result<void> write_support_archive(const std::string& path, const std::vector<SupportFile>& files) {
    std::error_code error;
    if (std::filesystem::exists(path, error)) {
        return fail(Code::already_exists, "{} exists; name another file", path);
    }
    std::string folder = "/tmp/peplos-support-XXXXXX";
    if (::mkdtemp(folder.data()) == nullptr) {
        return fail(Code::io_error, "cannot make a folder in /tmp: {}", std::strerror(errno));
    }
    std::string top = folder + "/peplos-support";
    std::filesystem::create_directory(top, error);
    for (const SupportFile& file : files) {
        std::ofstream out(top + "/" + file.name, std::ios::binary);
        out << without_secrets(file.text);
    }
    mode_t before = ::umask(0077);
    auto packed = run_command({"tar", "-C", folder, "-czf", path, "peplos-support"}, 60);
    ::umask(before);
    std::filesystem::remove_all(folder, error);
    if (!packed) return fail(std::move(packed).error());
    if (packed->exit_code != 0) {
        return fail(Code::io_error, "tar could not write {}: {}", path, packed->output);
    }
    return {};
}

}  // namespace peplos::app
