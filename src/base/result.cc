#include "base/result.h"

namespace peplos {

std::string_view name_of(Code code) {
    switch (code) {
        case Code::invalid_argument:
            return "invalid_argument";
        case Code::not_found:
            return "not_found";
        case Code::already_exists:
            return "already_exists";
        case Code::permission_denied:
            return "permission_denied";
        case Code::unsupported:
            return "unsupported";
        case Code::corrupt:
            return "corrupt";
        case Code::io_error:
            return "io_error";
        case Code::fenced:
            return "fenced";
        case Code::no_space:
            return "no_space";
        case Code::busy:
            return "busy";
        case Code::unavailable:
            return "unavailable";
        case Code::conflict:
            return "conflict";
        case Code::outcome_unknown:
            return "outcome_unknown";
        case Code::stopping:
            return "stopping";
    }
    return "unknown_code";
}

std::string Error::text() const {
    return fmt::format("{} ({})", message_, name_of(code_));
}

Error Error::within(std::string_view context) && {
    return Error(code_, fmt::format("{}: {}", context, message_));
}

std::unexpected<Error> fail_with(Code code, fmt::string_view format, fmt::format_args args) {
    return std::unexpected(Error(code, fmt::vformat(format, args)));
}

}  // namespace peplos
