#pragma once

#include <vector>

#include "format/record.h"
#include "replica/protocol.h"

// What travels to a member besides the words of the protocol: records, as their owner stamped them
// (epoch, LSN, chains, settled LSN), with their payload beside.
namespace peplos::replica {

// What a takeover copies at most. Writers keep to limits::kEnsembleTailBytesMax, but for what was
// admitted at one moment.
inline constexpr uint64_t kTakeoverTailBytesMax = 4 * limits::kEnsembleTailBytesMax;

// What the records of a log stand on: data up to drained_lsn and meta records up to meta_lsn may be
// missing, because an acknowledged seal or root made them needless.
struct LogBase {
    Lsn drained_lsn;
    Lsn meta_lsn;
    bool operator==(const LogBase&) const = default;
};

// A piece of a log, in LSN order.
struct LogRecords {
    std::vector<format::Record> records;
    bool is_last = false;  // nothing follows in that log
    LogBase base;
};

// An OPEN and the records above message.keep_lsn up to message.last_lsn that are still needed: the
// newest root, meta records above its meta LSN, data-like ones above the drained LSN. A tail that
// is too long for one call comes in several, one after another, which say the same except for
// `part` and `records`; each but the last is answered with an answer that confirms nothing.
struct OpenCall {
    VolumeId volume;
    LineageId lineage;
    OpenMessage message;
    uint32_t part = 0;  // of part_count
    uint32_t part_count = 1;
    LogBase base;  // as the log was read
    std::vector<format::Record> records;
};

struct AppendCall {
    VolumeId volume;
    AppendMessage message;
    format::Record record;  // of message.lsn
};

}  // namespace peplos::replica
