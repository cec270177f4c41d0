#pragma once

#include <expected>
#include <fmt/format.h>
#include <string>
#include <string_view>
#include <utility>

namespace peplos {

// A code exists only where a caller acts differently on it.
enum class Code : unsigned char {
    // Never retry the same call.
    invalid_argument,   // the input is wrong; the message says which part and what is allowed
    not_found,          //
    already_exists,     // the name is taken by something that differs
    permission_denied,  //
    unsupported,        // this build, kernel or format version cannot do it
    corrupt,            // bytes do not match their checksum or identity; never served
    io_error,           // a device failed; it leaves service (never retried on that device)
    fenced,             // a newer epoch exists: this owner must stop
    no_space,           // thin allocation failed; free or add space, then repeat
    // Repeat the same call later.
    busy,         // a bounded queue or a resource is full or held; the message says by whom
    unavailable,  // a dependency does not answer now; state is unchanged
    conflict,     // compare-and-set lost: read again, decide again
    // Neither done nor failed: find out before anything else.
    outcome_unknown,
    // The component is stopping.
    stopping,
};

// The code's name as users and logs see it, e.g. "no_space".
std::string_view name_of(Code code);

// What happened, to what, why and what to do next, in one message for a person.
class [[nodiscard]] Error {
  public:
    Error(Code code, std::string message) : code_(code), message_(std::move(message)) {}

    Code code() const { return code_; }
    const std::string& message() const { return message_; }

    // "message (no_space)": for logs.
    std::string text() const;

    // The same code, with the caller's sentence in front: "context: message".
    Error within(std::string_view context) &&;

  private:
    Code code_;
    std::string message_;
};

template <typename T = void>
using Result = std::expected<T, Error>;

std::unexpected<Error> fail_with(Code code, fmt::string_view format, fmt::format_args args);

// return fail(Code::no_space, "volume {} needs {} bytes", name, bytes);
template <typename... Args>
std::unexpected<Error> fail(Code code, fmt::format_string<Args...> format, Args&&... args) {
    return fail_with(code, format, fmt::make_format_args(args...));
}

inline std::unexpected<Error> fail(Error error) {
    return std::unexpected(std::move(error));
}

}  // namespace peplos

#define PEPLOS_CONCAT_(a, b) a##b
#define PEPLOS_CONCAT(a, b) PEPLOS_CONCAT_(a, b)

// TRY(expression): returns the error of a Result<> from the enclosing function.
// TRY_ASSIGN(auto x, expression): likewise, else moves the value into `x`.
// CO_TRY, CO_TRY_ASSIGN: the same inside a coroutine.
#define TRY(expression)                                               \
    do {                                                              \
        auto peplos_result = (expression);                            \
        if (!peplos_result) [[unlikely]]                              \
            return std::unexpected(std::move(peplos_result).error()); \
    } while (false)
#define TRY_ASSIGN_(result, declaration, expression)       \
    auto result = (expression);                            \
    if (!result) [[unlikely]]                              \
        return std::unexpected(std::move(result).error()); \
    declaration = std::move(*result)
#define TRY_ASSIGN(declaration, ...) \
    TRY_ASSIGN_(PEPLOS_CONCAT(peplos_result_, __LINE__), declaration, (__VA_ARGS__))
#define CO_TRY(...)                                                      \
    do {                                                                 \
        auto peplos_result = (__VA_ARGS__);                              \
        if (!peplos_result) [[unlikely]]                                 \
            co_return std::unexpected(std::move(peplos_result).error()); \
    } while (false)
#define CO_TRY_ASSIGN_(result, declaration, expression)       \
    auto result = (expression);                               \
    if (!result) [[unlikely]]                                 \
        co_return std::unexpected(std::move(result).error()); \
    declaration = std::move(*result)
#define CO_TRY_ASSIGN(declaration, ...) \
    CO_TRY_ASSIGN_(PEPLOS_CONCAT(peplos_result_, __LINE__), declaration, (__VA_ARGS__))
