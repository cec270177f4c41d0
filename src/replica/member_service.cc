#include "replica/member_service.h"

#include <algorithm>

#include "replica/member_wire.h"

namespace peplos::replica {

namespace {

// A node speaks for itself alone: nobody fences, or writes, in another one's name.
Result<void> check_caller(NodeId from, const Claim& claim) {
    if (from == claim.owner) return {};
    return fail(Code::permission_denied, "node {} speaks with the claim of node {}", from,
                claim.owner);
}

}  // namespace

void MemberService::bind(peer::Server& server) {
    using Call = Task<Result<peer::Message>> (MemberService::*)(NodeId, peer::Message);
    auto serve = [this, &server](MemberMethod method, Call call) {
        server.handle(static_cast<peer::Method>(method),
                      [this, call](NodeId from, peer::Message message) {
                          return (this->*call)(from, std::move(message));
                      });
    };
    serve(MemberMethod::fence, &MemberService::fence);
    serve(MemberMethod::open, &MemberService::open);
    serve(MemberMethod::append, &MemberService::append);
    serve(MemberMethod::renew, &MemberService::renew);
    serve(MemberMethod::release, &MemberService::release);
    serve(MemberMethod::read_log, &MemberService::read_log);
}

Task<Result<peer::Message>> MemberService::fence(NodeId from, peer::Message message) {
    CO_TRY_ASSIGN(FenceCall call, decode_call<FenceCall>(std::move(message)));
    CO_TRY(check_caller(from, call.message.claim));
    CO_TRY_ASSIGN(Message word, co_await host_.fence(call.volume, call.lineage, call.message));
    co_return encode(word);
}

Task<Result<peer::Message>> MemberService::open(NodeId from, peer::Message message) {
    CO_TRY_ASSIGN(OpenCall call, decode_call<OpenCall>(std::move(message)));
    CO_TRY(check_caller(from, call.message.claim));
    CO_TRY_ASSIGN(Message word, co_await host_.open(std::move(call)));
    co_return encode(word);
}

Task<Result<peer::Message>> MemberService::append(NodeId from, peer::Message message) {
    CO_TRY_ASSIGN(AppendCall call, decode_call<AppendCall>(std::move(message)));
    CO_TRY(check_caller(from, call.message.claim));
    CO_TRY_ASSIGN(Message word, co_await host_.append(std::move(call)));
    co_return encode(word);
}

Task<Result<peer::Message>> MemberService::renew(NodeId from, peer::Message message) {
    CO_TRY_ASSIGN(RenewCall call, decode_call<RenewCall>(std::move(message)));
    CO_TRY(check_caller(from, call.message.claim));
    CO_TRY_ASSIGN(Message word, co_await host_.renew(call.volume, call.message));
    co_return encode(word);
}

Task<Result<peer::Message>> MemberService::release(NodeId from, peer::Message message) {
    CO_TRY_ASSIGN(ReleaseCall call, decode_call<ReleaseCall>(std::move(message)));
    CO_TRY(check_caller(from, call.message.claim));
    CO_TRY(co_await host_.release(call.volume, call.message));
    co_return peer::Message{};
}

Task<Result<peer::Message>> MemberService::read_log(NodeId from, peer::Message message) {
    CO_TRY_ASSIGN(ReadLogCall call, decode_call<ReadLogCall>(std::move(message)));
    CO_TRY(check_caller(from, call.claim));
    // Whatever is asked for: the answer has to fit a message.
    const uint64_t bytes = std::min(call.bytes, kLogReadBytesMax);
    CO_TRY_ASSIGN(LogRecords records, co_await host_.read_log(call.volume, call.claim,
                                                              call.incarnation, call.after, bytes));
    co_return encode(records);
}

}  // namespace peplos::replica
