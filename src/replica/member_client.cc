#include "replica/member_client.h"

#include <algorithm>

#include "base/crc32c.h"
#include "replica/member_wire.h"

namespace peplos::replica {

namespace {

// A fence waits out a promise, an open and an append wait for the media, and for room there.
constexpr Duration kFenceTime = std::chrono::seconds(6);
constexpr Duration kWriteTime = std::chrono::seconds(15);
constexpr Duration kWordTime = std::chrono::seconds(2);
// Whether it is an answer to such a call of that claim, in the node's own name.
bool answers(const Message& word, MemberMethod method, NodeId node, const Claim& claim) {
    bool is_kind = method == MemberMethod::fence ? std::holds_alternative<FenceAnswer>(word)
                                                 : std::holds_alternative<MemberAnswer>(word);
    if (!is_kind && !std::holds_alternative<Refusal>(word)) return false;
    return std::visit(
        [&](const auto& said) {
            if constexpr (requires { said.from; }) return said.from == node && said.claim == claim;
            return false;
        },
        word);
}

Task<Result<Message>> ask(peer::Channel& channel, MemberMethod method, Claim claim,
                          peer::Message message, Duration time) {
    auto number = static_cast<peer::Method>(method);
    CO_TRY_ASSIGN(peer::Message answer,
                  co_await channel.call(number, std::move(message), time, peer::Lane::control));
    Result<Message> word = decode_word(answer);
    // It did what it did: only what it says of that is lost.
    if (!word) co_return fail(Code::outcome_unknown, "{}", word.error().message());
    if (!answers(*word, method, channel.node(), claim))
        co_return fail(Code::outcome_unknown, "node {} answers what it was not asked",
                       channel.node());
    co_return word;
}

Result<void> verify(const format::Record& record) {
    size_t block = 0;
    for (const Buffer& piece : record.payload) {
        for (size_t at = 0; at < piece.size(); at += kBlockBytes, ++block) {
            if (crc32c(piece.bytes().subspan(at, kBlockBytes)) == record.crcs[block]) continue;
            return fail(Code::corrupt,
                        "block {} of LSN {} of volume {} does not match its checksum", block,
                        record.lsn, record.volume);
        }
    }
    return {};
}

}  // namespace

Task<Result<Message>> MemberClient::fence(VolumeId volume, LineageId lineage,
                                          FenceMessage message) {
    peer::Message call = encode(FenceCall{volume, lineage, message});
    return ask(channel_, MemberMethod::fence, message.claim, std::move(call), kFenceTime);
}

Task<Result<Message>> MemberClient::open(OpenCall call) {
    return ask(channel_, MemberMethod::open, call.message.claim, encode(call), kWriteTime);
}

Task<Result<Message>> MemberClient::append(AppendCall call) {
    return ask(channel_, MemberMethod::append, call.message.claim, encode(call), kWriteTime);
}

Task<Result<Message>> MemberClient::renew(VolumeId volume, RenewMessage message) {
    peer::Message call = encode(RenewCall{volume, message});
    return ask(channel_, MemberMethod::renew, message.claim, std::move(call), kWordTime);
}

Task<Result<void>> MemberClient::release(VolumeId volume, ReleaseMessage message) {
    peer::Message call = encode(ReleaseCall{volume, message});
    CO_TRY(co_await channel_.call(static_cast<peer::Method>(MemberMethod::release), std::move(call),
                                  kWordTime));
    co_return Result<void>{};
}

Task<Result<LogRecords>> MemberClient::read_log(VolumeId volume, Claim claim,
                                                Incarnation incarnation, Lsn after,
                                                uint64_t bytes) {
    ReadLogCall call{volume, claim, incarnation, after, std::min(bytes, kLogReadBytesMax)};
    CO_TRY_ASSIGN(peer::Message answer,
                  co_await channel_.call(static_cast<peer::Method>(MemberMethod::read_log),
                                         encode(call), kWriteTime));
    CO_TRY_ASSIGN(LogRecords records, decode_records(std::move(answer)));
    Lsn last = after;
    for (const format::Record& record : records.records) {
        if (record.volume != volume || record.lsn <= last)
            co_return fail(Code::corrupt, "node {} sent LSN {} of volume {} behind LSN {} of {}",
                           channel_.node(), record.lsn, record.volume, last, volume);
        last = record.lsn;
        CO_TRY(verify(record));
    }
    co_return records;
}

}  // namespace peplos::replica
