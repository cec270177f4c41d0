#pragma once

#include <span>

#include "replica/protocol.h"

namespace peplos::replica {

// The owner's side of a volume's journal, from the commit of its claim until it stops: what is
// acknowledged, what may be read, which ensemble holds the log. A plain machine; see MemberLog.
//
// Invariants
//   1. An LSN is acknowledged when it is durable on all members of *every* ensemble that may be
//      the recorded one: while a compare-and-set is on its way, that is the old and the new one.
//   2. A read may be answered while all of them keep their promise. Ask may_read() after the data
//      were fetched: between any two steps this process may have stood still.
//   3. A compare-and-set is sent when each new member durably holds all that was acknowledged. One
//      change at a time.
//   4. A compare-and-set is over only by a definite answer. One of unknown outcome can still
//      happen after the record was read and showed nothing: so it is repeated until it is done or
//      conflicts.
//   5. Once fenced, or when the record is somebody else's, nothing is acknowledged or read here
//      any more: claim anew.
// Relax 4 and a change that was given up takes place later, with members that lack what was
// acknowledged in between.
//
// Records: the caller keeps every record above what is trimmed, to give to members that lack them.
class Ensemble {
  public:
    enum class Change : uint8_t { none, opening, deciding };

    Ensemble() = default;
    // `ownership` is recorded and OPEN; all its members durably hold everything up to last_lsn.
    Ensemble(const Ownership& ownership, Lsn last_lsn, Timing timing);

    // Gives the next LSN and sends it to all members, the local one too.
    Lsn submit(Time now, OwnerActions& out);
    void on_answer(const MemberAnswer& answer, Time now, OwnerActions& out);
    void on_refusal(const Refusal& refusal, OwnerActions& out);
    // Asks all members for promises; call it a few times per promise's length.
    void renew(Time now, OwnerActions& out) const;
    // Sends a member again what it did not confirm, after a reconnect.
    void resend(NodeId node, OpenToken token, OwnerActions& out) const;

    // Wants another ensemble: the owner's node is in it, members that stay are named as recorded,
    // new ones with a new token. Requires may_propose().
    void propose(const Members& next, Time now, OwnerActions& out);
    bool may_propose() const { return !is_stopped_ && change_ == Change::none; }
    // A new member is silent as well: propose others. Requires may_give_up().
    void give_up();
    bool may_give_up() const { return change_ == Change::opening; }
    // `current` is the record as the store holds it, read after an unknown outcome or with the
    // conflict.
    void on_cas(CasOutcome outcome, const Ownership& current, OwnerActions& out);

    // Stops and gives the promises back, for whoever claims next.
    void release(OwnerActions& out);

    const Claim& claim() const { return recorded_.claim; }
    // As recorded, as far as this owner knows.
    const Ownership& ownership() const { return recorded_; }
    Change change() const { return change_; }
    Lsn last_lsn() const { return last_lsn_; }
    Lsn acknowledged_lsn() const { return acknowledged_lsn_; }
    bool is_stopped() const { return is_stopped_; }
    bool may_read(Time now) const;

    bool operator==(const Ensemble&) const = default;
    void fields(this auto& self, auto&& visit) {
        visit(self.recorded_, self.proposed_, self.version_, self.change_, self.last_lsn_,
              self.acknowledged_lsn_, self.is_stopped_, self.peers_);
    }
    void set_timing(Timing timing) { timing_ = timing; }

    // A member of the recorded ensemble, of the proposed one, or of both.
    struct Peer {
        EnsembleMember member;
        Lsn durable_lsn;
        Promise promise;
        bool is_recorded = false;
        bool is_proposed = false;
        bool is_open = false;  // it has the log: appends go there
        bool operator==(const Peer&) const = default;
        void fields(this auto& self, auto&& visit) {
            visit(self.member, self.durable_lsn, self.promise, self.is_recorded, self.is_proposed,
                  self.is_open);
        }
    };
    std::span<const Peer> peers() const { return peers_; }

  private:
    Peer* find(NodeId node, OpenToken token);
    // Whether what the peer holds decides about acknowledgements and reads.
    bool counts(const Peer& peer) const;
    Lsn durable_on_all() const;
    void move_on(OwnerActions& out);
    bool may_decide() const;
    void keep_peers(bool (*is_kept)(const Peer&));
    void take_over_proposed();
    void forget_proposed();
    void send_append(const Peer& peer, Lsn lsn, Time now, OwnerActions& out) const;
    void send_from(const Peer& peer, Lsn first, OwnerActions& out) const;

    Timing timing_;
    Ownership recorded_;
    Ownership proposed_;
    uint64_t version_ = 0;  // the highest that was given to a proposal
    Change change_ = Change::none;
    Lsn last_lsn_;
    Lsn acknowledged_lsn_;
    bool is_stopped_ = false;
    // Of both ensembles.
    boost::container::static_vector<Peer, 2 * limits::kEnsembleMembersMax> peers_;
};

}  // namespace peplos::replica
