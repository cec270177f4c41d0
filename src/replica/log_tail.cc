#include "replica/log_tail.h"

#include <algorithm>

#include "base/fault.h"

namespace peplos::replica {

using format::Record;
using format::RecordType;

namespace {

// What one call carries.
// Encodings alone must fit the body of a call.
constexpr uint64_t kPieceBytes = limits::kPeerBodyBytesMax / 2;

uint64_t record_bytes(const Record& record) {
    return record.payload_bytes() + format::encoded_bytes(record);
}

}  // namespace

Result<void> check_tail(std::span<const Record> records, Lsn keep_lsn, Lsn last_lsn) {
    Lsn drained;
    Lsn meta;
    Lsn root;
    for (const Record& record : records) {
        if (const auto* seal = std::get_if<format::SealBody>(&record.body))
            drained = std::max(drained, seal->drained_lsn);
        if (const auto* body = std::get_if<format::RootBody>(&record.body)) {
            drained = std::max(drained, body->drained_lsn);
            meta = std::max(meta, body->meta_lsn);
            root = record.lsn;
        }
    }
    Lsn last = keep_lsn;
    Lsn last_data = std::max(keep_lsn, drained);
    Lsn last_meta = std::max(keep_lsn, meta);
    for (const Record& record : records) {
        bool is_whole = record.lsn > last && record.prev_data_lsn <= last_data &&
                        record.prev_meta_lsn <= last_meta &&
                        record.root_lsn <= std::max(keep_lsn, root);
        if (!is_whole)
            return fail(Code::conflict, "the log was trimmed while it was read, at LSN {}",
                        record.lsn);
        last = record.lsn;
        if (format::is_data(record.type)) last_data = std::max(last_data, record.lsn);
        if (format::is_meta(record.type)) last_meta = std::max(last_meta, record.lsn);
    }
    if (last == last_lsn) return {};
    return fail(Code::conflict, "the log ends at LSN {}, not at {}", last, last_lsn);
}

Task<Result<LogRecords>> read_tail(runtime::Clock& clock, MemberPort& port, VolumeId volume,
                                   Claim claim, Incarnation incarnation, Lsn after, Lsn last_lsn,
                                   uint64_t bytes_max, Time* heard) {
    LogRecords out;
    uint64_t bytes = 0;
    while (after < last_lsn) {
        auto piece = co_await port.read_log(volume, claim, incarnation, after, kPieceBytes);
        if (!piece) co_return fail(std::move(piece).error());
        *heard = clock.now();
        out.base.drained_lsn = std::max(out.base.drained_lsn, piece->base.drained_lsn);
        out.base.meta_lsn = std::max(out.base.meta_lsn, piece->base.meta_lsn);
        for (Record& record : piece->records) {
            if (record.lsn > last_lsn) co_return out;
            after = std::max(after, record.lsn);
            bytes += record_bytes(record);
            out.records.push_back(std::move(record));
        }
        if (bytes > bytes_max) {
            co_return fail(Code::no_space,
                           "the journal of volume {} holds more than a new member takes at once "
                           "({} MiB): it has to be drained first",
                           volume, bytes_max / kMiB);
        }
        if (piece->is_last || piece->records.empty()) break;
    }
    co_return out;
}

Task<Result<Message>> send_open(runtime::Clock& clock, MemberPort& port, VolumeId volume,
                                LineageId lineage, OpenMessage message, const LogRecords& tail,
                                Time* heard) {
    const std::vector<Record>& records = tail.records;
    std::vector<size_t> ends;  // of the pieces
    uint64_t bytes = 0;
    for (size_t i = 0; i < records.size(); ++i) {
        uint64_t more = record_bytes(records[i]);
        if (bytes != 0 && bytes + more > kPieceBytes) {
            ends.push_back(i);
            bytes = 0;
        }
        bytes += more;
    }
    ends.push_back(records.size());
    size_t begin = 0;
    for (uint32_t part = 0;; ++part) {
        OpenCall call{.volume = volume,
                      .lineage = lineage,
                      .message = message,
                      .part = part,
                      .part_count = static_cast<uint32_t>(ends.size()),
                      .base = tail.base,
                      .records = {}};
        call.records.assign(records.begin() + static_cast<ptrdiff_t>(begin),
                            records.begin() + static_cast<ptrdiff_t>(ends[part]));
        begin = ends[part];
        auto answer = co_await port.open(std::move(call));
        if (!answer) co_return fail(std::move(answer).error());
        *heard = clock.now();
        if (part + 1 == ends.size() || std::holds_alternative<Refusal>(*answer)) co_return answer;
    }
}

}  // namespace peplos::replica
