#pragma once

#include <string>
#include <utility>
#include <vector>

#include "base/result.h"

namespace peplos::app {

// One file of a support archive.
struct SupportFile {
    std::string name;  // relative, no ".."
    std::string text;
};

// Removes what must not leave the machine: values of keys and variables that look like secrets
// (password, secret, token, key, authorization), in TOML, JSON, key=value and header form.
// Container ids, names and paths stay: without them a log says nothing.
std::string without_secrets(std::string_view text);

// Packs the files into `path` (tar.gz, mode 0600), each passed through without_secrets().
// Errors: already_exists, io_error, not_found (no tar on this host).
Result<void> write_support_archive(const std::string& path, const std::vector<SupportFile>& files);

}  // namespace peplos::app
