#pragma once

#include "base/crc32c.h"
#include "base/fault.h"
#include "base/result.h"
#include "runtime/task.h"
#include "volume/segment_set.h"

// Reads of what may be damaged, and what a failure proves.
namespace peplos::volume {

// A device may fail a read and give the same bytes right the next time.
inline constexpr int kReadAttempts = 3;

// Bytes that are not what they should be, or that the device does not give.
constexpr bool is_damage(Code code) {
    return code == Code::corrupt || code == Code::io_error || code == Code::not_found;
}

template <typename T>
struct PatientRead {
    Result<T> outcome;
    // Each failure was of the bytes themselves (corrupt). What a device does not give now it may
    // give later.
    bool is_proven = true;
};

template <typename T>
T value_of_task(runtime::Task<Result<T>>*);
template <typename Read>
using ReadValue = decltype(value_of_task(static_cast<std::invoke_result_t<Read&>*>(nullptr)));

// Calls `read`, which gives a Task<Result<T>>, until that succeeds or fails otherwise than by
// damage, at most kReadAttempts times. Borrows what `read` refers to until it resolves.
template <typename Read, typename T = ReadValue<Read>>
runtime::Task<PatientRead<T>> read_patiently(Read read) {
    PatientRead<T> out{co_await read(), true};
    for (int attempt = 1;; ++attempt) {
        if (out.outcome) co_return out;
        const Code code = out.outcome.error().code();
        out.is_proven = out.is_proven && code == Code::corrupt;
        if (!is_damage(code) || attempt == kReadAttempts) co_return out;
        out.outcome = co_await read();
    }
}

// Whether another copy of a segment may do better than the one that said this.
constexpr bool is_of_one_copy(Code code) {
    return is_damage(code) || code == Code::unavailable || code == Code::outcome_unknown ||
           code == Code::busy;
}

// Calls `read(copy)`, which gives a Task<Result<T>> and verifies what it gives, for one copy of the
// segment after the other, until one is good; those that were bad are noted. What none of them can
// give is `unavailable` as long as one that does not answer may have it.
// Borrows what `read` refers to and the handle until it resolves.
template <typename Read>
auto from_any_copy(const SegmentHandle& handle, Read read)
    -> std::invoke_result_t<Read&, uint32_t> {
    auto first = co_await read(0u);
    const uint32_t count = handle.copy_count();
    if (first || count <= 1 || !is_of_one_copy(first.error().code())) co_return first;
    bool is_away = !is_damage(first.error().code());
    std::vector<uint32_t> bad;
    if (!is_away) bad.push_back(0);
    for (uint32_t copy = 1; copy < count; ++copy) {
        auto other = co_await read(copy);
        if (other) {
            PROBE("volume.read.other_copy");
            for (uint32_t which : bad)
                handle.note_bad(which);
            co_return other;
        }
        const Code code = other.error().code();
        if (!is_of_one_copy(code)) co_return other;
        if (is_damage(code)) bad.push_back(copy);
        is_away = is_away || !is_damage(code);
    }
    if (!is_away) co_return first;
    co_return fail(Code::unavailable, "{}; another copy may be good, and its node does not answer",
                   first.error().message());
}

// One block of a segment. Errors: corrupt (it does not match its checksum), those of the device.
inline runtime::Task<Result<void>> read_block_copy(const SegmentHandle& handle, uint32_t copy,
                                                   format::Place place, uint32_t crc, Buffer into) {
    CO_TRY(co_await handle.read_copy(copy, place.offset_bytes(), into));
    if (crc32c(std::as_const(into).bytes()) == crc) co_return Result<void>{};
    co_return fail(Code::corrupt, "it does not match its checksum");
}
inline runtime::Task<Result<void>> read_block(const SegmentHandle& handle, format::Place place,
                                              uint32_t crc, Buffer into) {
    auto read = [&handle, place, crc, &into](uint32_t copy) {
        return read_block_copy(handle, copy, place, crc, into);
    };
    co_return co_await from_any_copy(handle, read);
}

}  // namespace peplos::volume
