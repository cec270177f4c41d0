#pragma once

#include <span>

#include "replica/member_port.h"
#include "runtime/clock.h"

// A log on its way to a new member.
namespace peplos::replica {

// Whether `records` are all that is needed of the log between keep_lsn and last_lsn: by the chains
// in the records, everything between two of them is covered by a seal or a root among them. What
// is read of a log while it is written and trimmed need not be.
// Errors: conflict.
Result<void> check_tail(std::span<const format::Record> records, Lsn keep_lsn, Lsn last_lsn);

// Reads what a member still holds of its log between `after` and `last_lsn`; `heard` becomes the
// time of each piece that came. Errors: those of read_log; no_space: more than bytes_max.
Task<Result<LogRecords>> read_tail(runtime::Clock& clock, MemberPort& port, VolumeId volume,
                                   Claim claim, Incarnation incarnation, Lsn after, Lsn last_lsn,
                                   uint64_t bytes_max, Time* heard);

// Opens a member, in as many calls as it takes. Gives its last answer: about the open as a whole,
// or a refusal. `tail` lives until it is done. Errors: those of MemberPort::open().
Task<Result<Message>> send_open(runtime::Clock& clock, MemberPort& port, VolumeId volume,
                                LineageId lineage, OpenMessage message, const LogRecords& tail,
                                Time* heard);

}  // namespace peplos::replica
