#pragma once

#include "peer/server.h"
#include "replica/member_host.h"

namespace peplos::replica {

// Serves this node's members of journals to owners on other nodes (methods 0x10 to 0x1f).
class MemberService {
  public:
    // The host outlives it, and it the server's handlers.
    explicit MemberService(MemberHost& host) : host_(host) {}
    MemberService(const MemberService&) = delete;
    MemberService& operator=(const MemberService&) = delete;

    // Serves the calls that come in at `server`, which is not started yet.
    void bind(peer::Server& server);

  private:
    Task<Result<peer::Message>> fence(NodeId from, peer::Message message);
    Task<Result<peer::Message>> open(NodeId from, peer::Message message);
    Task<Result<peer::Message>> append(NodeId from, peer::Message message);
    Task<Result<peer::Message>> renew(NodeId from, peer::Message message);
    Task<Result<peer::Message>> release(NodeId from, peer::Message message);
    Task<Result<peer::Message>> read_log(NodeId from, peer::Message message);

    MemberHost& host_;
};

}  // namespace peplos::replica
