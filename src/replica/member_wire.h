#pragma once

#include "peer/message.h"
#include "replica/member_calls.h"

// What owners, and who becomes one, say to the members of a journal on other nodes, and what these
// answer. Format: docs/formats/peer-journal.md.
namespace peplos::replica {

// The calls, by their method numbers.
enum class MemberMethod : uint16_t {
    fence = 0x10,     // FenceCall; the answer is a word of the protocol
    open = 0x11,      // OpenCall; payload of its records beside; a word
    append = 0x12,    // AppendCall; payload of its record beside; a word
    renew = 0x13,     // RenewCall; a word
    release = 0x14,   // ReleaseCall; the answer is empty
    read_log = 0x15,  // ReadLogCall; the answer is LogRecords, payload beside
};

// What one answer to `read_log` carries, records and payload, unless the first record is longer:
// with the lengths between them, encodings fit a body.
inline constexpr uint64_t kLogReadBytesMax = limits::kPeerBodyBytesMax / 2;

struct FenceCall {
    VolumeId volume;
    LineageId lineage;
    FenceMessage message;
};
struct RenewCall {
    VolumeId volume;
    RenewMessage message;
};
struct ReleaseCall {
    VolumeId volume;
    ReleaseMessage message;
};
struct ReadLogCall {
    VolumeId volume;
    Claim claim;
    Incarnation incarnation;
    Lsn after;
    uint64_t bytes = 0;
};

// Payload is not copied, and its blocks' checksums travel in the records: whoever takes the records
// checks them.
peer::Message encode(const FenceCall& call);
peer::Message encode(const OpenCall& call);
peer::Message encode(const AppendCall& call);
peer::Message encode(const RenewCall& call);
peer::Message encode(const ReleaseCall& call);
peer::Message encode(const ReadLogCall& call);
// FenceAnswer, MemberAnswer or Refusal.
peer::Message encode(const Message& word);
peer::Message encode(const LogRecords& records);

// Errors of each: corrupt (cut off, fields out of bounds, payload that is not what the records
// say), unsupported (another version, of the message or of a record). Checksums of payload are not
// looked at.
template <typename Call>
Result<Call> decode_call(peer::Message message);
template <>
Result<FenceCall> decode_call<FenceCall>(peer::Message message);
template <>
Result<OpenCall> decode_call<OpenCall>(peer::Message message);
template <>
Result<AppendCall> decode_call<AppendCall>(peer::Message message);
template <>
Result<RenewCall> decode_call<RenewCall>(peer::Message message);
template <>
Result<ReleaseCall> decode_call<ReleaseCall>(peer::Message message);
template <>
Result<ReadLogCall> decode_call<ReadLogCall>(peer::Message message);
Result<Message> decode_word(const peer::Message& message);
Result<LogRecords> decode_records(peer::Message message);

}  // namespace peplos::replica
