#pragma once

#include <algorithm>
#include <boost/container/small_vector.hpp>
#include <boost/container/static_vector.hpp>
#include <concepts>
#include <cstdint>
#include <optional>
#include <type_traits>
#include <utility>
#include <variant>
#include <vector>

#include "base/check.h"
#include "replica/protocol.h"

// A state as bytes and back, by the fields() of its parts. Two states that nothing can tell apart
// have the same bytes: numbers are small, and a time is what is left of it, at most a promise.
namespace peplos::model {

using Encoded = std::vector<uint8_t>;

// The present of every state: a tick moves all other times instead.
inline constexpr Time kNow{std::chrono::hours(1)};
inline constexpr Duration kTick = std::chrono::seconds(1);

template <typename T>
concept HasFields = requires(T& value) { value.fields([](auto&...) {}); };
template <typename T>
concept Listed = requires(T& value) {
    value.push_back(value.front());
    value.size();
};

// Which of a time's ticks still matter: a promise lasts `promise_ticks`.
struct Canon {
    int64_t promise_ticks = 0;
    // The state moves so much into its future as it is encoded.
    int64_t elapsed_ticks = 0;
};

class Encoder {
  public:
    Encoder(Encoded& out, Canon canon) : out_(out), canon_(canon) {}

    void operator()(const auto&... values) { (put(values), ...); }

  private:
    void put_number(uint64_t value) {
        while (value >= 0x80) {
            out_.push_back(static_cast<uint8_t>(value) | 0x80);
            value >>= 7;
        }
        out_.push_back(static_cast<uint8_t>(value));
    }
    int64_t ticks(Time time) const { return (time - kNow) / kTick - canon_.elapsed_ticks; }

    template <typename T>
        requires std::integral<T> || std::is_enum_v<T>
    void put(const T& value) {
        put_number(static_cast<uint64_t>(value));
    }
    template <typename Tag>
    void put(const StrongId<Tag>& id) {
        put_number(id.value);
    }
    void put(const Time& time) {
        put_number(static_cast<uint64_t>(
            std::clamp<int64_t>(ticks(time), -canon_.promise_ticks, 0) + canon_.promise_ticks));
    }
    void put(const replica::Promise& promise) {
        put_number(static_cast<uint64_t>(
            std::clamp<int64_t>(ticks(promise.until), 0, canon_.promise_ticks)));
    }
    void put(const control::EnsembleMember& member) {
        put(member.node);
        put(member.incarnation);
        put(member.token);
    }
    template <typename T>
    void put(const std::optional<T>& value) {
        put(value.has_value());
        if (value) put(*value);
    }
    void put(const std::monostate&) {}
    template <typename... Ts>
    void put(const std::variant<Ts...>& value) {
        put_number(value.index());
        std::visit([this](const auto& held) { this->put(held); }, value);
    }
    template <HasFields T>
    void put(const T& value) {
        value.fields(*this);
    }
    template <Listed T>
    void put(const T& list) {
        put_number(list.size());
        for (const auto& value : list)
            put(value);
    }

    Encoded& out_;
    Canon canon_;
};

class Decoder {
  public:
    Decoder(const uint8_t* in, Canon canon) : in_(in), canon_(canon) {}

    void operator()(auto&... values) { (get(values), ...); }

  private:
    uint64_t number() {
        uint64_t value = 0;
        for (int shift = 0;; shift += 7) {
            uint8_t byte = *in_++;
            value |= static_cast<uint64_t>(byte & 0x7f) << shift;
            if (byte < 0x80) return value;
        }
    }
    template <typename T>
        requires std::integral<T> || std::is_enum_v<T>
    void get(T& value) {
        value = static_cast<T>(number());
    }
    template <typename Tag>
    void get(StrongId<Tag>& id) {
        id.value = number();
    }
    void get(Time& time) {
        time = kNow + (static_cast<int64_t>(number()) - canon_.promise_ticks) * kTick;
    }
    void get(replica::Promise& promise) {
        promise.until = kNow + static_cast<int64_t>(number()) * kTick;
    }
    void get(control::EnsembleMember& member) {
        get(member.node);
        get(member.incarnation);
        get(member.token);
    }
    template <typename T>
    void get(std::optional<T>& value) {
        value.reset();
        if (number() != 0) get(value.emplace());
    }
    void get(std::monostate&) {}
    template <typename... Ts>
    void get(std::variant<Ts...>& value) {
        uint64_t index = number();
        [this, &value, index]<size_t... I>(std::index_sequence<I...>) {
            (void)((I == index && (this->get(value.template emplace<I>()), true)) || ...);
        }(std::index_sequence_for<Ts...>());
    }
    template <HasFields T>
    void get(T& value) {
        value.fields(*this);
    }
    template <Listed T>
    void get(T& list) {
        list.resize(number());
        for (auto& value : list)
            get(value);
    }

    const uint8_t* in_;
    Canon canon_;
};

}  // namespace peplos::model
