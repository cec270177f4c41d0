#include "app/completion.h"

#include <algorithm>

namespace peplos::app {
namespace {

constexpr const char* kBash = R"(# bash completion of peplos
_peplos() {
    local IFS=$'\n'
    COMPREPLY=($(peplos complete -- "${COMP_WORDS[@]:1:COMP_CWORD}" 2>/dev/null))
}
complete -o default -F _peplos peplos
)";
constexpr const char* kZsh = R"(#compdef peplos
_peplos() {
    local -a found
    found=("${(@f)$(peplos complete -- "${(@)words[2,CURRENT]}" 2>/dev/null)}")
    found=(${found:#})
    if (( $#found )); then compadd -a found; else _files; fi
}
if [ "$funcstack[1]" = "_peplos" ]; then _peplos "$@"; else compdef _peplos peplos; fi
)";
constexpr const char* kFish = R"(# fish completion of peplos
function __peplos_complete
    set -l words (commandline -opc)[2..-1]
    peplos complete -- $words (commandline -ct) 2>/dev/null
end
complete -c peplos -a '(__peplos_complete)'
)";

}  // namespace

Result<std::string> completion_script(const std::string& shell) {
    if (shell == "bash") return kBash;
    if (shell == "zsh") return kZsh;
    if (shell == "fish") return kFish;
    return fail(Code::invalid_argument, "shell \"{}\" is unknown; known: bash, zsh, fish", shell);
}

std::vector<std::string> completions(const CLI::App& app, std::vector<std::string> words,
                                     const std::function<std::vector<std::string>()>& volumes) {
    if (words.empty()) words.emplace_back();
    std::string last = words.back();
    words.pop_back();
    const CLI::App* command = &app;
    for (const std::string& word : words) {
        for (const CLI::App* sub : command->get_subcommands([](const CLI::App*) { return true; })) {
            if (sub->get_name() == word) {
                command = sub;
                break;
            }
        }
    }
    std::vector<std::string> candidates;
    for (const CLI::App* sub : command->get_subcommands([](const CLI::App*) { return true; })) {
        if (!sub->get_group().empty()) candidates.push_back(sub->get_name());
    }
    bool names = false;
    for (const CLI::Option* option : command->get_options()) {
        if (option->get_positional()) {
            names = names || option->get_name(true).find("NAME") != std::string::npos;
        }
        for (const std::string& flag : option->get_lnames())
            candidates.push_back("--" + flag);
    }
    if (names && !last.starts_with('-') && command->get_name() != "create") {
        for (const std::string& name : volumes())
            candidates.push_back(name);
    }
    std::erase_if(candidates, [&](const std::string& candidate) {
        // Options only once a dash asks for them.
        return !candidate.starts_with(last) || (last.empty() && candidate.starts_with('-'));
    });
    std::ranges::sort(candidates);
    return candidates;
}

}  // namespace peplos::app
