#pragma once

#include "base/crc32c.h"
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

// One block of a segment. Errors: corrupt (it does not match its checksum), those of the device.
inline runtime::Task<Result<void>> read_block(const SegmentHandle& handle, format::Place place,
                                              uint32_t crc, Buffer into) {
    CO_TRY(co_await handle.store->read(handle.pin, place.offset_bytes(), into));
    if (crc32c(std::as_const(into).bytes()) == crc) co_return Result<void>{};
    co_return fail(Code::corrupt, "it does not match its checksum");
}

}  // namespace peplos::volume
